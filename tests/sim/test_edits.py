"""Journeys of edits: the source changes, tuning is suspended, while a bundle is made."""

from __future__ import annotations

from pretune.api.names import BUNDLE, TUNING

from tests.sim.simulation import FAR, Simulation
from tests.sim.steps import only_record, reason, sealed, started, until
from tests.sim.world import KUEUE

# --- edits


def test_a_source_that_changes_while_it_is_tuned_gives_its_gpu_back_and_only_the_new_one_is_sealed(
    sim: Simulation,
) -> None:
    started(sim)
    until(sim, "Tuning")
    old = only_record(sim)["id"]
    sim.deploy(image="vllm:2")
    sim.settle(
        30,
        until=lambda: (
            not [p for p in sim.world.pods(TUNING) if p["metadata"]["labels"][BUNDLE] == old]
        ),
    )
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["id"] != old
    assert list(sim.on_claim()) == [only_record(sim)["id"]]


def test_a_source_that_goes_back_while_the_new_one_is_tuned_finds_its_bundle(
    sim: Simulation,
) -> None:
    first = only_record(sealed(sim))["id"]
    sim.deploy(image="vllm:2")
    until(sim, "Tuning")
    sim.deploy(image="vllm:1")
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.status["summary"]["bundles"] == "1/1"
    assert list(sim.on_claim()) == [first] and [one["id"] for one in sim.records] == [first]


def test_an_edit_there_and_back_while_tuning_ends_in_one_sealed_bundle(sim: Simulation) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.deploy(image="vllm:2")
    sim.reconcile()
    sim.deploy(image="vllm:1")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and len(sim.on_claim()) == 1


def test_suspend_starts_nothing_and_a_running_attempt_ends_by_itself(sim: Simulation) -> None:
    started(sim, suspend=True).settle()
    assert reason(sim) == "Suspended" and not sim.world.jobs()
    sim.apply(suspend=False)
    until(sim, "Tuning")
    sim.apply(suspend=True)
    sim.settle()
    assert sim.ready == ("True", "Sealed")
    sim.deploy(image="vllm:2")
    sim.settle()
    assert reason(sim) == "Suspended" and sim.engine_starts == 1


def test_a_job_that_kueue_suspends_is_queued_until_it_is_admitted(sim: Simulation) -> None:
    sim.world.kueue = True
    started(sim, tuning={"podTemplate": {"metadata": {"labels": {KUEUE: "gpus"}}}}).settle(FAR)
    assert reason(sim) == "Queued" and "suspended" in sim.message() and not sim.world.pods()
    sim.server.patch(sim.world.jobs(TUNING)[0], {"spec": {"suspend": False}})
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_suspended_job_that_nothing_wants_any_more_is_deleted(sim: Simulation) -> None:
    sim.world.kueue = True
    started(sim, tuning={"podTemplate": {"metadata": {"labels": {KUEUE: "gpus"}}}}).settle()
    old = sim.world.jobs(TUNING)[0]["metadata"]["name"]
    sim.deploy(image="vllm:2")
    sim.settle()
    assert [job["metadata"]["name"] for job in sim.world.jobs(TUNING)] != [old]
    assert len(sim.world.jobs(TUNING)) == 1 and reason(sim) == "Queued"
