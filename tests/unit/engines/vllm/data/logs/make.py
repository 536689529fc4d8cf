"""Makes the logs beside it: what each vLLM release's own warm-up and FlashInfer's own tuner say, in situations that serving pods get into.

usage: PYTHONPATH=. .venv/bin/python -m tests.unit.data.logs.make [RELEASE…]

Runs images/rehearsal (each release is installed where it is not there, up to 7 GB). A file is one start: `<release>.<situation>.txt`. Only
paths of this machine are replaced: the override folder is /pretune/tactics, as in a serving pod.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fidelity.playing import VARIABLE
from tests.fidelity.releases import RELEASES, interpreter
from tests.fidelity.sides import MODEL, Rehearsals

HERE = Path(__file__).parent
ONE, OTHER = (
    {"REHEARSAL_OPERATIONS": "toy_gemm_0"},
    {"REHEARSAL_OPERATIONS": "toy_gemm_0,toy_gemm_1"},
)
TP2 = ("--tensor-parallel-size", "2")
PATIENCE = 120  # seconds


def main(releases: Sequence[str]) -> None:
    for release in releases or RELEASES:
        with tempfile.TemporaryDirectory() as folder:
            running = Rehearsals(interpreter(release, Path(folder)), Path(folder))
            try:
                _Release(release, running, folder).play()
            finally:
                running.close()


class _Release:
    """One release's situations. Those of one rank share a folder that a cold start has filled."""

    def __init__(self, release: str, running: Rehearsals, folder: str) -> None:
        self._release, self._running, self._folder = release, running, folder

    def play(self) -> None:
        layout = RELEASES[self._release]
        self._start("cold", "one", **ONE)
        self._start("warm", "one", **ONE)
        self._start("part", self._copy("one", "part"), **OTHER)
        self._start(
            "other-gpu", self._copy("one", "gpu"), **ONE, REHEARSAL_GPU="NVIDIA H100 80GB HBM3"
        )
        self._start("off", "off", "-O0", **ONE)
        if layout.one == "Managed":
            self._start("read-only", "new", read_only=True, **ONE)
        else:
            self._start("other-key", self._copy("one", "key"), "--max-num-seqs", "64", **ONE)
        self._start("two-ranks-cold", "two", *TP2, **ONE)
        if layout.several == "PerRank":
            self._start("two-ranks-warm", "two", *TP2, **ONE)

    def _start(
        self, situation: str, cache: str, *words: str, read_only: bool = False, **environ: str
    ) -> None:
        root = self._running.read_only if read_only else self._running.writable
        (self._running.writable / cache).mkdir(exist_ok=True)
        end, said = self._running.run(
            [MODEL, *words],
            {VARIABLE: str(root / cache), **environ},
            powerless=False,
            patience=PATIENCE,
        )
        assert end == "ready", f"{self._release} {situation}: {end}\n{said}"
        # Bytes: as text it would lose the returns with which progress bars are redrawn.
        log = (
            max((Path(self._folder) / "logs").iterdir(), key=lambda one: int(one.name))
            .read_bytes()
            .decode()
        )
        (HERE / f"{self._release}.{situation}.txt").write_bytes(
            self._elsewhere(log, str(root / cache)).encode()
        )
        print(self._release, situation)

    def _copy(self, cache: str, name: str) -> str:
        shutil.copytree(self._running.writable / cache, self._running.writable / name)
        return name

    def _elsewhere(self, log: str, cache: str) -> str:
        for place, name in (
            (cache, "/pretune/tactics"),
            (self._folder, "/tmp"),
            (str(HERE.parents[5]), "/opt"),
        ):
            log = log.replace(place, name)
        log = re.sub(r"/\S*/site-packages/", "/opt/venv/lib/python3.11/site-packages/", log)
        return re.sub(r"\b(?:\d{1,3}\.){3}\d{1,3}:\d+", "127.0.0.1:1", log)


if __name__ == "__main__":
    main(sys.argv[1:])
