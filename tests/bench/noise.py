"""A namespace that makes all the noise it can, and how long another one's caches wait beside it.

It has its own API server, on which nothing runs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretune.kube.client import Kubernetes
from pretune.kube.types import ApiError

from tests.bench.api_server import run_api_server
from tests.bench.harness import CACHE, Bench
from tests.bench.namespaces import write_namespace
from tests.bench.population import for_each
from tests.bench.process import since_start
from tests.bench.scale import connect, controller_environment, install_crd
from tests.bench.table import Row
from tests.cluster.conftest import ROOT
from tests.cluster.kube import Object

CHANGES = 20  # of the neighbour's Deployment, one a second
POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0
MAX_WAIT_SECONDS = 2.0
PATCHED_PODS = 20  # of as many caches: all the time, as fast as the API server takes it
PODS_WITHOUT_CACHE = 200  # each names another cache that does not exist
NEIGHBOUR = "neighbour"


def measure_noise(bench: Bench) -> list[Row]:
    """Change what a cache names, alone and beside the noise: seconds until its reconcile begins.

    Like a timer that is due, that is not urgent.
    """
    with run_api_server() as kubeconfig, tempfile.TemporaryDirectory() as folder:
        install_crd(kubeconfig)
        runs = Path(folder) / "runs"
        with _run_controller(kubeconfig, runs) as pid:
            alone, beside, patches = asyncio.run(_measure(bench, kubeconfig, pid, runs))
    return [
        Row(
            "a change until its cache's reconcile beside a noisy namespace: longest",
            f"{max(beside):.2f} s",
            f"alone {max(alone):.2f} s",
            f"{max(beside) / max(alone):.1f}",
            f"≤ {MAX_WAIT_SECONDS:.0f} s",
            max(beside) <= MAX_WAIT_SECONDS,
        ),
        Row("  patches of pods a second meanwhile", f"{patches:.0f}"),
    ]


async def _measure(
    bench: Bench, kubeconfig: str, pid: int, runs: Path
) -> tuple[list[float], list[float], float]:
    async with await connect(kubeconfig) as cluster:
        await write_namespace(cluster, NEIGHBOUR)
        await cluster.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "evil"}}
        )
        await asyncio.sleep(10.0)  # the controller starts
        bench.report("noise: the neighbour alone")
        alone = [await _change(cluster, pid, runs, 2 + number) for number in range(CHANGES)]
        pods = [_pod(f"patched-{number}", tuning=True) for number in range(PATCHED_PODS)]
        pods += [_pod(f"none-{number}", tuning=False) for number in range(PODS_WITHOUT_CACHE)]

        async def create_pod(number: int) -> None:
            await cluster.create(pods[number])

        await for_each(create_pod, range(len(pods)))
        bench.report("noise: beside the noise")
        patches, loop = itertools.count(), asyncio.get_running_loop()
        noise = [loop.create_task(_patch(cluster, pod, patches)) for pod in pods[:PATCHED_PODS]]
        began = loop.time()
        try:
            beside = [await _change(cluster, pid, runs, 100 + number) for number in range(CHANGES)]
        finally:
            for task in noise:
                task.cancel()
        seconds = loop.time() - began
        return alone, beside, next(patches) / seconds


@contextmanager
def _run_controller(kubeconfig: str, runs: Path) -> Iterator[int]:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "tests.bench.recorded_controller", str(runs)]
        environment = controller_environment(kubeconfig)
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process.pid
            assert process.poll() is None, "the controller ended"
        finally:
            process.terminate()
            process.wait(30)


async def _change(cluster: Kubernetes, pid: int, runs: Path, replicas: int) -> float:
    """Change the neighbour's Deployment; return the seconds until its cache's reconcile begins."""
    await asyncio.sleep(1.0)
    ref: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": NEIGHBOUR, "name": "serving"},
    }
    changed_at = since_start(pid)
    await cluster.patch(ref, {"spec": {"replicas": replicas}})
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if (began := _find_run(runs, changed_at)) is not None:
                return began - changed_at


def _find_run(runs: Path, after: float) -> float | None:
    """Return when the neighbour's first reconcile after this time began."""
    for run in map(json.loads, runs.read_text().splitlines()):
        if run["key"].startswith(f"{NEIGHBOUR}/") and run["began"] > after:
            return float(run["began"])
    return None


async def _patch(cluster: Kubernetes, pod: Object, patches: itertools.count[int]) -> None:
    """Patch a pod's label again and again."""
    for number in itertools.count():
        with suppress(ApiError, OSError):
            await cluster.patch(pod, {"metadata": {"labels": {"noise": str(number)}}})
            next(patches)


def _pod(name: str, *, tuning: bool) -> Object:
    """Return a pod of the cache of its own name; changes of a tuning pod are urgent."""
    labels = {CACHE: name, **({"pretune.dev/role": "tuning"} if tuning else {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "evil", "name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }
