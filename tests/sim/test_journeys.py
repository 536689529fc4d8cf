"""Plain journeys, one fault each: what happens to the cluster, and what the person reads meanwhile."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pretune.api import BUNDLE, CACHE, FAILED, INSPECT, PRUNE, REFUSED, RETIRED, SEALED, TUNING, Object
from pretune.cluster import ApiError
from pretune.manifests.agent import agent
from pretune.manifests.job import attempt_name
from pretune.model import seconds

from tests.sim.simulation import CACHE as THE_CACHE
from tests.sim.simulation import CLAIM, DEPLOYMENT, FAR, KEY, Simulation, template
from tests.sim.world import KUEUE

TWO = [
    {"name": "b200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}},
    {"name": "h200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
]
CLAIM_PLACE = ("v1", "PersistentVolumeClaim", KEY.namespace, CLAIM)


def started(sim: Simulation, **spec: Any) -> Simulation:
    sim.deploy()
    sim.apply(**spec)
    return sim


def sealed(sim: Simulation, **spec: Any) -> Simulation:
    started(sim, **spec).settle()
    assert sim.ready == ("True", "Sealed"), sim.message()
    return sim


def reason(sim: Simulation) -> str:
    return sim.ready[1]


def until(sim: Simulation, word: str) -> None:
    """Settle until Ready's reason is this word."""
    sim.settle(FAR, until=lambda: bool(sim.status) and reason(sim) == word)
    assert reason(sim) == word, (sim.ready, sim.message())


def tuning_pod(sim: Simulation) -> Object:
    """The newest."""
    return max(sim.world.pods(TUNING), key=lambda pod: pod["metadata"]["uid"])


def only_record(sim: Simulation) -> Object:
    assert len(sim.records) == 1, sim.records
    return sim.records[0]


# --- from apply to sealed


def test_a_cache_is_tuned_once_and_is_ready_and_then_nothing_is_written(sim: Simulation) -> None:
    sealed(sim)
    record = only_record(sim)
    assert record["state"] == SEALED and record["attempts"] == 1 and record["entries"] == 20
    assert record["digest"] == sim.on_claim()[record["id"]].digest
    assert record["engineImage"].startswith("registry.example/engine@sha256:")
    assert sim.status["summary"] == {"bundles": "1/1", "entries": 20}
    assert sim.status["observedGeneration"] == sim.cache["metadata"]["generation"]
    assert sim.condition("StorageReady") == ("True", "Bound")
    assert sim.condition("Reconciling")[0] == sim.condition("Stalled")[0] == "False"
    assert sim.engine_starts == 1 and len(sim.world.jobs()) == 1
    before = len(sim.writes())
    sim.settle(3000)
    sim.reconcile()
    assert len(sim.writes()) == before


def test_an_undisturbed_tuning_takes_three_objects_and_at_most_8_status_writes_though_every_event_is_reconciled(
    sim: Simulation,
) -> None:
    sealed(sim)
    assert sim.laws.status_writes <= 8, sim.writes("AutotuneCache")
    assert [one for one in sim.writes() if "AutotuneCache" not in one] == [
        f"create PersistentVolumeClaim {CLAIM}",
        f"create ConfigMap {agent()[0]}",
        f"create Job {sim.world.jobs()[0]['metadata']['name']}",
    ]


def test_a_person_who_only_looks_at_ready_reads_each_step_in_its_order(sim: Simulation) -> None:
    started(sim)
    said: list[str] = []

    def look() -> bool:
        if sim.status and said[-1:] != [reason(sim)]:
            said.append(reason(sim))
        return False

    sim.settle(until=look)
    assert said == ["WaitingForClaim", "WaitingForPod", "Pulling", "Checking", "Tuning", "Sealing", "Sealed"]


