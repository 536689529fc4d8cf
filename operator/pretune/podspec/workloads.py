"""The kinds of workloads whose pods may be consumers, and where such a pod's template is. Pure.

One row of KINDS says of one kind where the template of its pods is, how its revisions are ordered,
which workload is above it, and whether its pods are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pretune.api.types import Object

# A rollback makes an old one the newest.
REVISION_ANNOTATION = "deployment.kubernetes.io/revision"
ROLLOUT_REVISION_ANNOTATION = "rollout.argoproj.io/revision"  # of a ReplicaSet of an Argo Rollout
POD = "Pod"  # the kind of the origin of a pod that is its own template

# Set on each pod, before it is created, by the controllers that keep ControllerRevisions.
REVISION_LABEL = "controller-revision-hash"
REVISIONS_API, REVISION_KIND = "apps/v1", "ControllerRevision"


@dataclass(frozen=True)
class WorkloadKind:
    """A kind of object that controls pods."""

    group: str  # the API group
    kind: str

    # None: the pods' template is in the object, at spec.template. Else it is in a
    # ControllerRevision, since the object may be at a newer revision than its pod. This is its
    # name, by the object's name and the pod's label controller-revision-hash.
    revision_name: Callable[[str, str], str] | None = None

    # Annotations of the object, one of which is its revision's number: the newest has the largest.
    # None: a ControllerRevision has its number as a field, and another object's age decides.
    order_annotations: tuple[str, ...] = ()

    # Label of pods whose object is one revision, so that its template never changes.
    fixed_by_label: str = ""

    # Kinds of workloads above, of one of which each object is a revision. (): it has none.
    above: tuple[str, ...] = ()

    # Whether a workload above reports a failure where it makes no progress for
    # spec.progressDeadlineSeconds.
    has_progress_deadline: bool = False

    # Whether its pods are held while spec.hold.when is WhenServing. A pod of a kind that replaces
    # pods one by one takes the place of one that serves, which would be missed while it is held.
    is_held_when_serving: bool = False

    # Whether it counts a pod that is deleted as one that failed (spec.backoffLimit of a Job).
    counts_deleted_pods: bool = False

    @property
    def has_revisions(self) -> bool:
        """Whether its pods may be of different revisions."""
        return bool(self.revision_name or self.above)

    @property
    def workload_kinds(self) -> tuple[str, ...]:
        """The kinds of the workload that a person created."""
        return self.above or (self.kind,)


KINDS: tuple[WorkloadKind, ...] = (
    WorkloadKind(
        "apps",
        "ReplicaSet",
        order_annotations=(REVISION_ANNOTATION, ROLLOUT_REVISION_ANNOTATION),
        fixed_by_label="pod-template-hash",  # set by the Deployment controller
        above=("Deployment", "Rollout"),  # Argo's; to read it takes sources.extraRules
        has_progress_deadline=True,
        is_held_when_serving=True,
    ),
    WorkloadKind("apps", "StatefulSet", revision_name=lambda name, label: label),
    WorkloadKind("apps", "DaemonSet", revision_name=lambda name, label: f"{name}-{label}"),
    WorkloadKind("batch", "Job", counts_deleted_pods=True),
)


def find_kind(kind: str, group: str | None = None) -> WorkloadKind | None:
    """Return the row of a kind, of any group if none is given; None if there is no row."""
    for row in KINDS:
        if row.kind == kind and group in (None, row.group):
            return row
    return None


def has_revisions(workload: str) -> bool:
    """Whether a workload of this kind keeps revisions: a Deployment, a StatefulSet, a DaemonSet."""
    return any(workload in row.workload_kinds and row.has_revisions for row in KINDS)


def has_progress_deadline(workload: str) -> bool:
    """Whether a workload of this kind has spec.progressDeadlineSeconds, which its pods may miss."""
    return any(workload in row.workload_kinds and row.has_progress_deadline for row in KINDS)


def held_kinds() -> list[str]:
    """Return the kinds whose pods are held while spec.hold.when is WhenServing."""
    return [row.kind for row in KINDS if row.is_held_when_serving]


@dataclass(frozen=True)
class TemplateRef:
    """The object that holds a pod's template as its author wrote it."""

    api_version: str
    kind: str  # of a row without revision_name, or ControllerRevision
    name: str
    uid: str  # of the controlling owner: the object's own, or that of a revision's own controller
    owner: str  # the controlling owner's kind
    owner_name: str


def controller_of(obj: Object) -> Object | None:
    """Return the owner reference of an object's controller, or None.

    It has apiVersion, kind, name and uid.
    """
    owners: list[Object] = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def is_recreated(pod: Object) -> bool:
    """Return whether a pod may be deleted so that its controller creates another one.

    A pod without a controller is not recreated. A Job counts it as a failure.
    """
    owner = controller_of(pod)
    if owner is None:
        return False
    row = find_kind(owner["kind"], str(owner.get("apiVersion", "")).rpartition("/")[0])
    return row is None or not row.counts_deleted_pods


def origin_of(pod: Object) -> TemplateRef | None:
    """Return what holds a pod's template; None if the pod is its own template.

    It is its own template if no object of KINDS controls it (one of the same kind in another API
    group is none), and if a kind with revisions did not create it: then it has no revision label.
    """
    owner = controller_of(pod)
    if owner is None:
        return None
    name, uid, version = owner["name"], owner["uid"], owner["apiVersion"]
    row = find_kind(owner["kind"], version.rpartition("/")[0])
    if row is None:
        return None
    if row.revision_name is None:
        return TemplateRef(version, row.kind, name, uid, row.kind, name)
    label = (pod["metadata"].get("labels") or {}).get(REVISION_LABEL)
    if not label:
        return None
    revision = row.revision_name(name, label)
    return TemplateRef(REVISIONS_API, REVISION_KIND, revision, uid, row.kind, name)


def origin_key(pod: Object) -> str:
    """Return `<kind>/<name>` of a pod's origin: the same for the pods of one template."""
    ref = origin_of(pod)
    return f"{ref.kind}/{ref.name}" if ref else f"{POD}/{pod['metadata'].get('name', '')}"


def template_version(ref: TemplateRef, pod: Object) -> str | None:
    """Return the version of the template in a pod's origin; None if the template may change.

    Two pods with the same origin and version have the same template.
    """
    if ref.kind == REVISION_KIND:
        return ref.name
    row, labels = find_kind(ref.owner), pod["metadata"].get("labels") or {}
    return labels.get(row.fixed_by_label) if row and row.fixed_by_label else None
