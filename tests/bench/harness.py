"""What every row of the bench uses: the cluster, temporary namespaces, progress, watches, exec."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tests.cluster.conftest import BUILD, ROOT, SYSTEM, install
from tests.cluster.kube import Kube, Object, condition
from tests.cluster.workloads import engine_template

CACHE = "pretune.dev/cache"
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
CLASS = "local-rwx"
KUBECTL = BUILD / "bin/kubectl"
_PROCESS = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - INFO - \S+ - flashinfer\.jit: "
    r"\[Autotuner\]: Autotuning process (\w+)"
)


class Bench:
    """One run on the local cluster."""

    def __init__(self) -> None:
        self.kube = Kube(str(ROOT / ".local/kubeconfig"))
        self.began = time.monotonic()
        system = self.kube.get("Namespace", "", "kube-system") or {}
        assert (system["metadata"].get("labels") or {}).get("pretune.dev/test-cluster") == "true", (
            f"{self.kube.host} is not marked as a test cluster:"
            " the bench creates thousands of objects, and refuses"
        )

    def report(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", file=sys.stderr, flush=True)

    def install(self) -> None:
        self.report("installing the chart from the checkout")
        install(self.kube)

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """Create a namespace for the body, and delete it afterwards.

        The deletion is waited for, since it would slow down the next row.
        """
        name = f"pretune-bench-{name}"
        self._remove(name)
        self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        try:
            yield name
        finally:
            self._remove(name)

    def _remove(self, name: str) -> None:
        if self.kube.get("Namespace", "", name) is not None:
            self.kube.delete("Namespace", "", name)
            self.kube.wait_until_gone("Namespace", "", name, 600)

    def exec_in_pod(
        self, namespace: str, pod: str, *command: str, stdin: str | None = None, container: str = ""
    ) -> str:
        """Run a command in a container and return its output. Raises RuntimeError if it fails."""
        kubectl = [str(KUBECTL), "--kubeconfig", self.kube.kubeconfig, "exec", "-i"]
        kubectl += ["-n", namespace, pod, *(["-c", container] if container else [])]
        done = subprocess.run(
            [*kubectl, "--", *command], input=stdin, capture_output=True, text=True
        )
        if done.returncode:
            shown, error = " ".join(command)[:80], done.stderr.strip()[-2000:]
            raise RuntimeError(f"{pod}: {shown}: exit {done.returncode}: {error}")
        return done.stdout

    def find_controller(self) -> Object:
        """Return the pod of the running controller."""
        labels = "app.kubernetes.io/name=pretune,app.kubernetes.io/component=controller"
        [pod] = [
            pod
            for pod in self.kube.list("Pod", SYSTEM, labels)
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]
        return pod


def resident_mib(bench: Bench) -> float:
    """Return the resident memory of the controller's process, in MiB."""
    text = bench.exec_in_pod(
        SYSTEM, bench.find_controller()["metadata"]["name"], "cat", "/proc/1/status"
    )
    return (
        int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) / 1024
    )


def cache(namespace: str, name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"storage": {"claim": {"storageClassName": CLASS}}, **spec},
    }


def wait_for_storage(bench: Bench, namespace: str, name: str) -> None:
    """Wait until a cache's claim can be used: pods that are created before get nothing."""
    is_ready = lambda cache: condition(cache, "StorageReady").get("status") == "True"  # noqa: E731
    bench.kube.wait_until("AutotuneCache", namespace, name, is_ready, 60, "StorageReady")


def claim(namespace: str, name: str, size: str = "1Gi") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": size}},
            "storageClassName": CLASS,
        },
    }


def deployment(namespace: str, name: str, template: Object, replicas: int) -> Object:
    """Return a Deployment that starts all new pods at once, and ends old ones when they are ready."""
    labels = {"app": name}
    meta = template["metadata"]
    template = {
        **template,
        "metadata": {**meta, "labels": {**(meta.get("labels") or {}), **labels}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0},
            },
            "template": template,
        },
    }


