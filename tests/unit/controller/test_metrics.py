"""What Prometheus scrapes: an attempt's end once, a cache's series while it exists, and no metric without help and a line in the docs."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretune.controller.reconcile
import pytest
from pretune import metrics_base
from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller.metrics import CONSUMER_STATES, ControllerMetrics
from pretune.kube.types import ApiError, Event
from pretune.manifests.gate import release_patch
from pretune.metrics_base import Metrics
from pretune.policy.hold.release import RELEASE_RULES
from pretune.policy.model import Delete, EndedAttempt, Observed, Patch, Plan, Released
from pretune.webhook.metrics import WebhookMetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.observed import observed
from tests.sim.cluster import Client, Clock, Server

DOCUMENT = Path(__file__).parents[3] / "docs/metrics.md"
HERE = {"namespace": KEY.namespace, "cache": KEY.name}
BUNDLE = "b-default"


def text_of(metrics: Metrics) -> str:
    return asyncio.run(metrics.expose()).decode()


def samples(metrics: Metrics, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The samples of that name in the text that is served, by their labels."""
    families = text_string_to_metric_families(text_of(metrics))
    return {
        tuple(sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
        if one.name == name
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics, name).get(tuple(sorted(labels.items())))


def reconciled(metrics: ControllerMetrics, *ended: EndedAttempt, **status: Any) -> None:
    """Count one reconcile, in which these attempts ended and this status was written."""
    metrics.count_status(observed(), Plan(status={"bundles": [], **status}, ended=ended))


def sealed(**more: Any) -> Object:
    return bundle_json(BUNDLE, tunedSeconds=900, **more)


def failed(reason: str = "EngineFailed") -> Object:
    last = {"attempt": 1, "at": format_timestamp(NOW), "reason": reason, "message": "m"}
    return bundle_json(BUNDLE, names.PENDING, attempts=1, lastFailure=last)


SEAL = EndedAttempt(BUNDLE, "Sealed", 900 * 4, 900)
FAILURE = EndedAttempt(BUNDLE, "EngineFailed", 120)


def attempts(metrics: ControllerMetrics) -> dict[str, float]:
    return {
        dict(labels)["reason"]: number
        for labels, number in samples(metrics, "pretune_attempts_total").items()
    }


# --- attempts: which of them end is decided in policy (tests/unit/policy/bundles/test_ended.py)


def test_a_sealed_attempt_counts_with_its_times_however_often_it_is_reconciled() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, SEAL, bundles=[sealed()])
    for _ in range(3):
        reconciled(metrics, bundles=[sealed(message="other words")])
    assert attempts(metrics) == {"Sealed": 1}
    assert value(metrics, "pretune_tuning_seconds_sum") == 900
    assert value(metrics, "pretune_tuning_seconds_count") == 1
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 900 * 4


def test_each_other_end_counts_by_its_reason_and_took_no_time_to_tune() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, FAILURE)
    reconciled(metrics, EndedAttempt(BUNDLE, "Timeout", 80), EndedAttempt("c-b200", "Found", 8))
    reconciled(metrics, EndedAttempt(BUNDLE, "Proven", 400))
    assert attempts(metrics) == {"EngineFailed": 1, "Timeout": 1, "Found": 1, "Proven": 1}
    assert value(metrics, "pretune_tuning_seconds_count") == 0
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 608


def test_gpu_seconds_are_counted_by_what_became_of_them() -> None:
    metrics = ControllerMetrics()
    ended = (
        EndedAttempt(BUNDLE, "Sealed", 900, 9, "sealed"),
        FAILURE,
        EndedAttempt(BUNDLE, "Proven", 40, result="proof"),
    )
    plan = Plan(status={"bundles": []}, ended=ended, lost_gpu_seconds=7.0)
    metrics.count_status(observed(), plan)
    found = samples(metrics, "pretune_spent_gpu_seconds_total")
    assert {dict(labels)["result"]: number for labels, number in found.items()} == {
        "sealed": 900,
        "failed": 120,
        "proof": 40,
        "lost": 7,
    }
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 900 + 120 + 40 + 7


