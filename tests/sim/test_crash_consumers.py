"""Rollouts, releases and rescues with one fault at each of the controller's calls in turn: every one of them, not a sample.

Steps are large, so that a journey has some ten looks of some ten calls each; what is left is played move by move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
from pretune.kube.types import ApiError

from tests.depth import sample
from tests.sim.cluster import Client, Faults
from tests.sim.fleet import Fleet
from tests.sim.simulation import CACHE, CLAIM, FAR
from tests.sim.steps import CLAIM_PLACE
from tests.sim.test_crash_everywhere import ERRORS

FIRST = "get AutotuneCache"  # the first call of each look
LATER = 45.0  # seconds until the world stands still: the engine has tuned, seal has reported


def step(fleet: Fleet, client: Client | None = None) -> None:
    """A look, and all that comes of it."""
    fleet.reconcile(client)
    fleet.world.run()
    fleet.clock.advance(LATER)
    fleet.world.run()
    fleet.laws.check()


def serving(hold: float = 3600, verify: str = "Never") -> Fleet:
    """Two pods serve, their bundle is sealed."""
    fleet = Fleet()
    fleet.serve("vllm:1", replicas=2)
    fleet.apply(hold={"timeoutSeconds": hold}, verify=verify)
    for _ in range(5 if verify == "Never" else 9):
        step(fleet)
    assert fleet.ready == ("True", "Sealed") and fleet.serving() == 2
    return fleet


# --- the journeys: how they begin, and how they end whatever was killed


def rolls_out() -> Fleet:
    fleet = serving()
    fleet.serve("vllm:2")
    return fleet


def rolled_out_warm(fleet: Fleet) -> None:
    assert fleet.serving("vllm:2") == 2 == len(fleet.consumers())
    assert (
        fleet.engine_starts == 2
        and fleet.warm("vllm:2") == [True] * 2
        and not fleet.promises.deleted
    )
    assert len(fleet.world.published) == 2 and fleet.counted == {
        "seeded": 2,
        "cold": 0,
        "held": 0,
        "stale": 0,
        "ready": 2,
    }


def is_to_be_proven() -> Fleet:
    fleet = serving(verify="BeforeRelease")
    fleet.serve("vllm:2")
    return fleet


def rolled_out_proven(fleet: Fleet) -> None:
    rolled_out_warm(fleet)
    assert len(fleet.world.proofs) == 2 and all(
        one["proven"] and one["proofs"] == 1 for one in fleet.records
    )


def is_not_reproducible() -> Fleet:
    fleet = is_to_be_proven()
    fleet.world.tunes_again = True
    return fleet


def rolled_out_unproven(fleet: Fleet) -> None:
    rolled_out_cold(fleet)
    assert (
        fleet.ready == ("False", "NotReproducible")
        and len(fleet.world.proofs) == 2 == fleet.engine_starts
    )


def hangs() -> Fleet:
    fleet = serving(hold=100)
    fleet.world.engine_hangs = True
    fleet.serve("vllm:2")
    return fleet


def rolled_out_cold(fleet: Fleet) -> None:
    assert fleet.serving("vllm:2") == 2 == len(fleet.consumers())
    assert fleet.warm("vllm:2") == [False] * 2 and not fleet.promises.deleted


def cannot_mount() -> Fleet:
    fleet = serving()
    fleet.world.unmountable.add(CLAIM)
    fleet.serve(replicas=4)
    return fleet


def rescued(fleet: Fleet) -> None:
    assert fleet.serving("vllm:1") == 4 == len(fleet.consumers())
    assert (
        fleet.warm()[2:] == [False] * 2
        and len(fleet.promises.deleted) == len(set(fleet.promises.deleted)) == 2
    )
    assert fleet.ready == ("True", "Sealed")


def loses_its_cache() -> Fleet:
    fleet = serving()
    fleet.serve("vllm:2")
    step(fleet)
    assert fleet.held()
    fleet.delete()
    return fleet


def gone(fleet: Fleet) -> None:
    """The first ones of the rollout still mount the claim."""
    assert fleet.serving("vllm:2") == 2 == len(fleet.consumers()) and not fleet.held()
    assert (
        fleet.server.get(*CACHE) is None and not fleet.world.jobs() and not fleet.promises.deleted
    )
    fleet.serve(replicas=0)
    fleet.settle(FAR)
    assert fleet.server.get(*CLAIM_PLACE) is None and not fleet.server.list(
        "v1", "ConfigMap", "inference"
    )


@dataclass(frozen=True)
class Journey:
    begins: Callable[[], Fleet]
    steps: int
    ends: Callable[[Fleet], None]


JOURNEYS = {
    "a pre-warmed rollout": Journey(rolls_out, 7, rolled_out_warm),
    "a rollout that waits for a proof": Journey(is_to_be_proven, 9, rolled_out_proven),
    "a rollout whose bundle fails its proof": Journey(is_not_reproducible, 9, rolled_out_unproven),
    "a hold that times out": Journey(hangs, 5, rolled_out_cold),
    "a rescue": Journey(cannot_mount, 5, rescued),
    "a cache deleted under a hold": Journey(loses_its_cache, 2, gone),
}


@cache
def calls(name: str) -> tuple[str, ...]:
    """What an undisturbed controller calls until nothing is left to be done."""
    fleet = JOURNEYS[name].begins()
    fleet.controller = fleet.client()
    for _ in range(JOURNEYS[name].steps):
        step(fleet)
    found = tuple(fleet.controller.calls)
    finish(fleet, name)
    fleet.close()
    return found


def finish(fleet: Fleet, name: str) -> None:
    fleet.settle(1500)
    JOURNEYS[name].ends(fleet)
    fleet.promises.at_rest()
    fleet.laws.check()


def numbers(name: str) -> list[int]:
    """Every call that writes, and the first of each look: a look that ends at a later read has done nothing either."""
    return [
        at
        for at, words in enumerate(calls(name), 1)
        if words.split()[0] not in ("list", "get", "event") or FIRST in words
    ]


def test_the_journeys_make_the_calls_that_they_are_about() -> None:
    assert any(one.startswith("patch Pod") for one in calls("a pre-warmed rollout"))
    assert any(one.startswith("patch Pod") for one in calls("a hold that times out"))
    assert any(one.startswith("delete Pod") for one in calls("a rescue"))
    assert any(one.startswith("patch Pod") for one in calls("a cache deleted under a hold"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_controller_killed_at_any_call_leaves_nobody_behind(name: str, when: str) -> None:
    for number in sample(numbers(name)):
        fleet = JOURNEYS[name].begins()
        fleet.controller = fleet.client(faults=Faults(crash_at=(number, when)))
        for _ in range(JOURNEYS[name].steps):
            step(fleet)
        assert fleet.killed == 1, f"call {number} was not made"
        finish(fleet, name)
        fleet.close()


@pytest.mark.parametrize("effect", ["refused", "lost"])
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_call_that_fails_is_made_again_for_consumers_too(name: str, effect: str) -> None:
    for number in sample(numbers(name)):
        error = ERRORS[number % len(ERRORS)]
        if calls(name)[number - 1].startswith("create Job") and isinstance(error, ApiError):
            error = (
                TimeoutError()
            )  # an ApiError is a refusal: who comes until the next try is not held (test_holds.py)
        if (
            calls(name)[number - 1].startswith("patch Pod")
            and isinstance(error, ApiError)
            and error.code == 409
        ):
            error = TimeoutError()  # a conflict says that the pod is another one by now
        fleet = JOURNEYS[name].begins()
        faults = (
            Faults(lost_answers={number: error})
            if effect == "lost"
            else Faults(errors={number: error})
        )
        fleet.controller = fleet.client(faults=faults)
        for _ in range(JOURNEYS[name].steps):
            step(fleet)
        finish(fleet, name)
        fleet.close()


@pytest.mark.parametrize("name", JOURNEYS)
def test_an_old_leader_that_goes_on_late_holds_up_nobody(name: str) -> None:
    for number in sample(numbers(name)):
        fleet = JOURNEYS[name].begins()
        old = fleet.client("old leader", pause_before=number)
        for _ in range(JOURNEYS[name].steps):
            if not fleet.late:
                fleet.lead(old)
                fleet.world.run()
                fleet.clock.advance(LATER)
                fleet.world.run()
        step(fleet)
        step(fleet)
        fleet.go_on()
        finish(fleet, name)
        fleet.close()


def test_an_old_leaders_late_rescue_deletes_no_pod_that_has_started_meanwhile() -> None:
    name = "a rescue"
    number = next(at for at, words in enumerate(calls(name), 1) if words.startswith("delete Pod"))
    fleet = JOURNEYS[name].begins()
    old = fleet.client("old leader", pause_before=number)
    while not fleet.late:
        fleet.lead(old)
        fleet.world.run()
        fleet.clock.advance(LATER)
    fleet.world.unmountable.clear()
    fleet.world.run()
    fleet.clock.advance(LATER)
    fleet.world.run()
    deleted = list(fleet.promises.deleted)
    assert fleet.serving() == 4, "the mount was mended before the rest was deleted"
    fleet.go_on()
    fleet.settle(1500)
    assert fleet.serving() == 4 and fleet.promises.deleted == deleted
