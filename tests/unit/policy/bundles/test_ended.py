"""Which attempts end in a plan, as the metrics count them: each once, with its own pods' GPU time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.desired import find_desired_bundles
from pretune.policy.decide import decide
from pretune.policy.model import Plan
from pretune.policy.plan_builder import PlanBuilder

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import ENGINE, NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod, sealed_report
from tests.unit.policy.test_decide import answered, found

KNOWN = {"storage": {"claimUID": "claim-uid"}}
[WANTED] = [each.id for each in find_desired_bundles(PlanBuilder(observed(), NOW), ()).bundles]
UNWANTED = "b-default"


def plan_for(before: Object | None, *pods: AttemptPod, now: float = NOW, **more: Any) -> Plan:
    """The plan for a cache whose status has this bundle."""
    bundles = [before] if before else []
    the_cache = cache({**KNOWN, "bundles": bundles}, **more.pop("spec", {}))
    return decide(observed(the_cache, pods=tuple(pods), **more), now)


def bundle_after(plan: Plan, bundle_id: str) -> Object | None:
    assert plan.status is not None
    found = [bundle for bundle in plan.status["bundles"] if bundle["id"] == bundle_id]
    return found[0] if found else None


def ends(plan: Plan) -> list[tuple[str, float, float | None]]:
    return [(end.reason, end.gpu_seconds, end.tuning_seconds) for end in plan.ended]


def tuning(bundle_id: str = WANTED, attempts: int = 1, **more: Any) -> Object:
    return bundle_json(bundle_id, names.TUNING_STATE, attempts=attempts, **more)


def pod(bundle_id: str = WANTED, number: int = 1, gpus: int = 4, ago: float = 120) -> AttemptPod:
    """A pod that started so many seconds ago."""
    made = AttemptPod(bundle_id, number).but(status={"startTime": format_timestamp(NOW - ago)})
    made["spec"]["initContainers"][-1]["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return made


def reported(by: str = "seal", **more: Any) -> AttemptPod:
    container = names.SEAL_CONTAINER if by == "seal" else names.CHECK_CONTAINER
    report = replace(sealed_report(WANTED, by), seconds=900, **more)
    return pod().ended(container, report=report)


JOBS = (job(WANTED),)


@pytest.mark.parametrize("spec", [{}, {"verify": "BeforeRelease"}], ids=["sealed", "to be proven"])
def test_a_sealed_attempt_ends_once_however_often_it_is_reconciled(spec: Object) -> None:
    plan = plan_for(tuning(), reported(), jobs=JOBS, spec=spec)
    assert ends(plan) == [("Sealed", 900 * 4, 900)]
    for _ in range(3):
        plan = plan_for(bundle_after(plan, WANTED), reported(), jobs=JOBS, spec=spec)
        assert ends(plan) == []


def test_a_status_that_was_not_written_records_the_same_end_again() -> None:
    for _ in range(2):
        assert ends(plan_for(tuning(), reported(), jobs=JOBS)) == [("Sealed", 900 * 4, 900)]


def test_a_bundle_without_tactics_counts_as_such() -> None:
    empty = reported(reason="NothingToTune", layout="Empty", entries=0)
    assert ends(plan_for(tuning(), empty, jobs=JOBS)) == [("NothingToTune", 3600, 900)]


def test_a_bundle_that_was_found_by_an_attempt_took_no_time_to_tune() -> None:
    """Check ends the attempt before the engine starts; the seconds are another attempt's."""
    started = {"phase": "Succeeded", "startTime": format_timestamp(NOW - 7)}
    found = reported("check").but(status=started)
    assert ends(plan_for(tuning(), found, jobs=JOBS)) == [("Found", 2 * 4, None)]


@pytest.mark.parametrize("known", [True, False], ids=["wanted", "never seen before"])
def test_a_bundle_that_inspect_finds_is_no_attempt(known: bool) -> None:
    report = found(cache())
    wanted = bundle_json(WANTED, names.PENDING, attempts=0, fingerprint=report.fingerprint)
    plan = answered(cache({"bundles": [wanted] if known else []}), report)
    after = bundle_after(plan, WANTED)
    assert ends(plan) == [] and after is not None and after["state"] == names.SEALED


def test_a_bundle_that_is_wanted_again_is_no_attempt() -> None:
    retired = bundle_json(WANTED, names.RETIRED, retiredAt=format_timestamp(NOW - 9))
    plan = plan_for(retired, reported(), jobs=JOBS)
    after = bundle_after(plan, WANTED)
    assert ends(plan) == [] and after is not None and after["state"] == names.SEALED


