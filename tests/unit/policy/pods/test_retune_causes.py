"""Why an engine tuned again although its pod had its bundle."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, WARM, Difference, LogSummary
from pretune.policy.pods.retune_causes import find_differences

from tests.builders.observed import origin
from tests.builders.pods import Consumer
from tests.builders.starts import (
    ALL_TUNED,
    READY_POD,
    cache_with_bundle,
    decide_on,
    numbered_pod,
    pod_with_report,
    retuned_messages,
    start_logs_of,
)
from tests.builders.templates import serving_template


def cause_of(
    summary: LogSummary,
    pod: Consumer = READY_POD,
    of: dict[str, Any] | None = None,
    differs: tuple[str, ...] = (),
    **more: Any,
) -> str:
    [message] = retuned_messages(
        decide_on(
            pod,
            starts=start_logs_of((pod, summary), differs=differs),
            of=of,
            the_cache=cache_with_bundle(**more),
        )
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
def test_what_flashinfer_refused_is_the_cause(difference: Difference, words: str) -> None:
    assert words in cause_of(
        LogSummary(TUNED, new=21, folders=("c" * 64,), differences=(difference,))
    )


def test_a_key_folder_that_the_bundle_lacks_is_the_cause_with_what_differs_in_the_pod() -> None:
    words = cause_of(ALL_TUNED, differs=("env VLLM_USE_DEEP_GEMM", "args --max-num-seqs"))
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
    words = cause_of(ALL_TUNED, of=origin("a", of=written))
    assert (
        "leaves open: env SEQS (fieldRef), env VLLM_X (secretKeyRef)" in words
        and "TOKEN" not in words
    )
    assert "the template's: look for what they name" in cause_of(ALL_TUNED)


def test_the_folder_where_others_found_it_is_named() -> None:
    other = numbered_pod(2)
    starts = start_logs_of(
        (READY_POD, ALL_TUNED), (other, LogSummary(WARM, loaded=21, folders=("d" * 64,)))
    )
    [message] = retuned_messages(decide_on(READY_POD, other, starts=starts))
    assert "key folder cccccccccccc…" in message and "dddddddddddd…" in message


def test_a_pod_that_looked_where_others_found_it_has_another_cause() -> None:
    other = numbered_pod(2)
    starts = start_logs_of(
        (READY_POD, ALL_TUNED), (other, LogSummary(WARM, loaded=21, folders=ALL_TUNED.folders))
    )
    [message] = retuned_messages(decide_on(READY_POD, other, starts=starts))
    assert (
        "where other pods found it, and loaded nothing" in message
        and "none of that name" not in message
    )


def test_an_empty_store_names_what_its_folder_stands_for() -> None:
    words = cause_of(LogSummary(TUNED, new=21, folders=("0123456789abcdef",), managed=True))
    assert "store 0123456789ab… has no entries" in words and "GPU" in words


def test_a_part_that_was_tuned_is_named_by_its_operations() -> None:
    words = cause_of(LogSummary(PARTIAL, loaded=20, new=1, operations=("toy_gemm",)))
    assert (
        "tuned some of it again" in words and "1 entry is not in the bundle, of toy_gemm" in words
    )
    words = cause_of(LogSummary(PARTIAL, loaded=20, new=3))
    assert (
        "3 entries at most are not in the bundle, of operations that the log does not name" in words
    )


def test_another_image_under_the_same_name_is_named_first() -> None:
    pod = READY_POD.runs(image="r/vllm@sha256:new").ready()
    pod["status"]["containerStatuses"][0]["imageID"] = "r/vllm@sha256:new"
    assert "image under its name is another" in cause_of(
        ALL_TUNED, pod, engineImage="r/vllm@sha256:old"
    )
    assert "image under its name is another" not in cause_of(
        ALL_TUNED, pod, engineImage="r/vllm@sha256:new"
    )


def test_seeds_report_is_the_cause_where_it_left_the_folder_empty() -> None:
    words = cause_of(ALL_TUNED, pod_with_report("VersionsDiffer", "vllm 0.33.0 instead of 0.32.0"))
    assert "its folder was empty: VersionsDiffer: vllm 0.33.0 instead of 0.32.0" in words


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
def test_a_pod_is_compared_with_its_template_by_names_alone(
    pod: Object, written: Object, names: tuple[str, ...]
) -> None:
    assert find_differences(container(**pod), container(**written)) == names