def test_two_targets_are_tuned_one_after_another(sim: Simulation) -> None:
    started(sim, targets=TWO)
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, sum(pod["status"]["phase"] in ("Pending", "Running") for pod in sim.world.pods(TUNING)))
        return False

    sim.settle(until=look)
    assert sim.ready == ("True", "Sealed") and sim.status["summary"] == {"bundles": "2/2", "entries": 40}
    assert [one["target"] for one in sim.records] == ["b200", "h200"]
    assert most == 1 and sim.engine_starts == 2


def test_a_target_that_waits_for_a_node_holds_up_no_other(sim: Simulation) -> None:
    sim.world.no_node_for = {"NVIDIA-B200"}
    started(sim, targets=TWO).settle()
    assert [one["state"] for one in sim.records] == ["Pending", SEALED]
    assert sim.records[0]["reason"] == "WaitingForNode" and "Insufficient" in sim.records[0]["message"]
    sim.world.no_node_for = set()
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_template_in_the_cache_is_tuned_before_anything_serves(sim: Simulation) -> None:
    sim.apply(source={"template": template()})
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_claim_that_waits_for_its_first_consumer_is_never_inspected(sim: Simulation) -> None:
    sim.server.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "wait"},
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    )
    sealed(sim, storage={"claim": {"storageClassName": "wait"}})
    assert not [one for one in sim.writes("Job") if INSPECT in one] and sim.engine_starts == 1


def test_an_engine_that_tunes_nothing_is_ready_and_says_so(sim: Simulation) -> None:
    sim.world.layout = "Empty"
    started(sim).settle()
    assert sim.ready == ("True", "NothingToTune") and only_record(sim)["entries"] == 0


# --- attempts that fail


def test_failed_attempts_are_tried_again_after_30_and_120_seconds_and_the_third_is_the_last(sim: Simulation) -> None:
    sim.world.engine_crashes = 3
    started(sim).settle(FAR)
    assert sim.ready == ("False", "EngineFailed") and sim.condition("Stalled") == ("True", "EngineFailed")
    record = only_record(sim)
    assert record["state"] == FAILED and record["attempts"] == 3
    assert "exit code 1" in record["message"] and "CUDA error: out of memory" in record["message"]
    made = [one for one in sim.server.writes if (one.kind, one.verb) == ("Job", "create")]
    begun = [seconds(one.object["metadata"]["creationTimestamp"]) for one in made]
    first, second = (later - earlier for earlier, later in itertools.pairwise(begun))
    assert 30 <= first < 45 and 120 <= second < 135
    assert sim.engine_starts == 3


def test_an_attempt_after_a_failed_one_is_sealed_and_the_failure_forgotten(sim: Simulation) -> None:
    sim.world.engine_crashes = 1
    started(sim)
    until(sim, "Retrying")
    assert "attempt 1 of 3" in sim.message() and "EngineFailed" in sim.message() and "next" in sim.message()
    sim.settle()
    record = only_record(sim)
    assert record["state"] == SEALED and record["attempts"] == 2 and "lastFailure" not in record


def test_max_attempts_of_one_tries_once(sim: Simulation) -> None:
    sim.world.engine_crashes = 5
    started(sim, tuning={"maxAttempts": 1}).settle(FAR)
    assert only_record(sim)["state"] == FAILED and sim.engine_starts == 1


def test_after_the_last_attempt_only_a_changed_revision_or_engine_tries_again(sim: Simulation) -> None:
    sim.world.engine_crashes = 1
    started(sim, tuning={"maxAttempts": 1}).settle(FAR)
    assert only_record(sim)["state"] == FAILED
    sim.apply(revision="again")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2
    assert len(sim.records) == 1, "the failed one is not wanted any more, and forgotten"


def test_incomplete_ranks_are_not_tried_a_third_time(sim: Simulation) -> None:
    sim.world.seal_says = [("IncompleteRanks", "rank 2 of 4 is missing")] * 3
    started(sim).settle(FAR)
    record = only_record(sim)
    assert record["state"] == FAILED and record["reason"] == "IncompleteRanks" and record["attempts"] == 2


