"""What every row of the bench uses: the cluster, namespaces that go away again, progress, eyes on watches, a hand in pods."""

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

from tests.cluster.conftest import BUILD, ROOT, SYSTEM, engine, install
from tests.cluster.kube import Kube, Object, condition

CACHE = "pretune.dev/cache"
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
CLASS = "local-rwx"
KUBECTL = BUILD / "bin/kubectl"
_PROCESS = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - INFO - \S+ - flashinfer\.jit: \[Autotuner\]: Autotuning process (\w+)"
)


class Bench:
    """One run on the local cluster."""

    def __init__(self) -> None:
        self.kube = Kube(str(ROOT / ".local/kubeconfig"))
        self.began = time.monotonic()
        system = self.kube.get("Namespace", "", "kube-system") or {}
        assert (system["metadata"].get("labels") or {}).get("pretune.dev/test-cluster") == "true", (
            f"{self.kube.host} is not marked as a test cluster: the bench makes thousands of objects, so it does not touch it"
        )

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", file=sys.stderr, flush=True)

    def install(self) -> None:
        self.say("installing the chart from the checkout")
        install(self.kube)

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace of this name, new and empty; deleted behind the row, and waited for: its end costs the next row's time."""
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
            self.kube.until_gone("Namespace", "", name, 600)

    def inside(
        self, namespace: str, pod: str, *words: str, stdin: str | None = None, container: str = ""
    ) -> str:
        """What a command prints in a pod's container. Raises CalledProcessError, with what it said, when it fails."""
        command = [
            str(KUBECTL),
            "--kubeconfig",
            self.kube.kubeconfig,
            "exec",
            "-i",
            "-n",
            namespace,
            pod,
        ]
        command += ["-c", container] if container else []
        done = subprocess.run([*command, "--", *words], input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"{pod}: {' '.join(words)[:80]}: exit {done.returncode}: {done.stderr.strip()[-2000:]}"
            )
        return done.stdout

    def controller(self) -> Object:
        """The running controller's pod."""
        labels = "app.kubernetes.io/name=pretune,app.kubernetes.io/component=controller"
        [pod] = [
            one
            for one in self.kube.list("Pod", SYSTEM, labels)
            if one["status"]["phase"] == "Running" and "deletionTimestamp" not in one["metadata"]
        ]
        return pod


def resident(bench: Bench) -> float:
    """MiB that the controller's process has resident."""
    text = bench.inside(SYSTEM, bench.controller()["metadata"]["name"], "cat", "/proc/1/status")
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


def storage_ready(bench: Bench, namespace: str, name: str) -> None:
    """Wait until a cache's claim can be used: pods that are made before are left alone."""
    holds = lambda one: condition(one, "StorageReady").get("status") == "True"  # noqa: E731
    bench.kube.until("AutotuneCache", namespace, name, holds, 60, "StorageReady")


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
    """All new pods at once, no old one ended before they are ready."""
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


def labelled(template: Object, cache_name: str) -> Object:
    """The template with the label that opts in."""
    meta = template["metadata"]
    return {
        **template,
        "metadata": {**meta, "labels": {**(meta.get("labels") or {}), CACHE: cache_name}},
    }


def serving(release: str = "0.33.0", **env: str) -> Object:
    """The stand-in as a Deployment runs it: ready when it answers."""
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1}
    template = engine(release, env=env, readinessProbe=probe)
    template["metadata"]["labels"] = {}
    template["spec"]["terminationGracePeriodSeconds"] = 1
    return template


def tuning_seconds(log: str) -> float:
    """Seconds between the engine's own lines that its autotuning process starts and ends, summed. ValueError: no such lines."""
    seen = [
        (datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f"), what) for at, what in _PROCESS.findall(log)
    ]
    starts, ends = (
        [at for at, what in seen if what == "starts"],
        [at for at, what in seen if what == "ends"],
    )
    if not starts or len(starts) != len(ends):
        raise ValueError(
            f"the engine's log has {len(starts)} starts and {len(ends)} ends of its autotuning:\n{log[-3000:]}"
        )
    return sum((end - start).total_seconds() for start, end in zip(starts, ends, strict=True))


def preloaded(log: str) -> int:
    """Entries that the engine found when it started."""
    found = re.search(r"Preloaded (\d+)/\d+", log)
    return int(found.group(1)) if found else 0


def is_ready(pod: Object) -> bool:
    return (
        condition(pod, "Ready").get("status") == "True"
        and "deletionTimestamp" not in pod["metadata"]
    )


def seal_ended(pod: Object) -> bool:
    return any(
        "terminated" in (one.get("state") or {})
        for one in pod["status"].get("containerStatuses") or ()
        if one["name"] == "pretune-seal"
    )


class Watcher(threading.Thread):
    """When each object of a kind first showed something (perf_counter seconds, by name); what it is now; how often it changed."""

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
        self.kube, self.kind, self.namespace, self.labels = (
            Kube(kube.kubeconfig),
            kind,
            namespace,
            labels,
        )
        self.shows, self.seconds = shows, seconds
        self.first: dict[str, float] = {}
        self.now: dict[str, Object] = {}
        self.changes: dict[str, int] = {}
        self.over = False
        self.start()

    def run(self) -> None:
        for change, obj in self.kube.watch(
            self.kind, self.namespace, labels=self.labels, seconds=self.seconds
        ):
            at = time.perf_counter()
            if self.over:
                return
            if change == "NONE":
                continue
            name = obj["metadata"]["name"]
            if change == "DELETED":
                self.now.pop(name, None)
                continue
            self.now[name] = obj
            self.changes[name] = self.changes.get(name, 0) + (change == "MODIFIED")
            if self.shows(obj):
                self.first.setdefault(name, at)

    def until(self, wanted: Callable[[Watcher], bool], seconds: float, what: str) -> None:
        """Wait until something holds for what was seen; AssertionError after these seconds."""
        end = time.monotonic() + seconds
        while not wanted(self):
            assert time.monotonic() < end, (
                f"{what}: not within {seconds:.0f} s; {len(self.first)} of {len(self.now)} so far"
            )
            time.sleep(0.05)

    def stop(self) -> None:
        self.over = True
