"""Consumers: what they make wanted, who waits and who is let go, and what is counted of them."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.tuning import ROLLOUT_SECONDS, UNWANTED_SECONDS
from pretune.policy.decide import decide
from pretune.policy.hold.release import LET_GO, UNREADY
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


def a_cache(*records: Object, status: Object | None = None, **spec: Any) -> Object:
    """Without a source: its pods are the source."""
    return cache({**KNOWN, "bundles": list(records), **(status or {})}, **{"source": None, **spec})


def plan(the_cache: Object, *pods: Consumer, now: float = NOW, **more: Any) -> Plan:
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
    made = {"fingerprint": fingerprint_of(owner), "reason": reason, "message": "m", **more}
    return {**bundle_json(bundle_of(owner), state), **made}


def released(the_plan: Plan) -> list[str]:
    patches = [one for one in the_plan.after if isinstance(one, Patch) and one.strategic]
    assert all(one.patch == GATE for one in patches)
    return sorted(one.object["metadata"]["name"] for one in patches)


def condition(the_plan: Plan, kind: str) -> Object:
    assert the_plan.status is not None
    [found] = [one for one in the_plan.status["conditions"] if one["type"] == kind]
    return found


def queue(the_plan: Plan) -> list[tuple[str, str]]:
    assert the_plan.status is not None
    return [(one["id"], one["reason"]) for one in the_plan.status["bundles"]]


def jobs(the_plan: Plan) -> list[str]:
    made = [one.object for one in the_plan.actions if isinstance(one, Create)]
    return [one["metadata"]["labels"][names.BUNDLE] for one in made if one["kind"] == "Job"]


NOBODY = {"seeded": 0, "cold": 0, "held": 0, "stale": 0, "ready": 0}

# --- what is wanted

OLD = Consumer("old").ready()
NEW = Consumer("a")


def test_labelled_pods_are_the_source_when_the_cache_names_none() -> None:
    made = plan(a_cache(), NEW)
    assert jobs(made) == [bundle_of("a")]
    assert condition(made, "Ready")["reason"] == "WaitingForPod"


def test_without_source_and_pods_ready_is_unknown() -> None:
    made = plan(a_cache())
    assert (condition(made, "Ready")["status"], condition(made, "Ready")["reason"]) == (
        "Unknown",
        "NoSource",
    )


@pytest.mark.parametrize(
    "gone", [{"deletionTimestamp": format_timestamp(NOW)}, {}], ids=["terminating", "finished"]
)
def test_pods_on_their_way_out_want_nothing(gone: Object) -> None:
    pod = NEW.meta(**gone) if gone else NEW.but(phase="Failed")
    assert not jobs(plan(a_cache(), pod))


def test_the_newest_revision_goes_first_and_ready_speaks_of_it() -> None:
    made = plan(a_cache(sealed("old")), OLD, NEW)
    assert jobs(made) == [bundle_of("a")]
    assert condition(made, "Ready")["status"] == "False"
    assert plan(a_cache(sealed("old"), sealed("a")), OLD, NEW).status["summary"]["bundles"] == "1/1"  # type: ignore[index]


def test_an_older_revision_without_a_bundle_waits_until_the_rollout_is_over() -> None:
    """Its pods are most likely on their way out: a rollout is to cost one tuning."""
    just = {**sealed("a"), "sealedAt": format_timestamp(NOW - 10)}
    made = plan(a_cache(just), OLD, NEW)
    assert not jobs(made) and (bundle_of("old"), "Queued") in queue(made)
    assert made.requeue_after is not None and made.requeue_after <= ROLLOUT_SECONDS - 10
    assert jobs(plan(a_cache(just), OLD, NEW, now=NOW + ROLLOUT_SECONDS)) == [bundle_of("old")]


def test_a_rollout_to_a_bundle_that_was_to_be_proven_begins_when_it_is() -> None:
    long_ago = {
        **sealed("a"),
        "sealedAt": format_timestamp(NOW - 2 * ROLLOUT_SECONDS),
        "proven": True,
    }
    the_cache = a_cache(long_ago)
    assert jobs(plan(the_cache, OLD, NEW)) == [bundle_of("old")], "nobody knows better"
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Sealed",
        "message": "",
        "lastTransitionTime": format_timestamp(NOW - 10),
    }
    the_cache["status"]["conditions"] = [ready]
    made = plan(the_cache, OLD, NEW)
    assert (
        not jobs(made)
        and made.requeue_after is not None
        and made.requeue_after <= ROLLOUT_SECONDS - 10
    )
    assert jobs(plan(the_cache, OLD, NEW, now=NOW + ROLLOUT_SECONDS)) == [bundle_of("old")]
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
    made = plan(
        {**the_cache, "spec": {**the_cache["spec"], "verify": "BeforeRelease"}},
        OLD,
        NEW,
        jobs=(proof,),
        pods=(pod,),
    )
    assert condition(made, "Ready")["status"] == "True" and not jobs(made), (
        "this very look has made it so"
    )


def test_an_older_revision_that_pods_wait_for_is_tuned_at_once() -> None:
    just = {**sealed("a"), "sealedAt": format_timestamp(NOW - 10)}
    made = plan(a_cache(just, hold={"when": "Always"}), Consumer("old").held(), NEW.ready())
    assert jobs(made) == [bundle_of("old")]


def test_the_source_comes_before_the_pods() -> None:
    made = plan(a_cache(source={"template": serving_template(image="vllm:next")}), OLD, NEW)
    assert jobs(made) == [bundle_of("next")]


def test_pods_of_the_sources_own_fingerprint_ask_for_nothing_more() -> None:
    made = plan(a_cache(source={"template": serving_template(image="vllm:a")}), NEW)
    assert [one for one, _ in queue(made)] == [bundle_of("a")]


def churning(number: int) -> tuple[list[Consumer], dict[str, Any]]:
    pods, origins = [], {}
    for index in range(number):
        pods.append(Consumer(f"c{index}").held())
        env = [{"name": "POD_ID", "value": str(index)}, {"name": "SAME", "value": "1"}]
        origins |= origin(f"c{index}", index, serving_template(env=env))
    return pods, origins


def test_more_than_four_fingerprints_are_a_fault_that_names_the_variable_and_nobody_waits_for_the_rest() -> (
    None
):
    pods, origins = churning(6)
    made = plan(a_cache(hold={"when": "Always"}), *pods, origins=origins)
    stalled = condition(made, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "TooManyFingerprints")
    assert "env POD_ID" in stalled["message"] and "SAME" not in stalled["message"]
    assert len(queue(made)) == 4 and released(made) == ["c0-1", "c1-1"]  # the oldest
    four, origins = churning(4)
    assert not released(plan(a_cache(hold={"when": "Always"}), *four, origins=origins))


def test_bundles_that_are_there_count_before_new_ones() -> None:
    pods, origins = churning(5)
    first = plan(a_cache(), pods[0], origins=origins)
    kept = queue(first)[0][0]
    later = plan(a_cache(bundle_json(kept, fingerprint="f")), *pods, origins=origins)
    assert kept in [one for one, _ in queue(later)]


def test_an_owner_that_cannot_be_read_is_said_where_there_is_nothing_else() -> None:
    gone = origin("a", 1, Refused("SourceNotFound", "ReplicaSet a is not there"))
    made = plan(a_cache(), NEW.held(), origins=gone)
    assert condition(made, "Stalled")["reason"] == "SourceNotFound" and released(made) == ["a-1"]


WORKING = {"jobs": (job(bundle_of("a")),)}  # made at NOW - 60


def test_what_a_pod_that_is_missing_for_a_while_needs_is_not_tuned_anew() -> None:
    """Its StatefulSet makes it again; without this each eviction would cost a tuning, and give a failed bundle new attempts."""
    first = plan(a_cache(pending("a")), **WORKING)
    assert queue(first) == [(bundle_of("a"), "WaitingForPod")] and not first.after
    assert first.requeue_after is not None and first.requeue_after <= UNWANTED_SECONDS
    assert first.status is not None
    cached = a_cache(*first.status["bundles"])
    over = plan(cached, now=NOW + UNWANTED_SECONDS, **WORKING)
    assert [one.name.split()[0] for one in over.after] == ["end"]
    back = plan(cached, NEW, now=NOW + 10, **WORKING)
    assert back.status is not None and "unwantedSince" not in back.status["bundles"][0]
    failed = a_cache(pending("a", "EngineFailed", names.FAILED, attempts=3))
    assert queue(plan(failed)) == [(bundle_of("a"), "EngineFailed")]


def test_a_newer_revision_ends_an_older_ones_attempt_at_once_and_an_older_one_does_not() -> None:
    newer = {**origin("next", 3, made=NOW - 30)}
    made = plan(a_cache(pending("a")), Consumer("next"), origins=newer, **WORKING)
    assert [one.name.split()[0] for one in made.after] == ["end"]
    older = {**origin("old", 1, made=NOW - 3600)}
    assert not plan(a_cache(pending("a")), OLD, origins=older, **WORKING).after


def test_a_source_that_was_changed_ends_the_attempt_at_once() -> None:
    changed = a_cache(pending("a"), source={"template": serving_template(image="vllm:next")})
    assert [one.name.split()[0] for one in plan(changed, **WORKING).after] == ["end"]


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
    made = plan(a_cache(lost))
    assert made.status is not None and made.status["bundles"][0]["undeliverable"] == mark


def test_revision_numbers_are_one_workloads_own() -> None:
    """Another Deployment's fiftieth revision is not newer than this one's second."""
    busy = {"kind": "Deployment", "metadata": {"name": "busy"}}
    calm = {"kind": "Deployment", "metadata": {"name": "calm"}}
    origins = {
        **origin("old", 50, made=NOW - 900, workload=busy),
        **origin("a", 2, made=NOW - 60, workload=calm),
    }
    assert jobs(plan(a_cache(), OLD, NEW, origins=origins)) == [bundle_of("a")]
    back = {
        **origin("old", 3, made=NOW - 900, workload=calm),
        **origin("a", 2, made=NOW - 60, workload=calm),
    }
    assert jobs(plan(a_cache(), OLD, NEW, origins=back)) == [bundle_of("old")]  # a rollback


# --- who is let go

HELD = Consumer("a", age=100).held("kueue.x-k8s.io/admission")


def test_a_held_pod_waits_while_its_bundle_is_made_and_older_pods_serve() -> None:
    made = plan(
        a_cache(pending("a"), hold={"timeoutSeconds": 400}), OLD, HELD, jobs=(job(bundle_of("a")),)
    )
    assert not released(made)
    assert made.requeue_after is not None and made.requeue_after <= 300


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
def test_a_held_pod_is_let_go(name: str) -> None:
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
    made = plan(a_cache(bundle, **spec), OLD, HELD, **more)
    assert released(made) == ["a-1"]
    assert [(one.cause, one.waited) for one in made.released] == [(cause, 100.0)]
    assert (
        made.requeue_after is not None and made.requeue_after <= LET_GO
    )  # a patch that met a conflict is made again
    [event] = [one for one in made.events if one.reason == "Released"]
    assert "1 pod of bundle" in event.message and "waited 100 s" in event.message
    assert event.warning == (cause != "Sealed")
    hold = {**spec.get("hold", {}), "onFailure": "Keep"}
    kept = plan(a_cache(bundle, **{**spec, "hold": hold}), OLD, HELD, **more)
    assert released(kept) == ([] if failure else ["a-1"])


def test_a_hold_ends_when_nothing_else_serves() -> None:
    """Recreate, and older pods that died: waiting would be an outage."""
    working = {"jobs": (job(bundle_of("a")),)}
    assert released(plan(a_cache(pending("a")), HELD, **working)) == ["a-1"]
    terminating = OLD.meta(deletionTimestamp=format_timestamp(NOW))
    assert released(plan(a_cache(pending("a")), terminating, HELD, **working)) == ["a-1"]
    just = Consumer("old").ready("False", NOW - 5)
    assert not released(plan(a_cache(pending("a")), just, HELD, **working))
    long = Consumer("old").ready("False", NOW - UNREADY)
    assert released(plan(a_cache(pending("a")), long, HELD, **working)) == ["a-1"]
    always = a_cache(pending("a"), hold={"when": "Always"})
    assert not released(plan(always, HELD, **working))


@pytest.mark.parametrize("on_failure", ["Start", "Keep"])
def test_a_pod_goes_on_waiting_for_what_it_was_given_and_for_nothing_else(on_failure: str) -> None:
    """Its seed names one bundle: that another one is sealed, or made, is of no use to it."""
    hold = {"onFailure": on_failure}
    working = {"jobs": (job(bundle_of("a")),)}
    before = {**bundle_json("0123456789ab-default"), "fingerprint": fingerprint_of("a")}
    gone = plan(
        a_cache(pending("a"), hold=hold), OLD, HELD.given("0123456789ab-default"), **working
    )
    assert released(gone) == ["a-1"] and [one.cause for one in gone.released] == ["Outdated"]
    there = plan(
        a_cache(pending("a"), before, hold=hold), OLD, HELD.given("0123456789ab-default"), **working
    )
    assert [one.cause for one in there.released] == ["Sealed"]
    own = plan(a_cache(pending("a"), hold=hold), OLD, HELD.given(bundle_of("a")), **working)
    assert not released(own)


def test_a_source_that_is_broken_under_a_hold_lets_go() -> None:
    broken = Refused(
        "SourceNotFound", "spec.source.workloadRef: Deployment inference/qwen3 is not there"
    )
    made = plan(a_cache(pending("a")), OLD, HELD, source=broken, jobs=(job(bundle_of("a")),))
    assert released(made) == ["a-1"]


@pytest.mark.parametrize(
    "the_claim",
    [claim("Lost"), claim("Pending"), claim(deletionTimestamp=format_timestamp(NOW))],
    ids=["lost", "pending", "going"],
)
def test_storage_that_is_ready_no_more_lets_go(the_claim: Object) -> None:
    made = plan(a_cache(pending("a")), OLD, HELD, claim=the_claim, jobs=(job(bundle_of("a")),))
    assert released(made) == ["a-1"]


def test_a_cache_that_is_deleted_lets_everybody_go() -> None:
    dying = a_cache(pending("a"), hold={"onFailure": "Keep"})
    dying["metadata"]["deletionTimestamp"] = format_timestamp(NOW)
    made = plan(dying, OLD, HELD)
    assert released(made) == ["a-1"] and made.requeue_after == LET_GO
    gone = observed(None, held=(HELD,))
    assert released(decide(type(gone)(**{**vars(gone), "cache": None}), NOW)) == ["a-1"]


def test_holds_are_told_when_there_are_more() -> None:
    working = {"jobs": (job(bundle_of("a")),)}
    [event] = [
        one
        for one in plan(a_cache(pending("a")), OLD, HELD, **working).events
        if one.reason == "Held"
    ]
    assert bundle_of("a") in event.message and "1 pod" in event.message and not event.warning
    told = {"consumers": {**NOBODY, "held": 1, "observedAt": format_timestamp(NOW)}}
    assert not [
        one
        for one in plan(a_cache(pending("a"), status=told), OLD, HELD, **working).events
        if one.reason == "Held"
    ]


# --- what is counted


def counts(the_plan: Plan) -> dict[str, Any]:
    assert the_plan.status is not None
    return {name: one for name, one in the_plan.status["consumers"].items() if name != "observedAt"}


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
def test_a_consumer_is_counted_as_what_it_is(pod: Consumer, expected: dict[str, int]) -> None:
    hold = {"when": "Always"}
    assert counts(plan(a_cache(pending("a"), hold=hold), pod, jobs=(job(bundle_of("a")),))) == {
        **NOBODY,
        **expected,
    }


def test_a_pod_whose_image_is_not_the_bundles_is_stale() -> None:
    made = {**sealed("a"), "engineImage": "registry/vllm@sha256:aa"}
    same = (
        Consumer("a", 1).given(made["id"]).runs("docker-pullable://mirror/vllm@sha256:aa").seeded()
    )
    moved = Consumer("a", 2).given(made["id"]).runs("registry/vllm@sha256:bb").seeded()
    unknown = Consumer("a", 3).given(made["id"]).runs("").seeded()
    assert counts(plan(a_cache(made), same, moved, unknown)) == {**NOBODY, "seeded": 3, "stale": 1}


def test_a_pod_that_nothing_could_be_given_is_not_cold() -> None:
    assert counts(plan(a_cache({**sealed("a"), "layout": "Empty"}), Consumer("a").runs())) == NOBODY


def test_counts_are_written_every_ten_seconds_at_most() -> None:
    before = {**NOBODY, "observedAt": format_timestamp(NOW - 4)}
    made = plan(
        a_cache(sealed("a"), status={"consumers": before}),
        Consumer("a").given("x").ready().seeded(),
    )
    assert made.status is not None and made.status["consumers"] == before
    assert made.requeue_after is not None and made.requeue_after <= COUNTS_INTERVAL_SECONDS - 4
    later = plan(
        a_cache(sealed("a"), status={"consumers": before}),
        Consumer("a").given("x").ready().seeded(),
        now=NOW + 6,
    )
    assert counts(later) == {**NOBODY, "seeded": 1, "ready": 1}
    same = plan(a_cache(sealed("a"), status={"consumers": before}), now=NOW + 3600)
    assert (
        same.status is not None and same.status["consumers"] == before
    )  # nothing to say: nothing is written


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
def test_a_record_says_whether_pods_of_it_run_and_serve(
    pod: Consumer, flags: dict[str, bool]
) -> None:
    before = {**sealed("a"), "running": True, "serving": True}
    made = plan(a_cache(before), pod)
    assert made.status is not None
    [found] = made.status["bundles"]
    assert {name: found[name] for name in ("running", "serving") if name in found} == flags
