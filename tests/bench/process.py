"""What Linux reports about a process: its memory, and how long ago it started."""

from __future__ import annotations

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


def since_start() -> float:
    """Return the seconds since this process was started, including the start of its interpreter."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
