"""Whose attempt starts next, over all caches: never too many, and no namespace keeps another waiting."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.types import Key
from pretune.policy.bundles.turns import WITHOUT_NODE_SECONDS, AttemptLedger, list_open_attempts
from pretune.policy.model import Create
from pretune.policy.plan_builder import PlanBuilder

from tests.builders.constants import NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod
from tests.growth import MAX_GROWTH, growth


class Caches:
    """Caches that want one attempt each, reconciled in the order in which they are woken."""

    def __init__(self, limit: int) -> None:
        self.woken: list[Key] = []
        self.ledger = AttemptLedger(limit, self.woken.append)
        self.started: list[Key] = []
        self.running: list[Key] = []

    def ask(self, key: Key) -> None:
        """A reconcile of a cache that has an attempt to start."""
        turn = self.ledger.find_turn(key)
        assert turn is not None
        if turn.is_free and key not in self.started:
            self.started.append(key)
            self.running.append(key)
        attempts = {"job": True} if key in self.running else {}
        self.ledger.update(key, attempts, waits=key not in self.started)
        self.reconcile_woken()

    def reconcile_woken(self) -> None:
        while self.woken:
            self.ask(self.woken.pop(0))

    def end(self, key: Key) -> None:
        self.running.remove(key)
        self.ledger.update(key, {}, waits=False)
        self.reconcile_woken()

    def place(self, key: Key) -> int:
        turn = self.ledger.find_turn(key)
        assert turn is not None
        return turn.place


def keys(namespace: str, number: int) -> list[Key]:
    return [Key(namespace, f"cache-{index}") for index in range(number)]


def test_without_a_limit_nothing_waits() -> None:
    assert AttemptLedger(0).find_turn(Key("a", "b")) is None


def test_a_namespace_gets_half_of_the_turns_and_another_ones_first_cache_waits_for_none() -> None:
    caches = Caches(4)
    for key in keys("noisy", 50):
        caches.ask(key)
    assert len(caches.running) == 2
    caches.ask(Key("quiet", "cache"))
    assert caches.running[-1] == Key("quiet", "cache")


def test_turns_go_round_by_namespace() -> None:
    caches = Caches(2)
    for namespace in "abc":
        for key in keys(namespace, 20):
            caches.ask(key)
    while len(caches.started) < 30:
        caches.end(caches.running[0])
    served = [key.namespace for key in caches.started]
    assert all(9 <= served[:30].count(namespace) <= 11 for namespace in "abc"), served
    assert [key.name for key in caches.started if key.namespace == "b"] == [
        key.name for key in keys("b", 10)
    ], "in a namespace the first to come is the first to be served"


def test_a_namespace_without_attempts_for_a_moment_keeps_its_place_behind_the_others() -> None:
    caches, served = Caches(1), list[str]()
    a, b = keys("a", 8), keys("b", 8)
    caches.ask(a[0])
    for key in b[:2]:
        caches.ask(key)
    for number in range(1, 8):
        running = caches.running.pop()
        served.append(running.namespace)
        caches.ledger.end(running, "job")  # by the watch of Jobs
        caches.ask(a[number])  # before those that this has woken
        caches.ask(b[number])
    assert served == list("abababa")


def test_a_place_is_how_many_are_served_before() -> None:
    caches = Caches(2)
    for key in [*keys("a", 3), *keys("b", 3), *keys("c", 4)]:
        caches.ask(key)
    assert caches.running == [Key("a", "cache-0"), Key("b", "cache-0")]
    turn = caches.ledger.find_turn(Key("c", "cache-0"))
    assert turn is not None and (turn.place, turn.waiting, turn.running) == (1, 8, 2)
    assert not turn.is_free and "place 1 of 8" in turn.message


def test_a_cache_that_cannot_be_reconciled_blocks_nobody() -> None:
    caches = Caches(1)
    first, second, third = Key("a", "1"), Key("b", "2"), Key("c", "3")
    for key in (first, second, third):
        caches.ask(key)
    caches.running.remove(first)
    caches.ledger.end(first, "job")  # by the watch of Jobs
    assert caches.woken == [second]
    caches.woken.clear()
    caches.ledger.leave(second)  # its reconcile has failed
    assert caches.woken == [third]
    caches.reconcile_woken()
    assert caches.running == [third]


def test_what_ran_before_the_process_began_counts() -> None:
    caches = Caches(2)
    caches.ledger.load([(Key("a", "1"), "one"), (Key("b", "2"), "two")])
    caches.ask(Key("c", "3"))
    assert not caches.running and caches.ledger.waiting == 1
    caches.ledger.update(Key("a", "1"), {}, waits=False)  # it had ended meanwhile
    caches.reconcile_woken()
    assert caches.running == [Key("c", "3")]


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), max_size=60),
)
def test_never_too_many_run_and_none_waits_while_one_may_start(
    limit: int, steps: list[tuple[str, int, bool]]
) -> None:
    caches, share = Caches(limit), (limit + 1) // 2
    for namespace, number, ends in steps:
        key = Key(namespace, str(number))
        if ends and key in caches.running:
            caches.end(key)
            caches.started.remove(key)
        else:
            caches.ask(key)
        running = [key.namespace for key in caches.running]
        assert len(running) <= limit and all(running.count(each) <= share for each in "abc")
        assert caches.ledger.running == len(running)
        waiting = [
            name
            for name, each in caches.ledger._namespaces.items()
            if each.waiting and running.count(name) < share
        ]
        assert not waiting or len(running) == limit


def waiting_namespaces(number: int) -> AttemptLedger:
    """A ledger where attempts run in 20 namespaces, and caches of so many others wait."""
    ledger = AttemptLedger(20)
    for index in range(20 + number):
        is_running = index < 20
        attempts = {"job": True} if is_running else {}
        ledger.update(Key(f"ns-{index}", "cache"), attempts, waits=not is_running)
    return ledger


def ask_and_end(ledger: AttemptLedger) -> None:
    """Each is one reconcile's: it asks for its turn, and an attempt ends and another starts."""
    running, waiting = Key("ns-0", "cache"), Key("ns-99", "cache")
    for _ in range(5):
        assert ledger.find_turn(waiting) is not None
        ledger.end(running, "job")
        ledger.update(running, {"job": True}, waits=False)


