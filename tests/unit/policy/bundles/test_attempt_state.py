"""How an attempt stands: one table, one line a situation that a real kubelet, scheduler or Job controller shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CHECK_CONTAINER, SEAL_CONTAINER
from pretune.api.reasons import REASONS
from pretune.api.timestamps import format_timestamp
from pretune.policy.bundles.attempt_state import (
    ATTEMPT_CHECKS,
    MAX_DISRUPTIONS,
    POD_GRACE_SECONDS,
    Attempt,
    read_attempt,
)
from pretune.policy.bundles.failed_pods import list_failed_starts
from pretune.policy.model import FailedStart
from pretune.policy.pod_status import NODE_LOST_SECONDS
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import ENGINE, NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod, sealed_report

POD = AttemptPod()
CHECKED = POD.ended(CHECK_CONTAINER, report=Report(by="check", reason="Checked"))
REFUSED = Report(by="check", reason="ReleaseTooOld", message="vLLM 0.24.0")
EVICTED = {"kind": "DisruptionTarget", "reason": "PreemptionByScheduler", "message": "preempted"}
WORDS = "RuntimeError: CUDA out of memory"


def failed_create(message: str) -> dict[str, Any]:
    return {"reason": "FailedCreate", "message": message, "lastTimestamp": format_timestamp(NOW)}


def stopped(message: str, ago: float) -> dict[str, Any]:
    return {"reason": "Stopped", "message": message, "eventTime": format_timestamp(NOW - ago)}


PREEMPTED = stopped("Preempted to accommodate a workload (UID: 1)", 50)
NOT_READY = stopped("Exceeded the PodsReady timeout ns/job", 5)
ENDED: dict[str, Any] = {
    "deletionTimestamp": format_timestamp(NOW),
    "status": {"phase": "Failed"},
}


def cannot_mount(reason: str, message: str, ago: float = 20) -> dict[str, Any]:
    """An event of the kubelet that began so many seconds ago and repeats."""
    return {
        "reason": reason,
        "message": message,
        "metadata": {"creationTimestamp": format_timestamp(NOW - ago)},
        "lastTimestamp": format_timestamp(NOW - 5),
    }


MULTI_ATTACH = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) qwen3-0'
MODELS = {"name": "m", "persistentVolumeClaim": {"claimName": "models"}}


def mounting(pod: AttemptPod) -> AttemptPod:
    """The pod with a volume of the engine's claim."""
    changed = pod.but()
    changed["spec"]["volumes"] = [MODELS]
    return changed


QUOTA = 'Error creating: pods "qwen3-1-x7k2p" is forbidden: exceeded quota: gpus'

