"""The API server's clock, by the Date of its answers.

What is compared with a creationTimestamp has to be read from the clock that wrote it. A node whose
clock is ten minutes ahead would else end every hold at once.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime

# That an answer may be behind the time that is known: Date has whole seconds, and an answer takes time.
MIN_DIFFERENCE_SECONDS = 3.0


class ServerClock:
    """Tells the time by the API server's clock.

    clock: monotonic seconds. local_time: Unix seconds by this machine's clock, until an answer.
    """

    def __init__(self, clock: Callable[[], float], local_time: Callable[[], float]) -> None:
        self._clock, self._local_time = clock, local_time
        self._offset: float | None = None  # of the server's Unix seconds from our monotonic ones

    def now(self) -> float:
        """Return Unix seconds."""
        if self._offset is None:
            return self._local_time()
        return self._clock() + self._offset

    def observe(self, date: str | None) -> None:
        """Take over the Date header of an answer that has just arrived; None: it has none."""
        try:
            seconds = parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError):
            return
        # The header is cut down to whole seconds: of several answers the latest time is the nearest.
        offset = seconds - self._clock()
        if self._offset is None or not (
            self._offset - MIN_DIFFERENCE_SECONDS < offset <= self._offset
        ):
            self._offset = offset
