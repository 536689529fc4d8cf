"""Starts of consumers' engines: which logs are read, how many were warm, what is reported."""

from __future__ import annotations

import time

import pytest
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, UNKNOWN, WARM, LogSummary
from pretune.policy.model import StartObservation

from tests.builders.constants import ENGINE, NOW
from tests.builders.observed import origin
from tests.builders.pods import Consumer
from tests.builders.starts import (
    ALL_TUNED,
    BUNDLE,
    FOUR_PODS,
    READY_POD,
    cache_with_bundle,
    decide_on,
    numbered_pod,
    pod_with_report,
    retuned_messages,
    start_counts,
    start_key,
    start_logs_of,
    with_counts,
)
from tests.builders.templates import serving_template

# --- whose log is read


def test_the_log_of_each_ready_consumer_that_was_given_a_bundle_is_worth_reading() -> None:
    [start] = decide_on(READY_POD, starts={}).starts
    assert (start.pod, start.uid, start.container) == ("a-1", "uid-a-1", ENGINE)
    assert (start.began, start.ready, start.key) == (NOW - 30, NOW - 30, start_key(READY_POD))


@pytest.mark.parametrize(
    "pod",
    [
        Consumer("a").ready(),
        READY_POD.ready("False"),
        Consumer("a").runs().given(BUNDLE).seeded(),
        READY_POD.given(BUNDLE, "None"),
        READY_POD.meta(deletionTimestamp=format_timestamp(NOW)),
        READY_POD.runs(waiting={"reason": "CrashLoopBackOff"}),
    ],
    ids=[
        "given nothing",
        "not ready",
        "no condition",
        "delivered nothing",
        "ending",
        "between two starts",
    ],
)
def test_no_other_log_is_read(pod: Consumer) -> None:
    assert decide_on(pod, starts={}).starts == ()


def test_without_the_right_to_read_logs_nothing_is_read_or_counted() -> None:
    plan = decide_on(READY_POD)
    assert plan.starts == () and start_counts(plan) == {}


@pytest.mark.parametrize(
    ("probe", "probed"), [({}, False), ({"readinessProbe": {}}, True), ({"startupProbe": {}}, True)]
)
def test_a_pod_without_a_probe_may_be_ready_before_its_engine(probe: Object, probed: bool) -> None:
    of = origin("a", of=serving_template(image="vllm:a", **probe))
    assert [start.probed for start in decide_on(READY_POD, starts={}, of=of).starts] == [probed]


# --- how many were warm

START_LOGS = start_logs_of(
    (FOUR_PODS[0], WARM), (FOUR_PODS[1], WARM), (FOUR_PODS[2], PARTIAL), (FOUR_PODS[3], TUNED)
)


def test_starts_are_counted_by_result_and_unknown_ones_are_not() -> None:
    assert start_counts(decide_on(*FOUR_PODS, starts=START_LOGS)) == {WARM: 2, PARTIAL: 1, TUNED: 1}
    unknown = {**START_LOGS, **start_logs_of((FOUR_PODS[3], UNKNOWN))}
    assert start_counts(decide_on(*FOUR_PODS, starts=unknown)) == {WARM: 2, PARTIAL: 1, TUNED: 0}
    assert start_counts(decide_on(starts={})) == {WARM: 0, PARTIAL: 0, TUNED: 0}


def test_while_a_result_is_to_come_the_counts_stay() -> None:
    before = with_counts(warm=3, partial=0, tuned=0)
    assert start_counts(decide_on(*FOUR_PODS, starts={}, the_cache=cache_with_bundle(before))) == {
        WARM: 3,
        PARTIAL: 0,
        TUNED: 0,
    }
    assert start_counts(decide_on(*FOUR_PODS, starts={})) == {}
    assert not decide_on(*FOUR_PODS, starts={}, the_cache=cache_with_bundle(before)).events


def test_once_logs_are_not_read_any_more_their_counts_are_gone() -> None:
    before = with_counts(warm=4, partial=0, tuned=0)
    assert start_counts(decide_on(*FOUR_PODS, the_cache=cache_with_bundle(before))) == {}


def test_the_same_results_write_no_new_status() -> None:
    before = with_counts(warm=2, partial=1, tuned=1)
    plan = decide_on(*FOUR_PODS, starts=START_LOGS, the_cache=cache_with_bundle(before))
    assert plan.status is not None and plan.status["consumers"] == before["consumers"]


# --- when an event reports a second tuning


def test_pods_that_tuned_with_their_bundle_are_reported_once_by_bundle_and_cause() -> None:
    starts = start_logs_of(*((pod, ALL_TUNED) for pod in FOUR_PODS))
    [message] = retuned_messages(decide_on(*FOUR_PODS, starts=starts))
    assert message.startswith(
        f"bundle {BUNDLE}: pods a-0, a-1, a-2 and 1 more had it and tuned all of it again"
    )
    reported = cache_with_bundle(with_counts(warm=0, partial=0, tuned=4))
    assert not retuned_messages(decide_on(*FOUR_PODS, starts=starts, the_cache=reported))
    assert (
        len(
            retuned_messages(
                decide_on(
                    *FOUR_PODS,
                    starts=starts,
                    the_cache=cache_with_bundle(with_counts(warm=1, partial=0, tuned=3)),
                )
            )
        )
        == 1
    )


@pytest.mark.parametrize("reason", ["NoBundle", "NotProven"])
def test_pods_for_which_there_was_no_bundle_yet_were_promised_nothing(reason: str) -> None:
    pod = pod_with_report(reason)
    plan = decide_on(pod, starts=start_logs_of((pod, ALL_TUNED)))
    assert start_counts(plan)[TUNED] == 1 and not retuned_messages(plan)


def test_three_thousand_start_logs_take_less_than_a_second() -> None:
    pods = [numbered_pod(number) for number in range(3000)]
    starts = start_logs_of(
        *(
            (pod, ALL_TUNED if index % 2 else LogSummary(WARM, folders=("d" * 64,)))
            for index, pod in enumerate(pods)
        )
    )
    without, with_ = (_time(*pods, starts=logs) for logs in (None, starts))
    assert with_ - without < 1.0


def _time(*pods: Consumer, starts: dict[str, StartObservation] | None) -> float:
    began = time.process_time()
    decide_on(*pods, starts=starts, the_cache=cache_with_bundle(proven=True))
    return time.process_time() - began
