"""Atomic writes, as vLLM and FlashInfer do them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path


def write_json(path: Path, content: object, sort: bool = False, prefix: str = ".autotune_") -> None:
    """As FlashInfer writes: a temporary file of mode 0600 in the same folder, then a rename. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(content, indent=2, sort_keys=sort).encode(), prefix)


def write_bytes(path: Path, content: bytes, prefix: str) -> None:
    """The same for bytes: how vLLM writes a shared file again on every start."""
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=prefix, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
