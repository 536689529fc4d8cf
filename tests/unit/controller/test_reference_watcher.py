"""Which keys are woken when an object changes that they name. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pretune.api.types import Key, Object
from pretune.controller.reference_watcher import Reference, ReferenceWatcher, Scope, find_references

from tests.builders.caches import cache
from tests.unit.virtual import run

A, B, C = Key("ns", "a"), Key("ns", "b"), Key("ns", "c")
SCOPE = Scope("apps/v1", "Deployment", "ns")
ONE, TWO = Reference(SCOPE, "one"), Reference(SCOPE, "two")


def deployment(generation: int, version: int = 1, uid: str = "u", name: str = "one") -> Object:
    return {
        "metadata": {
            "name": name,
            "uid": uid,
            "generation": generation,
            "resourceVersion": str(version),
        }
    }


def claim(version: int) -> Object:
    return {"metadata": {"name": "one", "uid": "u", "resourceVersion": str(version)}}


class Streams:
    """The API server's streams: each is a list of changes, seconds of silence, or an error; then it ends, or stays open."""

    def __init__(self, *streams: list[Any], stay: bool = False) -> None:
        self.streams, self.stay = list(streams), stay
        self.opened: list[tuple[float, str]] = []  # when, and of which name ("" is the namespace)
        self.open: list[str] = []

    async def __call__(
        self, api_version: str, kind: str, namespace: str, name: str
    ) -> AsyncIterator[tuple[str, Object]]:
        assert (api_version, kind, namespace) == SCOPE
        self.opened.append((now(), name))
        self.open.append(name)
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
            self.open.remove(name)


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(
    streams: Streams, story: Callable[[ReferenceWatcher], Awaitable[None]]
) -> list[tuple[float, Key]]:
    woken: list[tuple[float, Key]] = []

    async def all_of_it() -> None:
        watcher = ReferenceWatcher(streams, lambda key: woken.append((now(), key)))
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
    assert [name for _, name in streams.opened] == ["one"]


def test_several_names_of_a_namespace_share_a_watch_and_each_wakes_its_own() -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        await asyncio.sleep(1)
        watcher.set_references(B, [TWO])
        await asyncio.sleep(1)
        assert streams.open == [""]
        watcher.set_references(C, [Reference(SCOPE, "three")])
        await asyncio.sleep(10)
        assert [name for _, name in streams.opened] == [
            "one",
            "",
        ]  # the third joins the watch that runs

    two = ("ADDED", deployment(1, name="two")), ("MODIFIED", deployment(2, name="two"))
    streams = Streams(
        there(), [two[0], *there(), 5, two[1], ("DELETED", deployment(1, name="three"))], stay=True
    )
    woken = [key for _, key in play(streams, story)]
    assert woken.count(A) == 1  # known since the first watch
    assert woken.count(B) == 2  # woken once for its object, and once for a change of it
    assert woken.count(C) == 1  # its object went; nothing was known of it


def test_what_no_cache_names_any_more_is_not_watched() -> None:
    async def story(watcher: ReferenceWatcher) -> None:
        watcher.set_references(A, [ONE])
        watcher.set_references(B, [ONE])
        await asyncio.sleep(1)
        watcher.set_references(A, [])
        await asyncio.sleep(1)
        assert streams.open == ["one"]
        watcher.set_references(B, [TWO])
        await asyncio.sleep(1)
        assert streams.open == ["two"]
        watcher.set_references(B, [])
        await asyncio.sleep(1)
        assert streams.open == []

    streams = Streams()
    play(streams, story)


def test_a_cache_names_its_workload_and_a_claim_of_the_users() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
    the_cache = cache(source={"workloadRef": ref}, storage={"existingClaim": {"name": "shared"}})
    assert find_references(the_cache) == {
        Reference(Scope("apps/v1", "Deployment", "inference"), "one"),
        Reference(Scope("v1", "PersistentVolumeClaim", "inference"), "shared"),
    }
    assert find_references(cache()) == frozenset()
