"""Starts of serving pods' engines: which logs are worth reading, what is counted of them, why one tuned again, and what was saved."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.status import BundleStatus
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, UNKNOWN, WARM, Difference, LogSummary
from pretune.policy.decide import decide
from pretune.policy.model import Plan, StartObservation
from pretune.policy.pods.retune_causes import find_differences
from pretune.policy.pods.savings import OBSERVATION_DELAY_SECONDS, savings_per_start
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import ENGINE, NOW
from tests.builders.observed import bundle_of, fingerprint_of, observed, origin
from tests.builders.pods import Consumer
from tests.builders.strategies import law
from tests.builders.templates import serving_template

BUNDLE = bundle_of("a")
GIVEN = Consumer("a").ready().given(BUNDLE).seeded()


def numbered(number: int, of: Consumer = GIVEN) -> Consumer:
    return of.meta(name=f"a-{number}", uid=f"uid-{number}")


def a_cache(status: Object | None = None, **more: Any) -> Object:
    known = bundle_json(
        BUNDLE,
        fingerprint=fingerprint_of("a"),
        sealedAt=format_timestamp(NOW - 3600),
        layout="PerRank",
        entries=21,
        **more,
    )
    return cache(
        {"storage": {"claimUID": "claim-uid"}, "bundles": [known], **(status or {})}, source=None
    )


def plan(
    *pods: Consumer,
    starts: dict[str, StartObservation] | None = None,
    the_cache: Object | None = None,
    now: float = NOW,
    of: dict[str, Any] | None = None,
) -> Plan:
    consumers = tuple(pods)
    made = observed(
        the_cache or a_cache(), consumers=consumers, origins=of or origin("a"), start_logs=starts
    )
    return decide(made, now)


def key(pod: Consumer) -> str:
    return f"{pod['metadata']['uid']}/{format_timestamp(NOW - 30)}"


def told(
    *pods: tuple[Consumer, LogSummary | str], differs: tuple[str, ...] = ()
) -> dict[str, StartObservation]:
    return {
        key(pod): StartObservation(
            said if isinstance(said, LogSummary) else LogSummary(said), differs
        )
        for pod, said in pods
    }


def counted(the_plan: Plan) -> dict[str, int]:
    assert the_plan.status is not None
    return {
        name: one
        for name, one in the_plan.status["consumers"].items()
        if name in (WARM, PARTIAL, TUNED)
    }


def events(the_plan: Plan) -> list[str]:
    return [one.message for one in the_plan.events if one.reason == "TunedAgain"]


# --- whose log is read


def test_the_log_of_each_ready_consumer_that_was_given_a_bundle_is_worth_reading() -> None:
    [start] = plan(GIVEN, starts={}).starts
    assert (start.pod, start.uid, start.container) == ("a-1", "uid-a-1", ENGINE)
    assert (start.began, start.ready, start.key) == (NOW - 30, NOW - 30, key(GIVEN))


@pytest.mark.parametrize(
    "pod",
    [
        Consumer("a").ready(),
        GIVEN.ready("False"),
        Consumer("a").runs().given(BUNDLE).seeded(),
        GIVEN.given(BUNDLE, "None"),
        GIVEN.meta(deletionTimestamp=format_timestamp(NOW)),
        GIVEN.runs(waiting={"reason": "CrashLoopBackOff"}),
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
def test_no_other_log_is(pod: Consumer) -> None:
    assert plan(pod, starts={}).starts == ()


def test_without_the_right_to_read_logs_nothing_is_read_or_counted() -> None:
    made = plan(GIVEN)
    assert made.starts == () and counted(made) == {}


@pytest.mark.parametrize(
    ("probe", "probed"), [({}, False), ({"readinessProbe": {}}, True), ({"startupProbe": {}}, True)]
)
def test_a_pod_without_a_probe_may_be_ready_before_its_engine(probe: Object, probed: bool) -> None:
    of = origin("a", of=serving_template(image="vllm:a", **probe))
    assert [one.probed for one in plan(GIVEN, starts={}, of=of).starts] == [probed]


# --- how many were warm

FOUR = [numbered(number) for number in range(4)]
ANSWERS = told((FOUR[0], WARM), (FOUR[1], WARM), (FOUR[2], PARTIAL), (FOUR[3], TUNED))


def test_answers_are_counted_by_their_result_and_unknown_ones_are_not() -> None:
    assert counted(plan(*FOUR, starts=ANSWERS)) == {WARM: 2, PARTIAL: 1, TUNED: 1}
    unknown = {**ANSWERS, **told((FOUR[3], UNKNOWN))}
    assert counted(plan(*FOUR, starts=unknown)) == {WARM: 2, PARTIAL: 1, TUNED: 0}
    assert counted(plan(starts={})) == {WARM: 0, PARTIAL: 0, TUNED: 0}


def consumers(**numbers: int) -> Object:
    return {
        "consumers": {
            "seeded": 4,
            "cold": 0,
            "held": 0,
            "stale": 0,
            "ready": 4,
            "observedAt": format_timestamp(NOW - 60),
            **numbers,
        }
    }


def test_while_an_answer_is_to_come_what_was_counted_stays() -> None:
    before = consumers(warm=3, partial=0, tuned=0)
    assert counted(plan(*FOUR, starts={}, the_cache=a_cache(before))) == {
        WARM: 3,
        PARTIAL: 0,
        TUNED: 0,
    }
    assert counted(plan(*FOUR, starts={})) == {}
    assert not plan(*FOUR, starts={}, the_cache=a_cache(before)).events


def test_once_logs_are_not_read_any_more_what_they_told_is_gone() -> None:
    before = consumers(warm=4, partial=0, tuned=0)
    assert counted(plan(*FOUR, the_cache=a_cache(before))) == {}


def test_the_same_answers_write_no_new_status() -> None:
    before = consumers(warm=2, partial=1, tuned=1)
    made = plan(*FOUR, starts=ANSWERS, the_cache=a_cache(before))
    assert made.status is not None and made.status["consumers"] == before["consumers"]


# --- why one tuned again

ALL = LogSummary(TUNED, new=21, operations=("toy_gemm",), folders=("c" * 64,))


def test_pods_that_tuned_although_they_had_their_bundle_are_said_once_by_bundle_and_factor() -> (
    None
):
    starts = told(*((one, ALL) for one in FOUR))
    [message] = events(plan(*FOUR, starts=starts))
    assert message.startswith(
        f"bundle {BUNDLE}: pods a-0, a-1, a-2 and 1 more had it and tuned all of it again"
    )
    said = a_cache(consumers(warm=0, partial=0, tuned=4))
    assert not events(plan(*FOUR, starts=starts, the_cache=said))
    assert (
        len(
            events(
                plan(*FOUR, starts=starts, the_cache=a_cache(consumers(warm=1, partial=0, tuned=3)))
            )
        )
        == 1
    )


def why(
    said: LogSummary,
    pod: Consumer = GIVEN,
    of: dict[str, Any] | None = None,
    differs: tuple[str, ...] = (),
    **more: Any,
) -> str:
    [message] = events(
        plan(pod, starts=told((pod, said), differs=differs), of=of, the_cache=a_cache(**more))
    )
    return message


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference("gpu", "NVIDIA H200", "NVIDIA B200"), "GPU differs: the bundle has NVIDIA H200, the pod NVIDIA B200"),
        (Difference("flashinfer_version", "0.7.1", "0.7.2"), "FlashInfer version differs: the bundle has 0.7.1, the pod 0.7.2"),
        (Difference("cuda_version", "13.0", "13.1"), "cuda_version differs: the bundle has 13.0, the pod 13.1"),
    ],
)  # fmt: skip
def test_what_flashinfer_refused_is_the_factor(difference: Difference, words: str) -> None:
    assert words in why(LogSummary(TUNED, new=21, folders=("c" * 64,), differences=(difference,)))


def test_a_key_folder_that_the_bundle_lacks_is_the_factor_with_what_differs_in_the_pod() -> None:
    words = why(ALL, differs=("env VLLM_USE_DEEP_GEMM", "args --max-num-seqs"))
    assert (
        "key folder cccccccccccc…" in words
        and "env VLLM_USE_DEEP_GEMM, args --max-num-seqs" in words
    )
    reference = {
        "name": "SEQS",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['seqs']"}},
    }
    key_ref = {"name": "VLLM_X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    other = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "t"}}}
    written = serving_template(
        image="vllm:a", args=["serve", "--max-num-seqs", "$(SEQS)"], env=[reference, key_ref, other]
    )
    words = why(ALL, of=origin("a", of=written))
    assert (
        "leaves open: env SEQS (fieldRef), env VLLM_X (secretKeyRef)" in words
        and "TOKEN" not in words
    )
    assert "the template's: look for what they name" in why(ALL)


def test_where_others_found_it_is_said_too() -> None:
    other = numbered(2)
    starts = told((GIVEN, ALL), (other, LogSummary(WARM, loaded=21, folders=("d" * 64,))))
    [message] = events(plan(GIVEN, other, starts=starts))
    assert "key folder cccccccccccc…" in message and "dddddddddddd…" in message


def test_one_that_looked_where_others_found_it_is_told_apart() -> None:
    other = numbered(2)
    starts = told((GIVEN, ALL), (other, LogSummary(WARM, loaded=21, folders=ALL.folders)))
    [message] = events(plan(GIVEN, other, starts=starts))
    assert (
        "where other pods found it, and loaded nothing" in message
        and "none of that name" not in message
    )


def test_an_empty_store_names_what_its_folder_stands_for() -> None:
    words = why(LogSummary(TUNED, new=21, folders=("0123456789abcdef",), managed=True))
    assert "store 0123456789ab… has no entries" in words and "GPU" in words


def test_a_part_that_was_tuned_is_named_by_its_operations() -> None:
    words = why(LogSummary(PARTIAL, loaded=20, new=1, operations=("toy_gemm",)))
    assert (
        "tuned some of it again" in words and "1 entry is not in the bundle, of toy_gemm" in words
    )
    words = why(LogSummary(PARTIAL, loaded=20, new=3))
    assert (
        "3 entries at most are not in the bundle, of operations that the log does not name" in words
    )


def test_another_image_under_the_same_name_is_said_first() -> None:
    pod = GIVEN.runs(image="r/vllm@sha256:new").ready()
    pod["status"]["containerStatuses"][0]["imageID"] = "r/vllm@sha256:new"
    assert "image under its name is another" in why(ALL, pod, engineImage="r/vllm@sha256:old")
    assert "image under its name is another" not in why(ALL, pod, engineImage="r/vllm@sha256:new")


def reported(reason: str, message: str = "") -> Consumer:
    end = {"exitCode": 0, "message": Report("seed", reason, message).dump()}
    return GIVEN.but(
        initContainerStatuses=[{"name": names.SEED_CONTAINER, "state": {"terminated": end}}]
    )


def test_seeds_own_word_is_the_factor_where_it_left_the_folder_empty() -> None:
    words = why(ALL, reported("VersionsDiffer", "vllm 0.33.0 instead of 0.32.0"))
    assert "its folder was empty: VersionsDiffer: vllm 0.33.0 instead of 0.32.0" in words


@pytest.mark.parametrize("reason", ["NoBundle", "NotProven"])
def test_pods_for_which_there_was_no_bundle_yet_were_promised_nothing(reason: str) -> None:
    pod = reported(reason)
    made = plan(pod, starts=told((pod, ALL)))
    assert counted(made)[TUNED] == 1 and not events(made)


def container(**more: Any) -> Object:
    return {**serving_template()["spec"]["containers"][0], **more}  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("pod", "written", "names"),
    [
        ({}, {}, ()),
        ({"env": [{"name": "A", "value": "secret"}]}, {}, ("env A",)),
        ({"env": [{"name": "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", "value": "/p"}]}, {}, ()),  # ours
        ({"args": ["serve", "m", "--seqs", "8"]}, {"args": ["serve", "m", "--seqs", "4"]}, ("args --seqs",)),
        ({"args": ["serve", "m", "--seqs=8"]}, {"args": ["serve", "m"]}, ("args --seqs",)),
        ({"args": ["serve", "m"]}, {"args": ["serve", "n"]}, ("args",)),
        ({"image": "mirror/vllm:1"}, {}, ("image",)),
        ({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {}, ()),
    ],
)  # fmt: skip
def test_a_pod_is_held_against_its_template_by_names_alone(
    pod: Object, written: Object, names: tuple[str, ...]
) -> None:
    assert find_differences(container(**pod), container(**written)) == names


# --- what was saved

PROVEN = {"proven": True, "gpus": 1, "coldSeconds": 100, "warmSeconds": 20}


def started(number: int, began: float, ready: float) -> Consumer:
    return numbered(number, GIVEN.ready(since=ready)).but(
        containerStatuses=[
            {
                "name": ENGINE,
                "imageID": "",
                "state": {"running": {"startedAt": format_timestamp(began)}},
            }
        ]
    )


def saved(the_plan: Plan) -> tuple[int | None, str | None]:
    assert the_plan.status is not None
    return the_plan.status.get("gpuSecondsSaved"), the_plan.status.get("savedUntil")


LONG_AGO = NOW - 1000


def test_a_start_with_a_proven_bundle_saves_its_gpus_times_what_it_was_faster() -> None:
    pods = [started(number, LONG_AGO, LONG_AGO + 25) for number in range(3)]
    until = format_timestamp(NOW - 100 - OBSERVATION_DELAY_SECONDS)
    assert saved(plan(*pods, the_cache=a_cache(**PROVEN))) == (3 * 80, until)
    again = a_cache({"gpuSecondsSaved": 240, "savedUntil": until}, **PROVEN)
    assert saved(plan(*pods, the_cache=again, now=NOW + 500)) == (240, until)


@pytest.mark.parametrize(
    "of_record",
    [
        {},
        {**PROVEN, "proven": False},
        *(
            {name: one for name, one in PROVEN.items() if name != gone}
            for gone in ("proven", "coldSeconds", "warmSeconds")
        ),
    ],
)
def test_bundles_without_a_proof_or_its_figures_save_nothing(of_record: Object) -> None:
    made = plan(started(1, LONG_AGO, LONG_AGO + 25), the_cache=a_cache(**of_record))
    assert saved(made) == (None, None)


@pytest.mark.parametrize(
    "pod",
    [
        started(1, LONG_AGO, LONG_AGO + 101),
        reported("NoSpace"),
        started(1, LONG_AGO, LONG_AGO + 25).meta(annotations={}),
        started(1, LONG_AGO, LONG_AGO + 25).ready("False"),
    ],
    ids=["ready later than a cold start", "not seeded", "given nothing", "not ready"],
)
def test_other_starts_save_nothing(pod: Consumer) -> None:
    assert saved(plan(pod, the_cache=a_cache(**PROVEN))) == (None, None)


@pytest.mark.parametrize(
    ("result", "counts"), [(TUNED, 0), (PARTIAL, 0), (WARM, 1), (UNKNOWN, 1), (None, 1)]
)
def test_a_start_that_tuned_by_its_log_saved_nothing(result: str | None, counts: int) -> None:
    pod, other = started(1, LONG_AGO, LONG_AGO + 25), started(2, LONG_AGO, LONG_AGO + 25)
    logs = {f"uid-2/{format_timestamp(LONG_AGO)}": StartObservation(LogSummary(WARM))}
    if result:
        logs[f"uid-1/{format_timestamp(LONG_AGO)}"] = StartObservation(LogSummary(result))
    assert saved(plan(pod, other, starts=logs, the_cache=a_cache(**PROVEN)))[0] == 80 * (1 + counts)


def test_each_gpu_counts() -> None:
    assert savings_per_start(BundleStatus.from_dict({"id": BUNDLE, **PROVEN, "gpus": 8})) == (
        640,
        100.0,
    )
    assert savings_per_start(BundleStatus.from_dict({"id": BUNDLE, **PROVEN, "gpus": 0})) is None


def test_a_slower_warm_start_takes_nothing_back() -> None:
    made = plan(
        started(1, LONG_AGO, LONG_AGO + 25), the_cache=a_cache(**{**PROVEN, "warmSeconds": 130})
    )
    assert saved(made)[0] == 0


def test_a_start_that_may_still_flip_is_looked_at_again_when_its_time_is_over() -> None:
    made = plan(started(1, NOW - 50, NOW - 25), the_cache=a_cache(**PROVEN))
    assert saved(made) == (None, None)
    assert made.requeue_after is not None and 60 <= made.requeue_after <= 62


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
    """Restarts are runs too: nothing but the status is remembered. `losses`: looks whose status was not written."""
    status: Object = {}
    of_record = {**PROVEN, "coldSeconds": cold, "warmSeconds": 0}
    begun: dict[int, list[tuple[int, int, list[int]]]] = {}
    for pod, began, took, flips in sorted(happened):
        begun.setdefault(pod, []).append((began, took, flips))
    total = 0
    for index, look in enumerate(sorted(looks)):
        pods = []
        for number, its in begun.items():
            if its_past := [one for one in its if one[0] <= look]:
                began, took, flips = its_past[-1]
                turns = [began + took + sum(flips[:at]) for at in range(len(flips) + 1)]
                if past := [one for one in turns if one <= look]:
                    pods.append(started(number, NOW + began, NOW + past[-1]))
        made = plan(
            *pods, the_cache=a_cache(copy.deepcopy(status), **of_record), now=NOW + look
        ).status
        assert made is not None
        if index not in losses:
            status = {
                name: made[name] for name in ("gpuSecondsSaved", "savedUntil") if name in made
            }
            assert status.get("gpuSecondsSaved", 0) >= total
            total = status.get("gpuSecondsSaved", 0)
            assert parse_timestamp(status.get("savedUntil", format_timestamp(NOW))) <= NOW + look
    in_time = {(pod, began) for pod, began, took, _ in happened if took <= cold}
    assert total <= cold * len(in_time)


def test_looked_at_often_enough_each_start_is_counted() -> None:
    status: Object = {}
    for look in range(0, 2000, 7):
        pods = [
            started(number, NOW + 100 * number, NOW + 100 * number + 30)
            for number in range(6)
            if 100 * number + 30 <= look
        ]
        made = plan(*pods, the_cache=a_cache(status, **PROVEN), now=NOW + look).status
        assert made is not None
        status = {name: made[name] for name in ("gpuSecondsSaved", "savedUntil") if name in made}
    assert status["gpuSecondsSaved"] == 6 * 80


def test_three_thousand_pods_are_told_in_no_time() -> None:
    pods = [numbered(number) for number in range(3000)]
    starts = told(
        *(
            (one, ALL if index % 2 else LogSummary(WARM, folders=("d" * 64,)))
            for index, one in enumerate(pods)
        )
    )
    without, with_ = (_time(*pods, starts=given) for given in (None, starts))
    assert with_ - without < 1.0


def _time(*pods: Consumer, starts: dict[str, StartObservation] | None) -> float:
    began = time.process_time()
    plan(*pods, starts=starts, the_cache=a_cache(**PROVEN))
    return time.process_time() - began
