"""Prints one line for each step, and progress lines while it takes long.

The output of programs goes to a log file.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STORY = "cluster"  # the log that has each step's title
TAIL = 25  # lines of a log that a failure prints
PROGRESS_SECONDS = 5.0  # between two progress lines of a step
DETAIL_COLUMNS = 70  # of a program's output in a progress line
_unfinished: list[threading.Event] = []  # of the steps under way, the innermost last


class StepError(Exception):
    """A step cannot go on: what happened, and what a person can do about it."""

    def __init__(self, what: str, advice: str = "", log: Path | None = None) -> None:
        super().__init__(what)
        self.what, self.advice, self.log = what, advice, log


def build_folder() -> Path:
    """Return the folder of what is built: `$PRETUNE_BUILD`, or one in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PRETUNE_BUILD") or f"{cache}/pretune")


def log_file(name: str) -> Path:
    """The log file of that name; its folder exists afterwards."""
    folder = build_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


@contextmanager
def step(title: str, log: str = STORY, progress: Callable[[], str] | None = None) -> Iterator[Path]:
    """Print the title with the seconds that the block took. The block gets the path of its log file.

    Meanwhile a line is printed every PROGRESS_SECONDS, with what `progress` returns: by default the
    last line that a program wrote to the step's own log.
    """
    file = log_file(log)
    with file.open("a") as out:
        print(f"--- {time.strftime('%F %T')} {title}", file=out)
    started = time.monotonic()
    done = threading.Event()
    _unfinished.append(done)
    show = progress or _last_line(file if log != STORY else None)
    reporter = threading.Thread(
        target=_report_progress, args=(title, show, started, done), daemon=True
    )
    reporter.start()
    failed = True
    try:
        yield file
        failed = False
    except StepError as failure:
        if log != STORY:  # which only has titles
            failure.log = failure.log or file
        raise
    finally:
        done.set()
        reporter.join()
        _unfinished.remove(done)
        print(
            f"{time.monotonic() - started:7.1f} s  {'FAILED  ' if failed else ''}{title}",
            flush=True,
        )


def _report_progress(
    title: str, progress: Callable[[], str], started: float, done: threading.Event
) -> None:
    while not done.wait(PROGRESS_SECONDS):
        if _unfinished[-1] is not done:
            continue
        detail = progress()
        print(
            f"{time.monotonic() - started:7.1f} s  … {title}{f': {detail}' if detail else ''}",
            flush=True,
        )


def _last_line(log: Path | None) -> Callable[[], str]:
    """Return a function that returns the log's last line since now, shortened."""
    begin = log.stat().st_size if log else 0

    def read() -> str:
        lines = log.read_bytes()[begin:].decode(errors="replace").splitlines() if log else []
        last = next(
            (line for line in reversed(lines) if line.strip() and not line.startswith("$ ")), ""
        )
        return last.strip()[:DETAIL_COLUMNS]

    return read


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold this file as a lock; waits until no other process holds it.

    Two checkouts must not build or start the same thing at once.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"wait for another run, which holds {file}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program with its output appended to the log.

    Raises StepError for an exit code other than 0.
    """
    with log.open("a") as out:
        print("$", *command, file=out, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    if done.returncode:
        raise StepError(f"{Path(command[0]).name} ended with exit code {done.returncode}", log=log)


def link(name: Path, target: Path) -> None:
    """Make `name` a relative link to the target, atomically.

    A program may be started by that name at the same time.
    """
    wanted = os.path.relpath(target, name.parent)
    if name.is_symlink() and os.readlink(name) == wanted:
        return
    fresh = name.with_name(f".{name.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(wanted)
    fresh.replace(name)


def report(failure: StepError) -> int:
    """Print the end of the log, what happened and what to do; return the exit code."""
    if failure.log is not None and failure.log.is_file():
        lines = failure.log.read_text(errors="replace").splitlines()[-TAIL:]
        print(f"--- the end of {failure.log}", *lines, "---", sep="\n", file=sys.stderr)
    print(f"error: {failure.what}", file=sys.stderr)
    print(
        f"next:  {failure.advice or 'fix that and run the same command again; it continues where it stopped'}",
        file=sys.stderr,
    )
    return 1
