"""What the kubelet and Prometheus are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from pretune import health
from pretune.health import serve_health

from tests.ports import free_port


async def pods() -> bytes:
    return b"pods 3\n"


def ask(path: str, **served: Any) -> tuple[int, str, str]:
    async def story() -> tuple[int, str, str]:
        port = free_port()
        async with serve_health(port, **served), aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text(), answer.headers["Content-Type"]

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "served", "status", "text"),
    [
        ("/healthz", {}, 200, "ok\n"),
        ("/readyz", {}, 200, "ok\n"),
        (
            "/healthz",
            {"alive": lambda: "the queue does not move"},
            503,
            "the queue does not move\n",
        ),
        ("/readyz", {"alive": lambda: "the queue does not move"}, 200, "ok\n"),
        (
            "/readyz",
            {"ready": lambda: "the caches were not read yet"},
            503,
            "the caches were not read yet\n",
        ),
        ("/healthz", {"ready": lambda: "the caches were not read yet"}, 200, "ok\n"),
        ("/metrics", {"metrics": pods}, 200, "pods 3\n"),
    ],
)
def test_a_page_says_what_is_the_matter_or_ok(
    path: str, served: Any, status: int, text: str
) -> None:
    assert ask(path, **served)[:2] == (status, text)


def test_metrics_are_in_prometheus_text_format_and_only_where_there_are_some() -> None:
    assert ask("/metrics", metrics=pods)[2] == "text/plain; version=0.0.4; charset=utf-8"
    assert ask("/metrics")[0] == 404


def test_each_answer_is_as_things_stand_then() -> None:
    async def story() -> list[int]:
        troubles, port = ["starting", ""], free_port()
        async with (
            serve_health(port, ready=lambda: troubles.pop(0)),
            aiohttp.ClientSession() as session,
        ):
            return [(await session.get(f"http://127.0.0.1:{port}/readyz")).status for _ in range(2)]

    assert asyncio.run(story()) == [503, 200]


def test_port_0_is_not_served() -> None:
    async def story() -> bool:
        async with serve_health(0):
            return True

    assert asyncio.run(story())


# --- anybody may ask


def test_all_who_ask_within_a_second_get_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 0.3)
    texts = iter(range(100))

    async def write() -> bytes:
        await asyncio.sleep(0.05)
        return str(next(texts)).encode()

    async def story() -> tuple[set[bytes], bytes]:
        shared = health.SharedText(write)
        at_once = set(await asyncio.gather(*(shared.read() for _ in range(50))))
        await asyncio.sleep(0.4)
        return at_once, await shared.read()

    assert asyncio.run(story()) == ({b"0"}, b"1")


def test_an_error_of_the_metrics_is_not_shared() -> None:
    answers: list[Any] = [RuntimeError("once"), b"text"]

    async def write() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    async def story() -> bytes:
        shared = health.SharedText(write)
        with pytest.raises(RuntimeError):
            await shared.read()
        return await shared.read()

    assert asyncio.run(story()) == b"text"


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.2):
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_of_many_connections_the_oldest_is_closed_and_the_kubelet_gets_its_answer() -> None:
    async def story() -> tuple[list[bool], int]:
        port = free_port()
        async with serve_health(port), aiohttp.ClientSession() as session:
            idle = [
                await asyncio.open_connection("127.0.0.1", port)
                for _ in range(health.MAX_CONNECTIONS + 4)
            ]
            async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                status = answer.status
            closed = await asyncio.gather(*(is_closed(reader) for reader, _ in idle))
            for _, writer in idle:
                writer.close()
            return list(closed), status

    closed, status = asyncio.run(story())
    assert status == 200
    assert closed == [True] * 5 + [False] * (health.MAX_CONNECTIONS - 1)


def test_a_reader_that_takes_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTION_SECONDS", 0.3)
    size = 64 << 20

    async def write() -> bytes:
        return b"x" * size

    async def story() -> int:
        port = free_port()
        async with serve_health(port, metrics=write):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.6)
            received = 0
            try:
                while chunk := await reader.read(1 << 16):
                    received += len(chunk)
            except ConnectionError:
                pass
            writer.close()
            return received

    assert asyncio.run(story()) < size


def test_each_connection_is_for_one_answer() -> None:
    async def story() -> str:
        port = free_port()
        async with serve_health(port), aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                return answer.headers.get("Connection", "")

    assert asyncio.run(story()) == "close"
