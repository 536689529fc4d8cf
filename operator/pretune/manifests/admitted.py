"""A pod template with what admission changed in one of its pods. Pure.

A tuning pod has to start the same engine as the pods that serve.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable

from pretune.api.types import Object
from pretune.manifests.injection import strip

# Of the pod spec: on which nodes and beside which pods it runs, its identity, and what every pod
# gets. The template's values count: what admission, the scheduler or a controller set belongs to
# that one pod.
_FROM_TEMPLATE = (
    "nodeName",
    "nodeSelector",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "schedulingGates",
    "priorityClassName",
    "preemptionPolicy",
    "hostname",
    "subdomain",
    "setHostnameAsFQDN",
    "overhead",
    "enableServiceLinks",  # the API server sets it in pods, and not in templates
)
# A number that has to agree with the pod's class, and containers that a person adds to debug.
_LEFT_OUT = ("priority", "ephemeralContainers")

# The ServiceAccount plugin's volume, whose name ends at random. It adds another to the copy.
_TOKEN_VOLUME = re.compile(r"kube-api-access-[a-z0-9]{5}")


def apply_admission(template: Object, pod: Object) -> Object:
    """Return the template with what admission changed in the pod.

    That is storage initialisers, image mirrors, identity and the like: the pod's containers, init
    containers, volumes and settings, without our injection and without what is the pod's alone
    (node, priority number, token volume). Scheduling terms are the template's.

    template: as its author wrote it; the pod itself if there is no other.
    An init container that admission added is kept only if it shares a volume with a container of
    the template. A mesh's, which sends all traffic to a proxy that a copy does not have, shares
    none. Labels are the template's. Annotations are the template's and those that the pod was
    created with, as far as metadata.managedFields says so, so that a webhook that has changed the
    pod recognises its work; later ones (of networks, for instance) are the pod's alone.
    """
    pod_spec, written = strip(pod)["spec"], template["spec"]
    spec = {
        name: value for name, value in pod_spec.items() if name not in (*_FROM_TEMPLATE, *_LEFT_OUT)
    }
    spec |= {name: copy.deepcopy(written[name]) for name in _FROM_TEMPLATE if name in written}
    if spec.get("volumes"):
        _drop_token_volumes(spec)
    if spec.get("initContainers"):
        spec["initContainers"] = _init_containers(spec, written)
    meta = copy.deepcopy(template.get("metadata") or {})
    meta["annotations"] = {**(meta.get("annotations") or {}), **_creation_annotations(pod)}
    return {"metadata": meta, "spec": spec}


def _drop_token_volumes(spec: Object) -> None:
    names = {
        volume["name"]
        for volume in spec["volumes"]
        if _TOKEN_VOLUME.fullmatch(volume["name"]) and "projected" in volume
    }
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in names]
    for place in ("initContainers", "containers"):
        for container in spec.get(place) or ():
            if mounts := container.get("volumeMounts"):
                container["volumeMounts"] = [
                    mount for mount in mounts if mount["name"] not in names
                ]


def _init_containers(spec: Object, written: Object) -> list[Object]:
    in_template = {
        container["name"]
        for place in ("initContainers", "containers")
        for container in written.get(place) or ()
    }
    containers = [*spec["initContainers"], *spec["containers"]]
    shared = _mounted_volumes(
        container for container in containers if container["name"] in in_template
    )
    return [
        container
        for container in spec["initContainers"]
        if container["name"] in in_template or _mounted_volumes([container]) & shared
    ]


def _mounted_volumes(containers: Iterable[Object]) -> set[str]:
    return {
        mount["name"] for container in containers for mount in container.get("volumeMounts") or ()
    }


def _creation_annotations(pod: Object) -> dict[str, str]:
    """Return the annotations that the pod was created with, those of admission included.

    They are the ones of the managers that own the pod's containers. Ours are left out.
    """
    meta = strip(pod).get("metadata") or {}
    names: set[str] = set()
    for entry in meta.get("managedFields") or ():
        fields = entry.get("fieldsV1") or {}
        if "f:containers" in (fields.get("f:spec") or {}):
            annotations = (fields.get("f:metadata") or {}).get("f:annotations") or ()
            names |= {field.removeprefix("f:") for field in annotations}
    annotations = meta.get("annotations") or {}
    return {name: value for name, value in annotations.items() if name in names}