# --- a cache's series


def test_a_caches_bundles_and_consumers_are_counted_as_its_status_has_them() -> None:
    metrics = ControllerMetrics()
    consumers = {"seeded": 6, "cold": 1, "held": 2, "stale": 0, "ready": 5}
    reconciled(metrics, bundles=[sealed()], consumers=consumers)
    assert {
        dict(labels)["state"]: number
        for labels, number in samples(metrics, "pretune_bundles").items()
    } == {
        **dict.fromkeys(names.STATES, 0.0),
        "Sealed": 1.0,
    }
    assert {
        dict(labels)["state"]: number
        for labels, number in samples(metrics, "pretune_consumers").items()
    } == consumers
    assert value(metrics, "pretune_held_pods", **HERE) == 2
    reconciled(metrics)
    assert value(metrics, "pretune_bundles", state="Sealed", **HERE) == 0
    assert value(metrics, "pretune_held_pods", **HERE) == 0


def test_a_cache_that_is_deleted_leaves_no_series() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, FAILURE, bundles=[failed()], consumers=dict.fromkeys(CONSUMER_STATES, 1))
    assert KEY.name in text_of(metrics)
    gone = Observed(KEY, observed().settings, "", None)
    for _ in range(2):
        metrics.count_status(gone, Plan())
    text = text_of(metrics)
    assert KEY.name not in text and KEY.namespace not in text
    assert attempts(metrics) == {"EngineFailed": 1}  # what happened has happened


def test_a_cache_that_is_being_deleted_keeps_its_series_until_it_is_gone() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, bundles=[sealed()])
    metrics.count_status(observed(cache()), Plan())
    assert value(metrics, "pretune_bundles", state="Sealed", **HERE) == 1


# --- what a plan did


def test_releases_and_rescues_are_counted_of_what_was_carried_out() -> None:
    metrics = ControllerMetrics()
    target = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "n", "name": "p", "uid": "u"},
    }
    after = (
        Delete("delete Pod p", target),
        Delete("delete Job j", {**target, "kind": "Job"}),
        Patch("release Pod q", target, {}, strategic=True),
    )
    released = (Released("Sealed", 700.0), Released("Sealed", 10.0), Released("TimedOut", 3600.0))
    plan = Plan(after=after, released=released, events=(Event("Rescued", ""),))
    metrics.count_releases(plan)
    metrics.count_rescues(plan)
    assert value(metrics, "pretune_rescued_pods_total") == 1
    assert value(metrics, "pretune_hold_seconds_count", cause="Sealed") == 2
    assert value(metrics, "pretune_hold_seconds_sum", cause="Sealed") == 710
    assert value(metrics, "pretune_hold_seconds_bucket", cause="TimedOut", le="1800.0") == 0
    assert value(metrics, "pretune_hold_seconds_bucket", cause="TimedOut", le="3600.0") == 1


