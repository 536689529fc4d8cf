"""Which consumers cannot start because of us, and their rescue.

The messages of scheduler and kubelet are real ones.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.names import BUNDLE, REASON, SEED_CONTAINER
from pretune.api.reasons import REASONS, Refused
from pretune.api.status import MAX_BUNDLES
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.controller import project
from pretune.policy.model import Delete
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods import mount_failures, seed_failures
from pretune.policy.pods.consumers import list_consumers
from pretune.policy.pods.mount_failures import SEED_TIMEOUT_SECONDS
from pretune.policy.pods.rescue import NODE_MARK_SECONDS, SEED_MARK_SECONDS, rescue
from pretune.policy.pods.start_failures import find_start_failure, needs_events, next_check_at
from pretune.policy.pods.starting_pod import START_GRACE_SECONDS, StartFailure, StartingPod

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import KEY, NOW
from tests.builders.observed import bundle_of, observed, origin
from tests.builders.pods import Consumer

# Pods as Kubernetes 1.34.4 reported them, about ten minutes after they were created.
SEEN: dict[str, Any] = json.loads((Path(__file__).parent / "data/stuck.json").read_text())
LATER = parse_timestamp("2026-11-22T20:50:00Z")


def real(name: str, now: float = LATER, **more: Any) -> StartingPod:
    case = {**copy.deepcopy(SEEN[name]), **more}
    case["pod"]["metadata"]["annotations"] = {BUNDLE: "b"}
    return StartingPod(
        case["pod"],
        tuple(case["events"]),
        case["claim"],
        tuple(case.get("claimEvents", ())),
        case["claimName"],
        now,
    )


def changed(name: str, message: str, to: str) -> StartingPod:
    """Return a real case in which the scheduler or the kubelet reports something else."""
    text = json.dumps(SEEN[name])
    assert message in text
    return real(name, **json.loads(text.replace(message, to)))


# --- what is ours


@pytest.mark.parametrize(
    ("name", "reason", "words", "due"),
    [
        ("absent-claim", "ClaimNotFound", 'persistentvolumeclaim "absent" not found', "20:38:34"),
        (
            "deleting",
            "ClaimTerminating",
            'persistentvolumeclaim "deleting" is being deleted',
            "20:39:28",
        ),
        (
            "lost",
            "ClaimLost",
            'bound to non-existent persistentvolume "rescue-lab-lost"',
            "20:39:28",
        ),
        ("never-bound", "ClaimPending", "unbound immediate PersistentVolumeClaims", "20:38:34"),
        ("never-wait", "ClaimPending", "binding volumes: context deadline exceeded", "20:48:35"),
        ("static-none", "ClaimPending", "didn't find available persistent volumes", "20:38:35"),
        (
            "affinity",
            "VolumeUnreachable",
            "didn't match PersistentVolume's node affinity.",
            "20:38:44",
        ),
        (
            "gated-absent",
            "ClaimNotFound",
            "not found",
            "20:40:41",
        ),  # released at 20:39:41, two minutes after it was created
        ("gone-path", "MountFailed", "/tmp/rescue-lab-none is not a directory", "20:38:44"),
        ("nfs", "MountFailed", "unknown filesystem type 'nfs'", "20:38:44"),
        (
            "csi",
            "MountFailed",
            "timed out waiting for external-attacher of none.example.com",
            "20:38:44",
        ),
        ("on-node-absent", "MountFailed", 'persistentvolumeclaims "absent" not found', "20:39:28"),
        ("on-node-never", "MountFailed", "PVC is not bound", "20:39:28"),
        ("no-sh", "SeedCannotRun", "StartError, exit code 128: failed to create", "20:39:37"),
        (
            "seed-fails",
            "SeedCannotRun",
            "container pretune-seed: Error, exit code 3: bad",
            "20:39:11",
        ),
        ("seed-hangs", "MountFailed", "runs for more than 90 s", "20:39:07"),
    ],
)
def test_a_pod_that_only_our_storage_or_container_keeps_from_starting_has_a_start_failure(
    name: str, reason: str, words: str, due: str
) -> None:
    failure = find_start_failure(real(name))
    assert failure is not None
    assert (failure.reason, format_timestamp(failure.due)[11:19]) == (reason, due)
    assert words in failure.message
    assert reason in REASONS


@pytest.mark.parametrize(
    "name",
    [
        "affinity-gpu",  # an unreachable volume, and no GPU: nodes are asked for GPUs first
        "other-volume",  # a claim of the pod's own is not there
        "secret-missing",  # our volume fails, and so does one of the pod's own
        "secret-only",
        "first-init-waits",  # the init container before ours
        "seed-pull",  # the engine's image
        "config-error",  # what our container copied of the engine: that would not start either
        "mount-a-file",  # it runs
    ],
)
def test_a_pod_that_would_not_start_without_us_either_has_none(name: str) -> None:
    assert find_start_failure(real(name)) is None


NODES = "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity."
MANY = "0/9 nodes are available: 3 Insufficient nvidia.com/gpu, 6 node(s) had volume node affinity conflict."
CPU_ONLY = "0/9 nodes are available: 3 %s, 6 node(s) didn't match PersistentVolume's node affinity."
DEVICES = '"spec": {"resourceClaims": [{"name": "gpus", "resourceClaimName": "b200"}], "volumes": [{"name": "pretune-claim"'
NONE = "0/9 nodes are available: 9 Insufficient nvidia.com/gpu. preemption: 0/9 nodes are available: 9 no volume."


@pytest.mark.parametrize(
    ("case", "pod", "reason"),
    [
        (
            "older words, and other nodes without GPUs",
            changed("affinity", NODES, MANY),
            "VolumeUnreachable",
        ),
        *(
            (
                f"nodes that volumes would let it have: {words}",
                changed("affinity", NODES, CPU_ONLY % words),
                "",
            )
            for words in (  # 1.34's, and those of DRA before 1.32 last
                "node(s) didn't match pod topology spread constraints",
                "node(s) didn't match pod topology spread constraints (missing required label)",
                "node(s) didn't match pod affinity rules",
                "node(s) didn't match pod anti-affinity rules",
                "node(s) didn't satisfy existing pods anti-affinity rules",
                "cannot allocate all claims",
                "resourceclaim not available on the node",
                "waiting for resource driver to allocate resource",
            )
        ),
        (
            "nodes with taints",
            changed("affinity", NODES, CPU_ONLY % "node(s) had untolerated taint(s)"),
            "VolumeUnreachable",
        ),
        (
            "not bound, and a GPU is waited for",
            changed(
                "static-none",
                "0/1 nodes are available: ",
                "0/4 nodes are available: 3 cannot allocate all claims, ",
            ),
            "",
        ),
        (
            "it asks for devices",
            changed("affinity", '"spec": {"volumes": [{"name": "pretune-claim"', DEVICES),
            "",
        ),
        (
            "devices, and no claim",
            changed("absent-claim", '"spec": {"volumes": [{"name": "pretune-claim"', DEVICES),
            "ClaimNotFound",
        ),
        ("no GPU anywhere", changed("affinity", NODES, NONE), ""),
        (
            "a second claim may be the cause",
            changed("affinity", '"name": "kube', '"ephemeral": {}, "name": "kube'),
            "",
        ),
        (
            "the pod mounts that claim by itself",
            changed("absent-claim", '"pretune-claim"', '"models"'),
            "",
        ),
        ("mounted by itself, and failing", changed("gone-path", '"pretune-claim"', '"models"'), ""),
        (
            "another claim is not found",
            changed("absent-claim", '\\"absent\\"', '\\"absent-2\\"'),
            "",
        ),
        ("the claim came meanwhile", real("absent-claim", claim=SEEN["never-bound"]["claim"]), ""),
        ("the claim was bound meanwhile", changed("never-bound", '"Pending"}}', '"Bound"}}'), ""),
        ("a new claim came in its place", changed("deleting", "deletionTimestamp", "x"), ""),
        ("the volume is back", changed("lost", '"Lost"}}', '"Bound"}}'), ""),
        (
            "the cache's claim is another one by now",
            real("deleting", claimName="other", claim=None),
            "ClaimTerminating",
        ),
        (
            "the claim is gone, the kubelet says so",
            real("on-node-never", claim=None),
            "MountFailed",
        ),
        ("gone, and only its volume is named", real("gone-path", claim=None), ""),
        ("no event was reported yet", real("gone-path", events=[]), ""),
        ("the scheduler chooses", changed("never-wait", "SchedulerError", "SchedulingGated"), ""),
        (
            "our container is pulled",
            changed("no-sh", '"CrashLoopBackOff"', '"ImagePullBackOff"'),
            "",
        ),
    ],
)
def test_a_message_counts_only_where_what_is_observed_agrees(
    case: str, pod: StartingPod, reason: str
) -> None:
    failure = find_start_failure(pod)
    assert (failure.reason if failure else "") == reason, case


def test_a_mount_that_failed_at_first_only_is_no_failure() -> None:
    """Attaching takes a minute and a half on some clouds: one failure before that does not count."""
    case = copy.deepcopy(SEEN["gone-path"])
    failure = case["events"][-1]
    assert failure["reason"] == "FailedMount"
    begun = parse_timestamp("2026-11-22T20:37:44Z")
    for last, expected in (
        (begun + mount_failures.MOUNT_GRACE_SECONDS - 1, False),
        (begun + mount_failures.MOUNT_GRACE_SECONDS, True),
    ):
        failure["lastTimestamp"] = format_timestamp(last)
        assert (find_start_failure(real("gone-path", **case)) is not None) is expected


def test_another_volume_that_fails_excuses_ours_while_it_goes_on_failing() -> None:
    case = copy.deepcopy(SEEN["secret-missing"])
    [ours] = [event for event in case["events"] if "rescue-lab-gone" in event["message"]]
    [other] = [event for event in case["events"] if '"conf"' in event["message"]]
    for ahead, expected in (
        (mount_failures.MOUNT_RETRY_SECONDS, False),
        (mount_failures.MOUNT_RETRY_SECONDS + 1, True),
    ):
        ours["lastTimestamp"] = format_timestamp(parse_timestamp(other["lastTimestamp"]) + ahead)
        assert (find_start_failure(real("secret-missing", **case)) is not None) is expected


def test_volumes_that_are_not_mounted_are_read_from_an_event_about_several() -> None:
    message = (
        "Unable to attach or mount volumes: unmounted volumes=[pretune-claim %s], unattached volumes=[],"
        " failed to process volumes=[]: timed out waiting for the condition"
    )
    case = copy.deepcopy(SEEN["on-node-absent"])
    for other, expected in (("models", False), ("pretune-agent", True)):
        case["events"][0]["message"] = message % other
        assert (find_start_failure(real("on-node-absent", **case)) is not None) is expected


def test_a_provisioner_that_refuses_is_our_storages_fault_before_the_scheduler_gives_up() -> None:
    """The scheduler waits ten minutes for it, and says nothing meanwhile."""
    case = copy.deepcopy(SEEN["never-wait"])
    case["pod"]["status"]["conditions"] = []

    def at(when: str) -> str:
        return f"2026-11-22T{when}Z"

    refused = {
        "type": "Warning",
        "reason": "ProvisioningFailed",
        "message": "failed to provision volume: quota exceeded",
        "metadata": {"creationTimestamp": at("20:40:00")},
        "lastTimestamp": at("20:45:00"),
    }
    assert find_start_failure(real("never-wait", **case)) is None
    assert next_check_at(real("never-wait", **case)) is not None
    case["claimEvents"] = [refused]
    failure = find_start_failure(real("never-wait", **case))
    assert failure == StartFailure(
        "ClaimPending",
        "claim never-wait gets no volume: failed to provision volume: quota exceeded",
        parse_timestamp(at("20:41:00")),
    )
    assert (
        find_start_failure(real("never-wait", now=LATER + 600, **case)) is None
    )  # long silent: it may work on it


# --- seed's own time


PULLED = parse_timestamp("2026-11-22T20:45:00Z")  # seven minutes after its sandbox


def seed(
    state: Object, restarts: int = 0, last: Object | None = None, now: float = 0.0, **more: Any
) -> StartingPod:
    """A pod whose image came at PULLED, and then seed stood like this."""
    pod = real("no-sh", now=PULLED + now, **more)
    [status] = pod.object["status"]["initContainerStatuses"]
    status.update(
        state=state, restartCount=restarts, lastState={"terminated": last} if last else {}
    )
    return pod


def end(code: int, after: float = 0.0, reason: str = "Error") -> Object:
    return {
        "exitCode": code,
        "reason": reason,
        "finishedAt": format_timestamp(PULLED + after),
        "startedAt": format_timestamp(PULLED),
    }


LOOP = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
UNMADE = {"waiting": {"reason": "CreateContainerError", "message": "context deadline exceeded"}}
NO_SHELL = end(128, reason="StartError")


@pytest.mark.parametrize(
    ("case", "pod", "after"),
    [
        ("its first bad end", seed({"terminated": end(3)}), None),
        ("restarted once", seed(LOOP, 1, end(3, 1)), None),
        (
            "restarted twice, ten seconds later",
            seed(LOOP, 2, end(3, 12)),
            2 + START_GRACE_SECONDS,
        ),
        ("three times: it failed for 30 s", seed(LOOP, 3, end(3, 33)), 3 + START_GRACE_SECONDS),
        (
            "it ends badly for the third time",
            seed({"terminated": end(3, 12)}, 2, end(3, 1)),
            1 + START_GRACE_SECONDS,
        ),
        (
            "its restarts took longer",
            seed({"terminated": end(3, 47)}, 3, end(3, 17)),
            7 + START_GRACE_SECONDS,
        ),
        (
            "killed before",
            seed({"terminated": end(3, 12)}, 2, end(137, 1)),
            2 + START_GRACE_SECONDS,
        ),
        ("it runs again", seed({"running": {}}, 3, end(3, 33)), None),
        ("ended by its node", seed({"terminated": end(255, reason="Unknown")}, 2), None),
        ("ended by its node, and waits", seed(LOOP, 4, end(255, reason="Unknown")), None),
        ("killed", seed({"terminated": end(137, reason="OOMKilled")}, 4), None),
        ("killed, and waits", seed(LOOP, 4, end(137)), None),
        ("it ended well, and is recreated with its node", seed(LOOP, 4, end(0)), None),
        ("no program: once is enough", seed({"terminated": NO_SHELL}), START_GRACE_SECONDS),
        (
            "no program, other runtimes' words",
            seed({"terminated": end(127, reason="ContainerCannotRun")}),
            START_GRACE_SECONDS,
        ),
        (
            "no program, and waits",
            seed(LOOP, 3, end(128, 33, "StartError")),
            3 + START_GRACE_SECONDS,
        ),
        ("refused after it could not run", seed(UNMADE, 1, NO_SHELL, now=45), START_GRACE_SECONDS),
        (
            "refused after its node ended",
            seed(UNMADE, 1, end(255), now=45, events=[]),
            45 + START_GRACE_SECONDS,
        ),
        ("refused, no event read", seed(UNMADE, now=5, events=[]), 5 + START_GRACE_SECONDS),
    ],
)
def test_seed_fails_by_its_own_errors_and_their_time(
    case: str, pod: StartingPod, after: float | None
) -> None:
    """Its image may have been pulled for minutes, and the kubelet restarts it."""
    failure = find_start_failure(pod)
    assert (failure.due - PULLED if failure else None) == after, case


def test_seed_that_cannot_be_created_counts_from_the_first_event_that_reports_it() -> None:
    """Its status has no time of it."""

    def at(after: float, message: str) -> Object:
        return {
            "reason": "Failed",
            "message": message,
            "metadata": {"creationTimestamp": format_timestamp(PULLED + after)},
        }

    pulls = [
        at(-300, "Error: ErrImagePull"),
        at(-290, "Error: ImagePullBackOff"),
        at(-300, "Failed to pull image x: no route"),
    ]
    refused = [
        at(2, "Error: context deadline exceeded"),
        at(12, "Error: failed to reserve container name x"),
    ]
    failure = find_start_failure(seed(UNMADE, now=40, events=[*pulls, *refused]))
    assert failure == StartFailure(
        "SeedCannotRun",
        "container pretune-seed: CreateContainerError: context deadline exceeded",
        PULLED + 2 + START_GRACE_SECONDS,
        is_of_node=True,
    )
    unread = find_start_failure(seed(UNMADE, now=40, events=pulls))
    assert unread is not None
    assert unread.due == PULLED + 40 + START_GRACE_SECONDS


def test_seeds_time_counts_from_the_end_of_the_init_containers_before_it() -> None:
    """A model that is fetched for twenty minutes is no fault of seed's."""
    case = copy.deepcopy(SEEN["no-sh"])
    fetch = {
        "name": "fetch",
        "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-22T20:45:00Z"}},
    }
    case["pod"]["status"]["initContainerStatuses"].insert(0, fetch)
    failure = find_start_failure(real("no-sh", **case))
    assert failure is not None
    assert failure.due == parse_timestamp("2026-11-22T20:45:00Z") + START_GRACE_SECONDS


