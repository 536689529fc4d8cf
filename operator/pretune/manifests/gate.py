"""Our scheduling gate on a consumer's pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretune.api.names import HOLD
from pretune.api.types import Object

GATE = {"name": HOLD}


def is_held(pod: Object) -> bool:
    """Whether our gate is on the pod."""
    return any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())


def release_patch() -> Mapping[str, Any]:
    """Return the strategic merge patch that removes our gate and no other."""
    return {"spec": {"schedulingGates": [{"$patch": "delete", **GATE}]}}
