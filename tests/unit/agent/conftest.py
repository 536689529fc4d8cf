"""Fixtures of the agent's tests: real files, real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.agent.pod import Pod

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other uids need root")


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.fixture
def open_pod() -> Iterator[Pod]:
    """A pod whose folders any uid may reach."""
    root = Path(tempfile.mkdtemp(prefix="pretune-"))
    root.chmod(0o755)
    made = Pod(root)
    made.claim.chmod(0o777)
    made.tactics.chmod(0o777)
    yield made
    shutil.rmtree(root)


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """`mount(*arguments, path)`, undone in the end."""
    mounted: list[str] = []

    def do(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)
        if arguments[0] != "-o" or "remount" not in arguments[1]:
            mounted.append(arguments[-1])

    yield do
    for path in reversed(mounted):
        subprocess.run(["umount", path], check=True)
