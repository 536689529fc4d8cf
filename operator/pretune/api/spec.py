"""spec of an AutotuneCache, typed. The CRD in the chart is its twin (tests/chart/test_twins.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pretune.api.types import Object


@dataclass(frozen=True)
class Target:
    """spec.targets[]: one kind of node that the engine runs on."""

    name: str = "default"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Claim:
    """spec.storage: the user's claim, or how to create one of ours."""

    existing: str = ""  # the user's claim; "": one of ours
    sub_path: str = ""  # in the user's claim
    storage_class: str | None = None
    access_mode: str = "ReadWriteMany"
    size: str | int = "1Gi"
    when_deleted: str = "Delete"  # Delete | Retain


@dataclass(frozen=True)
class Hold:
    """spec.hold: which consumers wait for their bundle, how long, and what follows if it fails."""

    when: str = "WhenServing"  # WhenServing | Always | Never
    timeout_seconds: int = 3600  # from the pod's creation
    on_failure: str = "Start"  # Start (cold) | Keep


@dataclass(frozen=True)
class Spec:
    """spec of an AutotuneCache with every default in place, those of the CRD included.

    Names are those of the CRD, except spec.storage (claim), spec.tuning.podTemplate (job_labels to
    tolerations) and spec.delivery.mode (delivery).
    """

    workload_ref: Mapping[str, str] | None
    template: Object | None
    engine_container: str
    targets: tuple[Target, ...]
    claim: Claim
    deadline_seconds: int
    max_attempts: int
    node_wait_seconds: int  # that pods are held while an attempt finds no node
    job_labels: Mapping[str, str]
    job_annotations: Mapping[str, str]
    priority_class: str
    tolerations: tuple[Object, ...]
    keep_containers: tuple[str, ...]
    allow: frozenset[str]
    delivery: str  # Auto | ReadOnly | Overlay | None
    hold: Hold
    verify: str  # Never | BeforeRelease
    history_limit: int
    revision: str
    suspend: bool

    @classmethod
    def from_cache(cls, cache: Object) -> Spec:
        """Return the spec of an AutotuneCache that the API server accepted."""
        spec = cache.get("spec") or {}
        source, tuning = spec.get("source") or {}, spec.get("tuning") or {}
        storage, hold = spec.get("storage") or {}, spec.get("hold") or {}
        claim, existing = storage.get("claim") or {}, storage.get("existingClaim") or {}
        pod_template = tuning.get("podTemplate") or {}
        meta, pod = pod_template.get("metadata") or {}, pod_template.get("spec") or {}
        targets = spec.get("targets") or [{"name": "default"}]
        return cls(
            workload_ref=source.get("workloadRef"),
            template=source.get("template"),
            engine_container=spec.get("engineContainer") or "",
            targets=tuple(
                Target(
                    name=target["name"],
                    node_selector=target.get("nodeSelector") or {},
                    tolerations=tuple(target.get("tolerations") or ()),
                )
                for target in targets
            ),
            claim=Claim(
                existing=existing.get("name", ""),
                sub_path=existing.get("subPath", ""),
                storage_class=claim.get("storageClassName"),
                access_mode=(claim.get("accessModes") or ["ReadWriteMany"])[0],
                size=claim.get("size", "1Gi"),
                when_deleted=claim.get("whenDeleted", "Delete"),
            ),
            deadline_seconds=tuning.get("deadlineSeconds", 5400),
            max_attempts=tuning.get("maxAttempts", 3),
            node_wait_seconds=tuning.get("nodeWaitSeconds", 300),
            job_labels=meta.get("labels") or {},
            job_annotations=meta.get("annotations") or {},
            priority_class=pod.get("priorityClassName") or "",
            tolerations=tuple(pod.get("tolerations") or ()),
            keep_containers=tuple(tuning.get("keepContainers") or ()),
            allow=frozenset(tuning.get("allow") or ()),
            delivery=(spec.get("delivery") or {}).get("mode", "Auto"),
            hold=Hold(
                when=hold.get("when", "WhenServing"),
                timeout_seconds=hold.get("timeoutSeconds", 3600),
                on_failure=hold.get("onFailure", "Start"),
            ),
            verify=spec.get("verify", "Never"),
            history_limit=spec.get("bundleHistoryLimit", 3),
            revision=spec.get("revision") or "",
            suspend=bool(spec.get("suspend")),
        )


def storage_place(cache: str, spec: Spec) -> str:
    """Return `<claim>/<subPath>`: where the bundles of a cache of this name and spec are kept."""
    return f"{claim_name(cache, spec)}/{spec.claim.sub_path}"


def claim_name(cache: str, spec: Spec) -> str:
    """Return the name of the claim that holds the bundles; one of ours is `pretune-<cache>`."""
    return spec.claim.existing or f"pretune-{cache}"
