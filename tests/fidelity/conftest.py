"""The stand-in engines, installed once, and a way to run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fidelity.playing import StandIn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a prefix for each release: /opt/engines in the image."""
    folder = tmp_path_factory.mktemp("installed") / "engines"
    subprocess.run([sys.executable, str(ROOT / "images/engine/install.py"), str(folder)], check=True)
    return folder


@pytest.fixture
def stand_in(engines: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A fresh override folder to play in; what still runs at the end is killed."""
    with ExitStack() as stack:
        yield StandIn(engines, tmp_path, stack)