def test_unsafe_files_are_not_tried_again(sim: Simulation) -> None:
    sim.world.seal_says = [("UnsafeFiles", "tactics/x is a link")]
    started(sim).settle(FAR)
    assert only_record(sim)["reason"] == "UnsafeFiles" and sim.engine_starts == 1


def test_an_engine_that_is_never_ready_ends_with_the_pods_deadline(sim: Simulation) -> None:
    sim.world.engine_hangs = True
    started(sim, tuning={"maxAttempts": 1, "deadlineSeconds": 600}).settle(FAR)
    assert only_record(sim)["reason"] == "EngineNotReady" and "600" in sim.message()
    assert "the engine was not ready" in sim.message()


def test_an_image_that_cannot_be_pulled_ends_the_attempt_with_the_kubelets_words(sim: Simulation) -> None:
    sim.world.cannot_pull = {"vllm:1"}
    started(sim)
    until(sim, "Retrying")
    assert "ImagePullFailed" in sim.message() and 'Back-off pulling image "vllm:1"' in sim.message()
    sim.settle(20)
    assert not any(pod["status"]["phase"] == "Pending" for pod in sim.world.pods(TUNING)), "the GPU is given back"
    sim.world.cannot_pull = set()
    sim.settle()
    assert sim.ready == ("True", "Sealed")


@pytest.mark.parametrize("word", ["ReleaseTooOld", "SharedLayout", "NoPython"])
def test_what_check_refuses_is_refused_without_an_engine(sim: Simulation, word: str) -> None:
    sim.world.check_says = [(word, "vllm 0.24 in the image")]
    started(sim).settle(FAR)
    assert sim.ready == ("False", word) and sim.condition("Stalled") == ("True", word)
    assert only_record(sim)["state"] == REFUSED and sim.engine_starts == 0
    sim.deploy(image="vllm:2")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed")


def test_seal_that_dies_before_it_published_is_a_failed_attempt(sim: Simulation) -> None:
    started(sim)
    sim.settle(FAR, until=lambda: bool(sim.status) and reason(sim) == "Sealing")
    sim.world.crash_seal(tuning_pod(sim))
    until(sim, "Retrying")
    assert "SealFailed" in sim.message()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2


def test_seal_that_dies_after_it_published_costs_no_second_tuning(sim: Simulation) -> None:
    started(sim)
    sim.settle(FAR, until=lambda: bool(sim.on_claim()))
    sim.world.crash_seal(tuning_pod(sim))
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1


def test_an_engine_that_lingers_after_the_report_is_ended(sim: Simulation) -> None:
    sim.world.lingers = True
    started(sim)
    until(sim, "Sealed")
    sim.settle(60)
    assert not [pod for pod in sim.world.pods(TUNING) if pod["status"]["phase"] == "Running"]
    assert sim.ready == ("True", "Sealed") and only_record(sim)["attempts"] == 1


# --- edits


def test_a_source_that_changes_while_it_is_tuned_gives_its_gpu_back_and_only_the_new_one_is_sealed(
    sim: Simulation,
) -> None:
    started(sim)
    until(sim, "Tuning")
    old = only_record(sim)["id"]
    sim.deploy(image="vllm:2")
    sim.settle(30, until=lambda: not [p for p in sim.world.pods(TUNING) if p["metadata"]["labels"][BUNDLE] == old])
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["id"] != old
    assert list(sim.on_claim()) == [only_record(sim)["id"]]


def test_a_source_that_goes_back_while_the_new_one_is_tuned_finds_its_bundle(sim: Simulation) -> None:
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


# --- the claim is the truth