def test_a_handle_that_went_stale_keeps_the_engine_from_its_next_start() -> None:
    """Seed and the engine ran, and the runtime cannot stat what the kubelet has mounted."""
    pod = real("mount-a-file")
    [engine] = pod.object["status"]["containerStatuses"]
    path = "/var/lib/kubelet/pods/0/volumes/kubernetes.io~nfs/rescue-lab-file"
    engine["state"] = {
        "waiting": {
            "reason": "CreateContainerError",
            "message": f'failed to generate container spec: failed to stat "{path}": stale NFS file handle',
        }
    }
    engine["lastState"] = {"terminated": {"exitCode": 1, "finishedAt": "2026-11-22T20:48:00Z"}}
    failure = find_start_failure(pod)
    assert failure is not None
    assert failure.reason == "MountFailed"
    assert "stale NFS file handle" in failure.message
    assert failure.due == parse_timestamp("2026-11-22T20:48:00Z") + START_GRACE_SECONDS
    engine["state"]["waiting"]["message"] = "failed to reserve container name"
    assert find_start_failure(pod) is None


@pytest.mark.parametrize(
    ("case", "exit_code", "conditions", "ago", "expected"),
    [
        ("no /bin/sh", 128, [], 0, True),
        ("it failed by itself", 3, [], 0, True),
        ("evicted", 3, [{"type": "DisruptionTarget", "status": "True"}], 0, False),
        ("killed from outside", 137, [], 0, False),
        ("ended by its node", 255, [], 0, False),
        ("it did well: the engine failed", 0, [], 0, False),
        ("long over", 128, [], seed_failures.ENDED_POD_SECONDS + 1, False),
    ],
)
def test_a_jobs_pod_that_failed_by_seed_counts_at_once(
    case: str, exit_code: int, conditions: list[Object], ago: float, expected: bool
) -> None:
    """restartPolicy Never: it is over at the first failure, and its Job makes the next one."""
    pod = real("no-sh-never", now=parse_timestamp("2026-11-22T20:37:37Z") + ago)
    pod.object["status"]["conditions"] += conditions
    [status] = pod.object["status"]["initContainerStatuses"]
    status["state"]["terminated"]["exitCode"] = exit_code
    failure = find_start_failure(pod)
    assert (failure is not None) is expected, case
    assert failure is None or failure.due <= pod.now