def with_cache_label(template: Object, cache_name: str) -> Object:
    """Return the template with the cache's label."""
    meta = template["metadata"]
    return {
        **template,
        "metadata": {**meta, "labels": {**(meta.get("labels") or {}), CACHE: cache_name}},
    }


def serving_template(release: str = "0.33.0", **env: str) -> Object:
    """Return the stand-in's template as a Deployment has it: ready when it answers."""
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1}
    template = engine_template(release, env=env, readinessProbe=probe)
    template["metadata"]["labels"] = {}
    template["spec"]["terminationGracePeriodSeconds"] = 1
    return template


def tuning_seconds(log: str) -> float:
    """Return the seconds between the start and the end of tuning, according to the engine's log.

    Several tunings are summed. Raises ValueError if the log has no such lines.
    """
    lines = [
        (datetime.strptime(time_, "%Y-%m-%d %H:%M:%S,%f"), what)
        for time_, what in _PROCESS.findall(log)
    ]
    starts, ends = ([time_ for time_, what in lines if what == word] for word in ("starts", "ends"))
    if not starts or len(starts) != len(ends):
        raise ValueError(
            f"the engine's log has {len(starts)} starts and {len(ends)} ends of its autotuning:\n"
            f"{log[-3000:]}"
        )
    return sum((end - start).total_seconds() for start, end in zip(starts, ends, strict=True))


def preloaded_entries(log: str) -> int:
    """Return how many entries the engine loaded at its start."""
    found = re.search(r"Preloaded (\d+)/\d+", log)
    return int(found.group(1)) if found else 0


def is_ready(pod: Object) -> bool:
    return (
        condition(pod, "Ready").get("status") == "True"
        and "deletionTimestamp" not in pod["metadata"]
    )


def has_seal_ended(pod: Object) -> bool:
    return any(
        "terminated" in (status.get("state") or {})
        for status in pod["status"].get("containerStatuses") or ()
        if status["name"] == "pretune-seal"
    )


class Watcher(threading.Thread):
    """Watches the objects of a kind: when `shows` was first true of each, and how often it changed.

    `first_seen` is in seconds of perf_counter; it, `objects` and `changes` have names as keys.
    """

    def __init__(
        self,
        kube: Kube,
        kind: str,
        namespace: str,
        shows: Callable[[Object], bool],
        labels: str = "",
        seconds: float = 900,
    ) -> None:
        super().__init__(daemon=True)
        self.kube, self.kind = Kube(kube.kubeconfig), kind
        self.namespace, self.labels = namespace, labels
        self.shows, self.seconds = shows, seconds
        self.first_seen: dict[str, float] = {}
        self.objects: dict[str, Object] = {}
        self.changes: dict[str, int] = {}
        self.is_stopped = False
        self.start()

    def run(self) -> None:
        for change, obj in self.kube.watch(
            self.kind, self.namespace, labels=self.labels, seconds=self.seconds
        ):
            at = time.perf_counter()
            if self.is_stopped:
                return
            if change == "NONE":
                continue
            name = obj["metadata"]["name"]
            if change == "DELETED":
                self.objects.pop(name, None)
                continue
            self.objects[name] = obj
            self.changes[name] = self.changes.get(name, 0) + (change == "MODIFIED")
            if self.shows(obj):
                self.first_seen.setdefault(name, at)

    def wait_until(self, wanted: Callable[[Watcher], bool], seconds: float, what: str) -> None:
        """Wait until `wanted` is true. Raises AssertionError after these seconds."""
        end = time.monotonic() + seconds
        while not wanted(self):
            assert time.monotonic() < end, (
                f"{what}: not within {seconds:.0f} s;"
                f" {len(self.first_seen)} of {len(self.objects)} so far"
            )
            time.sleep(0.05)

    def stop(self) -> None:
        self.is_stopped = True
