"""When keys run. Times are the virtual loop's, so every second here is exact and takes none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.types import Key
from pretune.controller import workqueue
from pretune.controller.workqueue import (
    BURST,
    NAMESPACE_BURST,
    NAMESPACE_SECONDS_PER_RUN,
    RUN_TIMEOUT_SECONDS,
    SECONDS_PER_RUN,
    URGENT_BURST,
    URGENT_SECONDS_PER_RUN,
    Queue,
)

from tests.unit.virtual import run

A, B = Key("ns", "a"), Key("other", "b")


class Work:
    """What a queue calls: notes when each key ran, and does what the test says."""

    def __init__(self, answers: dict[Key, list[Any]] | None = None, takes: float = 0.0) -> None:
        self.answers, self.takes = answers or {}, takes
        self.runs: list[
            tuple[Key, float, float]
        ] = []  # key, beginning, end, in seconds from the start

    async def __call__(self, key: Key) -> float | None:
        began = now()
        await asyncio.sleep(self.takes)
        self.runs.append((key, began, now()))
        answer = self.answers[key].pop(0) if self.answers.get(key) else None
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else float(answer)

    def began(self, key: Key = A) -> list[float]:
        return [round(at, 6) for one, at, _ in self.runs if one == key]


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(work: Work, story: Callable[[Queue], Awaitable[None]], workers: int = 4) -> Work:
    async def all_of_it() -> None:
        queue = Queue(work, workers)
        running = asyncio.create_task(queue.run())
        await story(queue)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(all_of_it())
    return work


def wakes(
    *times: float, key: Key = A, until: float = 500.0, urgent: tuple[float, ...] = ()
) -> Callable[[Queue], Awaitable[None]]:
    async def story(queue: Queue) -> None:
        for at in sorted([*times, *urgent]):
            if at > now():
                await asyncio.sleep(at - now())
            queue.wake(key, urgent=at in urgent)
        await asyncio.sleep(until - now())

    return story


@pytest.mark.parametrize(
    ("case", "answers", "events", "runs"),
    [
        ("an event runs its key at once", [], [5], [5]),
        ("events that come together are one run", [], [5, 5, 5], [5]),
        (
            "three runs at once, then one a second",
            [],
            [5, 5.01, 5.02, 5.03, 5.04],
            [5, 5.01, 5.02, 6],
        ),
        (
            "a storm costs a run a second",
            [],
            [n / 10 for n in range(40)],
            [0, 0.1, 0.2, 1, 2, 3, 4],
        ),
        (
            "after some quiet the three are there again",
            [],
            [0, 0.1, 0.2, 9, 9.1, 9.2],
            [0, 0.1, 0.2, 9, 9.1, 9.2],
        ),
        ("a run says when to look again", [30], [0], [0, 30]),
        ("an event comes before that", [30, None], [0, 10], [0, 10]),
        ("a later answer replaces an earlier one", [30, 50], [0, 10], [0, 10, 60]),
        ("again at once is held to the same rate", [0] * 5, [0], [0, 0, 0, 1, 2, 3]),
        ("a failure waits 1, 2, 4 seconds", [OSError("x")] * 3, [0], [0, 1, 3, 7]),
        (
            "and a minute at most",
            [OSError("x")] * 8,
            [0],
            [0, 1, 3, 7, 15, 31, 63, 123, 183],
        ),
        ("no event shortens a failure's wait", [OSError("x")] * 2, [0, 0.5, 1.5, 2.5], [0, 1, 3]),
        (
            "a success forgets the failures",
            [OSError("x"), OSError("x"), None, OSError("x")],
            [0, 10],
            [0, 1, 3, 10, 11],
        ),
        ("a failure forgets when to look again", [5, OSError("x")], [0], [0, 5, 6]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_key_runs(case: str, answers: list[Any], events: list[float], runs: list[float]) -> None:
    assert play(Work({A: list(answers)}), wakes(*events)).began() == pytest.approx(runs)


@pytest.mark.parametrize(
    ("case", "events", "urgent", "runs"),
    [
        ("at once, though a storm has used up the rate", [0, 0.1, 0.2, 0.3], [0.4], [0, 0.1, 0.2, 0.4]),
        ("and leaves the others their rate", [0.1, 0.2, 0.3, 0.4], [0], [0, 0.1, 0.2, 0.3, 1.1]),
        ("ten at once and three of the others, then four a second", [], [n / 100 for n in range(15)],
         [*(n / 100 for n in range(13)), 0.25]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_urgent_event_runs_its_key(
    case: str, events: list[float], urgent: list[float], runs: list[float]
) -> None:
    assert play(Work(), wakes(*events, urgent=tuple(urgent))).began() == pytest.approx(runs)


def test_no_urgent_event_shortens_a_failures_wait() -> None:
    work = play(Work({A: [OSError("x")] * 2}), wakes(0, urgent=(0.5, 1.5)))
    assert work.began() == pytest.approx([0, 1, 3])


def test_an_urgent_key_goes_before_all_that_wait_and_runs_once() -> None:
    keys = [Key("ns", f"k{n}") for n in range(5)]

    async def story(queue: Queue) -> None:
        for key in keys:
            queue.wake(key)
        await asyncio.sleep(1)
        queue.wake(keys[3], urgent=True)  # waits already
        queue.wake(keys[3])
        queue.wake(A, urgent=True)
        await asyncio.sleep(1000)

    work = play(Work(takes=10.0), story, workers=1)
    assert [key for key, *_ in work.runs] == [keys[0], keys[3], A, keys[1], keys[2], keys[4]]


def test_events_that_come_while_a_key_runs_are_one_run_more_after_it() -> None:
    work = play(Work(takes=2.0), wakes(0, 0.5, 1.0, 1.5))
    assert [(at, end) for _, at, end in work.runs] == [(0, 2), (2, 4)]


def test_other_keys_run_meanwhile_as_many_as_there_are_workers() -> None:
    keys = [Key(f"ns{n}", "k") for n in range(5)]

    async def story(queue: Queue) -> None:
        for key in keys:
            queue.wake(key)
        await asyncio.sleep(100)

    assert [at for _, at, _ in play(Work(takes=10.0), story, workers=3).runs] == [0, 0, 0, 10, 10]


def test_a_storm_on_one_key_holds_up_no_other() -> None:
    async def story(queue: Queue) -> None:
        for _ in range(200):
            queue.wake(A)
            await asyncio.sleep(0.01)
        queue.wake(B)
        await asyncio.sleep(10)

    assert play(Work(), story, workers=1).began(B) == pytest.approx([2.0])


def test_a_run_that_never_ends_is_ended_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(takes=float(10**6))
    play(work, wakes(0, until=RUN_TIMEOUT_SECONDS + 0.5))
    assert "ns/a: TimeoutError, tried again in 1 s" in caplog.messages


def test_an_error_is_one_line_with_the_key(caplog: pytest.LogCaptureFixture) -> None:
    play(Work({A: [ConnectionError("refused")]}), wakes(0, until=0.5))
    assert caplog.messages == ["ns/a: ConnectionError: refused, tried again in 1 s"]


def test_a_queue_is_stuck_only_while_keys_wait_and_nothing_moves() -> None:
    seconds: list[float] = []

    async def story(queue: Queue) -> None:
        seconds.append(queue.stuck_seconds())  # idle
        queue.wake(A)
        await asyncio.sleep(50)
        seconds.append(queue.stuck_seconds())  # one runs, none waits
        queue.wake(B)
        await asyncio.sleep(20)
        seconds.append(queue.stuck_seconds())  # one waits since 20 s
        await asyncio.sleep(60)
        seconds.append(
            queue.stuck_seconds()
        )  # it runs; the first was ended after two minutes, and waits again since 9 s

    play(Work(takes=1000.0), story, workers=1)
    assert seconds == [0, 0, 20, 9]


def test_a_key_that_went_to_the_front_does_not_count_as_waiting_where_it_was() -> None:
    seconds: list[float] = []

    async def story(queue: Queue) -> None:
        queue.wake(A)
        await asyncio.sleep(1)
        queue.wake(B)
        queue.wake(B, urgent=True)
        await asyncio.sleep(119 + 50)
        seconds.append(queue.stuck_seconds())  # B runs since 50 s; A, which was ended, waits again

    play(Work(takes=1000.0), story, workers=1)
    assert seconds == [49]


def test_nothing_waits_once_an_urgent_key_runs() -> None:
    seconds: list[float] = []

    async def story(queue: Queue) -> None:
        queue.wake(A)
        await asyncio.sleep(1)
        queue.wake(B)
        queue.wake(B, urgent=True)
        await asyncio.sleep(50)
        seconds.append(queue.stuck_seconds())

    play(Work({A: [None]}, takes=20.0), story, workers=1)
    assert seconds == [0]


def test_a_key_with_nothing_to_come_is_forgotten() -> None:
    left: list[int] = []

    async def story(queue: Queue) -> None:
        for _ in range(3):
            queue.wake(A)
            await asyncio.sleep(0.01)
        left.append(len(queue._entries))  # its tokens are used up: that has to be remembered
        await asyncio.sleep(4)
        left.append(len(queue._entries))

    play(Work(), story)
    assert left == [1, 0]


# --- between namespaces

MINUTES = 10.0
TIMER_SECONDS = 7.3  # the neighbour's keys ask to be looked at again after this time
MAX_DELAY_SECONDS = 2.0  # of the neighbour's due timers


class Noise:
    """Keys of some namespaces, each of which is woken urgently again and again."""

    def __init__(self, keys: int, every: float, takes: float, namespaces: int = 1) -> None:
        self.keys = [Key(f"evil{n % namespaces}", f"k{n}") for n in range(keys)]
        self.every, self.takes = every, takes

    async def make(self, queue: Queue) -> None:
        while now() < MINUTES * 60:
            for key in self.keys:
                queue.wake(key, urgent=True)
            await asyncio.sleep(self.every)


NOISE = {
    "20 pods that change all the time": Noise(20, every=0.25, takes=0.3),
    "200 pods, more than may run": Noise(200, every=1.0, takes=0.05),
    "caches whose reads hang": Noise(20, every=1.0, takes=60.0),
    "a thousand caches that do not exist": Noise(1000, every=30.0, takes=0.02),
    "three namespaces at once": Noise(60, every=0.5, takes=0.4, namespaces=3),
}


def longest_delay(noise: Noise, workers: int = 4) -> float:
    """Return how late the neighbour's timers are at most, in seconds, beside this noise."""
    due: dict[Key, float] = {}
    delays: list[float] = []

    async def work(key: Key) -> float | None:
        if key.namespace != "good":
            await asyncio.sleep(noise.takes)
            return None
        delays.append(now() - due[key])
        await asyncio.sleep(0.2)
        due[key] = now() + TIMER_SECONDS
        return TIMER_SECONDS

    async def all_of_it() -> None:
        queue = Queue(work, workers)
        running = asyncio.create_task(queue.run())
        making = asyncio.create_task(noise.make(queue))
        await asyncio.sleep(3)
        for number in range(4):
            key = Key("good", f"g{number}")
            due[key] = now()
            queue.wake(key)
        await making
        delays.extend(now() - at for at in due.values())  # of those that never ran
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(all_of_it())
    return max(delays)


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_the_noise_of_one_namespace_delays_no_timer_of_another_by_more_than_two_seconds(
    noise: Noise,
) -> None:
    assert longest_delay(noise) <= MAX_DELAY_SECONDS


