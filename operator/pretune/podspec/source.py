"""The pod template in a source object, {metadata, spec}, as its author wrote it.

Pure: controller/observe.py and origin.py read the object.
"""

from __future__ import annotations

import re
from typing import Any

from pretune.api import reasons
from pretune.api.names import KIND
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.intake import EXCESS, find_excess_of_template
from pretune.protocol import MAX_NUMBER

# The form that the rest of pretune relies on. A field that is not here may have any value: the API
# server checks it in the Job. A dict lists an object's fields; a list has the form of an array's
# items (which have a name if that is listed); MAP is an object with strings.
MAP: Any = {"*": str}
_ENTRIES: Any = [{"name": str}]
_RESOURCES: Any = {"limits": {}, "requests": {}, "claims": _ENTRIES}
_PROBE: Any = {
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "failureThreshold": int,
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
    "livenessProbe": _PROBE,
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
        "schedulingGates": _ENTRIES,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _TERMS}
            }
        },
    },
}
MAX_KIND = 63  # characters of a kind that a message names
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # as the API server takes it
_KIND_NAMES: dict[Any, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: f"a whole number of at most {MAX_NUMBER}",
}


def template_of(source: Object) -> Object:
    """Return the pod template in a source, as its author wrote it: a copy, without nulls.

    source: a workload (spec.template) or an AutotuneCache (spec.source.template).
    Raises Refused: SourceNotSupported if there is none; TooLarge if it exceeds a bound;
    SourceInvalid, with the field, if it does not have a template's form (the CRD keeps unknown
    fields, so that the API server checks nothing inside the pod spec of an AutotuneCache).
    """
    meta, kind = source.get("metadata") or {}, source.get("kind") or "object"
    if excess := source.get(EXCESS):
        raise Refused(reasons.TOO_LARGE, f"{kind} {meta.get('name', '')} {excess}")
    path = "spec.source.template" if kind == KIND else "spec.template"
    value: Any = source
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    path = f"{kind} {meta.get('name', '')}: {path}"
    pod = value.get("spec") if isinstance(value, dict) else None
    if not isinstance(pod, dict) or not pod.get("containers"):
        if kind == KIND:
            raise Refused(reasons.SOURCE_INVALID, f"{path}.spec.containers: Required value")
        raise Refused(
            reasons.SOURCE_NOT_SUPPORTED,
            f"{path} is no pod template with containers; name {_name_holder(source)}, or use"
            " spec.source.template",
        )
    if excess := find_excess_of_template(value):
        raise Refused(reasons.TOO_LARGE, f"{path}: {excess}")
    template: Object = _without_nulls(value)
    _check_form(template, _TEMPLATE, path)
    for index, volume in enumerate(template["spec"].get("volumes") or ()):
        claim = volume.get("persistentVolumeClaim")
        name = claim.get("claimName") if isinstance(claim, dict) else None
        if claim is not None and not (isinstance(name, str) and _OBJECT_NAME.fullmatch(name)):
            field = f"{path}.spec.volumes[{index}].persistentVolumeClaim.claimName"
            raise Refused(reasons.SOURCE_INVALID, f"{field}: {name!r} is no name of a claim")
    return template


def _name_holder(source: Object) -> str:
    """Return what to name instead of a source without a template.

    An Argo Rollout may refer to a Deployment for it (spec.workloadRef).
    """
    spec = source.get("spec")
    ref = spec.get("workloadRef") if isinstance(spec, dict) else None
    kind, name = (ref.get("kind"), ref.get("name")) if isinstance(ref, dict) else (None, None)
    if isinstance(kind, str) and isinstance(name, str) and _OBJECT_NAME.fullmatch(name):
        return f"{kind[:MAX_KIND]} {name}, to which its spec.workloadRef refers"
    return "the object that holds the template"


def _without_nulls(value: Any) -> Any:
    """Return the value as the API server stores it: a null field is an absent one."""
    if isinstance(value, dict):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _check_form(value: Any, form: Any, path: str) -> None:
    """Raise Refused SourceInvalid, with the path, if a value does not have this form."""
    kind: Any = form if form in (str, int) else type(form)
    if not isinstance(value, kind) or (kind is int and not -1 <= value <= MAX_NUMBER):
        raise Refused(reasons.SOURCE_INVALID, f"{path} must be {_KIND_NAMES[kind]}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_form(item, form[0], f"{path}[{index}]")
            if form[0] is not str and "name" in form[0] and not item.get("name"):
                raise Refused(reasons.SOURCE_INVALID, f"{path}[{index}].name: Required value")
    elif isinstance(value, dict):
        for name, field in value.items():
            if (inner := form.get(name, form.get("*"))) is not None:
                _check_form(field, inner, f"{path}.{name}")
