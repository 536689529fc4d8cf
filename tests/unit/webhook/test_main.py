"""The webhook's process, beside an API server that is restarted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from pretune.api.names import REASON
from pretune.api.types import Object
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.server import build_application, serve

from tests.builders.webhook import (
    JSON_CONTENT,
    SECRET,
    admitted,
    cache,
    pod,
    response_of,
    review,
    sealed,
    template,
    webhook,
)
from tests.ports import free_port

CACHES = "/apis/pretune.dev/v1alpha1/autotunecaches"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
REPLICASET = "/apis/apps/v1/namespaces/inference/replicasets/qwen3-1"


class Api:
    """An API server with caches, a lease and a ReplicaSet; its watches stay open until it stops."""

    def __init__(self) -> None:
        self.listed: dict[str, list[Object]] = {CACHES: [], LEASES: []}
        self.streams: list[tuple[str, asyncio.Queue[Object | None]]] = []
        self.delay = 0.0
        self.reading = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == REPLICASET:
            self.reading.set()
            await asyncio.sleep(self.delay)
            meta = {"namespace": "inference", "name": "qwen3-1", "uid": "rs"}
            return web.json_response(
                {"kind": "ReplicaSet", "metadata": meta, "spec": {"template": template()}}
            )
        if not request.query.get("watch"):
            return web.json_response(
                {"metadata": {"resourceVersion": "5"}, "items": self.listed[request.path]}
            )
        response, changes = web.StreamResponse(), asyncio.Queue[Object | None]()
        await response.prepare(request)
        self.streams.append((request.path, changes))
        while (change := await changes.get()) is not None:
            await response.write(json.dumps(change).encode() + b"\n")
        return response

    async def send(self, path: str, change: str, obj: Object) -> None:
        """Send a change to every watch of the path, once there is one."""

        async def watched() -> bool:
            return any(path_of_stream == path for path_of_stream, _ in self.streams)

        await until(watched, True)
        for path_of_stream, changes in self.streams:
            if path_of_stream == path:
                changes.put_nowait({"type": change, "object": obj})

    def end(self) -> None:
        for _, changes in self.streams:
            changes.put_nowait(None)
        self.streams.clear()

    async def start(self, port: int) -> TestServer:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        server = TestServer(app, port=port)
        await server.start_server()
        return server


def lease(number: int, holder: str = "a") -> Object:
    meta = {"namespace": "default", "name": "pretune-controller", "resourceVersion": str(number)}
    return {"metadata": meta, "spec": {"holderIdentity": holder, "renewTime": str(number)}}


class Process:
    """`python -m pretune webhook`."""

    def __init__(self, tls: Path, api: int) -> None:
        self.tls, self.api, self.port, self.health = tls, api, free_port(), free_port()
        self.session: Any = None

    @asynccontextmanager
    async def run(self, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        contexts = [{"name": "x", "context": {"cluster": "x", "user": "x"}}]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{self.api}"}}],
            "users": [{"name": "x", "user": {"token": "t"}}],
            "contexts": contexts,
            "current-context": "x",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3] / "operator"),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "PRETUNE_CERTIFICATES": str(self.tls),
            "PRETUNE_WEBHOOK_PORT": str(self.port),
            "PRETUNE_HEALTH_PORT": str(self.health),
        }
        command = (sys.executable, "-m", "pretune", "webhook")
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with aiohttp.ClientSession() as self.session:
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def page(self, path: str) -> tuple[int, str]:
        try:
            async with self.session.get(f"http://127.0.0.1:{self.health}{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def reason(self) -> str:
        """Return the reason that a pod of the ReplicaSet has as annotation."""
        trust = ssl.create_default_context(cafile=str(self.tls / "tls.crt"))
        url = f"https://localhost:{self.port}/pods?timeout=5s"
        async with self.session.post(url, json=review(pod()), ssl=trust) as answer:
            stored = admitted(pod(), response_of(await answer.json()))
        return str(stored["metadata"]["annotations"][REASON]).partition(":")[0]


async def until(what: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    for _ in range(200):
        if (found := await what()) == wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found!r} is not {wanted!r}")


def test_the_process_survives_a_restart_of_the_api_server_and_ends_without_an_error(
    tls: Path, tmp_path: Path
) -> None:
    async def story() -> tuple[int | None, str]:
        api, port = Api(), free_port()
        process = Process(tls, port)
        async with process.run(tmp_path) as running:
            await until(lambda: process.page("/healthz"), (200, "ok\n"))
            assert await process.page("/readyz") == (
                503,
                "the caches and the controller's lease have not been read yet\n",
            )
            api.listed = {CACHES: [cache()], LEASES: [lease(1)]}
            server = await api.start(port)
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            # No renewal of the lease was seen yet.
            assert await process.reason() == "NotSealedYet"
            await api.send(LEASES, "MODIFIED", lease(2))
            await until(process.reason, "Held")
            await api.send(CACHES, "MODIFIED", cache(2, sealed()))
            await until(process.reason, "Given")

            api.end()
            await server.close()
            assert await process.reason() == "Given"  # the caches stay as they were last seen
            assert (await process.page("/readyz"))[0] == 200
            api.listed[CACHES] = [cache(3, suspend=True)]
            server = await api.start(port)
            await until(process.reason, "Suspended")
            await api.send(CACHES, "MODIFIED", cache(4))
            await until(process.reason, "Held")
            await api.send(LEASES, "MODIFIED", lease(3, ""))
            await until(process.reason, "NotSealedYet")

            await api.send(CACHES, "MODIFIED", cache(5, sealed()))
            await until(process.reason, "Given")
            _, metrics = await process.page("/metrics")
            assert 'pretune_admissions_total{delivery="ReadOnly",reason="Given"}' in metrics
            expires_at = float(
                re.findall(r"^pretune_certificate_expiry_timestamp_seconds (.*)$", metrics, re.M)[0]
            )
            assert (
                abs(expires_at - time.time() - 9 * 86400) < 600
                and "\npretune_controller_alive 0.0\n" in metrics
            )
            running.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(running.wait(), 10)
            assert running.stderr is not None
            log = (await running.stderr.read()).decode()
            api.end()
            await server.close()
            return code, log

    code, log = asyncio.run(story())
    assert code == 0, log
    assert SECRET not in log and "Traceback" not in log


def test_requests_that_are_under_way_are_answered_before_the_process_ends(
    tls: Path, tmp_path: Path
) -> None:
    async def story() -> tuple[str, int | None]:
        api, port = Api(), free_port()
        api.listed, api.delay = {CACHES: [cache(1, sealed())], LEASES: []}, 1.0
        server, process = await api.start(port), Process(tls, port)
        async with process.run(tmp_path) as running:
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            under_way = asyncio.create_task(process.reason())
            await api.reading.wait()
            running.send_signal(signal.SIGTERM)
            await until(lambda: process.page("/readyz"), (503, "stopping\n"))
            # The Service still leads here: a late request is answered too.
            late = await process.reason()
            answer = await under_way
            assert late == answer
            code = await asyncio.wait_for(running.wait(), 10)
            api.end()
            await server.close()
            return answer, code

    assert asyncio.run(story()) == ("Given", 0)


def run_webhook(tls: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3] / "operator"),
        "PRETUNE_CERTIFICATES": str(tls),
    }
    command: Sequence[str] = (sys.executable, "-m", "pretune", "webhook")
    return subprocess.run(
        command, env={**env, **environment}, capture_output=True, text=True, timeout=60
    )


def test_without_a_certificate_the_process_ends_with_the_reason(tmp_path: Path) -> None:
    ended = run_webhook(tmp_path)
    assert ended.returncode == 1
    assert (
        f"{tmp_path}: tls.crt and tls.key cannot be used: No such file or directory" in ended.stderr
    )
    assert "Traceback" not in ended.stderr


def test_at_the_end_each_connection_is_closed_with_an_answer_and_none_while_idle(tls: Path) -> None:
    """A connection that is closed while it is idle is one that the API server may be writing to."""

    async def story() -> tuple[list[str | None], float]:
        port, end, the_webhook = free_port(), asyncio.Event(), webhook()
        trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
        body = json.dumps(review(pod())).encode()

        async def server() -> None:
            async with serve(
                port,
                CertificateWatcher(tls).context,
                build_application(the_webhook.admission.answer),
            ):
                await end.wait()

        running = asyncio.create_task(server())
        connection_headers: list[str | None] = []
        async with aiohttp.ClientSession() as session:

            async def ask() -> None:
                async with session.post(
                    f"https://localhost:{port}/pods", data=body, headers=JSON_CONTENT, ssl=trust
                ) as answer:
                    assert answer.status == 200
                    connection_headers.append(answer.headers.get("Connection"))

            await asyncio.sleep(0.5)
            await ask()
            end.set()
            await asyncio.sleep(0.5)
            await ask()
            began = time.monotonic()
            await running
            return connection_headers, time.monotonic() - began

    connection_headers, seconds = asyncio.run(story())
    assert connection_headers == [None, "close"]
    assert seconds < 2, "it ends once no connection is open"
