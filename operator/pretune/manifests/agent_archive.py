"""The agent as an immutable ConfigMap: a zip of this package's own files, which python3 in the engine's image runs."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pretune
from pretune.api.names import ROLE
from pretune.api.types import Object
from pretune.protocol import AGENT_FILE

# What the agent is made of: it imports nothing else of ours (an import-linter contract). The log lines are the controller's.
_PARTS = (
    *("__init__.py", "protocol.py", "engines/__init__.py", "agent/**/*.py"),
    *(f"engines/vllm/{module}.py" for module in ("__init__", "cli", "releases", "files")),
)
_MAIN = b"import runpy\n\nrunpy.run_module('pretune.agent', run_name='__main__', alter_sys=True)\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can say


@functools.cache
def agent() -> tuple[str, bytes]:
    """Name `pretune-agent-<12 hex>` and bytes. The same files make the same bytes: sorted, one date, not compressed
    (zlib's releases differ, and a python3 without zlib can still read it)."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("__main__.py", _MAIN), *_files()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return f"pretune-agent-{hashlib.sha256(raw.getvalue()).hexdigest()[:12]}", raw.getvalue()


def _files() -> Iterator[tuple[str, bytes]]:
    root = Path(pretune.__file__).parent
    for file in sorted({file for part in _PARTS for file in root.glob(part)}):
        yield f"pretune/{file.relative_to(root).as_posix()}", file.read_bytes()


def config_map(namespace: str) -> Object:
    """The agent's ConfigMap in a namespace. Without owner: all caches there use it, and the pods that name it outlive some."""
    name, content = agent()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {ROLE: "agent"}},
        "immutable": True,
        "binaryData": {AGENT_FILE: base64.b64encode(content).decode()},
    }
