"""A consumer's pod: what is added when it is made, and exactly that taken out again. Pure; operations are JSON Patch, `add` only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretune.api import Object
from pretune.wire import Inputs

Operation = dict[str, Any]  # {"op": "add", "path": …, "value": …}


@dataclass(frozen=True)
class Delivery:
    """What one pod is given, and why (reasons.DELIVERIES): decide/delivery.py's answer, inject()'s order."""

    mode: str  # ReadOnly | Overlay | None
    reason: str
    message: str
    held: bool = False
    engine: str = ""  # the container's name; here and below only where something is given
    bundle: str = ""  # its id
    inputs: Inputs | None = None
    claim: str = ""
    sub_path: str = ""
    folder: str = ""  # the cache's, on the claim: Key.folder
    agent: str = ""  # the agent ConfigMap's name
    warnings: tuple[str, ...] = ()  # for the person at the terminal


def inject(pod: Object, delivery: Delivery) -> list[Operation]:
    """The JSON Patch that gives the pod its delivery; [] for a pod that has parts of ours already. Adds only, never a whole array
    over one that is there. The pod stays as it is."""
    raise NotImplementedError


def strip(pod: Object) -> Object:
    """The pod without anything of ours: strip(inject(pod)) == pod. What other webhooks added to it meanwhile stays."""
    raise NotImplementedError


def collision(pod: Object, engine: Object) -> str | None:
    """What of the pod our names or mount paths would collide with, as a sentence; None: nothing."""
    raise NotImplementedError


def is_injected(pod: Object) -> bool:
    """Whether the pod has parts of ours: it is not touched again."""
    raise NotImplementedError


def is_held(pod: Object) -> bool:
    """Whether our gate is on the pod."""
    raise NotImplementedError


def release() -> Mapping[str, Any]:
    """The strategic merge patch that removes our gate and no other."""
    raise NotImplementedError


def admitted(template: Object, pod: Object) -> Object:
    """The template, with what admission made of the pod (storage initialisers, mirrors, identity; design, section 5): the pod's
    containers, init containers, volumes and settings, our injection and what is the pod's alone (node, priority number, token
    volume) taken out; scheduling terms stay the template's."""
    raise NotImplementedError
