"""How a watch that ends is opened again. Times are the virtual loop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pretune.api.types import Object
from pretune.kube.types import ApiError, NoSuchKind
from pretune.kube.watch import (
    ENDED,
    LEFT_OUT,
    LISTED,
    MAX_PAUSE_SECONDS,
    watch_namespaces,
    watch_with_backoff,
)

from tests.unit.virtual import run

FORBIDDEN, EXPIRED = ApiError(403, "Forbidden", "no"), ApiError(410, "Expired", "")
REFUSED, RESET = ConnectionError("refused"), ConnectionError("reset")


class Streams:
    """Each stream is a list of changes, seconds of silence, or an error; then it ends. After the last one: silence."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.opened: list[float] = []

    async def __call__(self) -> AsyncIterator[tuple[str, Object]]:
        self.opened.append(now())
        if not self.streams:
            await asyncio.Event().wait()
        for change in self.streams.pop(0):
            if isinstance(change, Exception):
                raise change
            if isinstance(change, int):
                await asyncio.sleep(change)
            else:
                yield change, {}


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


def play(streams: Streams, **options: float) -> list[str]:
    """The changes that come in 300 seconds."""
    changes: list[str] = []

    async def collect() -> None:
        async for change, _ in watch_with_backoff("caches", streams, **options):
            changes.append(change)

    async def story() -> None:
        task = asyncio.create_task(collect())
        await asyncio.sleep(300)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    return changes


@pytest.mark.parametrize(
    ("case", "streams", "opened"),
    [
        ("the API server ends it after a while", [[LISTED, 60]], [0, 60]),
        ("it is silent, which is looked into at once", [[LISTED, 20, TimeoutError()]], [0, 20]),
        ("it ends again and again", [[LISTED]] * 5, [0, 1, 3, 7, 15, 31]),
        ("the API server restarts", [[LISTED, 60, RESET], [REFUSED], [REFUSED]], [0, 61, 63, 67]),
        ("what happened meanwhile is forgotten", [[LISTED, 60, EXPIRED]], [0, 61]),
        ("it may not be read", [[FORBIDDEN]] * 7, [0, 1, 3, 7, 15, 31, 61, 91]),
        ("it may be listed and not watched", [[LISTED, FORBIDDEN]] * 3, [0, 1, 3, 7]),
        ("the kind is not there yet", [[NoSuchKind("x/v1", "Y")]], [0, 1]),
        ("a line was cut off", [[LISTED, 60, ValueError("no JSON")]], [0, 61]),
        ("a short one after a long one", [[LISTED, 60], [LISTED], [LISTED, 60]], [0, 60, 61, 121]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_watch_that_ends_is_opened_again(
    case: str, streams: list[list[Any]], opened: list[float]
) -> None:
    played = Streams(*streams)
    changes = play(played)
    assert played.opened == opened
    assert changes.count(ENDED) == len(streams)


def test_the_pause_grows_to_its_limit() -> None:
    streams = Streams(*[[REFUSED]] * 6)
    play(streams, max_pause_seconds=10)
    assert streams.opened == [0, 1, 3, 7, 15, 25, 35]
    assert MAX_PAUSE_SECONDS > 10


def test_the_log_has_each_cause_once_and_that_the_watch_is_open_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    play(
        Streams(
            *[[REFUSED]] * 3,
            *([LISTED, 9, TimeoutError()], [LISTED, 60], [REFUSED], [LISTED, 60]),
        )
    )
    assert [message.removeprefix("caches: ") for message in caplog.messages] == [
        "the watch failed and is retried until it is open: refused",
        "the watch is open again",
    ] * 2


def test_an_error_of_our_own_is_raised() -> None:
    async def defective() -> AsyncIterator[tuple[str, Object]]:
        raise KeyError("ours")
        yield LISTED, {}

    async def collect() -> None:
        async for _ in watch_with_backoff("caches", defective):
            pass

    with pytest.raises(KeyError):
        run(collect())


# --- several namespaces


def scripts(**of: list[Any]) -> Any:
    """Return how to open a namespace's stream, which is a list as in Streams; then silence."""

    async def open_watch(namespace: str) -> AsyncIterator[tuple[str, Object]]:
        for item in of[namespace]:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, float):
                await asyncio.sleep(item)
            elif item == "end":
                return
            else:
                yield item
        await asyncio.Event().wait()

    return open_watch


async def collected(streams: Any, names: tuple[str, ...], seconds: float = 1000) -> list[Any]:
    """Return what a watch of the namespaces brings, how it ends, and when."""
    found: list[Any] = []
    began = now()
    try:
        async with asyncio.timeout(seconds):
            async for change in watch_namespaces(streams, names):
                found.append(change)
        found.append("end")
    except TimeoutError:
        found.append("open")
    except Exception as error:
        found.append(error)
    return [*found, now() - began]


def one(name: str) -> tuple[str, Object]:
    return "ADDED", {"metadata": {"name": name}}


WHOLE = (LISTED, {})
WITHOUT_A = (LEFT_OUT, {"metadata": {"namespace": "a"}})


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        (
            {"a": [one("1"), WHOLE, one("3")], "b": [5.0, one("2"), WHOLE]},
            [one("1"), one("3"), one("2"), WHOLE, "open", 1000],
        ),
        ({"a": [WHOLE, 30.0, "end"], "b": [WHOLE]}, [WHOLE, "end", 30]),
        ({"a": [WHOLE, 30.0, EXPIRED], "b": [WHOLE]}, [WHOLE, EXPIRED, 30]),
        ({"a": [RESET], "b": [WHOLE]}, [RESET, 0]),
        # Deleted, or without rights: left out for a minute.
        ({"a": [FORBIDDEN], "b": [one("2"), WHOLE]}, [WITHOUT_A, one("2"), WHOLE, "end", 60]),
        ({"a": [WHOLE, 5.0, FORBIDDEN], "b": [WHOLE]}, [WHOLE, WITHOUT_A, "end", 65]),
    ],
    ids=["listed once", "one ends", "one expires", "one fails", "one missing", "one deleted"],
)
def test_streams_of_several_namespaces_are_as_one(
    streams: dict[str, list[Any]], expected: list[Any]
) -> None:
    assert run(collected(scripts(**streams), ("a", "b"))) == expected


def test_no_task_is_left_behind() -> None:
    async def count() -> int:
        await collected(scripts(a=[WHOLE], b=[WHOLE, 3.0, RESET]), ("a", "b"))
        return len(asyncio.all_tasks())

    assert run(count()) == 1
