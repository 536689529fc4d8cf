"""Fixtures of the agent's tests: real files, real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pretune.engines.vllm.engine import VLLM

from tests.builders.agent_pod import AgentPod

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other uids need root")


@pytest.fixture
def pod(tmp_path: Path) -> AgentPod:
    return AgentPod(tmp_path)


@pytest.fixture
def open_pod() -> Iterator[AgentPod]:
    """A pod whose folders any uid may reach."""
    root = Path(tempfile.mkdtemp(prefix="pretune-"))
    root.chmod(0o755)
    pod = AgentPod(root)
    pod.claim.chmod(0o777)
    for part in VLLM.parts:
        (root / part.name).chmod(0o777)
    yield pod
    shutil.rmtree(root)


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """`mount(*arguments, path)`; unmounted at the end."""
    mounted: list[str] = []

    def run_mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)
        if arguments[0] != "-o" or "remount" not in arguments[1]:
            mounted.append(arguments[-1])

    yield run_mount
    for path in reversed(mounted):
        subprocess.run(["umount", path], check=True)
