"""Caches whose consumers' templates are the source, and what a plan does for them."""

from __future__ import annotations

from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.decide import decide
from pretune.policy.model import Create, Patch, Plan

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.observed import bundle_of, fingerprint_of, observed, origin
from tests.builders.pods import Consumer

GATE = {"spec": {"schedulingGates": [{"$patch": "delete", "name": names.HOLD}]}}
KNOWN = {"storage": {"claimUID": "claim-uid"}}


def cache_without_source(*records: Object, status: Object | None = None, **spec: Any) -> Object:
    """Return a cache whose consumers' templates are the source."""
    return cache({**KNOWN, "bundles": list(records), **(status or {})}, **{"source": None, **spec})


def decide_on(the_cache: Object, *pods: Consumer, now: float = NOW, **more: Any) -> Plan:
    origins = {**origin("old", 1), **origin("a", 2)}
    consumers = tuple(pods)
    return decide(observed(the_cache, consumers=consumers, **{"origins": origins, **more}), now)


def sealed(owner: str, **more: Any) -> Object:
    return bundle_json(
        bundle_of(owner),
        fingerprint=fingerprint_of(owner),
        sealedAt=format_timestamp(NOW - 3600),
        **more,
    )


def pending(
    owner: str, reason: str = "Tuning", state: str = names.TUNING_STATE, **more: Any
) -> Object:
    fields = {"fingerprint": fingerprint_of(owner), "reason": reason, "message": "m", **more}
    return {**bundle_json(bundle_of(owner), state), **fields}


def released(plan: Plan) -> list[str]:
    patches = [action for action in plan.after if isinstance(action, Patch) and action.strategic]
    assert all(patch.patch == GATE for patch in patches)
    return sorted(patch.object["metadata"]["name"] for patch in patches)


def condition(plan: Plan, kind: str) -> Object:
    assert plan.status is not None
    [found] = [each for each in plan.status["conditions"] if each["type"] == kind]
    return found


def queue(plan: Plan) -> list[tuple[str, str]]:
    assert plan.status is not None
    return [(bundle["id"], bundle["reason"]) for bundle in plan.status["bundles"]]


def jobs(plan: Plan) -> list[str]:
    created = [action.object for action in plan.actions if isinstance(action, Create)]
    return [obj["metadata"]["labels"][names.BUNDLE] for obj in created if obj["kind"] == "Job"]


NO_CONSUMERS = {"seeded": 0, "cold": 0, "held": 0, "stale": 0, "ready": 0}
OLD = Consumer("old").ready()
NEW = Consumer("a")
