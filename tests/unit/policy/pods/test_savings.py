"""The GPU-seconds that proven bundles saved."""

from __future__ import annotations

import copy

import pytest
from hypothesis import strategies as st
from pretune.api.status import BundleStatus
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, UNKNOWN, WARM, LogSummary
from pretune.policy.model import Plan, StartObservation
from pretune.policy.pods.savings import OBSERVATION_DELAY_SECONDS, savings_per_start

from tests.builders.constants import ENGINE, NOW
from tests.builders.pods import Consumer
from tests.builders.starts import (
    BUNDLE,
    READY_POD,
    cache_with_bundle,
    decide_on,
    numbered_pod,
    pod_with_report,
)
from tests.builders.strategies import law

PROVEN = {"proven": True, "gpus": 1, "coldSeconds": 100, "warmSeconds": 20}


def started_pod(number: int, began: float, ready: float) -> Consumer:
    return numbered_pod(number, READY_POD.ready(since=ready)).but(
        containerStatuses=[
            {
                "name": ENGINE,
                "imageID": "",
                "state": {"running": {"startedAt": format_timestamp(began)}},
            }
        ]
    )


def savings_in(plan: Plan) -> tuple[int | None, str | None]:
    assert plan.status is not None
    return plan.status.get("gpuSecondsSaved"), plan.status.get("savedUntil")


LONG_AGO = NOW - 1000


def test_a_start_with_a_proven_bundle_saves_its_gpus_times_what_it_was_faster() -> None:
    pods = [started_pod(number, LONG_AGO, LONG_AGO + 25) for number in range(3)]
    until = format_timestamp(NOW - 100 - OBSERVATION_DELAY_SECONDS)
    assert savings_in(decide_on(*pods, the_cache=cache_with_bundle(**PROVEN))) == (3 * 80, until)
    again = cache_with_bundle({"gpuSecondsSaved": 240, "savedUntil": until}, **PROVEN)
    assert savings_in(decide_on(*pods, the_cache=again, now=NOW + 500)) == (240, until)


@pytest.mark.parametrize(
    "of_record",
    [
        {},
        {**PROVEN, "proven": False},
        *(
            {name: value for name, value in PROVEN.items() if name != gone}
            for gone in ("proven", "coldSeconds", "warmSeconds")
        ),
    ],
)
def test_bundles_without_a_proof_or_its_figures_save_nothing(of_record: Object) -> None:
    plan = decide_on(
        started_pod(1, LONG_AGO, LONG_AGO + 25), the_cache=cache_with_bundle(**of_record)
    )
    assert savings_in(plan) == (None, None)


@pytest.mark.parametrize(
    "pod",
    [
        started_pod(1, LONG_AGO, LONG_AGO + 101),
        pod_with_report("NoSpace"),
        started_pod(1, LONG_AGO, LONG_AGO + 25).meta(annotations={}),
        started_pod(1, LONG_AGO, LONG_AGO + 25).ready("False"),
    ],
    ids=["ready later than a cold start", "not seeded", "given nothing", "not ready"],
)
def test_other_starts_save_nothing(pod: Consumer) -> None:
    assert savings_in(decide_on(pod, the_cache=cache_with_bundle(**PROVEN))) == (None, None)


@pytest.mark.parametrize(
    ("result", "counts"), [(TUNED, 0), (PARTIAL, 0), (WARM, 1), (UNKNOWN, 1), (None, 1)]
)
def test_a_start_that_tuned_by_its_log_saved_nothing(result: str | None, counts: int) -> None:
    pod, other = started_pod(1, LONG_AGO, LONG_AGO + 25), started_pod(2, LONG_AGO, LONG_AGO + 25)
    logs = {f"uid-2/{format_timestamp(LONG_AGO)}": StartObservation(LogSummary(WARM))}
    if result:
        logs[f"uid-1/{format_timestamp(LONG_AGO)}"] = StartObservation(LogSummary(result))
    assert savings_in(decide_on(pod, other, starts=logs, the_cache=cache_with_bundle(**PROVEN)))[
        0
    ] == 80 * (1 + counts)


