"""Holds as the plan has them: which pods are released, and what is reported of held pods."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CACHE
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.decide import decide
from pretune.policy.hold.release import (
    MAX_REFUSALS,
    REFUSED_SECONDS,
    RELEASE_RECHECK_SECONDS,
    RELEASE_REFUSED_SECONDS,
    UNREADY_SECONDS,
)
from pretune.policy.model import Delete, ReleaseRefusal, Turn

from tests.builders.caches import bundle_json, claim
from tests.builders.constants import NOW
from tests.builders.consumers import (
    NO_CONSUMERS,
    OLD,
    cache_without_source,
    decide_on,
    jobs,
    pending,
    released,
    sealed,
)
from tests.builders.jobs import job
from tests.builders.observed import bundle_of, fingerprint_of, observed, origin
from tests.builders.pods import AttemptPod, Consumer

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


# --- the attempt that it waits for


def attempt_pod(bundle: str, age: float = 300.0, node: str = "", **meta: Any) -> AttemptPod:
    pod = AttemptPod(bundle).but(creationTimestamp=format_timestamp(NOW - age), **meta)
    return pod.but(nodeName=node)


OTHER_BUNDLE = bundle_of("b")
WAITS: list[tuple[str, AttemptPod | None, Object, str]] = [
    ("a node was found", attempt_pod(bundle_of("a"), node="node0"), {}, ""),
    ("none for the time of the spec", attempt_pod(bundle_of("a")), {}, "NoNode"),
    ("none for a while", attempt_pod(bundle_of("a"), age=299), {}, ""),
    ("none, and pods are kept", attempt_pod(bundle_of("a")), {"hold": {"onFailure": "Keep"}}, ""),
    ("longer is allowed", attempt_pod(bundle_of("a")), {"tuning": {"nodeWaitSeconds": 301}}, ""),
    ("its pod is on its way out", attempt_pod(bundle_of("a"), deletionTimestamp="2026-01-01T00:00:00Z"), {}, ""),
    ("it has no pod yet", None, {}, ""),
    ("one that it is queued behind has none", attempt_pod(OTHER_BUNDLE), {}, "NoNode"),
    ("one that it is queued behind has one", attempt_pod(OTHER_BUNDLE, node="node0"), {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "pod", "spec", "cause"), WAITS, ids=[one[0] for one in WAITS])
def test_a_hold_ends_when_the_attempt_finds_no_node(
    case: str, pod: AttemptPod | None, spec: Object, cause: str
) -> None:
    the_cache = cache_without_source(pending("a"), pending("b"), **spec)
    attempts = (job(bundle_of("a")), job(OTHER_BUNDLE))
    more = {"jobs": attempts, "pods": (pod,) if pod else ()}
    plan = decide_on(the_cache, OLD, HELD, **more)
    assert [each.cause for each in plan.released] == ([cause] if cause else [])
    if case == "none for a while":
        assert plan.requeue_after == 1
    if cause:
        [event] = [event for event in plan.events if event.reason == "Released"]
        assert "no node for 300 s (spec.tuning.nodeWaitSeconds)" in event.message


@pytest.mark.parametrize("node", ["", "node0"], ids=["it has none", "it has one"])
def test_a_failed_pod_that_is_kept_hides_no_attempt_that_the_bundle_is_queued_behind(
    node: str,
) -> None:
    kept = attempt_pod(bundle_of("a"), age=900, node="node1", uid="kept").but(
        status={"phase": "Failed"}
    )
    failure = {"attempt": 1, "at": format_timestamp(NOW - 800), "reason": "EngineFailed"}
    plan = decide_on(
        cache_without_source(pending("a", lastFailure=failure), pending("b")),
        OLD,
        HELD,
        jobs=(job(bundle_of("a")).failed(), job(OTHER_BUNDLE)),
        pods=(kept, attempt_pod(OTHER_BUNDLE, node=node)),
    )
    assert [each.cause for each in plan.released] == ([] if node else ["NoNode"])


def suspended(since: float) -> Object:
    condition = {
        "type": "Suspended",
        "status": "True",
        "lastTransitionTime": format_timestamp(since),
    }
    return {**job(bundle_of("a"), suspend=True), "status": {"conditions": [condition]}}


QUEUE = {CACHE: "qwen3", "kueue.x-k8s.io/queue-name": "gpus"}


@pytest.mark.parametrize(
    ("case", "labels", "gates", "attempt", "is_released"),
    [
        ("Kueue counts it", QUEUE, (), suspended(NOW - 30), True),
        ("suspended a moment ago", QUEUE, (), suspended(NOW - 29), False),
        ("not admitted itself", QUEUE, ("kueue.x-k8s.io/admission",), suspended(NOW - 30), False),
        ("not Kueue's", {CACHE: "qwen3"}, (), suspended(NOW - 30), False),
        ("the attempt goes on", QUEUE, (), job(bundle_of("a")), False),
    ],
)
def test_a_hold_ends_when_the_held_pod_uses_up_the_quota_of_its_attempt(
    case: str, labels: Object, gates: tuple[str, ...], attempt: Object, is_released: bool
) -> None:
    pod = Consumer("a", age=100).held(*gates).meta(labels=labels)
    plan = decide_on(cache_without_source(pending("a")), OLD, pod, jobs=(attempt,))
    causes = [each.cause for each in plan.released]
    assert causes == (["QuotaUsedUp"] if is_released else []), case


# --- releases that the API server refuses


def refused(count: int, seconds: float = REFUSED_SECONDS) -> Any:
    refusal = ReleaseRefusal(count, "denied by a policy", NOW - seconds, NOW)
    return {HELD["metadata"]["uid"]: refusal}


def test_a_pod_that_cannot_be_released_is_recreated_and_no_other_is_held() -> None:
    the_cache = cache_without_source(sealed("a"))
    for few in (refused(MAX_REFUSALS - 1), refused(9, REFUSED_SECONDS - 1)):
        again = decide_on(the_cache, OLD, HELD, release_refusals=few)
        assert [action.name for action in again.after] == ["release Pod a-1"]
        assert "releaseRefused" not in (again.status or {})
    pod = HELD.meta(resourceVersion="7")
    plan = decide_on(the_cache, OLD, pod, release_refusals=refused(MAX_REFUSALS))
    assert [action.name for action in plan.after] == ["release Pod a-1", "delete Pod a-1"]
    assert not plan.released
    deletion = plan.after[-1]
    assert isinstance(deletion, Delete)
    version = deletion.object["metadata"]["resourceVersion"]
    assert version == "7", "not one that is released meanwhile, by the patch before or a person"
    assert plan.status is not None
    found = plan.status["releaseRefused"]
    assert found["at"] == format_timestamp(NOW) and "denied by a policy" in found["message"]
    [warning] = plan.status["warnings"]
    assert (warning["reason"], warning["message"]) == ("ReleaseRefused", found["message"])
    assert [event.reason for event in plan.events if event.warning] == ["ReleaseRefused"]


def test_a_pod_without_a_controller_is_not_deleted_though_it_cannot_be_released() -> None:
    bare = HELD.meta(ownerReferences=[])
    plan = decide_on(cache_without_source(sealed("a")), OLD, bare, release_refusals=refused(9))
    assert released(plan) == ["a-1"] and plan.status is not None
    assert "releaseRefused" in plan.status


def test_that_pods_could_not_be_released_is_remembered_for_an_hour() -> None:
    def then(at: float, **more: Any) -> tuple[Object | None, float | None]:
        refusal = {"at": format_timestamp(at), "message": "m"}
        the_cache = cache_without_source(sealed("a"), status={"releaseRefused": refusal})
        plan = decide_on(the_cache, OLD, *more.pop("pods", ()), **more)
        assert plan.status is not None
        return plan.status.get("releaseRefused"), plan.requeue_after

    young, old = NOW - 60, NOW - RELEASE_REFUSED_SECONDS
    assert then(young)[0] == {"at": format_timestamp(young), "message": "m"}
    assert then(old + 600)[1] == 600
    assert then(old)[0] is None
    again = {"pods": (HELD,), "release_refusals": refused(9)}
    assert then(young, **again)[0] == then(young)[0], "one write and one event for many pods"
    seen = then(old, **again)[0]
    assert seen is not None and seen["at"] == format_timestamp(NOW)


def test_pods_of_a_deleted_cache_that_cannot_be_released_are_recreated_too() -> None:
    dying = cache_without_source(pending("a"))
    dying["metadata"]["deletionTimestamp"] = format_timestamp(NOW)
    plan = decide_on(dying, OLD, HELD, release_refusals=refused(9))
    assert [action.name for action in plan.after] == ["release Pod a-1", "delete Pod a-1"]


def test_an_older_pod_of_another_workload_is_no_reason_to_wait() -> None:
    decode = {"kind": "Deployment", "metadata": {"name": "decode"}}
    origins = {**origin("old", 1), **origin("a", 2, workload=decode)}
    working = {"jobs": (job(bundle_of("a")),), "origins": origins}
    plan = decide_on(cache_without_source(pending("a")), OLD, HELD, **working)
    assert [each.cause for each in plan.released] == ["Unserved"]


def test_the_status_lists_the_workloads_that_serve() -> None:
    decode = {"kind": "Deployment", "metadata": {"name": "decode"}}
    origins = {**origin("old", 1), **origin("a", 2, workload=decode)}
    pods = (OLD, Consumer("old", 2).ready(), Consumer("a").runs(), Consumer("a", 2).ready("False"))
    plan = decide_on(cache_without_source(sealed("a"), sealed("old")), *pods, origins=origins)
    assert plan.status is not None
    found = {each["id"]: each.get("servingWorkloads") for each in plan.status["bundles"]}
    assert found == {bundle_of("old"): ["Deployment/qwen3"], bundle_of("a"): None}


def test_a_suspended_attempt_gives_way_to_that_of_the_bundle_that_pods_wait_for() -> None:
    """Kueue has not admitted the older one: it would go first only because it came first."""
    older = job(bundle_of("old"), suspend=True)
    records = (pending("old", "Queued", names.PENDING, attempts=1), pending("a", "Queued", names.PENDING, attempts=0))  # fmt: skip
    plan = decide_on(cache_without_source(*records), OLD, HELD, jobs=(older,))
    assert [action.name for action in plan.after] == [f"delete Job {older['metadata']['name']}"]
    assert plan.requeue_after == 0 and jobs(plan) == [] and plan.status is not None
    then = decide_on(cache_without_source(*plan.status["bundles"]), OLD, HELD)
    assert jobs(then) == [bundle_of("a")]
    [kept] = [each for each in plan.status["bundles"] if each["id"] == bundle_of("old")]
    assert (kept["state"], kept["attempts"]) == ("Pending", 0)


@pytest.mark.parametrize(
    ("case", "older", "pod", "more"),
    [
        ("it goes on", {}, HELD, {}),
        ("no pod waits", {"suspend": True}, Consumer("a"), {}),
        ("its pod ends yet", {"suspend": True}, HELD, {"pods": (AttemptPod(bundle_of("old")),)}),
    ],
)
def test_an_older_attempt_goes_on_where(case: str, older: Any, pod: Consumer, more: Any) -> None:
    records = (pending("old"), pending("a", "Queued", names.PENDING, attempts=0))
    attempt = job(bundle_of("old"), **older)
    plan = decide_on(cache_without_source(*records), OLD, pod, jobs=(attempt,), **more)
    assert not [action for action in plan.after if action.name.startswith("delete Job")], case


@pytest.mark.parametrize(
    ("age", "spec", "cause"),
    [(300, {}, "NoTurn"), (299, {}, ""), (300, {"hold": {"onFailure": "Keep"}}, "")],
    ids=["for long", "for a while", "and pods are kept"],
)
def test_a_hold_ends_when_the_attempts_turn_does_not_come(
    age: float, spec: Object, cause: str
) -> None:
    held = Consumer("a", age=age).given(bundle_of("a")).held()
    turn = Turn(False, place=9, waiting=9, running=20, limit=20)
    waiting = pending("a", "WaitingForTurn", names.PENDING, attempts=0)
    plan = decide_on(cache_without_source(sealed("old"), waiting, **spec), OLD, held, turn=turn)
    assert plan.waits_for_turn
    assert [each.cause for each in plan.released] == ([cause] if cause else [])
