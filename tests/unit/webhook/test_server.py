"""What a request may cost that anybody on the network can send."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import subprocess
import tracemalloc
from asyncio import sslproto
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from pretune.api.types import Object
from pretune.intake import ENVELOPE
from pretune.webhook import server
from pretune.webhook.admission import Answer
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.server import (
    MAX_REQUEST_BYTES,
    MAX_TOTAL_BYTES,
    PATH,
    MemoryBudget,
    RequestError,
    bound_connections,
    build_application,
    parse_review,
)

JSON = "application/json"
MAX_VALUES = ENVELOPE.values
Ask = Callable[..., Awaitable[tuple[int, str]]]


def play(
    story: Callable[[Ask], Awaitable[Any]],
    admit: Callable[[Object], Awaitable[Answer]] | None = None,
) -> tuple[Any, list[int]]:
    """Return what the story returns, and the status of each request that was refused."""
    refusals: list[int] = []

    async def allow(request: Object) -> Answer:
        return Answer("None", "Skipped")

    async def all_of_it() -> Any:
        app = build_application(admit or allow, None, refusals.append)
        async with TestServer(app) as served, aiohttp.ClientSession() as session:

            async def ask(body: Any, content_type: str = JSON) -> tuple[int, str]:
                headers = {"Content-Type": content_type}
                async with session.post(served.make_url(PATH), data=body, headers=headers) as got:
                    return got.status, await got.text()

            return await story(ask)

    return asyncio.run(all_of_it()), refusals


def review(**pod: Any) -> bytes:
    return json.dumps({"request": {"uid": "u", "object": pod}}).encode()


async def repeated(piece: bytes, size: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    """Yield so many bytes without a length that is known before."""
    chunk = piece * (65536 // len(piece))
    for _ in range(0, size, len(chunk)):
        yield chunk
        await asyncio.sleep(pause)


@pytest.mark.parametrize(
    ("case", "body", "content_type", "status", "words"),
    [
        ("a review", review(kind="Pod"), JSON, 200, '"allowed": true'),
        ("a form", b"a=b", "application/x-www-form-urlencoded", 415, "application/json"),
        ("no JSON", b"{", JSON, 400, "not an AdmissionReview"),
        ("lists in lists", b"[" * 90_000, JSON, 400, "not an AdmissionReview"),
        ("a body that says that it is too large", b"x" * (MAX_REQUEST_BYTES + 1), JSON, 413, "larger than 3145728 bytes"),
        ("many values", b"[" + b"{}," * MAX_VALUES + b"0]", JSON, 400, "not an AdmissionReview"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
def test_a_request_that_no_api_server_sends_is_refused(
    case: str, body: bytes, content_type: str, status: int, words: str
) -> None:
    (got, text), refusals = play(lambda ask: ask(body, content_type))
    assert got == status and words in text
    assert refusals == ([] if status == 200 else [status])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("[" * 1000 + "]" * 1000, "is nested more than 66 levels deep"),
        ("[" + "0," * MAX_VALUES + "0]", "has more than 100,000 values"),
    ],
)
def test_a_pod_that_is_too_large_is_admitted_unchanged_with_a_warning(
    template: str, words: str
) -> None:
    head = '"uid":"u","name":"p","namespace":"ns","operation":"CREATE","userInfo":{"groups":["a"]}'
    body = f'{{"kind":"AdmissionReview","request":{{{head},"object":{{"spec":{template}}}}}}}'
    (status, text), refusals = play(lambda ask: ask(body.encode()))
    response = json.loads(text)["response"]
    assert (status, refusals) == (200, []) and response["uid"] == "u" and response["allowed"]
    assert response["warnings"] == [
        f"pretune: TooLarge: the pod {words}, and starts without a bundle: make the pod smaller"
    ]


def test_an_endless_body_is_read_up_to_the_limit_only() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    _, refusals = play(lambda ask: _closed(ask, endless()))
    assert refusals == [413]


def test_a_body_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.2)
    _, refusals = play(lambda ask: _closed(ask, repeated(b"x", 1 << 20, pause=0.1)))
    assert refusals == [408]


async def _closed(ask: Ask, body: Any) -> None:
    try:
        status, _ = await ask(body)
        assert status >= 400
    except aiohttp.ClientError:
        pass


@pytest.mark.parametrize("piece", [b"{},", b"[", b'{"a":', b'"\\u1234",', "\u20ac".encode(), b"0,"])
def test_sixteen_mib_of_anything_cost_a_few(piece: bytes) -> None:
    async def story(ask: Ask) -> float:
        await ask(review())
        tracemalloc.start()
        await _closed(ask, repeated(piece, 16 << 20))
        return tracemalloc.get_traced_memory()[1] / 2**20

    try:
        peak, refusals = play(story)
    finally:
        tracemalloc.stop()
    assert peak < 16
    assert refusals == [413]


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'{"a":0},', b'"ab",', b"1234567,"])
def test_the_largest_body_that_is_parsed_takes_less_than_64_mib(piece: bytes) -> None:
    fits = min(
        MAX_REQUEST_BYTES // len(piece),
        (MAX_VALUES - 10) // (piece.count(b"{") + piece.count(b"[") + 1),
    )
    body = b'{"request": {"uid": "u", "object": [' + piece * fits + b"0]}}"
    tracemalloc.start()
    try:
        with MemoryBudget().reserve() as grow:
            assert parse_review(body, grow)
        assert tracemalloc.get_traced_memory()[1] / 2**20 < 64
    finally:
        tracemalloc.stop()


def test_requests_that_are_too_large_together_get_503_and_the_next_one_is_answered() -> None:
    release = asyncio.Event()

    async def wait(request: Object) -> Answer:
        await release.wait()
        return Answer("None", "Skipped")

    size = 2 << 20
    fit = MAX_TOTAL_BYTES // size

    async def story(ask: Ask) -> list[int]:
        large = review(note="x" * size)
        waiting = [asyncio.create_task(ask(large)) for _ in range(fit + 4)]
        answered = asyncio.as_completed(waiting)
        for _ in range(4):
            assert (await next(answered))[0] == 503
        release.set()
        answers = [status for status, _ in await asyncio.gather(*waiting)]
        return [*answers, (await ask(large))[0]]

    statuses, refusals = play(story, wait)
    assert statuses.count(503) == len(refusals) >= 4
    assert statuses.count(200) >= fit - 4 and statuses[-1] == 200


def test_a_thousand_pods_that_are_created_at_once_fit() -> None:
    """The API server sends 200 requests at a time (--max-mutating-requests-inflight)."""
    pod = {"env": [{"name": f"NAME_{number}", "value": "x" * 40} for number in range(100)]}
    budget, body = MemoryBudget(), review(**pod)
    for _ in range(400):
        reserved = budget.reserve()
        grow = reserved.__enter__()
        grow(len(body))
        parse_review(body, grow)


def test_a_budget_is_given_back_whatever_happens() -> None:
    budget = MemoryBudget(100)
    for _ in range(3):
        with pytest.raises(RequestError, match="too many"), budget.reserve() as grow:
            grow(60)
            grow(60)
    with budget.reserve() as grow:
        grow(100)


def test_an_idle_connection_costs_little_and_there_are_only_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1 << 20, 1 << 20))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limit: limits.append(limit))
    bound_connections()
    assert limits == [(1024, 1 << 20)]
    pair = ["-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *key, "-subj", "/CN=x", "-days", "30", *pair]
    subprocess.run(command, check=True, capture_output=True)
    context = CertificateWatcher(tmp_path).context

    def connect(port: int) -> list[ssl.SSLSocket]:
        client = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
        client.check_hostname = False
        return [
            client.wrap_socket(socket.create_connection(("127.0.0.1", port))) for _ in range(50)
        ]

    async def story() -> float:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        async with server:
            tracemalloc.start()
            idle = await asyncio.to_thread(connect, server.sockets[0].getsockname()[1])
            taken = tracemalloc.get_traced_memory()[0] / len(idle)
            for connection in idle:
                connection.close()
            return taken

    try:
        assert asyncio.run(story()) < 64 << 10
    finally:
        tracemalloc.stop()
