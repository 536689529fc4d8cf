"""A consumer's pod: what is added when it is created, and exactly that taken out again.

Pure. Operations are JSON Patch, `add` only.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.delivery_reasons import DeliveryReason
from pretune.api.names import BUNDLE, DELIVERY, HOLD, REASON, SEED_CONTAINER
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    copied_resources,
    seed_container,
)
from pretune.manifests.engine import TACTICS_VOLUME, tactics_on_claim
from pretune.manifests.gate import GATE, is_held
from pretune.manifests.json_patch import Operation, add_entries, append_items, copy_json
from pretune.podspec.template import all_containers, command_words
from pretune.protocol import CLAIM_MOUNT, TACTICS_MOUNT, TASK_VARIABLE, Inputs, Task

READ_ONLY, OVERLAY, NONE = "ReadOnly", "Overlay", "None"  # how a bundle is delivered

VOLUMES = (CLAIM_VOLUME, AGENT_VOLUME, TACTICS_VOLUME)
MOUNTS = (CLAIM_MOUNT, TACTICS_MOUNT)  # in the engine

# The API server's limit on all of an object's annotations, names and values (apimachinery, TotalAnnotationSizeLimitB), and how much of a
# message is shown there.
_MOST_ANNOTATIONS = 256 * 1024
_MOST_REASON = 1024


@dataclass(frozen=True)
class Delivery:
    """What one pod is given, and why (api/delivery_reasons.py): policy/pods/delivery.py's answer, inject()'s order."""

    mode: str  # ReadOnly | Overlay | None
    reason: DeliveryReason
    message: str
    held: bool = False
    engine: str = ""  # the container's name; here and below only where something is given
    bundle: str = ""  # its id
    inputs: Inputs | None = None
    claim: str = ""
    sub_path: str = ""
    folder: str = ""  # the cache's, on the claim: Key.folder
    agent: str = ""  # the agent ConfigMap's name
    proven: bool = False  # seed gives the bundle only where its proof is on the claim (spec.verify)
    warnings: tuple[str, ...] = ()  # for the person at the terminal


def inject(pod: Object, delivery: Delivery) -> list[Operation]:
    """The JSON Patch that gives the pod its delivery; [] for a pod that has parts of ours already. Adds only, never a whole array
    over one that is there. The pod stays as it is.

    A pod with a node has no gate, held or not: the API refuses the two together. Raises Refused EngineNotFound where the pod has no
    container of the engine's name. The caller has asked find_collision().
    """
    if is_injected(pod):
        return []
    annotations = _annotations(delivery)
    if not _has_room(pod, annotations):
        return []
    made = add_entries(pod, "metadata", "annotations", annotations)
    if delivery.mode == NONE:
        return made
    spec, index = pod["spec"], _engine_index(pod, delivery.engine)
    engine, at = spec["containers"][index], f"/spec/containers/{index}"
    claim = _claim_volume(spec, delivery.claim)
    volumes: list[Object] = []
    if claim == CLAIM_VOLUME:
        source = {"claimName": delivery.claim, "readOnly": True}
        volumes.append({"name": claim, "persistentVolumeClaim": source})
    if delivery.mode == OVERLAY:
        volumes.append(
            {"name": AGENT_VOLUME, "configMap": {"name": delivery.agent, "optional": True}}
        )
        volumes.append({"name": TACTICS_VOLUME, "emptyDir": {}})
        mount: Object = {"name": TACTICS_VOLUME, "mountPath": TACTICS_MOUNT}
        override = TACTICS_MOUNT
    else:
        mount = {"name": claim, "mountPath": CLAIM_MOUNT, "readOnly": True}
        override = tactics_on_claim(delivery.sub_path, delivery.folder, delivery.bundle)
    made += append_items(spec, "/spec", "volumes", volumes)
    made += append_items(engine, at, "volumeMounts", [mount])
    made += append_items(engine, at, "env", [{"name": OVERRIDE, "value": override}])
    if delivery.mode == OVERLAY:
        made += append_items(spec, "/spec", "initContainers", [_seed(engine, delivery, claim)])
    if delivery.held and not spec.get("nodeName"):
        made += append_items(spec, "/spec", "schedulingGates", [GATE])
    return made


def find_collision(pod: Object, engine: Object) -> str | None:
    """What of the pod our names or mount paths would collide with, as a sentence; None: nothing.

    Where one is overlooked, the API server refuses the pod, or the container cannot start.
    """
    spec = pod["spec"]
    if (spec.get("os") or {}).get("name") == "windows":
        return "the pod is one for Windows"
    if "kubernetes.io/config.mirror" in ((pod.get("metadata") or {}).get("annotations") or {}):
        return "the pod is a static one, whose mirror may mount nothing"
    for volume in spec.get("volumes") or ():
        if volume["name"] in VOLUMES:
            return f"the pod has a volume {volume['name']}"
    for place, one in all_containers(pod):
        if one["name"] == SEED_CONTAINER:
            return f"the pod has a container {SEED_CONTAINER} ({place})"
    for path in _paths(engine):
        for ours in MOUNTS:
            if _one_holds_the_other(path, ours):
                return f"container {engine['name']} uses {path}, where {ours} would be mounted"
    return None


def strip(pod: Object) -> Object:
    """The pod without anything of ours: strip(inject(pod)) == pod. What other webhooks added to it meanwhile stays.

    A list or map that is empty after that is left out, as the API server never sends one.
    """
    made: Object = copy_json(pod)
    meta, spec = made.get("metadata") or {}, made["spec"]
    annotations = meta.get("annotations") or {}
    given = _is_given(pod)
    if DELIVERY in annotations or BUNDLE in annotations:
        for name in (DELIVERY, BUNDLE, REASON):
            annotations.pop(name, None)
        if not annotations:
            del meta["annotations"]
    _drop(spec, "schedulingGates", lambda gate: gate["name"] == HOLD)
    if not given:
        return made
    _drop(spec, "volumes", lambda volume: volume["name"] in VOLUMES)
    _drop(spec, "initContainers", _is_seed)
    for _, one in all_containers(made):
        if _has_override(one):
            _drop(one, "env", _is_override)
            _drop(one, "volumeMounts", _is_mount)
        _drop(one, "volumeMounts", lambda mount: mount["name"] in VOLUMES)
    return made


def is_injected(pod: Object) -> bool:
    """Whether the pod has parts of ours: it is not touched again."""
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    return DELIVERY in annotations or BUNDLE in annotations or is_held(pod) or _is_given(pod)


# --- what is added


def _annotations(delivery: Delivery) -> dict[str, str]:
    reason = f"{delivery.reason}: {delivery.message}" if delivery.message else delivery.reason
    made = {
        DELIVERY: delivery.mode,
        REASON: reason if len(reason) <= _MOST_REASON else reason[: _MOST_REASON - 1] + "…",
    }
    return made if delivery.mode == NONE else {**made, BUNDLE: delivery.bundle}


def _has_room(pod: Object, annotations: Mapping[str, str]) -> bool:
    """Whether the API server takes the pod with these annotations added."""
    whole = {**((pod.get("metadata") or {}).get("annotations") or {}), **annotations}
    return (
        sum(len(name.encode()) + len((one or "").encode()) for name, one in whole.items())
        <= _MOST_ANNOTATIONS
    )


def _engine_index(pod: Object, name: str) -> int:
    names = [one["name"] for one in pod["spec"]["containers"]]
    if name not in names:
        raise Refused(
            reasons.ENGINE_NOT_FOUND, f"no container {name}; the pod has {', '.join(names)}"
        )
    return names.index(name)


def _claim_volume(spec: Object, claim: str) -> str:
    """The volume to mount the claim by: one of the pod's own that has it already, else ours. A pod with two
    volumes of one claim stays in ContainerCreating, and no event says why (seen on 1.34; kubernetes#122140)."""
    for volume in spec.get("volumes") or ():
        if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim:
            return volume["name"]  # type: ignore[no-any-return]
    return CLAIM_VOLUME


def _seed(engine: Object, delivery: Delivery, claim: str) -> Object:
    task = Task(
        cache=delivery.folder,
        subPath=delivery.sub_path,
        inputs=delivery.inputs,
        command=command_words(engine),
        proven=delivery.proven,
    )
    tactics = {"name": TACTICS_VOLUME, "mountPath": TACTICS_MOUNT}
    return seed_container(SEED_CONTAINER, engine, task, copied_resources(engine), claim, [tactics])


def _paths(container: Object) -> Iterator[str]:
    """Where something is mounted into the container: volumes, block devices, and the file of its termination message."""
    for mount in container.get("volumeMounts") or ():
        yield mount["mountPath"]
    for device in container.get("volumeDevices") or ():
        yield device["devicePath"]
    if path := container.get("terminationMessagePath"):
        yield path


@functools.lru_cache(
    4096
)  # a third of what the webhook did for a pod; pods of one revision have the same paths
def _one_holds_the_other(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies below the other. The kubelet takes a relative path from the root."""
    parts = [posixpath.normpath(f"/{path}").strip("/").split("/") for path in (one, other)]
    first, second = ([name for name in path if name] for path in parts)
    least = min(len(first), len(second))
    return first[:least] == second[:least]


# --- what is ours


def _is_given(pod: Object) -> bool:
    """Whether the pod has a delivery's volumes, mounts and containers. The annotation says so; without it (a manifest that was copied)
    their form does. A pod that was left alone may have its own of the same name."""
    mode = ((pod.get("metadata") or {}).get("annotations") or {}).get(DELIVERY)
    if mode is not None:
        return mode in (READ_ONLY, OVERLAY)
    return any(
        _is_seed(one) or (_mounts_ours(one) and _has_override(one))
        for _, one in all_containers(pod)
    )


def _is_seed(container: Object) -> bool:
    return container["name"] == SEED_CONTAINER and any(
        one["name"] == TASK_VARIABLE for one in container.get("env") or ()
    )


def _is_override(variable: Object) -> bool:
    if variable["name"] != OVERRIDE:
        return False
    value = variable.get("value") or ""
    return bool(value == TACTICS_MOUNT or value.startswith(f"{CLAIM_MOUNT}/"))


def _has_override(container: Object) -> bool:
    return any(_is_override(one) for one in container.get("env") or ())


def _is_mount(mount: Object) -> bool:
    return mount.get("mountPath") in MOUNTS


def _mounts_ours(container: Object) -> bool:
    return any(_is_mount(one) for one in container.get("volumeMounts") or ())


def _drop(holder: Object, field: str, ours: Callable[[Object], bool]) -> None:
    """Takes ours out of a list; the list itself when nothing is left."""
    before = holder.get(field) or []
    kept = [one for one in before if not ours(one)]
    if len(kept) == len(before):
        return
    if kept:
        holder[field] = kept
    else:
        del holder[field]
