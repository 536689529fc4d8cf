"""Copies of a sealed bundle on its claim, changed as another maker would have made them, for a cache that finds them there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANOTHER_FLASHINFER = "0.7.1"  # no pinned release has it


def copied(
    source: Path, target: Path, folder: str, change: Callable[[Path], None], **versions: str
) -> None:
    """The bundle `source` as `target` of the cache whose folder on the claim is `folder`, with its tactics changed by `change`, and a
    manifest that fits, with these versions: found there, it is adopted as any bundle is."""
    shutil.copytree(source, target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    manifest = json.loads((target / "manifest.json").read_text())
    [part] = manifest["parts"]
    tactics = target / part["name"]
    change(tactics)
    manifest["cache"] = folder
    manifest["versions"] |= versions
    part["folders"] = sorted(
        str(one.relative_to(tactics)) for one in tactics.rglob("*") if one.is_dir()
    )
    part["files"] = [
        {
            "path": str(one.relative_to(tactics)),
            "size": one.stat().st_size,
            "sha256": hashlib.sha256(one.read_bytes()).hexdigest(),
        }
        for one in sorted(tactics.rglob("*"))
        if one.is_file()
    ]
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for path in (*target.rglob("*"), target):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for above in (target.parent.parent, target.parent):  # as the agent makes them
        above.chmod(0o1777)


def unchanged(tactics: Path) -> None:
    """Another cache's, and nothing else."""


def of_another_flashinfer(tactics: Path) -> None:
    """What the same vLLM with FlashInfer 0.7.1 would have left: its version in each file's `_metadata`; in a managed store in the
    environment's manifest, and the environment's folder is named by a hash of that (flashinfer/autotune_cache.py)."""
    changed = 0
    for file in sorted(tactics.glob("*/autotune_configs*.json")):
        data = json.loads(file.read_text())
        _another(data["_metadata"])
        file.write_text(json.dumps(data, indent=2))
        changed += 1
    for file in sorted(tactics.glob("v2/*/manifest.json")):
        data = json.loads(file.read_text())
        assert _environment(data) == file.parent.name, (
            f"{file.parent.name} is not named as expected of {data}"
        )
        _another(data)
        file.write_text(json.dumps(data, indent=2, sort_keys=True))
        file.parent.rename(file.parent.with_name(_environment(data)))
        changed += 1
    assert changed, f"no file of a known form below {tactics}"


def _another(metadata: dict[str, Any]) -> None:
    assert metadata["flashinfer_version"] != ANOTHER_FLASHINFER
    metadata["flashinfer_version"] = ANOTHER_FLASHINFER


def _environment(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:16]
