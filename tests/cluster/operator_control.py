"""Ends the operator's pods, scales it, and removes it.

Only in tests that are marked `disturbs`; `restore()` restores it.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.cluster.cluster_lock import FOLDER
from tests.cluster.kube import Kube, Object

CONTROLLER, WEBHOOK = "pretune-controller", "pretune-webhook"


class OperatorControl:
    """Controls the operator in its namespace."""

    def __init__(self, kube: Kube, namespace: str, programs: Path) -> None:
        self._kube, self._namespace, self._programs = kube, namespace, programs
        self._replicas: dict[str, int] = {}

    def pods(self, name: str) -> list[Object]:
        """Return the pods of a Deployment that are not being deleted."""
        return [pod for pod in self._all(name) if not pod["metadata"].get("deletionTimestamp")]

    def _all(self, name: str) -> list[Object]:
        part = name.removeprefix("pretune-")
        return self._kube.list("Pod", self._namespace, f"app.kubernetes.io/component={part}")

    def kill(self, name: str) -> None:
        """Kill its pods as a node does that loses power: without a signal, and without releasing the lease.

        The Deployment creates new ones.
        """
        for pod in self._all(name):
            self._kube.delete("Pod", self._namespace, pod["metadata"]["name"], gracePeriodSeconds=0)

    def scale(self, name: str, replicas: int, kill: bool = False) -> None:
        """Scale it, and wait until only so many pods exist and are ready. `kill`: others get no signal."""
        found = self._kube.get("Deployment", self._namespace, name)
        assert found, f"no Deployment {name}"
        self._replicas.setdefault(name, found["spec"]["replicas"])
        self._kube.patch("Deployment", self._namespace, name, {"spec": {"replicas": replicas}})
        self.wait_until_ready(name, kill)

    def wait_until_ready(self, name: str, kill: bool = False, seconds: float = 90) -> None:
        def is_steady(found: Object) -> bool:
            status, wanted = found.get("status") or {}, found["spec"]["replicas"]
            numbers = [
                status.get(field, 0) for field in ("replicas", "updatedReplicas", "readyReplicas")
            ]
            return (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and numbers == [wanted] * 3
            )

        self._kube.wait_until("Deployment", self._namespace, name, is_steady, seconds, "steady")
        for pod in self._all(name):
            if kill and pod["metadata"].get("deletionTimestamp"):
                self._kube.delete(
                    "Pod", self._namespace, pod["metadata"]["name"], gracePeriodSeconds=0
                )
        for pod in self._all(name):
            if pod["metadata"].get("deletionTimestamp"):
                self._kube.wait_until_gone("Pod", self._namespace, pod["metadata"]["name"])

    def lease(self) -> Object:
        found = self._kube.get("Lease", self._namespace, "pretune-controller")
        return (found or {}).get("spec") or {}

    def wait_until_led(self, seconds: float = 60) -> None:
        """Wait until a running controller holds the lease: it works from then on."""
        end = time.monotonic() + seconds
        for _, lease in self._kube.watch(
            "Lease", self._namespace, "pretune-controller", seconds=seconds
        ):
            holder = (lease.get("spec") or {}).get("holderIdentity")
            if holder in [pod["metadata"]["name"] for pod in self.pods(CONTROLLER)]:
                return
            if time.monotonic() > end:
                break
        raise AssertionError(f"no controller holds the lease after {seconds} s: {self.lease()}")

    def wait_until_asked(self, answered: bool = True, seconds: float = 30) -> None:
        """Wait until the API server asks the webhook, or does not ask it any more.

        The API server keeps connections open, and sees changed pods with a delay.
        """
        end = time.monotonic() + seconds
        container = {"name": "none", "image": "none"}
        meta = {"namespace": "default", "name": "asked", "labels": {"pretune.dev/cache": "none"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [container]},
        }
        is_answered = not answered
        while is_answered != answered and time.monotonic() < end:
            time.sleep(0.2)
            created = self._kube.create(pod, dry_run=True)
            annotations = created["metadata"].get("annotations") or {}
            is_answered = "pretune.dev/reason" in annotations
        assert is_answered == answered, (
            f"the webhook is {'not' if answered else 'still'} asked after {seconds} s"
        )

    def wait_until_working(self, seconds: float = 60) -> None:
        """Wait until a controller leads, and every webhook has seen it renew its lease: until then no pod is held."""
        for name in (CONTROLLER, WEBHOOK):
            self.wait_until_ready(name)
        self.wait_until_led()
        self.wait_until_asked()
        end = time.monotonic() + seconds
        while any(
            "pretune_controller_alive 1" not in text for text in self.metrics(WEBHOOK).values()
        ):
            assert time.monotonic() < end, (
                f"a webhook has not seen the controller's lease renewed within {seconds} s"
            )
            time.sleep(0.3)

    def count_restarts(self) -> dict[str, int]:
        """Return how often each of the operator's pods was restarted, by the pod's name."""
        return {
            pod["metadata"]["name"]: sum(
                status["restartCount"] for status in pod["status"].get("containerStatuses") or ()
            )
            for name in (CONTROLLER, WEBHOOK)
            for pod in self.pods(name)
        }

    def metrics(self, name: str) -> dict[str, str]:
        """Return /metrics of each pod, by the pod's name."""
        return {
            pod["metadata"]["name"]: self._get(pod["metadata"]["name"], "/metrics")
            for pod in self.pods(name)
        }

    def _get(self, pod: str, path: str) -> str:
        url = self._kube._url("Pod", self._namespace, f"{pod}:8080", f"proxy{path}")
        text: str = self._kube._call("GET", url)
        return text

    def restore(self) -> None:
        """Restore the replicas from before scale(), and wait until the operator works."""
        for name, replicas in self._replicas.items():
            self._kube.patch("Deployment", self._namespace, name, {"spec": {"replicas": replicas}})
        self.wait_until_working()

    def uninstall(self) -> None:
        """Uninstall it as docs/operations.md says.

        Its rights are deleted before its last pod: requests that are refused meanwhile do not count.
        """
        began = time.time()
        self.shell(f"helm uninstall pretune --namespace {self._namespace} --wait")
        self.record_change(began)

    @staticmethod
    def record_change(began: float) -> None:
        """Record that the operator was installed or removed from then (Unix seconds) until now.

        The API server sees changed rights with a delay: a new pod may send requests before.
        """
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / "changes").open("a") as notes:
            notes.write(f"{began} {time.time()}\n")

    @staticmethod
    def was_changing(at: float) -> bool:
        """Whether a test was installing or removing the operator at that time (Unix seconds)."""
        notes = FOLDER / "changes"
        spans = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return any(float(began) - 1 <= at <= float(ended) + 1 for began, ended in spans)

    def shell(self, line: str) -> str:
        """Run a line in a shell with kubectl and helm; return its output. Raises CalledProcessError."""
        path = f"{self._programs}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": self._kube.kubeconfig}
        done = subprocess.run(
            ["sh", "-euc", line], env=environment, check=True, stdout=subprocess.PIPE, timeout=120
        )
        return done.stdout.decode()
