"""What the kubelet and Prometheus are answered."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from pretune.health import serve_health


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
