"""A source object to the pod template in it, {metadata, spec}, as its author wrote it. Pure: controller/observe.py reads the object."""

from __future__ import annotations

import re
from typing import Any

from pretune.api import reasons
from pretune.api.names import KIND
from pretune.api.reasons import Refused
from pretune.api.types import Object

# What the rest of pretune relies on. A field that is not here may be anything: the API server judges it, in the Job.
# A dict lists an object's fields, a list an array's items (which have a name where it is listed), MAP is an object of strings.
MAP: Any = {"*": str}
_ENTRIES: Any = [{"name": str}]
_RESOURCES: Any = {"limits": {}, "requests": {}, "claims": _ENTRIES}
_PROBE: Any = {
    "httpGet": {
        "path": str,
        "host": str,
        "scheme": str,
        "httpHeaders": [{"name": str, "value": str}],
    },
    "exec": {},
    "grpc": {},
    "tcpSocket": {},
}
_CONTAINER: Any = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {}, "resourceFieldRef": {}}}],
    "envFrom": [{}],
    "ports": [{}],
    "resources": _RESOURCES,
    "volumeMounts": _ENTRIES,
    "volumeDevices": _ENTRIES,
    "securityContext": {"capabilities": {"add": [str], "drop": [str]}},
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
}
_EXPRESSIONS: Any = [{"key": str, "operator": str, "values": [str]}]
_TERMS: Any = [{"matchExpressions": _EXPRESSIONS, "matchFields": _EXPRESSIONS}]
_TEMPLATE: Any = {
    "metadata": {"labels": MAP, "annotations": MAP},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
        "resourceClaims": [{"name": str}],
        "nodeName": str,
        "nodeSelector": MAP,
        "tolerations": [{}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _TERMS}
            }
        },
    },
}
_NAME = re.compile(
    r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
)  # of an object, as the API server takes it
_KINDS: dict[Any, str] = {dict: "an object", list: "a list", str: "a string"}


def template_of(source: Object) -> Object:
    """The pod template of a workload (spec.template) or of an AutotuneCache (spec.source.template): a copy, without nulls.

    Raises Refused: SourceNotSupported where there is none, SourceInvalid, with the field, where it is not of a template's form
    (an AutotuneCache keeps unknown fields, so that its API server checks nothing inside the pod spec).
    """
    meta, kind = source.get("metadata") or {}, source.get("kind") or "object"
    path = "spec.source.template" if kind == KIND else "spec.template"
    found: Any = source
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    where = f"{kind} {meta.get('name', '')}: {path}"
    pod = found.get("spec") if isinstance(found, dict) else None
    if not isinstance(pod, dict) or not pod.get("containers"):
        if kind == KIND:
            raise Refused(reasons.SOURCE_INVALID, f"{where}.spec.containers: Required value")
        raise Refused(
            reasons.SOURCE_NOT_SUPPORTED,
            f"{where} is no pod template with containers; name the object that holds the template, or use spec.source.template",
        )
    template: Object = _without_nulls(found)
    _conform(template, _TEMPLATE, where)
    for index, volume in enumerate(template["spec"].get("volumes") or ()):
        claim = volume.get("persistentVolumeClaim")
        name = claim.get("claimName") if isinstance(claim, dict) else None
        if claim is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            field = f"{where}.spec.volumes[{index}].persistentVolumeClaim.claimName"
            raise Refused(reasons.SOURCE_INVALID, f"{field}: {name!r} is no name of a claim")
    return template


def _without_nulls(value: Any) -> Any:
    """As the API server stores it: a null field is an absent one."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _conform(value: Any, shape: Any, path: str) -> None:
    kind: Any = str if shape is str else type(shape)
    if not isinstance(value, kind):
        raise Refused(reasons.SOURCE_INVALID, f"{path} must be {_KINDS[kind]}")
    if isinstance(value, list):
        for index, one in enumerate(value):
            _conform(one, shape[0], f"{path}[{index}]")
            if shape[0] is not str and "name" in shape[0] and not one.get("name"):
                raise Refused(reasons.SOURCE_INVALID, f"{path}[{index}].name: Required value")
    elif isinstance(value, dict):
        for name, one in value.items():
            if (inner := shape.get(name, shape.get("*"))) is not None:
                _conform(one, inner, f"{path}.{name}")
