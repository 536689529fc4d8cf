"""Journeys of bundles whose failures outlive their pods, and of what begins anew with them."""

from __future__ import annotations

import pytest
from pretune.api.names import FAILED, REFUSED, RETRY
from pretune.api.types import Object
from pretune.policy.bundles.retries import REMEMBERED_SECONDS

from tests.sim.fleet import Fleet
from tests.sim.simulation import CACHE, FAR, named
from tests.sim.steps import only_record, scaled_to_zero_and_back

FOREVER = 1000  # crashes of an engine


def failed(fleet: Fleet) -> int:
    """A workload whose engine cannot start; return how often it was started to be tuned."""
    fleet.world.engine_crashes = FOREVER
    fleet.serve()
    fleet.apply(source=None, hold={"when": "Never"})
    fleet.settle(FAR)
    assert fleet.ready == ("False", "EngineFailed") and only_record(fleet)["attempts"] == 3
    return len(fleet.world.starts)


def test_a_failure_outlives_its_pods_and_ends_a_week_after_the_bundle_was_last_wanted(
    fleet: Fleet,
) -> None:
    before = failed(fleet)
    scaled_to_zero_and_back(fleet)
    assert len(fleet.world.starts) == before and "unwantedSince" not in only_record(fleet)
    fleet.serve(replicas=0)
    fleet.settle(900)
    assert only_record(fleet)["state"] == FAILED and "unwantedSince" in only_record(fleet)
    fleet.clock.advance(REMEMBERED_SECONDS)
    fleet.settle(900)
    assert not fleet.records
    fleet.world.engine_crashes = 0
    fleet.serve(replicas=3)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed")


def test_attempts_that_failed_before_the_last_one_count_too(fleet: Fleet) -> None:
    fleet.world.engine_crashes = FOREVER
    fleet.serve()
    fleet.apply(source=None, hold={"when": "Never"})
    fleet.settle(FAR, until=lambda: bool(fleet.records) and fleet.ready[1] == "Retrying")
    before = len(fleet.world.starts)
    scaled_to_zero_and_back(fleet)
    record = only_record(fleet)
    assert (record["state"], record["attempts"]) == (FAILED, 3)
    again = len(fleet.world.starts) - before
    scaled_to_zero_and_back(fleet)
    assert len(fleet.world.starts) == before + again


@pytest.mark.parametrize(
    "change",
    [
        lambda fleet: fleet.apply(tuning={"deadlineSeconds": 3000}),
        lambda fleet: fleet.apply(revision="2"),
        lambda fleet: fleet.server.patch(
            named(CACHE), {"metadata": {"annotations": {RETRY: "after the driver update"}}}
        ),
    ],
    ids=["spec.tuning", "spec.revision", "the annotation"],
)
@pytest.mark.parametrize("scaled", [False, True], ids=["wanted", "scaled to zero meanwhile"])
def test_what_failed_begins_anew_with(fleet: Fleet, change: object, scaled: bool) -> None:
    assert callable(change)
    before = failed(fleet)
    fleet.world.engine_crashes = 0
    if scaled:
        fleet.serve(replicas=0)
        fleet.settle(900)
    change(fleet)
    fleet.settle(900)
    fleet.serve(replicas=3)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed") and len(fleet.world.starts) == before + 1
    assert fleet.record["attempts"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"hold": {"when": "Always"}, "bundleHistoryLimit": 5},
        {"tuning": {"nodeWaitSeconds": 60}},
        {"tuning": {"maxAttempts": 2}},
        {"tuning": {"deadlineSeconds": 5400, "allow": [], "podTemplate": {"spec": {}}}},
    ],
    ids=["holds", "how long pods are held", "fewer attempts", "what is the default"],
)
def test_another_change_of_the_spec_costs_no_attempt(fleet: Fleet, change: Object) -> None:
    before = failed(fleet)
    fleet.apply(**change)
    fleet.settle(FAR)
    assert len(fleet.world.starts) == before


def test_what_check_has_refused_is_remembered(fleet: Fleet) -> None:
    fleet.world.check_says = [("NoPython", "the image has no python3")]
    fleet.serve()
    fleet.apply(source=None)
    fleet.settle(FAR)
    assert only_record(fleet)["state"] == REFUSED
    jobs = len(fleet.writes("Job", "create"))
    scaled_to_zero_and_back(fleet)
    assert only_record(fleet)["state"] == REFUSED and len(fleet.writes("Job", "create")) == jobs


def test_failures_of_several_bundles_are_remembered(fleet: Fleet) -> None:
    fleet.world.engine_crashes = FOREVER
    fleet.apply(source=None, hold={"when": "Never"}, tuning={"maxAttempts": 1})
    for number in range(3):
        fleet.serve(f"vllm:{number}")
        fleet.settle(FAR)
    assert len(fleet.records) == 3 and {one["state"] for one in fleet.records} == {FAILED}
