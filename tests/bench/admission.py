"""Our webhook beside one that changes nothing: how long an answer takes, and how many it gives a second.

Ours is the process that the chart runs, over TLS, with 500 caches of a real API server and pods that are given a bundle; asked as an
API server asks, over kept connections.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from pretune.manifests.injection import strip

from tests.bench.bare import api_server, free_port
from tests.bench.crowd import SERVERS_OWN, Crowd, Sample
from tests.bench.harness import Bench
from tests.bench.scale import filled, sampled
from tests.bench.table import Row
from tests.cluster.conftest import ROOT
from tests.cluster.kube import Kube, Object

CROWD = Crowd(caches=500, each=0)
BYTES = 12_000
ROUNDS, ONE_BY_ONE, TOGETHER, CONNECTIONS = 5, 400, 1600, 16


@dataclass
class Asked:
    """What one server took: seconds of each answer to one who asks one by one, and answers a second to CONNECTIONS at once."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)] * 1000

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def admitted(bench: Bench) -> list[Row]:
    """Both in turns, ROUNDS times."""
    sample = sampled(bench)
    with api_server() as kubeconfig, tempfile.TemporaryDirectory() as folder:
        bench.say(f"admission: {CROWD.caches} caches are written to an API server of their own")
        filled(kubeconfig, sample, CROWD)
        certificate(Path(folder))
        kube = Kube(kubeconfig)
        reviews = [review(kube, sample, number) for number in range(0, CROWD.caches, 10)]
        bench.say(
            f"admission: pods of {len(reviews)} ReplicaSets, {len(json.dumps(reviews[0]['request']['object']))} bytes each"
        )
        with ours(kubeconfig, folder) as port, noop(folder) as other:
            asked = asyncio.run(ask(port, other, reviews))
    mine, theirs = asked
    return [
        Row(
            f"admission of a {BYTES // 1000} kB pod, p50",
            f"{mine.p50:.2f} ms",
            f"{theirs.p50:.2f} ms: a no-op webhook",
            f"{mine.p50 / theirs.p50:.2f}",
            "≤ 1.3",
            mine.p50 / theirs.p50 <= 1.3,
        ),
        Row(
            "  p99",
            f"{mine.p99:.2f} ms",
            f"{theirs.p99:.2f} ms",
            f"{mine.p99 / theirs.p99:.2f}",
            "≤ 10 ms",
            mine.p99 <= 10,
        ),
        Row(
            f"  answers a second, {CONNECTIONS} connections",
            f"{mine.rate:.0f}",
            f"{theirs.rate:.0f}",
            f"{theirs.rate / mine.rate:.2f}",
            "≤ 1.3",
            theirs.rate / mine.rate <= 1.3,
        ),
    ]


def review(kube: Kube, sample: Sample, number: int) -> Object:
    """What the API server asks when a ReplicaSet's pod is made: the sample's, before anybody touched it, filled up to BYTES."""
    namespace, name = f"n{number // 10}", f"c{number}"
    [owner] = kube.list("ReplicaSet", namespace, f"app={name}")
    text = (
        json.dumps(strip(sample.pod))
        .replace(sample.namespace, namespace)
        .replace(sample.name, name)
    )
    pod: Object = json.loads(
        text.replace(sample.replicaset["metadata"]["uid"], owner["metadata"]["uid"])
    )
    meta = {key: one for key, one in pod["metadata"].items() if key not in (*SERVERS_OWN, "name")}
    spec = {key: one for key, one in pod["spec"].items() if key != "nodeName"}
    pod = {**pod, "metadata": meta, "spec": spec, "status": {}}
    sidecar: Object = {"name": "proxy", "image": "proxy:1", "env": []}
    spec["containers"] = [*spec["containers"], sidecar]
    while len(json.dumps(pod)) < BYTES:
        sidecar["env"].append(
            {
                "name": f"PROXY_SETTING_{len(sidecar['env'])}",
                "value": "as long as such a value often is",
            }
        )
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    request = {
        "uid": "",
        "kind": kind,
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "requestKind": kind,
        "namespace": namespace,
        "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


def certificate(folder: Path) -> None:
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    words += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        "tls.key",
        "-out",
        "tls.crt",
    ]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@contextmanager
