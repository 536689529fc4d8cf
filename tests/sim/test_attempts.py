"""Journeys from apply to sealed, and what attempts may meet on their way."""

from __future__ import annotations

import itertools

import pytest
from pretune.api.names import FAILED, INSPECT, REFUSED, SEALED, TUNING
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.manifests.agent_archive import agent_name
from pretune.policy.bundles.retries import REMEMBERED_SECONDS

from tests.builders.templates import serving_template
from tests.sim.reading import said
from tests.sim.simulation import CLAIM, FAR, Simulation
from tests.sim.steps import TWO, only_record, reason, sealed, started, tuning_pod, until

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
        f"create ConfigMap {agent_name()}",
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
    assert said == [
        "WaitingForClaim",
        "WaitingForPod",
        "Pulling",
        "Checking",
        "Tuning",
        "Sealing",
        "Sealed",
    ]


def test_two_targets_are_tuned_one_after_another(sim: Simulation) -> None:
    started(sim, targets=TWO)
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(
            most,
            sum(pod["status"]["phase"] in ("Pending", "Running") for pod in sim.world.pods(TUNING)),
        )
        return False

    sim.settle(until=look)
    assert sim.ready == ("True", "Sealed") and sim.status["summary"] == {
        "bundles": "2/2",
        "entries": 40,
    }
    assert [one["target"] for one in sim.records] == ["b200", "h200"]
    assert most == 1 and sim.engine_starts == 2


def test_a_target_that_waits_for_a_node_holds_up_no_other(sim: Simulation) -> None:
    sim.world.no_node_for = {"NVIDIA-B200"}
    started(sim, targets=TWO).settle()
    assert [one["state"] for one in sim.records] == ["Pending", SEALED]
    assert (
        sim.records[0]["reason"] == "WaitingForNode" and "Insufficient" in sim.records[0]["message"]
    )
    sim.world.no_node_for = set()
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_template_in_the_cache_is_tuned_before_anything_serves(sim: Simulation) -> None:
    sim.apply(source={"template": serving_template()})
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


def test_failed_attempts_are_tried_again_after_30_and_120_seconds_and_the_third_is_the_last(
    sim: Simulation,
) -> None:
    sim.world.engine_crashes = 6  # each start that fails at once is followed by a second one
    started(sim).settle(FAR)
    assert sim.ready == ("False", "EngineFailed") and sim.condition("Stalled") == (
        "True",
        "EngineFailed",
    )
    record = only_record(sim)
    assert record["state"] == FAILED and record["attempts"] == 3
    assert "exit code 1" in record["message"] and "CUDA error: out of memory" in record["message"]
    made = [one for one in sim.server.writes if (one.kind, one.verb) == ("Job", "create")]
    begun = [parse_timestamp(one.object["metadata"]["creationTimestamp"]) for one in made]
    first, second = (later - earlier for earlier, later in itertools.pairwise(begun))
    assert 30 <= first < 45 and 120 <= second < 135
    assert sim.engine_starts == 6


def test_an_attempt_after_a_failed_one_is_sealed_and_the_failure_forgotten(sim: Simulation) -> None:
    sim.world.engine_crashes = 1
    started(sim)
    until(sim, "Retrying")
    assert (
        "attempt 1 of 3" in sim.message()
        and "EngineFailed" in sim.message()
        and "next" in sim.message()
    )
    sim.settle()
    record = only_record(sim)
    assert record["state"] == SEALED and record["attempts"] == 2 and "lastFailure" not in record


def test_max_attempts_of_one_tries_once(sim: Simulation) -> None:
    sim.world.engine_crashes = 5
    started(sim, tuning={"maxAttempts": 1}).settle(FAR)
    assert only_record(sim)["state"] == FAILED and len(sim.world.jobs()) == 0
    assert len([name for name in sim.writes("Job", "create") if name.endswith("-1")]) == 1


def test_after_the_last_attempt_only_a_changed_revision_or_engine_tries_again(
    sim: Simulation,
) -> None:
    sim.world.engine_crashes = 1
    started(sim, tuning={"maxAttempts": 1}).settle(FAR)
    assert only_record(sim)["state"] == FAILED
    before = sim.engine_starts
    sim.apply(revision="again")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == before + 1
    assert [one["state"] for one in sim.records] == [SEALED, FAILED], "the failed one is remembered"
    sim.clock.advance(REMEMBERED_SECONDS)
    sim.settle()
    assert len(sim.records) == 1, "it is forgotten a week after it was last wanted"


