"""What the demo sees while it goes on: the pods of its two Deployments and the cache, by watches; nothing is asked again and again."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.demo.cluster import Cluster, Object, events

HOLD, ROLE = "pretune.dev/hold", "pretune.dev/role"


@dataclass
class Pod:
    """One serving pod. Times are of this machine's clock, as its watch told; None: not yet."""

    app: str
    template: str  # the ReplicaSet's pod-template-hash: which revision it is of
    made: float  # when first seen
    held_since: float | None = None
    let_go: float | None = None
    ready_at: float | None = None
    is_ready: bool = False
    is_held: bool = False
    node: bool = False


@dataclass
class Seen:
    """Everything so far; `changed` is set whenever something is new."""

    pods: dict[str, Pod] = field(default_factory=dict)
    tuning: dict[str, float] = field(default_factory=dict)  # tuning pods by name: when first seen
    fewest: dict[str, int] = field(
        default_factory=dict
    )  # by Deployment: the fewest pods that were Ready since it was set
    reason: str = ""  # of the cache's condition Ready
    message: str = ""
    is_ready: bool = False
    stalled: str = ""
    changed: threading.Event = field(default_factory=threading.Event)

    def of(self, app: str, template: str = "") -> list[Pod]:
        """The pods of a Deployment, or of one of its revisions."""
        return [
            one
            for one in list(self.pods.values())
            if one.app == app and template in ("", one.template)
        ]

    def wait(self, until: Callable[[], bool], seconds: float, show: Callable[[], None]) -> bool:
        """Show what there is at every change, and twice a second, until something holds; False: not within the seconds."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                return False
            show()
            self.changed.wait(0.5)
            self.changed.clear()
        show()
        return True


class Eyes:
    """Watches of one namespace; use as a context. A watch that ends (an API server restarts) is opened again."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.seen = Seen()
        self._cluster, self._namespace, self._over = cluster, namespace, False
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for kind, look in (("pods", self._pod), ("autotunecaches", self._cache)):
            threading.Thread(target=self._follow, args=(kind, look), daemon=True).start()

    def __enter__(self) -> Seen:
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._over = True
        for process in self._processes.values():
            process.terminate()
            process.wait()

    def _follow(self, kind: str, look: Callable[[str, Object], None]) -> None:
        while not self._over:
            self._processes[kind] = process = self._cluster.watch(kind, self._namespace)
            assert process.stdout is not None
            for change, obj in events(process.stdout):
                look(change, obj)
                self.seen.changed.set()
            time.sleep(0.5)

    def _pod(self, change: str, pod: Object) -> None:
        self._note(change, pod)
        for app in self.seen.fewest:
            self.seen.fewest[app] = min(
                self.seen.fewest[app], sum(one.is_ready for one in self.seen.of(app))
            )

    def _note(self, change: str, pod: Object) -> None:
        name, labels, now = (
            pod["metadata"]["name"],
            pod["metadata"].get("labels") or {},
            time.monotonic(),
        )
        if labels.get(ROLE) == "tuning":
            self.seen.tuning.setdefault(name, now)
        if "pod-template-hash" not in labels or ROLE in labels:
            return
        if change == "DELETED" or "deletionTimestamp" in pod["metadata"]:
            self.seen.pods.pop(name, None)
            return
        one = self.seen.pods.setdefault(name, Pod(labels["app"], labels["pod-template-hash"], now))
        one.is_held = any(gate["name"] == HOLD for gate in pod["spec"].get("schedulingGates") or ())
        if one.is_held and one.held_since is None:
            one.held_since = now
        if one.held_since is not None and not one.is_held and one.let_go is None:
            one.let_go = now
        one.node = bool(pod["spec"].get("nodeName"))
        one.is_ready = _condition(pod, "Ready").get("status") == "True"
        if one.is_ready and one.ready_at is None:
            one.ready_at = now

    def _cache(self, change: str, cache: Object) -> None:
        ready, stalled = _condition(cache, "Ready"), _condition(cache, "Stalled")
        self.seen.reason, self.seen.message = ready.get("reason", ""), ready.get("message", "")
        self.seen.is_ready = ready.get("status") == "True" and change != "DELETED"
        self.seen.stalled = stalled.get("message", "") if stalled.get("status") == "True" else ""


def _condition(obj: Object, kind: str) -> Object:
    found: list[Object] = (obj.get("status") or {}).get("conditions") or []
    return next((one for one in found if one["type"] == kind), {})
