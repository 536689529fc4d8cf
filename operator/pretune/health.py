"""GET /healthz, /readyz and /metrics over plain HTTP, for the kubelet and Prometheus: the same for
controller and webhook."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

FindProblem = Callable[[], str]  # what is wrong, in a sentence; "" while all is well


def always_healthy() -> str:
    """Return "": nothing is ever wrong."""
    return ""


@asynccontextmanager
async def serve_health(
    port: int,
    alive: FindProblem = always_healthy,
    ready: FindProblem = always_healthy,
    metrics: Callable[[], Awaitable[bytes]] | None = None,
) -> AsyncIterator[None]:
    """Serve while the body runs; port 0: not at all.

    `alive` answers /healthz and `ready` /readyz: where they find a problem, with 503 and its
    sentence. `metrics` returns /metrics in Prometheus' text format.
    """
    if not port:
        yield
        return

    def page(find_problem: FindProblem) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problem = find_problem()
            return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

        return answer

    async def answer_metrics(_: web.Request) -> web.Response:
        assert metrics is not None
        content_type = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body=await metrics(), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/healthz", page(alive))  # type: ignore[arg-type]
    app.router.add_get("/readyz", page(ready))  # type: ignore[arg-type]
    if metrics is not None:
        app.router.add_get("/metrics", answer_metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