def test_incomplete_ranks_are_not_tried_a_third_time(sim: Simulation) -> None:
    sim.world.seal_says = [("IncompleteRanks", "rank 2 of 4 is missing")] * 3
    started(sim).settle(FAR)
    record = only_record(sim)
    assert (
        record["state"] == FAILED
        and record["reason"] == "IncompleteRanks"
        and record["attempts"] == 2
    )


def test_unsafe_files_are_not_tried_again(sim: Simulation) -> None:
    sim.world.seal_says = [("UnsafeFiles", "tactics/x is a link")]
    started(sim).settle(FAR)
    assert only_record(sim)["reason"] == "UnsafeFiles" and sim.engine_starts == 1


def test_an_engine_that_is_never_ready_ends_with_the_pods_deadline(sim: Simulation) -> None:
    sim.world.engine_hangs = True
    started(sim, tuning={"maxAttempts": 1, "deadlineSeconds": 600}).settle(FAR)
    assert only_record(sim)["reason"] == "EngineNotReady" and "600" in sim.message()
    assert "the engine was not ready" in sim.message()


def test_an_image_that_cannot_be_pulled_ends_the_attempt_with_the_kubelets_words(
    sim: Simulation,
) -> None:
    sim.world.cannot_pull = {"vllm:1"}
    started(sim)
    until(sim, "Retrying")
    assert "ImagePullFailed" in sim.message() and 'Back-off pulling image "vllm:1"' in sim.message()
    sim.settle(20)
    assert not any(pod["status"]["phase"] == "Pending" for pod in sim.world.pods(TUNING)), (
        "the GPU is given back"
    )
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


# --- the pod of a failed attempt


@pytest.mark.parametrize("crashes", [1, 1000], ids=["one start fails", "every start fails"])
def test_the_pod_of_a_failed_attempt_stays_as_long_as_its_job_and_holds_no_gpu(
    sim: Simulation, crashes: int
) -> None:
    sim.world.engine_crashes = crashes
    started(sim, tuning={"maxAttempts": 1})
    until(sim, "EngineFailed")
    failed_at = sim.clock.now
    sim.settle(900)
    [pod] = sim.world.pods(TUNING)
    assert pod["status"]["phase"] == "Failed" and "running" not in str(pod["status"])
    assert sim.clock.now - failed_at < 900 and said(sim.world.jobs()[0], "Failed")
    starts = sim.engine_starts
    sim.settle(FAR)
    assert not sim.world.pods(TUNING) and sim.engine_starts == starts <= 2


@pytest.mark.parametrize("verify", ["Never", "BeforeRelease"])
def test_what_a_second_start_publishes_without_a_controller_is_found_by_the_next_attempt(
    sim: Simulation, verify: str
) -> None:
    """No report of that pod counts, but what it published is on the claim (docs/limits.md)."""
    sim.world.engine_crashes = 1
    started(sim, verify=verify)
    until(sim, "Retrying")
    sim.down()
    sim.settle(900)
    assert sim.on_claim()
    sim.come_up()
    sim.settle(FAR)
    record = only_record(sim)
    assert (sim.ready, record["attempts"]) == (("True", "Sealed"), 2) and sim.engine_starts == 2
    assert record.get("proven", False) == (verify == "BeforeRelease")


def test_a_pod_that_its_own_deadline_cannot_end_is_ended_with_its_job(sim: Simulation) -> None:
    def refuse(verb: str, obj: Object) -> None:
        is_ended = obj["kind"] == "Pod" and obj["spec"].get("activeDeadlineSeconds") == 1
        if verb == "update" and is_ended:
            raise ApiError(403, "Forbidden", "a policy of somebody's")

    sim.world.engine_crashes = 1000
    sim.server.admission.append(refuse)
    started(sim, tuning={"maxAttempts": 2})
    sim.settle(FAR)
    assert sim.ready == ("False", "EngineFailed") and only_record(sim)["attempts"] == 2
    assert all(said(one, "Failed") for one in sim.world.jobs()) and not sim.world.pods(TUNING)
