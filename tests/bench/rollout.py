"""A rollout of eight pods to a new engine: with pretune, cold, and with a folder for all pods."""

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
    preloaded_entries,
    serving_template,
    tuning_seconds,
    wait_for_storage,
    with_cache_label,
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
    """One rollout, in seconds; a GPU-second is a second in which an engine with one GPU tunes."""

    ready: float  # from the change of the template to PODS new ready pods
    tuned: float  # GPU-seconds of tuning, according to the engines' logs
    attempt: float  # of these, those of the tuning pod
    warm: int  # new pods that loaded all entries
    serving: int  # the lowest number of ready pods meanwhile


@dataclass(frozen=True)
class Rollouts:
    """All rollouts, and two starts without tuning."""

    with_pretune: Rollout
    cold: Rollout
    shared: Rollout
    start_one: float  # from creation to ready: one pod that tunes nothing
    start_all: float  # the same, PODS pods at once


@functools.cache
def measure_rollouts(bench: Bench) -> Rollouts:
    """Measure everything once, for both rows."""
    with bench.namespace("rollout") as namespace:
        bench.report("rollout: engine starts without any tuning, one and eight")
        start_one, start_all = (
            measure_start(bench, namespace, f"start{count}", count) for count in (1, PODS)
        )
        bench.report(f"rollout: {PODS} pods cold, an emptyDir each")
        cold = measure_rollout(
            bench, namespace, "cold", lambda template: with_override(template, {"emptyDir": {}})
        )
        bench.report(f"rollout: {PODS} pods with one folder that all write")
        bench.kube.create(claim(namespace, "by-hand"))
        volume = {"persistentVolumeClaim": {"claimName": "by-hand"}}
        shared = measure_rollout(
            bench, namespace, "shared", lambda template: with_override(template, volume)
        )
        bench.report(f"rollout: {PODS} pods with pretune")
        bench.kube.create(cache(namespace, "demo"))
        wait_for_storage(bench, namespace, "demo")
        with_pretune = measure_rollout(
            bench, namespace, "pretune", lambda template: with_cache_label(template, "demo")
        )
    return Rollouts(with_pretune, cold, shared, start_one, start_all)


def with_override(template: Object, volume: Object) -> Object:
    """Return the template with the override folder on a volume, as one writes it by hand."""
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


def measure_start(bench: Bench, namespace: str, name: str, count: int) -> float:
    """Return the seconds from the creation of `count` pods at once, which tune nothing, to ready."""
    template = serving_template(**{**ENGINE, "ENGINE_ENTRIES": "0"})
    pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
    began = time.perf_counter()
    bench.kube.create(deployment(namespace, name, template, count))
    pods.wait_until(lambda watcher: len(watcher.first_seen) == count, 120, "pods ready")
    pods.stop()
    _remove_deployment(bench, namespace, name)
    return max(pods.first_seen.values()) - began


