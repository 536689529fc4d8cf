"""The vLLM releases whose own code is run: what each is made of, how it keeps its tactics, and an interpreter that has it.

The versions come from images/rehearsal/releases.json, the layouts from docs/dev/facts-vllm.md.
Tests compare what the rehearsals show with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REHEARSAL = Path(__file__).resolve().parents[2] / "images/rehearsal"
NOTHING = "Nothing"  # several ranks of 0.25 and 0.26: they tune, and keep nothing


@dataclass(frozen=True)
class Release:
    """One release. `one` and `several` name the layout that it keeps on one GPU, and on several."""

    vllm: str
    torch: str
    flashinfer: str
    one: str
    several: str

    @property
    def number(self) -> tuple[int, ...]:
        """The version to compare with: (0, 31, 0)."""
        return tuple(int(part) for part in self.vllm.split("."))


def _release(vllm: str, torch: str, flashinfer: str) -> Release:
    number = tuple(int(part) for part in vllm.split("."))
    several = NOTHING if number < (0, 27) else "Shared" if number < (0, 32) else "PerRank"
    one = "Shared" if number < (0, 32) else "PerRank" if number < (0, 33) else "Managed"
    return Release(vllm, torch, flashinfer, one, several)


RELEASES = {
    vllm: _release(vllm, pins["torch"], pins["flashinfer"])
    for vllm, pins in json.loads((REHEARSAL / "releases.json").read_text()).items()
}
CI_RELEASES = tuple(reversed(RELEASES))[:2]  # what CI plays: the newest, and the one before


def site_packages(vllm: str) -> Path | None:
    """The folder that `images/rehearsal/install` made of this release: what a pod mounts. None if it is not installed."""
    asked = [str(REHEARSAL / "install"), "--where", vllm]
    ran = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
    return Path(ran.stdout.strip()) if ran.returncode == 0 else None


def installed() -> list[str]:
    """The releases that are installed, oldest first."""
    return [vllm for vllm in RELEASES if site_packages(vllm)]


def interpreter(vllm: str, folder: Path) -> Path:
    """A python3 that finds this release as the image's does: a virtual environment, made in `folder`. Installs it if need be."""
    subprocess.run([str(REHEARSAL / "install"), vllm], check=True, stdout=subprocess.DEVNULL)
    packages = site_packages(vllm)
    assert packages is not None
    base = Path(os.path.realpath(sys.executable))
    venv = folder / f"vllm-{vllm}"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    library = venv / f"lib/python3.{sys.version_info.minor}/site-packages"
    library.parent.mkdir(parents=True, exist_ok=True)
    if not library.is_symlink():
        library.symlink_to(packages)
        (venv / "bin/python3").symlink_to(base)
        (venv / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    return venv / "bin/python3"
