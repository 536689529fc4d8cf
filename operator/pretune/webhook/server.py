"""The webhook's HTTPS server: POST /pods, with an AdmissionReview in and out.

Anybody in the cluster may reach it, so a request is bounded before it is parsed: its size, the time
in which it has to come, the number of values in it, and what all requests together may take.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import time
from asyncio import sslproto
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from pretune.api.types import Object
from pretune.intake import ENVELOPE, TooLarge, cut_review, parse_json
from pretune.webhook.admission import Answer, answer_too_large

PATH = "/pods"
# The API server accepts requests of 3 MiB, and etcd objects of 1.5 MiB.
MAX_REQUEST_BYTES = 3 << 20
BYTES_PER_VALUE = 128  # as Python has it, without its text
MAX_TOTAL_BYTES = 64 << 20  # of all requests that are read or answered, as BYTES_PER_VALUE counts
READ_SECONDS = 2.0  # in which a request has to come; the API server waits 5 s for its answer
# An idle connection: the API server closes it after 90 s, and must not meet one that we closed.
KEEPALIVE_SECONDS = 120.0
DRAIN_SECONDS = 5.0  # once the process ends: each connection is closed with its next answer
SHUTDOWN_SECONDS = 5.0  # after that, for requests that are under way

# asyncio gives each TLS connection a buffer of 256 KiB: 700 idle ones filled the webhook's memory.
TLS_BUFFER_BYTES = 32 << 10
# Connections of the process. The kernel refuses further ones, and asyncio accepts again after a
# second. An API server has as many as it sends requests at a time: 200 that create something.
MAX_OPEN_FILES = 1024

Admit = Callable[[Object], Awaitable[Answer]]  # an AdmissionReview's request; never raises
RecordAnswer = Callable[[str, str, float], None]  # its mode, its reason, and the seconds it took
RecordRefusal = Callable[[int], None]  # the HTTP status
Grow = Callable[[int], None]  # takes so many bytes more of a MemoryBudget, or raises RequestError

REVIEW = (
    '{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": %s, %s}}'
)


class RequestError(Exception):
    """A request that no API server sends, or too many at a time: it is not answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MemoryBudget:
    """What all requests together may take."""

    def __init__(self, max_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._free = max_bytes

    @contextmanager
    def reserve(self) -> Iterator[Grow]:
        """Give a function that takes bytes of the budget. They are given back at the end."""
        taken = 0

        def grow(size: int) -> None:
            nonlocal taken
            if size > self._free:
                raise RequestError(503, "too many requests at a time")
            self._free, taken = self._free - size, taken + size

        try:
            yield grow
        finally:
            self._free += taken


def build_application(
    admit: Admit,
    record_answer: RecordAnswer | None = None,
    record_refusal: RecordRefusal | None = None,
) -> web.Application:
    """Return the application that answers POST /pods: an AdmissionReview with an AdmissionReview.

    A request that no API server sends gets an HTTP status of 400 or more, before all of it is read
    where that is possible.
    """
    budget = MemoryBudget()

    async def answer_review(http_request: web.Request) -> web.Response:
        started_at = time.perf_counter()
        with budget.reserve() as grow:
            try:
                request, excess = parse_review(await read_body(http_request, grow), grow)
            except RequestError as error:
                if record_refusal is not None:
                    record_refusal(error.status)
                response = web.Response(status=error.status, text=f"{error}\n")
                response.force_close()
                return response
            answer = answer_too_large(request, excess) if excess else await admit(request)
        if record_answer is not None:
            record_answer(answer.mode, answer.reason, time.perf_counter() - started_at)
        review = REVIEW % (json.dumps(request["uid"]), answer.response)
        return web.Response(body=review.encode(), content_type="application/json")

    app = web.Application()
    app.router.add_post(PATH, answer_review)
    return app


async def read_body(http_request: web.Request, grow: Grow) -> bytes:
    """Return the body of a request. Raises RequestError, as soon as it is known to be too large."""
    if http_request.content_type != "application/json":
        raise RequestError(415, "the content type is not application/json")
    if (http_request.content_length or 0) > MAX_REQUEST_BYTES:
        raise RequestError(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in http_request.content.iter_any():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise RequestError(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes")
                grow(len(chunk))
    except TimeoutError:
        raise RequestError(408, f"the body did not come within {READ_SECONDS:.0f} s") from None
    return bytes(body)


def parse_review(body: bytes, grow: Grow) -> tuple[Object, str]:
    """Return the request in an AdmissionReview, and "". Raises RequestError.

    Of a pod that is too large to be read: the request without it, and what it exceeds.
    """
    # At least as many values as JSON has, strings with these characters included.
    values = sum(map(body.count, (b",", b"{", b"[")))
    grow(min(values, ENVELOPE.values) * BYTES_PER_VALUE)
    try:
        try:
            request, excess = parse_json(body, ENVELOPE)["request"], ""
        except TooLarge as error:
            request, excess = cut_review(body), str(error)
        if isinstance(request["uid"], str):
            request.get("object")
            return request, excess
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    raise RequestError(400, "the body is not an AdmissionReview with a request")


def bound_connections() -> None:
    """Bound what the connections of this process can take, idle ones included."""
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def serve(port: int, context: ssl.SSLContext, app: web.Application) -> AsyncIterator[None]:
    """Serve while the body runs; then close each connection with its next answer, and stop.

    The API server keeps connections open. When one is closed while it sends, it does not repeat
    the request (a POST), and the pod is created without its bundle (seen: 5 of 6,800 in three
    rollouts). An answer with `Connection: close` ends a connection without that.
    """
    draining = asyncio.Event()

    @web.middleware
    async def close_when_draining(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        if draining.is_set():
            response.force_close()
        return response

    app.middlewares.append(close_when_draining)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        lingering_time=0.0,  # the rest of a refused request is not read
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
        draining.set()
        for _ in range(round(DRAIN_SECONDS / 0.1)):
            if runner.server is None or not runner.server.connections:
                break
            await asyncio.sleep(0.1)
    finally:
        await runner.cleanup()
