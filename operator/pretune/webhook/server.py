"""The webhook's HTTPS server: POST /pods, an AdmissionReview in and out."""

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
LARGEST = (
    16 << 20
)  # bytes of a request: the API server takes objects of 3 MB, and asks about them in JSON
KEPT = 120.0  # seconds that an idle connection is kept: the API server closes it after 90, and is not to meet one that we close
PARTING = 5.0  # seconds, once we have to end, in which every connection that is used is closed with its answer
ENDING = 5.0  # seconds that requests may take to end after that


Judge = Callable[
    [Object], Awaitable[Answer]
]  # an AdmissionReview's request -> the answer; never raises
Count = Callable[
    [str, str, float], None
]  # of each answer its mode, its reason, and the seconds that it took


# --- over HTTPS

REVIEW = (
    '{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": %s, %s}}'
)


def application(judge: Judge, count: Count | None = None) -> web.Application:
    """POST /pods: an AdmissionReview, answered with an AdmissionReview. What is none gets 400: no API server sends that."""

    async def pods(request: web.Request) -> web.Response:
        began, raw = time.perf_counter(), await request.read()
        try:
            asked = json.loads(raw)["request"]
            uid = asked["uid"]
            asked.get("object")
        except (ValueError, TypeError, LookupError, AttributeError):
            return web.Response(status=400, text="this is no AdmissionReview with a request\n")
        answer = await judge(asked)
        if count is not None:
            count(answer.mode, answer.reason, time.perf_counter() - began)
        body = REVIEW % (json.dumps(uid), answer.response)
        return web.Response(body=body.encode(), content_type="application/json")

    app = web.Application(client_max_size=LARGEST)
    app.router.add_post(PATH, pods)
    return app


@asynccontextmanager
async def serve(port: int, context: ssl.SSLContext, app: web.Application) -> AsyncIterator[None]:
    """Serve while the body runs; then part with each connection at its next answer, and only then take no more.

    The API server keeps connections. It meets one that is closed under its hands with an error, does not ask again (a POST is not
    repeated), and the pod comes without us (seen: 5 of 6,800 in three rollouts). An answer that says so ends one without that.
    """
    parting = asyncio.Event()

    @web.middleware
    async def part(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        if parting.is_set():
            response.force_close()
        return response

    app.middlewares.append(part)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEPT, shutdown_timeout=ENDING)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
        parting.set()
        for _ in range(round(PARTING / 0.1)):
            if runner.server is None or not runner.server.connections:
                break
            await asyncio.sleep(0.1)
    finally:
        await runner.cleanup()
