"""The controller with 500 caches and 10,000 consumers, on an API server of its own: memory, and how long until it has nothing to do."""

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

from tests.bench.bare import api_server
from tests.bench.crowd import Crowd, Sample, gather
from tests.bench.harness import (
    KUBECTL,
    Bench,
    Watcher,
    cache,
    deployment,
    is_ready,
    labelled,
    serving,
    storage_ready,
)
from tests.bench.process import memory
from tests.bench.table import Row
from tests.cluster.conftest import BUILD, ROOT
from tests.cluster.kube import Kube, Object, condition

SMALL, LARGE = (
    Crowd(caches=50, each=20),
    Crowd(caches=450, each=20, first=50),
)  # the second comes on top of the first
QUIET = 5.0  # seconds without a run: it has nothing more to do
LIMIT = 600.0


@dataclass(frozen=True)
class Start:
    """One start of the controller over what is there."""

    steady: float  # seconds from the process's start until its last run ended
    runs: int
    resident: float  # MiB then
    highest: float
    requests: Counter[str]  # `verb resource` that the API server counted meanwhile


def scale(bench: Bench) -> list[Row]:
    """Start the controller beside 1,000 and beside 10,000 consumers, and kopf alone and plain lists beside the same."""
    sample = sampled(bench)
    with api_server() as kubeconfig:
        seen = {}
        pods = caches = 0
        for crowd in (SMALL, LARGE):
            pods, caches = pods + crowd.caches * crowd.each, caches + crowd.caches
            bench.say(
                f"scale: {caches} caches and {pods} consumers are written to an API server of their own"
            )
            filled(kubeconfig, sample, crowd)
            bench.say("scale: the controller starts")
            seen[pods] = start(kubeconfig, caches)
            expected = pods + 2 * caches  # caches and claims; jobs: none
            bench.say("scale: kopf alone; one list of each")
            kopf, lists = (_alone(what, kubeconfig, expected) for what in ("kopf", "lists"))
            _truthful(kubeconfig, caches)
            bench.say(f"scale: {seen[pods]}, kopf {kopf}, lists {lists}")
    (few, small), (many, large) = seen.items()
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
def sampled(bench: Bench) -> Sample:
    """A cache of two ranks, whose pods are seeded (the larger kind of consumer), as the real cluster and its webhook left it."""
    with bench.namespace("sample") as namespace:
        bench.say("scale: one cache and one seeded consumer on the real cluster")
        name = "sampled-model"
        template = labelled(serving(ENGINE_SECONDS_PER_ENTRY="0.01"), name)
        [container] = template["spec"]["containers"]
        container |= {
            "command": ["/opt/engines/0.32.0/bin/vllm"],
            "args": ["serve", "demo", "--tensor-parallel-size", "2"],
        }
        container["resources"]["limits"]["nvidia.com/gpu"] = "2"
        bench.kube.create(cache(namespace, name, hold={"when": "Always"}))
        storage_ready(bench, namespace, name)
        bench.kube.create(deployment(namespace, name, template, 1))
        pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
        pods.until(lambda one: len(one.first) == 1, 120, "the consumer ready")
        pods.stop()
        found = bench.kube.until("AutotuneCache", namespace, name, _counted, 60)
        claim = bench.kube.get("PersistentVolumeClaim", namespace, f"pretune-{name}")
        agent = next(
            one
            for one in bench.kube.list("ConfigMap", namespace)
            if one["metadata"]["name"].startswith("pretune-agent")
        )
        [replicaset] = bench.kube.list("ReplicaSet", namespace, f"app={name}")
        made = bench.kube.get("Deployment", namespace, name)
        [pod] = bench.kube.list("Pod", namespace, f"app={name}")
    assert claim and made
    return Sample(
        found,
        claim,
        {"apiVersion": "v1", "kind": "ConfigMap", **agent},
        made,
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", **replicaset},
        {"apiVersion": "v1", "kind": "Pod", **pod},
    )


def _counted(cache: Object) -> bool:
    return ((cache.get("status") or {}).get("consumers") or {}).get("seeded") == 1


def start(kubeconfig: str, caches: int) -> Start:
    """The controller's process, from its start until QUIET seconds without a run; ended then."""
    before = _requests(kubeconfig)
    with tempfile.TemporaryDirectory() as folder:
        runs, log = Path(folder) / "runs", Path(folder) / "log"
        words = [sys.executable, "-m", "tests.bench.watched", str(runs)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, env=_environment(kubeconfig), cwd=ROOT, stdout=out, stderr=out
            )
        try:
            end = time.monotonic() + LIMIT
            seen: list[dict[str, Any]] = []
            while True:
                time.sleep(0.5)
                assert process.poll() is None, f"the controller ended:\n{log.read_text()[-3000:]}"
                assert time.monotonic() < end, (
                    f"not steady after {LIMIT} s:\n{log.read_text()[-3000:]}"
                )
                seen = (
                    [json.loads(line) for line in runs.read_text().splitlines()]
                    if runs.exists()
                    else []
                )
                all_ = len({one["key"] for one in seen}) >= caches
                if all_ and time.time() - runs.stat().st_mtime >= QUIET:
                    break
            resident, highest = memory(process.pid)
            failed = [line for line in log.read_text().splitlines() if " ERROR " in line]
            assert not failed, failed[:3]
        finally:
            process.terminate()
            process.wait(30)
    return Start(
        max(one["ended"] for one in seen),
        len(seen),
        resident,
        highest,
        _requests(kubeconfig) - before,
    )


def _alone(what: str, kubeconfig: str, expected: int) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.bench.alone", what, str(expected)]
    done = subprocess.run(
        words, env=_environment(kubeconfig), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, float] = json.loads(done.stdout)
    return said


def _environment(kubeconfig: str) -> dict[str, str]:
    more = {
        "KUBECONFIG": kubeconfig,
        "PRETUNE_IMAGE": "localhost/pretune/operator:dev",
        "PYTHONPATH": "operator",
    }
    return {**os.environ, **more, "PRETUNE_LIVENESS_PORT": "0", "POD_NAMESPACE": "default"}


def filled(kubeconfig: str, sample: Sample, crowd: Crowd) -> None:
    """Write the crowd to an API server, and the CRD where it is the first one."""
    if not crowd.first:
        _prepare(kubeconfig)
    asyncio.run(_gather(kubeconfig, sample, crowd))


def _prepare(kubeconfig: str) -> None:
    """The CRD as the chart has it."""
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


async def _gather(kubeconfig: str, sample: Sample, crowd: Crowd) -> None:
    config = Configuration()
    await load_kube_config(kubeconfig, client_configuration=config, persist_config=False)  # type: ignore[no-untyped-call]
    async with Kubernetes(config) as cluster:
        await gather(cluster, sample, crowd)


def _requests(kubeconfig: str) -> Counter[str]:
    """How often the API server was asked for what, by its own counters."""
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


def _truthful(kubeconfig: str, caches: int) -> None:
    """What was measured is a controller that found everything in order: all caches Ready, nothing tuned again."""
    kube = Kube(kubeconfig)
    url = f"{kube.host}/apis/pretune.dev/v1alpha1/autotunecaches"
    found = kube._call("GET", url)["items"]
    ready = sum(condition(one, "Ready").get("status") == "True" for one in found)
    jobs = kube._call("GET", f"{kube.host}/apis/batch/v1/jobs")["items"]
    assert (len(found), ready, len(jobs)) == (caches, caches, 0), (
        f"{ready} of {len(found)} ready, {len(jobs)} Jobs"
    )
