"""What runs in pods of ours: an attempt's containers, and those of inspect and prune. What they answer is the agent's (agent.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretune.api import AGENT_CONTAINER, BUNDLE, CHECK_CONTAINER, INSPECT, ROLE, SEAL_CONTAINER, Object
from pretune.model import seconds
from pretune.wire import Report

from tests.sim import agent
from tests.sim.ground import TUNES_FOR, WAIT, Move, Start
from tests.sim.reading import engine, folder, label, state, status, task
from tests.sim.storage import Bundle

if TYPE_CHECKING:
    from tests.sim.kubelet import Kubelet


class Attempts:
    """One container after another, but for the sidecars, of which the last is the engine."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.ground = kubelet, kubelet.ground
        self._sealed_by: dict[str, Bundle] = {}  # pod uid -> what its seal published, or found

    def starts(self, pod: Object, name: str, again: bool) -> None:
        if name == engine(pod):
            asked, bundle = task(pod, SEAL_CONTAINER), label(pod, BUNDLE)
            there = not again and (folder(asked), bundle) in self.ground.volume(pod, SEAL_CONTAINER).bundles
            self.ground.starts.append(Start(bundle, pod["metadata"]["uid"], there))

    def due(self, pod: Object) -> Iterator[float]:
        found = state(pod, engine(pod))
        if "running" in found and not status(pod, engine(pod)).get("started") and not self.ground.engine_hangs:
            yield seconds(found["running"]["startedAt"]) + TUNES_FOR

    def running(self, pod: Object, container: Object) -> Move | None:
        name = container["name"]
        if container.get("restartPolicy") == "Always":
            return self._sidecar(pod, name)
        if name == CHECK_CONTAINER:
            return "check reports", lambda: self._check(pod)
        if name == SEAL_CONTAINER:
            return self._seal(pod)
        if name == AGENT_CONTAINER:
            return f"{name} ends", lambda: self._look_after(pod)
        return f"{name} ends", lambda: self.kubelet.end(pod, name, 0, "")

    def _sidecar(self, pod: Object, name: str) -> Move | None:
        if status(pod, name).get("started"):
            return None
        if name == engine(pod):
            if self.ground.engine_crashes:
                return f"{name} crashes", lambda: self._crash(pod, name)
            due = seconds(state(pod, name)["running"]["startedAt"]) + TUNES_FOR
            if self.ground.engine_hangs or self.ground.clock.now < due:
                return WAIT
        return f"{name} is ready", lambda: self.kubelet.ready(pod, name)

    def _crash(self, pod: Object, name: str) -> None:
        self.ground.engine_crashes -= 1
        self.kubelet.end(pod, name, 1, "RuntimeError: CUDA error: out of memory", reason="Error")

    def _check(self, pod: Object) -> None:
        report = agent.check(self.ground, pod)
        self.kubelet.end(pod, CHECK_CONTAINER, 0 if report.reason == "Checked" else 1, report.dump())

    def _seal(self, pod: Object) -> Move:
        uid = pod["metadata"]["uid"]
        if self.ground.seal_says:
            return "seal refuses", lambda: self._seal_refuses(pod)
        if uid not in self._sealed_by:
            return "seal publishes", lambda: self._sealed_by.update({uid: agent.publish(self.ground, pod)})
        report = self._sealed_by[uid].report("seal").dump()
        return "seal reports", lambda: self.kubelet.end(pod, SEAL_CONTAINER, 0, report)

    def _seal_refuses(self, pod: Object) -> None:
        reason, message = self.ground.seal_says.pop(0)
        self.kubelet.end(pod, SEAL_CONTAINER, 1, Report(by="seal", reason=reason, message=message).dump())

    def _look_after(self, pod: Object) -> None:
        if label(pod, ROLE) == INSPECT and self.ground.inspect_silent:
            self.kubelet.end(pod, AGENT_CONTAINER, 1, "", reason="OOMKilled")
        else:
            self.kubelet.end(pod, AGENT_CONTAINER, 0, agent.look_after(self.ground, pod, AGENT_CONTAINER).dump())
