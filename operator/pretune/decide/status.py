"""The status that a person reads: conditions as kstatus understands them, bundles, a summary."""

from __future__ import annotations

from typing import Any

from pretune.api import FAILED, PENDING, REFUSED, SEALED, TUNING_STATE, Object, Refused
from pretune.decide.draft import Draft, Wanted
from pretune.decide.storage import Storage
from pretune.model import stamp

Condition = tuple[str, str, str, str]  # type, status, reason, message


def status(draft: Draft, bundles: tuple[Wanted, ...], source: Refused | None, storage: Storage) -> Object:
    """The whole status wanted."""
    records = [draft.bundles[want.id] for want in bundles]
    sealed = [one for one in records if one["state"] == SEALED]
    wanted: dict[str, Any] = {
        "observedGeneration": draft.cache["metadata"]["generation"],
        "conditions": _conditions(draft, _judge(draft, records, source, storage)),
        "bundles": sorted(draft.bundles.values(), key=lambda one: _order(one, [want.id for want in bundles])),
        "summary": {
            "bundles": f"{len(sealed)}/{len(draft.spec.targets)}",
            "entries": sum(one.get("entries", 0) for one in sealed),
        },
    }
    if draft.known_place:
        uid, _, folder = draft.known_place.partition("/")
        wanted["storage"] = {"claimUID": uid, **({"subPath": folder} if folder else {})}
    return wanted


def _order(record: Object, ids: list[str]) -> tuple[int, str]:
    """Wanted ones first, in the targets' order."""
    return (ids.index(record["id"]) if record["id"] in ids else len(ids), str(record["id"]))


def _judge(draft: Draft, records: list[Object], source: Refused | None, storage: Storage) -> list[Condition]:
    stored: Condition = ("StorageReady", str(storage.ready), storage.reason, storage.message)
    if source is not None:
        stalled = (source.reason, source.message)
        return [("Ready", "False", *stalled), ("Reconciling", "False", *stalled), ("Stalled", "True", *stalled), stored]
    if not records:
        said = ("NoSource", "spec.source is not set")
        return [("Ready", "Unknown", *said), ("Reconciling", "False", *said), ("Stalled", "False", *said), stored]
    blocked = [one for one in records if one["state"] in (FAILED, REFUSED)]
    open_ = [one for one in records if one["state"] in (PENDING, TUNING_STATE)]
    if storage.stalled:
        said = (storage.reason, storage.message)
        return [("Ready", "False", *said), ("Reconciling", "False", *said), ("Stalled", "True", *said), stored]
    if any(one["id"] in draft.asking for one in records) and not blocked and not open_:
        said = ("Inspecting", "the claim is read for the bundles that another one held")
        return [("Ready", "False", *said), ("Reconciling", "True", *said), ("Stalled", "False", *said), stored]
    if not blocked and not open_:
        if not storage.ready:
            said = ("WaitingForClaim", storage.message)
            return [("Ready", "False", *said), ("Reconciling", "True", *said), ("Stalled", "False", *said), stored]
        reason = "NothingToTune" if all(one["reason"] == "NothingToTune" for one in records) else "Sealed"
        said = (reason, _words(records))
        return [("Ready", "True", *said), ("Reconciling", "False", *said), ("Stalled", "False", *said), stored]
    first = (blocked or sorted(open_, key=lambda one: one["state"] != TUNING_STATE))[0]
    said = (first["reason"], _words([*blocked, *open_]))
    moving = any(one["reason"] != "Suspended" for one in open_)
    reconciling = (next((one["reason"] for one in open_), first["reason"]), _words(open_) or said[1])
    stuck = (first["reason"], _words(blocked)) if blocked else ("Reconciling", "it goes on by itself")
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


def _conditions(draft: Draft, wanted: list[Condition]) -> list[Object]:
    """lastTransitionTime moves only when the status flips."""
    before = {one["type"]: one for one in (draft.cache.get("status") or {}).get("conditions") or ()}
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
                "lastTransitionTime": old["lastTransitionTime"] if same and old else stamp(draft.now),
                "observedGeneration": draft.cache["metadata"]["generation"],
            }
        )
    return conditions