def test_a_wiped_status_is_read_back_from_the_claim_and_nothing_is_tuned(sim: Simulation) -> None:
    before = only_record(sealed(sim))
    sim.settle(FAR)  # its Job has outlived its ttl
    assert not sim.world.jobs()
    sim.wipe_status()
    sim.settle()
    after = only_record(sim)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1
    assert {name: after[name] for name in ("id", "digest", "sealedAt", "entries", "environment", "writer")} == {
        name: before[name] for name in ("id", "digest", "sealedAt", "entries", "environment", "writer")
    }
    assert not sim.world.jobs(INSPECT) and not sim.laws.wasted
    sim.deploy(image="vllm:2")
    sim.settle()
    assert sim.ready == ("True", "Sealed")
    assert len([one for one in sim.writes("Job", "create") if INSPECT in one]) == 1, "a claim is read once"


def test_a_status_wiped_while_tuning_goes_on_with_the_same_attempt(sim: Simulation) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.wipe_status()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1 and only_record(sim)["attempts"] == 1


def test_a_cache_made_again_on_a_retained_claim_adopts_what_is_there(sim: Simulation) -> None:
    digest = only_record(sealed(sim, storage={"claim": {"whenDeleted": "Retain"}}))["digest"]
    sim.delete()
    sim.settle()
    assert sim.server.get(*CLAIM_PLACE) is not None
    sim.apply(storage={"claim": {"whenDeleted": "Retain"}})
    sim.settle()
    assert sim.ready == ("True", "Sealed") and only_record(sim)["digest"] == digest and sim.engine_starts == 1


def test_a_cache_made_again_while_the_old_ones_pod_still_ends_waits_and_is_sealed(sim: Simulation) -> None:
    started(sim)
    until(sim, "Tuning")
    sim.delete()
    sim.apply()
    sim.reconcile()
    assert reason(sim) == "NameTaken"
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and len(sim.on_claim()) == 1


def test_a_job_of_another_owner_that_has_the_attempts_name_is_said_and_waited_for(sim: Simulation) -> None:
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
    assert sim.ready == ("False", "NameTaken") and lost["metadata"]["name"] in sim.message() and sim.engine_starts == 1
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2


def test_a_report_that_nobody_read_is_found_on_the_claim(sim: Simulation) -> None:
    started(sim)
    until(sim, "Sealing")
    sim.world.run()  # the controller is away: seal ends, the Job is Complete
    sim.world.vanish(tuning_pod(sim))
    assert not sim.world.pods()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1 and only_record(sim)["attempts"] == 1


def test_a_report_that_nobody_read_of_an_attempt_that_failed_is_tried_again(sim: Simulation) -> None:
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
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1, "check has looked before the engine started"


def test_a_claim_that_a_person_deleted_is_made_anew_and_tuned_anew(sim: Simulation) -> None:
    sealed(sim)
    first = sim.world.claim_uid(KEY.namespace, CLAIM)
    sim.delete(CLAIM_PLACE)
    sim.reconcile()
    assert sim.condition("StorageReady") == ("False", "ClaimTerminating") and reason(sim) != "Sealed"
    sim.settle()  # it does not wait for the ttl of the Job that made the bundle
    assert sim.world.claim_uid(KEY.namespace, CLAIM) not in ("", first)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2
    assert only_record(sim)["digest"] == sim.on_claim()[only_record(sim)["id"]].digest


def test_an_existing_claim_is_awaited_inspected_and_used(sim: Simulation) -> None:
    started(sim, storage={"existingClaim": {"name": "shared", "subPath": "pretune"}, "claim": None}).settle()
    assert sim.ready == ("False", "ClaimNotFound") and "shared" in sim.message()
    sim.server.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": KEY.namespace, "name": "shared"},
            "spec": {"accessModes": ["ReadWriteMany"]},
        }
    )
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and list(sim.on_claim("shared")) == [only_record(sim)["id"]]
    sim.delete()
    sim.settle(FAR)
    assert sim.server.get("v1", "PersistentVolumeClaim", KEY.namespace, "shared") is not None
    sim.apply(storage={"existingClaim": {"name": "shared", "subPath": "pretune"}})
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1


