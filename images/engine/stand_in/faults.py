"""Spoils what the warm-up wrote, so that the one who seals it can be seen to notice."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from .files import write_json


class NothingToSpoilError(RuntimeError):
    """The fault needs files that this release and these arguments do not write."""


def spoil(fault: str, folders: Sequence[Path]) -> None:
    """Takes the fault's name and the folders of the warm-up; a fault of another kind does nothing. Raises NothingToSpoilError."""
    if fault in _FAULTS:
        if not folders or not folders[0].is_dir():
            raise NothingToSpoilError(f"ENGINE_FAULT={fault}: the warm-up wrote no folder")
        _FAULTS[fault](folders[0])


def _files(folder: Path, least: int, fault: str) -> List[Path]:
    """The files that hold entries: rank files, the shared one, or those of the managed store."""
    files = sorted(path for path in folder.rglob("*.json") if path.name != "manifest.json")
    if len(files) < least:
        raise NothingToSpoilError(
            f"ENGINE_FAULT={fault}: {least} files are needed, {folder} has {len(files)}"
        )
    return files


def _ranks(folder: Path, fault: str) -> List[Path]:
    files = [
        path for path in _files(folder, 2, fault) if path.name.startswith("autotune_configs_dp")
    ]
    if len(files) < 2:
        raise NothingToSpoilError(
            f"ENGINE_FAULT={fault}: two rank files are needed, {folder} has {len(files)}"
        )
    return files


def _half_written(folder: Path) -> None:
    file = _files(folder, 1, "half-written")[-1]
    os.truncate(str(file), file.stat().st_size // 2)


def _missing_rank(folder: Path) -> None:
    _ranks(folder, "missing-rank")[0].unlink()


def _uneven_ranks(folder: Path) -> None:
    def drop_one(content: Dict[str, Any]) -> None:
        del content[next(name for name in content if not name.startswith("_"))]

    _edit(_ranks(folder, "uneven-ranks")[-1], drop_one)


def _disagreeing_ranks(folder: Path) -> None:
    def other_cudnn(content: Dict[str, Any]) -> None:
        content["_metadata"]["cudnn_version"] = "92300"

    _edit(_ranks(folder, "disagreeing-ranks")[-1], other_cudnn)


def _edit(file: Path, change: Callable[[Dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


def _symlink(folder: Path) -> None:
    (folder / "link.json").symlink_to("/etc/passwd")


def _dotdot(folder: Path) -> None:
    """A name cannot hold a `..` between slashes: a link that leads upwards is how a folder can have one all the same."""
    (folder / "up").symlink_to(Path("..") / "..")


def _device(folder: Path) -> None:
    try:
        os.mknod(str(folder / "device.json"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:  # only root may make devices; a pipe is no plain file either
        os.mkfifo(str(folder / "device.json"), 0o600)


def _many_files(folder: Path) -> None:
    (folder / "many").mkdir()
    for at in range(10_001):
        (folder / "many" / f"{at}.json").touch(0o600)


def _huge(folder: Path) -> None:
    with (folder / "huge.json").open("wb") as file:
        file.truncate(300 << 20)


def _unreadable(folder: Path) -> None:
    _files(folder, 1, "unreadable")[-1].chmod(0)


_FAULTS: Dict[str, Callable[[Path], None]] = {
    "half-written": _half_written,
    "missing-rank": _missing_rank,
    "uneven-ranks": _uneven_ranks,
    "disagreeing-ranks": _disagreeing_ranks,
    "symlink": _symlink,
    "dotdot": _dotdot,
    "device": _device,
    "many-files": _many_files,
    "huge": _huge,
    "unreadable": _unreadable,
}
