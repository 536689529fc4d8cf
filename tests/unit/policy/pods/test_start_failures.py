"""Which consumers cannot start because of us, by real messages of scheduler and kubelet."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.names import BUNDLE, SEED_CONTAINER
from pretune.api.reasons import REASONS
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.controller import project
from pretune.policy.pods import mount_failures
from pretune.policy.pods.mount_failures import SEED_TIMEOUT_SECONDS
from pretune.policy.pods.start_failures import find_start_failure, needs_events, next_check_at
from pretune.policy.pods.starting_pod import START_GRACE_SECONDS, StartFailure, StartingPod

from tests.builders.constants import NOW
from tests.builders.stuck_pods import (
    BY_CLAIM,
    BY_GPU,
    LATER,
    SANDBOX,
    SCHEDULED,
    SEEN,
    UNMADE,
    condition,
    real,
)


def changed(name: str, message: str, to: str) -> StartingPod:
    """Return a real case in which the scheduler or the kubelet reports something else."""
    text = json.dumps(SEEN[name])
    assert message in text
    return real(name, **json.loads(text.replace(message, to)))


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


RUNNING = [{"name": "vllm", "state": {"running": {"startedAt": format_timestamp(NOW)}}}]
RESTARTS = [
    {"name": "vllm", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}
]
WAITING = [{"name": "vllm", "state": {"waiting": {"reason": "PodInitializing"}}, "restartCount": 0}]
PULLS = {"waiting": {"reason": "ImagePullBackOff"}}


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


@given(st.sampled_from(sorted(set(SEEN) - {"no-sh-never"})), st.floats(0, 3 * SEED_TIMEOUT_SECONDS))
def test_a_failure_stays_a_failure_as_time_passes(name: str, more: float) -> None:
    """A reconcile that comes late, or twice, finds the same."""
    early, late = find_start_failure(real(name)), find_start_failure(real(name, now=LATER + more))
    assert early == late
