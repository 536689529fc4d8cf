"""The controller with 500 caches and 10,000 consumers: its memory, and how long until it is idle.

It has its own API server.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.kube_config import load_kube_config
from pretune.kube.client import Kubernetes

from tests.bench.api_server import run_api_server
from tests.bench.harness import (
    KUBECTL,
    Bench,
    Watcher,
    cache,
    deployment,
    is_ready,
    serving_template,
    wait_for_storage,
    with_cache_label,
)
from tests.bench.population import Population, Sample, write_population
from tests.bench.process import connections, memory
from tests.bench.table import Row
from tests.cluster.conftest import BUILD, ROOT
from tests.cluster.kube import Kube, Object, condition

SMALL = Population(caches=50, each=20)
LARGE = Population(caches=450, each=20, first=50)  # in addition to the first
IDLE_SECONDS = 5.0  # without a run: the controller has nothing more to do
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Start:
    """One start of the controller with the objects that exist."""

    steady: float  # seconds from the process's start to the end of its last run
    runs: int
    resident: float  # MiB then
    highest: float
    connections: int  # to the API server
    requests: Counter[str]  # by `verb resource`, as the API server counted them meanwhile


def measure_scale(bench: Bench) -> list[Row]:
    """Start the controller with 1,000 and 10,000 consumers; also kopf alone, and plain lists."""
    sample = take_sample(bench)
    with run_api_server() as kubeconfig:
        starts = {}
        pods = caches = 0
        for population in (SMALL, LARGE):
            pods, caches = pods + population.caches * population.each, caches + population.caches
            bench.report(
                f"scale: {caches} caches and {pods} consumers are written to their own API server"
            )
            write_population_to(kubeconfig, sample, population)
            bench.report("scale: the controller starts")
            starts[pods] = start_controller(kubeconfig, caches)
            expected = pods + 2 * caches  # caches and claims; there are no Jobs
            bench.report("scale: kopf alone; one list of each")
            kopf, lists = (_run_baseline(what, kubeconfig, expected) for what in ("kopf", "lists"))
            _check_all_ready(kubeconfig, caches)
            bench.report(f"scale: {starts[pods]}, kopf {kopf}, lists {lists}")
    (few, small), (many, large) = starts.items()
    ratio = large.steady / small.steady
    writes = sum(
        number
        for what, number in large.requests.items()
        if what.split()[0] in ("POST", "PATCH", "PUT", "DELETE")
    )
    return [
        Row(
            f"controller with {caches} caches, {many:,} consumers: memory",
            f"{large.resident:.0f} MiB (highest {large.highest:.0f})",
            f"kopf alone {kopf['resident']:.0f}, one list of each {lists['resident']:.0f} MiB",
            f"{large.resident / kopf['resident']:.2f}",
            "≤ 150 MiB",
            large.resident <= 150,
        ),
        Row(
            "  from start to steady",
            f"{large.steady:.1f} s",
            f"kopf alone {kopf['seconds']:.1f}, one list of each {lists['seconds']:.1f} s",
            f"{large.steady / kopf['seconds']:.1f}",
        ),
        Row(
            f"  from {few:,} consumers in {SMALL.caches} caches to {many:,} in {caches}",
            f"{large.steady:.1f} s",
            f"{small.steady:.1f} s",
            f"{ratio:.1f}",
            "≤ 11",
            ratio <= 11,
        ),
        Row("  runs / writes in that start", f"{large.runs} / {writes}"),
    ]


@functools.cache
def take_sample(bench: Bench) -> Sample:
    """Return the objects of a cache with two ranks and a seeded pod, from the real cluster.

    A seeded pod is the larger kind of consumer.
    """
    with bench.namespace("sample") as namespace:
        bench.report("scale: one cache and one seeded consumer on the real cluster")
        name = "sampled-model"
        template = with_cache_label(serving_template(ENGINE_SECONDS_PER_ENTRY="0.01"), name)
        [container] = template["spec"]["containers"]
        container |= {
            "command": ["/opt/engines/0.32.0/bin/vllm"],
            "args": ["serve", "demo", "--tensor-parallel-size", "2"],
        }
        container["resources"]["limits"]["nvidia.com/gpu"] = "2"
        bench.kube.create(cache(namespace, name, hold={"when": "Always"}))
        wait_for_storage(bench, namespace, name)
        bench.kube.create(deployment(namespace, name, template, 1))
        pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
        pods.wait_until(lambda watcher: len(watcher.first_seen) == 1, 120, "the consumer ready")
        pods.stop()
        sealed = bench.kube.wait_until("AutotuneCache", namespace, name, _is_seeded, 60)
        claim = bench.kube.get("PersistentVolumeClaim", namespace, f"pretune-{name}")
        agent = next(
            config_map
            for config_map in bench.kube.list("ConfigMap", namespace)
            if config_map["metadata"]["name"].startswith("pretune-agent")
        )
        [replicaset] = bench.kube.list("ReplicaSet", namespace, f"app={name}")
        created = bench.kube.get("Deployment", namespace, name)
        [pod] = bench.kube.list("Pod", namespace, f"app={name}")
    assert claim and created
    return Sample(
        sealed,
        claim,
        {"apiVersion": "v1", "kind": "ConfigMap", **agent},
        created,
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", **replicaset},
        {"apiVersion": "v1", "kind": "Pod", **pod},
    )


def _is_seeded(cache: Object) -> bool:
    return ((cache.get("status") or {}).get("consumers") or {}).get("seeded") == 1


def start_controller(
    kubeconfig: str, caches: int, timeout_seconds: float = TIMEOUT_SECONDS
) -> Start:
    """Run the controller's process until it is idle for IDLE_SECONDS, and end it."""
    before = _count_requests(kubeconfig)
    with tempfile.TemporaryDirectory() as folder:
        runs, log = Path(folder) / "runs", Path(folder) / "log"
        command = [sys.executable, "-m", "tests.bench.recorded_controller", str(runs)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=controller_environment(kubeconfig), cwd=ROOT, stdout=out, stderr=out
            )
        try:
            end = time.monotonic() + timeout_seconds
            lines: list[dict[str, Any]] = []
            while True:
                time.sleep(0.5)
                assert process.poll() is None, f"the controller ended:\n{log.read_text()[-3000:]}"
                assert time.monotonic() < end, (
                    f"not idle after {timeout_seconds} s:\n{log.read_text()[-3000:]}"
                )
                lines = (
                    [json.loads(line) for line in runs.read_text().splitlines()]
                    if runs.exists()
                    else []
                )
                has_all = len({line["key"] for line in lines}) >= caches
                if has_all and time.time() - runs.stat().st_mtime >= IDLE_SECONDS:
                    break
            resident, highest = memory(process.pid)
            connected = connections(process.pid)
            failed = [line for line in log.read_text().splitlines() if " ERROR " in line]
            assert not failed, failed[:3]
        finally:
            process.terminate()
            process.wait(30)
    return Start(
        max(line["ended"] for line in lines),
        len(lines),
        resident,
        highest,
        connected,
        _count_requests(kubeconfig) - before,
    )


