"""The status of an AutotuneCache, typed. Its JSON is read and written here, and nowhere else.

The CRD declares the same fields (tests/chart/test_twins.py). Anything may stand in a status that a
person or another release wrote: a part that is malformed is left out, and `CacheStatus.skipped`
names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, PROVING, SEALED, STATES, TUNING_STATE
from pretune.api.reasons import Reason
from pretune.api.schema import (
    DateTime,
    Field,
    Flag,
    Integer,
    ListOf,
    Malformed,
    Nested,
    OneOf,
    Part,
    Text,
    fields_of,
)
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.protocol import EMPTY, LAYOUTS

MAX_BUNDLES = 512
MAX_WORKLOAD = 320  # characters of `<kind>/<name>`
MAX_SERVING_WORKLOADS = 16  # of one bundle; the pods of further ones are not held

# Of a newer release's status a reason may be unknown here: it is kept as it is.
Word = Annotated[Reason, Text(64)]
Message = Annotated[str, Text(4096)]
Number = Annotated[int, Integer()]
LongNumber = Annotated[int, Integer(64)]
Yes = Annotated[bool, Flag()]
Time = Annotated[float, DateTime()]  # Unix seconds


# --- a bundle


@dataclass(frozen=True)
class Failure(Part):
    """How the last attempt, or proof, that failed ended."""

    reason: Word
    attempt: Number = 0  # its number, from 1
    at: Time = 0.0
    message: Message = ""
    settings: Annotated[str | None, Text(64)] = None  # of spec.tuning and so on, as a hash


@dataclass(frozen=True)
class Undeliverable(Part):
    """Why a pod could not start with the bundle."""

    reason: Word
    message: Message = ""
    at: Time = 0.0
    claim_uid: Annotated[str | None, Text(64)] = None
    node: Annotated[str | None, Text(253)] = None  # the only one on which pods could not start
    image: Annotated[str | None, Text(1024)] = (
        None  # in which seed cannot run, as templates name it
    )


@dataclass(frozen=True)
class ImportNote(Part):
    """What became of the folder that the annotation pretune.dev/import names."""

    from_: Annotated[str, Text(1024)]
    reason: Word
    message: Message = ""


@dataclass(frozen=True)
class Environment(Part):
    """Versions of what ran; "" is unknown."""

    vllm: Annotated[str, Text(128)] = ""
    flashinfer: Annotated[str, Text(128)] = ""
    cuda: Annotated[str, Text(128)] = ""
    gpu: Annotated[str, Text(256)] = ""


@dataclass(frozen=True)
class Writer(Part):
    """As whom seal wrote the files."""

    uid: LongNumber
    gid: LongNumber
    groups: Annotated[tuple[int, ...], ListOf(128, Integer(64))] = ()


@dataclass(frozen=True)
class GpuSeconds(Part):
    """What a bundle has cost, by how that ended: GPUs × seconds of the pods that tune and prove."""

    sealed: LongNumber | None = None  # attempts that sealed the bundle
    failed: LongNumber | None = None  # attempts that failed
    lost: LongNumber | None = None  # pods that were evicted, preempted, suspended or deleted
    superseded: LongNumber | None = None  # attempts and proofs that nothing wanted any more
    proof: LongNumber | None = None  # proofs, whatever they found

    def plus(self, result: str, seconds: float) -> GpuSeconds:
        """Return it with so many GPU-seconds more of one of its fields."""
        total = int(getattr(self, result) or 0) + round(seconds)
        return replace(self, **{result: total or None})


@dataclass(frozen=True)
class BundleStatus(Part):
    """One bundle of the cache: wanted, in the making, or kept."""

    id: Annotated[str, Text(63)]
    fingerprint: Annotated[str, Text(64)] = ""
    target: Annotated[str, Text(20)] = ""
    state: Annotated[str, OneOf(*STATES)] = PENDING
    reason: Word = reasons.WAITING_FOR_CLAIM
    message: Message = ""
    layout: Annotated[str | None, OneOf(*LAYOUTS, newer=True)] = None
    entries: Number | None = None
    digest: Annotated[str | None, Text(128)] = None
    engine_image: Annotated[str | None, Text(1024)] = None
    environment: Environment | None = None
    attempts: Number = 0  # begun, the running one included
    tuned_seconds: Number | None = None
    gpus: Number | None = None
    proven: Yes = False
    proofs: Number | None = None  # begun, the running one included
    cold_seconds: Number | None = None
    warm_seconds: Number | None = None
    new_entries: Number | None = None
    sealed_at: Time | None = None
    retired_at: Time | None = None
    gpu_seconds: GpuSeconds | None = None
    disruptions: Number | None = None
    pod: Annotated[str | None, Text(64)] = None
    running: Yes = False
    serving: Yes = False
    # `<kind>/<name>` of the workloads of which a pod is ready, sorted.
    serving_workloads: Annotated[
        tuple[str, ...] | None, ListOf(MAX_SERVING_WORKLOADS, Text(MAX_WORKLOAD))
    ] = None
    undeliverable: Undeliverable | None = None
    import_: ImportNote | None = None
    unwanted_since: Time | None = None
    writer: Writer | None = None
    last_failure: Failure | None = None

    @property
    def failed_number(self) -> int:
        """The number of the last attempt, or proof, that failed; 0 where none has."""
        return self.last_failure.attempt if self.last_failure is not None else 0

    @property
    def has_open_attempt(self) -> bool:
        """Whether an attempt was begun, and how it ended is not recorded yet."""
        return self.state in (PENDING, TUNING_STATE) and self.attempts > self.failed_number

    @property
    def has_open_proof(self) -> bool:
        """Whether a proof was begun, and how it ended is not recorded yet."""
        return self.state == PROVING and self._has_begun_proof

    @property
    def has_interrupted_proof(self) -> bool:
        """Whether a proof was begun that nothing asks for any more: no end of it is recorded."""
        return self.state == SEALED and self._has_begun_proof

    @property
    def _has_begun_proof(self) -> bool:
        return (self.proofs or 0) > self.failed_number and not self.proven

    @property
    def is_only_marked(self) -> bool:
        """Whether it is here for its mark alone: nothing was begun for it."""
        return self.state == PENDING and self.undeliverable is not None and not self.attempts

    @property
    def is_on_claim(self) -> bool:
        """Whether it is on the claim, whole, and not on its way out."""
        return self.state in (SEALED, PROVING)

    @property
    def is_withheld(self) -> bool:
        """Whether it is on the claim and given to no pod: not proven yet, or its proof failed."""
        return self.state == PROVING or (self.state == FAILED and self.digest is not None)

    @property
    def is_empty(self) -> bool:
        """Whether it is sealed without any tactics: there is nothing to give or to prove."""
        return self.state == SEALED and self.layout == EMPTY

    def may_be_given(self, spec: Spec) -> bool:
        """Whether a pod may start with it: sealed, and proven where spec.verify asks for it."""
        return self.state == SEALED and (
            self.proven or self.layout == EMPTY or spec.verify != "BeforeRelease"
        )


# --- the cache


@dataclass(frozen=True)
class Condition(Part):
    type: Annotated[str, Text(316)]
    status: Annotated[str, OneOf("True", "False", "Unknown")]
    reason: Word
    message: Annotated[str, Text(32768)] = ""
    last_transition_time: Time = 0.0
    observed_generation: LongNumber | None = None


@dataclass(frozen=True)
class Summary(Part):
    """The columns of kubectl get."""

    bundles: Annotated[str, Text(16)]
    entries: Number = 0


@dataclass(frozen=True)
class ConsumerCounts(Part):
    """The serving pods of the cache; those of start logs only where these are read."""

    seeded: Number = 0
    cold: Number = 0
    held: Number = 0
    stale: Number = 0
    ready: Number = 0
    warm: Number | None = None
    partial: Number | None = None
    tuned: Number | None = None
    observed_at: Time | None = None


@dataclass(frozen=True)
class StatusWarning(Part):
    """Advice to a person, though everything works."""

    reason: Annotated[str, Text(64)]
    message: Message


@dataclass(frozen=True)
class ReleaseRefused(Part):
    """That the API server does not let the controller remove the gate of a held pod."""

    at: Time = 0.0  # when it was last seen
    message: Message = ""


@dataclass(frozen=True)
class StorageStatus(Part):
    """The claim that was last read for bundles, and the folder in it."""

    claim_uid: Annotated[str, Text(64)] = ""
    sub_path: Annotated[str | None, Text(512)] = None


@dataclass(frozen=True)
class CacheStatus(Part):
    observed_generation: LongNumber | None = None
    conditions: Annotated[tuple[Condition, ...], ListOf(16, Nested(Condition))] = ()
    bundles: Annotated[tuple[BundleStatus, ...], ListOf(MAX_BUNDLES, Nested(BundleStatus))] = ()
    summary: Summary | None = None
    consumers: ConsumerCounts | None = None
    gpu_seconds_saved: LongNumber | None = None
    saved_until: Time | None = None
    warnings: Annotated[tuple[StatusWarning, ...], ListOf(32, Nested(StatusWarning))] = ()
    storage: StorageStatus | None = None
    release_refused: ReleaseRefused | None = None
    skipped: tuple[str, ...] = ()  # what was malformed, of one that was read; not in JSON

    @classmethod
    def from_cache(cls, cache: Object | None) -> CacheStatus:
        """Return the status of an AutotuneCache as far as it can be read; never raises."""
        data = (cache or {}).get("status") or {}
        values: dict[str, Any] = {}
        skipped: list[str] = []
        for each in fields_of(cls).values():
            try:
                value = data.get(each.json_name)
                if isinstance(each.kind, ListOf) and isinstance(value, list):
                    values[each.name] = tuple(_read_items(each, value, skipped))
                elif value is not None:
                    values[each.name] = each.kind.read(value)
            except Malformed as error:
                skipped.append(f"status.{each.json_name}: {error}")
        return cls(**values, skipped=tuple(skipped))

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of this type."""
        return next((each for each in self.conditions if each.type == kind), None)


def _read_items(each: Field, items: list[Any], skipped: list[str]) -> Iterator[Any]:
    """Yield the items of a list of the status that can be read."""
    assert isinstance(each.kind, ListOf)
    if len(items) > each.kind.max_items:
        skipped.append(f"status.{each.json_name}: items after the first {each.kind.max_items}")
    for index, item in enumerate(items[: each.kind.max_items]):
        try:
            yield each.kind.item.read(item)
        except Malformed as error:
            skipped.append(f"status.{each.json_name}[{index}]: {error}")
