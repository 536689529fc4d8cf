"""Holds as the plan has them: which pods are released, and what is reported of held pods."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.decide import decide
from pretune.policy.hold.release import RELEASE_RECHECK_SECONDS, UNREADY_SECONDS

from tests.builders.caches import bundle_json, claim
from tests.builders.constants import NOW
from tests.builders.consumers import (
    NO_CONSUMERS,
    OLD,
    cache_without_source,
    decide_on,
    pending,
    released,
    sealed,
)
from tests.builders.jobs import job
from tests.builders.observed import bundle_of, fingerprint_of, observed
from tests.builders.pods import Consumer

HELD = Consumer("a", age=100).held("kueue.x-k8s.io/admission")


def test_a_held_pod_waits_while_its_bundle_is_tuned_and_older_pods_serve() -> None:
    plan = decide_on(
        cache_without_source(pending("a"), hold={"timeoutSeconds": 400}),
        OLD,
        HELD,
        jobs=(job(bundle_of("a")),),
    )
    assert not released(plan)
    assert plan.requeue_after is not None and plan.requeue_after <= 300


REFUSED = {"state": names.REFUSED, "reason": "MultiPodEngine"}
CAUSES: dict[str, tuple[Object, Object, str, bool]] = {
    # record, spec, cause, whether onFailure: Keep keeps it
    "sealed": (sealed("a"), {}, "Sealed", False),
    "suspended": (pending("a"), {"suspend": True}, "SwitchedOff", False),
    "hold switched off": (pending("a"), {"hold": {"when": "Never"}}, "SwitchedOff", False),
    "delivery switched off": (pending("a"), {"delivery": {"mode": "None"}}, "SwitchedOff", False),
    "failed": (pending("a", "EngineFailed", names.FAILED, attempts=3), {}, "Failed", True),
    "refused by check": (pending("a", "ReleaseTooOld", names.REFUSED), {}, "Failed", True),
    "cannot start": (pending("a", "PodRefused", names.PENDING), {}, "CannotStart", True),
    "timed out": (pending("a"), {"hold": {"timeoutSeconds": 90}}, "TimedOut", True),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_held_pod_is_released(name: str) -> None:
    bundle, spec, cause, failure = CAUSES[name]
    attempt = (
        job(bundle_of("a")) if bundle["state"] in (names.PENDING, names.TUNING_STATE) else None
    )
    more: dict[str, Any] = {"jobs": (attempt,)} if attempt else {}
    if name == "cannot start":
        refused = {
            "reason": "FailedCreate",
            "message": 'pods "x" is forbidden: exceeded quota',
            "lastTimestamp": format_timestamp(NOW),
        }
        more["job_events"] = {job(bundle_of("a"))["metadata"]["uid"]: (refused,)}
    plan = decide_on(cache_without_source(bundle, **spec), OLD, HELD, **more)
    assert released(plan) == ["a-1"]
    assert [(each.cause, each.waited) for each in plan.released] == [(cause, 100.0)]
    assert (
        plan.requeue_after is not None and plan.requeue_after <= RELEASE_RECHECK_SECONDS
    )  # a patch that met a conflict is sent again
    [event] = [event for event in plan.events if event.reason == "Released"]
    assert "1 pod of bundle" in event.message and "waited 100 s" in event.message
    assert event.warning == (cause != "Sealed")
    hold = {**spec.get("hold", {}), "onFailure": "Keep"}
    kept = decide_on(cache_without_source(bundle, **{**spec, "hold": hold}), OLD, HELD, **more)
    assert released(kept) == ([] if failure else ["a-1"])


def test_a_hold_ends_when_nothing_else_serves() -> None:
    """Recreate, and older pods that died: waiting would be an outage."""
    working = {"jobs": (job(bundle_of("a")),)}
    assert released(decide_on(cache_without_source(pending("a")), HELD, **working)) == ["a-1"]
    terminating = OLD.meta(deletionTimestamp=format_timestamp(NOW))
    assert released(
        decide_on(cache_without_source(pending("a")), terminating, HELD, **working)
    ) == ["a-1"]
    just = Consumer("old").ready("False", NOW - 5)
    assert not released(decide_on(cache_without_source(pending("a")), just, HELD, **working))
    long = Consumer("old").ready("False", NOW - UNREADY_SECONDS)
    assert released(decide_on(cache_without_source(pending("a")), long, HELD, **working)) == ["a-1"]
    always = cache_without_source(pending("a"), hold={"when": "Always"})
    assert not released(decide_on(always, HELD, **working))


@pytest.mark.parametrize("on_failure", ["Start", "Keep"])
def test_a_held_pod_waits_for_the_bundle_that_it_was_given_only(on_failure: str) -> None:
    """Its seed names one bundle: a sealed one of another id is of no use to it."""
    hold = {"onFailure": on_failure}
    working = {"jobs": (job(bundle_of("a")),)}
    before = {**bundle_json("0123456789ab-default"), "fingerprint": fingerprint_of("a")}
    gone = decide_on(
        cache_without_source(pending("a"), hold=hold),
        OLD,
        HELD.given("0123456789ab-default"),
        **working,
    )
    assert released(gone) == ["a-1"] and [each.cause for each in gone.released] == ["Outdated"]
    there = decide_on(
        cache_without_source(pending("a"), before, hold=hold),
        OLD,
        HELD.given("0123456789ab-default"),
        **working,
    )
    assert [each.cause for each in there.released] == ["Sealed"]
    own = decide_on(
        cache_without_source(pending("a"), hold=hold), OLD, HELD.given(bundle_of("a")), **working
    )
    assert not released(own)


def test_a_source_that_cannot_be_read_any_more_releases_its_pods() -> None:
    broken = Refused(
        "SourceNotFound", "spec.source.workloadRef: Deployment inference/qwen3 is not there"
    )
    plan = decide_on(
        cache_without_source(pending("a")), OLD, HELD, source=broken, jobs=(job(bundle_of("a")),)
    )
    assert released(plan) == ["a-1"]


@pytest.mark.parametrize(
    "the_claim",
    [claim("Lost"), claim("Pending"), claim(deletionTimestamp=format_timestamp(NOW))],
    ids=["lost", "pending", "going"],
)
def test_storage_that_is_not_ready_any_more_releases_the_pods(the_claim: Object) -> None:
    plan = decide_on(
        cache_without_source(pending("a")), OLD, HELD, claim=the_claim, jobs=(job(bundle_of("a")),)
    )
    assert released(plan) == ["a-1"]


def test_a_cache_that_is_deleted_releases_all_its_pods() -> None:
    dying = cache_without_source(pending("a"), hold={"onFailure": "Keep"})
    dying["metadata"]["deletionTimestamp"] = format_timestamp(NOW)
    plan = decide_on(dying, OLD, HELD)
    assert released(plan) == ["a-1"] and plan.requeue_after == RELEASE_RECHECK_SECONDS
    gone = observed(None, held=(HELD,))
    assert released(decide(type(gone)(**{**vars(gone), "cache": None}), NOW)) == ["a-1"]


def test_an_event_reports_held_pods_when_there_are_more() -> None:
    working = {"jobs": (job(bundle_of("a")),)}
    [event] = [
        event
        for event in decide_on(cache_without_source(pending("a")), OLD, HELD, **working).events
        if event.reason == "Held"
    ]
    assert bundle_of("a") in event.message and "1 pod" in event.message and not event.warning
    reported = {"consumers": {**NO_CONSUMERS, "held": 1, "observedAt": format_timestamp(NOW)}}
    assert not [
        event
        for event in decide_on(
            cache_without_source(pending("a"), status=reported), OLD, HELD, **working
        ).events
        if event.reason == "Held"
    ]
