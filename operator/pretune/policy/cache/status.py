"""The status that a person reads: conditions as kstatus understands them, bundles, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, PROVING, REFUSED, SEALED, TUNING_STATE
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.desired import DesiredBundles
from pretune.policy.cache.storage import Storage
from pretune.policy.plan_builder import PlanBuilder

Condition = tuple[str, str, str, str]  # type, status, reason, message


def status(
    plan: PlanBuilder,
    wants: DesiredBundles,
    storage: Storage,
    consumers: Mapping[str, object],
    warnings: Sequence[Object],
) -> Object:
    """The whole status wanted. Ready and the summary speak of the newest source's bundles, one a target."""
    records = [plan.bundles[want.id] for want in wants.bundles if want.current]
    sealed = [one for one in records if one["state"] == SEALED]
    ids = [want.id for want in wants.bundles]
    wanted: dict[str, Any] = {
        "observedGeneration": plan.cache["metadata"]["generation"],
        "conditions": _conditions(plan, _judge(plan, records, wants, storage)),
        "bundles": sorted(plan.bundles.values(), key=lambda one: _order(one, ids)),
        "summary": {
            "bundles": f"{len(sealed)}/{len(plan.spec.targets)}",
            "entries": sum(one.get("entries", 0) for one in sealed),
        },
        "consumers": dict(consumers),
        "warnings": list(warnings),
    }
    if plan.known_place:
        uid, _, folder = plan.known_place.partition("/")
        wanted["storage"] = {"claimUID": uid, **({"subPath": folder} if folder else {})}
    return wanted


def _order(record: Object, ids: list[str]) -> tuple[int, str]:
    """DesiredBundle ones first, in the targets' order."""
    return (ids.index(record["id"]) if record["id"] in ids else len(ids), str(record["id"]))


def _judge(
    plan: PlanBuilder, records: list[Object], wants: DesiredBundles, storage: Storage
) -> list[Condition]:
    judged = _of_bundles(plan, records, wants, storage)
    if wants.churn:
        judged[2] = ("Stalled", "True", reasons.TOO_MANY_FINGERPRINTS, wants.churn)
    return judged


def _of_bundles(
    plan: PlanBuilder, records: list[Object], wants: DesiredBundles, storage: Storage
) -> list[Condition]:
    """Ready, Reconciling, Stalled, StorageReady."""
    stored: Condition = ("StorageReady", str(storage.ready), storage.reason, storage.message)
    if wants.refused is not None:
        stalled = (wants.refused.reason, wants.refused.message)
        return [
            ("Ready", "False", *stalled),
            ("Reconciling", "False", *stalled),
            ("Stalled", "True", *stalled),
            stored,
        ]
    if not records:
        said = (
            reasons.NO_SOURCE,
            "spec.source is not set, and no living pod has the label pretune.dev/cache with this name",
        )
        return [
            ("Ready", "Unknown", *said),
            ("Reconciling", "False", *said),
            ("Stalled", "False", *said),
            stored,
        ]
    blocked = [one for one in records if one["state"] in (FAILED, REFUSED)]
    open_ = [one for one in records if one["state"] in (PENDING, TUNING_STATE, PROVING)]
    if storage.stalled:
        said = (storage.reason, storage.message)
        return [
            ("Ready", "False", *said),
            ("Reconciling", "False", *said),
            ("Stalled", "True", *said),
            stored,
        ]
    if any(one["id"] in plan.asking for one in records) and not blocked and not open_:
        said = (reasons.INSPECTING, "the claim is read for the bundles that another one held")
        return [
            ("Ready", "False", *said),
            ("Reconciling", "True", *said),
            ("Stalled", "False", *said),
            stored,
        ]
    if not blocked and not open_:
        if not storage.ready:
            said = (reasons.WAITING_FOR_CLAIM, storage.message)
            return [
                ("Ready", "False", *said),
                ("Reconciling", "True", *said),
                ("Stalled", "False", *said),
                stored,
            ]
        reason = (
            reasons.NOTHING_TO_TUNE
            if all(one["reason"] == reasons.NOTHING_TO_TUNE for one in records)
            else reasons.SEALED
        )
        said = (reason, _words(records))
        return [
            ("Ready", "True", *said),
            ("Reconciling", "False", *said),
            ("Stalled", "False", *said),
            stored,
        ]
    first = (blocked or sorted(open_, key=lambda one: one["state"] == PENDING))[0]
    said = (first["reason"], _words([*blocked, *open_]))
    moving = any(one["reason"] != reasons.SUSPENDED for one in open_)
    reconciling = (
        next((one["reason"] for one in open_), first["reason"]),
        _words(open_) or said[1],
    )
    stuck = (
        (first["reason"], _words(blocked)) if blocked else ("Reconciling", "it goes on by itself")
    )
    if not blocked:
        stuck = said
    return [
        ("Ready", "False", *said),
        ("Reconciling", str(moving), *reconciling),
        ("Stalled", str(bool(blocked)), *stuck),
        stored,
    ]


def _words(records: list[Object]) -> str:
    """One bundle: its own message. Several: each behind its target's name."""
    if len(records) == 1:
        return str(records[0]["message"])
    return "; ".join(f"{one['target']}: {one['message'] or one['reason']}" for one in records)


def _conditions(plan: PlanBuilder, wanted: list[Condition]) -> list[Object]:
    """lastTransitionTime moves only when the status flips."""
    before = {one["type"]: one for one in (plan.cache.get("status") or {}).get("conditions") or ()}
    conditions = []
    for kind, state, reason, message in wanted:
        old = before.get(kind)
        same = old is not None and old["status"] == state
        conditions.append(
            {
                "type": kind,
                "status": state,
                "reason": reason,
                "message": message[:4096],
                "lastTransitionTime": old["lastTransitionTime"]
                if same and old
                else format_timestamp(plan.now),
                "observedGeneration": plan.cache["metadata"]["generation"],
            }
        )
    return conditions