def a_claim(sim: Simulation, name: str) -> None:
    meta, spec = {"namespace": KEY.namespace, "name": name}, {"accessModes": ["ReadWriteMany"]}
    sim.server.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})


def other_place(sim: Simulation, where: str) -> tuple[Object, str]:
    """spec.storage elsewhere, and the claim's name there."""
    if where == "another claim":
        a_claim(sim, "larger")
        return {"existingClaim": {"name": "larger"}, "claim": None}, "larger"
    a_claim(sim, "shared")
    return {"existingClaim": {"name": "shared", "subPath": "second"}, "claim": None}, "shared"


@pytest.mark.parametrize("where", ["another claim", "another folder"])
@pytest.mark.parametrize("at", ["WaitingForPod", "Tuning", "Sealing", "Sealed", "EngineFailed"])
def test_storage_that_is_changed_at_any_step_holds_the_bundle_in_the_end(sim: Simulation, where: str, at: str) -> None:
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


def test_a_claim_that_cannot_be_read_is_not_believed_to_hold_what_another_one_held(sim: Simulation) -> None:
    sealed(sim)
    storage, name = other_place(sim, "another claim")
    sim.world.inspect_silent = True
    sim.apply(storage=storage)
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and only_record(sim)["id"] in sim.on_claim(name)


def test_a_foreign_claim_of_our_name_is_not_taken(sim: Simulation) -> None:
    spec = {"accessModes": ["ReadWriteMany"]}
    meta = {"namespace": KEY.namespace, "name": CLAIM}
    sim.server.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})
    started(sim).settle()
    assert sim.ready == ("False", "ClaimNotOurs") and not sim.world.jobs()
    sim.server.patch(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta},
        {"metadata": {"labels": {CACHE: KEY.name}}},
    )
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed")


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
    assert sim.engine_starts == 6 and not [pod for pod in sim.world.pods() if pod["status"]["phase"] == "Pending"]


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


def test_a_pod_whose_node_is_gone_ends_its_attempt_after_ten_minutes_and_another_node_is_tried(sim: Simulation) -> None:
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


# --- a bundle's end


def test_bundles_beyond_the_history_are_retired_and_ten_minutes_later_pruned(sim: Simulation) -> None:
    started(sim, bundleHistoryLimit=1)
    for image in ("vllm:1", "vllm:2", "vllm:3"):
        sim.deploy(image=image)
        sim.settle(200)
    states = [one["state"] for one in sim.records]
    assert states.count(SEALED) == 1 and states.count(RETIRED) >= 1, states
    sim.settle(FAR)
    assert [one["state"] for one in sim.records] == [SEALED]
    assert list(sim.on_claim()) == [sim.records[0]["id"]] and not sim.world.jobs(PRUNE)


def test_a_bundle_that_a_living_pod_names_is_kept(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    meta = {"namespace": KEY.namespace, "name": "serving", "labels": {CACHE: KEY.name}, "annotations": {BUNDLE: first}}
    sim.server.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": []}})
    sim.deploy(image="vllm:2")
    sim.settle(FAR)
    assert first in sim.on_claim()
    sim.delete(("v1", "Pod", KEY.namespace, "serving"))
    sim.settle(FAR)
    assert first not in sim.on_claim()


def test_a_retired_bundle_that_is_wanted_again_in_time_comes_back_untouched(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))
    sim.deploy(image="vllm:2")
    sim.settle(200)
    assert {one["id"]: one["state"] for one in sim.records}[first["id"]] == RETIRED
    sim.deploy(image="vllm:1")
    sim.settle(200)
    record = next(one for one in sim.records if one["id"] == first["id"])
    assert record["state"] == SEALED and record["digest"] == first["digest"] and "retiredAt" not in record
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2
    sim.settle(FAR)
    assert first["id"] in sim.on_claim()


