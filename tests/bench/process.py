"""What Linux knows of a process: its memory, and how long ago it began."""

from __future__ import annotations

import os
import time
from pathlib import Path


def memory(pid: int | str = "self") -> tuple[float, float]:
    """(resident now, the highest so far) in MiB."""
    lines = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":" in line
    )
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def since_start() -> float:
    """Seconds since this process was started, its interpreter's own start included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
