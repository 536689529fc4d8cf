"""A lock for tests in several processes, some of which must run alone: readers and writers."""

from __future__ import annotations

import fcntl
import tempfile
from io import TextIOWrapper
from pathlib import Path

# Of this machine: two runs of the tests share one cluster.
FOLDER = Path(tempfile.gettempdir()) / "pretune-tests"


class ClusterLock:
    """A lock that one process holds for one test at a time, on two files.

    A writer that waits blocks new readers with the file `turn`: so it waits only for the tests that
    run. Both files are locked in the same order, and a reader releases `turn` at once, so there is no
    deadlock. The kernel releases the locks of a process that ended.
    """

    def __init__(self) -> None:
        self._turn: TextIOWrapper | None = None
        self._main: TextIOWrapper | None = None

    def acquire(self, alone: bool) -> None:
        """Wait for the lock; a process that holds it alone already keeps it."""
        if self._turn is not None:
            return
        self._main = None  # closed: else a reader would wait for itself
        FOLDER.mkdir(exist_ok=True)
        turn, main = (FOLDER / "turn.lock").open("w"), (FOLDER / "main.lock").open("w")
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(main, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self._main = main
        if alone:
            self._turn = turn
        else:
            turn.close()

    @property
    def is_shared(self) -> bool:
        """Whether other tests may run beside the one that holds the lock."""
        return self._main is not None and self._turn is None

    def release(self) -> None:
        """Release the lock."""
        for file in (self._main, self._turn):
            if file is not None:
                file.close()
        self._main = self._turn = None
