"""The reader of logs: each start once, a few at a time, nothing for ever, and an answer in any case."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pretune.controller.reconcile
import pytest
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Key, Object
from pretune.controller import log_reader as module
from pretune.controller.log_reader import (
    FAILURE_TIMEOUT_SECONDS,
    MAX_CONCURRENT_LOGS,
    MAX_FAILURE_BYTES,
    MAX_FAILURE_LINES,
    MAX_LOG_BYTES,
    RETRY_SECONDS,
    UNREADY_RETRY_SECONDS,
    LogReader,
)
from pretune.controller.reconcile import reconcile
from pretune.engines.logs import PARTIAL, TUNED, UNKNOWN, WARM, LogSummary
from pretune.kube.types import ApiError
from pretune.policy.model import EngineStart, FailedStart, Observed, Plan, StartObservation

from tests.builders.caches import cache
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.templates import serving_template
from tests.seams.fixtures import added
from tests.sim.cluster import Client, Clock, Server
from tests.unit.engines.vllm.test_log import ENDS, READY, STARTS, USING, bar, loaded, saved
from tests.unit.virtual import run as virtual

__all__ = ["added"]

ENGINE = serving_template()["spec"]["containers"][0]
OTHER = Key("inference", "other")


def start(number: int = 1, since: float = NOW - 60, ready: float = NOW, **more: Any) -> EngineStart:
    return EngineStart(
        f"pod-{number}", f"uid-{number}", "vllm", format_timestamp(since), ready, **more
    )


def timed(*lines: str, at: float = NOW - 50) -> bytes:
    """As the kubelet gives them, a second apart."""
    return "".join(
        f"{format_timestamp(at + index)[:-1]}.123456789Z {line}" for index, line in enumerate(lines)
    ).encode()


WARM_LOG = timed(USING, loaded(), STARTS, ENDS, READY)
TUNED_LOG = timed(USING, STARTS, bar(), ENDS, saved(21), READY)


class Node:
    """Logs by the pod's name: bytes, or what is raised; in turn, where there are several. Notes who asked."""

    def __init__(self, **logs: Any) -> None:
        self.logs = {
            name.replace("_", "-"): one if isinstance(one, list) else [one]
            for name, one in logs.items()
        }
        self.asked: list[str] = []
        self.closed = self.given = 0
        self.now = self.most = 0
        self.pods: dict[str, Object] = {}
        self.hold: asyncio.Event | None = None

    async def log(
        self, namespace: str, pod: str, container: str, most: int
    ) -> AsyncGenerator[bytes, None]:
        assert (namespace, container, most) == (KEY.namespace, "vllm", MAX_LOG_BYTES)
        self.asked.append(pod)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.hold is not None:
                await self.hold.wait()
            answers = self.logs.get(pod, [WARM_LOG])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, BaseException):
                raise answer
            for at in range(0, len(answer), 64):
                self.given += 64
                yield answer[at : at + 64]
        finally:
            self.now -= 1
            self.closed += 1

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        return self.pods.get(name)