# --- whose events are read


def condition(kind: str, status: str, ago: float, **more: str) -> Object:
    return {
        "type": kind,
        "status": status,
        "lastTransitionTime": format_timestamp(NOW - ago),
        **more,
    }


def consumer(ago: float = 300, node: str = "node0", **fields: Any) -> Object:
    """A consumer that was given bundle `b`, `ago` seconds old."""
    meta = {
        "name": "web",
        "creationTimestamp": format_timestamp(NOW - ago),
        "annotations": {BUNDLE: "b"},
    }
    spec = {"nodeName": node} if node else {}
    return {
        "metadata": meta | fields.pop("metadata", {}),
        "spec": spec | fields.pop("spec", {}),
        "status": {"phase": "Pending", **fields},
    }


SANDBOX, SCHEDULED = "PodReadyToStartContainers", "PodScheduled"
RUNNING = [{"name": "vllm", "state": {"running": {"startedAt": format_timestamp(NOW)}}}]
RESTARTS = [
    {"name": "vllm", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}
]
WAITING = [{"name": "vllm", "state": {"waiting": {"reason": "PodInitializing"}}, "restartCount": 0}]
PULLS = {"waiting": {"reason": "ImagePullBackOff"}}
BY_CLAIM = '0/1 nodes are available: persistentvolumeclaim "pretune-qwen3" not found. not found'
BY_GPU = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"
)


