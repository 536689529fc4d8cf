"""What of a consumer's pod is ours, known by its annotation or its form, and the pod without it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pretune.api.names import BUNDLE, DELIVERY, HOLD, REASON, SEED_CONTAINER
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.agent_container import AGENT_VOLUME, CLAIM_VOLUME
from pretune.manifests.engine import TACTICS_VOLUME
from pretune.manifests.json_patch import copied
from pretune.protocol import CLAIM_MOUNT, TACTICS_MOUNT, TASK_VARIABLE

READ_ONLY, OVERLAY, NONE = "ReadOnly", "Overlay", "None"  # how a bundle is delivered

VOLUMES = (CLAIM_VOLUME, AGENT_VOLUME, TACTICS_VOLUME)
MOUNTS = (CLAIM_MOUNT, TACTICS_MOUNT)  # in the engine
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def strip(pod: Object) -> Object:
    """The pod without anything of ours: strip(inject(pod)) == pod. What other webhooks added to it meanwhile stays.

    A list or map that is empty after that is left out, as the API server never sends one.
    """
    made: Object = copied(pod)
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
    for _, one in containers(made):
        if _has_override(one):
            _drop(one, "env", _is_override)
            _drop(one, "volumeMounts", _is_mount)
        _drop(one, "volumeMounts", lambda mount: mount["name"] in VOLUMES)
    return made


def is_injected(pod: Object) -> bool:
    """Whether the pod has parts of ours: it is not touched again."""
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    return DELIVERY in annotations or BUNDLE in annotations or is_held(pod) or _is_given(pod)


def is_held(pod: Object) -> bool:
    """Whether our gate is on the pod."""
    return any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())


def containers(pod: Object) -> Iterator[tuple[str, Object]]:
    """Each container of any kind, after the name of the list that it stands in."""
    for place in _CONTAINERS:
        for one in pod["spec"].get(place) or ():
            yield place, one


def _is_given(pod: Object) -> bool:
    """Whether the pod has a delivery's volumes, mounts and containers. The annotation says so; without it (a manifest that was copied)
    their form does. A pod that was left alone may have its own of the same name."""
    mode = ((pod.get("metadata") or {}).get("annotations") or {}).get(DELIVERY)
    if mode is not None:
        return mode in (READ_ONLY, OVERLAY)
    return any(
        _is_seed(one) or (_mounts_ours(one) and _has_override(one)) for _, one in containers(pod)
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
