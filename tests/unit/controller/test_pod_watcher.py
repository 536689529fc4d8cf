"""Which keys are woken when a pod changes, and which pods are released. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pretune.api.names import CACHE, DELIVERY, REASON, ROLE
from pretune.api.types import Key, Object
from pretune.controller.pod_watcher import PodWatcher
from pretune.kube.types import ApiError

from tests.unit.virtual import run

A, B = Key("ns", "a"), Key("ns", "b")
LISTED: tuple[str, Object] = ("LISTED", {})


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


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
    return [each for each in play(*streams) if each[1].name]


def orphans(*streams: list[Any]) -> list[str]:
    """The namespaces whose pods are looked through for those without a cache; "": all of them."""
    keys = [(key, urgent) for _, key, urgent in play(*streams) if not key.name]
    assert all(urgent for _, urgent in keys)
    return [key.namespace for key, _ in keys]


def play(*streams: list[Any]) -> list[tuple[float, Key, bool]]:
    found: list[tuple[float, Key, bool]] = []
    left = list(streams)

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
        pods = PodWatcher(watch, lambda key, urgent: found.append((now(), key, urgent)))
        running = asyncio.create_task(pods.run())
        await asyncio.sleep(1000)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(story())
    return found


@pytest.mark.parametrize(
    ("case", "streams", "keys"),
    [
        ("it is there", [[("ADDED", pod()), LISTED]], [A]),
        ("it comes, changes and goes", [[LISTED, ("ADDED", pod()), ("MODIFIED", pod(version=2)), ("DELETED", pod())]], [A, A, A]),
        ("its label names another cache", [[("ADDED", pod()), LISTED, ("MODIFIED", pod(version=2, cache="b"))]], [A, A, B]),
        ("its label is taken away, which is reported as its end", [[("ADDED", pod()), LISTED, ("DELETED", pod(version=2))]], [A, A]),
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
        ("it is recreated under its name", [[("ADDED", pod()), LISTED], [("ADDED", pod(uid="other")), LISTED]], [A, A, A]),
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
def test_a_change_of_a_pod_is_urgent_where_others_wait_for_it(
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
    ("case", "changes", "released"),
    [
        ("it comes and changes", [("ADDED", pod()), ("MODIFIED", pod(version=2))], []),
        ("its label is taken away, which is reported as its end", [("ADDED", pod()), ("DELETED", pod(version=2))], ["ns"]),
        ("it is deleted", [("ADDED", pod()), ("DELETED", pod(version=2, deletionTimestamp="2026-01-01T00:00:00Z"))], []),
        ("its label is emptied", [("ADDED", pod()), ("MODIFIED", pod(version=2, cache=""))], ["ns"]),
        ("it is an attempt's", [("ADDED", pod(**PART))], []),
        ("a consumer gets the label of an attempt's", [("ADDED", pod()), ("MODIFIED", pod(version=2, **GIVEN))], ["ns"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pod_that_no_reconcile_finds_any_more_is_released(
    case: str, changes: list[Any], released: list[str]
) -> None:
    assert orphans([*changes]) == released


def test_at_the_beginning_of_each_stream_pods_that_were_lost_meanwhile_are_released() -> None:
    assert orphans([("ADDED", pod()), LISTED, 700], [("ADDED", pod()), LISTED]) == ["", ""]
