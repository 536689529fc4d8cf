"""The controller with a cache in each of many namespaces: its memory and its connections.

It has its own API server. NAMESPACES says how many there are.
"""

from __future__ import annotations

import asyncio
import os

from pretune.kube.client import Kubernetes

from tests.bench.api_server import run_api_server
from tests.bench.harness import Bench, cache, claim, deployment, serving_template
from tests.bench.population import create, for_each
from tests.bench.scale import connect, install_crd, start_controller
from tests.bench.table import Row

DEFAULT_NAMESPACES = 5000
MAX_MIB = 400
MAX_CONNECTIONS = 60
TIMEOUT_SECONDS = 1800.0


def measure_namespaces(bench: Bench) -> list[Row]:
    """Start the controller where each namespace has a cache that names a Deployment and a claim."""
    count = int(os.environ.get("NAMESPACES") or DEFAULT_NAMESPACES)
    with run_api_server() as kubeconfig:
        bench.report(f"namespaces: {count} of them are written to their own API server")
        install_crd(kubeconfig)
        asyncio.run(_write(kubeconfig, count))
        bench.report("namespaces: the controller starts")
        start = start_controller(kubeconfig, count, TIMEOUT_SECONDS)
        bench.report(f"namespaces: {start}")
    return [
        Row(
            f"controller with a cache in each of {count:,} namespaces: memory",
            f"{start.resident:.0f} MiB (highest {start.highest:.0f})",
            aim=f"≤ {MAX_MIB} MiB",
            met=start.highest <= MAX_MIB,
        ),
        Row(
            "  connections to the API server",
            str(start.connections),
            aim=f"≤ {MAX_CONNECTIONS}",
            met=start.connections <= MAX_CONNECTIONS,
        ),
        Row("  from start to steady; runs", f"{start.steady:.1f} s; {start.runs}"),
    ]


async def _write(kubeconfig: str, count: int) -> None:
    async with await connect(kubeconfig) as cluster:
        await for_each(lambda number: write_namespace(cluster, f"n{number}"), range(count))


async def write_namespace(cluster: Kubernetes, name: str) -> None:
    """Write a namespace with a cache that names a Deployment and a claim."""
    await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    await cluster.create(deployment(name, "serving", serving_template(), 1))
    shared = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim(name, "shared")}
    await create(cluster, {**shared, "status": {"phase": "Bound"}})
    source = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "serving"}}
    storage = {"existingClaim": {"name": "shared"}}
    # Suspended: nothing would run here.
    await cluster.create(cache(name, "cache", source=source, storage=storage, suspend=True))
