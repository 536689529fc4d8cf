"""Two rollouts of a namespace, alone and beside one that does all the harm it can.

HOSTILE_SECONDS (60) is how long the harm lasts at least; `make hostile` sets 600.
"""

from __future__ import annotations

import os
import time

from tests.bench.harness import (
    Bench,
    Watcher,
    cache,
    deployment,
    is_ready,
    serving_template,
    wait_for_storage,
    with_cache_label,
)
from tests.bench.table import Row
from tests.cluster.conftest import BUILD, SYSTEM
from tests.cluster.hostile_namespace import HostileNamespace
from tests.cluster.operator_control import OperatorControl

PODS = 2
ENGINE = {
    "ENGINE_ENTRIES": "40",
    "ENGINE_SECONDS_PER_ENTRY": "0.5",
    "ENGINE_START_SECONDS": "2",
}


def measure_hostile(bench: Bench) -> list[Row]:
    """Return how long rollouts take beside a hostile namespace, and how often processes restarted."""
    control = OperatorControl(bench.kube, SYSTEM, BUILD / "bin")
    seconds = float(os.environ.get("HOSTILE_SECONDS", "60"))
    alone = _roll_twice(bench, "alone")
    before = control.count_restarts()
    bench.report(f"hostile: a namespace does harm, for {seconds:.0f} s at least")
    with bench.namespace("evil") as evil:
        began = time.monotonic()
        with HostileNamespace(bench.kube, evil) as hostile:
            beside = _roll_twice(bench, "beside")
            while time.monotonic() - began < seconds:
                time.sleep(1)
        bench.report(f"hostile: {hostile.changes} changes; refused: {'; '.join(hostile.refused)}")
    after = control.count_restarts()
    # A pod that was replaced counts as one restart more than it reports.
    restarts = sum(count - before.get(name, -1) for name, count in after.items())
    ratio = beside / alone
    return [
        Row(
            "two rollouts beside a hostile namespace",
            f"{beside:.1f} s",
            f"{alone:.1f} s: alone",
            f"{ratio:.2f}",
            "≤ 1.1",
            ratio <= 1.1,
        ),
        Row(
            "  restarts of the operator's processes meanwhile",
            str(restarts),
            f"{hostile.changes} changes by it",
            "",
            "0",
            restarts == 0,
        ),
    ]


def _roll_twice(bench: Bench, name: str) -> float:
    """Return the seconds of two rollouts, each from the change of the template to new ready pods."""
    taken = 0.0
    with bench.namespace(f"hostile-{name}") as namespace:
        bench.kube.create(cache(namespace, "demo"))
        wait_for_storage(bench, namespace, "demo")
        template = with_cache_label(serving_template("0.32.0", **ENGINE), "demo")
        pods = Watcher(bench.kube, "Pod", namespace, is_ready, "app=serving")
        bench.kube.create(deployment(namespace, "serving", template, PODS))
        pods.wait_until(lambda watcher: len(watcher.first_seen) == PODS, 180, "first pods ready")
        for number in range(2):
            old = set(pods.first_seen)
            container = template["spec"]["containers"][0]
            env = [*container["env"], {"name": "REVISION", "value": str(number)}]
            change = {"containers": [{**container, "env": env}]}
            began = time.perf_counter()
            bench.kube.patch(
                "Deployment", namespace, "serving", {"spec": {"template": {"spec": change}}}
            )
            pods.wait_until(
                lambda watcher, old=old: len(watcher.first_seen.keys() - old) == PODS,
                300,
                "new pods ready",
            )
            taken += max(pods.first_seen[pod] for pod in pods.first_seen.keys() - old) - began
        pods.stop()
    return taken
