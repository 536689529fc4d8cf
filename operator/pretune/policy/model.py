"""What one reconcile observes, and what it wants done: pure data. Times are Unix seconds (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.engines.logs import LogSummary
from pretune.kube.types import Event

# --- what is observed


@dataclass(frozen=True)
class Observed:
    """One key, read live. Objects are plain dicts, cut down to the fields in use.

    controller/observe.py reads them, controller/project.py says what is kept.
    """

    key: Key
    settings: Settings
    agent_name: str  # the current agent ConfigMap's name
    cache: Object | None
    # A pod template {metadata, spec} as its author wrote it; None: the cache names no source.
    source: Object | Refused | None = None
    # What spec.source.workloadRef names: kind, name, labels, spec without its template.
    source_workload: Object | None = None
    # Access modes by name, of the claims that untuned templates mount, the consumers' included.
    source_claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # ResourceClaimTemplates by name, of those that untuned templates name and that could be read.
    device_claims: Mapping[str, Object] = field(default_factory=dict)
    # Nodes by claim: of the pods, not ours, that use a claim of those which only the pods of one node
    # can mount.
    claim_nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    claim: Object | None = None  # the PersistentVolumeClaim, ours or the user's
    storage_class: Object | None = None  # of the claim, while it is pending
    claim_events: tuple[Object, ...] = ()  # while it is pending
    jobs: tuple[Object, ...] = ()  # labelled with this cache
    pods: tuple[Object, ...] = ()  # labelled with this cache and a role
    # Pods with the cache's label and no role, of any phase.
    consumers: tuple[Object, ...] = ()
    origins: Mapping[str, Origin] = field(default_factory=dict)  # by origin key of a consumer
    # By origin key: one whole consumer, as admission left it, where a bundle of its template is
    # not sealed.
    examples: Mapping[str, Object] = field(default_factory=dict)
    # By pod uid: of consumers that were given a bundle and do not start, five at most; of pods of
    # ours whose volumes are not mounted, five at most.
    pod_events: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    # By uid: of Jobs of ours that are suspended, or have no pod, five at most.
    job_events: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    agents: tuple[Object, ...] = ()  # agent ConfigMaps of the namespace
    agents_named: frozenset[str] = frozenset()  # those that some pod of the namespace mounts
    # The ConfigMap of the agent's name, where it does not hold this release's agent.
    foreign_agent: Object | None = None
    namespace_has_caches: bool = True
    held: tuple[Object, ...] = ()  # held consumers; only read when the cache is gone
    # Names of other caches that name the claim in spec.storage.existingClaim; only read when the
    # cache is gone.
    claim_caches: frozenset[str] = frozenset()
    # Names of pods of any phase that mount the claim; only read when the cache is gone.
    claim_users: frozenset[str] = frozenset()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)  # of this run's actions, by name
    # By uid of a held pod, as far as this process has seen them.
    release_refusals: Mapping[str, ReleaseRefusal] = field(default_factory=dict)
    # What is known of consumers' logs, by EngineStart.key; None: no logs are read.
    start_logs: Mapping[str, StartObservation] | None = None
    # By the uid of a pod that tunes or proves: why its engine failed, as its log says.
    causes: Mapping[str, str] = field(default_factory=dict)
    turn: Turn | None = None  # None: the number of attempts is not limited

    @property
    def spec(self) -> Spec:
        """The cache's spec."""
        assert self.cache is not None
        return Spec.from_cache(self.cache)


@dataclass(frozen=True)
class Origin:
    """Where a consumer's pod template comes from, as its author wrote it."""

    # ReplicaSet | StatefulSet | DaemonSet | Job: the controlling owner; Pod: its own template.
    kind: str
    name: str
    template: Object | Refused  # {metadata, spec}; Refused: it could not be read, and why
    # The newer revision is the larger: (revision number, creation time).
    order: tuple[int, str] = (0, "")
    # The Deployment above a ReplicaSet, else the owner: kind, metadata, spec without its template.
    # Not read where spec.source.workloadRef names one of apps: that is Observed.source_workload.
    workload: Object | None = None
    # `<kind>/<name>` of that workload, as owner references name it; "": unknown.
    workload_name: str = ""


@dataclass(frozen=True)
class ReleaseRefusal:
    """The API server's refusals to remove our gate from one pod."""

    count: int
    message: str  # of the last one
    first_at: float  # Unix seconds, as last_at is
    last_at: float


@dataclass(frozen=True)
class Outcome:
    """The API server's answer about an object that was created or applied."""

    code: int  # HTTP status
    message: str
    object: Object | None = None  # what exists (after 200, 201 and 409)


