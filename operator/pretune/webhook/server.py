"""The webhook's HTTPS server: POST /pods, with an AdmissionReview in and out."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from pretune.api.types import Object
from pretune.webhook.admission import Answer

PATH = "/pods"
MAX_REQUEST_BYTES = 16 << 20  # the API server accepts objects of 3 MB, and sends them as JSON
# An idle connection: the API server closes it after 90 s, and must not meet one that we closed.
KEEPALIVE_SECONDS = 120.0
DRAIN_SECONDS = 5.0  # once the process ends: each connection is closed with its next answer
SHUTDOWN_SECONDS = 5.0  # after that, for requests that are under way

Admit = Callable[[Object], Awaitable[Answer]]  # an AdmissionReview's request; never raises
RecordAnswer = Callable[[str, str, float], None]  # its mode, its reason, and the seconds it took

REVIEW = (
    '{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": %s, %s}}'
)


def build_application(admit: Admit, record_answer: RecordAnswer | None = None) -> web.Application:
    """Return the application that answers POST /pods: an AdmissionReview with an AdmissionReview.

    Anything else in the body gets 400: no API server sends that.
    """

    async def answer_review(http_request: web.Request) -> web.Response:
        started_at, body = time.perf_counter(), await http_request.read()
        try:
            request = json.loads(body)["request"]
            uid = request["uid"]
            request.get("object")
        except (ValueError, TypeError, LookupError, AttributeError):
            message = "the body is not an AdmissionReview with a request\n"
            return web.Response(status=400, text=message)
        answer = await admit(request)
        if record_answer is not None:
            record_answer(answer.mode, answer.reason, time.perf_counter() - started_at)
        review = REVIEW % (json.dumps(uid), answer.response)
        return web.Response(body=review.encode(), content_type="application/json")

    app = web.Application(client_max_size=MAX_REQUEST_BYTES)
    app.router.add_post(PATH, answer_review)
    return app


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
