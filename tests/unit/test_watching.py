"""Which keys are woken when an object changes that they name. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pretune.api import Object
from pretune.cluster import ApiError, NoSuchKind
from pretune.model import Key
from pretune.watching import UNREADABLE, Named, Watching, named

from tests.unit.objects import cache
from tests.unit.virtual import run

A, B = Key("ns", "a"), Key("ns", "b")
ONE, TWO = (Named("apps/v1", "Deployment", "ns", name) for name in ("one", "two"))


def deployment(generation: int, version: int = 1, uid: str = "u") -> Object:
    return {"metadata": {"uid": uid, "generation": generation, "resourceVersion": str(version)}}


def claim(version: int) -> Object:
    return {"metadata": {"uid": "u", "resourceVersion": str(version)}}


class Streams:
    """The API server's streams: each is a list of changes or errors, then it ends; the last one stays open."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams, self.opened = list(streams), []  # type: tuple[list[list[Any]], list[tuple[float, Named]]]
        self.open: list[Named] = []

    async def __call__(self, *place: str) -> AsyncIterator[tuple[str, Object]]:
        one = Named(*place)
        self.opened.append((now(), one))
        self.open.append(one)
        try:
            for change in self.streams.pop(0) if self.streams else []:
                if isinstance(change, Exception):
                    raise change
                yield change
            if not self.streams:
                await asyncio.Event().wait()
        finally:
            self.open.remove(one)


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(streams: Streams, story: Callable[[Watching], Awaitable[None]]) -> list[tuple[float, Key]]:
    woken: list[tuple[float, Key]] = []

    async def all_of_it() -> None:
        watching = Watching(streams, lambda key: woken.append((now(), key)))
        running = asyncio.create_task(watching.run())
        await story(watching)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not streams.open

    run(all_of_it())
    return woken


async def one_names_it(watching: Watching) -> None:
    watching.follow(A, [ONE])
    await asyncio.sleep(300)


GONE: tuple[str, Object] = ("DELETED", {})


@pytest.mark.parametrize(
    ("case", "streams", "wakes"),
    [
        ("it is there", [[("ADDED", deployment(1))]], 1),
        ("it is not there: the cache was told already", [[GONE]], 0),
        ("it is made later", [[GONE, ("ADDED", deployment(1))]], 1),
        ("its spec changes", [[("ADDED", deployment(1)), ("MODIFIED", deployment(2, 2))]], 2),
        ("only its status changes", [[("ADDED", deployment(1)), ("MODIFIED", deployment(1, 2))]], 1),
        ("it is deleted", [[("ADDED", deployment(1)), GONE]], 2),
        ("it is made anew", [[("ADDED", deployment(1)), GONE, ("ADDED", deployment(1, 9, "other"))]], 3),
        ("the stream ends and nothing was missed", [[("ADDED", deployment(1))], [("ADDED", deployment(1, 5))]], 1),
        ("the stream ends and a change was missed", [[("ADDED", deployment(1))], [("ADDED", deployment(2))]], 2),
        ("the stream ends and its end was missed", [[("ADDED", deployment(1))], [GONE]], 2),
        ("a kind that counts no changes of its spec", [[("ADDED", claim(1)), ("MODIFIED", claim(2))]], 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_key_is_woken_when(case: str, streams: list[list[Any]], wakes: int) -> None:
    assert len(play(Streams(*streams), one_names_it)) == wakes


@pytest.mark.parametrize(
    ("case", "error", "again"),
    [
        ("may not be read", ApiError(403, "Forbidden", ""), [0, UNREADABLE, 2 * UNREADABLE]),
        ("has no kind", NoSuchKind("x/v1", "Y"), [0, UNREADABLE, 2 * UNREADABLE]),
        ("cannot be reached", ConnectionError("refused"), [0, 2, 6]),
        ("was forgotten in between", ApiError(410, "Expired", ""), [0, 2, 6]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_watched_is_tried_again(case: str, error: Exception, again: list[float]) -> None:
    streams = Streams([error], [error], [("ADDED", deployment(1))])
    assert [key for _, key in play(streams, one_names_it)] == [A]
    assert [at for at, _ in streams.opened] == again


def test_one_watch_serves_every_cache_that_names_the_object() -> None:
    async def story(watching: Watching) -> None:
        watching.follow(A, [ONE])
        watching.follow(B, [ONE])
        watching.follow(B, [ONE])
        await asyncio.sleep(1)

    streams = Streams([("ADDED", deployment(1))])
    assert sorted(key for _, key in play(streams, story)) == [A, B]
    assert len(streams.opened) == 1


def test_what_no_cache_names_any_more_is_not_watched() -> None:
    async def story(watching: Watching) -> None:
        watching.follow(A, [ONE, TWO])
        watching.follow(B, [ONE])
        await asyncio.sleep(1)
        watching.follow(A, [])
        await asyncio.sleep(1)
        assert streams.open == [ONE]
        watching.follow(B, [TWO])
        await asyncio.sleep(1)
        assert streams.open == [TWO]

    streams = Streams()
    play(streams, story)


def test_a_cache_names_its_workload_and_a_claim_of_the_users() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
    the_cache = cache(source={"workloadRef": ref}, storage={"existingClaim": {"name": "shared"}})
    assert named(the_cache) == {
        Named("apps/v1", "Deployment", "inference", "one"),
        Named("v1", "PersistentVolumeClaim", "inference", "shared"),
    }
    assert named(cache()) == frozenset()