class Calls:
    """The calls of the reader."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        self.counted: list[str] = []
        self.failed: list[str] = []


def reading(node: Node, body: Callable[[LogReader, Calls], Any], began: float = 0.0) -> Calls:
    """Runs a body beside the reader, on a clock of its own."""
    calls = Calls()

    async def run() -> None:
        reader = LogReader(
            node.log,
            node.get,
            calls.woken.append,
            lambda key, result: calls.counted.append(result),
            calls.failed.append,
            lambda: began,
        )
        task = asyncio.create_task(reader.run())
        try:
            await body(reader, calls)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    virtual(run())
    return calls


def results(reader: LogReader, key: Key = KEY) -> list[str]:
    return [one.log_summary.result for one in reader.results(key).values()]


def test_each_start_is_read_once_and_its_key_woken_when_all_are_known() -> None:
    node = Node(pod_2=TUNED_LOG)

    async def body(reader: LogReader, calls: Calls) -> None:
        for _ in range(3):
            reader.set_starts(KEY, [start(1), start(2)])
            await asyncio.sleep(1)
        assert sorted(results(reader)) == sorted([WARM, TUNED])
        assert calls.woken == [KEY]

    calls = reading(node, body)
    assert sorted(node.asked) == ["pod-1", "pod-2"] and sorted(calls.counted) == sorted(
        [WARM, TUNED]
    )


@pytest.mark.usefixtures("added")
def test_each_engines_log_is_read_by_its_own_parser() -> None:
    """An engine whose parser is not the right one says nothing of its start."""
    toy = {"name": "vllm", "image": "toy:1", "command": ["toy-server"]}
    log = timed("toy: loaded 3 plans\n", "toy: ready\n")

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1, engine=toy), start(2, engine=ENGINE)])
        await asyncio.sleep(1)
        found = {key[:5]: one.log_summary.result for key, one in reader.results(KEY).items()}
        assert found == {"uid-1": WARM, "uid-2": UNKNOWN}

    reading(Node(pod_1=log, pod_2=log), body)


def test_a_restarted_engine_is_another_start_and_what_is_gone_is_forgotten() -> None:
    node = Node()

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1)])
        reader.set_starts(OTHER, [])
        await asyncio.sleep(1)
        reader.set_starts(KEY, [start(1, since=NOW - 55)])
        assert not reader.results(KEY)
        await asyncio.sleep(1)
        assert results(reader) == [WARM]
        reader.set_starts(KEY, [])
        assert not reader._entries and reader._number_of_entries == 0

    assert reading(node, body).counted == [WARM, WARM]
    assert node.asked == ["pod-1", "pod-1"]


def test_only_a_few_are_read_at_a_time() -> None:
    node = Node()

    async def body(reader: LogReader, calls: Calls) -> None:
        node.hold = asyncio.Event()
        reader.set_starts(KEY, [start(number) for number in range(20)])
        await asyncio.sleep(1)
        assert node.now == MAX_CONCURRENT_LOGS and not calls.woken
        node.hold.set()
        await asyncio.sleep(5)
        assert len(results(reader)) == 20 and calls.woken == [KEY]

    reading(node, body)
    assert node.most == MAX_CONCURRENT_LOGS


def test_it_stops_reading_where_the_engine_is_ready_and_ends_the_stream() -> None:
    long = WARM_LOG + timed(bar(), saved(3, 21), at=NOW + 60) + b"x" * (1 << 20)
    node = Node(pod_1=long)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(1)
        assert results(reader) == [WARM]

    reading(node, body)
    assert node.closed == 1 and node.given < len(WARM_LOG) + 64 < len(long)


def test_without_a_sign_of_readiness_it_stops_at_the_time_when_the_pod_was_ready() -> None:
    log = timed(USING, loaded(), STARTS, ENDS) + timed(bar("later"), saved(3, 21), at=NOW + 60)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(1)
        assert results(reader) == [WARM]

    reading(Node(pod_1=log), body)


def test_what_was_ready_before_this_process_is_known_and_not_counted_again() -> None:
    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1, ready=NOW - 10), start(2, ready=NOW + 10)])
        await asyncio.sleep(1)
        assert results(reader) == [WARM, WARM]

    assert reading(Node(), body, began=NOW).counted == [WARM]


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ApiError(403, "Forbidden", "pods/log is forbidden"), "Forbidden"),
        (ApiError(404, "NotFound", 'pods "x" not found'), "NotThere"),
        (ApiError(400, "BadRequest", "container is waiting to start"), "NotThere"),
        (ZeroDivisionError("ours"), "Error"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_unknown_counted_and_logged_once(
    error: Exception, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(pod_1=error, pod_2=error, pod_3=WARM_LOG)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(number) for number in (1, 2, 3)])
        await asyncio.sleep(7200)
        assert sorted(results(reader)) == sorted([UNKNOWN, UNKNOWN, WARM])

    with caplog.at_level(logging.WARNING):
        calls = reading(node, body)
    assert calls.failed == [word, word] and sorted(node.asked) == ["pod-1", "pod-2", "pod-3"]
    assert len(caplog.messages) == 1 and word in caplog.messages[0]


@pytest.mark.parametrize(
    "error",
    [ApiError(500, "InternalError", "dial tcp: timeout"), ConnectionError("x"), TimeoutError()],
)
def test_a_node_that_does_not_answer_is_asked_again_a_few_times(error: Exception) -> None:
    node = Node(pod_1=[error, error, WARM_LOG], pod_2=error)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1), start(2)])
        await asyncio.sleep(1)
        assert not reader.results(KEY)
        await asyncio.sleep(7200)
        assert sorted(results(reader)) == sorted([UNKNOWN, WARM])

    assert reading(node, body).failed == ["NoAnswer"]
    assert node.asked.count("pod-2") == len(RETRY_SECONDS) + 1


def test_a_stream_that_never_ends_holds_a_place_for_a_minute_only() -> None:
    node = Node()

    async def body(reader: LogReader, calls: Calls) -> None:
        node.hold = asyncio.Event()
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(7200)
        assert results(reader) == [UNKNOWN]

    reading(node, body)
    assert node.now == 0


@pytest.mark.parametrize(
    "log",
    [
        timed(bar(), saved(3, 21), READY, at=NOW + 3600),
        timed(USING, loaded(), READY, at=NOW + 5),
        timed("served a request\n", at=NOW + 3600),
    ],
    ids=["of another pod of this name", "of an engine that was restarted", "rotated"],
)
def test_a_log_whose_beginning_is_gone_has_no_result(log: bytes) -> None:
    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(1)
        assert results(reader) == [UNKNOWN]

    assert reading(Node(pod_1=log), body).failed == ["Rotated"]


def test_an_engine_that_is_silent_for_minutes_and_then_logs_is_believed() -> None:
    """A script that fetches a model first, say."""
    log = timed(USING, loaded(), STARTS, ENDS, READY, at=NOW - 50)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(
            KEY, [start(1, since=NOW - 2000), start(2, since=NOW - 2000, probed=False)]
        )
        await asyncio.sleep(1)
        assert results(reader) == [WARM, WARM]

    assert not reading(Node(pod_1=log, pod_2=log), body).failed


def test_a_pod_without_a_probe_that_says_nothing_of_its_beginning_is_given_up() -> None:
    log = timed("served a request\n", READY, at=NOW + 3600)

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1, probed=False)])
        await asyncio.sleep(1)
        assert results(reader) == [UNKNOWN]

    assert reading(Node(pod_1=log), body).failed == ["Rotated"]


def test_a_pod_without_a_probe_is_read_again_until_its_engine_is_ready() -> None:
    early = timed(USING, STARTS)
    node = Node(pod_1=[early, early, TUNED_LOG])

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1, since=NOW - 60, ready=NOW - 60, probed=False)])
        await asyncio.sleep(1)
        assert results(reader) == [UNKNOWN] and not calls.counted
        await asyncio.sleep(7200)
        assert results(reader) == [TUNED] and calls.counted == [TUNED]

    reading(node, body)
    assert len(node.asked) == 3 <= len(UNREADY_RETRY_SECONDS)


def test_one_that_never_says_so_is_given_up() -> None:
    node = Node(pod_1=timed(USING, STARTS))

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1, ready=NOW - 60, probed=False)])
        await asyncio.sleep(86400)
        assert results(reader) == [UNKNOWN] and calls.counted == [UNKNOWN]

    reading(node, body)
    assert len(node.asked) == len(UNREADY_RETRY_SECONDS) + 1


def test_the_result_of_an_engine_that_tuned_says_where_the_pod_differs_from_its_template() -> None:
    node = Node(pod_1=TUNED_LOG, pod_2=TUNED_LOG, pod_3=TUNED_LOG)
    pod = {
        "metadata": {"uid": "uid-1"},
        "spec": {
            "containers": [{"name": "proxy"}, {**ENGINE, "env": [{"name": "A", "value": "secret"}]}]
        },
    }
    node.pods = {"pod-1": pod, "pod-2": {**pod, "metadata": {"uid": "another"}}}

    async def body(reader: LogReader, calls: Calls) -> None:
        written = {**ENGINE, "env": [{"name": "B", "value": "secret too"}]}
        some = [start(number, engine=written) for number in (1, 2, 3)]
        reader.set_starts(KEY, some)
        await asyncio.sleep(1)
        known = reader.results(KEY)
        assert [known[one.key].differences for one in some] == [("env A", "env B"), (), ()]
        assert "secret" not in repr(known) and "secret" not in repr(reader._entries)

    reading(node, body)


def test_no_more_than_so_many_starts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STARTS", 5)

    async def body(reader: LogReader, calls: Calls) -> None:
        for _ in range(2):
            reader.set_starts(KEY, [start(number) for number in range(9)])
            await asyncio.sleep(1)
            assert sorted(results(reader)) == sorted([WARM] * 5 + [UNKNOWN] * 4), (
                "nothing waits for the last four"
            )
        assert calls.woken == [KEY]
        for _ in range(2):
            reader.set_starts(OTHER, [start(9)])
            await asyncio.sleep(1)
            assert results(reader, OTHER) == [UNKNOWN]
        assert calls.woken == [KEY, OTHER], "woken once, also where there was room for none"
        reader.set_starts(KEY, [start(number) for number in range(6, 9)])
        await asyncio.sleep(1)
        assert results(reader) == [WARM] * 3, "there is room again"
        reader.set_starts(OTHER, [])
        assert results(reader, OTHER) == []

    calls = reading(Node(), body)
    assert calls.counted == [WARM] * 8


def test_a_start_that_is_gone_while_it_is_read_is_not_counted() -> None:
    node = Node()

    async def body(reader: LogReader, calls: Calls) -> None:
        node.hold = asyncio.Event()
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(1)
        reader.set_starts(KEY, [])
        node.hold.set()
        await asyncio.sleep(1)
        assert not calls.counted and not calls.woken and not reader._entries

    reading(node, body)


def test_no_line_of_a_log_is_kept_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    secret = "password=hunter2"
    node = Node(
        pod_1=timed(
            f"{secret}\n",
            USING,
            f"[Autotuner]: Failed to persist {secret}: Read-only file system\n",
            STARTS,
            bar(),
            ENDS,
            READY,
        )
    )

    async def body(reader: LogReader, calls: Calls) -> None:
        reader.set_starts(KEY, [start(1)])
        await asyncio.sleep(1)
        assert results(reader) == [TUNED] and PARTIAL not in results(reader)
        assert secret not in repr(reader.results(KEY)) and secret not in repr(vars(reader))

    with caplog.at_level(logging.DEBUG):
        reading(node, body)
    assert secret not in caplog.text


# --- its place in a reconcile


def reconcile_with(
    monkeypatch: pytest.MonkeyPatch, reader: LogReader | None, wanted: tuple[EngineStart, ...]
) -> list[Observed]:
    """Reconcile a cache whose decision is that these starts are worth reading; return what it observed."""
    world, found = Server(Clock(NOW)), []
    world.create(cache())

    def decide(observed: Observed, now: float) -> Plan:
        found.append(observed)
        return Plan(status={"summary": {"bundles": "0/1"}}, starts=wanted)

    monkeypatch.setattr(pretune.controller.reconcile, "decide", decide)
    virtual(reconcile(KEY, Client(world), SETTINGS, world.clock, None, reader))
    return found


def test_a_reconcile_observes_what_is_known_and_leaves_the_rest_to_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node()
    reader = LogReader(node.log, node.get, lambda key: None)
    [observed] = reconcile_with(monkeypatch, reader, (start(1),))
    assert (
        observed.start_logs == {}
        and list(reader._entries[KEY]) == [start(1).key]
        and not node.asked
    )
    reader._entries[KEY][start(1).key].result = answer = StartObservation(LogSummary(WARM))
    [observed] = reconcile_with(monkeypatch, reader, (start(1),))
    assert observed.start_logs == {start(1).key: answer}
    reconcile_with(monkeypatch, reader, ())
    assert not reader._entries


def test_without_a_reader_a_reconcile_observes_no_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    [observed] = reconcile_with(monkeypatch, None, (start(1),))
    assert observed.start_logs is None


# --- why an attempt's engine failed

FAILURES = Path(__file__).parents[1] / "engines/vllm/data/failures"


def read_causes(answer: Any, *starts: FailedStart) -> tuple[dict[str, str], list[Any], list[str]]:
    asked: list[Any] = []
    failed: list[str] = []

    async def log(*arguments: Any) -> AsyncGenerator[bytes, None]:
        asked.append(arguments)
        if isinstance(answer, BaseException):
            raise answer
        yield answer
        if not answer:
            await asyncio.Event().wait()

    reader = LogReader(log, Node().get, lambda key: None, count_failure=failed.append)
    return virtual(reader.read_causes(KEY, starts)), asked, failed


FAILED_START = FailedStart("pod-1", "uid-1", "vllm", is_previous=True)


def test_the_cause_of_a_failed_start_is_read_from_the_end_of_its_log() -> None:
    log = (FAILURES / "nolib.log").read_bytes()
    causes, asked, failed = read_causes(log, FAILED_START)
    assert "libnuma" in causes["uid-1"] and not failed
    assert asked == [(KEY.namespace, "pod-1", "vllm", MAX_FAILURE_BYTES, MAX_FAILURE_LINES, True)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(ApiError(403, "", "no"), "Forbidden"), (OSError("no route"), "NoAnswer"), (b"", "NoAnswer")],
    ids=["forbidden", "no node", "no end"],
)
def test_a_log_that_cannot_be_read_names_no_cause(answer: Any, reason: str) -> None:
    causes, _, failed = read_causes(answer, FAILED_START)
    assert causes == {} and failed == [reason]


def test_logs_of_failed_starts_are_read_at_the_same_time() -> None:
    """Held pods wait for the reconcile that reads them."""
    starts = [FailedStart(f"pod-{n}", f"uid-{n}", "vllm", is_previous=True) for n in range(5)]

    async def log(*arguments: Any) -> AsyncGenerator[bytes, None]:
        if arguments[1] == "pod-1":
            yield (FAILURES / "nolib.log").read_bytes()
        else:
            await asyncio.Event().wait()

    async def story() -> tuple[dict[str, str], float]:
        now = asyncio.get_running_loop().time
        reader, began = LogReader(log, Node().get, lambda key: None), now()
        return await reader.read_causes(KEY, starts), now() - began

    causes, seconds = virtual(story())
    assert list(causes) == ["uid-1"] and seconds == FAILURE_TIMEOUT_SECONDS


def test_a_log_is_read_once_though_the_cache_is_observed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conflict has everything observed again, but a log does not change any more."""
    world = Server(Clock(NOW))
    world.create(cache())
    asked, seen = list[str](), list[dict[str, str]]()

    async def log(namespace: str, pod: str, *_: Any) -> AsyncGenerator[bytes, None]:
        asked.append(pod)
        yield (FAILURES / "nolib.log").read_bytes()

    def decide(observed: Observed, now: float) -> Plan:
        seen.append(dict(observed.causes))
        assert observed.cache is not None
        if len(seen) < 3:  # a person's edit, after our read
            world.patch(observed.cache, {"spec": {"revision": str(len(seen))}})
        return Plan(status={"n": len(seen)})

    monkeypatch.setattr(pretune.controller.reconcile, "decide", decide)
    monkeypatch.setattr(
        pretune.controller.reconcile, "list_failed_starts", lambda observed: [FAILED_START]
    )
    reader = LogReader(log, Node().get, lambda key: None)
    virtual(reconcile(KEY, Client(world), SETTINGS, world.clock, None, reader))
    assert len(seen) == 3 and asked == ["pod-1"]
    assert all("libnuma" in causes["uid-1"] for causes in seen)