@pytest.mark.parametrize(
    ("mutant", "noise"),
    [
        ("a namespace may use all workers", "caches whose reads hang"),
        ("urgent keys always come first", "three namespaces at once"),
    ],
)
def test_without_a_share_for_each_namespace_its_timers_starve(
    mutant: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "a namespace may use all workers":
        monkeypatch.setattr(workqueue, "MAX_SHARE", 1.0)
    else:
        monkeypatch.setattr(workqueue, "URGENT_TURNS", 10**9)
    assert longest_delay(NOISE[noise]) > 10 * MAX_DELAY_SECONDS


def test_half_of_the_workers_run_keys_of_one_namespace() -> None:
    async def story(queue: Queue) -> None:
        for number in range(6):
            queue.wake(Key("ns", f"k{number}"))
        queue.wake(B)
        await asyncio.sleep(100)

    work = play(Work(takes=10.0), story, workers=5)
    assert [at for key, at, _ in work.runs if key != B] == [0, 0, 10, 10, 20, 20]
    assert work.began(B) == [0]


def test_a_namespace_has_a_rate_that_leaves_the_others_theirs() -> None:
    async def story(queue: Queue) -> None:
        for number in range(NAMESPACE_BURST + 20):
            queue.wake(Key("ns", f"k{number}"))
        await asyncio.sleep(1.0)
        assert queue.waits() == {"ns": pytest.approx(1.0)}
        assert 9 <= queue.depth() <= 11
        assert queue.stuck_seconds() == 0, "it is not the workers that they wait for"
        queue.wake(B)
        await asyncio.sleep(100)
        assert queue.waits() == {}

    work = play(Work(), story)
    began = [at for key, at, _ in work.runs if key != B]
    assert began[:NAMESPACE_BURST] == pytest.approx([0] * NAMESPACE_BURST, abs=1e-6)
    later = [(n + 1) * NAMESPACE_SECONDS_PER_RUN for n in range(20)]
    assert began[NAMESPACE_BURST:] == pytest.approx(later)
    assert work.began(B) == [1.0]


def test_an_urgent_key_of_any_namespace_goes_before_a_starts_long_line() -> None:
    async def story(queue: Queue) -> None:
        for number in range(500):
            queue.wake(Key(f"n{number}", "k"))
        await asyncio.sleep(1)
        queue.wake(Key("n400", "other"), urgent=True)
        await asyncio.sleep(1000)

    assert play(Work(takes=2.0), story).began(Key("n400", "other")) == [2.0]


def test_a_key_that_is_not_urgent_ages_in_its_own_noisy_namespace() -> None:
    keys = [Key("ns", f"k{number}") for number in range(20)]
    timer = Key("ns", "timer")

    async def story(queue: Queue) -> None:
        queue.wake(timer)
        while now() < 60:
            for key in keys:
                queue.wake(key, urgent=True)
            await asyncio.sleep(0.5)

    work = play(Work({timer: [5.0] * 30}, takes=1.0), story)
    assert len(work.began(timer)) >= 6


def test_nothing_is_kept_of_a_namespace_that_is_quiet() -> None:
    left: list[int] = []

    async def story(queue: Queue) -> None:
        for number in range(50):
            queue.wake(Key(f"ns{number}", "k"))
        left.append(len(queue._namespaces))
        await asyncio.sleep(20)
        left.append(len(queue._namespaces))

    play(Work(takes=1.0), story)
    assert left == [50, 0]


ANSWERS = st.one_of(st.none(), st.floats(0, 20), st.just(OSError("x")))


@given(
    events=st.lists(
        st.tuples(st.sampled_from([A, B]), st.floats(0, 30), st.booleans()), max_size=25
    ),
    answers=st.lists(ANSWERS, max_size=20),
    takes=st.sampled_from([0.0, 0.3, 3.0]),
    workers=st.integers(1, 3),
)
def test_whatever_comes_keys_never_overlap_never_storm_and_every_event_is_answered(
    events: list[tuple[Key, float, bool]], answers: list[Any], takes: float, workers: int
) -> None:
    events = sorted(events, key=lambda one: one[1])
    work = Work({A: list(answers), B: list(answers)}, takes)

    async def story(queue: Queue) -> None:
        for key, at, urgent in events:
            await asyncio.sleep(at - now())
            queue.wake(key, urgent)
        await asyncio.sleep(3000)

    play(work, story, workers)
    for key in (A, B):
        spans = [(began, ended) for one, began, ended in work.runs if one == key]
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
        starts = [began for began, _ in spans]
        for first, at in enumerate(starts):
            for last in range(first, len(starts)):
                calm = BURST + (starts[last] - at) / SECONDS_PER_RUN
                hurried = URGENT_BURST + (starts[last] - at) / URGENT_SECONDS_PER_RUN
                hurried = min(hurried, sum(urgent for one, _, urgent in events if one == key))
                assert last - first + 1 <= calm + hurried + 1e-6
        woken = [at for one, at, _ in events if one == key]
        assert not woken or starts[-1] >= woken[-1] - 1e-9  # a run that began after it has seen it
        assert bool(starts) == bool(woken)
