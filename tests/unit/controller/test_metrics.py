"""What Prometheus scrapes: an attempt's end once, a cache's series while it exists, and no metric without help and a line in the docs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pretune.controller.reconcile
import pytest
from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller.metrics import CONSUMER_STATES, ControllerMetrics
from pretune.kube.types import ApiError, Event
from pretune.manifests.gate import release_patch
from pretune.metrics_base import Metrics
from pretune.policy.hold.release import CHECKS
from pretune.policy.model import Delete, Observed, Patch, Plan, Released
from pretune.webhook.metrics import WebhookMetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.sim.cluster import Client, Clock, Server
from tests.unit.objects import ENGINE, KEY, NOW, SETTINGS, Pod, cache, record, sealed_report, seen

DOCUMENT = Path(__file__).parents[3] / "docs/metrics.md"
HERE = {"namespace": KEY.namespace, "cache": KEY.name}
BUNDLE = "b-default"


def samples(metrics: Metrics, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The samples of that name in the text that is served, by their labels."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        tuple(sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
        if one.name == name
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics, name).get(tuple(sorted(labels.items())))


def look(
    metrics: ControllerMetrics,
    before: Object | None,
    after: Object | None,
    *pods: Pod,
    now: float = NOW,
    **status: Any,
) -> None:
    """One run, which read a record as `before` and wrote it as `after`; None: there was none."""
    read = cache({"bundles": [before] if before else []})
    written = {"bundles": [after] if after else [], **status}
    metrics.count_status(
        seen(read, pods=tuple(one.object for one in pods)), Plan(status=written), now
    )


def tuning(attempts: int = 1, **more: Any) -> Object:
    return record(BUNDLE, names.TUNING_STATE, attempts=attempts, **more)


def sealed(**more: Any) -> Object:
    return record(BUNDLE, tunedSeconds=900, **more)


def failed(reason: str = "EngineFailed", attempt: int = 1, state: str = names.PENDING) -> Object:
    last = {"attempt": attempt, "at": format_timestamp(NOW), "reason": reason, "message": "m"}
    return record(BUNDLE, state, attempts=attempt, lastFailure=last)


def pod(number: int = 1, gpus: int = 4, started: float = NOW - 120) -> Pod:
    made = Pod(BUNDLE, number).but(status={"startTime": format_timestamp(started)})
    made.object["spec"]["initContainers"][-1]["resources"] = {
        "limits": {"nvidia.com/gpu": str(gpus)}
    }
    return made


def reported(number: int = 1, by: str = "seal") -> Pod:
    container = names.SEAL_CONTAINER if by == "seal" else names.CHECK_CONTAINER
    return pod(number).ended(container, report=sealed_report(BUNDLE, by))


def attempts(metrics: ControllerMetrics) -> dict[str, float]:
    return {
        dict(labels)["reason"]: number
        for labels, number in samples(metrics, "pretune_attempts_total").items()
    }


# --- attempts


def test_a_sealed_attempt_counts_once_however_often_it_is_reconciled() -> None:
    metrics = ControllerMetrics()
    look(metrics, tuning(), sealed(), reported())
    for _ in range(3):
        look(metrics, sealed(), sealed(message="other words"), reported())
    assert attempts(metrics) == {"Sealed": 1}
    assert value(metrics, "pretune_tuning_seconds_sum") == 900
    assert value(metrics, "pretune_tuning_seconds_count") == 1
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 900 * 4


def test_a_bundle_without_tactics_counts_as_such() -> None:
    metrics = ControllerMetrics()
    look(metrics, tuning(), sealed(reason="NothingToTune"), reported())
    assert attempts(metrics) == {"NothingToTune": 1}


def test_a_bundle_that_was_found_by_an_attempt_took_no_time_to_tune() -> None:
    """Check ends the attempt before the engine starts; the manifest's tunedSeconds are another attempt's."""
    metrics = ControllerMetrics()
    found = reported(by="check").but(
        status={"phase": "Succeeded", "startTime": format_timestamp(NOW - 7)}
    )
    look(metrics, tuning(), sealed(), found)
    assert attempts(metrics) == {"Found": 1}
    assert value(metrics, "pretune_tuning_seconds_count") == 0
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 2 * 4


@pytest.mark.parametrize(
    ("case", "before"),
    [
        ("adopted by inspect", record(BUNDLE, names.PENDING, attempts=0)),
        ("never seen before", None),
        ("wanted again", record(BUNDLE, names.RETIRED)),
    ],
)
def test_a_bundle_that_no_attempt_of_this_run_made_is_no_attempt(
    case: str, before: Object | None
) -> None:
    metrics = ControllerMetrics()
    lingering = [reported(1)] if before and before["attempts"] else []
    look(metrics, before, sealed(attempts=before["attempts"] if before else 0), *lingering)
    assert attempts(metrics) == {}, case


def test_each_failed_attempt_counts_once_by_its_reason() -> None:
    metrics = ControllerMetrics()
    first, second = failed(), failed("Timeout", 2, names.FAILED)
    look(metrics, tuning(), first)
    look(metrics, first, first)
    look(metrics, first, {**first, "state": names.TUNING_STATE, "attempts": 2})
    look(metrics, {**first, "state": names.TUNING_STATE, "attempts": 2}, second)
    look(metrics, second, second)
    assert attempts(metrics) == {"EngineFailed": 1, "Timeout": 1}
    assert value(metrics, "pretune_tuning_seconds_count") == 0


@pytest.mark.parametrize(
    ("case", "pods", "spent"),
    [
        ("it still runs", [pod(started=NOW - 120)], 120 * 4),
        (
            "it has ended",
            [pod(started=NOW - 120).ended(ENGINE, 1).but(status={"phase": "Failed"})],
            115 * 4,
        ),
        (
            "a container of it has ended",
            [pod(started=NOW - 120).ended(names.CHECK_CONTAINER)],
            120 * 4,
        ),
        ("it never had a node", [Pod(BUNDLE)], 0),
        ("its pod is gone", [], 0),
        ("another attempt's pod", [pod(number=2)], 0),
        ("evicted, and made again", [pod(started=NOW - 120), pod(started=NOW - 20)], 140 * 4),
    ],
)
def test_a_failed_attempt_took_its_pods_gpus_from_start_to_end(
    case: str, pods: list[Pod], spent: float
) -> None:
    metrics = ControllerMetrics()
    look(metrics, tuning(), failed(), *pods)
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == spent, case


@pytest.mark.parametrize(
    ("case", "before", "after", "expected"),
    [
        (
            "nothing wants it any more",
            tuning(),
            record(BUNDLE, names.PENDING, reason="Superseded"),
            True,
        ),
        ("its record goes then", record(BUNDLE, names.PENDING, reason="Superseded"), None, False),
        ("its record goes at once", tuning(), None, True),
        (
            "its place has changed",
            tuning(),
            record(BUNDLE, names.PENDING, attempts=0, reason="Inspecting"),
            True,
        ),
        ("it was sealed long ago", sealed(), None, False),
        ("it had failed", failed(), None, False),
        ("it goes on", tuning(), tuning(message="later"), False),
        ("none was started", record(BUNDLE, names.PENDING, attempts=0), None, False),
    ],
)
def test_an_attempt_that_is_given_up_counts_once(
    case: str, before: Object, after: Object | None, expected: bool
) -> None:
    metrics = ControllerMetrics()
    look(metrics, before, after, pod(started=NOW - 60))
    assert attempts(metrics) == ({"Superseded": 1} if expected else {}), case
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == (240 if expected else 0)


def test_a_foreign_pod_with_the_label_of_a_tuning_pod_breaks_nothing() -> None:
    metrics = ControllerMetrics()
    stranger = pod()
    stranger.object["spec"] = {"containers": []}
    look(metrics, tuning(), failed(), stranger)
    assert value(metrics, "pretune_tuning_gpu_seconds_total", **HERE) == 0


# --- a cache's series


def test_a_caches_bundles_and_consumers_are_counted_as_its_status_has_them() -> None:
    metrics = ControllerMetrics()
    consumers = {"seeded": 6, "cold": 1, "held": 2, "stale": 0, "ready": 5}
    look(metrics, None, sealed(), consumers=consumers)
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
    look(metrics, sealed(), None)
    assert value(metrics, "pretune_bundles", state="Sealed", **HERE) == 0
    assert value(metrics, "pretune_held_pods", **HERE) == 0


def test_a_cache_that_is_deleted_leaves_no_series() -> None:
    metrics = ControllerMetrics()
    look(metrics, tuning(), failed(), consumers=dict.fromkeys(CONSUMER_STATES, 1))
    assert KEY.name in metrics.exposition().decode()
    gone = Observed(KEY, seen().settings, "", None)
    for _ in range(2):
        metrics.count_status(gone, Plan(), NOW)
    text = metrics.exposition().decode()
    assert KEY.name not in text and KEY.namespace not in text
    assert attempts(metrics) == {"EngineFailed": 1}  # what happened has happened


def test_a_cache_that_is_being_deleted_keeps_its_series_until_it_is_gone() -> None:
    metrics = ControllerMetrics()
    look(metrics, None, sealed())
    metrics.count_status(seen(cache()), Plan(), NOW)
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
    world.create(cache({"bundles": [tuning()]}))
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
        return plan

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


async def test_a_reconcile_is_timed_however_it_ends() -> None:
    metrics = ControllerMetrics()

    async def well() -> float:
        await asyncio.sleep(0.011)
        return 5.0

    async def ill() -> float:
        raise OSError("gone")

    assert await metrics.time_reconcile(well()) == 5.0
    with pytest.raises(OSError, match="gone"):
        await metrics.time_reconcile(ill())
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


# --- starts


def test_starts_are_counted_by_what_their_logs_say_and_forgotten_with_their_cache() -> None:
    metrics = ControllerMetrics()
    for result in ("warm", "warm", "tuned"):
        metrics.count_start(KEY, result)
    metrics.count_read_failure("Forbidden")
    look(
        metrics,
        None,
        sealed(),
        consumers={"warm": 2, "partial": 0, "tuned": 1},
        gpuSecondsSaved=640,
    )
    assert value(metrics, "pretune_starts_total", **HERE, result="warm") == 2
    assert value(metrics, "pretune_consumers", **HERE, state="tuned") == 1
    assert value(metrics, "pretune_gpu_seconds_saved", **HERE) == 640
    assert value(metrics, "pretune_start_read_failures_total", reason="Forbidden") == 1
    metrics.count_status(Observed(KEY, SETTINGS, "pretune-agent-0", None), Plan(), NOW)
    for name in ("pretune_starts_total", "pretune_consumers", "pretune_gpu_seconds_saved"):
        assert not samples(metrics, name)


def test_where_no_logs_are_read_nothing_is_exported_of_starts() -> None:
    metrics = ControllerMetrics()
    look(metrics, None, sealed(), consumers={"seeded": 2})
    assert value(metrics, "pretune_consumers", **HERE, state="warm") is None
    assert not samples(metrics, "pretune_gpu_seconds_saved")


def test_the_formula_of_what_was_saved_stands_in_its_help_text() -> None:
    assert "max(0, coldSeconds - warmSeconds)" in ControllerMetrics().exposition().decode()


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
    assert {"Sealed", "TimedOut", "Failed"} <= {cause for cause, _, _ in CHECKS}


def test_the_text_holds_no_second_series_of_when_each_began() -> None:
    metrics = ControllerMetrics()
    look(metrics, tuning(), sealed(), reported())
    assert "_created" not in metrics.exposition().decode()
