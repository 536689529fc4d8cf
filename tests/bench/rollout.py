"""A rollout of eight pods to a new engine: with pretune, cold, and over a hand-made folder that all pods may write."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.harness import (
    OVERRIDE,
    Bench,
    Watcher,
    cache,
    claim,
    deployment,
    is_ready,
    labelled,
    preloaded,
    serving,
    storage_ready,
    tuning_seconds,
)
from tests.bench.table import Row
from tests.cluster.kube import Object, condition

PODS, ENTRIES, PER_ENTRY, START = 8, 40, 0.5, 2.0
ENGINE = {
    "ENGINE_ENTRIES": str(ENTRIES),
    "ENGINE_SECONDS_PER_ENTRY": str(PER_ENTRY),
    "ENGINE_START_SECONDS": str(START),
}


@dataclass(frozen=True)
class Rollout:
    """What one rollout took. Seconds; a GPU-second is a second in which one engine with one GPU tunes."""

    ready: float  # from the template's change to PODS new pods Ready
    tuned: float  # GPU-seconds of tuning, by the engines' own logs
    attempt: float  # of these, the tuning pod's
    warm: int  # new pods that found all entries
    serving: int  # the fewest pods that were Ready meanwhile


@dataclass(frozen=True)
class Measured:
    with_pretune: Rollout
    cold: Rollout
    shared: Rollout
    start_one: float  # creation → Ready of one pod that tunes nothing
    start_all: float  # the same of PODS pods at once


@functools.cache
def measured(bench: Bench) -> Measured:
    """All of it once, for both rows."""
    with bench.namespace("rollout") as namespace:
        bench.say("rollout: engine starts without any tuning, one and eight")
        start_one, start_all = (
            starts(bench, namespace, f"start{count}", count) for count in (1, PODS)
        )
        bench.say(f"rollout: {PODS} pods cold, an emptyDir each")
        cold = roll(bench, namespace, "cold", lambda one: overridden(one, {"emptyDir": {}}))
        bench.say(f"rollout: {PODS} pods over one folder that all may write")
        bench.kube.create(claim(namespace, "by-hand"))
        volume = {"persistentVolumeClaim": {"claimName": "by-hand"}}
        shared = roll(bench, namespace, "shared", lambda one: overridden(one, volume))
        bench.say(f"rollout: {PODS} pods with pretune")
        bench.kube.create(cache(namespace, "demo"))
        storage_ready(bench, namespace, "demo")
        with_pretune = roll(bench, namespace, "pretune", lambda one: labelled(one, "demo"))
    return Measured(with_pretune, cold, shared, start_one, start_all)


def overridden(template: Object, volume: Object) -> Object:
    """As a person writes it by hand: the override folder on a volume."""
    [container] = template["spec"]["containers"]
    container = {
        **container,
        "env": [*container["env"], {"name": OVERRIDE, "value": "/tactics"}],
        "volumeMounts": [{"name": "tactics", "mountPath": "/tactics"}],
    }
    return {
        **template,
        "spec": {
            **template["spec"],
            "containers": [container],
            "volumes": [{"name": "tactics", **volume}],
        },
    }


def starts(bench: Bench, namespace: str, name: str, count: int) -> float:
    """Seconds from the creation of `count` pods at once, whose engines tune nothing, until all are Ready."""
    template = serving(**{**ENGINE, "ENGINE_ENTRIES": "0"})
    pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
    began = time.perf_counter()
    bench.kube.create(deployment(namespace, name, template, count))
    pods.until(lambda one: len(one.first) == count, 120, "pods ready")
    pods.stop()
    _away(bench, namespace, name, pods)
    return max(pods.first.values()) - began


def roll(bench: Bench, namespace: str, name: str, given: Callable[[Object], Object]) -> Rollout:
    """Bring PODS pods up with vLLM 0.32, change that to 0.33, and watch until PODS new ones are Ready."""
    template = given(serving("0.32.0", **ENGINE))
    pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
    bench.kube.create(deployment(namespace, name, template, PODS))
    pods.until(lambda one: len(one.first) == PODS, 300, "first pods ready")
    old = set(pods.first)
    if name == "pretune":
        ready = lambda one: condition(one, "Ready").get("status") == "True"  # noqa: E731
        bench.kube.until("AutotuneCache", namespace, "demo", ready, 120)
    [container] = template["spec"]["containers"]
    changed = {**container, "command": serving("0.33.0")["spec"]["containers"][0]["command"]}
    bench.say(f"rollout: {name}: the engine changes")
    began, fewest = time.perf_counter(), PODS
    bench.kube.patch(
        "Deployment", namespace, name, {"spec": {"template": {"spec": {"containers": [changed]}}}}
    )

    def done(seen: Watcher) -> bool:
        nonlocal fewest
        fewest = min(fewest, sum(is_ready(pod) for pod in list(seen.now.values())))
        return len(seen.first.keys() - old) == PODS

    pods.until(done, 300, "new pods ready")
    pods.stop()
    new = sorted(pods.first.keys() - old)
    logs = {one: bench.kube.log(namespace, one, "vllm") for one in new}
    attempt = 0.0
    if name == "pretune":
        # The newest attempt: the first one made the bundle that the old pods run with.
        jobs = bench.kube.list("Pod", namespace, "pretune.dev/role=tuning")
        newest = max(jobs, key=lambda one: str(one["metadata"]["creationTimestamp"]))
        attempt = tuning_seconds(bench.kube.log(namespace, newest["metadata"]["name"], "vllm"))
        assert len(jobs) == 2, f"{len(jobs)} attempts for two engines"
    _away(bench, namespace, name, pods)
    return Rollout(
        ready=max(pods.first[one] for one in new) - began,
        tuned=sum(tuning_seconds(one) for one in logs.values()) + attempt,
        attempt=attempt,
        warm=sum(preloaded(one) == ENTRIES for one in logs.values()),
        serving=fewest,
    )


def _away(bench: Bench, namespace: str, name: str, pods: Watcher) -> None:
    """Out of the next one's way."""
    bench.kube.delete("Deployment", namespace, name)
    for one in bench.kube.list("Pod", namespace, f"app={name}"):
        bench.kube.until_gone("Pod", namespace, one["metadata"]["name"], 120)


