"""What is kept of an object that was read: the fields in use, and never the value of a variable.

But for a consumer that is its own template, which is kept whole.
"""

from __future__ import annotations

import json
from typing import Any

from pretune.api.names import GROUP, ROLE, SEED_CONTAINER
from pretune.api.types import Object
from pretune.intake import EXCESS
from pretune.podspec.workloads import origin_of

MAX_SINGLE_PODS_CHARACTERS = 8 << 20  # of a cache, as JSON: some 500 pods


def without_managed_fields(obj: Object) -> Object:
    """Return the object without the record of who wrote which field, often its larger half."""
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "metadata": meta}


def job(job: Object) -> Object:
    """Return a Job without its pod template."""
    spec = {name: value for name, value in job["spec"].items() if name != "template"}
    return {**without_managed_fields(job), "spec": spec}


def pod(pod: Object) -> Object:
    """Return a pod that has the cache's label: one of ours, or a consumer.

    Of ours, what says how its attempt stands. A consumer as `consumer` does, or whole where it is
    its own template.
    """
    if ROLE not in pod["metadata"]["labels"]:
        return pod if origin_of(pod) is None else consumer(pod)
    spec = pod.get("spec") or {}
    containers = {
        field: [
            _only(container, "name", "image", "resources") for container in spec.get(field) or ()
        ]
        for field in ("initContainers", "containers")
    }
    return {
        **_only(pod, "apiVersion", "kind"),
        "metadata": without_managed_fields(pod)["metadata"],
        "spec": {
            **_only(spec, "nodeName", "activeDeadlineSeconds"),
            "volumes": _volumes(pod),
            **containers,
        },
        "status": pod.get("status") or {},
    }


class PodProjection:
    """`pod`, for one list: of single pods no more than MAX_SINGLE_PODS_CHARACTERS are kept whole.

    Of the others EXCESS says so: hundreds of pods of a megabyte would fill the memory of all. A pod
    counts once where the list begins again.
    """

    def __init__(self) -> None:
        self._left = MAX_SINGLE_PODS_CHARACTERS
        self._kept: dict[str, int] = {}  # characters of each pod that is kept whole, by name

    def __call__(self, obj: Object) -> Object:
        if ROLE in obj["metadata"]["labels"] or origin_of(obj) is not None:
            return pod(obj)
        name, size = obj["metadata"]["name"], len(json.dumps(obj))
        self._left += self._kept.pop(name, 0)
        if size <= self._left:
            self._left -= size
            self._kept[name] = size
            return obj
        excess = (
            "belongs to no controller, and such pods of this cache have more than"
            f" {MAX_SINGLE_PODS_CHARACTERS >> 20} MiB together: create them by a Deployment or a Job"
        )
        return {**consumer(obj), EXCESS: excess}


def consumer(pod: Object) -> Object:
    """Return which consumer it is, what it was given, where it is and how it stands.

    The projection of a projection is the same.
    """
    meta, status = without_managed_fields(pod)["metadata"], pod.get("status") or {}
    annotations = {
        name: value
        for name, value in (meta.get("annotations") or {}).items()
        if name.startswith(f"{GROUP}/")
    }
    devices = [
        _only(claim, "name") for claim in (pod.get("spec") or {}).get("resourceClaims") or ()
    ]
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity = ((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    return {
        **_only(pod, "apiVersion", "kind"),
        "metadata": {**meta, "annotations": annotations},
        "spec": {
            **_only(pod.get("spec"), "nodeName", "nodeSelector", "schedulingGates"),
            **({"affinity": {"nodeAffinity": _only(affinity, required)}} if affinity else {}),
            **({"resourceClaims": devices} if devices else {}),
            "volumes": _volumes(pod),
        },
        "status": {
            **_only(status, "phase", "reason", "conditions"),
            **{
                field: [_container_status(container) for container in status[field]]
                for field in ("initContainerStatuses", "containerStatuses")
                if field in status
            },
        },
    }


def storage(cache: Object) -> Object:
    """Return a cache's name, and the claim that its spec names."""
    claim = ((cache.get("spec") or {}).get("storage") or {}).get("existingClaim") or {}
    return {
        "metadata": {"name": cache["metadata"]["name"]},
        "existingClaim": claim.get("name", ""),
    }


def access_modes(claim: Object) -> Object:
    """Return a claim's name and access modes."""
    return {
        "metadata": {"name": claim["metadata"]["name"]},
        "accessModes": claim["spec"].get("accessModes") or [],
    }


def mounts(pod: Object) -> Object:
    """Return the names of the claims and the ConfigMaps that a pod mounts."""
    volumes = _volumes(pod)
    return {
        "metadata": {"name": pod["metadata"]["name"]},
        "claims": [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes
            if "persistentVolumeClaim" in volume
        ],
        "configMaps": [
            volume["configMap"].get("name", "") for volume in volumes if "configMap" in volume
        ],
    }


def claim_user(pod: Object) -> Object:
    """Return which claims a pod uses on which node, if it lives; of ours nothing."""
    meta = pod["metadata"]
    is_living = not (
        ROLE in (meta.get("labels") or {})
        or "deletionTimestamp" in meta
        or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    )
    return {
        **mounts(pod),
        "node": (pod.get("spec") or {}).get("nodeName", "") if is_living else "",
    }


def gates(pod: Object) -> Object:
    """Return a pod's labels and scheduling gates, and what a patch of it needs."""
    return {
        **_only(pod, "apiVersion", "kind"),
        "metadata": _only(pod["metadata"], "namespace", "name", "uid", "labels"),
        "spec": {"schedulingGates": pod["spec"].get("schedulingGates") or []},
    }


def event(event: Object) -> Object:
    """Return what an event says, and when."""
    return _only(
        without_managed_fields(event),
        *("metadata", "type", "reason", "message", "count", "lastTimestamp", "eventTime", "series"),
    )


def _only(source: Any, *names: str) -> Object:
    return {name: source[name] for name in names if name in (source or {})}


def _volumes(pod: Object) -> list[Object]:
    """Return the volumes that can be missing or shared: claims, and ConfigMaps by name."""
    by_name = ("configMap", "ephemeral")
    return [
        {
            **_only(volume, "name", "persistentVolumeClaim"),
            **{kind: _only(volume[kind], "name") for kind in by_name if kind in volume},
        }
        for volume in (pod.get("spec") or {}).get("volumes") or ()
        if any(kind in volume for kind in ("persistentVolumeClaim", *by_name))
    ]


def _container_status(container: Object) -> Object:
    """Return how a container stands.

    Its termination message is kept of our seed container only: others may write anything there.
    """
    status = _only(
        container,
        *("name", "imageID", "ready", "started", "restartCount", "state", "lastState"),
    )
    if container["name"] != SEED_CONTAINER:
        for field in ("state", "lastState"):
            if end := (status.get(field) or {}).get("terminated"):
                kept = {name: value for name, value in end.items() if name != "message"}
                status[field] = {"terminated": kept}
    return status
