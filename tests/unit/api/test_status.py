"""The status in Python and in JSON: each is the other's inverse, and nothing that was read is trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.names import PENDING, PROVING, SEALED, STATES, TUNING_STATE
from pretune.api.schema import Malformed
from pretune.api.spec import Spec
from pretune.api.status import MAX_BUNDLES, BundleStatus, CacheStatus, Environment, Failure, Writer

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW

SEALED_JSON = bundle_json(
    "0123456789ab-b200",
    layout="Managed",
    entries=20,
    digest="sha256:1",
    engineImage="vllm@sha256:2",
    environment={"vllm": "0.33.0", "flashinfer": "0.6", "cuda": "13", "gpu": "B200"},
    tunedSeconds=300,
    gpus=8,
    proven=True,
    proofs=2,
    coldSeconds=280,
    warmSeconds=0,
    newEntries=0,
    sealedAt="2026-09-21T13:00:00Z",
    retiredAt="2026-09-21T13:10:00Z",
    disruptions=1,
    pod="uid",
    running=True,
    serving=True,
    undeliverable={"reason": "MountFailed", "message": "m", "at": "2026-09-21T13:00:00Z", "claimUID": "u"},
    unwantedSince="2026-09-21T13:00:00Z",
    writer={"uid": 0, "gid": 100, "groups": [1, 2]},
    lastFailure={"attempt": 1, "at": "2026-09-21T13:00:00Z", "reason": "EngineFailed", "message": ""},
    **{"import": {"from": "claim/folder", "reason": "Sealed", "message": ""}},
)  # fmt: skip
# What else an object could hold: of any type, nested, too large, or of another release.
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "Sealed", "x" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_every_field_comes_back_as_it_was() -> None:
    bundle = BundleStatus.from_dict(SEALED_JSON)
    assert bundle.to_dict() == SEALED_JSON
    assert (bundle.writer, bundle.environment) == (
        Writer(0, 100, (1, 2)),
        Environment("0.33.0", "0.6", "13", "B200"),
    )
    assert bundle.sealed_at == 1789995600.0


def test_what_is_absent_stays_absent() -> None:
    least = bundle_json("0123456789ab-b200", "Pending", attempts=0)
    assert BundleStatus.from_dict(least).to_dict() == least
    assert BundleStatus.from_dict({"id": "a-b"}).to_dict() == {
        "id": "a-b",
        "fingerprint": "",
        "target": "",
        "state": "Pending",
        "reason": "WaitingForClaim",
        "message": "",
        "attempts": 0,
    }


def test_fields_and_words_of_a_newer_release_are_no_fault() -> None:
    newer = {**SEALED_JSON, "layout": "LayoutOfTomorrow", "reason": "Tomorrow", "new": {"a": 1}}
    bundle = BundleStatus.from_dict(newer)
    assert (bundle.layout, bundle.reason) == ("LayoutOfTomorrow", "Tomorrow")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("id", None, "id is not there"),
        ("id", "x" * 64, "id is not a text of at most 63 characters"),
        ("state", "StateOfTomorrow", "state is not one of Pending, Tuning"),
        ("attempts", "1", "attempts is not a number from 0 to 2147483647"),
        ("attempts", -1, "attempts is not a number"),
        ("attempts", True, "attempts is not a number"),
        ("entries", 2**31, "entries is not a number"),
        ("proven", "true", "proven is not true or false"),
        ("sealedAt", "yesterday", "sealedAt is not a time in RFC 3339"),
        ("sealedAt", "0001-01-01T00:00:00Z", "sealedAt is not a time"),
        ("writer", {"uid": 1}, "writer.gid is not there"),
        ("writer", {"uid": 1, "gid": 1, "groups": ["a"]}, "writer.groups is not a number"),
        ("lastFailure", [], "lastFailure is not an object"),
        ("lastFailure", {"reason": "A", "at": 5}, "lastFailure.at is not a time"),
        ("message", "x" * 5000, "message is not a text of at most 4096"),
    ],
)
def test_what_is_malformed_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(Malformed) as error:
        BundleStatus.from_dict({**SEALED_JSON, field: value})
    assert str(error.value).startswith(words)


def test_one_malformed_bundle_is_left_out_and_named_and_the_others_are_there() -> None:
    other = bundle_json("a-b")
    status = CacheStatus.from_cache(
        cache({"bundles": [other, {**SEALED_JSON, "attempts": "two"}], "storage": "elsewhere"})
    )
    assert [bundle.id for bundle in status.bundles] == ["a-b"]
    assert status.storage is None
    assert [text.partition(" ")[0] for text in status.skipped] == [
        "status.bundles[1]:",
        "status.storage:",
    ]


def test_bundles_beyond_the_bound_are_left_out_and_named() -> None:
    bundles = [bundle_json(f"{index:012d}-a") for index in range(MAX_BUNDLES + 1)]
    status = CacheStatus.from_cache(cache({"bundles": bundles}))
    assert len(status.bundles) == MAX_BUNDLES
    assert status.skipped == (f"status.bundles: items after the first {MAX_BUNDLES}",)


@given(
    st.dictionaries(
        st.sampled_from(
            [*SEALED_JSON, "conditions", "bundles", "consumers", "storage", "warnings"]
        ),
        ANYTHING,
    )
)
def test_any_status_can_be_read_and_what_was_read_can_be_written(data: dict[str, Any]) -> None:
    for status in ({"bundles": [{**SEALED_JSON, **data}, data]}, data):
        found = CacheStatus.from_cache(cache(status))
        written = found.to_dict()
        assert CacheStatus.from_cache(cache(json.loads(json.dumps(written)))) == CacheStatus(
            **{**vars(found), "skipped": ()}
        )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("begun", [0, 1, 2])
@pytest.mark.parametrize("failed", [0, 1])
def test_an_attempt_or_proof_is_open_until_its_end_is_recorded(
    state: str, begun: int, failed: int
) -> None:
    last = Failure(attempt=failed, at=NOW, reason="EngineFailed") if failed else None  # type: ignore[arg-type]
    bundle = BundleStatus("a-b", state=state, attempts=begun, proofs=begun, last_failure=last)
    is_open = begun > failed
    assert bundle.has_open_attempt == (is_open and state in (PENDING, TUNING_STATE))
    assert bundle.has_open_proof == (is_open and state == PROVING)
    assert bundle.has_interrupted_proof == (is_open and state == SEALED)


@pytest.mark.parametrize(
    ("bundle", "verify", "given"),
    [
        (BundleStatus("a-b", state=SEALED), "Never", True),
        (BundleStatus("a-b", state=SEALED), "BeforeRelease", False),
        (BundleStatus("a-b", state=SEALED, proven=True), "BeforeRelease", True),
        (BundleStatus("a-b", state=SEALED, layout="Empty"), "BeforeRelease", True),
        (BundleStatus("a-b", state=PROVING, proven=True), "Never", False),
        (BundleStatus("a-b", state=PENDING, proven=True), "Never", False),
    ],
)
def test_a_bundle_is_given_when_sealed_and_proven_where_that_is_asked_for(
    bundle: BundleStatus, verify: str, given: bool
) -> None:
    assert bundle.may_be_given(Spec.from_cache(cache(verify=verify))) is given
