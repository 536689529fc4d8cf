"""Refused releases, counted for each pod."""

from __future__ import annotations

from pretune.controller.release_refusals import ReleaseRefusals
from pretune.kube.types import ApiError
from pretune.policy.hold.release import release_all
from pretune.policy.model import Patch, ReleaseRefusal

from tests.builders.constants import KEY, NOW
from tests.builders.pods import Consumer

FIRST, SECOND = (
    release for release in release_all([Consumer("a", 1), Consumer("a", 2)])
    if isinstance(release, Patch)
)  # fmt: skip


def test_a_pods_refusals_are_counted_until_it_is_released() -> None:
    refusals, denied = ReleaseRefusals(), ApiError(403, "Forbidden", "denied by a policy")
    for count in (1, 2):
        refusals.record(KEY, [FIRST, SECOND], {FIRST.name: denied}, NOW + count)
        expected = ReleaseRefusal(count, str(denied), NOW + 1, NOW + count)
        assert refusals.of(KEY) == {"uid-a-1": expected}
    refusals.record(KEY, [FIRST], {}, NOW)
    assert refusals.of(KEY) == {}
    assert not refusals._refusals, "nothing is kept of keys without a held pod"


def test_a_timeout_counts_as_a_refusal_and_what_was_not_tried_then_keeps_its_count() -> None:
    """The API server may wait for a validating webhook for as long as we wait for it."""
    refusals, denied = ReleaseRefusals(), ApiError(500, "InternalError", "failed calling webhook")
    refusals.record(KEY, [FIRST, SECOND], {FIRST.name: denied, SECOND.name: denied}, NOW)
    refusals.record(KEY, [FIRST, SECOND], {FIRST.name: TimeoutError()}, NOW)
    counts = {uid: refusal.count for uid, refusal in refusals.of(KEY).items()}
    assert counts == {"uid-a-1": 2, "uid-a-2": 1}
    refusals.record(KEY, [FIRST, SECOND], {FIRST.name: ApiError(503, "Unavailable", "")}, NOW)
    assert {uid: one.count for uid, one in refusals.of(KEY).items()} == {"uid-a-1": 2}
