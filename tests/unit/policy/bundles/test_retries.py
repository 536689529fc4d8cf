"""What makes a bundle that failed begin anew."""

from __future__ import annotations

from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.retries import MAX_REMEMBERED
from pretune.policy.decide import decide
from pretune.policy.model import Plan

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.observed import observed
from tests.unit.policy.test_decide import ids, status_of

[BUNDLE] = ids(cache())
# As a release without lastFailure.settings has left it.
FAILURE = {"reason": "EngineFailed", "attempt": 3, "at": format_timestamp(NOW - 86400), "message": "m"}  # fmt: skip


def decided(failure: Object, retry: str = "", **spec: Any) -> Plan:
    record = bundle_json(BUNDLE, names.FAILED, reason="EngineFailed", attempts=3)
    the_cache = cache(status_of({**record, "lastFailure": failure}), **spec)
    the_cache["metadata"]["annotations"] = {names.RETRY: retry} if retry else {}
    return decide(observed(the_cache), NOW)


def failure_of(plan: Plan) -> Object | None:
    assert plan.status is not None
    [bundle] = plan.status["bundles"]
    return bundle.get("lastFailure")


def begins_anew(failure: Object, **more: Any) -> bool:
    return failure_of(decided(failure, **more)) is None


def test_a_failure_of_an_older_release_is_kept_until_the_settings_change() -> None:
    kept = failure_of(decided(FAILURE))
    assert kept is not None and kept == {**FAILURE, "settings": kept["settings"]}
    assert not begins_anew(kept)
    assert begins_anew(kept, tuning={"deadlineSeconds": 3000})
    assert begins_anew(kept, retry="after the driver update")


def test_the_annotation_ends_a_failure_of_an_older_release_too() -> None:
    assert begins_anew(FAILURE, retry="after the upgrade")


def test_settings_of_the_same_meaning_are_the_same() -> None:
    """A release's CRD may set defaults in objects that were stored without them."""
    kept = failure_of(decided(FAILURE, tuning={"allow": ["SharedGPU", "SingleNode"]}))
    assert kept is not None
    tuning = {"allow": ["SingleNode", "SharedGPU"], "deadlineSeconds": 5400, "nodeWaitSeconds": 60}
    assert not begins_anew(kept, tuning=tuning)
    assert begins_anew(kept, tuning={"allow": ["SharedGPU"]})


def test_the_newest_failures_are_remembered_and_no_more() -> None:
    records = [
        bundle_json(
            f"{number:012x}-default",
            names.FAILED,
            reason="EngineFailed",
            attempts=3,
            lastFailure={**FAILURE, "at": format_timestamp(NOW - 86400 + number)},
        )
        for number in range(MAX_REMEMBERED + 6)
    ]
    plan = decide(observed(cache(status_of(*reversed(records)))), NOW)
    assert plan.status is not None
    left = [each["id"] for each in plan.status["bundles"] if each["id"] != BUNDLE]
    assert sorted(left) == [each["id"] for each in records[6:]]
