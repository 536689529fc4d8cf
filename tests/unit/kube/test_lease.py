"""Who works: the lease on an API server in memory, in the virtual loop's time."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from pretune.api.types import Object
from pretune.kube.lease import (
    LEASE_DURATION_SECONDS,
    RENEW_DEADLINE_SECONDS,
    RENEW_INTERVAL_SECONDS,
    RETRY_SECONDS,
    Lease,
    LostLeaseError,
)
from pretune.kube.types import ApiError

from tests.unit.virtual import run


class OneLease:
    """The part of an API server that a lease needs: one object, versions, conflicts."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.writes = 0
        self.fails: Callable[[str], None] = lambda verb: None

    async def get(self, *_: str) -> Object | None:
        self.fails("get")
        return copy.deepcopy(self.lease)

    async def create(self, obj: Object) -> Object:
        self.fails("create")
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "")
        return self._store(obj)

    async def patch(self, ref: Object, patch: Mapping[str, Any], *, status: bool = False) -> Object:
        self.fails("patch")
        if self.lease is None:
            raise ApiError(404, "NotFound", "")
        if ref["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "")
        spec = {**self.lease["spec"], **patch["spec"]}
        return self._store(
            {**self.lease, "spec": {name: one for name, one in spec.items() if one is not None}}
        )

    def _store(self, obj: Object) -> Object:
        self.writes += 1
        self.lease = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.writes)}}
        return copy.deepcopy(self.lease)

    @property
    def holder(self) -> str | None:
        return self.lease["spec"].get("holderIdentity") if self.lease else None


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(story: Callable[[OneLease], Awaitable[None]]) -> None:
    run(story(OneLease()))  # type: ignore[arg-type]


def lease(cluster: OneLease, identity: str) -> Lease:
    return Lease(cluster, "pretune-system", identity)  # type: ignore[arg-type]


def moving() -> bool:
    return True


def test_the_first_works_and_the_second_waits_until_the_first_is_silent_for_the_lease_s_time() -> (
    None
):
    async def story(cluster: OneLease) -> None:
        await lease(cluster, "one").acquire()
        assert now() == 0
        await lease(cluster, "two").acquire()
        assert LEASE_DURATION_SECONDS <= now() <= LEASE_DURATION_SECONDS + RETRY_SECONDS
        assert cluster.holder == "two"

    play(story)


def test_who_renews_keeps_it() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        holding = asyncio.create_task(first.keep_renewing(moving))
        waiting = asyncio.create_task(lease(cluster, "two").acquire())
        await asyncio.sleep(600)
        assert cluster.holder == "one" and not holding.done() and not waiting.done()
        assert cluster.writes == pytest.approx(1 + 600 / RENEW_INTERVAL_SECONDS, abs=2)

    play(story)


def test_a_released_lease_is_taken_at_once() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        waiting = asyncio.create_task(lease(cluster, "two").acquire())
        await asyncio.sleep(5)
        await first.release()
        at = now()
        await waiting
        assert now() - at <= RETRY_SECONDS and cluster.holder == "two"

    play(story)


def test_the_same_pod_takes_its_own_lease_again_at_once() -> None:
    async def story(cluster: OneLease) -> None:
        await lease(cluster, "one").acquire()
        await lease(cluster, "one").acquire()
        assert now() == 0

    play(story)


def test_of_two_that_see_it_free_one_gets_it() -> None:
    async def story(cluster: OneLease) -> None:
        tasks = [asyncio.create_task(lease(cluster, name).acquire()) for name in ("one", "two")]
        await asyncio.sleep(1)
        assert [task.done() for task in tasks].count(True) == 1

    play(story)


@pytest.mark.parametrize(
    "error", [ApiError(500, "", "etcd"), ConnectionError("refused"), TimeoutError()]
)
def test_who_cannot_renew_stops_before_another_may_begin(error: Exception) -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()

        def fails(verb: str) -> None:
            raise error

        cluster.fails = fails
        with pytest.raises(LostLeaseError):
            await first.keep_renewing(moving)
        assert RENEW_DEADLINE_SECONDS <= now() < LEASE_DURATION_SECONDS

    play(story)


def test_a_short_outage_loses_nothing() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()

        def fails(verb: str) -> None:
            if 4 < now() < 9:
                raise ConnectionError("refused")

        cluster.fails = fails
        holding = asyncio.create_task(first.keep_renewing(moving))
        await asyncio.sleep(60)
        assert not holding.done() and cluster.holder == "one"

    play(story)


def test_who_does_not_move_does_not_renew() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        with pytest.raises(LostLeaseError, match="does not move"):
            await first.keep_renewing(lambda: now() < 60)
        assert 60 < now() < 60 + LEASE_DURATION_SECONDS

    play(story)


def test_who_finds_it_taken_stops_at_once_and_leaves_it_alone() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        assert cluster.lease is not None
        cluster._store(
            {**cluster.lease, "spec": {**cluster.lease["spec"], "holderIdentity": "two"}}
        )
        with pytest.raises(LostLeaseError, match="two"):
            await first.keep_renewing(moving)
        assert now() == RENEW_INTERVAL_SECONDS
        await first.release()
        assert cluster.holder == "two"

    play(story)


def test_a_renewal_whose_answer_was_lost_is_no_loss() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        assert cluster.lease is not None
        cluster._store(cluster.lease)  # our write took effect, and we never heard of it
        holding = asyncio.create_task(first.keep_renewing(moving))
        await asyncio.sleep(60)
        assert not holding.done() and cluster.holder == "one"

    play(story)


def test_a_lease_that_somebody_deleted_is_made_again() -> None:
    async def story(cluster: OneLease) -> None:
        first = lease(cluster, "one")
        await first.acquire()
        cluster.lease = None
        holding = asyncio.create_task(first.keep_renewing(moving))
        await asyncio.sleep(60)
        assert not holding.done() and cluster.holder == "one"

    play(story)
