"""Tests side by side in several processes, and some that must be alone: a lock for readers and writers on two files."""

from __future__ import annotations

import fcntl
import tempfile
from io import TextIOWrapper
from pathlib import Path

FOLDER = (
    Path(tempfile.gettempdir()) / "pretune-tests"
)  # of this machine: two runs of the tests share one cluster


class Peace:
    """Held by one process for one test at a time. A writer that waits lets no new reader pass (`turn`), so that it waits for the tests
    that run, and not for ever. Both are taken in one order, and a reader gives `turn` back at once: nobody waits in a circle. The
    kernel lets go of what a dead process held."""

    def __init__(self) -> None:
        self._turn: TextIOWrapper | None = None
        self._main: TextIOWrapper | None = None

    def begin(self, alone: bool) -> None:
        """Wait for the right to run; a right to be alone that is there already serves for both."""
        if self._turn is not None:
            return
        self._main = None  # closed: a reader has nothing to wait for that it holds itself
        FOLDER.mkdir(exist_ok=True)
        turn, main = (FOLDER / "turn.lock").open("w"), (FOLDER / "main.lock").open("w")
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(main, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self._main = main
        if alone:
            self._turn = turn
        else:
            turn.close()

    def end(self) -> None:
        """Others may go on."""
        for one in (self._main, self._turn):
            if one is not None:
                one.close()
        self._main = self._turn = None