def test_a_turn_costs_in_proportion_to_the_namespaces_that_wait() -> None:
    assert growth(ask_and_end, waiting_namespaces, 250) < MAX_GROWTH


# --- attempts that do not count


def full_of(uncounted: int, limit: int) -> AttemptLedger:
    """A ledger where so many attempts of the namespace `ml` are suspended, or have no node."""
    ledger = AttemptLedger(limit)
    for key in keys("ml", uncounted):
        ledger.update(key, {"job": False}, waits=False)
    return ledger


@pytest.mark.parametrize(("limit", "uncounted"), [(20, 10), (20, 99), (2, 1), (1, 1), (1, 9)])
def test_what_does_not_count_takes_no_turn_of_its_namespace(limit: int, uncounted: int) -> None:
    woken: list[Key] = []
    ledger, key = full_of(uncounted, limit), Key("ml", "next")
    turn = ledger.find_turn(key)
    assert turn is not None and turn.is_free and turn.running == 0
    ledger._wake = woken.append
    ledger.update(key, {}, waits=True)
    assert woken == [key]


def test_a_namespace_has_only_so_many_open_attempts() -> None:
    ledger, key, woken = full_of(100, 20), Key("ml", "next"), list[Key]()
    ledger._wake = woken.append
    turn = ledger.find_turn(key)
    assert turn is not None and not turn.is_free
    assert turn.message == (
        "100 Jobs of attempts are open in this namespace, of 100 at most: suspended, or without a"
        " node; place 1 of 1"
    )
    ledger.update(key, {}, waits=True)
    other = ledger.find_turn(Key("b", "1"))
    assert not woken and other is not None and other.is_free and other.place == 1
    ledger.end(Key("ml", "cache-0"), "job")
    assert woken == [key]


def test_the_message_names_the_share_of_the_namespace_where_that_is_used_up() -> None:
    ledger = AttemptLedger(20)
    for key in keys("ml", 10):
        ledger.update(key, {"job": True}, waits=False)
    turn = ledger.find_turn(Key("ml", "next"))
    assert turn is not None and turn.message == (
        "10 attempts of this namespace run, of 10, half of what controller.maxConcurrentAttempts"
        " allows; place 1 of 1"
    )


# --- which attempts count


def open_attempts(job_: Any, *pods: Any, now: float = NOW) -> tuple[list[bool], float | None]:
    plan = PlanBuilder(observed(jobs=(job_,), pods=pods), now)
    return list(list_open_attempts(plan).values()), plan.requeue_time


WITHOUT_NODE = AttemptPod().but(nodeName="")


@pytest.mark.parametrize(
    ("case", "job_", "pods", "expected"),
    [
        ("it has a node", job("b-default"), (AttemptPod(),), ([True], None)),
        (
            "it waits for a node",
            job("b-default"),
            (WITHOUT_NODE,),
            ([True], NOW - 50 + WITHOUT_NODE_SECONDS),
        ),
        ("its queue has suspended it", job("b-default", suspend=True), (), ([False], None)),
        ("it has ended", job("b-default").failed(), (), ([], None)),
        ("it is an import", job("b-default", role=names.IMPORTING), (), ([], None)),
        ("it is a proof", job("b-default", role=names.PROOF, uid="p"), (), ([True], NOW + 840)),
    ],
)
def test_an_attempt_counts_while_it_may_use_gpus(
    case: str, job_: Any, pods: tuple[Any, ...], expected: Any
) -> None:
    assert open_attempts(job_, *pods) == expected, case


def test_an_attempt_that_finds_no_node_stops_counting() -> None:
    late = NOW + WITHOUT_NODE_SECONDS
    assert open_attempts(job("b-default"), WITHOUT_NODE, now=late) == ([False], None)


def test_an_attempt_that_a_plan_starts_counts_before_it_exists() -> None:
    plan = PlanBuilder(observed(), NOW)
    made = job("b-default")
    plan.actions.append(Create("create Job x", made))
    assert list_open_attempts(plan) == {made["metadata"]["name"]: True}
