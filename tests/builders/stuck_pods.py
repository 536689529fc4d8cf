"""Pods that do not start, and why: their events, their claims, their conditions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from pretune.api.names import BUNDLE
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.policy.pods.starting_pod import StartingPod

from tests.builders.constants import NOW

# Pods as Kubernetes 1.34.4 reported them, about ten minutes after they were created.
SEEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "unit/policy/pods/data/stuck.json").read_text()
)
LATER = parse_timestamp("2026-11-22T20:50:00Z")


def real(name: str, now: float = LATER, **more: Any) -> StartingPod:
    """Return a pod of SEEN that was given a bundle; more: what is otherwise in its case."""
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


UNMADE = {"waiting": {"reason": "CreateContainerError", "message": "context deadline exceeded"}}


def condition(kind: str, status: str, ago: float, **more: str) -> Object:
    return {
        "type": kind,
        "status": status,
        "lastTransitionTime": format_timestamp(NOW - ago),
        **more,
    }


SANDBOX, SCHEDULED = "PodReadyToStartContainers", "PodScheduled"
BY_CLAIM = '0/1 nodes are available: persistentvolumeclaim "pretune-qwen3" not found. not found'
BY_GPU = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"
)
