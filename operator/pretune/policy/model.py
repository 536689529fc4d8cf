"""What one reconcile sees, and what it wants done. Pure data: the clock is a float of Unix seconds (UTC)."""

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

# --- what is seen


@dataclass(frozen=True)
class Observed:
    """One key, read live. Objects are plain dicts, cut down to the fields in use (controller/observe.py)."""

    key: Key
    settings: Settings
    agent_name: str  # the current agent ConfigMap's name
    cache: Object | None
    source: Object | Refused | None = (
        None  # a pod template {metadata, spec} as its author wrote it; None: the cache names none
    )
    source_workload: Object | None = (
        None  # that spec.source.workloadRef names: kind, name, labels, spec without its template
    )
    source_claims: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # that the templates mount which are not tuned yet, the consumers' included: access modes by name
    claim: Object | None = None  # the PersistentVolumeClaim, ours or the user's
    storage_class: Object | None = None  # of the claim, when it is Pending
    claim_events: tuple[Object, ...] = ()  # when it is Pending
    jobs: tuple[Object, ...] = ()  # labelled with this cache
    pods: tuple[Object, ...] = ()  # of role tuning, inspect, prune
    consumers: tuple[
        Object, ...
    ] = ()  # pods with the cache's label and no role: of any phase, cut down (controller/observe.py)
    origins: Mapping[str, Origin] = field(
        default_factory=dict
    )  # by sources.origin_key() of a consumer
    examples: Mapping[str, Object] = field(default_factory=dict)
    """By the same key: one whole consumer pod, as admission left it; only where a bundle of its template is not sealed."""
    pod_events: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    """By pod uid: of consumers that were given a bundle and do not start (policy/pods/start_failures.suspect), five at most."""
    job_events: Mapping[str, tuple[Object, ...]] = field(
        default_factory=dict
    )  # by Job uid: of Jobs without a pod
    agents: tuple[Object, ...] = ()  # agent ConfigMaps of the namespace
    agents_named: frozenset[str] = (
        frozenset()
    )  # agent ConfigMaps that some pod of the namespace names
    namespace_has_caches: bool = True
    held: tuple[
        Object, ...
    ] = ()  # consumers behind our gate, cut down; read only when the cache is gone
    claim_users: frozenset[str] = (
        frozenset()
    )  # pods of any phase that name the claim; read only when the cache is gone
    outcomes: Mapping[str, Outcome] = field(
        default_factory=dict
    )  # of this run's actions, by Action.name
    starts: Mapping[str, Told] | None = (
        None  # by EngineStart.key: what logs have told so far; None: none are read
    )

    @property
    def spec(self) -> Spec:
        assert self.cache is not None
        return Spec.from_cache(self.cache)


@dataclass(frozen=True)
class Origin:
    """Where a consumer's pod template comes from, as its author wrote it (docs/dev/architecture.md)."""

    kind: str  # ReplicaSet | StatefulSet | DaemonSet | Job: the controlling owner; Pod: the pod is its own template
    name: str
    template: Object | Refused  # {metadata, spec}; Refused: it could not be had, and why
    order: tuple[int, str] = (
        0,
        "",
    )  # the newer revision is the larger: (revision number, creation time)
    workload: Object | None = (
        None  # the Deployment above a ReplicaSet, else the owner: kind, metadata, spec without its template;
        # not read where spec.source.workloadRef names one of apps, which is Observed.source_workload
    )


@dataclass(frozen=True)
class Outcome:
    """What the API server said to an action that it refused. An accepted one has none, but for a made object."""

    code: int  # HTTP status
    message: str
    object: Object | None = None  # what is there (after 201, and after 409)


@dataclass(frozen=True)
class EngineStart:
    """One start of a consumer's engine, whose log tells whether it was warm."""

    pod: str  # its name
    uid: str
    container: str
    since: str  # when the container started, as its status says it (RFC 3339)
    ready: float  # when the pod became ready (Unix seconds)
    probed: bool = True  # it was not ready before the engine was
    engine: Object | None = None  # the container as its author wrote it

    @property
    def key(self) -> str:
        return f"{self.uid}/{self.since}"

    @property
    def began(self) -> float:
        """`since` in Unix seconds."""
        return parse_timestamp(self.since)


@dataclass(frozen=True)
class Told:
    """What became of reading one start's log."""

    said: LogSummary
    differs: tuple[
        str, ...
    ] = ()  # variables and flags in which the pod differs from its template, of one that tuned


# --- what is wanted


@dataclass(frozen=True)
class Action:
    """One call to the API server; every one may be made twice."""

    name: str  # "create Job demo-3f9c…-1": unique in a plan, and what is logged


@dataclass(frozen=True)
class Create(Action):
    """POST; 409 is no error: what is there is taken as the outcome, whoever it belongs to."""

    object: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Apply(Action):
    """Server-side apply of an object that is wholly ours (the claim, the agent ConfigMap)."""

    object: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Patch(Action):
    """Merge patch (or strategic merge patch) of one object, only as long as it has this uid."""

    object: Object = field(default_factory=dict)  # apiVersion, kind, metadata.{namespace,name,uid}
    patch: Mapping[str, Any] = field(default_factory=dict)
    strategic: bool = False  # removes one element of a list by its name, where a merge patch would replace the list


@dataclass(frozen=True)
class Delete(Action):
    """Delete with background propagation, only as long as it has this uid (and version, where one is given); 404 is no error."""

    object: Object = field(
        default_factory=dict
    )  # apiVersion, kind, metadata.{namespace,name,uid[,resourceVersion]}


@dataclass(frozen=True)
class Released:
    """A hold that this plan ends, for the metrics."""

    cause: str  # of policy/hold/release.CHECKS
    waited: float  # seconds


@dataclass(frozen=True)
class Plan:
    """actions in their order, then one status write, then `after` (what must not happen before the status remembers; several at a
    time, in any order), then events."""

    actions: tuple[Action, ...] = ()
    status: Mapping[str, Any] | None = (
        None  # the whole status wanted; None: nothing to write (no cache)
    )
    after: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    look_again: float | None = None  # seconds from now
    released: tuple[Released, ...] = ()
    starts: tuple[
        EngineStart, ...
    ] = ()  # whose logs are worth reading; all that is known of others may be forgotten
