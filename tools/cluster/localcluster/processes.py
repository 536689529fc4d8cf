"""Starts programs that outlive this process, and ends them later, never one that got their pid.

A record is `run/<name>.json`: the pid with the boot and the clock tick in which it started. A pid
that is used again has another start time, so a record is trusted only while all three agree.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from localcluster.places import LOGS, STATE
from localcluster.steps import StepError

RECORDS = STATE / "run"
# Memory for CPU time: Go programs, which all but the keeper are, collect their garbage less often.
ENVIRONMENT = {"GOGC": "300"}


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def started_at(pid: int) -> int | None:
    """Return the clock tick since boot in which the process started.

    Returns None if there is no such process, or only its zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # what stands in the brackets may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def running(name: str) -> int | None:
    """The pid of the program recorded under that name, if it still is that program."""
    try:
        record = json.loads((RECORDS / f"{name}.json").read_text())
        same = record["boot"] == _boot() and started_at(record["pid"]) == record["started"]
        return int(record["pid"]) if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def recorded() -> list[str]:
    """The names of all programs that were started, running or not."""
    return sorted(file.stem for file in RECORDS.glob("*.json"))


def start(name: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Start a program in a session of its own, unless it runs.

    Its output goes to `logs/<name>.log`.
    """
    if running(name) is not None:
        return
    RECORDS.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("a") as log:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=STATE,
            env={**os.environ, **ENVIRONMENT, **(env or {})},
            start_new_session=True,
        )
    record = {
        "pid": child.pid,
        "boot": _boot(),
        "started": started_at(child.pid),
        "command": str(command[0]),
    }
    (RECORDS / f"{name}.json").write_text(json.dumps(record))


def stop(names: Sequence[str]) -> None:
    """Kill the programs of these names and their children, and wait until they are gone.

    Killed, not asked: all that they would save on the way out is about to be removed.
    """
    killed = {name: pid for name in names if (pid := running(name)) is not None}
    for pid in killed.values():
        kill_group(pid)
    for name, pid in killed.items():
        wait_until(partial(_ended, name, pid), 10, f"{name} to end")


def _ended(name: str, pid: int) -> bool:
    """Return whether the program has ended, with all its threads.

    A zombie whose other threads are still ending has its ports open.
    """
    try:
        threads = {entry.name for entry in Path(f"/proc/{pid}/task").iterdir()} - {str(pid)}
    except (FileNotFoundError, ProcessLookupError):
        threads = set()
    return running(name) is None and not threads


def kill_group(pid: int) -> None:
    """Kill a process group that we started; one that is gone already is fine."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def answers(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens there: a path of a Unix socket, or an address and port."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def wait_until(
    holds: Callable[[], bool],
    seconds: float,
    what: str,
    log: Path | None = None,
    needs: Sequence[str] = (),
) -> None:
    """Wait until the condition holds.

    Raises StepError when it takes longer, or when a program that it needs ends meanwhile.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        for name in needs:
            if running(name) is None:
                raise StepError(f"{name} ended while waiting for {what}", log=LOGS / f"{name}.log")
        if time.monotonic() > deadline:
            raise StepError(f"waited {seconds:.0f} s for {what}, without success", log=log)
        time.sleep(0.1)