# name, pod, what else, state, reason, a part of the message
TABLE: list[tuple[str, AttemptPod | None, dict[str, Any], str, str, str]] = [
    ("no pod yet", None, {}, "Pending", "WaitingForPod", "the Job is created"),
    ("a suspended Job", None, {"job": job("b", suspend=True)}, "Pending", "Queued", "suspended"),
    (
        "quota",
        None,
        {"events": (failed_create(QUOTA),)},
        "Pending",
        "PodRefused",
        "exceeded quota: gpus",
    ),
    ("no Job any more", None, {"job": None}, "Finished", "ReportLost", "gone"),
    (
        "a finished Job without its pod",
        None,
        {"job": job("b").complete()},
        "Finished",
        "ReportLost",
        "gone",
    ),
    (
        "a failed Job without its pod, of which nobody saw that it was deleted",
        None,
        {"job": job("b").failed("BackoffLimitExceeded")},
        "Finished",
        "ReportLost",
        "gone",
    ),
    ("just made", POD.but(nodeName=None), {}, "Pending", "WaitingForPod", "created"),
    (
        "no node fits",
        POD.but(nodeName=None).condition(
            "PodScheduled", "False", message="0/3 nodes: 3 Insufficient nvidia.com/gpu"
        ),
        {},
        "Pending",
        "WaitingForNode",
        "Insufficient nvidia.com/gpu",
    ),
    (
        "gated by a queue",
        POD.but(nodeName=None).condition("PodScheduled", "False", reason="SchedulingGated"),
        {},
        "Pending",
        "Queued",
        "scheduling gate",
    ),
    ("on its node", POD, {}, "Tuning", "Pulling", "node0"),
    (
        "a volume is attached elsewhere",
        POD,
        {"events": (cannot_mount("FailedAttachVolume", MULTI_ATTACH),)},
        "Tuning",
        "VolumeUnavailable",
        "FailedAttachVolume: Multi-Attach error",
    ),
    (
        "a volume is not mounted for ten minutes",
        POD.condition("PodReadyToStartContainers", "False"),
        {"events": (cannot_mount("FailedMount", "mount failed: exit status 32", ago=600),)},
        "Finished",
        "VolumeUnavailable",
        "FailedMount: mount failed",
    ),
    (
        "its volumes were mounted at last",
        POD.condition("PodReadyToStartContainers"),
        {"events": (cannot_mount("FailedAttachVolume", MULTI_ATTACH),)},
        "Tuning",
        "Pulling",
        "",
    ),
    (
        "its claim is in use beside it",
        mounting(CHECKED.running(ENGINE)),
        {"claim_nodes": {"models": ("node0",)}},
        "Tuning",
        "Tuning",
        "",
    ),
    (
        "a pod that serves needs its claim on another node",
        mounting(CHECKED.running(ENGINE)),
        {"claim_nodes": {"models": ("node7",)}},
        "GivesWay",
        "Superseded",
        "claim models is ReadWriteOnce, and a pod on node7 needs it",
    ),
    (
        "it has reported before that",
        mounting(CHECKED.running(ENGINE).ended(SEAL_CONTAINER, report=sealed_report("b"))),
        {"claim_nodes": {"models": ("node7",)}},
        "Finished",
        "Sealed",
        "20 entries",
    ),
    (
        "the first pull failed",
        POD.waiting(ENGINE, "ErrImagePull", "x"),
        {},
        "Tuning",
        "Pulling",
        "",
    ),
    (
        "pulls keep failing",
        POD.waiting(ENGINE, "ImagePullBackOff", "no such"),
        {},
        "Finished",
        "ImagePullFailed",
        "no such",
    ),
    (
        "no image name",
        POD.waiting(ENGINE, "InvalidImageName", "x:"),
        {},
        "Finished",
        "ImagePullFailed",
        "container vllm",
    ),
    (
        "a Secret is missing",
        POD.waiting("download", "CreateContainerConfigError", 'secret "hf" not found'),
        {},
        "Finished",
        "ContainerConfigError",
        'container download: CreateContainerConfigError: secret "hf" not found',
    ),
    (
        "a wrong command",
        POD.container(
            ENGINE,
            {"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: vlm"}},
        ),
        {},
        "Finished",
        "ContainerConfigError",
        "exec: vlm",
    ),
    ("check runs", POD.running(CHECK_CONTAINER), {}, "Tuning", "Checking", ""),
    (
        "check refuses",
        POD.ended(CHECK_CONTAINER, 1, REFUSED),
        {},
        "Finished",
        "ReleaseTooOld",
        "vLLM 0.24.0",
    ),
    (
        "check adopts",
        POD.ended(CHECK_CONTAINER, 1, sealed_report("b", "check")),
        {},
        "Finished",
        "Sealed",
        "20 entries",
    ),
    (
        "check dies",
        POD.ended(CHECK_CONTAINER, 137, message="killed"),
        {},
        "Finished",
        "SealFailed",
        "killed",
    ),
    (
        "an init container fails",
        CHECKED.ended("download", 3, message="no disk"),
        {},
        "Finished",
        "InitContainerFailed",
        "no disk",
    ),
    (
        "the engine tunes",
        CHECKED.running(ENGINE),
        {},
        "Tuning",
        "Tuning",
        format_timestamp(NOW - 30),
    ),
    (
        "the engine exits",
        CHECKED.ended(ENGINE, 1, message=WORDS),
        {},
        "Finished",
        "EngineFailed",
        WORDS,
    ),
    (
        "the engine is started again",
        CHECKED.running(
            ENGINE,
            restartCount=1,
            lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        ),
        {},
        "Finished",
        "EngineFailed",
        "exit code 137 (OOMKilled)",
    ),
    (
        "seal works",
        CHECKED.running(ENGINE).running(SEAL_CONTAINER),
        {},
        "Tuning",
        "Sealing",
        format_timestamp(NOW - 30),
    ),
    (
        "seal reports",
        CHECKED.running(ENGINE).ended(SEAL_CONTAINER, report=sealed_report("b")),
        {},
        "Finished",
        "Sealed",
        "20 entries",
    ),
    (
        "seal reports, and the engine is killed after it",
        CHECKED.ended(ENGINE, 137).ended(SEAL_CONTAINER, report=sealed_report("b")),
        {},
        "Finished",
        "Sealed",
        "20 entries",
    ),
    (
        "seal reports of an engine that restarted",
        CHECKED.running(ENGINE, restartCount=2).ended(SEAL_CONTAINER, report=sealed_report("b")),
        {},
        "Finished",
        "EngineFailed",
        "restarted 2 times",
    ),
    (
        "seal dies",
        CHECKED.running(ENGINE).ended(SEAL_CONTAINER, 1, message="Traceback"),
        {},
        "Finished",
        "SealFailed",
        "Traceback",
    ),
    (
        "evicted",
        CHECKED.running(ENGINE).condition(**EVICTED),
        {},
        "Pending",
        "WaitingForPod",
        "preempted",
    ),
    (
        "evicted, and the engine was killed by it",
        CHECKED.ended(ENGINE, 137).condition(**EVICTED).but(status={"phase": "Failed"}),
        {},
        "Pending",
        "WaitingForPod",
        "preempted",
    ),
    (
        "evicted while sealing, after the report",
        CHECKED.ended(SEAL_CONTAINER, report=sealed_report("b")).condition(**EVICTED),
        {},
        "Finished",
        "Sealed",
        "",
    ),
    (
        "evicted once too often",
        POD.condition(**EVICTED),
        {"disruptions": MAX_DISRUPTIONS},
        "Finished",
        "Disrupted",
        "6 pods",
    ),
    (
        "deleted by hand",
        POD.but(deletionTimestamp=format_timestamp(NOW + 5)),
        {},
        "Pending",
        "WaitingForPod",
        "being deleted",
    ),
    (
        "deleted by hand, and the engine was ended by it",
        CHECKED.ended(ENGINE, 0).but(**ENDED),
        {},
        "Pending",
        "WaitingForPod",
        "being deleted",
    ),
    (
        "deleted by hand, and the Job has failed with it",
        CHECKED.ended(ENGINE, 0).but(**ENDED),
        {"job": job("b").failed("BackoffLimitExceeded")},
        "Repeated",
        "WaitingForPod",
        "deleted",
    ),
    (
        "and it is gone",
        None,
        {"job": job("b").failed("BackoffLimitExceeded"), "has_lost_pod": True},
        "Repeated",
        "WaitingForPod",
        "deleted",
    ),
    (
        "the sixth that was deleted",
        None,
        {"job": job("b").failed(), "has_lost_pod": True, "disruptions": MAX_DISRUPTIONS},
        "Finished",
        "Disrupted",
        "6 pods",
    ),
    (
        "suspended, and the engine was ended by it",
        CHECKED.ended(ENGINE, 0).but(**ENDED),
        {"job": job("b", suspend=True), "disruptions": MAX_DISRUPTIONS},
        "Pending",
        "Queued",
        "suspended",
    ),
    (
        "suspended and resumed, and its pod still ends",
        CHECKED.ended(ENGINE, 0).but(**ENDED),
        {"job": job("b").suspended("False", NOW - 3), "disruptions": MAX_DISRUPTIONS},
        "Pending",
        "Queued",
        "suspended",
    ),
    (
        "resumed, and evicted after that",
        CHECKED.running(ENGINE).but(deletionTimestamp=format_timestamp(NOW)).condition(**EVICTED),
        {"job": job("b").suspended("False", NOW - 55)},
        "Pending",
        "WaitingForPod",
        "preempted",
    ),
    (
        "preempted by Kueue",
        None,
        {"job": job("b", suspend=True), "events": (PREEMPTED,)},
        "Pending",
        "Queued",
        "the Job is suspended (Preempted to accommodate a workload (UID: 1))",
    ),
    (
        "preempted by Kueue, and then not Ready in time",
        None,
        {"job": job("b", suspend=True), "events": (NOT_READY, PREEMPTED)},
        "Pending",
        "Queued",
        "(Exceeded the PodsReady timeout ns/job; set waitForPodsReady.timeout",
    ),
    (
        "its node is gone",
        POD.but(deletionTimestamp=format_timestamp(NOW - NODE_LOST_SECONDS)),
        {},
        "Finished",
        "NodeLost",
        "node0",
    ),
    (
        "the deadline",
        CHECKED.ended(ENGINE, 137).but(status={"phase": "Failed", "reason": "DeadlineExceeded"}),
        {},
        "Finished",
        "EngineNotReady",
        "5400 s",
    ),
    (
        "the kubelet refuses the pod",
        POD.but(
            status={
                "phase": "Failed",
                "reason": "UnexpectedAdmissionError",
                "message": "no devices",
            }
        ),
        {},
        "Finished",
        "JobFailed",
        "UnexpectedAdmissionError: no devices",
    ),
]


