"""Which keys are woken when an object changes that they name. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pretune.api.names import CACHE, DELIVERY, REASON, ROLE
from pretune.api.types import Key, Object
from pretune.controller.triggers import Named, Place, Pods, Watching, named
from pretune.kube.types import ApiError

from tests.unit.objects import cache
from tests.unit.virtual import run

A, B, C = Key("ns", "a"), Key("ns", "b"), Key("ns", "c")
PLACE = Place("apps/v1", "Deployment", "ns")
ONE, TWO = Named(PLACE, "one"), Named(PLACE, "two")


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
        assert (api_version, kind, namespace) == PLACE
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
        ("it is made anew", [[*there(), GONE, ("ADDED", deployment(1, 9, "other"))]], 3),
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
    async def story(watching: Watching) -> None:
        watching.follow(A, [ONE])
        watching.follow(B, [ONE])
        watching.follow(B, [ONE])
        await asyncio.sleep(1)

    streams = Streams(there())
    assert sorted(key for _, key in play(streams, story)) == [A, B]
    assert [name for _, name in streams.opened] == ["one"]


def test_several_names_of_a_namespace_share_a_watch_and_each_wakes_its_own() -> None:
    async def story(watching: Watching) -> None:
        watching.follow(A, [ONE])
        await asyncio.sleep(1)
        watching.follow(B, [TWO])
        await asyncio.sleep(1)
        assert streams.open == [""]
        watching.follow(C, [Named(PLACE, "three")])
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
    assert woken.count(B) == 2  # it was told, and its object changed
    assert woken.count(C) == 1  # its object went; nothing was known of it


def test_what_no_cache_names_any_more_is_not_watched() -> None:
    async def story(watching: Watching) -> None:
        watching.follow(A, [ONE])
        watching.follow(B, [ONE])
        await asyncio.sleep(1)
        watching.follow(A, [])
        await asyncio.sleep(1)
        assert streams.open == ["one"]
        watching.follow(B, [TWO])
        await asyncio.sleep(1)
        assert streams.open == ["two"]
        watching.follow(B, [])
        await asyncio.sleep(1)
        assert streams.open == []

    streams = Streams()
    play(streams, story)


def test_a_cache_names_its_workload_and_a_claim_of_the_users() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
    the_cache = cache(source={"workloadRef": ref}, storage={"existingClaim": {"name": "shared"}})
    assert named(the_cache) == {
        Named(Place("apps/v1", "Deployment", "inference"), "one"),
        Named(Place("v1", "PersistentVolumeClaim", "inference"), "shared"),
    }
    assert named(cache()) == frozenset()


# --- pods


def pod(name: str = "p", version: int = 1, cache: str = "a", **meta: Any) -> Object:
    labels = {CACHE: cache, **meta.pop("labels", {})}
    return {
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": name,
            "resourceVersion": str(version),
            "labels": labels,
            **meta,
        }
    }


def woken(*streams: list[Any]) -> list[tuple[float, Key, bool]]:
    """What a watch of pods wakes: when, whom, how urgently."""
    return told(*streams)[0]


def told(
    *streams: list[Any], fail: int = 0
) -> tuple[list[tuple[float, Key, bool]], list[tuple[float, str]]]:
    """That, and whom it frees, when; "/" is everybody. The first `fail` tries to free fail."""
    found: list[tuple[float, Key, bool]] = []
    freed: list[tuple[float, str]] = []
    left = list(streams)

    async def free(namespace: str, name: str) -> None:
        freed.append((now(), f"{namespace}/{name}"))
        if len(freed) <= fail:
            raise TimeoutError

    async def watch() -> AsyncIterator[tuple[str, Object]]:
        for change in left.pop(0):
            if isinstance(change, Exception):
                raise change
            if isinstance(change, int):
                await asyncio.sleep(change)
            else:
                yield change
        if not left:
            await asyncio.Event().wait()

    async def story() -> None:
        pods = Pods(watch, lambda key, urgent: found.append((now(), key, urgent)), free)
        running = asyncio.create_task(pods.run())
        await asyncio.sleep(1000)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(story())
    return found, freed


@pytest.mark.parametrize(
    ("case", "streams", "keys"),
    [
        ("it is there", [[("ADDED", pod()), LISTED]], [A]),
        ("it comes, changes and goes", [[LISTED, ("ADDED", pod()), ("MODIFIED", pod(version=2)), ("DELETED", pod())]], [A, A, A]),
        ("its label names another cache", [[("ADDED", pod()), LISTED, ("MODIFIED", pod(version=2, cache="b"))]], [A, A, B]),
        ("its label is taken away, which is told as its end", [[("ADDED", pod()), LISTED, ("DELETED", pod(version=2))]], [A, A]),
        ("it goes by another name than it was known by", [[("ADDED", pod(cache="b")), LISTED, ("DELETED", pod())]], [B, B]),
        ("one goes that was not known", [[LISTED, ("DELETED", pod())]], [A]),
        ("the stream ends and nothing was missed", [[("ADDED", pod()), LISTED], [("ADDED", pod()), LISTED]], [A]),
        ("the stream ends and a change was missed", [[("ADDED", pod()), LISTED], [("ADDED", pod(version=2)), LISTED]], [A, A]),
        ("the stream ends and another name was missed", [[("ADDED", pod()), LISTED], [("ADDED", pod(version=2, cache="b"))]], [A, A, B]),
        ("the stream ends and its end was missed", [[("ADDED", pod()), LISTED], [LISTED], [LISTED]], [A, A]),
        ("the stream ends before all were listed", [[("ADDED", pod()), LISTED], [ConnectionError()], [("ADDED", pod()), LISTED]], [A]),
        ("it came after the list, and the stream ends", [[LISTED, ("ADDED", pod())], [("ADDED", pod()), LISTED]], [A]),
        ("it came after the list, and its end was missed", [[LISTED, ("ADDED", pod())], [LISTED]], [A, A]),
        ("its label is empty", [[("ADDED", pod(cache="")), LISTED, ("DELETED", pod(cache=""))]], []),
        ("its label is emptied", [[("ADDED", pod()), LISTED, ("MODIFIED", pod(version=2, cache=""))], [LISTED]], [A, A]),
        ("it is made anew under its name", [[("ADDED", pod()), LISTED], [("ADDED", pod(uid="other")), LISTED]], [A, A, A]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pods_key_is_woken_when(case: str, streams: list[list[Any]], keys: list[Key]) -> None:
    assert [key for _, key, _ in woken(*streams)] == keys


HELD = {REASON: "Held: bundle b is being tuned"}


@pytest.mark.parametrize(
    ("case", "changes", "urgent"),
    [
        ("a consumer", [("ADDED", pod()), ("MODIFIED", pod(version=2))], [False, False]),
        ("an attempt's", [("ADDED", pod(labels={ROLE: "tuning"})), ("MODIFIED", pod(version=2, labels={ROLE: "tuning"})),
                          ("DELETED", pod(labels={ROLE: "tuning"}))], [True, True, True]),
        ("one that is held, when it comes", [("ADDED", pod(annotations=HELD)), ("MODIFIED", pod(version=2, annotations=HELD)),
                                             ("DELETED", pod(annotations=HELD))], [True, False, False]),
        ("one that is not held", [("ADDED", pod(annotations={REASON: "Given: Held: no"}))], [False]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_news_of_a_pod_is_urgent_where_others_wait_for_it(
    case: str, changes: list[Any], urgent: list[bool]
) -> None:
    assert [one for _, _, one in woken([LISTED, *changes])] == urgent


def test_a_pod_that_was_held_before_the_controller_began_is_urgent_too() -> None:
    assert [one for _, _, one in woken([("ADDED", pod(annotations=HELD)), LISTED])] == [True]


def test_a_pod_is_reported_once_its_watch_can_be_opened() -> None:
    found = woken(
        [ApiError(403, "Forbidden", "")], [ApiError(410, "Expired", "")], [("ADDED", pod()), LISTED]
    )
    assert found == [(1 + 2, A, False)]


PART: Object = {"labels": {ROLE: "tuning"}}
GIVEN: Object = {**PART, "annotations": {DELIVERY: "Overlay"}}


@pytest.mark.parametrize(
    ("case", "changes", "freed"),
    [
        ("it comes and changes", [("ADDED", pod()), ("MODIFIED", pod(version=2))], []),
        ("its label is taken away, which is told as its end", [("ADDED", pod()), ("DELETED", pod(version=2))], ["ns/p"]),
        ("it is deleted", [("ADDED", pod()), ("DELETED", pod(version=2, deletionTimestamp="2026-01-01T00:00:00Z"))], []),
        ("its label is emptied", [("ADDED", pod()), ("MODIFIED", pod(version=2, cache=""))], ["ns/p"]),
        ("it is an attempt's", [("ADDED", pod(**PART))], []),
        ("a consumer gets the label of an attempt's", [("ADDED", pod()), ("MODIFIED", pod(version=2, **GIVEN))], ["ns/p"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pod_that_no_look_finds_any_more_is_freed(
    case: str, changes: list[Any], freed: list[str]
) -> None:
    assert [one for _, one in told([*changes])[1]] == freed


def test_at_the_beginning_of_each_stream_whoever_was_lost_meanwhile_is_freed() -> None:
    assert [
        one for _, one in told([("ADDED", pod()), LISTED, 700], [("ADDED", pod()), LISTED])[1]
    ] == ["/", "/"]


def test_freeing_is_tried_until_it_succeeds_and_holds_up_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found, freed = told([("DELETED", pod()), 5, ("ADDED", pod(name="q", cache="b"))], fail=2)
    assert freed == [(0, "ns/p"), (1, "ns/p"), (3, "ns/p")]
    assert (5, B, False) in found
    assert "pod ns/p may still be held, tried again in 1 s: TimeoutError" in caplog.messages


def test_the_latest_news_of_a_pod_alone_is_tried() -> None:
    changes = [("MODIFIED", pod(version=n, **GIVEN)) for n in (1, 2)]
    freed = told([changes[0], 2, changes[1]], fail=100)[1]
    assert [at for at, _ in freed[:6]] == [0, 1, 2, 3, 5, 9]
