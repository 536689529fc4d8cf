"""Which keys are woken when an object changes that they name. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from pretune.api.types import Key, Object
from pretune.controller.reference_watcher import (
    ALL_NAMESPACES,
    Kind,
    Reference,
    ReferenceWatcher,
    find_references,
)
from pretune.kube.types import ApiError, NoSuchKind

from tests.builders.caches import cache
from tests.unit.virtual import run

A, B, C = Key("ns", "a"), Key("ns", "b"), Key("ns", "c")
DEPLOYMENT = Kind("apps/v1", "Deployment")
ONE, TWO = Reference(DEPLOYMENT, "ns", "one"), Reference(DEPLOYMENT, "ns", "two")


def deployment(
    generation: int, version: int = 1, uid: str = "u", name: str = "one", namespace: str = "ns"
) -> Object:
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "generation": generation,
            "resourceVersion": str(version),
        }
    }


def claim(version: int) -> Object:
    meta = {"namespace": "ns", "name": "one", "uid": "u", "resourceVersion": str(version)}
    return {"metadata": meta}


class Streams:
    """The API server's streams: each is a list of changes, seconds of silence, or an error; then it ends, or stays open."""

    def __init__(self, *streams: list[Any], stay: bool = False) -> None:
        self.streams, self.stay = list(streams), stay
        self.opened: list[tuple[float, str]] = []  # when, and of which kind and namespace
        self.open: list[str] = []

    async def __call__(
        self, api_version: str, kind: str, namespace: str
    ) -> AsyncIterator[tuple[str, Object]]:
        what = f"{kind}/{namespace}"
        self.opened.append((now(), what))
        self.open.append(what)
        try:
            for change in self.streams.pop(0) if self.streams else []:
                if isinstance(change, Exception):
                    raise change
                if isinstance(change, int):
                    await asyncio.sleep(change)
                else:
                    yield change
            if self.stay or not self.streams:
                await asyncio.Event().wait()
        finally:
            self.open.remove(what)


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(
    streams: Streams,
    story: Callable[[ReferenceWatcher], Awaitable[None]],
    namespaces: Sequence[str] = ALL_NAMESPACES,
) -> list[tuple[float, Key]]:
    woken: list[tuple[float, Key]] = []

    async def all_of_it() -> None:
        watcher = ReferenceWatcher(streams, lambda key: woken.append((now(), key)), namespaces)
        running = asyncio.create_task(watcher.run())
        await story(watcher)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not streams.open

    run(all_of_it())
    return woken


async def one_names_it(watcher: ReferenceWatcher) -> None:
    watcher.set_references(A, [ONE])
    await asyncio.sleep(300)


LISTED: tuple[str, Object] = ("LISTED", {})
GONE = ("DELETED", deployment(1))


def there(generation: int = 1, **more: Any) -> list[Any]:
    return [("ADDED", deployment(generation, **more)), LISTED]