@pytest.mark.parametrize(
    ("case", "pod", "expected"),
    [
        ("volumes not mounted", consumer(conditions=[condition(SANDBOX, "False", 200)]), True),
        ("an older kubelet, nothing ran", consumer(containerStatuses=WAITING), True),
        ("an older kubelet, it runs", consumer(containerStatuses=RUNNING), False),
        ("an older kubelet, it crashes", consumer(containerStatuses=RESTARTS), False),
        (
            "sandbox there: the rest is images and programs",
            consumer(conditions=[condition(SANDBOX, "True", 200)]),
            False,
        ),
        (
            "sandbox there, and seed cannot be created",
            consumer(
                conditions=[condition(SANDBOX, "True", 200)],
                initContainerStatuses=[{"name": SEED_CONTAINER, "state": UNMADE}],
            ),
            True,
        ),
        (
            "sandbox there, and seed waits for its image",
            consumer(
                conditions=[condition(SANDBOX, "True", 200)],
                initContainerStatuses=[{"name": SEED_CONTAINER, "state": PULLS}],
            ),
            False,
        ),
        (
            "given to its node just now",
            consumer(conditions=[condition(SCHEDULED, "True", START_GRACE_SECONDS - 1)]),
            False,
        ),
        (
            "given to its node long ago",
            consumer(conditions=[condition(SCHEDULED, "True", START_GRACE_SECONDS)]),
            True,
        ),
        (
            "its node was restarted just now",
            consumer(conditions=[condition(SANDBOX, "False", 5)]),
            False,
        ),
        (
            "unschedulable by a claim",
            consumer(node="", conditions=[condition(SCHEDULED, "False", 200, message=BY_CLAIM)]),
            True,
        ),
        (
            "unschedulable for want of GPUs",
            consumer(node="", conditions=[condition(SCHEDULED, "False", 200, message=BY_GPU)]),
            False,
        ),
        ("not looked at by a scheduler", consumer(node=""), False),
        ("young", consumer(ago=START_GRACE_SECONDS - 1), False),
        ("left alone by the webhook", consumer(metadata={"annotations": {}}), False),
        ("held", consumer(spec={"schedulingGates": [{"name": "pretune.dev/hold"}]}), False),
        (
            "gated by another",
            consumer(spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}),
            False,
        ),
        (
            "being deleted",
            consumer(metadata={"deletionTimestamp": format_timestamp(NOW - 5)}),
            False,
        ),
        ("over", consumer(phase="Failed"), False),
    ],
)
def test_events_are_read_of_pods_that_volumes_keep_from_starting_and_of_no_other(
    case: str, pod: Object, expected: bool
) -> None:
    assert needs_events(pod, NOW) is expected, case


