"""The queue of keys: decides when each cache is reconciled. Ours, since kopf's retries write to the
objects that they retry.

Events only wake a key; how often it runs is decided here:
- a key never runs twice at a time, and events that come while it waits or runs become one more run;
- three runs at once, then one a second (a token bucket per key): a storm of events costs a run a
  second, a single event waits for nothing;
- what pods wait for (an attempt's end, a pod that was just held) is urgent: it has a bucket of its
  own, since the events of a rollout's many pods empty the other one, and it goes before all that is
  not urgent, since hundreds of keys may wait at a start;
- after a run that raised, the key waits 1 s, 2 s, 4 s … 60 s, which no event shortens;
- a run returns the seconds after which to look again: that replaces what the run before returned,
  and an event comes before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

from pretune.api.types import Key

log = logging.getLogger(__name__)

# Runs at once, and the seconds of each run beyond them.
BURST, SECONDS_PER_RUN = 3, 1.0
# The same for urgent ones: an attempt makes some ten events from its start to its end.
URGENT_BURST, URGENT_SECONDS_PER_RUN = 10, 0.25
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0  # after the first failure, and at most
RUN_TIMEOUT_SECONDS = 120.0


@dataclass
class _Bucket:
    """Tokens of one key. Times are the loop's."""

    burst: int
    seconds_per_token: float
    full_at: float = -inf

    @property
    def next_at(self) -> float:
        """When there is a token."""
        return self.full_at - (self.burst - 1) * self.seconds_per_token

    def take(self, now: float) -> None:
        """Take one token."""
        self.full_at = max(self.full_at, now) + self.seconds_per_token


@dataclass
class _Entry:
    """One key. Times are the loop's."""

    normal: _Bucket = field(default_factory=lambda: _Bucket(BURST, SECONDS_PER_RUN))
    urgent: _Bucket = field(default_factory=lambda: _Bucket(URGENT_BURST, URGENT_SECONDS_PER_RUN))
    wanted_at: float = inf  # when it should run
    is_urgent: bool = False
    blocked_until: float = -inf  # by a failure
    failures: int = 0
    is_running: bool = False
    ticket: int = 0  # its number among those that wait for a worker; 0: it waits for none
    timer: asyncio.TimerHandle | None = None

    @property
    def next_at(self) -> float:
        """When it may run."""
        token_at = self.normal.next_at
        if self.is_urgent:
            token_at = min(token_at, self.urgent.next_at)
        return max(self.wanted_at, self.blocked_until, token_at)

    def take_token(self, now: float) -> None:
        """Take a token for one run."""
        bucket = self.urgent if self.is_urgent and self.urgent.next_at <= now else self.normal
        bucket.take(now)


class Queue:
    """Calls `work` with each key that was woken.

    `work` returns the seconds after which to look at the key again, or None. Its errors are logged,
    not raised.
    """

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int = 4) -> None:
        self._work, self._workers = work, workers
        self._entries: dict[Key, _Entry] = {}
        # (0 if urgent else 1, ticket, key)
        self._ready: asyncio.PriorityQueue[tuple[int, int, Key]] = asyncio.PriorityQueue()
        self._tickets = 0
        self._waiting = 0  # keys that have a ticket
        self._moved_at = -inf  # when a run last began or ended while keys waited

    def wake(self, key: Key, urgent: bool = False) -> None:
        """Run this key as soon as it may."""
        entry = self._entries.setdefault(key, _Entry())
        entry.wanted_at = min(entry.wanted_at, asyncio.get_running_loop().time())
        if urgent and not entry.is_urgent:
            entry.is_urgent = True
            if entry.ticket:  # it goes to the front
                entry.ticket, self._waiting = 0, self._waiting - 1
        self._schedule(key, entry)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._run_worker())

    def depth(self) -> int:
        """Return how many keys wait for a worker."""
        return self._waiting

    def stuck_seconds(self) -> float:
        """Return for how long keys have waited for a worker while no run began or ended.

        0.0 when none waits.
        """
        return asyncio.get_running_loop().time() - self._moved_at if self._waiting else 0.0

    # --- inside

    def _schedule(self, key: Key, entry: _Entry) -> None:
        if entry.is_running or entry.ticket:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        loop = asyncio.get_running_loop()
        if entry.wanted_at == inf:
            # Forgotten once its buckets are full again, so that deleted caches leave nothing.
            full_at = max(entry.normal.full_at, entry.urgent.full_at)
            entry.timer = loop.call_at(full_at, self._entries.pop, key, None)
        elif entry.next_at <= loop.time():
            self._enqueue(key, entry)
        else:
            entry.timer = loop.call_at(entry.next_at, self._enqueue, key, entry)

    def _enqueue(self, key: Key, entry: _Entry) -> None:
        entry.timer = None
        if not self._waiting:
            self._moved_at = asyncio.get_running_loop().time()
        self._tickets += 1
        entry.ticket, self._waiting = self._tickets, self._waiting + 1
        self._ready.put_nowait((0 if entry.is_urgent else 1, entry.ticket, key))

    async def _run_worker(self) -> None:
        while True:
            _, ticket, key = await self._ready.get()
            entry = self._entries.get(key)
            # With another ticket it has moved to the front meanwhile.
            if entry is not None and entry.ticket == ticket:
                await self._run_key(key, entry)

    async def _run_key(self, key: Key, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        self._moved_at = loop.time()
        entry.take_token(self._moved_at)
        entry.wanted_at, entry.is_urgent = inf, False  # an event from now on wants another run
        entry.ticket, entry.is_running, self._waiting = 0, True, self._waiting - 1
        try:
            async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
                requeue_after = await self._work(key)
        except Exception as error:
            entry.failures += 1
            backoff = MIN_BACKOFF_SECONDS * 2.0 ** min(entry.failures - 1, 10)
            backoff = min(MAX_BACKOFF_SECONDS, backoff)
            entry.wanted_at = loop.time()
            entry.blocked_until = entry.wanted_at + backoff
            log.error("%s: %s, tried again in %.0f s", key, _describe(error), backoff)
            log.debug("%s: failed here", key, exc_info=error)
        else:
            entry.failures, entry.blocked_until = 0, -inf
            if requeue_after is not None:
                entry.wanted_at = min(entry.wanted_at, loop.time() + requeue_after)
        finally:
            self._moved_at = loop.time()
            entry.is_running = False
        self._schedule(key, entry)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