def test_a_pruned_bundle_that_is_wanted_again_is_tuned_anew(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: first not in sim.on_claim())
    sim.settle(60)
    sim.deploy(image="vllm:1")  # while the Job that made it is still there, with its report
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim() and sim.engine_starts == 3


def test_a_bundle_that_is_wanted_again_while_prune_deletes_it_is_tuned_anew(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: bool(sim.world.jobs(PRUNE)))
    sim.deploy(image="vllm:1")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim()


def test_nothing_is_tuned_into_a_folder_that_is_still_being_deleted(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: bool(sim.world.jobs(PRUNE)))
    sim.world.idle_roles = {PRUNE}  # its pod waits for a node
    sim.deploy(image="vllm:1")
    sim.settle(200)
    assert reason(sim) == "Inspecting" and "deleted" in sim.message() and sim.engine_starts == 2
    sim.world.idle_roles = set()
    sim.settle(200)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim() and sim.engine_starts == 3


# --- the source


def test_a_source_that_is_not_there_is_named_and_recovers_when_it_appears(sim: Simulation) -> None:
    sim.apply()
    sim.settle()
    assert sim.ready == ("False", "SourceNotFound") and KEY.name in sim.message()
    assert sim.condition("Stalled") == ("True", "SourceNotFound")
    sim.deploy()
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_deployment_deleted_after_sealing_keeps_the_bundle(sim: Simulation) -> None:
    sealed(sim)
    sim.delete(DEPLOYMENT)
    sim.settle(FAR)
    assert sim.ready == ("False", "SourceNotFound") and only_record(sim)["state"] == SEALED and sim.on_claim()
    sim.deploy()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1


def test_no_source_is_unknown(sim: Simulation) -> None:
    sim.apply(source=None)
    sim.settle()
    assert sim.ready == ("Unknown", "NoSource") and not sim.world.jobs()


def test_a_template_that_the_api_server_refuses_is_said_in_its_words_and_recovers(sim: Simulation) -> None:
    def refuse(verb: str, obj: Object) -> None:
        if obj["kind"] == "Job" and obj["spec"]["template"]["spec"]["initContainers"][-1]["image"] == "bad":
            raise ApiError(422, "Invalid", "spec.template.spec.initContainers[1].image: Invalid value")

    sim.server.admission.append(refuse)
    sim.deploy(image="bad")
    sim.apply()
    sim.settle(3000)
    assert sim.ready == ("False", "SourceInvalid") and "initContainers[1].image" in sim.message()
    assert sim.condition("Stalled") == ("True", "SourceInvalid") and only_record(sim)["state"] == REFUSED
    assert sim.laws.status_writes <= 4
    said = [one for one in sim.server.events if one.reason == "SourceInvalid"]
    assert len(said) == 1, "what was said is not said again"
    sim.deploy(image="good")
    sim.settle()
    assert sim.ready == ("True", "Sealed")


@pytest.mark.parametrize(
    ("engine", "word", "named"),
    [
        ({"args": ["serve", "qwen3", "--nnodes", "2"]}, "MultiPodEngine", "--nnodes"),
        ({"env": [{"name": "DYN_NAMESPACE", "value": "x"}]}, "SelfRegistering", "DYN_NAMESPACE"),
    ],
)
def test_engines_that_cannot_be_copied_are_refused_before_any_job(
    sim: Simulation, engine: Object, word: str, named: str
) -> None:
    sim.deploy(**engine)
    sim.apply()
    sim.settle()
    assert sim.ready == ("False", word) and named in sim.message() and only_record(sim)["state"] == REFUSED
    assert not sim.world.jobs()


