"""What the controller is compared with, each in its own process: kopf alone, and plain lists.

kopf has the same watches as the controller, and empty handlers.

    python -m tests.bench.baselines kopf|lists EXPECTED

EXPECTED is the number of objects of all kinds, in the cluster of KUBECONFIG. Prints {"seconds": from
the process's start until all were seen, "resident": MiB then, "highest": MiB}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import kopf
from pretune.api.names import CACHE, GROUP, KIND, PLURAL, VERSION
from pretune.controller import main
from pretune.kube.client import Kubernetes, load_configuration
from pretune.kube.types import metadata_only

from tests.bench.process import memory, since_start

KINDS = {
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
}

PODS = ("", "v1", "pods")  # which the controller watches without kopf


async def watch_with_kopf(expected: int) -> None:
    """Run kopf as the controller does, with handlers that do nothing, until all were seen."""
    registry, seen, done = kopf.OperatorRegistry(), 0, asyncio.Event()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return main.kopf_connection(await load_configuration())

    async def count(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == expected:
            done.set()

    for kind in [(GROUP, VERSION, PLURAL), *main.LABELLED_KINDS, PODS]:
        kopf.on.event(*kind, registry=registry)(count)
    settings = main.kopf_settings()
    settings.watching.label_selectors[PODS] = CACHE
    task = asyncio.create_task(
        kopf.operator(registry=registry, settings=settings, clusterwide=True, standalone=True)
    )
    await asyncio.wait(
        [task, asyncio.create_task(done.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    if done.is_set():
        _print_result()
    os._exit(0 if done.is_set() else 1)  # what kopf ends with is not measured, and takes its time


async def list_all(expected: int) -> None:
    """List each kind once, page by page, and keep only the metadata of each object."""
    found = 0
    async with Kubernetes(await load_configuration()) as cluster:
        found += len(await cluster.list(f"{GROUP}/{VERSION}", KIND, "", project=_metadata))
        for version, kind in KINDS.values():
            found += len(await cluster.list(version, kind, "", labels=CACHE, project=_metadata))
    assert found == expected, f"{found} of {expected}"
    _print_result()


def _metadata(obj: dict[str, Any]) -> dict[str, Any]:
    """As `metadata_only`, but asked for whole: the controller has to read specs and statuses too."""
    return metadata_only(obj)


def _print_result() -> None:
    resident, highest = memory()
    print(
        json.dumps({"seconds": since_start(), "resident": resident, "highest": highest}), flush=True
    )


if __name__ == "__main__":
    asyncio.run({"kopf": watch_with_kopf, "lists": list_all}[sys.argv[1]](int(sys.argv[2])))
