"""spec.verify: no pod is given a bundle before the engine was started from it once; what becomes of those that are no good."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.names import FAILED, PROOF, PROVING, RETIRED, SEALED, TUNING
from pretune.api.types import Object
from pretune.policy.bundles.retries import REMEMBERED_SECONDS

from tests.sim.fleet import Fleet
from tests.sim.simulation import FAR, Simulation
from tests.sim.steps import held, only_record, reason, replaced, rolled_out, sealed, until

ASKED: dict[str, Any] = {"verify": "BeforeRelease"}


def proving(sim: Simulation) -> Object:
    """The pod of the running proof, once its engine starts."""
    sim.settle(FAR, until=lambda: bool(sim.world.proofs) and sim.records[0]["state"] == PROVING)
    return max(sim.world.pods(PROOF), key=lambda pod: pod["metadata"]["uid"])


def test_a_sealed_bundle_is_proven_before_it_counts(sim: Simulation) -> None:
    sim.deploy()
    sim.apply(**ASKED)
    until(sim, "Proving")
    assert sim.ready == ("False", "Proving") and sim.condition("Reconciling")[0] == "True"
    assert sim.status["summary"] == {"bundles": "0/1", "entries": 0}
    sim.settle()
    record = only_record(sim)
    assert (record["state"], record["proven"], record["proofs"], record["newEntries"]) == (
        SEALED,
        True,
        1,
        0,
    )
    assert (record["coldSeconds"], record["warmSeconds"], record["gpus"]) == (40, 5, 1)
    assert (
        sim.message()
        == "20 entries, proven: the engine started from them in 5 s instead of 40 s and tuned nothing new"
    )
    assert sim.engine_starts == 1 and len(sim.world.proofs) == 1
    assert next(iter(sim.world.volumes.values())).proofs == {
        ("inference.qwen3", record["id"]): record["digest"]
    }
    before = len(sim.writes())
    sim.settle(3000)
    assert sim.writes()[before:] == [], "an idle cache costs no write"


def test_a_rollout_waits_for_the_proof_and_starts_warm(fleet: Fleet) -> None:
    held(fleet, spec=ASKED)
    fleet.settle(until=lambda: any(one["state"] == PROVING for one in fleet.records))
    assert fleet.held("vllm:2")
    fleet.settle()
    replaced(fleet, "vllm:2")
    assert fleet.warm("vllm:2") == [True] * 3 and len(fleet.world.proofs) == 2


FAULTS: dict[str, dict[str, Any]] = {
    "NotReproducible": {"tunes_again": True},
    "WarmHang": {"warm_hangs": True},
    "WarmCrash": {"warm_crashes": 4},  # each proof starts a second time
}
TRIED = {"NotReproducible": 1, "WarmHang": 2, "WarmCrash": 2}
WORDS = {
    "NotReproducible": "2 new entries (fused_moe 2)",
    "WarmHang": "its cold start took 40 s",
    "WarmCrash": "exit code 1: RuntimeError: CUDA error: out of memory",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_that_fails_its_proof_is_given_to_no_pod_a_held_one_included(
    fleet: Fleet, fault: str
) -> None:
    rolled_out(fleet, spec=ASKED)
    for name, value in FAULTS[fault].items():
        setattr(fleet.world, name, value)
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")
    assert fleet.warm("vllm:2") == [False] * 3, "the held one too starts cold"
    record = next(one for one in fleet.records if one["state"] == FAILED)
    assert (record["reason"], record["proofs"]) == (fault, TRIED[fault]) and "proven" not in record
    assert WORDS[fault] in record["message"] and "no pod is given this bundle" in record["message"]
    assert record.get("newEntries", 0) == (2 if fault == "NotReproducible" else 0)
    assert fleet.ready == ("False", fault) and fleet.condition("Stalled") == ("True", fault)
    assert fault in fleet.said("Released")[-1]
    fleet.serve("vllm:2", replicas=5)
    fleet.settle()
    assert "TuningFailed" in fleet.reasons("vllm:2") and "Given" not in fleet.reasons("vllm:2")
    proofs = {start.pod for start in fleet.world.proofs}
    assert fleet.warm("vllm:2") == [False] * 5 and len(proofs) == 1 + TRIED[fault], (
        "never tried again"
    )
    fleet.world.tunes_again, fleet.world.warm_hangs = False, False
    fleet.apply(revision="again")
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed") and fleet.record["proven"]


def test_a_failed_bundles_folder_goes_once_nothing_wants_it(sim: Simulation) -> None:
    sim.world.tunes_again = True
    sim.deploy()
    sim.apply(**ASKED)
    until(sim, "NotReproducible")
    bad = only_record(sim)["id"]
    sim.world.tunes_again = False
    sim.deploy("vllm:2")
    sim.settle(FAR)
    assert next(one for one in sim.records if one["id"] == bad)["state"] == FAILED
    before = len(sim.world.proofs)
    sim.deploy("vllm:1")
    sim.settle()
    assert sim.ready == ("False", "NotReproducible") and len(sim.world.proofs) == before, (
        "back within a week it is as bad as before"
    )
    sim.deploy("vllm:2")
    sim.settle()
    sim.clock.advance(REMEMBERED_SECONDS)
    sim.settle(FAR)
    assert bad not in sim.on_claim() and [one["state"] for one in sim.records] == [SEALED]


@pytest.mark.parametrize(
    "spoil",
    ["pull", "silent", "evict", "delete_pod", "kill_node", "pressure", "vanish", "unseeded"],
)
def test_what_is_not_the_bundles_fault_is_tried_again(sim: Simulation, spoil: str) -> None:
    sim.deploy()
    sim.apply(**ASKED)
    if spoil == "unseeded":
        sim.world.seed_says = "NoSpace"
    if spoil == "silent":
        sim.world.prove_says = ["the engine is ready and still writes into its folder"]
    if spoil not in ("silent", "unseeded"):
        pod = proving(sim)
    if spoil == "pull":
        sim.world.cannot_pull.add("vllm:1")
        sim.world.evict(pod)
        until(sim, "Retrying")
        assert "ImagePullFailed" in sim.message()
        sim.world.cannot_pull.clear()
    elif spoil not in ("silent", "unseeded", "vanish"):
        getattr(sim.world, spoil)(pod)
    elif spoil == "vanish":
        sim.down()
        sim.clock.advance(10)
        sim.world.run()
        for one in sim.world.pods(PROOF):
            sim.world.vanish(one)
        sim.come_up()
    if spoil == "unseeded":
        until(sim, "Retrying")
        assert "NoSpace" in sim.message()
        sim.world.seed_says = ""
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and only_record(sim)["proven"], (
        sim.ready,
        sim.message(),
    )
    assert sim.engine_starts == 1 and only_record(sim)["proofs"] <= 2


def test_reports_that_are_lost_twice_are_two_questions(sim: Simulation) -> None:
    """The first proof could not tell, the second is on the claim: an older answer is none to the newer question."""
    sim.world.prove_says = ["the engine is ready and still writes"]
    sim.deploy()
    sim.apply(**ASKED)
    for number in (1, 2):
        sim.settle(FAR, until=lambda number=number: len(sim.world.proofs) == number)  # type: ignore[misc]
        sim.down()
        sim.clock.advance(10)
        sim.world.run()
        for one in sim.world.pods(PROOF):
            sim.world.vanish(one)
        sim.come_up()
        if number == 1:
            until(sim, "Retrying")
            assert "ReportLost" in sim.message() and "no proof of this bundle" in sim.message()
    sim.settle(FAR)
    assert (
        sim.ready == ("True", "Sealed")
        and only_record(sim)["proven"]
        and len(sim.world.proofs) == 2
    )


def test_attempts_run_out(sim: Simulation) -> None:
    sim.world.prove_says = ["one", "two", "three"]
    sim.deploy()
    sim.apply(**ASKED)
    sim.settle(FAR)
    assert sim.ready == ("False", "ProofFailed") and "proof 3 of 3: three" in sim.message()
    assert len(sim.world.proofs) == 3
    sim.apply(verify="Never")
    sim.settle()
    assert sim.ready == ("True", "Sealed") and "not proven" in sim.message()


def test_verify_is_switched_on_and_off(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.apply(**ASKED)
    fleet.settle(until=lambda: fleet.records[0]["state"] == PROVING)
    assert reason(fleet) == "Proving"
    fleet.serve(replicas=4)
    fleet.reconcile()
    fleet.apply(verify="Never")
    fleet.settle()
    assert fleet.ready == ("True", "Sealed") and "proven" not in fleet.record and not _live(fleet)
    fleet.apply(**ASKED)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed") and fleet.record["proven"]
    fleet.apply(verify="Never")
    fleet.settle(FAR)
    assert fleet.record["proven"] and fleet.ready == ("True", "Sealed")


def test_a_proof_of_what_nothing_wants_is_ended_and_its_target_freed(sim: Simulation) -> None:
    sim.world.warm_hangs = True
    sim.deploy()
    sim.apply(**ASKED)
    proving(sim)
    sim.world.warm_hangs = False
    sim.deploy("vllm:2")
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.record["proven"] and sim.engine_starts == 2
    old = next(one for one in sim.records if one["id"] != sim.record["id"])
    assert old["state"] == RETIRED and "lastFailure" not in old
    sim.deploy("vllm:1")
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.record["proven"] and sim.engine_starts == 2


def test_suspend_begins_no_proof(sim: Simulation) -> None:
    sealed(sim)
    sim.apply(suspend=True, **ASKED)
    sim.settle()
    assert sim.ready == ("False", "Suspended") and not sim.world.proofs
    sim.apply(suspend=False)
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.record["proven"]


def test_a_proof_is_found_on_the_claim(sim: Simulation) -> None:
    sealed(sim, **ASKED)
    sim.settle(FAR)
    sim.wipe_status()
    sim.settle(FAR)
    assert (
        sim.ready == ("True", "Sealed")
        and only_record(sim)["proven"]
        and len(sim.world.proofs) == 1
    )


def test_a_status_that_is_lost_while_a_proof_runs_costs_no_second_one(sim: Simulation) -> None:
    sim.deploy()
    sim.apply(**ASKED)
    proving(sim)
    sim.wipe_status()
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and only_record(sim)["proven"]
    assert len(sim.world.proofs) == 1 and sim.engine_starts == 1


def test_the_empty_bundle_needs_no_proof(sim: Simulation) -> None:
    sim.world.layout = "Empty"
    sim.deploy()
    sim.apply(**ASKED)
    sim.settle()
    assert sim.ready == ("True", "NothingToTune") and not sim.world.proofs


def test_targets_are_proven_one_after_another(sim: Simulation) -> None:
    targets = [{"name": one, "nodeSelector": {"nvidia.com/gpu.product": one}} for one in ("a", "b")]
    sim.deploy()
    sim.apply(targets=targets, **ASKED)
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and all(one["proven"] for one in sim.records)
    assert len(sim.world.proofs) == 2 == sim.engine_starts


def _live(sim: Simulation) -> list[Object]:
    return [
        pod
        for role in (TUNING, PROOF)
        for pod in sim.world.pods(role)
        if pod["status"]["phase"] in ("Pending", "Running")
    ]
