"""A pod template, with what admission made of one of its pods: the tuning pod is to start what really serves. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable

from pretune.api.types import Object
from pretune.manifests.injection import strip

# Of the pod spec: where and beside whom the pod runs, and who it is. What admission, the scheduler or a controller made of these is
# that one pod's.
_TEMPLATES = (
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
)
_NOBODYS = (
    "priority",
    "ephemeralContainers",
)  # a number that has to fit its class; a person's debugger

# The ServiceAccount plugin's volume, with a random end: it makes another in a pod that is to have one.
_TOKEN = re.compile(r"kube-api-access-[a-z0-9]{5}")


def apply_admission(template: Object, pod: Object) -> Object:
    """The template, with what admission made of the pod (storage initialisers, mirrors, identity): the pod's
    containers, init containers, volumes and settings, our injection and what is the pod's alone (node, priority number, token
    volume) taken out; scheduling terms stay the template's.

    template: as its author wrote it, the pod itself where there is no other. An init container that admission added stays only if it
    shares a volume with a container of the template: a mesh's, which sends all traffic to a proxy that a copy has not, shares none.
    Annotations are the template's and, where pod.metadata.managedFields tells, those that the pod was made with, so that a webhook
    that was there knows its work; later ones (of networks, say) are the pod's alone. Labels are the template's.
    """
    left, written = strip(pod)["spec"], template["spec"]
    made = {name: one for name, one in left.items() if name not in (*_TEMPLATES, *_NOBODYS)}
    made |= {name: copy.deepcopy(written[name]) for name in _TEMPLATES if name in written}
    if made.get("volumes"):
        _without_tokens(made)
    if made.get("initContainers"):
        made["initContainers"] = _init_containers(made, written)
    meta = copy.deepcopy(template.get("metadata") or {})
    meta["annotations"] = {**(meta.get("annotations") or {}), **_made_with(pod)}
    return {"metadata": meta, "spec": made}


def _without_tokens(spec: Object) -> None:
    tokens = {
        one["name"]
        for one in spec["volumes"]
        if _TOKEN.fullmatch(one["name"]) and "projected" in one
    }
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] not in tokens]
    for place in ("initContainers", "containers"):
        for one in spec.get(place) or ():
            if one.get("volumeMounts"):
                one["volumeMounts"] = [
                    mount for mount in one["volumeMounts"] if mount["name"] not in tokens
                ]


def _init_containers(spec: Object, written: Object) -> list[Object]:
    author = {
        one["name"]
        for place in ("initContainers", "containers")
        for one in written.get(place) or ()
    }
    everyone = [*spec["initContainers"], *spec["containers"]]
    shared = _volumes(one for one in everyone if one["name"] in author)
    return [
        one for one in spec["initContainers"] if one["name"] in author or _volumes([one]) & shared
    ]


def _volumes(containers: Iterable[Object]) -> set[str]:
    return {mount["name"] for one in containers for mount in one.get("volumeMounts") or ()}


def _made_with(pod: Object) -> dict[str, str]:
    """The annotations of whoever made the pod, admission's among them: who owns its containers. Ours are not."""
    meta = strip(pod).get("metadata") or {}
    names: set[str] = set()
    for entry in meta.get("managedFields") or ():
        fields = entry.get("fieldsV1") or {}
        if "f:containers" in (fields.get("f:spec") or {}):
            names |= {
                one.removeprefix("f:")
                for one in (fields.get("f:metadata") or {}).get("f:annotations") or ()
            }
    return {name: one for name, one in (meta.get("annotations") or {}).items() if name in names}
