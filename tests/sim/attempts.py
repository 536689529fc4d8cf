"""What runs in pods of ours: attempts, proofs, inspect and prune. What the agent's containers answer is in agent.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pretune.api.names import (
    AGENT_CONTAINER,
    BUNDLE,
    CHECK_CONTAINER,
    INSPECT,
    PROOF,
    PROVE_CONTAINER,
    ROLE,
    SEAL_CONTAINER,
    SEED_CONTAINER,
)
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.protocol import Report

from tests.sim import agent
from tests.sim.ground import STARTS_FOR, TUNES_FOR, WAIT, Move, Start
from tests.sim.reading import engine, folder, label, state, status, task
from tests.sim.storage import Bundle

if TYPE_CHECKING:
    from tests.sim.kubelet import Kubelet


class Attempts:
    """One container after another, but for the sidecars, of which the last is the engine."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.ground = kubelet, kubelet.ground
        self._sealed_by: dict[str, Bundle] = {}  # pod uid -> what its seal published, or found
        self._seeded: set[str] = set()  # uids of proofs' pods whose engine has the bundle
        self._proved: dict[
            str, Report
        ] = {}  # pod uid -> what its prove has found out, and not told yet

    def starts(self, pod: Object, name: str, again: bool) -> None:
        agent.need_shell(self.ground, pod, name)
        if name == engine(pod) and label(pod, ROLE) == PROOF:
            self.ground.proofs.append(Start(label(pod, BUNDLE), pod["metadata"]["uid"], False))
        elif name == engine(pod):
            asked, bundle = task(pod, SEAL_CONTAINER), label(pod, BUNDLE)
            there = (
                not again
                and (folder(asked), bundle) in self.ground.volume(pod, SEAL_CONTAINER).bundles
            )
            self.ground.starts.append(Start(bundle, pod["metadata"]["uid"], there))

    def due(self, pod: Object) -> Iterator[float]:
        found = state(pod, engine(pod))
        if (
            "running" in found
            and not status(pod, engine(pod)).get("started")
            and not self._hangs(pod)
        ):
            yield parse_timestamp(found["running"]["startedAt"]) + self._takes(pod)

    def _is_warm(self, pod: Object) -> bool:
        """A proof's engine that has its bundle: copied, or read where it lies."""
        seed = any(one["name"] == SEED_CONTAINER for one in pod["spec"]["initContainers"])
        return label(pod, ROLE) == PROOF and (not seed or pod["metadata"]["uid"] in self._seeded)

    def _hangs(self, pod: Object) -> bool:
        return self.ground.warm_hangs if self._is_warm(pod) else self.ground.engine_hangs

    def _takes(self, pod: Object) -> float:
        return STARTS_FOR if self._is_warm(pod) else TUNES_FOR

    def running(self, pod: Object, container: Object) -> Move | None:
        name = container["name"]
        if container.get("restartPolicy") == "Always":
            return self._sidecar(pod, name)
        if name == CHECK_CONTAINER:
            return "check reports", lambda: self._check(pod)
        if name == SEED_CONTAINER:
            return "seed reports", lambda: self._seed(pod)
        if name == SEAL_CONTAINER:
            return self._seal(pod)
        if name == PROVE_CONTAINER:
            return self._prove(pod)
        if name == AGENT_CONTAINER:
            return f"{name} ends", lambda: self._look_after(pod)
        return f"{name} ends", lambda: self.kubelet.end(pod, name, 0, "")

    def _sidecar(self, pod: Object, name: str) -> Move | None:
        if status(pod, name).get("started"):
            return None
        if name == engine(pod):
            if self.ground.warm_crashes if self._is_warm(pod) else self.ground.engine_crashes:
                return f"{name} crashes", lambda: self._crash(pod, name)
            due = parse_timestamp(state(pod, name)["running"]["startedAt"]) + self._takes(pod)
            if self._hangs(pod) or self.ground.clock.now < due:
                return WAIT
        return f"{name} is ready", lambda: self.kubelet.ready(pod, name)

    def _crash(self, pod: Object, name: str) -> None:
        if self._is_warm(pod):
            self.ground.warm_crashes -= 1
        else:
            self.ground.engine_crashes -= 1
        self.kubelet.end(pod, name, 1, "RuntimeError: CUDA error: out of memory", reason="Error")

    def _check(self, pod: Object) -> None:
        report = agent.check(self.ground, pod)
        self.kubelet.end(
            pod, CHECK_CONTAINER, 0 if report.reason == "Checked" else 1, report.dump()
        )

    def _seed(self, pod: Object) -> None:
        report = agent.seed(self.ground, pod)
        if report.reason == "Seeded":
            self._seeded.add(pod["metadata"]["uid"])
        self.kubelet.end(pod, SEED_CONTAINER, 0, report.dump())

    def _prove(self, pod: Object) -> Move:
        uid = pod["metadata"]["uid"]
        if self.ground.prove_says:
            return "prove cannot tell", lambda: self._prove_fails(pod)
        if uid not in self._proved:
            return "prove compares", lambda: self._proved.update(
                {uid: agent.prove(self.ground, pod)}
            )
        found = self._proved[uid]
        code = 0 if found.reason == "Proven" else 1
        return "prove reports", lambda: self.kubelet.end(pod, PROVE_CONTAINER, code, found.dump())

    def _prove_fails(self, pod: Object) -> None:
        report = Report("prove", "ProofFailed", self.ground.prove_says.pop(0))
        self.kubelet.end(pod, PROVE_CONTAINER, 1, report.dump())

    def _seal(self, pod: Object) -> Move:
        uid = pod["metadata"]["uid"]
        if self.ground.seal_says:
            return "seal refuses", lambda: self._seal_refuses(pod)
        if uid not in self._sealed_by:
            return "seal publishes", lambda: self._sealed_by.update(
                {uid: agent.publish(self.ground, pod)}
            )
        report = self._sealed_by[uid].report("seal").dump()
        return "seal reports", lambda: self.kubelet.end(pod, SEAL_CONTAINER, 0, report)

    def _seal_refuses(self, pod: Object) -> None:
        reason, message = self.ground.seal_says.pop(0)
        self.kubelet.end(
            pod, SEAL_CONTAINER, 1, Report(by="seal", reason=reason, message=message).dump()
        )

    def _look_after(self, pod: Object) -> None:
        if label(pod, ROLE) == INSPECT and self.ground.inspect_silent:
            self.kubelet.end(pod, AGENT_CONTAINER, 1, "", reason="OOMKilled")
        else:
            self.kubelet.end(
                pod, AGENT_CONTAINER, 0, agent.look_after(self.ground, pod, AGENT_CONTAINER).dump()
            )
