"""The agent as an immutable ConfigMap: one Python file that holds this package's own files.

python3 in the engine's image runs it. One file that is read once, and no zip: a zip is read again
at each import, so that what runs may not be what was compared (manifests/agent_container.py).
"""

from __future__ import annotations

import base64
import functools
import hashlib
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
_LEFT_OUT = ("logs.py", "log.py", "failure_log.py")  # of an engine: the controller alone reads logs
# Behind the files: imports them from memory, and runs the agent.
_MAIN = """
import sys
from importlib.machinery import ModuleSpec


class Files:
    @staticmethod
    def place(name):
        folder = name.replace(".", "/")
        return next((f for f in (folder + ".py", folder + "/__init__.py") if f in FILES), None)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        place = cls.place(name)
        if place is None:
            return None
        return ModuleSpec(name, cls, origin=place, is_package=place.endswith("/__init__.py"))

    @staticmethod
    def create_module(spec):
        return None

    @classmethod
    def exec_module(cls, module):
        exec(cls.get_code(module.__name__), module.__dict__)

    @classmethod
    def get_source(cls, name):
        return FILES[cls.place(name)]

    @classmethod
    def get_code(cls, name):
        return compile(cls.get_source(name), cls.place(name), "exec", dont_inherit=True)


sys.meta_path.insert(0, Files)
from pretune.agent.__main__ import main

sys.exit(main())
"""


@functools.cache
def build_agent_archive() -> bytes:
    """Return the agent as a Python file: the same files make the same bytes."""
    files = "".join(f"    {name!r}: {content!r},\n" for name, content in read_files())
    return f"FILES = {{\n{files}}}\n{_MAIN}".encode()


def read_files() -> Iterator[tuple[str, str]]:
    """Yield path and text of each file that the agent is made of, in the order of their paths."""
    root = Path(pretune.__file__).parent
    for file in sorted({file for pattern in _FILES for file in root.glob(pattern)}):
        if file.name not in _LEFT_OUT:
            yield f"pretune/{file.relative_to(root).as_posix()}", file.read_text(encoding="utf-8")


@functools.cache
def agent_digest() -> str:
    """Return the sha256 of the agent's file, in hex: containers compare it before they run it."""
    return hashlib.sha256(build_agent_archive()).hexdigest()


def agent_name() -> str:
    """Return the name of the agent's ConfigMap: `pretune-agent-<12 hex of its sha256>`."""
    return f"pretune-agent-{agent_digest()[:12]}"


def build_agent_config_map(namespace: str) -> Object:
    """Return the agent's ConfigMap in a namespace.

    It has no owner: all caches there use it, and the pods that name it outlive some of them.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": agent_name(), "namespace": namespace, "labels": {ROLE: "agent"}},
        "immutable": True,
        "binaryData": {AGENT_FILE: _encoded_archive()},
    }


def is_agent(config_map: Object) -> bool:
    """Return whether a ConfigMap of the agent's name holds the agent of this release."""
    data = config_map.get("binaryData") or {}
    return bool(data.get(AGENT_FILE) == _encoded_archive())


@functools.cache
def _encoded_archive() -> str:
    return base64.b64encode(build_agent_archive()).decode()