def _run_baseline(what: str, kubeconfig: str, expected: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.baselines", what, str(expected)]
    done = subprocess.run(
        command,
        env=controller_environment(kubeconfig),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, float] = json.loads(done.stdout)
    return result


def controller_environment(kubeconfig: str) -> dict[str, str]:
    """Return the environment of a controller that works on this API server."""
    more = {
        "KUBECONFIG": kubeconfig,
        "PRETUNE_IMAGE": "localhost/pretune/operator:dev",
        "PYTHONPATH": "operator",
    }
    return {**os.environ, **more, "PRETUNE_LIVENESS_PORT": "0", "POD_NAMESPACE": "default"}


def write_population_to(kubeconfig: str, sample: Sample, population: Population) -> None:
    """Write the population to an API server; before the first one also the CRD."""
    if not population.first:
        install_crd(kubeconfig)
    asyncio.run(_write(kubeconfig, sample, population))


def install_crd(kubeconfig: str) -> None:
    """Install the chart's CRD, and wait until the API server serves it."""
    render = [
        str(BUILD / "bin/helm"),
        "template",
        "pretune",
        "charts/pretune",
        "--set",
        "image.repository=none",
    ]
    render += ["--show-only", "templates/crds/autotunecaches.yaml"]
    crd = subprocess.run(render, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    kubectl = [str(KUBECTL), "--kubeconfig", kubeconfig]
    subprocess.run(
        [*kubectl, "apply", "--server-side", "-f", "-"],
        input=crd,
        check=True,
        capture_output=True,
        text=True,
    )
    wait = [
        *kubectl,
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd/autotunecaches.pretune.dev",
    ]
    subprocess.run(wait, check=True, capture_output=True)
    end = time.monotonic() + 30
    while subprocess.run([*kubectl, "get", "autotunecaches", "-A"], capture_output=True).returncode:
        assert time.monotonic() < end, "the API server does not serve AutotuneCaches"
        time.sleep(0.2)


async def _write(kubeconfig: str, sample: Sample, population: Population) -> None:
    async with await connect(kubeconfig) as cluster:
        await write_population(cluster, sample, population)


async def connect(kubeconfig: str) -> Kubernetes:
    """Return a client of the API server."""
    config = Configuration()
    await load_kube_config(kubeconfig, client_configuration=config, persist_config=False)  # type: ignore[no-untyped-call]
    return Kubernetes(config)


def _count_requests(kubeconfig: str) -> Counter[str]:
    """Return the number of requests by `verb resource`, from the API server's own counters."""
    kube = Kube(kubeconfig)
    text: str = kube._call("GET", f"{kube.host}/metrics")
    counted: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(
                part.split("=", 1)
                for part in line[len("apiserver_request_total{") : line.rindex("}")].split(",")
            )
            counted[f"{labels['verb']} {labels['resource']}".replace('"', "")] += int(
                float(line.rsplit(" ", 1)[1])
            )
    return counted


def _check_all_ready(kubeconfig: str, caches: int) -> None:
    """Check that all caches are Ready and nothing was tuned: the controller had no work to do."""
    kube = Kube(kubeconfig)
    url = f"{kube.host}/apis/pretune.dev/v1alpha1/autotunecaches"
    found = kube._call("GET", url)["items"]
    ready = sum(condition(cache, "Ready").get("status") == "True" for cache in found)
    jobs = kube._call("GET", f"{kube.host}/apis/batch/v1/jobs")["items"]
    assert (len(found), ready, len(jobs)) == (caches, caches, 0), (
        f"{ready} of {len(found)} ready, {len(jobs)} Jobs"
    )
