"""Our webhook, compared with one that changes nothing: seconds for an answer, answers in a second.

Ours is the process that the chart runs, over TLS, with 500 caches from a real API server, and pods
that get a bundle. The requests are those of an API server, over connections that stay open.
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

from tests.bench.api_server import run_api_server
from tests.bench.harness import Bench
from tests.bench.population import SERVER_FIELDS, Population, Sample
from tests.bench.scale import take_sample, write_population_to
from tests.bench.table import Row
from tests.cluster.conftest import ROOT
from tests.cluster.kube import Kube, Object
from tests.ports import free_port

POPULATION = Population(caches=500, each=0)
BYTES = 12_000
ROUNDS, ONE_BY_ONE, TOGETHER, CONNECTIONS = 5, 400, 1600, 16


@dataclass
class Timings:
    """The seconds of each answer to one client, and the answers in a second to CONNECTIONS clients."""

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


def measure_admission(bench: Bench) -> list[Row]:
    """Measure both webhooks in turns, ROUNDS times."""
    sample = take_sample(bench)
    with run_api_server() as kubeconfig, tempfile.TemporaryDirectory() as folder:
        bench.report(f"admission: {POPULATION.caches} caches are written to their own API server")
        write_population_to(kubeconfig, sample, POPULATION)
        write_certificate(Path(folder))
        kube = Kube(kubeconfig)
        reviews = [build_review(kube, sample, number) for number in range(0, POPULATION.caches, 10)]
        size = len(json.dumps(reviews[0]["request"]["object"]))
        bench.report(f"admission: pods of {len(reviews)} ReplicaSets, {size} bytes each")
        with run_webhook(kubeconfig, folder) as our_port, run_noop_webhook(folder) as noop_port:
            ours, noop = asyncio.run(compare(our_port, noop_port, reviews))
    return [
        Row(
            f"admission of a {BYTES // 1000} kB pod, p50",
            f"{ours.p50:.2f} ms",
            f"{noop.p50:.2f} ms: a no-op webhook",
            f"{ours.p50 / noop.p50:.2f}",
            "≤ 1.3",
            ours.p50 / noop.p50 <= 1.3,
        ),
        Row(
            "  p99",
            f"{ours.p99:.2f} ms",
            f"{noop.p99:.2f} ms",
            f"{ours.p99 / noop.p99:.2f}",
            "≤ 10 ms",
            ours.p99 <= 10,
        ),
        Row(
            f"  answers in a second, {CONNECTIONS} connections",
            f"{ours.rate:.0f}",
            f"{noop.rate:.0f}",
            f"{noop.rate / ours.rate:.2f}",
            "≤ 1.3",
            noop.rate / ours.rate <= 1.3,
        ),
    ]


def build_review(kube: Kube, sample: Sample, number: int) -> Object:
    """Return the API server's review of a new pod of a ReplicaSet, filled up to BYTES bytes.

    The pod is the sample's, as it was before admission.
    """
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
    meta = {
        key: value for key, value in pod["metadata"].items() if key not in (*SERVER_FIELDS, "name")
    }
    spec = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
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


def write_certificate(folder: Path) -> None:
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
def run_webhook(kubeconfig: str, folder: str) -> Iterator[int]:
    """Run the webhook's process. Yield its port once it is ready."""
    port, health = free_port(), free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": kubeconfig,
        "PYTHONPATH": "operator",
        "PRETUNE_CERTIFICATES": folder,
        "PRETUNE_WEBHOOK_PORT": str(port),
        "PRETUNE_HEALTH_PORT": str(health),
    }
    with run_process([sys.executable, "-m", "pretune", "webhook"], environment, folder) as webhook:
        wait_until_answered(f"http://127.0.0.1:{health}/readyz", webhook, folder)
        yield port


@contextmanager
def run_noop_webhook(folder: str) -> Iterator[int]:
    port = free_port()
    with run_process(
        [sys.executable, "-m", "tests.bench.noop_webhook", str(port), folder],
        dict(os.environ),
        folder,
    ) as webhook:
        wait_until_answered(f"https://localhost:{port}/", webhook, folder)
        yield port


@contextmanager
def run_process(
    command: list[str], environment: dict[str, str], folder: str
) -> Iterator[subprocess.Popen[bytes]]:
    with (Path(folder) / "log").open("ab") as log:
        started = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


def wait_until_answered(url: str, server: subprocess.Popen[bytes], folder: str) -> None:
    """Wait until the server answers with 200 or, if it has no such page, 404."""
    end = time.monotonic() + 60
    while True:
        assert server.poll() is None and time.monotonic() < end, (Path(folder) / "log").read_text()[
            -3000:
        ]
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2, verify=f"{folder}/tls.crt").status_code in (200, 404):
                return
        time.sleep(0.1)


# --- the client


async def compare(our_port: int, noop_port: int, reviews: list[Object]) -> tuple[Timings, Timings]:
    """Return the timings of both, which are asked in turns: other load on the machine affects both."""
    timings = {our_port: Timings(), noop_port: Timings()}
    bodies = [json.dumps(review).encode() for review in reviews]
    for port in timings:  # each owner is read once; the process warms up
        await ask_one_by_one(port, bodies, len(bodies))
    [(_, response)] = await ask_one_by_one(our_port, bodies, 1)
    patch = base64.b64decode(response.get("patch") or "").decode()
    assert "Given: " in patch, f"the webhook gave no bundle: {response}"
    for _ in range(ROUNDS):
        for port, timing in timings.items():
            timing.seconds += [
                seconds for seconds, _ in await ask_one_by_one(port, bodies, ONE_BY_ONE)
            ]
            timing.rates.append(await ask_together(port, bodies))
    return timings[our_port], timings[noop_port]


async def ask_one_by_one(port: int, bodies: list[bytes], count: int) -> list[tuple[float, Any]]:
    """Return the seconds and the response of each answer."""
    answers = []
    async with open_connection(port) as (reader, writer):
        for number in range(count):
            began = time.perf_counter()
            raw = await post(reader, writer, bodies[number % len(bodies)])
            answers.append((time.perf_counter() - began, raw))
    return [(seconds, response_of(raw)) for seconds, raw in answers]


async def ask_together(port: int, bodies: list[bytes]) -> float:
    """Return the number of answers in a second to CONNECTIONS clients."""
    left = iter(range(TOGETHER))

    async def ask() -> None:
        async with open_connection(port) as (reader, writer):
            for number in left:
                await post(reader, writer, bodies[number % len(bodies)])

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return TOGETHER / (time.perf_counter() - began)


@asynccontextmanager
async def open_connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    """Send one request and return the body of its answer.

    Without a client library, which would take longer than the answer.
    """
    head = "POST /pods?timeout=5s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    assert " 200 " in lines[0], lines[0]
    return await reader.readexactly(
        next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    )


def response_of(raw: bytes) -> Any:
    response = json.loads(raw)["response"]
    assert response["allowed"] is True, response
    return response
