"""The stand-in engines, installed once, and a way to run them; the releases' own code, one release after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fidelity.playing import StandIn
from tests.fidelity.releases import interpreter
from tests.fidelity.sides import Rehearsals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a prefix for each release: /opt/engines in the image."""
    folder = tmp_path_factory.mktemp("installed") / "engines"
    subprocess.run(
        [sys.executable, str(ROOT / "images/engine/install.py"), str(folder)], check=True
    )
    return folder


@pytest.fixture
def stand_in(engines: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A fresh override folder to play in; what still runs at the end is killed."""
    with ExitStack() as stack:
        yield StandIn(engines, tmp_path, stack)


@pytest.fixture(scope="session")
def rehearsals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Rehearsals]]:
    """Rehearsals of a release. One process of more than a GiB at a time: asking for another release ends the one before."""
    running: dict[str, Rehearsals] = {}

    def of(release: str) -> Rehearsals:
        if release not in running:
            for name in list(running):
                running.pop(name).close()
            folder = tmp_path_factory.mktemp(f"rehearsals-{release}")
            running[release] = Rehearsals(interpreter(release, folder), folder)
        return running[release]

    yield of
    for one in running.values():
        one.close()
