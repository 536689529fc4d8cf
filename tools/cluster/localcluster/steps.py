"""One printed line a step, with its time; everything that programs print goes to a log file."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STORY = "cluster"  # the log that has each step's title
TAIL = 25  # lines of a log that a failure prints


class StepError(Exception):
    """A step cannot go on: what happened, and what a person can do about it."""

    def __init__(self, what: str, advice: str = "", log: Path | None = None) -> None:
        super().__init__(what)
        self.what, self.advice, self.log = what, advice, log


def build_folder() -> Path:
    """Where build products live that outlast a checkout: `$PRETUNE_BUILD`, by default in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PRETUNE_BUILD") or f"{cache}/pretune")


def log_file(name: str) -> Path:
    """The log file of that name; its folder exists afterwards."""
    folder = build_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


@contextmanager
def step(title: str, log: str = STORY) -> Iterator[Path]:
    """Print the title with the seconds that the block took; the block gets the log file to append to."""
    file = log_file(log)
    with file.open("a") as out:
        print(f"--- {time.strftime('%F %T')} {title}", file=out)
    started = time.monotonic()
    try:
        yield file
    except StepError as failure:
        if log != STORY:  # which only has titles
            failure.log = failure.log or file
        print(f"{time.monotonic() - started:7.1f} s  FAILED  {title}", flush=True)
        raise
    print(f"{time.monotonic() - started:7.1f} s  {title}", flush=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait until no other process holds this file: two checkouts must not do the same thing side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    command: Sequence[str | Path], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run a program with its output appended to the log; raise StepError when it exits with another code than 0."""
    with log.open("a") as out:
        print("$", *command, file=out, flush=True)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env={**os.environ, **(env or {})}
        )
    if done.returncode:
        raise StepError(f"{Path(command[0]).name} ended with exit code {done.returncode}", log=log)


def report(failure: StepError) -> int:
    """Print a failure as a person needs it: the end of the log, what happened, how to go on. Returns the exit code."""
    if failure.log is not None and failure.log.is_file():
        lines = failure.log.read_text(errors="replace").splitlines()[-TAIL:]
        print(f"--- the end of {failure.log}", *lines, "---", sep="\n", file=sys.stderr)
    print(f"error: {failure.what}", file=sys.stderr)
    print(
        f"next:  {failure.advice or 'mend that and run the same command again; it goes on where it stopped'}",
        file=sys.stderr,
    )
    return 1
