"""A consumer's pod to its template as the author wrote it: one read of the object that holds it, as it is now.

The controller asks once an origin and look (controller/observe.py); the webhook once an origin, and remembers the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.kube.types import ApiError, Cluster
from pretune.manifests.admitted import apply_admission
from pretune.manifests.injection import strip
from pretune.podspec.workloads import TemplateRef, controller_of, origin_of, template_of
from pretune.policy.model import Origin

REVISION = "deployment.kubernetes.io/revision"  # annotation of a ReplicaSet; a rollback makes the old one's the newest again
_ANSWERS = {
    403: reasons.SOURCE_FORBIDDEN,
    404: reasons.SOURCE_NOT_FOUND,
}  # of the API server; any other error is raised


async def read_origin(
    cluster: Cluster, namespace: str, pod: Object, *, workload: bool = False
) -> Origin:
    """Where a pod's template comes from. A pod without an owner of a known kind is its own: no read.

    pod: its metadata is enough for one that has an owner; it may be one that is just being made (no name, no uid).
    workload: whether Origin.workload is wanted, for one more read: the Deployment above a ReplicaSet, else the owner. What cannot
    be had of it is None, and no error.
    Origin.template is Refused (SourceNotFound, SourceForbidden, SourceInvalid) where the owner is gone or another of its name,
    may not be read, or holds no template. Raises ApiError, OSError or TimeoutError where the read fails otherwise.
    """
    ref = origin_of(pod)
    if ref is None:
        return _its_own(pod)
    found = await _read(cluster, namespace, ref)
    above = (
        await _above(cluster, namespace, found.object)
        if workload and found.object is not None
        else None
    )
    return Origin(ref.owner, ref.owner_name, found.template, found.order, above)


def without_template(workload: Object) -> Object:
    """A workload's kind, name, labels and spec without its pod template."""
    meta = {name: workload["metadata"].get(name) for name in ("namespace", "name", "uid", "labels")}
    spec = {name: one for name, one in (workload.get("spec") or {}).items() if name != "template"}
    return {
        **{name: workload[name] for name in ("apiVersion", "kind")},
        "metadata": meta,
        "spec": spec,
    }


# --- inside


@dataclass(frozen=True)
class _Found:
    template: Object | Refused
    order: tuple[int, str] = (0, "")
    object: Object | None = None


def _its_own(pod: Object) -> Origin:
    """What the pod's author wrote, as far as it can be told: without what we, the scheduler and the API server added."""
    bare = strip(pod)
    meta, spec = bare["metadata"], dict(bare["spec"])
    if not _author_chose_node(pod):
        spec.pop("nodeName", None)  # else each node would make a bundle of its own
    written = {
        "metadata": {name: meta.get(name) or {} for name in ("labels", "annotations")},
        "spec": spec,
    }
    name = meta.get("name") or meta.get("generateName") or ""
    found = _template(apply_admission(written, pod), "Pod", name)
    return Origin("Pod", name, found, (0, meta.get("creationTimestamp") or ""))


def _author_chose_node(pod: Object) -> bool:
    """The scheduler's binding leaves no mark in managedFields (seen on 1.34); a pod that is being made has no uid yet."""
    meta = pod["metadata"]
    marks = [
        ((one.get("fieldsV1") or {}).get("f:spec") or {}) for one in meta.get("managedFields") or ()
    ]
    return "uid" not in meta or any("f:nodeName" in one for one in marks)


async def _read(cluster: Cluster, namespace: str, ref: TemplateRef) -> _Found:
    named = f"{ref.kind} {namespace}/{ref.name}"
    try:
        found = await cluster.get(ref.api_version, ref.kind, namespace, ref.name)
    except ApiError as error:
        if error.code not in _ANSWERS:
            raise
        return _Found(Refused(_ANSWERS[error.code], f"{named}: {error.message}"))
    if found is None:
        return _Found(Refused(reasons.SOURCE_NOT_FOUND, f"{named} is not there"))
    meta = found["metadata"]
    if ref.kind == "ControllerRevision":
        uid, number = (controller_of(found) or {}).get("uid"), found.get("revision") or 0
        template = ((found.get("data") or {}).get("spec") or {}).get("template")
        if isinstance(template, dict):
            template = {
                name: one for name, one in template.items() if name != "$patch"
            }  # how a revision is put back
    else:
        uid, number = meta["uid"], (meta.get("annotations") or {}).get(REVISION) or 0
        template = (found.get("spec") or {}).get("template")
    if uid != ref.uid:
        whose = f"{ref.owner} {ref.owner_name} (uid {ref.uid})"
        return _Found(
            Refused(
                reasons.SOURCE_NOT_FOUND,
                f"{named} is not that of the pod's owner {whose}, which is gone",
            )
        )
    order = (int(number) if str(number).isdecimal() else 0, meta.get("creationTimestamp") or "")
    return _Found(_template(template, ref.kind, f"{namespace}/{ref.name}"), order, found)


def _template(template: object, kind: str, name: str) -> Object | Refused:
    try:
        return template_of(
            {"kind": kind, "metadata": {"name": name}, "spec": {"template": template}}
        )
    except Refused as refused:
        return Refused(reasons.SOURCE_INVALID, refused.message)


async def _above(cluster: Cluster, namespace: str, found: Object) -> Object | None:
    """The set of a revision, the Deployment of a ReplicaSet; else the object itself: another kind above it is not ours to read."""
    owner = controller_of(found)
    if owner is None or (found["kind"] != "ControllerRevision" and owner["kind"] != "Deployment"):
        return without_template(found)
    try:
        above = await cluster.get(owner["apiVersion"], owner["kind"], namespace, owner["name"])
    except ApiError as error:
        if error.code not in _ANSWERS:
            raise
        return None
    return (
        without_template(above)
        if above is not None and above["metadata"]["uid"] == owner["uid"]
        else None
    )