# --- what becomes of them

GIVEN = "b-default"


def stuck_pod(number: int = 1, **meta: Any) -> Consumer:
    """One that the kubelet cannot start: no /bin/sh."""
    status = json.loads(
        re.sub(
            r"2026-11-22T[0-9:]*Z",
            format_timestamp(NOW - 200),
            json.dumps(SEEN["no-sh"]["pod"]["status"]),
        )
    )
    return (
        Consumer("web", number, age=300)
        .given(GIVEN)
        .meta(**meta)
        ._but(spec={"nodeName": "node0"}, status=status)
    )


def unscheduled(number: int = 1, message: str = BY_CLAIM, **meta: Any) -> Consumer:
    """One that the scheduler cannot place because of our claim."""
    name = f"pretune-{KEY.name}"
    volumes = [
        {"name": "pretune-claim", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}
    ]
    conditions = [condition(SCHEDULED, "False", 200, message=message, reason="Unschedulable")]
    return (
        Consumer("web", number, age=300)
        .given(GIVEN)
        .meta(**meta)
        ._but(spec={"volumes": volumes}, status={"conditions": conditions})
    )


def run(
    *pods: Consumer, now: float = NOW, record: Object | None = None, **more: Any
) -> PlanBuilder:
    the_cache = cache({"bundles": [record if record is not None else sealed()]})
    plan = PlanBuilder(observed(the_cache, consumers=tuple(pods), **more), now)
    rescue(plan, list_consumers(plan))
    return plan


def sealed(**more: Any) -> Object:
    return bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 3600), **more)


def mark(reason: str = "MountFailed", **more: Any) -> Object:
    return {
        "reason": reason,
        "message": "m",
        "at": format_timestamp(NOW - 60),
        "claimUID": "claim-uid",
        **more,
    }


def status(plan: PlanBuilder) -> Object:
    """The bundle's, as it will be written."""
    return plan.bundles[GIVEN].to_dict()


def deleted(plan: PlanBuilder) -> list[str]:
    assert not plan.actions
    assert all(isinstance(action, Delete) for action in plan.after)
    return [
        f"{action.object['metadata']['name']} {action.object['metadata']['uid']}"
        for action in plan.after
    ]  # type: ignore[attr-defined]


