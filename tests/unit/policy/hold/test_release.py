"""The verdict about one held pod: the first rule that applies, else when one may; nothing changes."""

from __future__ import annotations

import pytest
from pretune.policy.bundles.desired import find_desired_bundles
from pretune.policy.cache.storage import ensure_claim
from pretune.policy.hold.release import (
    REFUSED_RECHECK_SECONDS,
    UNREADY_SECONDS,
    HeldPod,
    Verdict,
    judge,
)
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import list_consumers

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.observed import bundle_of, observed, origin
from tests.builders.pods import Consumer

NEW = bundle_of("new")
HELD = Consumer("new").given(NEW).held()  # 60 s old
UNREADY = Consumer("old").ready("False", NOW - 10)
REFUSED = "the attempt cannot start: exceeded quota"


def held_pod(reason: str, *others: Consumer, before: str = "", **hold: object) -> HeldPod:
    """The held pod of a bundle that is Pending for this reason, which had another one `before`."""
    bundles = [bundle_json(NEW, "Pending", reason=before or reason, message="exceeded quota")]
    the_cache = cache({"bundles": bundles}, source=None, hold=hold)
    origins = {**origin("new", 2), **origin("old", 1)}
    plan = PlanBuilder(
        observed(the_cache, source=None, origins=origins, consumers=(HELD, *others)), NOW
    )
    storage, pods = ensure_claim(plan), list_consumers(plan)
    if before:
        plan.set_state(NEW, "Pending", reason, "exceeded quota")  # type: ignore[arg-type]
    plan.requeue_time = None
    pod = next(pod for pod in pods if pod.is_held)
    rest = [pod for pod in pods if not pod.is_held]
    return HeldPod(pod, plan, find_desired_bundles(plan, pods), storage, rest)


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        (held_pod("Queued", when="Always", timeoutSeconds=100), Verdict(wait_until=NOW + 40)),
        (held_pod("Queued", when="Always", onFailure="Keep"), Verdict()),
        (
            held_pod("Queued", when="Always", timeoutSeconds=60),
            Verdict("TimedOut", "spec.hold.timeoutSeconds (60 s) is over"),
        ),
        (
            held_pod("Queued", UNREADY, timeoutSeconds=100),
            Verdict(wait_until=NOW - 10 + UNREADY_SECONDS),
        ),
        (held_pod("Queued"), Verdict("Unserved", "no older pod serves meanwhile")),
        (held_pod("PodRefused", when="Always"), Verdict("CannotStart", REFUSED)),
        (
            held_pod("PodRefused", before="Queued", when="Always"),
            Verdict(wait_until=NOW + REFUSED_RECHECK_SECONDS),
        ),
        (held_pod("PodRefused", when="Always", onFailure="Keep"), Verdict()),
        (held_pod("VolumeUnavailable", when="Always"), Verdict("CannotStart", REFUSED)),
    ],
    ids=[
        "it waits for its time to be over",
        "for ever, where it is kept",
        "its time is over",
        "older pods are not ready for a moment",
        "no older pod serves",
        "the attempt is refused again",
        "the attempt is refused once",
        "the attempt is refused, and it is kept",
        "the volume is where no pod is",
    ],
)
def test_the_verdict_about_a_held_pod_changes_nothing(held: HeldPod, verdict: Verdict) -> None:
    plan = held.plan
    before = (dict(plan.bundles), list(plan.actions), list(plan.after), list(plan.events))
    assert judge(held) == verdict
    assert before == (dict(plan.bundles), plan.actions, plan.after, plan.events)
    assert plan.requeue_time is None