def test_an_allowed_risk_is_taken(sim: Simulation) -> None:
    sim.deploy(env=[{"name": "DYN_NAMESPACE", "value": "x"}])
    sim.apply()
    sim.settle()
    assert reason(sim) == "SelfRegistering"
    sim.apply(tuning={"allow": ["SelfRegistering"]})
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_several_gpu_containers_are_listed(sim: Simulation) -> None:
    sim.apply()
    spec = template()
    spec["spec"]["containers"].append({**spec["spec"]["containers"][0], "name": "draft"})
    sim.server.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": KEY.namespace, "name": KEY.name},
            "spec": {"template": spec},
        }
    )
    sim.settle()
    assert sim.ready == ("False", "EngineAmbiguous") and "vllm" in sim.message() and "draft" in sim.message()
    sim.apply(engineContainer="vllm")
    sim.settle()
    assert sim.ready == ("True", "Sealed")


# --- the cache's end


@pytest.mark.parametrize("step", ["WaitingForPod", "Pulling", "Checking", "Tuning", "Sealing", "Sealed"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_cache_deleted_at_any_step_leaves_nothing_but_a_claim_that_is_to_be_kept(
    sim: Simulation, step: str, kept: bool
) -> None:
    started(sim, storage={"claim": {"whenDeleted": "Retain" if kept else "Delete"}})
    until(sim, step)
    sim.delete()
    assert sim.server.get(*THE_CACHE) is None, "no finalizer holds it"
    sim.settle(FAR)
    assert not sim.world.jobs() and not sim.world.pods()
    assert (sim.server.get(*CLAIM_PLACE) is not None) == kept
    assert not sim.server.list("v1", "ConfigMap", KEY.namespace)


def test_a_claim_is_not_deleted_while_a_pod_of_any_phase_names_it(sim: Simulation) -> None:
    sealed(sim)
    volumes = [{"name": "bundles", "persistentVolumeClaim": {"claimName": CLAIM}}]
    meta = {"namespace": KEY.namespace, "name": "serving", "labels": {CACHE: KEY.name}}
    sim.server.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [], "volumes": volumes}}
    )
    sim.delete()
    sim.settle(FAR)
    found = sim.server.get(*CLAIM_PLACE)
    assert found is not None and "deletionTimestamp" not in found["metadata"]
    sim.delete(("v1", "Pod", KEY.namespace, "serving"))
    sim.settle(FAR)
    assert sim.server.get(*CLAIM_PLACE) is None


def test_when_deleted_follows_the_spec_until_the_end(sim: Simulation) -> None:
    sealed(sim)
    sim.apply(storage={"claim": {"whenDeleted": "Retain"}})
    sim.settle()
    sim.delete()
    sim.settle(FAR)
    assert sim.server.get(*CLAIM_PLACE) is not None


def test_an_older_agent_goes_when_no_pod_names_it(sim: Simulation) -> None:
    labels = {"pretune.dev/role": "agent"}
    for name in ("pretune-agent-000000000000", "pretune-agent-111111111111"):
        meta = {"namespace": KEY.namespace, "name": name, "labels": labels}
        sim.server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    volumes = [{"name": "agent", "configMap": {"name": "pretune-agent-111111111111", "optional": True}}]
    meta = {"namespace": KEY.namespace, "name": "serving", "labels": {"app": "other"}}
    sim.server.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [], "volumes": volumes}}
    )
    sealed(sim)
    names = [one["metadata"]["name"] for one in sim.server.list("v1", "ConfigMap", KEY.namespace)]
    assert names == sorted(["pretune-agent-111111111111", agent()[0]])


def test_the_agent_stays_for_another_cache_of_the_namespace(sim: Simulation) -> None:
    sealed(sim)
    other = {"namespace": KEY.namespace, "name": "other"}
    sim.server.create({"apiVersion": THE_CACHE[0], "kind": THE_CACHE[1], "metadata": other, "spec": {"storage": {}}})
    sim.delete()
    sim.settle(FAR)
    assert sim.server.list("v1", "ConfigMap", KEY.namespace)
