"""Reads engines' logs: of consumers, and of attempts that failed. Only with proof.readLogs.

A consumer's is read beside the reconciles, each start once, as far as the engine's readiness.
Results are lost with the process: the next one reads the logs again. A failed attempt's is read by
the reconcile that records its end. Nothing of a log is kept or logged but what an engine's log
parser makes of it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

from pretune.api.types import Key, Object
from pretune.engines.logs import PARTIAL, TUNED, UNKNOWN, LogSummary
from pretune.kube.types import ApiError
from pretune.podspec.template import engine_type
from pretune.policy.model import EngineStart, FailedStart, StartObservation
from pretune.policy.pods.retune_causes import find_differences

log = logging.getLogger(__name__)

MAX_CONCURRENT_LOGS = 3  # a rollout makes hundreds of pods ready
MAX_LOG_BYTES = 4 << 20  # with the kubelet's times; the log of a start of vLLM has some 100 KiB
LOG_TIMEOUT_SECONDS = 60.0
# Of the log of a start that failed: its end. vLLM's cause is some hundred lines before the last.
MAX_FAILURE_LINES, MAX_FAILURE_BYTES = 5_000, 1 << 20
FAILURE_TIMEOUT_SECONDS = 5.0
MAX_FAILED_LOGS = 3  # read at a time by one reconcile
READY_SLACK_SECONDS = 2.0  # times of conditions are cut down to whole seconds
# A first line that comes later than this after the start: the log's beginning is gone.
ROTATED_AFTER_SECONDS = 300.0
RETRY_SECONDS = (5.0, 20.0)  # between tries, where the node does not answer
# The same for a pod without a probe, which is ready before its engine is.
UNREADY_RETRY_SECONDS = (30.0, 120.0, 600.0, 1800.0)
MAX_STARTS = 20_000  # of all caches

# Why a log was not read: labels of pretune_start_read_failures_total.
FORBIDDEN, NOT_THERE, ROTATED, NO_ANSWER, ERROR = (
    "Forbidden",
    "NotThere",
    "Rotated",
    "NoAnswer",
    "Error",
)
FAILURE_OF_CODE = {400: NOT_THERE, 401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_THERE}

# kube.client.Kubernetes.read_log and .get
ReadLog = Callable[..., AsyncGenerator[bytes, None]]
Get = Callable[[str, str, str, str], Awaitable[Object | None]]


class LogUnavailable(Exception):
    """The log has no answer, now or later. `reason` is one of the words that metrics count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class _Entry:
    start: EngineStart
    result: StartObservation | None = None  # None: not known yet
    is_final: bool = False
    tries: int = 0


