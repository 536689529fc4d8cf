"""From the seal to 500 released pods, compared with a plain loop of the same patches.

The loop uses the same client in the same container.
"""

from __future__ import annotations

import json
import time

from pretune.api.timestamps import parse_timestamp

from tests.bench.harness import (
    Bench,
    Watcher,
    cache,
    has_seal_ended,
    wait_for_storage,
    with_cache_label,
)
from tests.bench.table import Row
from tests.cluster.conftest import SYSTEM
from tests.cluster.kube import Object
from tests.cluster.workloads import engine_template

PODS = 500
HOLD = "pretune.dev/hold"
STAY = "bench.pretune.dev/stay"  # a gate that is never removed: released pods do not start
# After its start, the controller releases pods without a cache for so long: those of the loop too.
SWEEP_SECONDS = 20.0
TUNING = {
    "ENGINE_ENTRIES": "20",
    "ENGINE_SECONDS_PER_ENTRY": "3",
}  # long enough that all are held before the seal

LOOP = """
import asyncio, json, sys, time
from pretune.kube.client import Kubernetes, load_configuration
from pretune.manifests.gate import release_patch

async def main():
    namespace, at_a_time = sys.argv[1], int(sys.argv[2])
    async with Kubernetes(await load_configuration()) as cluster:
        pods = await cluster.list("v1", "Pod", namespace, labels=f"app={sys.argv[3]}")
        names = ("namespace", "name", "uid")
        metas = [{name: pod["metadata"][name] for name in names} for pod in pods]
        refs = iter([{"apiVersion": "v1", "kind": "Pod", "metadata": meta} for meta in metas])
        async def patch():
            for ref in refs:
                await cluster.patch(ref, release_patch(), strategic=True)
        began = time.perf_counter()
        await asyncio.gather(*(patch() for _ in range(at_a_time)))
        print(json.dumps([len(pods), time.perf_counter() - began]))

asyncio.run(main())
"""


def replicaset(namespace: str, name: str, template: Object) -> Object:
    meta = template["metadata"]
    template = {
        **template,
        "metadata": {**meta, "labels": {**(meta.get("labels") or {}), "app": name}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
        },
    }


def with_gates(template: Object, *gates: str) -> Object:
    return {
        **template,
        "spec": {**template["spec"], "schedulingGates": [{"name": gate} for gate in gates]},
    }


def gate_names(pod: Object) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]


def measure_release(bench: Bench) -> list[Row]:
    """Measure both with equal pods; only the sender of the patches differs."""
    with bench.namespace("release") as namespace:
        time.sleep(
            max(
                0.0,
                parse_timestamp(bench.find_controller()["status"]["startTime"])
                + SWEEP_SECONDS
                - time.time(),
            )
        )
        loops = {}
        for at_a_time in (1, 8):
            name = f"loop{at_a_time}"
            bench.report(f"release: a plain loop of {PODS} patches, {at_a_time} at a time")
            pods = Watcher(
                bench.kube, "Pod", namespace, lambda pod: HOLD not in gate_names(pod), f"app={name}"
            )
            bench.kube.create(
                replicaset(namespace, name, with_gates(engine_template(), HOLD, STAY))
            )
            pods.wait_until(lambda watcher: len(watcher.objects) == PODS, 120, "pods created")
            assert not pods.first_seen, "all pods must be held before the loop"
            controller = bench.find_controller()["metadata"]["name"]
            output = bench.exec_in_pod(
                SYSTEM, controller, "python3", "-", namespace, str(at_a_time), name, stdin=LOOP
            )
            count, took = json.loads(output)
            assert count == PODS, count
            pods.wait_until(
                lambda watcher: len(watcher.first_seen) == PODS, 30, "pods without their gate"
            )
            pods.stop()
            loops[at_a_time] = float(took)
            bench.kube.delete("ReplicaSet", namespace, name)
        first, took = _measure_pretune(bench, namespace)
    fastest = min(loops.values())
    each = ", ".join(
        f"{at_a_time} at a time: {seconds:.2f} s" for at_a_time, seconds in loops.items()
    )
    ratio = took / fastest
    return [
        Row(
            f"seal → {PODS} held pods released",
            f"{took:.2f} s",
            f"{fastest:.2f} s: a plain loop of the patches ({each})",
            f"{ratio:.2f}",
            "≤ 1.5",
            ratio <= 1.5,
        ),
        Row("  the first of them", f"{first:.2f} s"),
    ]


def _measure_pretune(bench: Bench, namespace: str) -> tuple[float, float]:
    """Return the seconds from the end of seal to the first and to the last released pod.

    The times are those of the watch events.
    """
    template = engine_template(env=TUNING)
    bench.report(f"release: {PODS} pods are held while their bundle is tuned")
    ends = Watcher(bench.kube, "Pod", namespace, has_seal_ended, "pretune.dev/role=tuning")
    pods = Watcher(
        bench.kube, "Pod", namespace, lambda pod: HOLD not in gate_names(pod), "app=held"
    )
    bench.kube.create(
        cache(namespace, "demo", source={"template": template}, hold={"when": "Always"})
    )
    wait_for_storage(bench, namespace, "demo")
    bench.kube.create(
        replicaset(namespace, "held", with_cache_label(with_gates(template, STAY), "demo"))
    )
    pods.wait_until(lambda watcher: len(watcher.objects) == PODS, 120, "pods created")
    assert not ends.first_seen and not pods.first_seen, "all pods must be held before the seal"
    pods.wait_until(lambda watcher: len(watcher.first_seen) == PODS, 300, "pods released")
    for watcher in (ends, pods):
        watcher.stop()
    [sealed] = ends.first_seen.values()
    return min(pods.first_seen.values()) - sealed, max(pods.first_seen.values()) - sealed
