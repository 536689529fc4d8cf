"""From apply to sealed to deleted, with one fault at each of the controller's calls in turn: every one of them, not a sample.

A reconcile that dies at a read has done nothing, so a journey in large steps tries every call, and one that reconciles after each move
of the world tries every write.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from pretune.api.names import SEALED, TUNING
from pretune.kube.types import ApiError

from tests.builders.constants import KEY
from tests.depth import sample
from tests.sim.cluster import Faults
from tests.sim.simulation import CACHE, CLAIM, FAR, Simulation

LATER = 60.0  # seconds until the world stands still: the engine has tuned, seal has reported


def to_sealed(sim: Simulation, fine: bool) -> None:
    sim.deploy()
    sim.apply()
    if fine:
        sim.settle()
        return
    for _ in range(5):
        sim.reconcile()
        sim.world.run()
        sim.clock.advance(LATER)
        sim.world.run()
        sim.laws.check()


def to_gone(sim: Simulation, fine: bool) -> None:
    sim.delete()
    if fine:
        sim.settle(FAR)
        return
    for _ in range(3):
        sim.reconcile()
        sim.world.run()
        sim.clock.advance(LATER)
        sim.laws.check()


@cache
def calls(fine: bool) -> tuple[list[str], int]:
    """What an undisturbed controller calls in the whole journey, and how many of that until the bundle is sealed."""
    sim = Simulation()
    to_sealed(sim, fine)
    sealed = len(sim.controller.calls)
    to_gone(sim, fine)
    found = sim.controller.calls
    sim.close()
    return found, sealed


def sealed_once(sim: Simulation, wasted: int = 0) -> None:
    """As if nothing had happened, and then nothing is written any more."""
    sim.settle()
    assert sim.ready == ("True", "Sealed"), (sim.ready, sim.message())
    assert [one["state"] for one in sim.records] == [SEALED] and sim.record["attempts"] == 1
    assert sim.record["digest"] == sim.on_claim()[sim.record["id"]].digest
    assert (
        sim.engine_starts == 1 and len(sim.world.published) == 1 and len(sim.laws.wasted) <= wasted
    )
    tuning = [one for one in sim.writes("Job", "create") if "-inspect" not in one]
    assert len(tuning) == 1 and not sim.writes("Pod"), tuning
    before = len(sim.writes())
    sim.settle(3000)
    sim.reconcile()
    assert sim.writes()[before:] == [], "an idle cache costs no write"


def gone(sim: Simulation) -> None:
    sim.settle(FAR)
    assert not sim.world.jobs() and not sim.world.pods() and not sim.late
    assert sim.server.get(*CACHE) is None
    assert sim.server.get("v1", "PersistentVolumeClaim", KEY.namespace, CLAIM) is None
    assert not sim.server.list("v1", "ConfigMap", KEY.namespace)


def every_call() -> Iterator[tuple[int, bool]]:
    for fine in (False, True):
        for number, words in enumerate(calls(fine)[0], 1):
            if not fine or words.split()[0] not in ("get", "list", "event"):
                yield number, fine


def test_the_journeys_make_every_kind_of_call() -> None:
    for fine in (False, True):
        found = {" ".join(words.split()[:2]) for words in calls(fine)[0]}
        assert found >= {
            "apply PersistentVolumeClaim",
            "apply ConfigMap",
            "create Job",
            "status AutotuneCache",
        }
        assert found >= {
            "delete PersistentVolumeClaim",
            "delete ConfigMap",
            "list Pod",
            "get AutotuneCache",
        }


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_controller_killed_at_any_call_loses_nothing_and_starts_nothing_twice(when: str) -> None:
    for number, fine in sample(list(every_call())):
        sim = Simulation()
        sim.controller = sim.client(faults=Faults(crash_at=(number, when)))
        to_sealed(sim, fine)
        sealed_once(sim)
        to_gone(sim, fine)
        gone(sim)
        assert sim.killed == 1 or number > calls(fine)[1], f"call {number} was not made"
        sim.close()


ERRORS = (
    ApiError(500, "InternalError", "etcd"),
    TimeoutError(),
    OSError("connection reset"),
    ApiError(409, "Conflict", "x"),
)


@pytest.mark.parametrize("effect", ["refused", "done, answer lost"])
def test_a_call_that_fails_is_made_again(effect: str) -> None:
    for number in sample(range(1, len(calls(False)[0]) + 1)):
        error, fine = ERRORS[number % len(ERRORS)], False
        faults = (
            Faults(errors={number: error})
            if effect == "refused"
            else Faults(lost_answers={number: error})
        )
        sim = Simulation()
        sim.controller = sim.client(faults=faults)
        to_sealed(sim, fine)
        sealed_once(sim)
        to_gone(sim, fine)
        gone(sim)
        sim.close()


@pytest.mark.parametrize("moment", ["tuning", "sealed", "deleted", "made again"])
def test_an_old_leader_that_goes_on_late_at_any_call_changes_nothing(moment: str) -> None:
    _, sealed = calls(False)
    for number in sample(range(1, sealed + 1)):
        sim = Simulation()
        first = sim.client("old leader", pause_before=number)
        sim.deploy()
        sim.apply()
        for _ in range(4):  # the old leader leads, until it is stopped at that call
            sim.lead(first)
            if sim.late:
                break
            sim.world.run()
            sim.clock.advance(LATER)
            sim.world.run()
        if moment == "tuning":
            sim.settle(until=lambda sim=sim: bool(sim.world.pods(TUNING)))  # type: ignore[misc]
            sim.go_on()
            sealed_once(sim)
        elif moment == "sealed":
            sealed_once(sim)
            before = sim.status
            sim.go_on()
            assert sim.status == before, (
                "what was seen long ago is not written over what is known now"
            )
            sealed_once(sim)
        sim.delete()
        if moment == "made again":
            sim.settle(10)
            sim.apply()
            sim.go_on()
            sim.settle(FAR)
            assert sim.ready == ("True", "Sealed") and sim.record["id"] in sim.on_claim()
            sim.delete()
        sim.settle(10)
        sim.go_on()
        gone(sim)
        sim.close()
