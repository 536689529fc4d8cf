"""The kubelet: a scheduled pod's containers, from being accepted to being ended. What runs in them is the agent's (agent.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from pretune.api import AGENT_CONTAINER, BUNDLE, CHECK_CONTAINER, INSPECT, ROLE, SEAL_CONTAINER, Object
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.model import seconds, stamp
from pretune.wire import Report

from tests.sim import agent
from tests.sim.ground import TUNES_FOR, Ground, Move, Start
from tests.sim.reading import containers, engine, folder, label, leaving, state, status, task, terminal
from tests.sim.scheduler import Scheduler
from tests.sim.storage import Bundle

RESTART = 2.0  # seconds until a container that has ended is started again
WAIT: Move = ("", lambda: None)  # nothing happens before something else does


class Kubelet:
    """Every pod, ours and others'; one that has no node is the scheduler's."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.server, self.clock = ground, ground.server, ground.clock
        self.scheduler = Scheduler(ground)
        self._sealed_by: dict[str, Bundle] = {}  # pod uid -> what its seal published, or found

    def moves(self) -> Iterator[Move]:
        for pod in self.ground.stored("v1", "Pod", ROLE):
            if pod["metadata"]["uid"] in self.ground.dead_pods and pod["spec"].get("nodeName"):
                continue
            move = self._move(pod)
            if move and move[0]:
                yield f"pod {pod['metadata']['name']}: {move[0]}", move[1]

    def timers(self) -> Iterator[float]:
        for pod in self.ground.stored("v1", "Pod", ROLE):
            if terminal(pod):
                continue
            limit, start = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
            if limit and start:
                yield seconds(start) + limit
            main = state(pod, engine(pod))
            if "running" in main and not status(pod, engine(pod)).get("started") and not self.ground.engine_hangs:
                yield seconds(main["running"]["startedAt"]) + TUNES_FOR
            if "terminated" in main:
                yield seconds(main["terminated"]["finishedAt"]) + RESTART

    def _move(self, pod: Object) -> Move | None:
        """The one thing that happens to a pod next."""
        if terminal(pod):
            return None
        if leaving(pod):
            return "is ended", lambda: self._stop(pod)
        if not pod["spec"].get("nodeName"):
            return self.scheduler.move(pod)
        start, limit = pod["status"].get("startTime"), pod["spec"].get("activeDeadlineSeconds")
        if start is None:
            return "is accepted by its node", lambda: self._accept(pod)
        if limit and self.clock.now >= seconds(start) + limit:
            return "is past its deadline", lambda: self._deadline(pod)
        for container in pod["spec"].get("initContainers", ()):
            if move := self._init(pod, container):
                return move
        for container in pod["spec"]["containers"]:
            if move := self._main(pod, container):
                return move
        return None if self.ground.lingers else ("is over", lambda: self._finish(pod))

    def _accept(self, pod: Object) -> None:
        pod, waiting = self.ground.fresh(pod), {"waiting": {"reason": "PodInitializing"}}
        for part, names in (("initContainerStatuses", "initContainers"), ("containerStatuses", "containers")):
            pod["status"][part] = [
                {"name": one["name"], "state": waiting, "restartCount": 0, "ready": False, "started": False}
                for one in pod["spec"].get(names, ())
            ]
        pod["status"]["startTime"] = stamp(self.clock.now)
        self.ground.write(pod)

    # --- one container: None where it is done, so that the next one is looked at

    def _init(self, pod: Object, container: Object) -> Move | None:
        name, found = container["name"], state(pod, container["name"])
        if container.get("restartPolicy") == "Always":
            return self._sidecar(pod, container)
        if "running" in found:
            return f"{name} ends", lambda: self._init_end(pod, container)
        if "terminated" in found:
            return None if found["terminated"]["exitCode"] == 0 else ("is over", lambda: self._finish(pod))
        return self._start_move(pod, container)

    def _sidecar(self, pod: Object, container: Object) -> Move | None:
        """Restarted in place, by nobody's leave, after a while."""
        name, found = container["name"], state(pod, container["name"])
        if "running" in found:
            if status(pod, name).get("started"):
                return None
            if name != engine(pod):
                return f"{name} is ready", lambda: self._ready(pod, name)
            if self.ground.engine_crashes:
                return f"{name} crashes", lambda: self._crash(pod, name)
            due = seconds(found["running"]["startedAt"]) + TUNES_FOR
            ready = not self.ground.engine_hangs and self.clock.now >= due
            return (f"{name} is ready", lambda: self._ready(pod, name)) if ready else WAIT
        if "terminated" in found:
            due = seconds(found["terminated"]["finishedAt"]) + RESTART
            again: Move = (f"{name} starts again", lambda: self._start(pod, name, again=True))
            return again if self.clock.now >= due else WAIT
        return self._start_move(pod, container)

    def _main(self, pod: Object, container: Object) -> Move | None:
        name, found = container["name"], state(pod, container["name"])
        if "terminated" in found:
            return None
        if "running" not in found:
            return self._start_move(pod, container)
        if name == SEAL_CONTAINER:
            return self._seal(pod)
        assert name == AGENT_CONTAINER, name
        return f"{name} ends", lambda: self._look_after(pod)

    def _start_move(self, pod: Object, container: Object) -> Move:
        name, image = container["name"], container.get("image", "")
        if image not in self.ground.cannot_pull:
            return f"{name} starts", lambda: self._start(pod, name)
        if state(pod, name).get("waiting", {}).get("reason") == "ImagePullBackOff":
            return WAIT
        message = f'Back-off pulling image "{image}": not found'
        return f"{name}'s image cannot be pulled", lambda: self._waits(pod, name, "ImagePullBackOff", message)

    def _waits(self, pod: Object, name: str, reason: str, message: str) -> None:
        pod = self.ground.fresh(pod)
        status(pod, name)["state"] = {"waiting": {"reason": reason, "message": message}}
        self.ground.write(pod)

    def _start(self, pod: Object, name: str, again: bool = False) -> None:
        pod = self.ground.fresh(pod)
        found = status(pod, name)
        if again:
            found["lastState"], found["restartCount"] = found["state"], found["restartCount"] + 1
        found["state"] = {"running": {"startedAt": stamp(self.clock.now)}}
        found["imageID"] = f"registry.example/engine@sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        if name == engine(pod):
            asked, bundle = task(pod, SEAL_CONTAINER), label(pod, BUNDLE)
            there = not again and (folder(asked), bundle) in self.ground.volume(pod, CLAIM_VOLUME).bundles
            self.ground.starts.append(Start(bundle, pod["metadata"]["uid"], there))
        pod["status"]["phase"] = "Running" if name == SEAL_CONTAINER else "Pending"
        self.ground.write(pod)

    def _ready(self, pod: Object, name: str) -> None:
        pod = self.ground.fresh(pod)
        status(pod, name).update(started=True, ready=True)
        self.ground.write(pod)

    def _crash(self, pod: Object, name: str) -> None:
        self.ground.engine_crashes -= 1
        self.end(pod, name, 1, "RuntimeError: CUDA error: out of memory", reason="Error")

    # --- what our containers do

    def _init_end(self, pod: Object, container: Object) -> None:
        if container["name"] != CHECK_CONTAINER:
            self.end(pod, container["name"], 0, "")
            return
        report = agent.check(self.ground, pod)
        self.end(pod, CHECK_CONTAINER, 0 if report.reason == "Checked" else 1, report.dump())

    def _seal(self, pod: Object) -> Move:
        uid = pod["metadata"]["uid"]
        if self.ground.seal_says:
            return "seal refuses", lambda: self._seal_refuses(pod)
        if uid not in self._sealed_by:
            return "seal publishes", lambda: self._sealed_by.update({uid: agent.publish(self.ground, pod)})
        return "seal reports", lambda: self.end(pod, SEAL_CONTAINER, 0, self._sealed_by[uid].report("seal").dump())

    def _seal_refuses(self, pod: Object) -> None:
        reason, message = self.ground.seal_says.pop(0)
        self.end(pod, SEAL_CONTAINER, 1, Report(by="seal", reason=reason, message=message).dump())

    def _look_after(self, pod: Object) -> None:
        if label(pod, ROLE) == INSPECT and self.ground.inspect_silent:
            self.end(pod, AGENT_CONTAINER, 1, "", reason="OOMKilled")
        else:
            self.end(pod, AGENT_CONTAINER, 0, agent.look_after(self.ground, pod, AGENT_CONTAINER).dump())

    # --- ends

    def end(self, pod: Object, name: str, code: int, message: str, reason: str = "") -> None:
        """A container ends."""
        pod = self.ground.fresh(pod)
        found = status(pod, name)
        began = found["state"].get("running", {}).get("startedAt", stamp(self.clock.now))
        ended: dict[str, Any] = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "startedAt": began,
            "finishedAt": stamp(self.clock.now),
        }
        if message:
            ended["message"] = message
        found.update(state={"terminated": ended}, ready=False)
        self.ground.write(pod)

    def fail(self, pod: Object, reason: str, message: str) -> None:
        """The node ends the pod; its object stays."""
        pod = self.ground.fresh(pod)
        self._kill(pod, 137)
        pod["status"].update(phase="Failed", reason=reason, message=message)
        self.ground.write(pod)

    def _deadline(self, pod: Object) -> None:
        self.fail(pod, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")

    def _stop(self, pod: Object) -> None:
        """A deleted pod ends: what runs is killed; the object goes with its last finalizer."""
        self._finish(pod)
        pod = self.ground.fresh(pod)
        if not pod["metadata"].get("finalizers"):
            self.server.finalize(pod)

    def _finish(self, pod: Object) -> None:
        pod = self.ground.fresh(pod)
        self._kill(pod, 143)
        main = [state(pod, one["name"]).get("terminated") for one in pod["spec"]["containers"]]
        well = bool(main) and all(one is not None and one["exitCode"] == 0 for one in main)
        pod["status"]["phase"] = "Succeeded" if well else "Failed"
        self.ground.write(pod)

    def _kill(self, pod: Object, code: int) -> None:
        """What runs in a copy."""
        for found in containers(pod):
            if "running" in found["state"]:
                began = found["state"]["running"]["startedAt"]
                ended = {"exitCode": code, "reason": "Error", "startedAt": began, "finishedAt": stamp(self.clock.now)}
                found["state"] = {"terminated": ended}
