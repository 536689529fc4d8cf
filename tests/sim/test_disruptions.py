"""Journeys of pods that are evicted, refused or find no node."""

from __future__ import annotations

import pytest
from pretune.api.names import FAILED, SEALED

from tests.sim.simulation import FAR, Simulation
from tests.sim.steps import only_record, reason, started, tuning_pod, until

# --- disruptions


def test_evicted_pods_are_replaced_without_counting_as_attempts(sim: Simulation) -> None:
    started(sim)
    for _ in range(3):
        until(sim, "Tuning")
        sim.world.evict(tuning_pod(sim))
        sim.reconcile()
        assert reason(sim) == "WaitingForPod"
    sim.settle()
    record = only_record(sim)
    assert record["state"] == SEALED and record["attempts"] == 1 and sim.engine_starts == 4
    assert len([one for one in sim.writes("Job", "create") if f"-{record['id']}-" in one]) == 1


def test_the_sixth_disruption_ends_the_attempt(sim: Simulation) -> None:
    started(sim, tuning={"maxAttempts": 1})
    for _ in range(6):
        until(sim, "Tuning")
        sim.world.evict(tuning_pod(sim))
        sim.reconcile()
    sim.settle(FAR)
    assert only_record(sim)["reason"] == "Disrupted" and only_record(sim)["state"] == FAILED
    assert sim.engine_starts == 6 and not [
        pod for pod in sim.world.pods() if pod["status"]["phase"] == "Pending"
    ]


@pytest.mark.parametrize("fault", ["evict", "pressure"])
@pytest.mark.parametrize("published", [False, True])
def test_a_pod_that_is_evicted_while_sealing_leaves_one_bundle_sealed(
    sim: Simulation, fault: str, published: bool
) -> None:
    started(sim)
    until(sim, "Sealing")
    if published:
        sim.settle(until=lambda: bool(sim.on_claim()))
    getattr(sim.world, fault)(tuning_pod(sim))
    if not published:
        until(sim, "Tuning")  # of the next pod: that a killed one is still there does not hide it
    sim.settle(FAR)
    record = only_record(sim)
    assert record["state"] == SEALED and record["attempts"] == 1 and len(sim.world.published) == 1
    assert sim.engine_starts == (1 if published else 2)


def test_a_pod_whose_node_is_gone_ends_its_attempt_after_ten_minutes_and_another_node_is_tried(
    sim: Simulation,
) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.world.kill_node(tuning_pod(sim))
    at = sim.clock.now
    sim.settle(590)
    assert reason(sim) == "WaitingForPod" and sim.engine_starts == 1
    until(sim, "Retrying")
    assert "NodeLost" in sim.message() and sim.clock.now - at >= 600
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2


def test_a_quotas_words_are_in_the_condition_until_the_pod_can_be_made(sim: Simulation) -> None:
    sim.world.quota = "exceeded quota: gpus, requested: nvidia.com/gpu=1, used: 8, limited: 8"
    started(sim).settle()
    assert reason(sim) == "PodRefused" and "exceeded quota: gpus" in sim.message()
    before = len(sim.writes())
    sim.settle(3000)
    assert len(sim.writes()) == before, "what does not change is not written again"
    sim.world.quota = ""
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["attempts"] == 1


def test_no_free_gpu_is_said_in_the_schedulers_words(sim: Simulation) -> None:
    sim.world.free_gpus = False
    started(sim).settle()
    assert reason(sim) == "WaitingForNode" and "Insufficient nvidia.com/gpu" in sim.message()
    sim.world.free_gpus = True
    sim.settle()
    assert sim.ready == ("True", "Sealed")
