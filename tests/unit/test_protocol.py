"""What comes from outside is parsed once: anything gives an object of the declared types, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.protocol import (
    ANSWERS,
    LAYOUTS,
    MAX_NUMBER,
    File,
    Inputs,
    Manifest,
    Report,
    SealedPart,
    Task,
    Versions,
    WireError,
    Writer,
)

SEALED = Report(
    by="seal",
    reason="Sealed",
    message="20 entries in a managed store",
    id="0123456789ab-b200",
    layout="Managed",
    entries=20,
    digest="sha256:" + "0" * 64,
    versions=Versions("0.33.0", "0.7.2", "13.0", "NVIDIA B200"),
    writer=Writer(1000, 1000, [1000, 2000]),
    seconds=900,
    at="2026-02-28T23:59:59Z",
)
INSPECTED = Report(
    "inspect", "Inspected", bundles=[replace(SEALED, by="inspect", fingerprint="f0" * 32)]
)
MANIFEST = Manifest(
    id="0123456789ab-b200",
    cache="inference.qwen3",
    inputs=Inputs("f0" * 32, "", "b200", {"nodeSelector": {"a": "b"}}),
    versions=Versions(gpu="NVIDIA B200"),
    writer=Writer(1000, 1000, []),
    gpus=1,
    tunedSeconds=900,
    sealedAt="2026-02-28T23:59:59Z",
    parts=[SealedPart("tactics", "VLLM_X", "Managed", 1, [File("a/b.json", 2, "0" * 64)], ["a"])],
)
TASK = Task(
    "inference.qwen3",
    "sub",
    MANIFEST.inputs,
    1,
    ["vllm"],
    "http://127.0.0.1",
    {"a": "b"},
    ["x"],
    True,
    True,
    "y",
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(LAYOUTS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER


def is_sound(report: Report) -> bool:
    """Whether every field is of its declared type and can be written to a status."""
    texts = (
        report.by,
        report.reason,
        report.message,
        report.id,
        report.digest,
        report.at,
        report.fingerprint,
    )
    return (
        all(type(text) is str and len(text.encode()) <= 4 * 4096 for text in texts)
        and report.layout in ("", *LAYOUTS)
        and all(
            is_number(n) for n in (report.entries, report.seconds, report.newEntries, report.more)
        )
        and type(report.proven) is bool
        and (
            report.versions is None
            or all(type(text) is str for text in vars(report.versions).values())
        )
        and (
            report.writer is None
            or all(type(n) is int for n in (report.writer.uid, *report.writer.groups))
        )
        and len(report.bundles) <= ANSWERS
        and all(is_sound(bundle) and not bundle.bundles for bundle in report.bundles)
    )


@given(
    st.binary(max_size=200).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    | st.text(max_size=200)
)
def test_any_text_is_a_report_or_none(text: str) -> None:
    report = Report.load(text)
    assert report is None or is_sound(report)


@given(
    st.sampled_from([SEALED, INSPECTED]), st.sampled_from(sorted(vars(SEALED))), JSON, st.booleans()
)
def test_a_report_with_any_value_in_any_field_is_a_sound_report_or_none(
    report: Report, field: str, value: Any, nested: bool
) -> None:
    data = json.loads(report.dump())
    (data["bundles"][0] if nested and "bundles" in data else data)[field] = value
    loaded = Report.load(json.dumps(data))
    assert loaded is None or is_sound(loaded)


@pytest.mark.parametrize(
    "more",
    [
        {"bundles": 5},
        {"bundles": [{}]},
        {"bundles": [{"by": "inspect", "reason": "Sealed"}] * (ANSWERS + 1)},
        {"entries": "many"},
        {"entries": True},
        {"entries": -1},
        {"entries": 2**31},
        {"at": "yesterday"},
        {"at": "2026-02-29T00:00:00Z"},
        {"at": "2026-02-28T24:00:00Z"},
        {"at": "2026-13-01T00:00:00Z"},
        {"at": "9999-12-31T23:59:59Z"},
        {"at": ""},
        {"writer": {"uid": "root", "gid": 0}},
        {"writer": {"uid": 0}},
        {"writer": {"uid": 0, "gid": 0, "groups": [True]}},
        {"versions": "0.33.0"},
        {"layout": "Heap"},
        {"layout": ""},
        {"id": "x" * 64},
        {"message": "\ud800"},
        {"reason": 5},
        {"reason": ""},
        {"proven": "yes"},
    ],
    ids=str,
)
def test_a_malformed_report_is_none(more: dict[str, Any]) -> None:
    data = json.loads(SEALED.dump())
    assert Report.load(json.dumps(data)) == SEALED
    assert Report.load(json.dumps({**data, **more})) is None


@pytest.mark.parametrize(
    "text", ["[" * 4096, '{"by":' * 2000, "5", "null", "", "\ud800", "1" * 5000, "NaN"]
)
def test_what_is_no_object_is_no_report(text: str) -> None:
    assert Report.load(text) is None


@pytest.mark.parametrize(
    "at", ["1970-01-01T00:00:07Z", "2024-02-29T00:00:00Z", "2099-12-31T23:59:59Z"]
)
def test_any_time_of_a_nodes_clock_is_a_time(at: str) -> None:
    assert Manifest.load(replace(MANIFEST, sealedAt=at).dump()).sealedAt == at


def test_what_is_dumped_is_loaded_again() -> None:
    assert Report.load(SEALED.dump()) == SEALED
    assert Report.load(INSPECTED.dump()) == INSPECTED
    assert Manifest.load(MANIFEST.dump()) == MANIFEST
    assert Task.load(TASK.dump()) == TASK
    assert Task.load(Task("a.b").dump()) == Task("a.b")


@given(st.sampled_from(sorted(vars(MANIFEST))), JSON)
def test_a_manifest_with_any_value_in_any_field_is_one_or_a_wire_error(
    field: str, value: Any
) -> None:
    data = {**json.loads(MANIFEST.dump()), field: value}
    try:
        manifest = Manifest.load(json.dumps(data).encode())
    except WireError:
        return
    assert (
        Report.load(replace(SEALED, at=manifest.sealedAt, seconds=manifest.tunedSeconds).dump())
        is not None
    )


@given(st.sampled_from(sorted(vars(TASK))), JSON)
def test_a_task_with_any_value_in_any_field_is_one_or_a_wire_error(field: str, value: Any) -> None:
    try:
        Task.load(json.dumps({**json.loads(TASK.dump()), field: value}))
    except WireError as error:
        assert field in str(error) or "task" in str(error)


def test_a_fields_error_names_it() -> None:
    data = json.loads(MANIFEST.dump())
    data["parts"][0]["files"][0]["size"] = -1
    with pytest.raises(WireError, match="files: size is not a number from 0 to 268435456"):
        Manifest.load(json.dumps(data).encode())
    del data["parts"][0]["files"][0]["size"]
    with pytest.raises(WireError, match="files: no size"):
        Manifest.load(json.dumps(data).encode())
