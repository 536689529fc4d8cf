"""The AutotuneCache API in Python: names, spec, reasons, and the shape of the status. The CRD in the chart is its twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pretune.api.types import Object


@dataclass(frozen=True)
class Target:
    name: str = "default"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Claim:
    """spec.storage: either ours (`existing` empty) or the user's, with the folder in it."""

    existing: str = ""
    sub_path: str = ""
    storage_class: str | None = None
    access_mode: str = "ReadWriteMany"
    size: str | int = "1Gi"
    when_deleted: str = "Delete"


@dataclass(frozen=True)
class Hold:
    """spec.hold: which consumers wait for their bundle, how long, and what comes when it fails."""

    when: str = "WhenServing"  # WhenServing | Always | Never
    timeout_seconds: int = 3600  # from the pod's creation
    on_failure: str = "Start"  # Start (cold) | Keep


@dataclass(frozen=True)
class Spec:
    """spec of an AutotuneCache with every default in place, those of the CRD included."""

    workload_ref: Mapping[str, str] | None
    template: Object | None
    engine_container: str
    targets: tuple[Target, ...]
    claim: Claim
    deadline_seconds: int
    max_attempts: int
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
        source, tuning, storage = (
            spec.get("source") or {},
            spec.get("tuning") or {},
            spec.get("storage") or {},
        )
        overlay = tuning.get("podTemplate") or {}
        meta, pod = overlay.get("metadata") or {}, overlay.get("spec") or {}
        hold = spec.get("hold") or {}
        made, existing = storage.get("claim") or {}, storage.get("existingClaim") or {}
        return cls(
            workload_ref=source.get("workloadRef"),
            template=source.get("template"),
            engine_container=spec.get("engineContainer") or "",
            targets=tuple(
                Target(
                    one["name"], one.get("nodeSelector") or {}, tuple(one.get("tolerations") or ())
                )
                for one in spec.get("targets") or [{"name": "default"}]
            ),
            claim=Claim(
                existing=existing.get("name", ""),
                sub_path=existing.get("subPath", ""),
                storage_class=made.get("storageClassName"),
                access_mode=(made.get("accessModes") or ["ReadWriteMany"])[0],
                size=made.get("size", "1Gi"),
                when_deleted=made.get("whenDeleted", "Delete"),
            ),
            deadline_seconds=tuning.get("deadlineSeconds", 5400),
            max_attempts=tuning.get("maxAttempts", 3),
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
    """`<claim>/<subPath>`: where a spec keeps its bundles."""
    return f"{claim_name(cache, spec)}/{spec.claim.sub_path}"


def claim_name(cache: str, spec: Spec) -> str:
    """The claim that holds the bundles; our own is `pretune-<cache>`."""
    return spec.claim.existing or f"pretune-{cache}"
