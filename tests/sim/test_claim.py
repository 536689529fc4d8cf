"""Journeys that lose something: the claim is the truth, and the status only remembers it."""

from __future__ import annotations

import pytest
from pretune.api.names import CACHE, INSPECT, TUNING
from pretune.api.types import Object
from pretune.manifests.job import attempt_name

from tests.builders.constants import KEY
from tests.sim.simulation import CLAIM, FAR, Simulation, named
from tests.sim.steps import (
    CLAIM_PLACE,
    a_claim,
    only_record,
    reason,
    sealed,
    started,
    tuning_pod,
    until,
)

# --- the claim is the truth


def test_a_wiped_status_is_read_back_from_the_claim_and_nothing_is_tuned(sim: Simulation) -> None:
    before = only_record(sealed(sim))
    sim.settle(FAR)  # its Job has outlived its ttl
    assert not sim.world.jobs()
    sim.wipe_status()
    sim.settle()
    after = only_record(sim)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1
    assert {
        name: after[name]
        for name in ("id", "digest", "sealedAt", "entries", "environment", "writer")
    } == {
        name: before[name]
        for name in ("id", "digest", "sealedAt", "entries", "environment", "writer")
    }
    assert not sim.world.jobs(INSPECT) and not sim.laws.wasted
    sim.deploy(image="vllm:2")
    sim.settle()
    assert sim.ready == ("True", "Sealed")
    assert len([one for one in sim.writes("Job", "create") if INSPECT in one]) == 1, (
        "a claim is read once"
    )


def test_a_status_wiped_while_tuning_goes_on_with_the_same_attempt(sim: Simulation) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.wipe_status()
    sim.settle()
    assert (
        sim.ready == ("True", "Sealed")
        and sim.engine_starts == 1
        and only_record(sim)["attempts"] == 1
    )


def test_a_cache_made_again_on_a_retained_claim_adopts_what_is_there(sim: Simulation) -> None:
    digest = only_record(sealed(sim, storage={"claim": {"whenDeleted": "Retain"}}))["digest"]
    sim.delete()
    sim.settle()
    assert sim.server.get(*CLAIM_PLACE) is not None
    sim.apply(storage={"claim": {"whenDeleted": "Retain"}})
    sim.settle()
    assert (
        sim.ready == ("True", "Sealed")
        and only_record(sim)["digest"] == digest
        and sim.engine_starts == 1
    )


def test_a_cache_made_again_while_the_old_ones_pod_still_ends_waits_and_is_sealed(
    sim: Simulation,
) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.delete()
    sim.apply()
    sim.reconcile()
    assert reason(sim) == "NameTaken"
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and len(sim.on_claim()) == 1


def test_a_job_of_another_owner_that_has_the_attempts_name_is_said_and_waited_for(
    sim: Simulation,
) -> None:
    started(sim)
    name = attempt_name(KEY.name, sim.wanted()[0], 1)
    meta = {"namespace": KEY.namespace, "name": name, "labels": {"app": "other"}}
    sim.server.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {}})
    sim.settle()
    assert sim.ready == ("False", "NameTaken") and name in sim.message() and not sim.world.pods()
    sim.delete(("batch/v1", "Job", KEY.namespace, name))
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["attempts"] == 1


def test_a_cache_made_again_waits_for_the_old_ones_pod_on_a_lost_node(sim: Simulation) -> None:
    started(sim, storage={"claim": {"whenDeleted": "Retain"}})
    until(sim, "Tuning")
    lost = tuning_pod(sim)
    sim.world.kill_node(lost)
    sim.delete()
    sim.apply(storage={"claim": {"whenDeleted": "Retain"}})
    sim.settle(590)
    assert (
        sim.ready == ("False", "Queued")
        and lost["metadata"]["name"] in sim.message()
        and sim.engine_starts == 1
    )
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2


def test_a_report_that_nobody_read_is_found_on_the_claim(sim: Simulation) -> None:
    started(sim)
    until(sim, "Sealing")
    sim.world.run()  # the controller is away: seal ends, the Job is Complete
    sim.world.vanish(tuning_pod(sim))
    assert not sim.world.pods()
    sim.settle()
    assert (
        sim.ready == ("True", "Sealed")
        and sim.engine_starts == 1
        and only_record(sim)["attempts"] == 1
    )


