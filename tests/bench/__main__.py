"""make bench: one table of what pretune costs and how fast it is, each figure beside its aim, measured in this run on the local cluster.

python -m tests.bench [ROW …]        rows: latency idle memory publish; default: all
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench import publish
from tests.cluster.conftest import BUILD, ROOT, SYSTEM, engine, install
from tests.cluster.kube import Kube, Object, condition

AUDIT = Path("/var/lib/pretune-cluster/logs/audit.log")  # tools/cluster/config/audit.yaml
NAMESPACE = "pretune-bench"
CACHES, IDLE_CACHES, IDLE_SECONDS = 30, 200, 60
WRITES = {"create", "update", "patch", "delete"}
Row = tuple[str, str, str]  # what, figure, aim


def main() -> None:
    kube = Kube(str(ROOT / ".local/kubeconfig"))
    assert (
        ((kube.get("Namespace", "", "kube-system") or {})["metadata"]["labels"])["pretune.dev/test-cluster"] == "true"
    )
    install(kube)
    if kube.get("Namespace", "", NAMESPACE) is not None:
        kube.delete("Namespace", "", NAMESPACE)
        kube.until_gone("Namespace", "", NAMESPACE)
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    measures = {"latency": latency, "idle": idle, "memory": memory, "publish": published}
    rows: list[Row] = []
    try:
        for name in sys.argv[1:] or list(measures):
            rows += measures[name](kube)
    finally:
        kube.delete("Namespace", "", NAMESPACE)
    machine = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    print(f"\non {platform.node()}: {len(os.sched_getaffinity(0))} cores, {machine}; local cluster, stand-in engine")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in [("what", "measured", "aim"), *rows]:
        print("  " + "   ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)))


def cache(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"source": {"template": engine()}, **spec},
    }


class Watcher(threading.Thread):
    """When each object of a kind first showed something, by name; and how often each changed."""

    def __init__(self, kube: Kube, kind: str, shows: Any, seconds: float) -> None:
        super().__init__(daemon=True)
        self.kube, self.kind, self.shows, self.seconds = kube, kind, shows, seconds
        self.first: dict[str, float] = {}
        self.changes: Counter[str] = Counter()

    def run(self) -> None:
        for change, obj in Kube(self.kube.kubeconfig).watch(self.kind, NAMESPACE, seconds=self.seconds):
            now = time.perf_counter()
            if change in ("ADDED", "MODIFIED"):
                name = obj["metadata"]["labels"]["pretune.dev/cache"] if self.kind == "Pod" else obj["metadata"]["name"]
                self.changes[name] += change == "MODIFIED"
                if self.shows(obj):
                    self.first.setdefault(name, now)


def _seal_ended(pod: Object) -> bool:
    return any(
        "terminated" in (one.get("state") or {})
        for one in pod["status"].get("containerStatuses") or ()
        if one["name"] == "pretune-seal"
    )


def writes(since: float) -> Counter[str]:
    """The controller's writes by `verb resource`, from the API server's audit log; the lease's renewals left out."""
    counted: Counter[str] = Counter()
    for line in AUDIT.read_text().splitlines():
        event = json.loads(line)
        at = time.mktime(time.strptime(event["requestReceivedTimestamp"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        what = event.get("objectRef") or {}
        if event["verb"] in WRITES and at >= since and what.get("namespace") == NAMESPACE:
            counted[
                f"{event['verb']} {what['resource']}{'/' + what['subresource'] if 'subresource' in what else ''}"
            ] += 1
    return counted


def latency(kube: Kube) -> list[Row]:
    """From the watch event that shows seal terminated to the one that shows Ready=True, over CACHES caches at once."""
    began = time.time()
    ends = Watcher(kube, "Pod", _seal_ended, 600)
    readies = Watcher(kube, "AutotuneCache", lambda one: condition(one, "Ready").get("status") == "True", 600)
    ends.start()
    readies.start()
    for number in range(CACHES):
        kube.create(cache(f"c{number}", storage={"claim": {"storageClassName": "local-rwx"}}))
    deadline = time.monotonic() + 600
    while len(readies.first) < CACHES and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(readies.first) == CACHES, f"{len(readies.first)} of {CACHES} caches are ready"
    spans = sorted(max(0.0, readies.first[name] - ends.first[name]) for name in readies.first)
    counted = writes(began)
    status = [readies.changes[name] for name in readies.first]
    others = {name: number / CACHES for name, number in counted.items() if "status" not in name}
    return [
        (f"seal ended → Ready=True, p50 of {CACHES} caches", f"{statistics.median(spans):.2f} s", ""),
        ("seal ended → Ready=True, p99", f"{spans[int(len(spans) * 0.99)]:.2f} s", "≤ 0.5 s"),
        ("status writes a tuning, mean / most", f"{statistics.mean(status):.1f} / {max(status)}", "≤ 8"),
        (
            "other API writes a tuning",
            f"{sum(others.values()):.1f}: "
            + ", ".join(f"{number:.1f} {name}" for name, number in sorted(others.items())),
            "",
        ),
    ]


def idle(kube: Kube) -> list[Row]:
    """Writes while nothing happens, beside the lease's renewals. Finished pods' lingering is waited out first."""
    time.sleep(45)
    began = time.time()
    time.sleep(IDLE_SECONDS)
    return [(f"API writes in {IDLE_SECONDS} idle s", str(sum(writes(began).values())), "0")]


def memory(kube: Kube) -> list[Row]:
    """Resident memory of the controller's process with IDLE_CACHES idle caches."""
    before = resident(kube)
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "local-rwx",
    }
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": NAMESPACE, "name": "shared"},
            "spec": claim,
        }
    )
    for number in range(IDLE_CACHES):
        kube.create(cache(f"idle{number}", suspend=True, storage={"existingClaim": {"name": "shared"}}))
    for number in range(IDLE_CACHES):
        kube.until(
            "AutotuneCache",
            NAMESPACE,
            f"idle{number}",
            lambda c: condition(c, "Ready").get("reason") == "Suspended",
            120,
        )
    return [
        (
            f"controller's memory with {IDLE_CACHES} more idle caches",
            f"{resident(kube):.0f} MiB (before: {before:.0f})",
            "≤ 90 MiB",
        )
    ]


def resident(kube: Kube) -> float:
    """MiB."""
    [pod] = [
        one for one in kube.list("Pod", SYSTEM, "app.kubernetes.io/name=pretune") if one["status"]["phase"] == "Running"
    ]
    words = [
        str(BUILD / "bin/kubectl"),
        "--kubeconfig",
        kube.kubeconfig,
        "exec",
        "-n",
        SYSTEM,
        pod["metadata"]["name"],
        "--",
    ]
    text = subprocess.run([*words, "cat", "/proc/1/status"], check=True, capture_output=True, text=True).stdout
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) / 1024


def published(kube: Kube) -> list[Row]:
    """seal's publication of 200 files against `cp -R` and `sync`, on this machine's disk."""
    seal, copy = publish.measure(tempfile.gettempdir())
    return [
        (
            f"publish of {publish.FILES} files / cp -R + sync",
            f"{seal * 1000:.0f} ms / {copy * 1000:.0f} ms = {seal / copy:.1f}",
            "",
        )
    ]


if __name__ == "__main__":
    main()
