"""From seal to Ready, what is written meanwhile and while idle, memory, publication."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench import publish
from tests.bench.harness import Bench, Watcher, cache, claim, has_seal_ended, resident_mib
from tests.bench.table import Row
from tests.cluster.kube import condition
from tests.cluster.workloads import engine_template

AUDIT = Path(
    "/var/lib/pretune-cluster/logs/audit.log"
)  # tools/cluster/config/audit.yaml: what our accounts ask
CACHES, IDLE_CACHES, IDLE_SECONDS = 30, 200, 60
WRITES = {"create", "update", "patch", "delete"}
SOURCE = {"template": engine_template()}


def count_writes(namespace: str, since: float) -> Counter[str]:
    """Return the controller's writes by `verb resource`, from the audit log, without the lease's."""
    counted: Counter[str] = Counter()
    for line in AUDIT.read_text().splitlines():
        event = json.loads(line)
        at = (
            time.mktime(time.strptime(event["requestReceivedTimestamp"][:19], "%Y-%m-%dT%H:%M:%S"))
            - time.timezone
        )
        what = event.get("objectRef") or {}
        if event["verb"] in WRITES and at >= since and what.get("namespace") == namespace:
            counted[
                f"{event['verb']} {what['resource']}{'/' + what['subresource'] if 'subresource' in what else ''}"
            ] += 1
    return counted


def measure_latency(bench: Bench) -> list[Row]:
    """Measure the time from the end of seal to Ready=True, CACHES caches at once; then an idle minute.

    The times are those of the watch events.
    """
    with bench.namespace("latency") as namespace:
        began = time.time()
        ends = Watcher(bench.kube, "Pod", namespace, has_seal_ended)
        readies = Watcher(
            bench.kube,
            "AutotuneCache",
            namespace,
            lambda cache: condition(cache, "Ready").get("status") == "True",
        )
        bench.report(f"latency: {CACHES} caches are tuned")
        for number in range(CACHES):
            bench.kube.create(cache(namespace, f"c{number}", source=SOURCE))
        readies.wait_until(lambda watcher: len(watcher.first_seen) == CACHES, 600, "caches ready")
        sealed = {
            pod["metadata"]["labels"]["pretune.dev/cache"]: ends.first_seen[name]
            for name, pod in ends.objects.items()
            if name in ends.first_seen
        }
        spans = sorted(max(0.0, at - sealed[name]) for name, at in readies.first_seen.items())
        counted = count_writes(namespace, began)
        status = [readies.changes[name] for name in readies.first_seen]
        others = {name: number / CACHES for name, number in counted.items() if "status" not in name}
        listed = ", ".join(f"{number:.1f} {name}" for name, number in sorted(others.items()))
        p99 = spans[int(len(spans) * 0.99)]
        bench.report(f"latency: what is written in {IDLE_SECONDS} idle seconds")
        time.sleep(45)  # finished pods linger
        idle_since = time.time()
        time.sleep(IDLE_SECONDS)
        idle = sum(count_writes(namespace, idle_since).values())
        for watcher in (ends, readies):
            watcher.stop()
    mean, most = statistics.mean(status), max(status)
    return [
        Row(
            f"seal ended → Ready=True, p50 of {CACHES} caches at once",
            f"{statistics.median(spans):.2f} s",
        ),
        Row("  p99", f"{p99:.2f} s", aim="≤ 0.5 s", met=p99 <= 0.5),
        Row(
            "  status writes a tuning, mean / most",
            f"{mean:.1f} / {most}",
            aim="≤ 8",
            met=most <= 8,
        ),
        Row("  other API writes a tuning", f"{sum(others.values()):.1f}: {listed}"),
        Row(
            f"  API writes in {IDLE_SECONDS} idle s, {CACHES} caches",
            str(idle),
            aim="0",
            met=idle == 0,
        ),
    ]


def measure_memory(bench: Bench) -> list[Row]:
    """Measure the resident memory of the controller's process with IDLE_CACHES idle caches."""
    with bench.namespace("memory") as namespace:
        before = resident_mib(bench)
        bench.kube.create(claim(namespace, "shared"))
        bench.report(f"memory: {IDLE_CACHES} idle caches")
        for number in range(IDLE_CACHES):
            spec = {
                "suspend": True,
                "storage": {"existingClaim": {"name": "shared"}},
                "source": SOURCE,
            }
            bench.kube.create(cache(namespace, f"idle{number}", **spec))
        for number in range(IDLE_CACHES):
            bench.kube.wait_until(
                "AutotuneCache",
                namespace,
                f"idle{number}",
                lambda cache: condition(cache, "Ready").get("reason") == "Suspended",
                120,
            )
        now = resident_mib(bench)
    return [
        Row(
            f"controller's memory with {IDLE_CACHES} idle caches",
            f"{now:.0f} MiB",
            f"{before:.0f} MiB before",
            aim="≤ 90 MiB",
            met=now <= 90,
        )
    ]


def measure_publishing(bench: Bench) -> list[Row]:
    """Compare seal's publication of 200 files with `cp -R` and `sync`, on this machine's disk."""
    bench.report("publish: seal, and cp -R with sync")
    seal, copy = publish.measure(tempfile.gettempdir())
    return [
        Row(
            f"publish of {publish.FILES} files",
            f"{seal * 1000:.0f} ms",
            f"{copy * 1000:.0f} ms: cp -R, sync",
            f"{seal / copy:.1f}",
        )
    ]
