"""The queue of keys: decides when each cache is reconciled. Ours, since kopf's retries write to the
objects that they retry.

Events only wake a key; how often it runs is decided here:
- a key never runs twice at a time, and events that come while it waits or runs become one more run;
- three runs at once, then one a second (a token bucket per key): a storm of events costs a run a
  second, a single event waits for nothing;
- what pods wait for (an attempt's end, a pod that was just held) is urgent: it has a bucket of its
  own, since the events of a rollout's many pods empty the other one, and it goes before what is
  not urgent, since hundreds of keys may wait at a start;
- after a run that raised, the key waits 1 s, 2 s, 4 s … 60 s, which no event shortens;
- a run returns the seconds after which to look again: that replaces what the run before returned,
  and an event comes before it.

Namespaces are tenants, and none can delay the keys of another one:
- they take turns, one run each;
- at most half of the workers run keys of one namespace;
- a namespace has a token bucket too: 200 runs at once, then ten a second.
Among namespaces, and among the keys of one, every fourth turn goes to one that is not urgent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from pretune.api.types import Key

log = logging.getLogger(__name__)

# Runs at once, and the seconds of each run beyond them.
BURST, SECONDS_PER_RUN = 3, 1.0
# The same for urgent ones: an attempt makes some ten events from its start to its end.
URGENT_BURST, URGENT_SECONDS_PER_RUN = 10, 0.25
# The same for all keys of a namespace. At a start each cache has a run.
NAMESPACE_BURST, NAMESPACE_SECONDS_PER_RUN = 200, 0.1
URGENT_TURNS = 3  # in a row, while others wait
MAX_SHARE = 0.5  # of the workers, for the keys of one namespace
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0  # after the first failure, and at most
RUN_TIMEOUT_SECONDS = 120.0


@dataclass
class _Bucket:
    """Tokens of one key or namespace. Times are the loop's."""

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
    waits_since: float | None = (
        None  # since when it may run and has no turn; None: it waits for none
    )
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


T = TypeVar("T")


class _Line(Generic[T]):
    """Items that wait for their turn: urgent ones first, but every fourth turn is of the others."""

    def __init__(self) -> None:
        self._urgent: dict[T, None] = {}
        self._others: dict[T, None] = {}
        self._urgent_turns = 0  # in a row

    def __bool__(self) -> bool:
        return bool(self._urgent or self._others)

    def has_urgent(self) -> bool:
        """Whether an urgent item waits."""
        return bool(self._urgent)

    def put(self, item: T, urgent: bool) -> None:
        """Add an item at the end. One that waits as such already keeps its place."""
        line, other = (self._urgent, self._others) if urgent else (self._others, self._urgent)
        other.pop(item, None)
        line.setdefault(item)

    def pop(self) -> T:
        """Remove the item whose turn it is, and return it."""
        is_others_turn = self._urgent_turns >= URGENT_TURNS and bool(self._others)
        line = self._urgent if self._urgent and not is_others_turn else self._others
        self._urgent_turns = self._urgent_turns + 1 if line is self._urgent else 0
        item = next(iter(line))
        del line[item]
        return item


@dataclass
class _Namespace:
    """The keys of one namespace. Times are the loop's."""

    waiting: _Line[Key] = field(default_factory=_Line)
    running: int = 0
    bucket: _Bucket = field(
        default_factory=lambda: _Bucket(NAMESPACE_BURST, NAMESPACE_SECONDS_PER_RUN)
    )
    timer: asyncio.TimerHandle | None = None


