"""From the seal to 500 released pods, against a bare loop of the same patches by the same client in the same container."""

from __future__ import annotations

import json
import time

from pretune.api.timestamps import parse_timestamp

from tests.bench.harness import Bench, Watcher, cache, labelled, seal_ended, storage_ready
from tests.bench.table import Row
from tests.cluster.conftest import SYSTEM, engine
from tests.cluster.kube import Object

PODS = 500
HOLD = "pretune.dev/hold"
STAY = "bench.pretune.dev/stay"  # a gate that nobody removes: what is released stays an object, and starts nowhere
SWEPT = 20.0  # seconds after the controller's start in which it frees pods that name no cache, as those of the bare loop
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
        refs = iter([{"apiVersion": "v1", "kind": "Pod", "metadata": {n: p["metadata"][n] for n in ("namespace", "name", "uid")}}
                     for p in pods])
        async def some():
            for ref in refs:
                await cluster.patch(ref, release_patch(), strategic=True)
        began = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(at_a_time)))
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


def gated(template: Object, *gates: str) -> Object:
    return {
        **template,
        "spec": {**template["spec"], "schedulingGates": [{"name": one} for one in gates]},
    }


def gates(pod: Object) -> list[str]:
    return [one["name"] for one in pod["spec"].get("schedulingGates") or ()]


def released(bench: Bench) -> list[Row]:
    """Both on pods of the same form; only who sends the patches differs."""
    with bench.namespace("release") as namespace:
        time.sleep(
            max(
                0.0,
                parse_timestamp(bench.controller()["status"]["startTime"]) + SWEPT - time.time(),
            )
        )
        loops = {}
        for at_a_time in (1, 8):
            name = f"bare{at_a_time}"
            bench.say(f"release: a bare loop of {PODS} patches, {at_a_time} at a time")
            pods = Watcher(
                bench.kube, "Pod", namespace, lambda one: HOLD not in gates(one), f"app={name}"
            )
            bench.kube.create(replicaset(namespace, name, gated(engine(), HOLD, STAY)))
            pods.until(lambda one: len(one.now) == PODS, 120, "pods made")
            assert not pods.first, "all pods have to be held before the loop"
            controller = bench.controller()["metadata"]["name"]
            said = bench.inside(
                SYSTEM, controller, "python3", "-", namespace, str(at_a_time), name, stdin=LOOP
            )
            count, took = json.loads(said)
            assert count == PODS, count
            pods.until(lambda one: len(one.first) == PODS, 30, "pods without their gate")
            pods.stop()
            loops[at_a_time] = float(took)
            bench.kube.delete("ReplicaSet", namespace, name)
        first, took = _by_pretune(bench, namespace)
    fastest = min(loops.values())
    each = ", ".join(f"{at_a_time} at a time: {one:.2f} s" for at_a_time, one in loops.items())
    ratio = took / fastest
    return [
        Row(
            f"seal → {PODS} held pods released",
            f"{took:.2f} s",
            f"{fastest:.2f} s: a bare loop of the patches ({each})",
            f"{ratio:.2f}",
            "≤ 1.5",
            ratio <= 1.5,
        ),
        Row("  the first of them", f"{first:.2f} s"),
    ]


def _by_pretune(bench: Bench, namespace: str) -> tuple[float, float]:
    """Seconds from the watch event that shows the end of seal to those that show the first and the last pod without our gate."""
    template = engine(env=TUNING)
    bench.say(f"release: {PODS} pods are held while their bundle is tuned")
    ends = Watcher(bench.kube, "Pod", namespace, seal_ended, "pretune.dev/role=tuning")
    pods = Watcher(bench.kube, "Pod", namespace, lambda one: HOLD not in gates(one), "app=held")
    bench.kube.create(
        cache(namespace, "demo", source={"template": template}, hold={"when": "Always"})
    )
    storage_ready(bench, namespace, "demo")
    bench.kube.create(replicaset(namespace, "held", labelled(gated(template, STAY), "demo")))
    pods.until(lambda one: len(one.now) == PODS, 120, "pods made")
    assert not ends.first and not pods.first, "all pods have to be held before the seal"
    pods.until(lambda one: len(one.first) == PODS, 300, "pods released")
    for one in (ends, pods):
        one.stop()
    [sealed] = ends.first.values()
    return min(pods.first.values()) - sealed, max(pods.first.values()) - sealed
