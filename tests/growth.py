"""How much longer a function takes for four times as much input: 4 for a linear one, 16 for a quadratic one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TIMES = 4
# Between linear and quadratic. What takes no time at all is not compared.
MAX_GROWTH = 8.0
LEAST_SECONDS = 0.0005


def growth(work: Callable[[Any], Any], make: Callable[[int], Any], size: int) -> float:
    """Return the time of `work(make(4 * size))` divided by that of `work(make(size))`.

    Time of this thread's CPU; of several runs the shortest, since others may use the machine.
    """
    small, large = (shortest_seconds(work, make(each)) for each in (size, TIMES * size))
    return large / max(small, LEAST_SECONDS)


def shortest_seconds(work: Callable[[Any], Any], value: Any) -> float:
    """Return the CPU seconds of this thread that `work(value)` takes, the least of three runs."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        work(value)
        times.append(time.thread_time() - began)
    return min(times)
