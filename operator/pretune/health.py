"""GET /healthz, /readyz and /metrics over plain HTTP, for the kubelet and Prometheus: the same for
controller and webhook.

Anybody in the cluster may reach it. So the metrics are written once a second at most, and there are
few connections, each for one answer and a short time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

FindProblem = Callable[[], str]  # what is wrong, in a sentence; "" while all is well

SHARED_SECONDS = 1.0  # in which all get the same text
MAX_CONNECTIONS = 32  # at a time; a further one closes the oldest, so that the kubelet gets through
CONNECTION_SECONDS = 30.0  # for one answer


def always_healthy() -> str:
    """Return "": nothing is ever wrong."""
    return ""


class SharedText:
    """The text that `write` returns, written once in SHARED_SECONDS however many ask for it."""

    def __init__(self, write: Callable[[], Awaitable[bytes]]) -> None:
        self._write, self._lock = write, asyncio.Lock()
        self._text: bytes | None = None

    async def read(self) -> bytes:
        """Return the text. Raises as `write` does."""
        async with self._lock:
            if self._text is None:
                self._text = await self._write()
                asyncio.get_running_loop().call_later(SHARED_SECONDS, self._forget)
            return self._text

    def _forget(self) -> None:
        self._text = None


class BoundedServer(web.Server):
    """A server with at most MAX_CONNECTIONS, each for at most CONNECTION_SECONDS."""

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(answer, access_log=None, lingering_time=0.0)
        self._open: dict[web.RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._open) >= MAX_CONNECTIONS:
            self._end(next(iter(self._open)))
        end = asyncio.get_running_loop().call_later(CONNECTION_SECONDS, self._end, handler)
        self._open[handler] = transport, end

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        if handler in self._open:
            self._open.pop(handler)[1].cancel()
        super().connection_lost(handler, exc)

    def _end(self, handler: web.RequestHandler) -> None:
        transport, end = self._open.pop(handler)
        end.cancel()
        transport.abort()


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
    text = SharedText(metrics) if metrics is not None else None

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = await find_page(request.path)
        response.force_close()
        return response

    async def find_page(path: str) -> web.Response:
        if path in ("/healthz", "/readyz"):
            problem = (alive if path == "/healthz" else ready)()
            return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")
        if path == "/metrics" and text is not None:
            content_type = "text/plain; version=0.0.4; charset=utf-8"
            return web.Response(body=await text.read(), headers={"Content-Type": content_type})
        return web.Response(status=404, text="404: Not Found\n")

    runner = web.ServerRunner(BoundedServer(answer), shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