def test_a_reconcile_counts_when_its_status_is_written_and_what_it_did_when_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conflict, then a release that the API server refuses, then all goes well: one attempt, one hold."""
    metrics, world = ControllerMetrics(), Server(Clock(NOW))
    world.create(cache({"bundles": [bundle_json(BUNDLE, names.TUNING_STATE)]}))
    gate = {
        "metadata": {"namespace": KEY.namespace, "name": "p"},
        "spec": {"schedulingGates": [{"name": names.HOLD}]},
    }
    waiting = world.create({"apiVersion": "v1", "kind": "Pod", **gate})
    plan = Plan(
        status={"bundles": [failed()]},
        after=(Patch("release Pod p", waiting, release_patch(), strategic=True),),
        released=(Released("Failed", 60.0),),
    )
    reconciles: list[float] = []

    def decide(read: Observed, now: float) -> Plan:
        reconciles.append(now)
        if len(reconciles) == 1:  # somebody else writes after our read
            meta = {"namespace": KEY.namespace, "name": KEY.name}
            ref = {"apiVersion": "pretune.dev/v1alpha1", "kind": "AutotuneCache", "metadata": meta}
            world.patch(ref, {"spec": {"revision": "2"}})
        assert read.cache is not None
        is_recorded = read.cache.get("status") == plan.status
        return plan if is_recorded else replace(plan, ended=(FAILURE,))

    def admit(verb: str, obj: Object) -> None:
        if obj["kind"] == "Pod" and len(reconciles) == 2:
            raise ApiError(500, "InternalError", "webhook failed")

    world.admission.append(admit)
    monkeypatch.setattr(pretune.controller.reconcile, "decide", decide)

    def run() -> None:
        asyncio.run(
            pretune.controller.reconcile.reconcile(
                KEY, Client(world), SETTINGS, world.clock, metrics
            )
        )

    with pytest.raises(ApiError, match="webhook failed"):
        run()
    assert len(reconciles) == 2
    assert attempts(metrics) == {"EngineFailed": 1}
    assert value(metrics, "pretune_hold_seconds_count", cause="Failed") is None
    run()
    assert attempts(metrics) == {"EngineFailed": 1}
    assert value(metrics, "pretune_hold_seconds_count", cause="Failed") == 1


def test_a_reconcile_is_timed_however_it_ends() -> None:
    metrics = ControllerMetrics()

    async def well() -> float:
        await asyncio.sleep(0.011)
        return 5.0

    async def ill() -> float:
        raise OSError("gone")

    assert asyncio.run(metrics.time_reconcile(well())) == 5.0
    with pytest.raises(OSError, match="gone"):
        asyncio.run(metrics.time_reconcile(ill()))
    assert value(metrics, "pretune_reconcile_seconds_count") == 2
    assert value(metrics, "pretune_reconcile_seconds_bucket", le="0.01") == 1
    assert value(metrics, "pretune_reconcile_errors_total") == 1


def test_what_the_process_knows_is_computed_at_each_scrape() -> None:
    state = {"depth": 3, "stuck": 0.5, "leader": False}
    metrics = ControllerMetrics(
        lambda: state["depth"], lambda: state["stuck"], lambda: bool(state["leader"])
    )
    names = ("pretune_queue_depth", "pretune_queue_stuck_seconds", "pretune_leader")
    assert [value(metrics, name) for name in names] == [3, 0.5, 0]
    state |= {"depth": 0, "leader": True}
    assert [value(metrics, name) for name in names] == [0, 0.5, 1]
    assert samples(metrics, "process_resident_memory_bytes") and samples(metrics, "python_info")


def test_the_ten_namespaces_that_wait_longest_are_shown_by_name() -> None:
    waits = {f"n{number}": float(number) for number in range(12)}
    metrics, name = ControllerMetrics(waits=lambda: waits), "pretune_queue_oldest_wait_seconds"
    assert value(metrics, name, namespace="n11") == 11
    assert sorted(samples(metrics, name).values()) == list(range(2, 12))
    waits.clear()
    assert not samples(metrics, name)


def test_a_long_text_is_written_while_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(registry: Any) -> bytes:
        time.sleep(0.2)
        return b"text"

    async def story() -> int:
        text, turns = asyncio.create_task(ControllerMetrics().expose()), 0
        while not text.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert await text == b"text"
        return turns

    monkeypatch.setattr(metrics_base, "generate_latest", write)
    assert asyncio.run(story()) > 3


# --- starts


def test_starts_are_counted_by_what_their_logs_say_and_forgotten_with_their_cache() -> None:
    metrics = ControllerMetrics()
    for result in ("warm", "warm", "tuned"):
        metrics.count_start(KEY, result)
    metrics.count_read_failure("Forbidden")
    reconciled(
        metrics,
        bundles=[sealed()],
        consumers={"warm": 2, "partial": 0, "tuned": 1},
        gpuSecondsSaved=640,
    )
    assert value(metrics, "pretune_starts_total", **HERE, result="warm") == 2
    assert value(metrics, "pretune_consumers", **HERE, state="tuned") == 1
    assert value(metrics, "pretune_gpu_seconds_saved", **HERE) == 640
    assert value(metrics, "pretune_start_read_failures_total", reason="Forbidden") == 1
    metrics.count_status(Observed(KEY, SETTINGS, "pretune-agent-0", None), Plan())
    for name in ("pretune_starts_total", "pretune_consumers", "pretune_gpu_seconds_saved"):
        assert not samples(metrics, name)


def test_where_no_logs_are_read_nothing_is_exported_of_starts() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, bundles=[sealed()], consumers={"seeded": 2})
    assert value(metrics, "pretune_consumers", **HERE, state="warm") is None
    assert not samples(metrics, "pretune_gpu_seconds_saved")


def test_the_formula_of_what_was_saved_stands_in_its_help_text() -> None:
    assert "max(0, coldSeconds - warmSeconds)" in text_of(ControllerMetrics())


# --- the webhook


def test_admissions_are_counted_by_what_was_given_and_why() -> None:
    metrics = WebhookMetrics(lambda: NOW, lambda: True)
    for delivery, reason, took in [
        ("Overlay", "Given", 0.0004),
        ("Overlay", "Held", 0.003),
        ("None", "OverrideSet", 0.001),
        ("None", "Failed", 2.0),
    ]:
        metrics.record_answer(delivery, reason, took)
    assert value(metrics, "pretune_admissions_total", delivery="Overlay", reason="Held") == 1
    assert value(metrics, "pretune_admission_seconds_bucket", delivery="Overlay", le="0.0005") == 1
    assert value(metrics, "pretune_admission_seconds_count", delivery="None") == 2
    assert value(metrics, "pretune_admission_errors_total") == 1
    assert value(metrics, "pretune_certificate_expiry_timestamp_seconds") == NOW
    assert value(metrics, "pretune_controller_alive") == 1


# --- the document


def rows(text: str) -> set[tuple[str, str, tuple[str, ...]]]:
    """(name, kind, labels) of the document's tables."""
    found = re.findall(r"^\| `(pretune_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    return {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in found}


def declared(metrics: Metrics) -> dict[tuple[str, str, tuple[str, ...]], str]:
    """The same of the metrics themselves, and their help texts."""
    found = {}
    for (
        one
    ) in metrics.registry._collector_to_names:  # the metrics, whether they have samples or not
        if hasattr(one, "_labelnames"):
            ending = "_total" if one._type == "counter" else ""
            found[(f"{one._name}{ending}", one._type, tuple(one._labelnames))] = one._documentation
    return found


def test_every_metric_has_a_help_text_and_stands_in_the_document_with_kind_and_labels() -> None:
    controller, webhook = declared(ControllerMetrics()), declared(WebhookMetrics())
    assert len(controller) > 10 and len(webhook) >= 5
    assert all(
        text.endswith(".") and len(text) > 20 for text in [*controller.values(), *webhook.values()]
    )
    first, second = DOCUMENT.read_text().split("## Webhook")
    assert rows(first) == set(controller)
    assert rows(second) == set(webhook)


def test_what_a_rescue_is_has_the_same_words_in_the_metric_and_in_the_document() -> None:
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if "rescued_pods_total` |" in line]
    words = row.split("|")[4].strip().replace("`", "")
    assert f"# HELP pretune_rescued_pods_total {words}\n" in text_of(ControllerMetrics())


def test_the_document_names_every_value_of_a_label_that_is_ours() -> None:
    text = DOCUMENT.read_text()
    assert all(
        f"`{one}`" in text
        for one in (
            *names.STATES,
            *CONSUMER_STATES,
            "Found",
            "Superseded",
            "Skipped",
            "ReadOnly",
            "Overlay",
        )
    )
    assert {"Sealed", "TimedOut", "Failed"} <= {rule.cause for rule in RELEASE_RULES}


def test_the_text_holds_no_second_series_of_when_each_began() -> None:
    metrics = ControllerMetrics()
    reconciled(metrics, SEAL)
    assert "_created" not in text_of(metrics)
