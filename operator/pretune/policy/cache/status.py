"""The status of a cache: conditions as kstatus understands them, bundles, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, PROVING, REFUSED, SEALED, TUNING_STATE
from pretune.api.reasons import Reason
from pretune.api.status import (
    BundleStatus,
    CacheStatus,
    Condition,
    ConsumerCounts,
    StatusWarning,
    StorageStatus,
    Summary,
)
from pretune.policy.bundles.desired import DesiredBundles
from pretune.policy.cache.storage import Storage
from pretune.policy.plan_builder import PlanBuilder

MAX_MESSAGE = 4096  # characters of a condition's message

Verdict = tuple[str, str, Reason, str]  # type, status, reason and message of a condition


def build_status(
    plan: PlanBuilder,
    desired: DesiredBundles,
    storage: Storage,
    consumers: ConsumerCounts,
    warnings: Sequence[StatusWarning],
) -> CacheStatus:
    """Return the whole status, apart from what start logs add to it.

    Ready and the summary are about the newest source's bundles, one for each target.
    """
    current = [plan.bundles[each.id] for each in desired.bundles if each.is_current]
    sealed = [bundle for bundle in current if bundle.state == SEALED]
    ids = [each.id for each in desired.bundles]
    uid, _, folder = plan.known_place.partition("/")
    return CacheStatus(
        observed_generation=plan.cache["metadata"]["generation"],
        conditions=_to_conditions(plan, _verdicts(plan, current, desired, storage)),
        bundles=tuple(sorted(plan.bundles.values(), key=lambda bundle: _order(bundle, ids))),
        summary=Summary(
            bundles=f"{len(sealed)}/{len(plan.spec.targets)}",
            entries=sum(bundle.entries or 0 for bundle in sealed),
        ),
        consumers=consumers,
        warnings=tuple(warnings),
        storage=StorageStatus(uid, folder or None) if uid else None,
        release_refused=plan.release_refused,
    )


def build_parked_status(plan: PlanBuilder, message: str) -> CacheStatus:
    """Return the status of a cache that is too large to be read: as it was, but for Ready."""
    verdicts = _same_verdicts("False", "False", "True", reasons.TOO_LARGE, message)
    conditions = _to_conditions(plan, list(verdicts))
    kinds = {condition.type for condition in conditions}
    others = (other for other in plan.status.conditions if other.type not in kinds)
    return replace(
        plan.status,
        observed_generation=plan.cache["metadata"].get("generation"),
        conditions=(*conditions, *others),
    )


def _order(bundle: BundleStatus, ids: list[str]) -> tuple[int, str]:
    """Return the sort key: desired ones first, in the targets' order."""
    return (ids.index(bundle.id) if bundle.id in ids else len(ids), bundle.id)


def _verdicts(
    plan: PlanBuilder,
    current: list[BundleStatus],
    desired: DesiredBundles,
    storage: Storage,
) -> list[Verdict]:
    """Return Ready, Reconciling, Stalled and StorageReady."""
    ready, reconciling, stalled = _bundle_verdicts(plan, current, desired, storage)
    if desired.churn:
        stalled = ("Stalled", "True", reasons.TOO_MANY_FINGERPRINTS, desired.churn)
    stored = ("StorageReady", str(storage.ready), storage.reason, storage.message)
    return [ready, reconciling, stalled, stored]


def _bundle_verdicts(
    plan: PlanBuilder,
    current: list[BundleStatus],
    desired: DesiredBundles,
    storage: Storage,
) -> tuple[Verdict, Verdict, Verdict]:
    """Return Ready, Reconciling and Stalled."""
    if desired.refused is not None:
        refused = desired.refused
        return _same_verdicts("False", "False", "True", refused.reason, refused.message)
    if not current:
        message = (
            "spec.source is not set, and no living pod has the label pretune.dev/cache with this"
            " name"
        )
        return _same_verdicts("Unknown", "False", "False", reasons.NO_SOURCE, message)
    if storage.stalled:
        return _same_verdicts("False", "False", "True", storage.reason, storage.message)
    blocked = [bundle for bundle in current if bundle.state in (FAILED, REFUSED)]
    pending = [bundle for bundle in current if bundle.state in (PENDING, TUNING_STATE, PROVING)]
    if not blocked and not pending:
        if any(bundle.id in plan.awaiting_claim for bundle in current):
            message = "the claim is being read for the bundles that an earlier claim held"
            return _same_verdicts("False", "True", "False", reasons.INSPECTING, message)
        if not storage.ready:
            return _same_verdicts(
                "False", "True", "False", reasons.WAITING_FOR_CLAIM, storage.message
            )
        is_empty = all(bundle.reason == reasons.NOTHING_TO_TUNE for bundle in current)
        reason = reasons.NOTHING_TO_TUNE if is_empty else reasons.SEALED
        return _same_verdicts("True", "False", "False", reason, _join_messages(current))
    first = (blocked or sorted(pending, key=lambda bundle: bundle.state == PENDING))[0]
    message = _join_messages([*blocked, *pending])
    is_moving = any(bundle.reason != reasons.SUSPENDED for bundle in pending)
    return (
        ("Ready", "False", first.reason, message),
        (
            "Reconciling",
            str(is_moving),
            pending[0].reason if pending else first.reason,
            _join_messages(pending) or message,
        ),
        (
            "Stalled",
            str(bool(blocked)),
            first.reason,
            _join_messages(blocked) if blocked else message,
        ),
    )


def _same_verdicts(
    ready: str, reconciling: str, stalled: str, reason: Reason, message: str
) -> tuple[Verdict, Verdict, Verdict]:
    """Return the three conditions with one reason and message."""
    return (
        ("Ready", ready, reason, message),
        ("Reconciling", reconciling, reason, message),
        ("Stalled", stalled, reason, message),
    )


def _join_messages(bundles: list[BundleStatus]) -> str:
    """Return the message of one bundle; of several, each after its target's name."""
    if len(bundles) == 1:
        return bundles[0].message
    return "; ".join(f"{bundle.target}: {bundle.message or bundle.reason}" for bundle in bundles)


def _to_conditions(plan: PlanBuilder, verdicts: list[Verdict]) -> tuple[Condition, ...]:
    """Return the conditions; lastTransitionTime moves only when the status flips."""
    conditions = []
    for kind, status, reason, message in verdicts:
        old = plan.status.condition(kind)
        is_same = old is not None and old.status == status
        since = old.last_transition_time if old is not None and is_same else plan.timestamp
        generation = plan.cache["metadata"].get("generation")
        conditions.append(Condition(kind, status, reason, message[:MAX_MESSAGE], since, generation))
    return tuple(conditions)
