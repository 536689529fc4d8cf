"""Watches the pods of the demo's two Deployments, and the cache."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.demo.cluster import Cluster, Object, parse_events

HOLD, ROLE = "pretune.dev/hold", "pretune.dev/role"


@dataclass
class Pod:
    """One serving pod. Times are of this machine's clock, when the watch reported; None: not yet."""

    app: str
    template: str  # the ReplicaSet's pod-template-hash: which revision it belongs to
    created_at: float  # when first seen
    held_at: float | None = None
    released_at: float | None = None
    ready_at: float | None = None
    is_ready: bool = False
    is_held: bool = False


@dataclass
class Observed:
    """Everything so far; `changed` is set whenever something is new."""

    pods: dict[str, Pod] = field(default_factory=dict)
    tuning_pods: set[str] = field(default_factory=set)
    fewest_ready: dict[str, int] = field(default_factory=dict)  # by Deployment, since it was set
    is_ready: bool = False  # the cache's condition Ready, with its reason and message
    reason: str = ""
    message: str = ""
    stalled: str = ""  # the message of its condition Stalled, where that is True
    changed: threading.Event = field(default_factory=threading.Event)

    def pods_of(self, app: str) -> list[Pod]:
        """Return the pods of a Deployment."""
        return [pod for pod in list(self.pods.values()) if pod.app == app]

    def count_ready(self, app: str) -> int:
        """Return how many pods of a Deployment are Ready."""
        return sum(pod.is_ready for pod in self.pods_of(app))

    def wait(self, until: Callable[[], bool], seconds: float, show: Callable[[], None]) -> bool:
        """Wait until the condition holds, and call `show` at every change and twice a second.

        Returns False if it did not hold within that time.
        """
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                return False
            show()
            self.changed.wait(0.5)
            self.changed.clear()
        show()
        return True


class Watcher:
    """Watches one namespace; use as a context.

    A watch that ends, for example with the API server, is opened again.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.observed = Observed()
        self._cluster, self._namespace, self._closed = cluster, namespace, False
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for kind, on_event in (("pods", self._on_pod), ("autotunecaches", self._on_cache)):
            threading.Thread(target=self._follow, args=(kind, on_event), daemon=True).start()

    def __enter__(self) -> Observed:
        return self.observed

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for process in self._processes.values():
            process.terminate()
            process.wait()

    def _follow(self, kind: str, on_event: Callable[[str, Object], None]) -> None:
        while not self._closed:
            self._processes[kind] = process = self._cluster.watch(kind, self._namespace)
            assert process.stdout is not None
            for event, obj in parse_events(process.stdout):
                on_event(event, obj)
                self.observed.changed.set()
            time.sleep(0.5)

    def _on_pod(self, event: str, pod: Object) -> None:
        self._update(event, pod)
        for app, fewest in self.observed.fewest_ready.items():
            self.observed.fewest_ready[app] = min(fewest, self.observed.count_ready(app))

    def _update(self, event: str, obj: Object) -> None:
        name, labels = obj["metadata"]["name"], obj["metadata"].get("labels") or {}
        if labels.get(ROLE) == "tuning":
            self.observed.tuning_pods.add(name)
        if "pod-template-hash" not in labels or ROLE in labels:
            return
        if event == "DELETED" or "deletionTimestamp" in obj["metadata"]:
            self.observed.pods.pop(name, None)
            return
        now = time.monotonic()
        pod = self.observed.pods.setdefault(
            name, Pod(labels["app"], labels["pod-template-hash"], now)
        )
        pod.is_held = any(gate["name"] == HOLD for gate in obj["spec"].get("schedulingGates") or ())
        if pod.is_held and pod.held_at is None:
            pod.held_at = now
        if pod.held_at is not None and not pod.is_held and pod.released_at is None:
            pod.released_at = now
        pod.is_ready = _condition(obj, "Ready").get("status") == "True"
        if pod.is_ready and pod.ready_at is None:
            pod.ready_at = now

    def _on_cache(self, event: str, cache: Object) -> None:
        ready, stalled = _condition(cache, "Ready"), _condition(cache, "Stalled")
        self.observed.reason = ready.get("reason", "")
        self.observed.message = ready.get("message", "")
        self.observed.is_ready = ready.get("status") == "True" and event != "DELETED"
        is_stalled = stalled.get("status") == "True"
        self.observed.stalled = stalled.get("message", "") if is_stalled else ""


def _condition(obj: Object, kind: str) -> Object:
    conditions: list[Object] = (obj.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})
