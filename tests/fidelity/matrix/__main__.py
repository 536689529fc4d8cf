"""make fidelity: plays every cell with every release, and writes docs/compatibility.md.

python -m tests.fidelity.matrix [--keep] [--engines N] [--only-document] [RELEASE …]     default: every release that the rehearsal knows

Installs a release if it is not there, and removes it again, unless --keep: one at a time, and beside it the one that its tag is moved to.
What each run saw lies in tests/fidelity/matrix/results; the document has the columns of all that lie there. Progress goes to stderr.
Exits with 1 where a cell is not what was expected, or a release could not be played.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.cluster.cluster_lock import ClusterLock
from tests.cluster.conftest import BUILD, ROOT, SYSTEM, delete_leftover_namespaces, install
from tests.cluster.kube import Kube
from tests.cluster.operator_control import OperatorControl
from tests.fidelity.matrix import document
from tests.fidelity.matrix.judge import differences
from tests.fidelity.matrix.play import AT_A_TIME, play
from tests.fidelity.matrix.stage import stage
from tests.fidelity.releases import CI_RELEASES, REHEARSAL, RELEASES, site_packages

INSTALL = REHEARSAL / "install"
BEGAN = time.monotonic()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity.matrix")
    parser.add_argument("releases", nargs="*")
    parser.add_argument("--keep", action="store_true", help="leave installed what was installed")
    parser.add_argument(
        "--engines", type=int, default=AT_A_TIME, help="how many start at a time (%(default)s)"
    )
    parser.add_argument(
        "--only-document",
        action="store_true",
        help="make the document of the results that are there",
    )
    asked = parser.parse_args(words)
    if unknown := set(asked.releases) - set(RELEASES):
        parser.error(f"no release {', '.join(sorted(unknown))}; there are {', '.join(RELEASES)}")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # what was made on the cluster is removed
    try:
        odd = (
            0
            if asked.only_document
            else run(asked.releases or list(RELEASES), asked.keep, asked.engines)
        )
    except KeyboardInterrupt:
        say("ended")
        os._exit(1)  # threads that wait for a pod would keep the tests' lock meanwhile
    document.write()
    say(f"{document.FILE.relative_to(ROOT)} is written")
    return 1 if odd else 0


def run(releases: Sequence[str], keep: bool, engines: int = AT_A_TIME) -> int:
    """How many cells were not as expected; a release that could not be played counts as one."""
    kube, cluster_lock, odd = cluster(), ClusterLock(), 0
    say("waiting until no test disturbs the operator")
    cluster_lock.acquire(alone=True)
    delete_leftover_namespaces(kube)
    install(kube)
    OperatorControl(kube, SYSTEM, BUILD / "bin").wait_until_working()
    cluster_lock.release()
    cluster_lock.acquire(alone=False)
    # What a tag is moved to: the first of these that is another release.
    others = {
        release: next(other for other in CI_RELEASES if other != release) for release in releases
    }
    with ExitStack() as companions:  # each is the other one of several
        for other in sorted(set(others.values())):
            companions.enter_context(there(other, keep))
        for release, other in others.items():
            odd += _one(kube, release, other, keep, engines)
    return odd


def _one(kube: Kube, release: str, other: str, keep: bool, engines: int) -> int:
    try:
        with there(release, keep), stage(kube, release, other) as made:
            played = play(made, say=say, at_a_time=engines)
    except (AssertionError, OSError, subprocess.CalledProcessError) as problem:
        say(f"{release}: COULD NOT BE PLAYED: {problem}")
        return 1
    played.write()
    odd = differences(played)
    for cell, found in odd.items():
        say(f"{release}: {cell}: NOT AS EXPECTED: {'; '.join(found)}")
    return len(odd) + len(played.missing)


def cluster() -> Kube:
    kube = Kube(str(ROOT / ".local/kubeconfig"))
    system = kube.get("Namespace", "", "kube-system") or {}
    assert (system["metadata"].get("labels") or {}).get("pretune.dev/test-cluster") == "true", (
        f"{kube.host} is not marked as a test cluster: nothing was touched"
    )
    return kube


@contextmanager
def there(release: str, keep: bool) -> Iterator[None]:
    """The release is installed; removed behind it if it was not there before. The installer looks at the free disk first."""
    found = site_packages(release)
    if found is None:
        say(f"{release}: is installed")
        subprocess.run([str(INSTALL), release], check=True, stdout=sys.stderr)
    try:
        yield
    finally:
        if found is None and not keep:
            subprocess.run([str(INSTALL), "--remove", release], check=True, stdout=sys.stderr)


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:7.1f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
