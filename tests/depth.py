"""How many cases a test that generates them goes through: a sample, or all with PRETUNE_FULL=1.

`make test`, which CI runs, sets it. A test takes its number of cases from here, so that `make unit`
stays short.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FULL = bool(os.environ.get("PRETUNE_FULL"))
SAMPLE = 5
GENERATED_PODS = int(os.environ.get("PRETUNE_PROPERTIES") or (100_000 if FULL else 2_000))


def examples(full: int) -> int:
    """Return how many examples hypothesis tries, of so many in a full run."""
    return full if FULL else max(1, full // SAMPLE)


def sample(cases: Sequence[T]) -> Sequence[T]:
    """Return one in SAMPLE of the cases, or all of them in a full run."""
    return cases if FULL else cases[::SAMPLE]
