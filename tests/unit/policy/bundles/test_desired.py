"""Which bundles the consumers and the source of a cache need."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.start_rules import ROLLOUT_SECONDS
from pretune.policy.bundles.tuning import UNWANTED_SECONDS
from pretune.protocol import Report

from tests.builders.caches import bundle_json
from tests.builders.constants import NOW
from tests.builders.consumers import (
    NEW,
    OLD,
    cache_without_source,
    condition,
    decide_on,
    jobs,
    pending,
    queue,
    released,
    sealed,
)
from tests.builders.jobs import job
from tests.builders.observed import bundle_of, origin
from tests.builders.pods import AttemptPod, Consumer
from tests.builders.templates import serving_template


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


def test_pods_that_cannot_run_on_a_targets_nodes_need_no_bundle_of_it() -> None:
    targets = [{"name": name, "nodeSelector": {"gpu": name}} for name in ("a", "b")]
    of_b = serving_template()
    of_b["spec"]["nodeSelector"] = {"gpu": "b"}
    plan = decide_on(cache_without_source(targets=targets), NEW, origins=origin("a", of=of_b))
    assert [bundle.partition("-")[2] for bundle in jobs(plan)] == ["b"]
    only_a = cache_without_source(targets=targets[:1])
    plan = decide_on(only_a, NEW, origins=origin("a", of=of_b))
    assert jobs(plan) == []
    stalled = condition(plan, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "SourceInvalid")
    assert "spec.targets[].nodeSelector" in stalled["message"]