def measure_rollout(
    bench: Bench, namespace: str, name: str, change: Callable[[Object], Object]
) -> Rollout:
    """Start PODS pods with vLLM 0.32, change it to 0.33, and watch until PODS new pods are ready."""
    template = change(serving_template("0.32.0", **ENGINE))
    pods = Watcher(bench.kube, "Pod", namespace, is_ready, f"app={name}")
    bench.kube.create(deployment(namespace, name, template, PODS))
    pods.wait_until(lambda watcher: len(watcher.first_seen) == PODS, 300, "first pods ready")
    old = set(pods.first_seen)
    if name == "pretune":
        ready = lambda cache: condition(cache, "Ready").get("status") == "True"  # noqa: E731
        bench.kube.wait_until("AutotuneCache", namespace, "demo", ready, 120)
    [container] = template["spec"]["containers"]
    changed = {
        **container,
        "command": serving_template("0.33.0")["spec"]["containers"][0]["command"],
    }
    bench.report(f"rollout: {name}: the engine changes")
    began, fewest = time.perf_counter(), PODS
    bench.kube.patch(
        "Deployment", namespace, name, {"spec": {"template": {"spec": {"containers": [changed]}}}}
    )

    def is_done(watcher: Watcher) -> bool:
        nonlocal fewest
        fewest = min(fewest, sum(is_ready(pod) for pod in list(watcher.objects.values())))
        return len(watcher.first_seen.keys() - old) == PODS

    pods.wait_until(is_done, 300, "new pods ready")
    pods.stop()
    new = sorted(pods.first_seen.keys() - old)
    logs = [bench.kube.log(namespace, name, "vllm") for name in new]
    attempt = 0.0
    if name == "pretune":
        # The newest attempt: the first one tuned the bundle of the old pods.
        jobs = bench.kube.list("Pod", namespace, "pretune.dev/role=tuning")
        newest = max(jobs, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        attempt = tuning_seconds(bench.kube.log(namespace, newest["metadata"]["name"], "vllm"))
        assert len(jobs) == 2, f"{len(jobs)} attempts for two engines"
    _remove_deployment(bench, namespace, name)
    return Rollout(
        ready=max(pods.first_seen[name] for name in new) - began,
        tuned=sum(tuning_seconds(log) for log in logs) + attempt,
        attempt=attempt,
        warm=sum(preloaded_entries(log) == ENTRIES for log in logs),
        serving=fewest,
    )


def _remove_deployment(bench: Bench, namespace: str, name: str) -> None:
    """Delete the Deployment and wait until its pods are gone: they would slow down the next one."""
    bench.kube.delete("Deployment", namespace, name)
    for pod in bench.kube.list("Pod", namespace, f"app={name}"):
        bench.kube.wait_until_gone("Pod", namespace, pod["metadata"]["name"], 120)


def measure_gpu_seconds(bench: Bench) -> list[Row]:
    """Return how many GPU-seconds a rollout tunes, according to the engines' logs."""
    rollouts = measure_rollouts(bench)
    attempt, tuned, rows = rollouts.with_pretune.attempt, rollouts.with_pretune.tuned, []
    ratio = tuned / attempt
    rows.append(
        Row(
            f"GPU-seconds of tuning, rollout of {PODS} pods to another vLLM",
            f"{tuned:.1f} s",
            f"{attempt:.1f} s: one tuning",
            f"{ratio:.3f}",
            "≤ 1.05",
            ratio <= 1.05,
        )
    )
    for what, other in (("cold", rollouts.cold), ("a shared read-write folder", rollouts.shared)):
        rows.append(
            Row(
                f"  the same, {what}",
                f"{other.tuned:.1f} s",
                f"{attempt:.1f} s: one tuning",
                f"{other.tuned / attempt:.2f}",
            )
        )
    warm = rollouts.with_pretune.warm
    rows.append(
        Row(
            "  new pods that load all entries",
            f"{warm} of {PODS}",
            aim=str(PODS),
            met=warm == PODS,
        )
    )
    return rows


def measure_ready(bench: Bench) -> list[Row]:
    """Return the seconds from the change of the template to eight ready and warm pods."""
    rollouts = measure_rollouts(bench)
    took, least = (
        rollouts.with_pretune.ready,
        rollouts.with_pretune.attempt + rollouts.start_one + rollouts.start_all,
    )
    starts = f"{rollouts.start_one:.1f} + {rollouts.start_all:.1f} engine starts (one, {PODS})"
    parts = f"{rollouts.with_pretune.attempt:.1f} tuning + {starts}"
    fewest = rollouts.with_pretune.serving
    return [
        Row(
            f"template changed → {PODS} pods ready and warm",
            f"{took:.1f} s",
            f"{least:.1f} s: {parts}",
            f"{took / least:.2f}",
            f"≤ {least:.1f} + 3 s",
            took <= least + 3 and rollouts.with_pretune.warm == PODS,
        ),
        Row(
            "  ready pods meanwhile, at least",
            str(fewest),
            aim=f"≥ {PODS}",
            met=fewest >= PODS,
        ),
        Row("  the same rollout, cold", f"{rollouts.cold.ready:.1f} s"),
        Row("  the same rollout, a shared read-write folder", f"{rollouts.shared.ready:.1f} s"),
    ]
