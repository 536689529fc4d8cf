"""What Linux reports about a process: its memory, its connections, and when it started."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def memory(pid: int | str = "self") -> tuple[float, float]:
    """Return the resident memory of a process, now and at its highest, in MiB."""
    lines = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":" in line
    )
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def connections(pid: int) -> int:
    """Return how many TCP connections of a process are open."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(file))
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    established = "01"
    return sum(line[3] == established and f"socket:[{line[9]}]" in sockets for line in lines)


def since_start(pid: int | str = "self") -> float:
    """Return the seconds since a process was started, including the start of its interpreter."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
