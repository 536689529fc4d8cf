"""Consumers: which bundles they need, which wait, which are released, and how they are counted."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.start_rules import ROLLOUT_SECONDS
from pretune.policy.bundles.tuning import UNWANTED_SECONDS
from pretune.policy.decide import decide
from pretune.policy.hold.release import RELEASE_RECHECK_SECONDS, UNREADY_SECONDS
from pretune.policy.model import Create, Patch, Plan
from pretune.policy.pods.consumers import COUNTS_INTERVAL_SECONDS
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import NOW
from tests.builders.jobs import job
from tests.builders.observed import bundle_of, fingerprint_of, observed, origin
from tests.builders.pods import AttemptPod, Consumer
from tests.builders.templates import serving_template

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

# --- which bundles are desired

OLD = Consumer("old").ready()
NEW = Consumer("a")


def test_labelled_pods_are_the_source_when_the_cache_names_none() -> None:
    plan = decide_on(cache_without_source(), NEW)
    assert jobs(plan) == [bundle_of("a")]
    assert condition(plan, "Ready")["reason"] == "WaitingForPod"


def test_without_source_and_pods_ready_is_unknown() -> None:
    plan = decide_on(cache_without_source())
    assert (condition(plan, "Ready")["status"], condition(plan, "Ready")["reason"]) == (
        "Unknown",
        "NoSource",
    )


@pytest.mark.parametrize(
    "gone", [{"deletionTimestamp": format_timestamp(NOW)}, {}], ids=["terminating", "finished"]
)
def test_pods_on_their_way_out_want_nothing(gone: Object) -> None:
    pod = NEW.meta(**gone) if gone else NEW.but(phase="Failed")
    assert not jobs(decide_on(cache_without_source(), pod))


def test_the_newest_revision_goes_first_and_ready_is_about_it() -> None:
    plan = decide_on(cache_without_source(sealed("old")), OLD, NEW)
    assert jobs(plan) == [bundle_of("a")]
    assert condition(plan, "Ready")["status"] == "False"
    assert (
        decide_on(cache_without_source(sealed("old"), sealed("a")), OLD, NEW).status["summary"][
            "bundles"
        ]
        == "1/1"
    )  # type: ignore[index]


def test_an_older_revision_without_a_bundle_waits_until_the_rollout_is_over() -> None:
    """Its pods are most likely on their way out: a rollout is to cost one tuning."""
    just = {**sealed("a"), "sealedAt": format_timestamp(NOW - 10)}
    plan = decide_on(cache_without_source(just), OLD, NEW)
    assert not jobs(plan) and (bundle_of("old"), "Queued") in queue(plan)
    assert plan.requeue_after is not None and plan.requeue_after <= ROLLOUT_SECONDS - 10
    assert jobs(decide_on(cache_without_source(just), OLD, NEW, now=NOW + ROLLOUT_SECONDS)) == [
        bundle_of("old")
    ]


def test_a_rollout_to_a_bundle_begins_when_the_bundle_is_proven() -> None:
    long_ago = {
        **sealed("a"),
        "sealedAt": format_timestamp(NOW - 2 * ROLLOUT_SECONDS),
        "proven": True,
    }
    the_cache = cache_without_source(long_ago)
    assert jobs(decide_on(the_cache, OLD, NEW)) == [bundle_of("old")], (
        "the time of its proof is unknown"
    )
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Sealed",
        "message": "",
        "lastTransitionTime": format_timestamp(NOW - 10),
    }
    the_cache["status"]["conditions"] = [ready]
    plan = decide_on(the_cache, OLD, NEW)
    assert (
        not jobs(plan)
        and plan.requeue_after is not None
        and plan.requeue_after <= ROLLOUT_SECONDS - 10
    )
    assert jobs(decide_on(the_cache, OLD, NEW, now=NOW + ROLLOUT_SECONDS)) == [bundle_of("old")]
    bundle = bundle_of("a")
    the_cache["status"]["bundles"][0] = {**long_ago, "state": names.PROVING, "digest": "sha256:1"}
    del the_cache["status"]["bundles"][0]["proven"]
    the_cache["status"]["conditions"] = []
    proof = job(bundle, role=names.PROOF).complete()
    report = Report("prove", "Proven", digest="sha256:1")
    pod = (
        AttemptPod(bundle, of=proof)
        .ended(names.PROVE_CONTAINER, report=report)
        .but(status={"phase": "Succeeded"})
    )
    pod["metadata"]["labels"][names.ROLE] = names.PROOF
    plan = decide_on(
        {**the_cache, "spec": {**the_cache["spec"], "verify": "BeforeRelease"}},
        OLD,
        NEW,
        jobs=(proof,),
        pods=(pod,),
    )
    assert condition(plan, "Ready")["status"] == "True" and not jobs(plan), (
        "this reconcile has ended the proof"
    )


def test_an_older_revision_that_pods_wait_for_is_tuned_at_once() -> None:
    just = {**sealed("a"), "sealedAt": format_timestamp(NOW - 10)}
    plan = decide_on(
        cache_without_source(just, hold={"when": "Always"}), Consumer("old").held(), NEW.ready()
    )
    assert jobs(plan) == [bundle_of("old")]


def test_the_source_comes_before_the_pods() -> None:
    plan = decide_on(
        cache_without_source(source={"template": serving_template(image="vllm:next")}), OLD, NEW
    )
    assert jobs(plan) == [bundle_of("next")]


def test_pods_of_the_sources_own_fingerprint_need_no_other_bundle() -> None:
    plan = decide_on(
        cache_without_source(source={"template": serving_template(image="vllm:a")}), NEW
    )
    assert [bundle_id for bundle_id, _ in queue(plan)] == [bundle_of("a")]


def churning(number: int) -> tuple[list[Consumer], dict[str, Any]]:
    pods, origins = [], {}
    for index in range(number):
        pods.append(Consumer(f"c{index}").held())
        env = [{"name": "POD_ID", "value": str(index)}, {"name": "SAME", "value": "1"}]
        origins |= origin(f"c{index}", index, serving_template(env=env))
    return pods, origins


def test_more_than_four_fingerprints_stall_the_cache_and_the_oldest_pods_are_released() -> None:
    pods, origins = churning(6)
    plan = decide_on(cache_without_source(hold={"when": "Always"}), *pods, origins=origins)
    stalled = condition(plan, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "TooManyFingerprints")
    assert "env POD_ID" in stalled["message"] and "SAME" not in stalled["message"]
    assert len(queue(plan)) == 4 and released(plan) == ["c0-1", "c1-1"]  # the oldest
    four, origins = churning(4)
    assert not released(
        decide_on(cache_without_source(hold={"when": "Always"}), *four, origins=origins)
    )


def test_bundles_that_exist_count_before_new_ones() -> None:
    pods, origins = churning(5)
    first = decide_on(cache_without_source(), pods[0], origins=origins)
    kept = queue(first)[0][0]
    later = decide_on(
        cache_without_source(bundle_json(kept, fingerprint="f")), *pods, origins=origins
    )
    assert kept in [bundle_id for bundle_id, _ in queue(later)]


def test_an_owner_that_cannot_be_read_is_reported_where_there_is_no_other_source() -> None:
    gone = origin("a", 1, Refused("SourceNotFound", "ReplicaSet a is not there"))
    plan = decide_on(cache_without_source(), NEW.held(), origins=gone)
    assert condition(plan, "Stalled")["reason"] == "SourceNotFound" and released(plan) == ["a-1"]


WORKING = {"jobs": (job(bundle_of("a")),)}  # created at NOW - 60


def test_the_bundle_of_a_pod_that_is_missing_for_a_while_keeps_its_attempt() -> None:
    """Its StatefulSet recreates it.

    Without this, each eviction would cost a tuning, and give a failed bundle new attempts.
    """
    first = decide_on(cache_without_source(pending("a")), **WORKING)
    assert queue(first) == [(bundle_of("a"), "WaitingForPod")] and not first.after
    assert first.requeue_after is not None and first.requeue_after <= UNWANTED_SECONDS
    assert first.status is not None
    cached = cache_without_source(*first.status["bundles"])
    over = decide_on(cached, now=NOW + UNWANTED_SECONDS, **WORKING)
    assert [action.name.split()[0] for action in over.after] == ["end"]
    back = decide_on(cached, NEW, now=NOW + 10, **WORKING)
    assert back.status is not None and "unwantedSince" not in back.status["bundles"][0]
    failed = cache_without_source(pending("a", "EngineFailed", names.FAILED, attempts=3))
    assert queue(decide_on(failed)) == [(bundle_of("a"), "EngineFailed")]


def test_a_newer_revision_ends_an_older_ones_attempt_at_once_and_an_older_one_does_not() -> None:
    newer = {**origin("next", 3, created=NOW - 30)}
    plan = decide_on(cache_without_source(pending("a")), Consumer("next"), origins=newer, **WORKING)
    assert [action.name.split()[0] for action in plan.after] == ["end"]
    older = {**origin("old", 1, created=NOW - 3600)}
    assert not decide_on(cache_without_source(pending("a")), OLD, origins=older, **WORKING).after


def test_a_source_that_was_changed_ends_the_attempt_at_once() -> None:
    changed = cache_without_source(
        pending("a"), source={"template": serving_template(image="vllm:next")}
    )
    assert [action.name.split()[0] for action in decide_on(changed, **WORKING).after] == ["end"]


def test_a_bundle_that_pods_could_not_start_with_is_not_forgotten_while_they_come_back() -> None:
    mark = {
        "reason": "MountFailed",
        "message": "m",
        "at": format_timestamp(NOW - 60),
        "claimUID": "claim-uid",
    }
    lost = pending(
        "a",
        "Queued",
        names.PENDING,
        attempts=0,
        undeliverable=mark,
        unwantedSince=format_timestamp(NOW - 500),
    )
    plan = decide_on(cache_without_source(lost))
    assert plan.status is not None and plan.status["bundles"][0]["undeliverable"] == mark


def test_revision_numbers_are_one_workloads_own() -> None:
    """Another Deployment's fiftieth revision is not newer than this one's second."""
    busy = {"kind": "Deployment", "metadata": {"name": "busy"}}
    calm = {"kind": "Deployment", "metadata": {"name": "calm"}}
    origins = {
        **origin("old", 50, created=NOW - 900, workload=busy),
        **origin("a", 2, created=NOW - 60, workload=calm),
    }
    assert jobs(decide_on(cache_without_source(), OLD, NEW, origins=origins)) == [bundle_of("a")]
    back = {
        **origin("old", 3, created=NOW - 900, workload=calm),
        **origin("a", 2, created=NOW - 60, workload=calm),
    }
    assert jobs(decide_on(cache_without_source(), OLD, NEW, origins=back)) == [
        bundle_of("old")
    ]  # a rollback


# --- which held pods are released

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


# --- how consumers are counted


def counts(plan: Plan) -> dict[str, Any]:
    assert plan.status is not None
    return {name: count for name, count in plan.status["consumers"].items() if name != "observedAt"}


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (Consumer("a"), {}),
        (Consumer("a").held(), {"held": 1}),
        (Consumer("a").runs(), {"cold": 1}),
        (Consumer("a").given("x").runs(), {"cold": 1}),
        (Consumer("a").given("x").runs().seeded("NoBundle"), {"cold": 1}),
        (Consumer("a").given("x").seeded(), {}),
        (Consumer("a").given("x").runs().seeded(), {"seeded": 1}),
        (Consumer("a").given("x", "ReadOnly").ready(), {"seeded": 1, "ready": 1}),
        (
            Consumer("a").given("x").ready().seeded().meta(deletionTimestamp=format_timestamp(NOW)),
            {},
        ),
        (Consumer("a").given("x").runs().seeded().but(phase="Succeeded"), {}),
    ],
    ids=range(10),
)
def test_a_consumer_is_counted_by_its_state(pod: Consumer, expected: dict[str, int]) -> None:
    hold = {"when": "Always"}
    assert counts(
        decide_on(cache_without_source(pending("a"), hold=hold), pod, jobs=(job(bundle_of("a")),))
    ) == {
        **NO_CONSUMERS,
        **expected,
    }


def test_a_pod_whose_image_is_not_the_bundles_is_stale() -> None:
    bundle = {**sealed("a"), "engineImage": "registry/vllm@sha256:aa"}
    same = (
        Consumer("a", 1)
        .given(bundle["id"])
        .runs("docker-pullable://mirror/vllm@sha256:aa")
        .seeded()
    )
    moved = Consumer("a", 2).given(bundle["id"]).runs("registry/vllm@sha256:bb").seeded()
    unknown = Consumer("a", 3).given(bundle["id"]).runs("").seeded()
    assert counts(decide_on(cache_without_source(bundle), same, moved, unknown)) == {
        **NO_CONSUMERS,
        "seeded": 3,
        "stale": 1,
    }


def test_a_pod_with_an_empty_bundle_is_not_cold() -> None:
    assert (
        counts(
            decide_on(
                cache_without_source({**sealed("a"), "layout": "Empty"}), Consumer("a").runs()
            )
        )
        == NO_CONSUMERS
    )


def test_counts_are_written_every_ten_seconds_at_most() -> None:
    before = {**NO_CONSUMERS, "observedAt": format_timestamp(NOW - 4)}
    plan = decide_on(
        cache_without_source(sealed("a"), status={"consumers": before}),
        Consumer("a").given("x").ready().seeded(),
    )
    assert plan.status is not None and plan.status["consumers"] == before
    assert plan.requeue_after is not None and plan.requeue_after <= COUNTS_INTERVAL_SECONDS - 4
    later = decide_on(
        cache_without_source(sealed("a"), status={"consumers": before}),
        Consumer("a").given("x").ready().seeded(),
        now=NOW + 6,
    )
    assert counts(later) == {**NO_CONSUMERS, "seeded": 1, "ready": 1}
    same = decide_on(
        cache_without_source(sealed("a"), status={"consumers": before}), now=NOW + 3600
    )
    assert (
        same.status is not None and same.status["consumers"] == before
    )  # unchanged, so not written


@pytest.mark.parametrize(
    ("pod", "flags"),
    [
        (Consumer("a").held(), {}),
        (Consumer("a"), {}),
        (Consumer("a").runs(), {"running": True}),
        (Consumer("a").ready(), {"running": True, "serving": True}),
        (Consumer("a").ready().meta(deletionTimestamp=format_timestamp(NOW)), {}),
    ],
    ids=["held", "unscheduled", "runs", "ready", "terminating"],
)
def test_a_bundles_status_has_whether_its_pods_run_and_serve(
    pod: Consumer, flags: dict[str, bool]
) -> None:
    before = {**sealed("a"), "running": True, "serving": True}
    plan = decide_on(cache_without_source(before), pod)
    assert plan.status is not None
    [found] = plan.status["bundles"]
    assert {name: found[name] for name in ("running", "serving") if name in found} == flags
