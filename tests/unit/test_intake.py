"""The intake: what is measured before it is parsed, and what is left of what is too large."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune import intake
from pretune.intake import EXCESS, OBJECT, Bounds, TooLarge, find_excess, parse_json

from tests.builders.strategies import law
from tests.growth import MAX_GROWTH, growth

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{},: é\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\[]{},'), inner),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth_of, inner), default=0) if isinstance(value, dict | list) else 0


def values_of(value: Any) -> int:
    """Brackets and commas."""
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 2 + max(0, len(value) - 1) + sum(map(values_of, inner))


@law(JSON, st.booleans(), st.booleans())
def test_depth_and_values_are_measured_exactly_whatever_the_texts_contain(
    value: Any, ascii_only: bool, indented: bool
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=1 if indented else None).encode()
    depth, values = depth_of(value), values_of(value)
    assert find_excess(raw, Bounds(len(raw), values, depth)) == ""
    assert "bytes" not in find_excess(raw, Bounds(len(raw), values, depth))
    assert depth == 0 or "levels deep" in find_excess(raw, Bounds(len(raw), values, depth - 1))
    assert values == 0 or "values" in find_excess(raw, Bounds(len(raw), values - 1, depth))
    assert parse_json(raw) == value


# --- objects that are too large

HOSTILE: dict[str, Callable[[int], str]] = {
    "lists in one another": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "objects in one another": lambda n: '{"a":' * (n // 6) + "1" + "}" * (n // 6),
    "empty lists": lambda n: "[" + "[]," * (n // 3) + "0]",
    "empty objects": lambda n: "[" + "{}," * (n // 3) + "0]",
    "lists of one": lambda n: "[" + "[0]," * (n // 4) + "0]",
    "objects of one": lambda n: "[" + '{"":0},' * (n // 7) + "0]",
    "many fields": lambda n: "{" + ",".join(f'"{i:06}":0' for i in range(n // 11)) + "}",
    "short texts": lambda n: "[" + '"",' * (n // 3) + "0]",
    "brackets in texts": lambda n: "[" + '"{",' * (n // 4) + "0]",
    "numbers": lambda n: "[" + "1," * (n // 2) + "1]",
    "backslashes": lambda n: '"' + "\\\\" * (n // 2) + '"',
    "quotes in a text": lambda n: '"' + '\\"' * (n // 2) + '"',
    "one long text": lambda n: '"' + "x" * n + '"',
    "escaped letters": lambda n: '"' + "\\u00e9" * (n // 6) + '"',
}
LARGE = 1_500_000  # bytes: what etcd takes


def cache_with(template: str) -> bytes:
    """As the API server sends an AutotuneCache: its fields in alphabetical order."""
    return (
        (
            '{"apiVersion":"pretune.dev/v1alpha1","kind":"AutotuneCache","metadata":{'
            '"annotations":{"a":"\\\\\\"{[","name":"b"},"managedFields":[{"f:spec":%s}],'
            '"name":"qwen3","namespace":"inference","resourceVersion":"7","uid":"u"},'
            '"spec":{"source":{"template":%s}},"status":{"observedGeneration":3}}\n'
        )
        .replace("%s", template)
        .encode()
    )


IDENTITY = {
    "annotations": {"a": '\\"{[', "name": "b"},
    "name": "qwen3",
    "namespace": "inference",
    "resourceVersion": "7",
    "uid": "u",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_of_an_object_that_is_too_large_identity_and_status_are_kept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "OBJECT", replace(OBJECT, values=10_000))
    monkeypatch.setattr(intake, "_PART", replace(intake._PART, values=5_000))
    raw = cache_with(HOSTILE[name](LARGE // 4))
    excess = find_excess(raw, intake.OBJECT)
    if not excess:  # one text
        assert parse_json(raw)["metadata"]["name"] == "qwen3"
        return
    expected = {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": IDENTITY,
        "spec": {},
        "status": {"observedGeneration": 3},
        EXCESS: excess,
    }
    assert intake.cut_object(raw) == expected
    event = b'{"type":"MODIFIED","object":' + raw.strip() + b"}\n"
    assert intake.cut_event(event) == {"type": "MODIFIED", "object": expected}
    small = {"metadata": {"name": "small"}}
    page = (
        b'{"items":['
        + raw.strip()
        + b', {"metadata":{"name":"small"}}],"metadata":{"continue":"c"}}'
    )
    assert intake.cut_list(page) == {"metadata": {"continue": "c"}, "items": [expected, small]}
    review = b'{"kind":"AdmissionReview","request":{"uid":"1","object":' + raw + b"}}"
    assert intake.cut_review(review) == {"uid": "1"}


@pytest.mark.parametrize("body", ["[]", "{}", '{"request":{"uid":"1"}}', '{"a":' + "[" * 99999])
def test_what_is_no_review_of_an_api_server_is_an_error(body: str) -> None:
    with pytest.raises(ValueError, match=r"no object|cut off"):
        intake.cut_review(body.encode())


def test_of_too_many_labels_ours_are_kept() -> None:
    """A watch by our label relies on it."""
    labels = {f"l{number}": "" for number in range(60_000)} | {"pretune.dev/cache": "qwen3"}
    raw = json.dumps({"metadata": {"labels": labels, "name": "p", "annotations": labels}}).encode()
    assert find_excess(raw, OBJECT)
    meta = intake.cut_object(raw)["metadata"]
    assert meta["labels"] == meta["annotations"] == {"pretune.dev/cache": "qwen3"}


def test_managed_fields_of_any_depth_are_left_out_and_nothing_else() -> None:
    raw = cache_with(HOSTILE["objects in one another"](60_000)).replace(
        b'"spec":{', b'"extra":{', 1
    )
    raw = raw.replace(b'"status"', b'"spec":{"a":1},"status"')
    found = intake.cut_object(raw)
    assert found["spec"] == {"a": 1} and EXCESS in found  # extra is too deep
    assert "managedFields" not in found["metadata"]
    small = b'{"metadata":{"managedFields":%s,"name":"x"},"spec":{"a":[]}}'
    deep = HOSTILE["objects in one another"](60_000).encode()
    assert intake.cut_object(small % deep) == {"metadata": {"name": "x"}, "spec": {"a": []}}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"metadata":{}}', '{"metadata":{"name":1}}', '{"a"', '{"a":,}', '{"a":"'],
)
def test_what_holds_no_object_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"no |cut off"):
        intake._cut(intake._Text(text.encode()), 0, "has more")


@law(JSON, st.integers(0, 400))
def test_whatever_is_cut_off_anywhere_is_an_error_or_an_object(value: Any, length: int) -> None:
    raw = cache_with(json.dumps(value))[:length]
    for cut in (intake.cut_object, intake.cut_list, intake.cut_event):
        try:
            assert isinstance(cut(raw), dict)
        except ValueError:
            continue


# --- what the intake itself costs


@pytest.mark.parametrize("name", HOSTILE)
def test_four_times_the_object_takes_four_times_as_long(name: str) -> None:
    def work(raw: bytes) -> None:
        find_excess(raw, Bounds(1 << 30, 1 << 30, 1 << 30))
        intake._cut(intake._Text(raw), 0, "has more")

    assert growth(work, lambda size: cache_with(HOSTILE[name](size)), 10_000) < MAX_GROWTH


@pytest.mark.parametrize("name", HOSTILE)
def test_an_object_of_any_content_takes_less_than_64_mib(name: str) -> None:
    raw = cache_with(HOSTILE[name](LARGE // 2))
    tracemalloc.start()
    try:
        with suppress(TooLarge):
            parse_json(raw)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