class LogReader:
    """Reads the logs of each key's starts.

    wake: called with a key once every one of its starts has a result.
    count_result: called with a key and the final result of a start (engines.logs.RESULTS).
    count_failure: called with the reason why a log was not read.
    clock: Unix seconds. Starts that were ready before `run` began were counted by another process.
    """

    def __init__(
        self,
        read_log: ReadLog,
        get: Get,
        wake: Callable[[Key], None],
        count_result: Callable[[Key, str], None] = lambda key, result: None,
        count_failure: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read_log, self._get, self._wake = read_log, get, wake
        self._count_result, self._count_failure = count_result, count_failure
        self._clock = clock
        self._began_at = math.inf
        self._entries: dict[Key, dict[str, _Entry]] = {}  # by EngineStart.key
        self._number_of_entries = 0
        self._unread: dict[Key, frozenset[str]] = {}  # starts for which there is no room
        self._queue: asyncio.Queue[tuple[Key, str]] = asyncio.Queue()
        self._logged: set[str] = set()  # reasons that the operator's log has already

    def results(self, key: Key) -> dict[str, StartObservation]:
        """Return what is known of a key's starts, by EngineStart.key.

        A start whose log is never read has an empty result, so that the others do not wait for it.
        """
        results = {
            name: entry.result
            for name, entry in self._entries.get(key, {}).items()
            if entry.result is not None
        }
        return {
            **dict.fromkeys(self._unread.get(key, ()), StartObservation(LogSummary())),
            **results,
        }

    def set_starts(self, key: Key, starts: Iterable[EngineStart]) -> None:
        """Read the logs of these starts of a key from now on, and of no others."""
        entries, wanted = self._entries.pop(key, {}), {start.key: start for start in starts}
        for name in entries.keys() - wanted.keys():
            del entries[name]
            self._number_of_entries -= 1
        for name, start in wanted.items():
            if name not in entries and self._number_of_entries < MAX_STARTS:
                entries[name] = _Entry(start)
                self._number_of_entries += 1
                self._queue.put_nowait((key, name))
        if entries:
            self._entries[key] = entries
        before = self._unread.pop(key, frozenset())
        unread = frozenset(wanted.keys() - entries.keys())
        if unread:
            self._unread[key] = unread
        if unread - before:
            self._wake_if_complete(key)  # the reconcile that asks did not know of them yet
        if self._number_of_entries >= MAX_STARTS:
            message = f"{MAX_STARTS} starts are known: logs of further ones are not read"
            self._log_once("Full", message)

    async def read_causes(self, key: Key, starts: Iterable[FailedStart]) -> dict[str, str]:
        """Return why engines failed, as the end of their logs says, by the pod's uid.

        Of each attempt once: the reconcile that asks records its end. Where a log cannot be read,
        the pod is left out. Takes at most 5 s, since held pods wait for the reconcile. Never
        raises.
        """
        causes: dict[str, str] = {}

        async def read(start: FailedStart) -> None:
            try:
                async with asyncio.timeout(FAILURE_TIMEOUT_SECONDS):
                    causes[start.uid] = await self._read_cause(key, start)
            except (ApiError, OSError, TimeoutError) as error:
                code = error.code if isinstance(error, ApiError) else 0
                reason = FAILURE_OF_CODE.get(code, NO_ANSWER)
                message = f"{key}: pod {start.pod}: {str(error) or type(error).__name__}"
                self._note_failure(reason, message)

        await asyncio.gather(*map(read, itertools.islice(starts, MAX_FAILED_LOGS)))
        return causes

    async def _read_cause(self, key: Key, start: FailedStart) -> str:
        parser = engine_type({}).create_failure_parser()
        if parser is None:
            return ""
        chunks = self._read_log(
            *(key.namespace, start.pod, start.container, MAX_FAILURE_BYTES),
            *(MAX_FAILURE_LINES, start.is_previous),
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                parser.feed(chunk)
                await asyncio.sleep(0)
        return parser.find_cause("")

    async def run(self) -> None:
        """Read until cancelled."""
        self._began_at = self._clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(MAX_CONCURRENT_LOGS):
                group.create_task(self._work())

    # --- inside

    async def _work(self) -> None:
        while True:
            key, name = await self._queue.get()
            entry = self._entries.get(key, {}).get(name)
            if entry is not None and not entry.is_final:
                await self._try_to_read(key, name, entry)

    async def _try_to_read(self, key: Key, name: str, entry: _Entry) -> None:
        """Read one log once.

        Whatever fails, the entry has a result in the end: consumers are only counted then.
        """
        entry.tries += 1
        pauses: tuple[float, ...] = ()
        pod = f"{key}: pod {entry.start.pod}"
        try:
            async with asyncio.timeout(LOG_TIMEOUT_SECONDS):
                result = await self._read(key, entry.start)
            unclear = result.log_summary.result == UNKNOWN and not result.log_summary.ready
            if unclear and not entry.start.probed:
                pauses = UNREADY_RETRY_SECONDS
        except LogUnavailable as error:
            result = self._note_failure(error.reason, f"{pod}: {error}")
        except (ApiError, OSError, TimeoutError) as error:
            code = error.code if isinstance(error, ApiError) else 0
            pauses = () if code in FAILURE_OF_CODE else RETRY_SECONDS
            result = StartObservation(LogSummary())
            if entry.tries > len(pauses):
                reason = FAILURE_OF_CODE.get(code, NO_ANSWER)
                result = self._note_failure(reason, f"{pod}: {str(error) or type(error).__name__}")
        except Exception as error:  # a defect of ours in one log must not end the others
            result = self._note_failure(ERROR, f"{pod}: {type(error).__name__}: {error}")
        if entry.tries <= len(pauses):
            if pauses is UNREADY_RETRY_SECONDS:
                self._set_result(key, entry, result)
            asyncio.get_running_loop().call_later(
                pauses[entry.tries - 1], self._queue.put_nowait, (key, name)
            )
            return
        entry.is_final = True
        entry.start = replace(entry.start, engine=None)  # it holds values of variables
        if self._entries.get(key, {}).get(name) is not entry:
            return  # it is not wanted any more
        if entry.start.ready >= self._began_at:
            self._count_result(key, result.log_summary.result)
        self._set_result(key, entry, result)

    def _set_result(self, key: Key, entry: _Entry, result: StartObservation) -> None:
        entry.result = result
        self._wake_if_complete(key)

    def _wake_if_complete(self, key: Key) -> None:
        if all(entry.result is not None for entry in self._entries.get(key, {}).values()):
            self._wake(key)

    async def _read(self, key: Key, start: EngineStart) -> StartObservation:
        """Return what a start's log says. Raises LogUnavailable, and what the cluster raises."""
        ready_until = start.ready + READY_SLACK_SECONDS
        kind = engine_type(start.engine or {})
        parser = kind.create_log_parser(ready_until if start.probed else None)
        if parser is None:
            return StartObservation(LogSummary())
        async with aclosing(
            self._read_log(key.namespace, start.pod, start.container, MAX_LOG_BYTES)
        ) as chunks:
            async for chunk in chunks:
                if parser.feed(chunk):
                    break
                await asyncio.sleep(0)  # a log may be megabytes: other tasks have their turn
        summary = parser.summary()
        # The log of another pod of this name, of an engine that restarted, or without its
        # beginning: then what is left is about something else.
        if summary.began is not None:
            is_late = start.probed and summary.began > ready_until
            rotated_at = start.began + ROTATED_AFTER_SECONDS
            if is_late or (summary.result == UNKNOWN and summary.began > rotated_at):
                raise LogUnavailable(ROTATED, "the beginning of its log is not there any more")
        differing: tuple[str, ...] = ()
        tuned = summary.result in (PARTIAL, TUNED)
        if tuned and not summary.differences and start.engine is not None:
            differing = await self._find_differences(key, start, start.engine)
        return StartObservation(summary, differing)

    async def _find_differences(
        self, key: Key, start: EngineStart, template: Object
    ) -> tuple[str, ...]:
        """Return where the pod, as admission left it, differs from its template's engine."""
        pod = await self._get("v1", "Pod", key.namespace, start.pod)
        if pod is None or pod["metadata"]["uid"] != start.uid:
            return ()
        for container in pod["spec"]["containers"]:
            if container["name"] == start.container:
                return find_differences(container, template)
        return ()

    def _note_failure(self, reason: str, message: str) -> StartObservation:
        """Count and log that a log was not read; return the empty result."""
        self._count_failure(reason)
        self._log_once(
            reason,
            f"{message}; further failures with this reason are only counted"
            " (pretune_start_read_failures_total)",
        )
        return StartObservation(LogSummary())

    def _log_once(self, reason: str, message: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("a log was not read (%s): %s", reason, message)
