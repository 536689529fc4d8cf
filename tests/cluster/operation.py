"""What an administrator, or bad luck, does to the operator itself: end its pods, scale it, take it away. Only in tests that are marked
`disturbs`; `restored()` leaves it as it was."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.cluster.kube import Kube, Object
from tests.cluster.peace import FOLDER

CONTROLLER, WEBHOOK = "pretune-controller", "pretune-webhook"


class Operation:
    """The operator in its namespace."""

    def __init__(self, kube: Kube, namespace: str, programs: Path) -> None:
        self._kube, self._namespace, self._programs = kube, namespace, programs
        self._replicas: dict[str, int] = {}

    def pods(self, name: str) -> list[Object]:
        """Its pods that are not being deleted."""
        return [one for one in self._all(name) if not one["metadata"].get("deletionTimestamp")]

    def _all(self, name: str) -> list[Object]:
        part = name.removeprefix("pretune-")
        return self._kube.list("Pod", self._namespace, f"app.kubernetes.io/component={part}")

    def kill(self, name: str) -> None:
        """As a node that loses power does: no signal, no time to give the lease back. Others come by themselves."""
        for pod in self._all(name):
            self._kube.delete("Pod", self._namespace, pod["metadata"]["name"], gracePeriodSeconds=0)

    def scale(self, name: str, replicas: int, kill: bool = False) -> None:
        """Returns when so many are ready and no others are there. `kill`: those that go get no signal."""
        found = self._kube.get("Deployment", self._namespace, name)
        assert found, f"no Deployment {name}"
        self._replicas.setdefault(name, found["spec"]["replicas"])
        self._kube.patch("Deployment", self._namespace, name, {"spec": {"replicas": replicas}})
        self.until_ready(name, kill)

    def until_ready(self, name: str, kill: bool = False, seconds: float = 90) -> None:
        def steady(found: Object) -> bool:
            status, wanted = found.get("status") or {}, found["spec"]["replicas"]
            numbers = [
                status.get(one, 0) for one in ("replicas", "updatedReplicas", "readyReplicas")
            ]
            return (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and numbers == [wanted] * 3
            )

        self._kube.until("Deployment", self._namespace, name, steady, seconds, "steady")
        for pod in self._all(name):
            if kill and pod["metadata"].get("deletionTimestamp"):
                self._kube.delete(
                    "Pod", self._namespace, pod["metadata"]["name"], gracePeriodSeconds=0
                )
        for pod in self._all(name):
            if pod["metadata"].get("deletionTimestamp"):
                self._kube.until_gone("Pod", self._namespace, pod["metadata"]["name"])

    def lease(self) -> Object:
        found = self._kube.get("Lease", self._namespace, "pretune-controller")
        return (found or {}).get("spec") or {}

    def until_led(self, seconds: float = 60) -> None:
        """Wait until a controller that is there holds the lease: it works from then on."""
        end = time.monotonic() + seconds
        for _, lease in self._kube.watch(
            "Lease", self._namespace, "pretune-controller", seconds=seconds
        ):
            holder = (lease.get("spec") or {}).get("holderIdentity")
            if holder in [one["metadata"]["name"] for one in self.pods(CONTROLLER)]:
                return
            if time.monotonic() > end:
                break
        raise AssertionError(f"no controller holds the lease after {seconds} s: {self.lease()}")

    def until_asked(self, answered: bool = True, seconds: float = 30) -> None:
        """Wait until the API server asks the webhook, or does so no more: it keeps connections, and hears of pods in its own time."""
        end = time.monotonic() + seconds
        container = {"name": "none", "image": "none"}
        meta = {"namespace": "default", "name": "asked", "labels": {"pretune.dev/cache": "none"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [container]},
        }
        told = not answered
        while told != answered and time.monotonic() < end:
            time.sleep(0.2)
            notes = self._kube.create(pod, dry_run=True)["metadata"].get("annotations") or {}
            told = "pretune.dev/reason" in notes
        assert told == answered, (
            f"the webhook is {'not' if answered else 'still'} asked after {seconds} s"
        )

    def until_working(self, seconds: float = 60) -> None:
        """Wait until a controller leads, and every webhook has seen it renew its lease: until then no pod is held."""
        for name in (CONTROLLER, WEBHOOK):
            self.until_ready(name)
        self.until_led()
        self.until_asked()
        end = time.monotonic() + seconds
        while any(
            "pretune_controller_alive 1" not in one for one in self.metrics(WEBHOOK).values()
        ):
            assert time.monotonic() < end, (
                f"a webhook has not seen the controller's lease renewed in {seconds} s"
            )
            time.sleep(0.3)

    def metrics(self, name: str) -> dict[str, str]:
        """/metrics of each of its pods, by the pod's name."""
        return {
            one["metadata"]["name"]: self._get(one["metadata"]["name"], "/metrics")
            for one in self.pods(name)
        }

    def _get(self, pod: str, path: str) -> str:
        url = self._kube._url("Pod", self._namespace, f"{pod}:8080", f"proxy{path}")
        text: str = self._kube._call("GET", url)
        return text

    def restored(self) -> None:
        """As it was before scale(), ready, and led."""
        for name, replicas in self._replicas.items():
            self._kube.patch("Deployment", self._namespace, name, {"spec": {"replicas": replicas}})
        self.until_working()

    def uninstall(self) -> None:
        """As docs/operations.md says. Its rights go before its last pod does: what it asks meanwhile is noted as of no interest."""
        began = time.time()
        self.shell(f"helm uninstall pretune --namespace {self._namespace} --wait")
        self.note_change(began)

    @staticmethod
    def note_change(began: float) -> None:
        """The operator was installed or taken away from then (Unix seconds) until now. The API server hears of rights in its own time:
        a new pod may ask before it has heard."""
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / "changes").open("a") as notes:
            notes.write(f"{began} {time.time()}\n")

    @staticmethod
    def changed(at: float) -> bool:
        """Whether a test took the operator away, or brought it back, at that time (Unix seconds)."""
        notes = FOLDER / "changes"
        spans = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return any(float(began) - 1 <= at <= float(ended) + 1 for began, ended in spans)

    def shell(self, line: str) -> str:
        """What a person types, with kubectl and helm at hand; its output. Raises CalledProcessError."""
        path = f"{self._programs}:{os.environ['PATH']}"
        surroundings = {**os.environ, "PATH": path, "KUBECONFIG": self._kube.kubeconfig}
        done = subprocess.run(
            ["sh", "-euc", line], env=surroundings, check=True, stdout=subprocess.PIPE, timeout=120
        )
        return done.stdout.decode()