def test_each_failed_attempt_counts_once_by_its_reason() -> None:
    spec = {"tuning": {"maxAttempts": 2}}
    first = pod(number=1).ended(ENGINE, 1, message="boom").but(status={"phase": "Failed"})
    plan = plan_for(tuning(), first, jobs=JOBS, spec=spec)
    assert ends(plan) == [("EngineFailed", 115 * 4, None)]
    after = bundle_after(plan, WANTED)
    assert after is not None and after["state"] == names.PENDING
    assert ends(plan_for(after, first, jobs=JOBS, spec=spec)) == []
    second = pod(number=2).waiting(ENGINE, "InvalidImageName", "no").but(nodeName="node0")
    both = (*JOBS, job(WANTED, 2))
    begun = {**after, "state": names.TUNING_STATE, "attempts": 2}
    plan = plan_for(begun, first, second, jobs=both, spec=spec)
    assert ends(plan) == [("ImagePullFailed", 120 * 4, None)]
    after = bundle_after(plan, WANTED)
    assert after is not None and after["state"] == names.FAILED
    assert ends(plan_for(after, first, second, jobs=both, spec=spec)) == []


@pytest.mark.parametrize(
    ("case", "pods", "spent"),
    [
        ("it still runs", [pod()], 120 * 4),
        ("it has ended", [pod().ended(ENGINE, 1).but(status={"phase": "Failed"})], 115 * 4),
        ("a container of it has ended", [pod().ended(names.CHECK_CONTAINER)], 120 * 4),
        ("it never had a node", [AttemptPod(WANTED)], 0),
        ("its pod is gone", [], 0),
        ("another attempt's pod", [pod(number=2)], 0),
        ("another bundle's pod", [pod(UNWANTED)], 0),
        ("evicted, and recreated", [pod(), pod(ago=20)], 140 * 4),
    ],
)
def test_an_attempt_took_its_pods_gpus_from_start_to_end(
    case: str, pods: list[AttemptPod], spent: float
) -> None:
    plan = PlanBuilder(observed(pods=tuple(pods)), NOW)
    assert plan.gpu_seconds_of(WANTED, names.TUNING, 1) == spent, case


def test_a_foreign_pod_with_the_label_of_a_tuning_pod_took_none() -> None:
    foreign = pod()
    foreign["spec"] = {"containers": []}
    plan = PlanBuilder(observed(pods=(foreign,)), NOW)
    assert plan.gpu_seconds_of(WANTED, names.TUNING, 1) == 0


FAILED = {"reason": "EngineFailed", "attempt": 1, "at": format_timestamp(NOW - 900), "message": "m"}
SUPERSEDED = bundle_json(UNWANTED, names.PENDING, reason="Superseded")
RUNS = pod(UNWANTED, ago=60).running(ENGINE)
GONE = job(UNWANTED).complete()
ELSEWHERE = job(WANTED)
ELSEWHERE["metadata"]["annotations"][names.STORAGE] = "another place"