class Queue:
    """Calls `work` with each key that was woken.

    `work` returns the seconds after which to look at the key again, or None. Its errors are logged,
    not raised.
    """

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int = 4) -> None:
        self._work, self._workers = work, workers
        self._max_running = max(1, int(workers * MAX_SHARE))  # of one namespace
        self._entries: dict[Key, _Entry] = {}
        self._namespaces: dict[str, _Namespace] = {}
        self._turns: _Line[str] = _Line()  # namespaces of which a key may run now
        self._running = 0
        self._starts_soon = False
        self._moved_at = -inf  # when a run last began or ended while a namespace waited for a turn
        self._group: asyncio.TaskGroup | None = None

    def wake(self, key: Key, urgent: bool = False) -> None:
        """Run this key as soon as it may."""
        entry = self._entries.setdefault(key, _Entry())
        entry.wanted_at = min(entry.wanted_at, asyncio.get_running_loop().time())
        if urgent and not entry.is_urgent:
            entry.is_urgent = True
            if entry.waits_since is not None:  # it goes to the front
                self._enqueue(key, entry)
        self._schedule(key, entry)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._start_soon()
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    def depth(self) -> int:
        """Return how many keys wait for their turn."""
        return sum(entry.waits_since is not None for entry in self._entries.values())

    def waits(self) -> dict[str, float]:
        """Return, by namespace, for how many seconds its oldest key has waited for its turn.

        From when the key was due and its own rate allowed the run. Only of namespaces where one
        waits.
        """
        now, waits = asyncio.get_running_loop().time(), dict[str, float]()
        for key, entry in self._entries.items():
            if entry.waits_since is not None:
                waited = now - entry.waits_since
                waits[key.namespace] = max(waited, waits.get(key.namespace, 0.0))
        return waits

    def stuck_seconds(self) -> float:
        """Return for how long keys have waited for a worker while no run began or ended.

        0.0 when none waits, or only keys of namespaces that have as many runs as they may: what one
        tenant does is no reason to leave the work to another replica.
        """
        return asyncio.get_running_loop().time() - self._moved_at if self._turns else 0.0

    # --- inside: keys

    def _schedule(self, key: Key, entry: _Entry) -> None:
        if entry.is_running or entry.waits_since is not None:
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
        if entry.waits_since is None:
            entry.timer, entry.waits_since = None, asyncio.get_running_loop().time()
        namespace = self._namespace_of(key)
        namespace.waiting.put(key, entry.is_urgent)
        self._put_in_line(key.namespace, namespace)

    async def _run_key(self, key: Key, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
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
        self._end_run(key, entry)

    # --- inside: turns

    def _namespace_of(self, key: Key) -> _Namespace:
        return self._namespaces.setdefault(key.namespace, _Namespace())

    def _start_soon(self) -> None:
        """Start runs in a moment: events that come together are one run."""
        if not self._starts_soon:
            self._starts_soon = True
            asyncio.get_running_loop().call_soon(self._start_runs)

    def _start_runs(self) -> None:
        """Start as many runs as there are free workers."""
        self._starts_soon = False
        while self._group is not None and self._turns and self._running < self._workers:
            name = self._turns.pop()
            namespace = self._namespaces[name]
            key = namespace.waiting.pop()
            self._begin_run(key, self._entries[key], namespace)
            self._put_in_line(name, namespace)

    def _put_in_line(self, name: str, namespace: _Namespace) -> None:
        """Put a namespace in line for a turn, if it has a key that may run now.

        Otherwise it is done again when a run of it ends, or when its bucket has a token.
        """
        if namespace.timer is not None:
            namespace.timer.cancel()
            namespace.timer = None
        loop, bucket = asyncio.get_running_loop(), namespace.bucket
        if not namespace.waiting:
            if not namespace.running:  # forgotten once its bucket is full again
                timer = loop.call_at(bucket.full_at, self._namespaces.pop, name, None)
                namespace.timer = timer
        elif namespace.running < self._max_running:
            if bucket.next_at > loop.time():
                namespace.timer = loop.call_at(bucket.next_at, self._put_in_line, name, namespace)
                return
            if not self._turns:
                self._moved_at = loop.time()
            self._turns.put(name, namespace.waiting.has_urgent())
            self._start_soon()

    def _begin_run(self, key: Key, entry: _Entry, namespace: _Namespace) -> None:
        assert self._group is not None
        self._moved_at = asyncio.get_running_loop().time()
        entry.take_token(self._moved_at)
        namespace.bucket.take(self._moved_at)
        entry.wanted_at, entry.is_urgent = inf, False  # an event from now on wants another run
        entry.waits_since, entry.is_running = None, True
        namespace.running, self._running = namespace.running + 1, self._running + 1
        self._group.create_task(self._run_key(key, entry))

    def _end_run(self, key: Key, entry: _Entry) -> None:
        self._moved_at = asyncio.get_running_loop().time()
        entry.is_running = False
        namespace = self._namespace_of(key)
        namespace.running, self._running = namespace.running - 1, self._running - 1
        self._schedule(key, entry)
        self._put_in_line(key.namespace, namespace)
        self._start_soon()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