def test_a_report_that_nobody_read_of_an_attempt_that_failed_is_tried_again(
    sim: Simulation,
) -> None:
    sim.world.engine_crashes = 0
    started(sim)
    until(sim, "Tuning")
    pod = tuning_pod(sim)
    sim.world.delete_pod(pod)
    sim.world.run()
    assert not sim.world.pods(TUNING)
    until(sim, "Retrying")
    assert "ReportLost" in sim.message()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["attempts"] == 2


def test_an_inspect_that_cannot_answer_holds_nobody_up_for_ever(sim: Simulation) -> None:
    sealed(sim)
    sim.settle(FAR)
    sim.world.inspect_silent = True
    sim.wipe_status()
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1, (
        "check has looked before the engine started"
    )


def test_a_claim_that_a_person_deleted_is_made_anew_and_tuned_anew(sim: Simulation) -> None:
    sealed(sim)
    first = sim.world.claim_uid(KEY.namespace, CLAIM)
    sim.delete(CLAIM_PLACE)
    sim.reconcile()
    assert (
        sim.condition("StorageReady") == ("False", "ClaimTerminating") and reason(sim) != "Sealed"
    )
    sim.settle()  # it does not wait for the ttl of the Job that made the bundle
    assert sim.world.claim_uid(KEY.namespace, CLAIM) not in ("", first)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2
    assert only_record(sim)["digest"] == sim.on_claim()[only_record(sim)["id"]].digest


def test_an_existing_claim_is_awaited_inspected_and_used(sim: Simulation) -> None:
    started(
        sim, storage={"existingClaim": {"name": "shared", "subPath": "pretune"}, "claim": None}
    ).settle()
    assert sim.ready == ("False", "ClaimNotFound") and "shared" in sim.message()
    a_claim(sim, "shared")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and list(sim.on_claim("shared")) == [
        only_record(sim)["id"]
    ]
    sim.delete()
    sim.settle(FAR)
    assert sim.server.get("v1", "PersistentVolumeClaim", KEY.namespace, "shared") is not None
    sim.apply(storage={"existingClaim": {"name": "shared", "subPath": "pretune"}})
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1


def other_place(sim: Simulation, where: str) -> tuple[Object, str]:
    """spec.storage elsewhere, and the claim's name there."""
    if where == "another claim":
        a_claim(sim, "larger")
        return {"existingClaim": {"name": "larger"}, "claim": None}, "larger"
    a_claim(sim, "shared")
    return {"existingClaim": {"name": "shared", "subPath": "second"}, "claim": None}, "shared"


@pytest.mark.parametrize("where", ["another claim", "another folder"])
@pytest.mark.parametrize("at", ["WaitingForPod", "Tuning", "Sealing", "Sealed", "EngineFailed"])
def test_storage_that_is_changed_at_any_step_holds_the_bundle_in_the_end(
    sim: Simulation, where: str, at: str
) -> None:
    storage, name = other_place(sim, where)
    first: Object = {"claim": {}}
    if where == "another folder":
        first = {"existingClaim": {"name": name, "subPath": "first"}}
    sim.world.engine_crashes = at == "EngineFailed"
    started(sim, storage=first, tuning={"maxAttempts": 1})
    until(sim, at)
    sim.apply(storage=storage)
    sim.reconcile()
    sim.reconcile()
    assert reason(sim) != "Sealed", "what is not there yet is not said to be"
    sim.settle(FAR)
    record = only_record(sim)
    folder = f"{KEY.namespace}.{KEY.name}"
    place = f"second/{folder}" if where == "another folder" else folder
    assert sim.ready == ("True", "Sealed"), sim.message()
    there = sim.world.bundles(KEY.namespace, name)[place, record["id"]]
    assert there.digest == record["digest"] and record["attempts"] == 1
    assert sim.engine_starts <= 2


def test_a_claim_that_cannot_be_read_is_not_believed_to_hold_what_another_one_held(
    sim: Simulation,
) -> None:
    sealed(sim)
    storage, name = other_place(sim, "another claim")
    sim.world.inspect_silent = True
    sim.apply(storage=storage)
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and only_record(sim)["id"] in sim.on_claim(name)


def test_a_foreign_claim_of_our_name_is_not_taken(sim: Simulation) -> None:
    a_claim(sim, CLAIM)
    started(sim).settle()
    assert sim.ready == ("False", "ClaimNotOurs") and not sim.world.jobs()
    sim.server.patch(named(CLAIM_PLACE), {"metadata": {"labels": {CACHE: KEY.name}}})
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed")
