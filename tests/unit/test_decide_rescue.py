"""Which consumers cannot start because of us, told from real words of scheduler and kubelet (1.34)."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import BUNDLE, Object
from pretune.decide.rescue import PATIENCE, suspect
from pretune.model import stamp

NOW = 1_800_000_000.0


def condition(kind: str, status: str, ago: float, **more: str) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": stamp(NOW - ago), **more}


def consumer(ago: float = 300, node: str = "node0", **fields: Any) -> Object:
    """A consumer that was given bundle `b`, `ago` seconds old."""
    meta = {"name": "web", "creationTimestamp": stamp(NOW - ago), "annotations": {BUNDLE: "b"}}
    spec = {"nodeName": node} if node else {}
    return {
        "metadata": meta | fields.pop("metadata", {}),
        "spec": spec | fields.pop("spec", {}),
        "status": {"phase": "Pending", **fields},
    }


SANDBOX, SCHEDULED = "PodReadyToStartContainers", "PodScheduled"
RUNNING = [{"name": "vllm", "state": {"running": {}}}]
WAITING = [{"name": "vllm", "state": {"waiting": {"reason": "PodInitializing"}}, "restartCount": 0}]
BY_CLAIM = '0/1 nodes are available: persistentvolumeclaim "pretune-qwen3" not found. not found'
BY_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"


@pytest.mark.parametrize(
    ("case", "pod", "expected"),
    [
        ("volumes not mounted", consumer(conditions=[condition(SANDBOX, "False", 200)]), True),
        ("an older kubelet, nothing ran", consumer(containerStatuses=WAITING), True),
        ("an older kubelet, it runs", consumer(containerStatuses=RUNNING), False),
        (
            "sandbox there: the rest is images and programs",
            consumer(conditions=[condition(SANDBOX, "True", 200)]),
            False,
        ),
        ("given to its node just now", consumer(conditions=[condition(SCHEDULED, "True", PATIENCE - 1)]), False),
        ("given to its node long ago", consumer(conditions=[condition(SCHEDULED, "True", PATIENCE)]), True),
        ("its node was started anew just now", consumer(conditions=[condition(SANDBOX, "False", 5)]), False),
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
        ("young", consumer(ago=PATIENCE - 1), False),
        ("left alone by the webhook", consumer(metadata={"annotations": {}}), False),
        ("held", consumer(spec={"schedulingGates": [{"name": "pretune.dev/hold"}]}), False),
        ("gated by another", consumer(spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}), False),
        ("being deleted", consumer(metadata={"deletionTimestamp": stamp(NOW - 5)}), False),
        ("over", consumer(phase="Failed"), False),
    ],
)
def test_events_are_read_of_pods_that_volumes_keep_from_starting_and_of_no_other(
    case: str, pod: Object, expected: bool
) -> None:
    assert suspect(pod, NOW) is expected, case