@dataclass(frozen=True)
class EngineStart:
    """One start of a consumer's engine, whose log says whether it was warm."""

    pod: str  # its name
    uid: str
    container: str
    since: str  # when the container started, as its status says it (RFC 3339)
    ready: float  # when the pod became ready (Unix seconds)
    probed: bool = True  # the pod was not ready before the engine was
    engine: Object | None = None  # the container as its author wrote it

    @property
    def key(self) -> str:
        """The pod's uid and the start's time: a restarted engine is another start."""
        return f"{self.uid}/{self.since}"

    @property
    def began(self) -> float:
        """`since` in Unix seconds."""
        return parse_timestamp(self.since)


@dataclass(frozen=True)
class StartObservation:
    """What is known of one start from its log, and of its pod."""

    log_summary: LogSummary
    # Variables and flags in which the pod differs from its template, of an engine that tuned.
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedStart:
    """One start of the engine in a pod that tunes or proves, which has failed."""

    pod: str  # its name
    uid: str
    container: str
    is_previous: bool  # the kubelet has started the engine again


@dataclass(frozen=True)
class Turn:
    """Whether a cache may start an attempt, by what the controller knows of all caches."""

    is_free: bool
    place: int  # among the caches that wait, from 1
    waiting: int  # caches that wait, this one included
    running: int  # attempts of all caches
    limit: int  # controller.maxConcurrentAttempts
    used_up: str = ""  # why its namespace may start none, though all caches run fewer; "": it may

    @property
    def message(self) -> str:
        """Why it waits, and behind how many others."""
        used_up = self.used_up or (
            f"{self.running} attempts of all caches run, of {self.limit} that"
            " controller.maxConcurrentAttempts allows"
        )
        return f"{used_up}; place {self.place} of {self.waiting}"


# --- what is wanted


@dataclass(frozen=True)
class Action:
    """One call to the API server; each may be made twice."""

    name: str  # "create Job demo-3f9c…-1": unique in a plan, and what is logged


@dataclass(frozen=True)
class Create(Action):
    """POST. 409 is no error: what exists is the outcome, whatever owns it."""

    object: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Apply(Action):
    """Server-side apply of an object that is wholly ours (the claim, the agent ConfigMap)."""

    object: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Patch(Action):
    """Merge patch (or strategic merge patch) of one object, as long as it has this uid."""

    object: Object = field(default_factory=dict)  # apiVersion, kind, metadata.{namespace,name,uid}
    patch: Mapping[str, Any] = field(default_factory=dict)
    # It removes one item of a list by its name, where a merge patch would replace the list.
    strategic: bool = False
    is_optional: bool = False  # what the API server refuses is no error: something else follows


@dataclass(frozen=True)
class Delete(Action):
    """Delete with background propagation, as long as the object has this uid; 404 is no error.

    And this resourceVersion, where one is given.
    """

    # apiVersion, kind, metadata.{namespace,name,uid[,resourceVersion]}
    object: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Released:
    """A hold that this plan ends, for the metrics."""

    cause: str  # of policy/hold/release.RELEASE_RULES
    waited: float  # seconds


FOUND = "Found"  # why an attempt ended: its bundle was on the claim already


@dataclass(frozen=True)
class EndedAttempt:
    """A tuning attempt, or a proof, whose end this plan's status records, for the metrics."""

    bundle_id: str
    reason: str  # of a failure, or docs/metrics.md's
    gpu_seconds: float
    tuning_seconds: float | None = None  # from the engine's start to the seal, where it sealed
    result: str = "failed"  # the field of GpuSeconds


@dataclass(frozen=True)
class Plan:
    """What is to be done: `actions` in their order, one write of `status`, `after`, `events`.

    `after` is what must not happen before the status remembers it; several at a time, in any order.
    """

    actions: tuple[Action, ...] = ()
    status: Mapping[str, Any] | None = None  # the whole status; None: there is none to write
    after: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None  # seconds from now
    released: tuple[Released, ...] = ()
    ended: tuple[EndedAttempt, ...] = ()
    lost_gpu_seconds: float = 0.0  # of pods whose loss this plan's status records
    # Starts whose logs are worth reading; what is known of others may be forgotten.
    starts: tuple[EngineStart, ...] = ()
    # The cache's open attempts and proofs, by the Job's name: whether each counts (turns.py).
    open_attempts: Mapping[str, bool] = field(default_factory=dict)
    waits_for_turn: bool = False
