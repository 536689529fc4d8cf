"""A consumer's pod to its template as the author wrote it: one read of the object that holds it.

The controller asks once for each origin and run (controller/observe.py); the webhook once for each
origin, and caches the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.intake import EXCESS
from pretune.kube.types import ApiError, Cluster
from pretune.manifests.admitted import apply_admission
from pretune.manifests.injection import strip
from pretune.podspec.source import template_of
from pretune.podspec.workloads import (
    POD,
    REVISION_KIND,
    TemplateRef,
    WorkloadKind,
    controller_of,
    find_kind,
    origin_of,
)
from pretune.policy.model import Origin

MAX_REVISION_DIGITS = 19  # of an int64

# The API server's answers that become a Refused, by HTTP status. Any other error is raised.
_REFUSALS = {403: reasons.SOURCE_FORBIDDEN, 404: reasons.SOURCE_NOT_FOUND}


async def read_origin(
    cluster: Cluster, namespace: str, pod: Object, *, workload: bool = False
) -> Origin:
    """Return where a pod's template comes from.

    pod: its metadata is enough if it has an owner. It may be one that is being created, without
    name and uid. A pod without an owner of a known kind is its own template: nothing is read.
    workload: whether Origin.workload is wanted, for one more read: the workload above the owner,
    else the owner. If it cannot be read it is None, and no error.
    Origin.template is Refused (SourceNotFound, SourceForbidden, SourceInvalid) if the owner is gone
    or is another object of its name, may not be read, or holds no template. Raises ApiError,
    OSError or TimeoutError if the read fails otherwise.
    """
    ref = origin_of(pod)
    if ref is None:
        return _origin_of_bare(pod)
    holder = await _read_holder(cluster, namespace, ref)
    above = None
    if workload and holder.object is not None:
        above = await _read_workload(cluster, namespace, ref, holder.object)
    name = _name_workload(ref, holder.object)
    return Origin(ref.owner, ref.owner_name, holder.template, holder.order, above, name)


def without_template(workload: Object) -> Object:
    """Return a workload's kind, name, labels and spec without its pod template."""
    meta = {name: workload["metadata"].get(name) for name in ("namespace", "name", "uid", "labels")}
    whole = workload.get("spec")  # of a kind that somebody defined, it may be anything
    spec = (
        {name: value for name, value in whole.items() if name != "template"}
        if isinstance(whole, dict)
        else {}
    )
    kind = {name: workload[name] for name in ("apiVersion", "kind")}
    return {**kind, "metadata": meta, "spec": spec}


def _name_workload(ref: TemplateRef, holder: Object | None) -> str:
    """Return `<kind>/<name>` of the workload: without a read of it, by the owner references.

    A ReplicaSet's is whatever controls it: a Deployment, or an Argo Rollout.
    """
    row = find_kind(ref.owner)
    above = controller_of(holder) if holder is not None and row is not None and row.above else None
    return f"{above['kind']}/{above['name']}" if above else f"{ref.owner}/{ref.owner_name}"


# --- a pod that is its own template


def _origin_of_bare(pod: Object) -> Origin:
    """Return what the pod's author wrote, as far as that is known.

    That is the pod without what we, the scheduler and the API server added.
    """
    if excess := pod.get(EXCESS):
        name = pod["metadata"].get("name") or ""
        return Origin(POD, name, Refused(reasons.TOO_LARGE, f"Pod {name} {excess}"))
    stripped = strip(pod)
    meta, spec = stripped["metadata"], dict(stripped["spec"])
    if not _author_chose_node(pod):
        spec.pop("nodeName", None)  # else each node would have a bundle of its own
    written = {
        "metadata": {name: meta.get(name) or {} for name in ("labels", "annotations")},
        "spec": spec,
    }
    name = meta.get("name") or meta.get("generateName") or ""
    template = _conforming(apply_admission(written, pod), POD, name)
    owner = controller_of(pod)  # of a kind that has no row
    workload = f"{owner['kind']}/{owner['name']}" if owner else f"{POD}/{name}"
    order = (0, meta.get("creationTimestamp") or "")
    return Origin(POD, name, template, order, workload_name=workload)