@pytest.mark.parametrize(
    ("case", "before", "the_job", "pods", "spent"),
    [
        ("nothing wants it any more", tuning(UNWANTED), job(UNWANTED), [RUNS], 240),
        ("its pod is gone, and its record goes at once", tuning(UNWANTED), GONE, [], 0),
        ("its place has changed", tuning(), ELSEWHERE, [pod(ago=60).running(ENGINE)], 240),
        ("it was superseded before", SUPERSEDED, job(UNWANTED), [RUNS], None),
        ("it was superseded before, and its record goes", SUPERSEDED, GONE, [], None),
        ("it was sealed long ago", bundle_json(UNWANTED), job(UNWANTED), [RUNS], None),
        ("it goes on", tuning(), job(WANTED), [pod(ago=60).running(ENGINE)], None),
        ("none was started", bundle_json(UNWANTED, names.PENDING, attempts=0), None, [], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_attempt_that_is_given_up_counts_once(
    case: str, before: Object, the_job: Object | None, pods: list[AttemptPod], spent: float | None
) -> None:
    jobs = (the_job,) if the_job else ()
    plan = plan_for(before, *pods, jobs=jobs)
    assert ends(plan) == ([("Superseded", spent, None)] if spent is not None else [])
    assert ends(plan_for(bundle_after(plan, before["id"]), *pods)) == []


def test_an_attempt_in_an_old_place_and_one_in_the_new_place_end_once_in_a_plan() -> None:
    elsewhere = {**ELSEWHERE, "metadata": {**ELSEWHERE["metadata"], "name": "elsewhere"}}
    failed = pod(ago=60).ended(ENGINE, 1).but(status={"phase": "Failed"})
    plan = plan_for(tuning(), failed, jobs=(elsewhere, job(WANTED).failed()))
    assert [end.reason for end in plan.ended] == ["Superseded"]


def test_an_attempt_that_gives_way_to_a_pod_that_serves_counts_once_and_has_not_failed() -> None:
    """However often that pod moves: the claim of the engine is attached to one node."""
    runs = pod(ago=60).running(ENGINE)
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    runs["spec"]["volumes"] = [volume]
    before = tuning(attempts=2, lastFailure=FAILED)
    moved = {"claim_nodes": {"models": ("node7",)}, "jobs": (job(WANTED, 2),)}
    second = runs.but(labels={**runs["metadata"]["labels"], names.ATTEMPT: "2"})
    second["metadata"]["ownerReferences"][0]["uid"] = job(WANTED, 2)["metadata"]["uid"]
    plan = plan_for(before, second, **moved)
    assert ends(plan) == [("Superseded", 240, None)]
    assert [action.name for action in plan.after] == [
        f"end Job {job(WANTED, 2)['metadata']['name']}"
    ]
    after = bundle_after(plan, WANTED)
    ended = (job(WANTED, 2, activeDeadlineSeconds=1).failed(),)
    plan = plan_for(after, jobs=ended)
    after = bundle_after(plan, WANTED)
    assert ends(plan) == [] and after is not None
    assert (after["state"], after["attempts"]) == (names.PENDING, 1)
    assert after["lastFailure"]["reason"] == "EngineFailed", "the one before has failed"


def test_what_a_superseded_attempt_does_while_it_is_ended_is_no_second_end() -> None:
    """Its pod is killed, and its containers' exit codes say so."""
    killed = pod(UNWANTED, ago=60).ended(ENGINE, 137)
    assert ends(plan_for(SUPERSEDED, killed, jobs=(job(UNWANTED, activeDeadlineSeconds=1),))) == []
    wanted_again = {**SUPERSEDED, "id": WANTED}
    killed = pod(ago=60).ended(ENGINE, 137).but(status={"phase": "Failed"})
    jobs = (job(WANTED, activeDeadlineSeconds=1).failed(),)
    plan = plan_for(wanted_again, killed, jobs=jobs)
    after = bundle_after(plan, WANTED)
    assert ends(plan) == [] and after is not None
    assert after["attempts"] == 0 and "lastFailure" not in after, "nor a failure"
    assert ends(plan_for(after, killed)) == []


# --- what a bundle has cost


def spent(bundle: Object | None) -> Object:
    return dict((bundle or {}).get("gpuSeconds", {}))


def test_the_status_has_what_was_spent_on_what() -> None:
    assert spent(bundle_after(plan_for(tuning(), reported(), jobs=JOBS), WANTED)) == {
        "sealed": 900 * 4
    }
    failed = pod(number=1).ended(ENGINE, 1).but(status={"phase": "Failed"})
    before = tuning(gpuSeconds={"failed": 40, "lost": 7})
    plan = plan_for(before, failed, jobs=JOBS)
    assert spent(bundle_after(plan, WANTED)) == {"failed": 40 + 115 * 4, "lost": 7}
    assert [end.result for end in plan.ended] == ["failed"] and plan.lost_gpu_seconds == 0


def test_a_lost_pod_is_paid_for_once() -> None:
    lost = pod().running(ENGINE).condition("DisruptionTarget", message="preempted")
    plan = plan_for(tuning(pod="pod-uid"), lost, jobs=JOBS)
    after = bundle_after(plan, WANTED)
    assert spent(after) == {"lost": 120 * 4} and plan.lost_gpu_seconds == 120 * 4
    again = plan_for(after, lost, jobs=JOBS, now=NOW + 20)
    assert spent(bundle_after(again, WANTED)) == {"lost": 120 * 4}
    assert again.lost_gpu_seconds == 0


def test_a_bundle_that_begins_anew_keeps_what_it_has_cost() -> None:
    failure = {"reason": "EngineFailed", "attempt": 3, "at": format_timestamp(NOW - 9)}
    before = bundle_json(
        WANTED,
        names.FAILED,
        attempts=3,
        gpuSeconds={"failed": 40},
        lastFailure={**failure, "settings": "of another spec.tuning"},
    )
    after = bundle_after(plan_for(before), WANTED)
    assert after is not None and (after["state"], after["attempts"]) == (names.PENDING, 0)
    assert spent(after) == {"failed": 40}


# --- pods that are deleted before they have a node


@pytest.mark.parametrize("is_queued", [False, True], ids=["", "its queue suspends each at first"])
def test_pods_that_are_deleted_before_they_have_a_node_count_as_disruptions(
    is_queued: bool,
) -> None:
    """By a descheduler, or a policy that cleans up pods that are pending for long."""
    record = tuning(disruptions=1)  # its first pod was evicted
    for number in range(1, 7):
        uid = f"job-{number}"
        failed = job(WANTED, uid=uid).failed("BackoffLimitExceeded")
        steps = (job(WANTED, uid=uid, suspend=is_queued), failed, failed)  # its deletion takes long
        for step in steps:
            assert "lastFailure" not in record or number == 6, number
            after = bundle_after(plan_for(record, jobs=(step,)), WANTED)
            assert after is not None
            record = after
        if number < 6:
            assert (record["disruptions"], record["attempts"]) == (number, 0)
            record = {**record, "attempts": 1}  # it is created again
    assert record["lastFailure"]["reason"] == "Disrupted"