def gpu_seconds(bench: Bench) -> list[Row]:
    """How much GPU time a rollout tunes, by the engines' logs."""
    seen = measured(bench)
    one, all_, rows = seen.with_pretune.attempt, seen.with_pretune.tuned, []
    ratio = all_ / one
    rows.append(
        Row(
            f"GPU-seconds of tuning, rollout of {PODS} pods to another vLLM",
            f"{all_:.1f} s",
            f"{one:.1f} s: one tuning",
            f"{ratio:.3f}",
            "≤ 1.05",
            ratio <= 1.05,
        )
    )
    for what, other in (("cold", seen.cold), ("a shared read-write folder", seen.shared)):
        rows.append(
            Row(
                f"  the same, {what}",
                f"{other.tuned:.1f} s",
                f"{one:.1f} s: one tuning",
                f"{other.tuned / one:.2f}",
            )
        )
    warm = seen.with_pretune.warm
    rows.append(
        Row(
            "  new pods that start with all entries",
            f"{warm} of {PODS}",
            aim=str(PODS),
            met=warm == PODS,
        )
    )
    return rows


def ready(bench: Bench) -> list[Row]:
    """From the change to eight ready and warm pods."""
    seen = measured(bench)
    took, least = (
        seen.with_pretune.ready,
        seen.with_pretune.attempt + seen.start_one + seen.start_all,
    )
    parts = f"{seen.with_pretune.attempt:.1f} tuning + {seen.start_one:.1f} + {seen.start_all:.1f} engine starts (one, {PODS})"
    fewest = seen.with_pretune.serving
    return [
        Row(
            f"template changed → {PODS} pods ready and warm",
            f"{took:.1f} s",
            f"{least:.1f} s: {parts}",
            f"{took / least:.2f}",
            f"≤ {least:.1f} + 3 s",
            took <= least + 3 and seen.with_pretune.warm == PODS,
        ),
        Row(
            "  ready pods throughout, at the fewest",
            str(fewest),
            aim=f"≥ {PODS}",
            met=fewest >= PODS,
        ),
        Row("  the same rollout, cold", f"{seen.cold.ready:.1f} s"),
        Row("  the same rollout, a shared read-write folder", f"{seen.shared.ready:.1f} s"),
    ]