def test_the_bundle_is_marked_and_all_its_stuck_pods_are_deleted_in_one_reconcile() -> None:
    plan = run(stuck_pod(1), stuck_pod(2), Consumer("web", 3).given(GIVEN).runs())
    assert deleted(plan) == ["web-1 uid-web-1", "web-2 uid-web-2"]
    found = status(plan)["undeliverable"]
    assert (found["reason"], found["at"], found["claimUID"]) == (
        "SeedCannotRun",
        format_timestamp(NOW),
        "claim-uid",
    )
    assert "/bin/sh" in found["message"]
    [event] = plan.events
    assert (event.reason, event.warning) == ("Rescued", True)
    assert event.message.startswith(
        f"bundle {GIVEN}: 2 pods (web-1, web-2) could not start: SeedCannotRun: "
    )
    assert event.message.endswith("; deleted: its replacement starts without the bundle")


def test_a_pod_that_gets_stuck_after_the_mark_is_deleted_too_and_the_mark_stays() -> None:
    plan = run(stuck_pod(4), record=sealed(undeliverable=mark()))
    assert deleted(plan) == ["web-4 uid-web-4"]
    assert status(plan)["undeliverable"] == mark()
    assert [event.reason for event in plan.events] == ["Rescued"]


def test_a_pod_that_is_being_deleted_is_not_deleted_again() -> None:
    plan = run(stuck_pod(deletionTimestamp=format_timestamp(NOW - 1)))
    assert (plan.after, plan.events, "undeliverable" in status(plan)) == ([], [], False)


def test_a_pod_without_a_controller_is_reported_once_and_not_deleted() -> None:
    bare = stuck_pod(ownerReferences=[])
    first = run(bare)
    assert deleted(first) == []
    assert "undeliverable" in status(first)
    [event] = first.events
    assert event.message.endswith(
        "; no controller owns it: delete it and recreate it, and it starts without the bundle"
    )
    again = run(bare, record=status(first))
    assert (again.after, again.events) == ([], [])


def test_a_jobs_failed_pod_marks_the_bundle_and_stays() -> None:
    pod = stuck_pod()
    pod["status"] = copy.deepcopy(SEEN["no-sh-never"]["pod"]["status"])
    [seed] = pod["status"]["initContainerStatuses"]
    seed["state"]["terminated"]["finishedAt"] = format_timestamp(NOW - 5)
    plan = run(pod, record=bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 3600)))
    assert deleted(plan) == []
    assert status(plan)["undeliverable"]["reason"] == "SeedCannotRun"
    assert plan.events[0].message.endswith("; later pods start without the bundle")
    sealed_since = run(pod, record=bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 1)))
    assert "undeliverable" not in status(sealed_since)


def test_no_pod_is_rescued_before_its_time_and_the_plan_requeues_for_it() -> None:
    pod = stuck_pod()
    [sandbox] = [each for each in pod["status"]["conditions"] if each["type"] == SANDBOX]
    sandbox["lastTransitionTime"] = format_timestamp(NOW - START_GRACE_SECONDS + 7)
    plan = run(pod)
    assert (plan.after, plan.events, plan.requeue_time) == ([], [], NOW + 7)


def test_a_pod_whose_claim_is_not_the_caches_any_more_is_deleted_without_a_mark() -> None:
    """spec.storage was changed: the next one is given the new claim."""
    pod = unscheduled(message=BY_CLAIM.replace("pretune-qwen3", "old"))
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "old"
    plan = run(pod)
    assert deleted(plan) == ["web-1 uid-web-1"]
    assert "undeliverable" not in status(plan)


@pytest.mark.parametrize("more", [{}, {"source": Refused("SourceNotFound", "it is gone")}])
def test_a_bundle_without_a_record_gets_one_for_its_mark(more: Any) -> None:
    """Else the replacement would be given the same, for ever. Its source is refused, say."""
    plan = run(stuck_pod(), record=bundle_json("other-default"), **more)
    assert deleted(plan) == ["web-1 uid-web-1"]
    found = status(plan)
    assert (found["state"], found["target"], found["attempts"]) == ("Pending", "default", 0)
    assert found["undeliverable"]["reason"] == "SeedCannotRun"
    assert plan.bundles[GIVEN].is_only_marked


def test_a_pod_is_not_deleted_where_the_status_has_no_room_for_a_mark() -> None:
    many = [bundle_json(f"{number:012x}-default") for number in range(MAX_BUNDLES)]
    plan = PlanBuilder(observed(cache({"bundles": many}), consumers=(stuck_pod(),)), NOW)
    rescue(plan, list_consumers(plan))
    assert (plan.after, plan.events, GIVEN in plan.bundles) == ([], [], False)


def on(node: str, pod: Consumer) -> Consumer:
    return pod._but(spec={"nodeName": node})


def failing_seed(number: int, node: str) -> Consumer:
    """Its seed ends with an error, of which it is not known whether it is the node's."""
    text = json.dumps(SEEN["seed-fails"]["pod"]["status"])
    text = re.sub(r"2026-11-22T[0-9:]*Z", format_timestamp(NOW - 200), text)
    pod = Consumer("web", number, age=300).given(GIVEN)
    return on(node, pod.but(**json.loads(text)))