@pytest.mark.parametrize(
    ("case", "streams", "wakes"),
    [
        ("it is there", [there()], 1),
        ("it is not there", [[LISTED]], 1),
        ("it is made later", [[LISTED, ("ADDED", deployment(1))]], 2),
        ("its spec changes", [[*there(), ("MODIFIED", deployment(2, 2))]], 2),
        ("only its status changes", [[*there(), ("MODIFIED", deployment(1, 2))]], 1),
        ("it is deleted", [[*there(), GONE]], 2),
        ("it is recreated", [[*there(), GONE, ("ADDED", deployment(1, 9, "other"))]], 3),
        (
            "another of the namespace changes",
            [[*there(), ("MODIFIED", deployment(2, name="other"))]],
            1,
        ),
        (
            "one of this name changes in another namespace",
            [[*there(), ("MODIFIED", deployment(2, namespace="elsewhere"))]],
            1,
        ),
        ("the stream ends and nothing was missed", [there(), there(version=5)], 1),
        ("the stream ends and a change was missed", [there(), there(2)], 2),
        ("the stream ends and its end was missed", [there(), [LISTED]], 2),
        ("the stream ends, and again, while it is not there", [[LISTED], [LISTED], [LISTED]], 1),
        (
            "a kind that counts no changes of its spec",
            [[("ADDED", claim(1)), LISTED, ("MODIFIED", claim(2))]],
            2,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_key_is_woken_when(case: str, streams: list[list[Any]], wakes: int) -> None:
    assert len(play(Streams(*streams), one_names_it)) == wakes


def test_one_watch_serves_every_cache_that_names_the_object() -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        watcher.set_references(B, [ONE])
        watcher.set_references(B, [ONE])
        await asyncio.sleep(1)

    streams = Streams(there())
    assert sorted(key for _, key in play(streams, story)) == [A, B]
    assert streams.opened == [(0, "Deployment/")]


def test_each_name_of_a_kind_wakes_its_own_cache_by_one_watch() -> None:
    three = Reference(DEPLOYMENT, "elsewhere", "three")

    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        await asyncio.sleep(1)
        watcher.set_references(B, [TWO])
        watcher.set_references(C, [three])
        await asyncio.sleep(10)
        assert streams.open == ["Deployment/"]

    streams = Streams(
        [
            *there(),
            5,
            ("MODIFIED", deployment(2, name="two")),
            ("DELETED", deployment(1, name="three", namespace="elsewhere")),
        ],
        stay=True,
    )
    woken = [key for _, key in play(streams, story)]
    assert woken == [A, B, C]
    assert len(streams.opened) == 1


def test_a_thousand_namespaces_need_one_connection_for_each_kind() -> None:
    claims = Kind("v1", "PersistentVolumeClaim")

    async def story(watcher: ReferenceWatcher) -> None:
        for number in range(1000):
            namespace = f"n{number}"
            named = [Reference(kind, namespace, "x") for kind in (DEPLOYMENT, claims)]
            watcher.set_references(Key(namespace, "cache"), named)
        await asyncio.sleep(1)
        assert sorted(streams.open) == ["Deployment/", "PersistentVolumeClaim/"]

    streams = Streams()
    play(streams, story)


def test_where_pretune_works_in_a_few_namespaces_each_is_watched_alone() -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        await asyncio.sleep(1)
        assert sorted(streams.open) == ["Deployment/ns", "Deployment/other"]

    streams = Streams(there(), [LISTED], stay=True)
    woken = [key for _, key in play(streams, story, ("ns", "other"))]
    assert woken == [A], "the list of another namespace says nothing of it"


@pytest.mark.parametrize(
    "refusal", [NoSuchKind("v1", "Ghost"), ApiError(403, "Forbidden", "no right")], ids=str
)
def test_a_kind_that_may_not_be_watched_costs_a_request_only_when_a_cache_names_it_again(
    refusal: ApiError,
) -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        await asyncio.sleep(3600)
        assert len(streams.opened) == 1 and not streams.open
        watcher.set_references(A, [ONE])  # its next reconcile
        await asyncio.sleep(1)
        assert streams.open == ["Deployment/"]

    streams = Streams([refusal], there(), stay=True)
    assert [key for _, key in play(streams, story)] == [A]


def test_what_no_cache_names_any_more_is_not_watched() -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        watcher.set_references(B, [ONE])
        await asyncio.sleep(1)
        watcher.set_references(A, [])
        await asyncio.sleep(1)
        assert streams.open == ["Deployment/"]
        watcher.set_references(B, [TWO])
        await asyncio.sleep(1)
        assert len(streams.opened) == 1
        watcher.set_references(B, [])
        await asyncio.sleep(1)
        assert streams.open == [] and not watcher._keys and not watcher._known

    streams = Streams()
    play(streams, story)


def test_a_cache_names_its_workload_and_a_claim_of_the_users() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
    the_cache = cache(source={"workloadRef": ref}, storage={"existingClaim": {"name": "shared"}})
    assert find_references(the_cache) == {
        Reference(DEPLOYMENT, "inference", "one"),
        Reference(Kind("v1", "PersistentVolumeClaim"), "inference", "shared"),
    }
    assert find_references(cache()) == frozenset()
