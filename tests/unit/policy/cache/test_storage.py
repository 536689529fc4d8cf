"""The claim's events, of which the newest is shown while it is not bound."""

from __future__ import annotations

from itertools import permutations

import pytest
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.cache.storage import ensure_claim
from pretune.policy.plan_builder import PlanBuilder

from tests.builders.caches import claim
from tests.builders.constants import NOW
from tests.builders.observed import observed

OLDER = {"message": "older", "lastTimestamp": format_timestamp(NOW - 90)}
NEWER = {"message": "newer", "lastTimestamp": format_timestamp(NOW - 30)}
# An event of the new API, which has no lastTimestamp.
NEWEST = {
    "message": "newest",
    "lastTimestamp": None,
    "eventTime": format_timestamp(NOW - 10),
}
WITHOUT_MESSAGE = {"message": "", "lastTimestamp": format_timestamp(NOW)}
WITHOUT_TIME = {"message": "some time"}


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ((OLDER, NEWER), "is not bound: newer"),
        ((OLDER, NEWER, NEWEST), "is not bound: newest"),
        ((NEWER, WITHOUT_MESSAGE, WITHOUT_TIME), "is not bound: newer"),
        ((WITHOUT_TIME,), "is not bound: some time"),
        ((WITHOUT_MESSAGE,), "is not bound"),
        ((), "is not bound"),
    ],
)
def test_of_a_pending_claims_events_the_newest_with_a_message_is_shown(
    events: tuple[Object, ...], shown: str
) -> None:
    for some_order in permutations(events):
        plan = PlanBuilder(observed(claim=claim("Pending"), claim_events=some_order), NOW)
        assert ensure_claim(plan).message == f"claim pretune-qwen3 {shown}"
