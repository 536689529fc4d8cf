"""The agent as an immutable ConfigMap: a zip of this package's own files.

python3 in the engine's image runs it.
"""

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

# The agent imports nothing else of ours (an import-linter contract).
_FILES = (
    *("__init__.py", "protocol.py", "api/__init__.py", "api/reasons.py"),
    *("engines/**/*.py", "agent/**/*.py"),
)
_LEFT_OUT = ("logs.py", "log.py")  # of an engine: the controller alone reads logs
_MAIN = b"import runpy\n\nrunpy.run_module('pretune.agent', run_name='__main__', alter_sys=True)\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold


@functools.cache
def build_agent_archive() -> bytes:
    """Return the agent as a zip.

    The same files make the same bytes: they are sorted, have one date, and are not compressed,
    since zlib's releases differ. So a python3 without zlib can read it too.
    """
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("__main__.py", _MAIN), *_read_files()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return raw.getvalue()


def _read_files() -> Iterator[tuple[str, bytes]]:
    root = Path(pretune.__file__).parent
    for file in sorted({file for pattern in _FILES for file in root.glob(pattern)}):
        if file.name not in _LEFT_OUT:
            yield f"pretune/{file.relative_to(root).as_posix()}", file.read_bytes()


@functools.cache
def agent_name() -> str:
    """Return the name of the agent's ConfigMap: `pretune-agent-<12 hex of its sha256>`."""
    return f"pretune-agent-{hashlib.sha256(build_agent_archive()).hexdigest()[:12]}"


def build_agent_config_map(namespace: str) -> Object:
    """Return the agent's ConfigMap in a namespace.

    It has no owner: all caches there use it, and the pods that name it outlive some of them.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": agent_name(), "namespace": namespace, "labels": {ROLE: "agent"}},
        "immutable": True,
        "binaryData": {AGENT_FILE: base64.b64encode(build_agent_archive()).decode()},
    }