def _author_chose_node(pod: Object) -> bool:
    """Whether spec.nodeName is the author's.

    The scheduler's binding leaves no mark in managedFields (seen on 1.34). A pod that is being
    created has no uid yet.
    """
    meta = pod["metadata"]
    entries = meta.get("managedFields") or ()
    specs = [(entry.get("fieldsV1") or {}).get("f:spec") or {} for entry in entries]
    return "uid" not in meta or any("f:nodeName" in fields for fields in specs)


# --- a pod whose template is in another object


@dataclass(frozen=True)
class _Holder:
    """The object that holds a template, as it was read."""

    template: Object | Refused
    order: tuple[int, str] = (0, "")  # as Origin.order
    object: Object | None = None


async def _read_holder(cluster: Cluster, namespace: str, ref: TemplateRef) -> _Holder:
    name = f"{ref.kind} {namespace}/{ref.name}"
    try:
        holder = await cluster.get(ref.api_version, ref.kind, namespace, ref.name)
    except ApiError as error:
        if error.code not in _REFUSALS:
            raise
        return _Holder(Refused(_REFUSALS[error.code], f"{name}: {error.message}"))
    if holder is None:
        return _Holder(Refused(reasons.SOURCE_NOT_FOUND, f"{name} does not exist"))
    if excess := holder.get(EXCESS):
        return _Holder(Refused(reasons.TOO_LARGE, f"{name} {excess}"))
    row = find_kind(ref.owner)
    assert row is not None  # origin_of has found it
    uid, number, template = _open_holder(holder, row)
    if uid != ref.uid:
        owner = f"{ref.owner} {ref.owner_name} (uid {ref.uid})"
        message = f"{name} is not that of the pod's owner {owner}, which is gone"
        return _Holder(Refused(reasons.SOURCE_NOT_FOUND, message))
    created = holder["metadata"].get("creationTimestamp") or ""
    template = _conforming(template, ref.kind, f"{namespace}/{ref.name}")
    return _Holder(template, (_parse_number(number), created), holder)


def _open_holder(holder: Object, row: WorkloadKind) -> tuple[object, object, object]:
    """Return the uid of the pod's owner, the revision's number, and the template, unchecked."""
    meta = holder["metadata"]
    if row.revision_name is None:
        annotations = meta.get("annotations") or {}
        names = (name for name in row.order_annotations if name in annotations)
        number = annotations.get(next(names, None))
        return meta["uid"], number, (holder.get("spec") or {}).get("template")
    template = ((holder.get("data") or {}).get("spec") or {}).get("template")
    if isinstance(template, dict):  # $patch is there for a rollback
        template = {name: value for name, value in template.items() if name != "$patch"}
    return (controller_of(holder) or {}).get("uid"), holder.get("revision"), template


def _parse_number(value: object) -> int:
    """Return a revision's number; 0 for what is none: anybody may write the annotation."""
    text = str(value)
    return int(text) if len(text) <= MAX_REVISION_DIGITS and text.isdecimal() else 0


def _conforming(template: object, kind: str, name: str) -> Object | Refused:
    source = {"kind": kind, "metadata": {"name": name}, "spec": {"template": template}}
    try:
        return template_of(source)
    except Refused as refused:
        is_large = refused.reason == reasons.TOO_LARGE
        return refused if is_large else Refused(reasons.SOURCE_INVALID, refused.message)


async def _read_workload(
    cluster: Cluster, namespace: str, ref: TemplateRef, holder: Object
) -> Object | None:
    """Return the workload that a person created, without its template.

    The owner of a ControllerRevision; what a row names above an object of its kind; else the
    holder itself, whatever is above it.
    """
    owner, row = controller_of(holder), find_kind(ref.owner)
    is_revision = ref.kind == REVISION_KIND
    if owner is None or not (is_revision or (row is not None and owner["kind"] in row.above)):
        return without_template(holder)
    try:
        above = await cluster.get(owner["apiVersion"], owner["kind"], namespace, owner["name"])
    except ApiError as error:
        if error.code not in _REFUSALS:
            raise
        return None
    if above is None or above["metadata"]["uid"] != owner["uid"]:
        return None
    return without_template(above)
