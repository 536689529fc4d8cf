"""GET /healthz, /readyz and /metrics over plain HTTP, for the kubelet and for Prometheus: the same of controller and webhook."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Trouble = Callable[[], str]  # "" while all is well, else what is not, in a sentence


def well() -> str:
    """Nothing is ever the matter."""
    return ""


@asynccontextmanager
async def serve_health(
    port: int,
    alive: Trouble = well,
    ready: Trouble = well,
    metrics: Callable[[], bytes] | None = None,
) -> AsyncIterator[None]:
    """Serve while the body runs. `alive` answers /healthz and `ready` /readyz: 503 with their sentence; `metrics` gives /metrics
    in Prometheus' text format. Port 0: not served."""
    if not port:
        yield
        return

    def page(trouble: Trouble) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            words = trouble()
            return web.Response(status=503 if words else 200, text=f"{words or 'ok'}\n")

        return answer

    async def numbers(_: web.Request) -> web.Response:
        assert metrics is not None
        return web.Response(
            body=metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app = web.Application()
    app.router.add_get("/healthz", page(alive))  # type: ignore[arg-type]
    app.router.add_get("/readyz", page(ready))  # type: ignore[arg-type]
    if metrics is not None:
        app.router.add_get("/metrics", numbers)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
