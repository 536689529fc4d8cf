"""A cgroup of its own for each node's pods, under cgroup v1 and v2."""

from __future__ import annotations

import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = (
    "cpuset",
    "cpu",
    "io",
    "memory",
    "hugetlb",
    "pids",
)  # what a kubelet asks for under v2


def make_cgroup(name: str) -> None:
    """Make the cgroup in each hierarchy that the kubelet uses, with its controllers."""
    if (ROOT / "cgroup.controllers").exists():  # v2, which hands down only what is asked for
        offered = (ROOT / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{controller}" for controller in CONTROLLERS if controller in offered)
        (ROOT / "cgroup.subtree_control").write_text(wanted)
        (ROOT / name).mkdir(exist_ok=True)
        return
    for hierarchy in _hierarchies():
        if (hierarchy / "cgroup.controllers").exists():
            continue  # v2 mounted beside v1: runc makes there what it needs
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for limit in ("cpuset.cpus", "cpuset.mems"):  # without these no process may enter
            if (folder / limit).exists():
                (folder / limit).write_text((hierarchy / limit).read_text())


def remove_cgroup(name: str) -> None:
    """Remove the cgroup and all below it. The kernel needs a moment after its processes ended."""
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            for _ in range(20):
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.1)


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.is_symlink()]