@pytest.mark.parametrize(
    ("pod", "more", "state", "reason", "words"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_an_attempt_is_read(
    pod: AttemptPod | None, more: dict[str, Any], state: str, reason: str, words: str
) -> None:
    given: dict[str, Any] = {"job": job("b"), "events": (), "disruptions": 0, **more}
    state_now = read_attempt(
        Attempt(number=1, pod=pod if pod else None, now=NOW, **given), ATTEMPT_CHECKS
    )
    assert (state_now.state, state_now.reason) == (state, reason)
    assert words in state_now.message
    assert state_now.reason in REASONS


def test_a_refused_pods_name_is_left_out_so_that_the_status_is_not_written_at_each_try() -> None:
    one, two = (
        read_attempt(
            Attempt(1, job("b"), None, (failed_create(QUOTA.replace("x7k2p", name)),), 0, NOW),
            ATTEMPT_CHECKS,
        )
        for name in ("aaaaa", "bbbbb")
    )
    assert one == two


def test_a_job_without_a_pod_is_looked_at_again_when_its_events_may_be_shown() -> None:
    fresh = job("b")
    fresh["metadata"]["creationTimestamp"] = format_timestamp(NOW)
    assert (
        read_attempt(Attempt(1, fresh, None, (), 0, NOW), ATTEMPT_CHECKS).recheck_at
        == NOW + POD_GRACE_SECONDS
    )


def test_every_check_answers_some_row_of_the_table() -> None:
    """A check that no row needs is no check."""
    for check in ATTEMPT_CHECKS:
        rest = [one for one in ATTEMPT_CHECKS if one is not check]
        answers = []
        for _, pod, more, _, reason, words in TABLE:
            given: dict[str, Any] = {"job": job("b"), "events": (), "disruptions": 0, **more}
            attempt = Attempt(number=1, pod=pod if pod else None, now=NOW, **given)
            state_now = next((said for one in rest if (said := one(attempt)) is not None), None)
            answers.append(
                state_now is not None and state_now.reason == reason and words in state_now.message
            )
        assert not all(answers), check.__name__


def test_an_init_container_that_admission_appended_is_not_taken_for_the_engine() -> None:
    """Vault's and Dynatrace's injectors append one: it runs once the engine is ready."""
    pod = CHECKED.ended("download").running(ENGINE).waiting("dynatrace", "PodInitializing")
    pod["spec"]["initContainers"].append({"name": "dynatrace"})
    pod["metadata"]["annotations"] = {"pretune.dev/engine": ENGINE}
    state = read_attempt(Attempt(1, job("b"), pod, (), 0, NOW), ATTEMPT_CHECKS)
    assert state.reason == "Tuning"
    assert "init container dynatrace, which admission appended, runs after it" in state.message
    crashed = pod.ended(ENGINE, 1, message=WORDS)
    state = read_attempt(Attempt(1, job("b"), crashed, (), 0, NOW), ATTEMPT_CHECKS)
    assert (state.reason, "container vllm" in state.message) == ("EngineFailed", True)
    checking = POD.ended(CHECK_CONTAINER).ended("download").waiting(ENGINE, "PodInitializing")
    checking = checking.waiting("dynatrace", "PodInitializing")
    checking["spec"], checking["metadata"] = pod["spec"], pod["metadata"]
    state = read_attempt(Attempt(1, job("b"), checking, (), 0, NOW), ATTEMPT_CHECKS)
    assert state.reason == "Checking"


@pytest.mark.parametrize(
    ("cause", "words", "expected"),
    [
        ("ValueError: head size 7", WORDS, "ValueError: head size 7"),
        (
            "",
            "Traceback (most recent call last):\n  x\nValueError: head size 7\nbye",
            "ValueError: head size 7",
        ),
        ("", WORDS, WORDS),
    ],
    ids=["from the log", "from the termination message", "its last words"],
)
def test_a_failed_engine_is_described_by_its_cause_and_the_command_that_shows_the_rest(
    cause: str, words: str, expected: str
) -> None:
    pod = CHECKED.ended(ENGINE, 1, message=words)
    state = read_attempt(Attempt(1, job("b"), pod, (), 0, NOW, cause=cause), ATTEMPT_CHECKS)
    assert state.message == (
        f"container vllm: exit code 1: {expected}; its log: kubectl logs -n inference pod -c vllm"
    )


def test_a_failed_start_is_read_once() -> None:
    pod, bundle = CHECKED.ended(ENGINE, 1), bundle_json("b-default", names.TUNING_STATE)
    seen = observed(cache({"bundles": [bundle]}), pods=(pod,))
    assert list_failed_starts(seen) == (FailedStart("pod", "pod-uid", "vllm", False),)
    again = CHECKED.running(ENGINE, lastState={"terminated": {"exitCode": 1}}, restartCount=1)
    [start] = list_failed_starts(replace(seen, pods=(again,)))
    assert start.is_previous
    failure = {"reason": "EngineFailed", "attempt": 1, "at": format_timestamp(NOW)}
    recorded = cache({"bundles": [{**bundle, "lastFailure": failure}]})
    for other in (
        replace(seen, cache=recorded),
        replace(seen, pods=(CHECKED.running(ENGINE),)),
        replace(seen, pods=(pod.ended(SEAL_CONTAINER, report=sealed_report("b")),)),
    ):
        assert list_failed_starts(other) == ()