def ours(kubeconfig: str, folder: str) -> Iterator[int]:
    """The webhook's process, ready; its port."""
    port, health = free_port(), free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": kubeconfig,
        "PYTHONPATH": "operator",
        "PRETUNE_CERTIFICATES": folder,
        "PRETUNE_WEBHOOK_PORT": str(port),
        "PRETUNE_HEALTH_PORT": str(health),
    }
    with process([sys.executable, "-m", "pretune", "webhook"], environment, folder) as one:
        until(f"http://127.0.0.1:{health}/readyz", one, folder)
        yield port


@contextmanager
def noop(folder: str) -> Iterator[int]:
    port = free_port()
    with process(
        [sys.executable, "-m", "tests.bench.noop", str(port), folder], dict(os.environ), folder
    ) as one:
        until(f"https://localhost:{port}/", one, folder)
        yield port


@contextmanager
def process(
    words: list[str], environment: dict[str, str], folder: str
) -> Iterator[subprocess.Popen[bytes]]:
    with (Path(folder) / "log").open("ab") as log:
        one = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield one
    finally:
        one.terminate()
        one.wait(30)


def until(url: str, one: subprocess.Popen[bytes], folder: str) -> None:
    """Until it answers; with 200 or, where it has no such page, 404."""
    end = time.monotonic() + 60
    while True:
        assert one.poll() is None and time.monotonic() < end, (Path(folder) / "log").read_text()[
            -3000:
        ]
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2, verify=f"{folder}/tls.crt").status_code in (200, 404):
                return
        time.sleep(0.1)


# --- who asks


async def ask(mine: int, theirs: int, reviews: list[Object]) -> tuple[Asked, Asked]:
    """In turns, so that whatever else the machine does meets both."""
    found = {mine: Asked(), theirs: Asked()}
    bodies = [json.dumps(one).encode() for one in reviews]
    for port in found:
        await one_by_one(port, bodies, len(bodies))  # each owner is read once; a process warms up
    given = await one_by_one(mine, bodies, 1)
    patch = base64.b64decode(given[0][1].get("patch") or "").decode()
    assert "Given: " in patch, f"the webhook gave no bundle: {given[0][1]}"
    for _ in range(ROUNDS):
        for port, asked in found.items():
            asked.seconds += [seconds for seconds, _ in await one_by_one(port, bodies, ONE_BY_ONE)]
            asked.rates.append(await together(port, bodies))
    return found[mine], found[theirs]


async def one_by_one(port: int, bodies: list[bytes], count: int) -> list[tuple[float, Any]]:
    """(seconds, response) of each answer."""
    answers = []
    async with connection(port) as (reader, writer):
        for number in range(count):
            began = time.perf_counter()
            raw = await answer(reader, writer, bodies[number % len(bodies)])
            answers.append((time.perf_counter() - began, raw))
    return [(seconds, allowed(raw)) for seconds, raw in answers]


async def together(port: int, bodies: list[bytes]) -> float:
    """Answers a second."""
    left = iter(range(TOGETHER))

    async def some() -> None:
        async with connection(port) as (reader, writer):
            for number in left:
                await answer(reader, writer, bodies[number % len(bodies)])

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(CONNECTIONS)))
    return TOGETHER / (time.perf_counter() - began)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    """By hand: a client library would take longer than the answer."""
    head = f"POST /pods?timeout=5s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    assert " 200 " in lines[0], lines[0]
    return await reader.readexactly(
        next(int(one.split(":")[1]) for one in lines if one.startswith("content-length:"))
    )


def allowed(raw: bytes) -> Any:
    response = json.loads(raw)["response"]
    assert response["allowed"] is True, response
    return response
