"""The queue of keys: what says when each cache is looked at. Ours, since kopf's retries write to the objects they retry.

Events only wake a key; how often it runs is decided here:
- a key never runs twice at a time, and events that come while it waits or runs become one more run;
- three runs at once, then one a second (a token bucket per key): a storm of events costs a run a second, a single event costs no wait;
- a run that raised waits 1 s, 2 s, 4 s … 60 s, which no event shortens;
- a run's answer is when to look again, in seconds: it replaces the answer of the run before, and an event comes before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

from pretune.model import Key

log = logging.getLogger(__name__)

BURST = 3  # runs at once
RATE = 1.0  # seconds a run, beyond them
BACKOFF, LONGEST = 1.0, 60.0  # seconds after the first failure, and at most
LIMIT = 120.0  # seconds that one run may take


@dataclass
class _Entry:
    """One key's times, on the loop's clock."""

    wanted: float = inf  # when somebody wants it to run
    filled: float = -inf  # when its bucket of tokens is full again
    blocked: float = -inf  # until when a failure holds it back
    failures: int = 0
    queued: bool = False  # waits for a worker, or runs
    timer: asyncio.TimerHandle | None = None

    def next(self) -> float:
        return max(self.wanted, self.blocked, self.filled - (BURST - 1) * RATE)


class Queue:
    """`work` is called with a key and answers when to look at it again, in seconds, or None. Its errors are logged, not raised."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int = 4) -> None:
        self._work, self._workers = work, workers
        self._entries: dict[Key, _Entry] = {}
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._moved = -inf  # when a run last began or ended while keys waited for one

    def wake(self, key: Key) -> None:
        """Something happened: run this key as soon as it may."""
        entry = self._entries.setdefault(key, _Entry())
        entry.wanted = min(entry.wanted, asyncio.get_running_loop().time())
        self._plan(key, entry)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    def stuck(self) -> float:
        """For how many seconds keys have waited for a worker without any run beginning or ending; 0.0 when none waits."""
        return 0.0 if self._ready.empty() else asyncio.get_running_loop().time() - self._moved

    # --- inside

    def _plan(self, key: Key, entry: _Entry) -> None:
        if entry.queued:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        loop = asyncio.get_running_loop()
        if (
            entry.wanted == inf
        ):  # nothing to come: forgotten once its tokens are back, so that deleted caches leave nothing
            entry.timer = loop.call_at(entry.filled, self._entries.pop, key, None)
        elif entry.next() <= loop.time():
            self._enqueue(key, entry)
        else:
            entry.timer = loop.call_at(entry.next(), self._enqueue, key, entry)

    def _enqueue(self, key: Key, entry: _Entry) -> None:
        entry.queued, entry.timer = True, None
        if self._ready.empty():
            self._moved = asyncio.get_running_loop().time()
        self._ready.put_nowait(key)

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            await self._run(key, self._entries[key])

    async def _run(self, key: Key, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        self._moved = loop.time()
        entry.wanted = inf  # an event from now on asks for another run
        entry.filled = max(entry.filled, self._moved) + RATE
        try:
            async with asyncio.timeout(LIMIT):
                again = await self._work(key)
        except Exception as error:
            entry.failures += 1
            entry.wanted = loop.time()
            entry.blocked = entry.wanted + min(LONGEST, BACKOFF * 2.0 ** min(entry.failures - 1, 10))
            log.error("%s: %s, tried again in %.0f s", key, _said(error), entry.blocked - entry.wanted)
            log.debug("%s: failed here", key, exc_info=error)
        else:
            entry.failures, entry.blocked = 0, -inf
            if again is not None:
                entry.wanted = min(entry.wanted, loop.time() + again)
        finally:
            self._moved = loop.time()
            entry.queued = False
        self._plan(key, entry)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
