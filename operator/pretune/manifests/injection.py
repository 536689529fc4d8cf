"""A consumer's pod: what is added when it is created, and exactly that taken out again.

Pure. Operations are JSON Patch, `add` only. What a mode adds and how that is recognised is in
manifests/delivery_modes.py.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping

from pretune.api import reasons
from pretune.api.names import BUNDLE, DELIVERY, HOLD, REASON
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.manifests.delivery_modes import Delivery, find_mode, forms
from pretune.manifests.gate import GATE, is_held
from pretune.manifests.json_patch import Operation, add_entries, append_items, copy_json
from pretune.podspec.template import all_containers

# The API server's limit on all of an object's annotations, names and values (apimachinery,
# TotalAnnotationSizeLimitB), and how much of a message is shown there.
_MAX_ANNOTATIONS_BYTES = 256 * 1024
_MAX_REASON_CHARACTERS = 1024


def inject(pod: Object, delivery: Delivery) -> list[Operation]:
    """Return the JSON Patch that gives the pod its delivery; [] if it has parts of ours already.

    Operations only add, and never put an array over one that is there. The pod stays as it is.
    A pod with a node gets no gate, held or not: the API refuses the two together. The caller has
    asked find_collision(). Raises Refused EngineNotFound if the pod has no container of the
    engine's name.
    """
    if is_injected(pod):
        return []
    annotations = _annotations(delivery)
    if not _has_room(pod, annotations):
        return []
    patch = add_entries(pod, "metadata", "annotations", annotations)
    mode = find_mode(delivery.mode)
    if mode is None:
        return patch
    spec, index = pod["spec"], _engine_index(pod, delivery.engine)
    engine, path = spec["containers"][index], f"/spec/containers/{index}"
    additions = mode.build_additions(pod, engine, delivery)
    variables = [{"name": name, "value": value} for name, value in additions.variables.items()]
    patch += append_items(spec, "/spec", "volumes", additions.volumes)
    patch += append_items(engine, path, "volumeMounts", additions.mounts)
    patch += append_items(engine, path, "env", variables)
    patch += append_items(spec, "/spec", "initContainers", additions.init_containers)
    if delivery.held and not spec.get("nodeName"):
        patch += append_items(spec, "/spec", "schedulingGates", [GATE])
    return patch


def find_collision(pod: Object, engine: Object) -> str | None:
    """Return what of the pod our names or mount paths would collide with, as a sentence, or None.

    If one is overlooked, the API server refuses the pod, or the container cannot start.
    """
    spec, ours = pod["spec"], forms()
    if (spec.get("os") or {}).get("name") == "windows":
        return "the pod is one for Windows"
    if "kubernetes.io/config.mirror" in ((pod.get("metadata") or {}).get("annotations") or {}):
        return "the pod is a static one, whose mirror may mount nothing"
    for volume in spec.get("volumes") or ():
        if ours.has_volume(volume):
            return f"the pod has a volume {volume['name']}"
    for field, container in all_containers(pod):
        if container["name"] in ours.init_containers:
            return f"the pod has a container {container['name']} ({field})"
    for path in _used_paths(engine):
        for our_path in ours.mount_paths:
            if _overlap(path, our_path):
                return f"container {engine['name']} uses {path}, where {our_path} would be mounted"
    return None


def strip(pod: Object) -> Object:
    """Return the pod without anything of ours: strip(inject(pod)) == pod.

    What other webhooks added to it meanwhile stays. A list or map that becomes empty is left out,
    as the API server never sends one.
    """
    stripped: Object = copy_json(pod)
    meta, spec = stripped.get("metadata") or {}, stripped["spec"]
    annotations = meta.get("annotations") or {}
    has_parts = _has_parts(pod)
    if DELIVERY in annotations or BUNDLE in annotations:
        for name in (DELIVERY, BUNDLE, REASON):
            annotations.pop(name, None)
        if not annotations:
            del meta["annotations"]
    _remove(spec, "schedulingGates", lambda gate: gate["name"] == HOLD)
    if not has_parts:
        return stripped
    ours = forms()
    _remove(spec, "volumes", ours.has_volume)
    _remove(spec, "initContainers", ours.has_init_container)
    for _, container in all_containers(stripped):
        if _remove(container, "env", ours.has_variable):
            _remove(container, "volumeMounts", ours.has_mount)
        _remove(container, "volumeMounts", ours.has_volume)
    return stripped


def is_injected(pod: Object) -> bool:
    """Whether the pod has parts of ours: it is not changed again."""
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    return DELIVERY in annotations or BUNDLE in annotations or is_held(pod) or _has_parts(pod)


# --- what is added


def _annotations(delivery: Delivery) -> dict[str, str]:
    reason = f"{delivery.reason}: {delivery.message}" if delivery.message else delivery.reason
    if len(reason) > _MAX_REASON_CHARACTERS:
        reason = reason[: _MAX_REASON_CHARACTERS - 1] + "…"
    annotations = {DELIVERY: delivery.mode, REASON: reason}
    return {**annotations, BUNDLE: delivery.bundle} if find_mode(delivery.mode) else annotations


def _has_room(pod: Object, added: Mapping[str, str]) -> bool:
    """Whether the API server takes the pod with these annotations added."""
    annotations = {**((pod.get("metadata") or {}).get("annotations") or {}), **added}
    size = sum(
        len(name.encode()) + len((value or "").encode()) for name, value in annotations.items()
    )
    return size <= _MAX_ANNOTATIONS_BYTES


def _engine_index(pod: Object, name: str) -> int:
    names = [container["name"] for container in pod["spec"]["containers"]]
    if name not in names:
        raise Refused(
            reasons.ENGINE_NOT_FOUND, f"no container {name}; the pod has {', '.join(names)}"
        )
    return names.index(name)


def _used_paths(container: Object) -> Iterator[str]:
    """Yield where something is mounted into the container.

    That is: volumes, block devices, and the file of its termination message.
    """
    for mount in container.get("volumeMounts") or ():
        yield mount["mountPath"]
    for device in container.get("volumeDevices") or ():
        yield device["devicePath"]
    if path := container.get("terminationMessagePath"):
        yield path


# A third of what the webhook did for a pod; pods of one revision have the same paths.
@functools.lru_cache(4096)
def _overlap(path: str, other: str) -> bool:
    """Whether two paths are the same, or one lies below the other.

    The kubelet takes a relative path from the root.
    """
    parts, others = _split(path), _split(other)
    length = min(len(parts), len(others))
    return parts[:length] == others[:length]


def _split(path: str) -> list[str]:
    return [name for name in posixpath.normpath(f"/{path}").split("/") if name]


# --- what is ours


def _has_parts(pod: Object) -> bool:
    """Whether the pod has a mode's volumes, mounts and containers.

    The annotation says so. Without it (a manifest that was copied) their form does. A pod that was
    left alone may have its own of the same names.
    """
    name = ((pod.get("metadata") or {}).get("annotations") or {}).get(DELIVERY)
    if name is not None:
        return find_mode(name) is not None
    ours = forms()
    return any(
        ours.has_init_container(container) or ours.has_engine(container)
        for _, container in all_containers(pod)
    )


def _remove(holder: Object, field: str, is_ours: Callable[[Object], bool]) -> bool:
    """Remove our items from a list, and an empty list; return whether there were any."""
    before = holder.get(field) or []
    kept = [item for item in before if not is_ours(item)]
    if len(kept) == len(before):
        return False
    if kept:
        holder[field] = kept
    else:
        del holder[field]
    return True
