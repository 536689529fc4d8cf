"""How consumers are counted, and which flags of a bundle's status they set."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.timestamps import format_timestamp
from pretune.policy.model import Plan
from pretune.policy.pods.consumers import COUNTS_INTERVAL_SECONDS

from tests.builders.constants import NOW
from tests.builders.consumers import (
    NO_CONSUMERS,
    cache_without_source,
    decide_on,
    pending,
    sealed,
)
from tests.builders.jobs import job
from tests.builders.observed import bundle_of
from tests.builders.pods import Consumer


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
