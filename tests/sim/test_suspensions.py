"""Journeys of attempts and proofs whose Jobs a queue suspends, and of pods that a person deletes: they cost time only."""

from __future__ import annotations

import random

import pytest
from pretune.api.names import PROOF, SEALED, TUNING
from pretune.api.types import Object

from tests.sim.reading import leaving, over
from tests.sim.simulation import FAR, Simulation
from tests.sim.steps import only_record, reason, sealed, started, tuning_pod, until

PREEMPTED = "Preempted to accommodate a workload due to prioritization in the ClusterQueue"
ONCE = {"maxAttempts": 1}


def job_of(sim: Simulation, role: str = TUNING) -> Object:
    return next(job for job in sim.world.jobs(role) if not over(job))


@pytest.mark.parametrize("stage", ["Pulling", "Checking", "Tuning", "Sealing"])
def test_a_suspended_attempt_is_queued_and_goes_on_when_it_is_resumed(
    sim: Simulation, stage: str
) -> None:
    started(sim, tuning=ONCE)
    until(sim, stage)
    sim.world.suspend(job_of(sim), PREEMPTED)
    sim.settle()
    assert reason(sim) == "Queued" and PREEMPTED in sim.message(), sim.message()
    assert not sim.world.pods(TUNING)
    sim.world.resume(job_of(sim))
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and only_record(sim)["attempts"] == 1
    assert sim.engine_starts == (2 if stage in ("Tuning", "Sealing") else 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("role", [TUNING, PROOF])
def test_fifty_suspensions_at_random_moments_cost_time_and_nothing_else(
    sim: Simulation, role: str, seed: int
) -> None:
    chance = random.Random(seed)
    sim.pace = chance.choice([0.0, 1.0])
    started(sim, tuning=ONCE, verify="BeforeRelease")
    if role == PROOF:
        sim.settle(FAR, until=lambda: bool(sim.world.jobs(PROOF)))
    for _ in range(50):
        within = sim.clock.now + chance.uniform(0.0, 30.0 if role == TUNING else 4.0)
        sim.settle(FAR, until=lambda at=within: sim.clock.now >= at)  # type: ignore[misc]
        sim.world.suspend(job_of(sim, role))
        sim.settle(chance.uniform(0.0, 4.0))
        sim.world.resume(job_of(sim, role))
    sim.settle(FAR)
    record = only_record(sim)
    assert sim.ready == ("True", "Sealed") and record["proven"], sim.message()
    assert (record["attempts"], record["proofs"]) == (1, 1)
    assert len(sim.world.published) == 1


def test_suspensions_are_no_disruptions_though_no_controller_saw_them(sim: Simulation) -> None:
    started(sim, tuning=ONCE)
    for _ in range(8):
        until(sim, "Tuning")
        sim.down()
        sim.world.suspend(job_of(sim))
        sim.world.run()
        sim.clock.advance(5)
        sim.world.resume(job_of(sim))
        sim.world.run()
        sim.come_up()
    sim.settle(FAR)
    assert only_record(sim)["state"] == SEALED and only_record(sim)["attempts"] == 1


@pytest.mark.parametrize("role", [TUNING, PROOF])
def test_a_pod_that_a_person_deletes_is_no_failed_attempt(sim: Simulation, role: str) -> None:
    started(sim, tuning=ONCE, verify="BeforeRelease")
    for _ in range(3):
        sim.settle(FAR, until=lambda: any("running" in str(pod) for pod in sim.world.pods(role)))
        [pod] = [pod for pod in sim.world.pods(role) if pod["status"]["phase"] != "Succeeded"]
        sim.world.delete_pod(pod)
        sim.settle(60, until=lambda uid=pod["metadata"]["uid"]: all(  # type: ignore[misc]
            each["metadata"]["uid"] != uid for each in sim.world.pods(role)))  # fmt: skip
    sim.settle(FAR)
    record = only_record(sim)
    assert sim.ready == ("True", "Sealed") and record["proven"], sim.message()
    assert (record["attempts"], record["proofs"]) == (1, 1)


def test_pods_that_are_deleted_again_and_again_end_the_attempt(sim: Simulation) -> None:
    started(sim, tuning=ONCE)
    for _ in range(6):
        until(sim, "Tuning")
        sim.world.delete_pod(tuning_pod(sim))
        sim.settle(20)
    sim.settle(FAR)
    assert only_record(sim)["reason"] == "Disrupted" and sim.engine_starts == 6


def test_the_pod_of_a_job_of_ours_that_was_deleted_is_nobody_elses(sim: Simulation) -> None:
    """A suspended attempt is superseded, and wanted again before its pod has ended."""
    started(sim)
    until(sim, "Tuning")
    sim.world.suspend(job_of(sim))
    sim.settle(until=lambda: leaving(tuning_pod(sim)))
    for image in ("vllm:2", "vllm:1"):
        sim.deploy(image)
        sim.reconcile()
    sim.reconcile()
    assert reason(sim) == "WaitingForPod" and "its Job is gone" in sim.message(), sim.message()
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed")


def test_a_sealed_bundle_stays_sealed_when_its_finished_job_is_suspended(sim: Simulation) -> None:
    sealed(sim)
    sim.world.suspend(sim.world.jobs(TUNING)[0])
    sim.settle(60)
    assert sim.ready == ("True", "Sealed")
