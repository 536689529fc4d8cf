"""The queue of keys: what says when each cache is looked at. Ours, since kopf's retries write to the objects they retry.

Events only wake a key; how often it runs is decided here:
- a key never runs twice at a time, and events that come while it waits or runs become one more run;
- three runs at once, then one a second (a token bucket per key): a storm of events costs a run a second, a single event costs no wait;
- what pods wait for (an attempt's end, a pod that was just held) is urgent: it has a bucket of its own, since the chatter of a rollout's
  many pods empties the other one, and it goes before all that is not urgent, since hundreds of keys may wait at a start;
- a run that raised waits 1 s, 2 s, 4 s … 60 s, which no event shortens;
- a run's answer is when to look again, in seconds: it replaces the answer of the run before, and an event comes before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf

from pretune.api.types import Key

log = logging.getLogger(__name__)

BURST, RATE = 3, 1.0  # runs at once; seconds a run, beyond them
URGENT_BURST, URGENT_RATE = (
    10,
    0.25,
)  # the same of urgent ones: an attempt's whole life makes some ten events
BACKOFF, LONGEST = 1.0, 60.0  # seconds after the first failure, and at most
LIMIT = 120.0  # seconds that one run may take


@dataclass
class _Bucket:
    """Tokens of one key, on the loop's clock."""

    burst: int
    rate: float
    full: float = -inf  # when it will be full again

    @property
    def next(self) -> float:
        """When there is a token."""
        return self.full - (self.burst - 1) * self.rate

    def take(self, now: float) -> None:
        self.full = max(self.full, now) + self.rate


@dataclass
class _Entry:
    """One key's times, on the loop's clock."""

    calm: _Bucket = field(default_factory=lambda: _Bucket(BURST, RATE))
    hurried: _Bucket = field(default_factory=lambda: _Bucket(URGENT_BURST, URGENT_RATE))
    wanted: float = inf  # when somebody wants it to run
    urgent: bool = False
    blocked: float = -inf  # until when a failure holds it back
    failures: int = 0
    running: bool = False
    ticket: int = 0  # of its place among those that wait for a worker; 0: it waits for none
    timer: asyncio.TimerHandle | None = None

    @property
    def next(self) -> float:
        tokens = min(self.calm.next, self.hurried.next) if self.urgent else self.calm.next
        return max(self.wanted, self.blocked, tokens)

    def take(self, now: float) -> None:
        (self.hurried if self.urgent and self.hurried.next <= now else self.calm).take(now)


class Queue:
    """`work` is called with a key and answers when to look at it again, in seconds, or None. Its errors are logged, not raised."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int = 4) -> None:
        self._work, self._workers = work, workers
        self._entries: dict[Key, _Entry] = {}
        self._ready: asyncio.PriorityQueue[tuple[int, int, Key]] = (
            asyncio.PriorityQueue()
        )  # (0 if urgent, ticket, key)
        self._tickets = 0
        self._waiting = 0  # keys that have one
        self._moved = -inf  # when a run last began or ended while keys waited for one

    def wake(self, key: Key, urgent: bool = False) -> None:
        """Something happened: run this key as soon as it may."""
        entry = self._entries.setdefault(key, _Entry())
        entry.wanted = min(entry.wanted, asyncio.get_running_loop().time())
        if urgent and not entry.urgent:
            entry.urgent = True
            if entry.ticket:  # it goes to the front
                entry.ticket, self._waiting = 0, self._waiting - 1
        self._plan(key, entry)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    def depth(self) -> int:
        """How many keys wait for a worker."""
        return self._waiting

    def stuck(self) -> float:
        """For how many seconds keys have waited for a worker without any run beginning or ending; 0.0 when none waits."""
        return asyncio.get_running_loop().time() - self._moved if self._waiting else 0.0

    # --- inside

    def _plan(self, key: Key, entry: _Entry) -> None:
        if entry.running or entry.ticket:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        loop = asyncio.get_running_loop()
        if (
            entry.wanted == inf
        ):  # forgotten once its tokens are back, so that deleted caches leave nothing
            full = max(entry.calm.full, entry.hurried.full)
            entry.timer = loop.call_at(full, self._entries.pop, key, None)
        elif entry.next <= loop.time():
            self._enqueue(key, entry)
        else:
            entry.timer = loop.call_at(entry.next, self._enqueue, key, entry)

    def _enqueue(self, key: Key, entry: _Entry) -> None:
        entry.timer = None
        if not self._waiting:
            self._moved = asyncio.get_running_loop().time()
        self._tickets += 1
        entry.ticket, self._waiting = self._tickets, self._waiting + 1
        self._ready.put_nowait((0 if entry.urgent else 1, entry.ticket, key))

    async def _worker(self) -> None:
        while True:
            _, ticket, key = await self._ready.get()
            entry = self._entries.get(key)
            if (
                entry is not None and entry.ticket == ticket
            ):  # else it has moved to the front meanwhile
                await self._run(key, entry)

    async def _run(self, key: Key, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        self._moved = loop.time()
        entry.take(self._moved)
        entry.wanted, entry.urgent = inf, False  # an event from now on asks for another run
        entry.ticket, entry.running, self._waiting = 0, True, self._waiting - 1
        try:
            async with asyncio.timeout(LIMIT):
                again = await self._work(key)
        except Exception as error:
            entry.failures += 1
            entry.wanted = loop.time()
            entry.blocked = entry.wanted + min(
                LONGEST, BACKOFF * 2.0 ** min(entry.failures - 1, 10)
            )
            log.error(
                "%s: %s, tried again in %.0f s", key, _said(error), entry.blocked - entry.wanted
            )
            log.debug("%s: failed here", key, exc_info=error)
        else:
            entry.failures, entry.blocked = 0, -inf
            if again is not None:
                entry.wanted = min(entry.wanted, loop.time() + again)
        finally:
            self._moved = loop.time()
            entry.running = False
        self._plan(key, entry)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