def test_each_gpu_counts() -> None:
    assert savings_per_start(BundleStatus.from_dict({"id": BUNDLE, **PROVEN, "gpus": 8})) == (
        640,
        100.0,
    )
    assert savings_per_start(BundleStatus.from_dict({"id": BUNDLE, **PROVEN, "gpus": 0})) is None


def test_a_slower_warm_start_takes_nothing_back() -> None:
    plan = decide_on(
        started_pod(1, LONG_AGO, LONG_AGO + 25),
        the_cache=cache_with_bundle(**{**PROVEN, "warmSeconds": 130}),
    )
    assert savings_in(plan)[0] == 0


def test_a_start_that_may_still_flip_is_counted_after_its_time() -> None:
    plan = decide_on(started_pod(1, NOW - 50, NOW - 25), the_cache=cache_with_bundle(**PROVEN))
    assert savings_in(plan) == (None, None)
    assert plan.requeue_after is not None and 60 <= plan.requeue_after <= 62


STARTS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 3000),
        st.integers(1, 140),
        st.lists(st.integers(1, 300), max_size=3),
    ),
    max_size=12,
)  # pod, when its engine starts, how long it takes, when it flips after that


@law(
    STARTS,
    st.lists(st.integers(0, 4000), max_size=40),
    st.lists(st.integers(0, 30), max_size=40),
    st.integers(1, 120),
)
def test_however_often_decide_runs_each_start_is_counted_at_most_once(
    happened: list[tuple[int, int, int, list[int]]], looks: list[int], losses: list[int], cold: int
) -> None:
    """Only the status is remembered, so a restart changes nothing.

    losses: numbers of reconciles whose status was not written.
    """
    status: Object = {}
    of_record = {**PROVEN, "coldSeconds": cold, "warmSeconds": 0}
    begun: dict[int, list[tuple[int, int, list[int]]]] = {}
    for pod, began, took, flips in sorted(happened):
        begun.setdefault(pod, []).append((began, took, flips))
    total = 0
    for index, look in enumerate(sorted(looks)):
        pods = []
        for number, its in begun.items():
            if its_past := [start for start in its if start[0] <= look]:
                began, took, flips = its_past[-1]
                turns = [began + took + sum(flips[:at]) for at in range(len(flips) + 1)]
                if past := [turn for turn in turns if turn <= look]:
                    pods.append(started_pod(number, NOW + began, NOW + past[-1]))
        plan = decide_on(
            *pods, the_cache=cache_with_bundle(copy.deepcopy(status), **of_record), now=NOW + look
        ).status
        assert plan is not None
        if index not in losses:
            status = {
                name: plan[name] for name in ("gpuSecondsSaved", "savedUntil") if name in plan
            }
            assert status.get("gpuSecondsSaved", 0) >= total
            total = status.get("gpuSecondsSaved", 0)
            assert parse_timestamp(status.get("savedUntil", format_timestamp(NOW))) <= NOW + look
    in_time = {(pod, began) for pod, began, took, _ in happened if took <= cold}
    assert total <= cold * len(in_time)


def test_each_start_is_counted_if_reconciles_are_frequent() -> None:
    status: Object = {}
    for look in range(0, 2000, 7):
        pods = [
            started_pod(number, NOW + 100 * number, NOW + 100 * number + 30)
            for number in range(6)
            if 100 * number + 30 <= look
        ]
        plan = decide_on(
            *pods, the_cache=cache_with_bundle(status, **PROVEN), now=NOW + look
        ).status
        assert plan is not None
        status = {name: plan[name] for name in ("gpuSecondsSaved", "savedUntil") if name in plan}
    assert status["gpuSecondsSaved"] == 6 * 80