ELSEWHERE = on("node9", Consumer("web", 9).ready())
WIDELY: list[tuple[str, tuple[Consumer, ...], Object | None, str | None]] = [
    # case, pods, an earlier mark, the node of the mark
    ("pods of one node, and others run elsewhere", (failing_seed(1, "node0"), failing_seed(2, "node0"), ELSEWHERE), None, "node0"),
    ("pods of two nodes", (failing_seed(1, "node0"), failing_seed(2, "node1"), ELSEWHERE), None, None),
    ("a pod of a second node", (failing_seed(2, "node1"), ELSEWHERE), mark("SeedCannotRun", node="node0"), None),
    ("again one of the first node", (failing_seed(2, "node0"), ELSEWHERE), mark("SeedCannotRun", node="node0"), "node0"),
    ("the cache has pods on no other node", (failing_seed(1, "node0"), failing_seed(2, "node0")), None, None),
    ("the image has no shell", (stuck_pod(), ELSEWHERE), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("case", "pods", "before", "node"), WIDELY, ids=[one[0] for one in WIDELY])
def test_a_bundle_is_withdrawn_for_long_if_pods_of_two_nodes_cannot_start_with_it(
    case: str, pods: tuple[Consumer, ...], before: Object | None, node: str | None
) -> None:
    plan = run(*pods, record=sealed(**({"undeliverable": before} if before else {})))
    found = plan.bundles[GIVEN].undeliverable
    assert found is not None and found.node == node
    assert deleted(plan)
    until = found.at + (NODE_MARK_SECONDS if node else SEED_MARK_SECONDS)
    assert run(record=status(plan), now=until - 1).bundles[GIVEN].undeliverable == found
    assert run(record=status(plan), now=until).bundles[GIVEN].undeliverable is None


def test_a_mark_names_the_image_in_which_seed_cannot_run() -> None:
    bundle = bundle_of("web")
    pod = stuck_pod().given(bundle)
    plan = PlanBuilder(
        observed(cache({}), consumers=(pod,), origins=origin("web"), source=None), NOW
    )
    rescue(plan, list_consumers(plan))
    found = plan.bundles[bundle].undeliverable
    assert found is not None and (found.image, found.node) == ("vllm:web", None)


def test_a_jobs_pod_is_not_deleted_since_the_job_would_count_it() -> None:
    [owner] = stuck_pod()["metadata"]["ownerReferences"]
    job = {**owner, "apiVersion": "batch/v1", "kind": "Job"}
    plan = run(stuck_pod(ownerReferences=[job]))
    assert deleted(plan) == [] and "undeliverable" in status(plan)
    assert "its Job counts a deleted pod as failed" in plan.events[0].message


def test_a_claim_that_is_not_there_marks_without_its_uid() -> None:
    plan = run(unscheduled(), claim=None)
    assert deleted(plan) == ["web-1 uid-web-1"]
    assert "claimUID" not in status(plan)["undeliverable"]


def test_a_pod_that_was_held_until_now_gets_its_minute() -> None:
    """PodScheduled keeps the time of the pod's creation.

    Only the scheduler's first event tells when the pod was released.
    """
    pod = unscheduled().noted(**{REASON: "Held: 4 pods of other bundles serve"})
    event = {"type": "Warning", "reason": "FailedScheduling", "message": BY_CLAIM}
    for ago, expected in (
        (START_GRACE_SECONDS - 1, []),
        (START_GRACE_SECONDS, ["web-1 uid-web-1"]),
    ):
        events = ({**event, "metadata": {"creationTimestamp": format_timestamp(NOW - ago)}},)
        assert deleted(run(pod, claim=None, pod_events={"uid-web-1": events})) == expected
    other = {
        **event,
        "message": BY_GPU,
        "metadata": {"creationTimestamp": format_timestamp(NOW - 299)},
    }
    assert (
        deleted(run(pod, claim=None, pod_events={"uid-web-1": (other,)})) == []
    )  # its words are not written yet


def test_pods_whose_events_were_not_read_are_deleted_with_the_one_whose_were() -> None:
    """observe reads the events of a few: the others of the bundle wait for the same volumes."""
    failing = [_failing(number) for number in (1, 2, 3)]
    events = {"uid-web-2": tuple(SEEN["on-node-absent"]["events"])}
    late = parse_timestamp("2026-11-22T20:50:00Z")
    assert deleted(run(*failing, now=late, pod_events=events)) == [
        f"web-{number} uid-web-{number}" for number in (2, 1, 3)
    ]
    assert deleted(run(*failing, now=late)) == []
    assert deleted(
        run(failing[0], now=late, record=sealed(undeliverable=mark(at=format_timestamp(late - 60))))
    ) == ["web-1 uid-web-1"]
    assert (
        deleted(run(failing[0], now=late, record=sealed(undeliverable=mark("SeedCannotRun")))) == []
    )
    read = {f"uid-web-{number}": () for number in (1, 2, 3)}
    assert (
        deleted(
            run(
                *failing,
                now=late,
                record=sealed(undeliverable=mark(at=format_timestamp(late - 60))),
                pod_events=read,
            )
        )
        == []
    )
    unmade = stuck_pod()
    unmade["status"]["initContainerStatuses"][0].update(state=UNMADE, lastState={})
    assert (
        deleted(run(unmade, record=sealed(undeliverable=mark()))) == []
    )  # its volumes are mounted
    held = [unscheduled(number).noted(**{REASON: "Held: 4 pods"}) for number in (1, 2)]
    assert deleted(run(*held, claim=None)) == []
    assert (
        deleted(
            run(*held, claim=None, record=sealed(undeliverable=mark("ClaimNotFound", claimUID="")))
        )
        != []
    )


def _failing(number: int) -> Consumer:
    """One whose claim the kubelet cannot mount, if its events say so."""
    case = json.loads(
        json.dumps(SEEN["on-node-absent"]["pod"]).replace('"absent"', f'"pretune-{KEY.name}"')
    )
    return Consumer("web", number).given(GIVEN)._but(spec=case["spec"], status=case["status"])


def test_what_observe_keeps_of_a_pod_is_enough_to_find_its_failure() -> None:
    for name in SEEN:
        whole, cut = real(name), real(name)
        object.__setattr__(cut, "object", project.consumer(whole.object))
        assert find_start_failure(cut) == find_start_failure(whole), name
        assert needs_events(cut.object, LATER) is needs_events(whole.object, LATER)
    devices = changed("affinity", '"spec": {"volumes": [{"name": "pretune-claim"', DEVICES)
    cut_spec = project.consumer(devices.object)["spec"]
    assert cut_spec["resourceClaims"] == [{"name": "gpus"}]
    assert (
        find_start_failure(dataclasses.replace(devices, object=project.consumer(devices.object)))
        is None
    )


@pytest.mark.parametrize(
    ("case", "the_mark", "found", "sealed_at", "stays"),
    [
        ("nothing changed", mark(), claim(), NOW - 3600, True),
        ("another claim", mark(claimUID="other"), claim(), NOW - 3600, False),
        (
            "there was no claim",
            {**mark("ClaimNotFound"), "claimUID": ""},
            claim(),
            NOW - 3600,
            False,
        ),
        ("no claim now", mark(), None, NOW - 3600, True),
        ("bound at last", mark("ClaimPending"), claim(), NOW - 3600, False),
        ("bound again", mark("ClaimLost"), claim(), NOW - 3600, False),
        ("not bound yet", mark("ClaimPending"), claim("Pending"), NOW - 3600, True),
        (
            "still being deleted",
            mark("ClaimTerminating"),
            claim(deletionTimestamp=format_timestamp(NOW)),
            NOW - 3600,
            True,
        ),
        ("sealed again", mark(), claim(), NOW - 59, False),
        ("not yet an hour", mark(at=format_timestamp(NOW - 3599)), claim(), NOW - 7200, True),
        ("an hour", mark(at=format_timestamp(NOW - 3600)), claim(), NOW - 7200, False),
        (
            "an hour, the same image",
            mark("SeedCannotRun", at=format_timestamp(NOW - 3600)),
            claim(),
            NOW - 7200,
            True,
        ),
        (
            "not yet six",
            mark("SeedCannotRun", at=format_timestamp(NOW - 6 * 3600 + 1)),
            claim(),
            NOW - 86400,
            True,
        ),
        (
            "six hours: a tag may have moved",
            mark("SeedCannotRun", at=format_timestamp(NOW - 6 * 3600)),
            claim(),
            NOW - 86400,
            False,
        ),
    ],
)
def test_a_mark_is_removed_when_its_cause_may_be_gone(
    case: str, the_mark: Object, found: Object | None, sealed_at: float, stays: bool
) -> None:
    plan = run(
        record=bundle_json(GIVEN, sealedAt=format_timestamp(sealed_at), undeliverable=the_mark),
        claim=found,
    )
    assert ("undeliverable" in status(plan)) is stays, case


@pytest.mark.parametrize(("reason", "hours"), [("MountFailed", 1), ("SeedCannotRun", 6)])
def test_the_plan_requeues_for_the_expiry_of_a_mark(reason: str, hours: int) -> None:
    assert run(record=sealed(undeliverable=mark(reason))).requeue_time == NOW - 60 + hours * 3600


def test_a_pod_without_a_failure_yet_is_checked_less_and_less_often() -> None:
    waiting = Consumer("web", 1, age=9000).given(GIVEN)._but(spec={"nodeName": "node0"})
    for ago, expected in ((10, 50), (60, 15), (400, 100), (7200, 300)):
        pod = waiting.but(conditions=[condition(SANDBOX, "False", ago)])
        assert run(pod).requeue_time == NOW + expected
    assert (
        run(waiting.but(conditions=[condition(SANDBOX, "True", 400)])).requeue_time is None
    )  # images and programs


def test_a_long_message_of_the_runtime_is_truncated() -> None:
    pod = stuck_pod()
    pod["status"]["initContainerStatuses"][0]["lastState"]["terminated"]["message"] = "x " * 9000
    assert len(status(run(pod))["undeliverable"]["message"]) <= 1024


@given(st.sampled_from(sorted(set(SEEN) - {"no-sh-never"})), st.floats(0, 3 * SEED_TIMEOUT_SECONDS))
def test_a_failure_stays_a_failure_as_time_passes(name: str, more: float) -> None:
    """A reconcile that comes late, or twice, finds the same."""
    early, late = find_start_failure(real(name)), find_start_failure(real(name, now=LATER + more))
    assert early == late
