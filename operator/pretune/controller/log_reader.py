"""Reads consumers' logs beside the reconciles, and remembers what they told: each start once, as far as its readiness.

Only with the chart's proof.readLogs. What is known dies with the process: the logs are read again then. Of a log nothing is kept or
logged but what engines/vllm/log.py makes of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

from pretune.api.types import Key, Object
from pretune.engines.vllm.log import PARTIAL, TUNED, UNKNOWN, Reader, Start
from pretune.kube.types import ApiError
from pretune.policy.model import EngineStart, Told
from pretune.policy.pods.warm_starts import differences

log = logging.getLogger(__name__)

AT_A_TIME = 3  # logs: a rollout makes hundreds of pods ready
MOST = (
    4 << 20
)  # bytes of one log, the kubelet's times included; a start of vLLM says some hundred KiB
LONGEST = 60.0  # seconds that one may take
LATE = 2.0  # seconds after the pod's readiness: times of conditions are cut down to seconds
GONE = 300.0  # seconds after its start from which on a first line says that the log's beginning is not there any more
AGAIN = (5.0, 20.0)  # seconds between tries where nobody answers
UNREADY = (
    30.0,
    120.0,
    600.0,
    1800.0,
)  # the same of a pod without a probe, whose engine is not ready yet
REMEMBERED = 20_000  # starts, of all caches

Log = Callable[[str, str, str, int], AsyncGenerator[bytes, None]]  # cluster.Kubernetes.log
Get = Callable[[str, str, str, str], Awaitable[Object | None]]  # cluster.Kubernetes.get


class NotReadableError(Exception):
    """The log will not tell, now or later: its first argument is a word for it, which metrics count by."""


@dataclass
class _Entry:
    start: EngineStart
    told: Told | None = None  # None: not known yet
    final: bool = False
    tries: int = 0


class Starts:
    """What is known of each key's starts. `wake` is called with a key once all of its answers are there; `count` with a key and the
    result of a start; `failed` with a word for what kept a log from being read. `clock`: Unix seconds; what was ready before `run`
    began was another process's to count.
    """

    def __init__(
        self,
        read: Log,
        get: Get,
        wake: Callable[[Key], None],
        count: Callable[[Key, str], None] = lambda key, result: None,
        failed: Callable[[str], None] = lambda why: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._get, self._wake, self._count, self._failed, self._clock = (
            read,
            get,
            wake,
            count,
            failed,
            clock,
        )
        self._began = math.inf
        self._entries: dict[Key, dict[str, _Entry]] = {}
        self._number = 0  # of all entries
        self._left: dict[
            Key, frozenset[str]
        ] = {}  # starts for which there was no room: known to tell nothing
        self._queue: asyncio.Queue[tuple[Key, str]] = asyncio.Queue()
        self._said: set[str] = set()  # failures that the log has already

    def known(self, key: Key) -> dict[str, Told]:
        """What was told, by EngineStart.key; of a start whose log is never read, that nothing was: nobody shall wait for it."""
        told = {
            name: one.told
            for name, one in self._entries.get(key, {}).items()
            if one.told is not None
        }
        return {**dict.fromkeys(self._left.get(key, ()), Told(Start())), **told}

    def follow(self, key: Key, starts: Iterable[EngineStart]) -> None:
        """From now on these starts of a key are of interest, and no others."""
        entries, wanted = self._entries.pop(key, {}), {one.key: one for one in starts}
        for name in entries.keys() - wanted.keys():
            del entries[name]
            self._number -= 1
        for name, start in wanted.items():
            if name not in entries and self._number < REMEMBERED:
                entries[name] = _Entry(start)
                self._number += 1
                self._queue.put_nowait((key, name))
        if entries:
            self._entries[key] = entries
        before, left = self._left.pop(key, frozenset()), frozenset(wanted.keys() - entries.keys())
        if left:
            self._left[key] = left
        if left - before:
            self._wake_if_told(key)  # this look did not know of them yet
        if self._number >= REMEMBERED:
            self._say("Full", f"{REMEMBERED} starts are known: logs of further ones are not read")

    async def run(self) -> None:
        """Read until cancelled."""
        self._began = self._clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_A_TIME):
                group.create_task(self._work())

    # --- inside

    async def _work(self) -> None:
        while True:
            key, name = await self._queue.get()
            entry = self._entries.get(key, {}).get(name)
            if entry is not None and not entry.final:
                await self._try(key, name, entry)

    async def _try(self, key: Key, name: str, entry: _Entry) -> None:
        """One attempt at one log. Whatever goes wrong, the entry has an answer in the end: consumers are counted only then."""
        entry.tries += 1
        pauses: tuple[float, ...] = ()
        try:
            async with asyncio.timeout(LONGEST):
                told = await self._read(key, entry.start)
            if told.said.result == UNKNOWN and not told.said.ready and not entry.start.probed:
                pauses = UNREADY
        except NotReadableError as error:
            told = self._unreadable(
                str(error.args[0]), f"{key}: pod {entry.start.pod}: {error.args[1]}"
            )
        except (ApiError, OSError, TimeoutError) as error:
            code = error.code if isinstance(error, ApiError) else 0
            pauses = () if code in (400, 401, 403, 404) else AGAIN
            why = {400: "NotThere", 401: "Forbidden", 403: "Forbidden", 404: "NotThere"}.get(
                code, "NoAnswer"
            )
            told = Told(Start())
            if entry.tries > len(pauses):
                told = self._unreadable(
                    why, f"{key}: pod {entry.start.pod}: {str(error) or type(error).__name__}"
                )
        except Exception as error:  # an error of ours in one log must not end the others
            told = self._unreadable(
                "Error", f"{key}: pod {entry.start.pod}: {type(error).__name__}: {error}"
            )
        if entry.tries <= len(pauses):
            if pauses is UNREADY:
                self._answer(key, entry, told)
            asyncio.get_running_loop().call_later(
                pauses[entry.tries - 1], self._queue.put_nowait, (key, name)
            )
            return
        entry.final, entry.start = (
            True,
            replace(entry.start, engine=None),
        )  # which holds values of variables
        if self._entries.get(key, {}).get(name) is not entry:
            return  # nobody cares any more
        if entry.start.ready >= self._began:
            self._count(key, told.said.result)
        self._answer(key, entry, told)

    def _answer(self, key: Key, entry: _Entry, told: Told) -> None:
        entry.told = told
        self._wake_if_told(key)

    def _wake_if_told(self, key: Key) -> None:
        if all(one.told is not None for one in self._entries.get(key, {}).values()):
            self._wake(key)

    async def _read(self, key: Key, start: EngineStart) -> Told:
        reader = Reader(until=start.ready + LATE if start.probed else None)
        async with aclosing(self._log(key.namespace, start.pod, start.container, MOST)) as chunks:
            async for chunk in chunks:
                if reader.feed(chunk):
                    break
                await asyncio.sleep(0)  # others' turn: a log may be megabytes
        said = reader.told()
        # Of a pod of the same name, of an engine that was started anew, or rotated away: then what is left tells of something else.
        late = start.ready + LATE if start.probed else math.inf
        silent = (
            said.result == UNKNOWN and said.began is not None and said.began > start.began + GONE
        )
        if silent or (said.began is not None and said.began > late):
            raise NotReadableError("Rotated", "the beginning of its log is not there any more")
        differs: tuple[str, ...] = ()
        if said.result in (PARTIAL, TUNED) and not said.differences and start.engine is not None:
            differs = await self._differs(key, start, start.engine)
        return Told(said, differs)

    async def _differs(self, key: Key, start: EngineStart, template: Object) -> tuple[str, ...]:
        """Where the pod, as admission left it, is not what its author wrote."""
        pod = await self._get("v1", "Pod", key.namespace, start.pod)
        if pod is None or pod["metadata"]["uid"] != start.uid:
            return ()
        found = [one for one in pod["spec"]["containers"] if one["name"] == start.container]
        return differences(found[0], template) if found else ()

    def _unreadable(self, why: str, words: str) -> Told:
        self._failed(why)
        self._say(
            why,
            f"{words}; further ones like this are counted only (pretune_start_read_failures_total)",
        )
        return Told(Start())

    def _say(self, why: str, words: str) -> None:
        if why not in self._said:
            self._said.add(why)
            log.warning("a log was not read (%s): %s", why, words)
