"""The AutotuneCache API in Python: names, spec, reasons, and the shape of the status. The CRD in the chart is its twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pretune.reasons import REASONS

Object = dict[str, Any]  # a Kubernetes object, as plain as the API server sends it

GROUP = "pretune.dev"
VERSION = "v1alpha1"
KIND = "AutotuneCache"
PLURAL = "autotunecaches"

# Labels and annotations. CACHE and ROLE stand on all that is ours; a pod with CACHE and without ROLE is a consumer.
CACHE = "pretune.dev/cache"
ROLE = "pretune.dev/role"  # tuning | proof | import | inspect | prune; on a claim and a ConfigMap: claim | agent
BUNDLE = "pretune.dev/bundle"  # label of an attempt; annotation of a consumer: what it was given
DELIVERY = "pretune.dev/delivery"  # annotation of a consumer: ReadOnly | Overlay | None
REASON = "pretune.dev/reason"  # annotation of a consumer: "<one of reasons.DELIVERIES>: <message>"
TARGET = "pretune.dev/target"  # annotation of a consumer, by its author: the name of its target
HOLD = "pretune.dev/hold"  # scheduling gate of a consumer that waits for its bundle
ATTEMPT = "pretune.dev/attempt"  # the attempt's number, from 1
FINGERPRINT = "pretune.dev/fingerprint"  # annotation: whole
WHEN_DELETED = "pretune.dev/when-deleted"  # annotation of our claim: Delete | Retain
SIZE = "pretune.dev/size"  # annotation of our claim: what spec.storage.claim.size asked for, so that a change is seen
STORAGE = "pretune.dev/storage"  # annotation of an attempt: where its bundle goes to, by storage_place()
QUESTION = "pretune.dev/question"  # annotation of an inspect or prune Job: the ids it was given, as JSON

IMPORT = "pretune.dev/import"  # annotation of a cache, by its author: `<claim>[/<path in it>]`, a folder that vLLM wrote itself

TUNING, PROOF, INSPECT, PRUNE = "tuning", "proof", "inspect", "prune"
IMPORTING = "import"  # its pod needs no GPU: it holds up nobody's attempt but its own bundle's
CHECK_CONTAINER, SEAL_CONTAINER = "pretune-check", "pretune-seal"
PROVE_CONTAINER, IMPORT_CONTAINER = "pretune-prove", "pretune-import"
AGENT_CONTAINER = "pretune-agent"  # of inspect and prune
SEED_CONTAINER = "pretune-seed"  # of consumers, and of a proof's pod

PENDING, TUNING_STATE, SEALED, FAILED, REFUSED, RETIRED = "Pending", "Tuning", "Sealed", "Failed", "Refused", "Retired"
PROVING = "Proving"  # on the claim, and given to no pod before its proof: only with spec.verify: BeforeRelease
STATES = (PENDING, TUNING_STATE, PROVING, SEALED, FAILED, REFUSED, RETIRED)


class Refused(Exception):
    """The user must act: becomes a condition, is never retried by itself. The message names the object and the field."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


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
    timeout: int = 3600  # seconds from the pod's creation
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
    def of(cls, cache: Object) -> Spec:
        """From an AutotuneCache that the API server accepted."""
        spec = cache.get("spec") or {}
        source, tuning, storage = spec.get("source") or {}, spec.get("tuning") or {}, spec.get("storage") or {}
        overlay = tuning.get("podTemplate") or {}
        meta, pod = overlay.get("metadata") or {}, overlay.get("spec") or {}
        hold = spec.get("hold") or {}
        made, existing = storage.get("claim") or {}, storage.get("existingClaim") or {}
        return cls(
            workload_ref=source.get("workloadRef"),
            template=source.get("template"),
            engine_container=spec.get("engineContainer") or "",
            targets=tuple(
                Target(one["name"], one.get("nodeSelector") or {}, tuple(one.get("tolerations") or ()))
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
                timeout=hold.get("timeoutSeconds", 3600),
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
