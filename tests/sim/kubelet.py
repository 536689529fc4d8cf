"""The kubelet: a scheduled pod's volumes and containers, from being accepted to being ended. What runs in them are programs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object

from tests.sim.attempts import Attempts
from tests.sim.ground import WAIT, Ground, Move
from tests.sim.reading import (
    claims,
    consumer,
    containers,
    engine,
    every_container,
    leaving,
    said,
    state,
    status,
    terminal,
)
from tests.sim.scheduler import Scheduler
from tests.sim.serving import Serving

RESTART = (
    2.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
)  # seconds until a container is started again, after its first end, its second …
MOUNT_AGAIN = (
    1.0,
    4.0,
    15.0,
    60.0,
    122.0,
)  # seconds between tries at a volume: the kubelet's, thinned out


class Program(Protocol):
    """What runs in the pods of one kind."""

    def starts(self, pod: Object, name: str, again: bool) -> None:
        """A container starts; the pod is a copy that is about to be written."""

    def running(self, pod: Object, container: Object) -> Move | None:
        """What a container that runs does next. None: it goes on as it is, and holds up nobody; WAIT: it does hold up."""

    def due(self, pod: Object) -> Iterator[float]:
        """When it does something by itself (Unix seconds)."""


class Kubelet:
    """Every pod with containers; one that has no node is the scheduler's."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.server, self.clock = ground, ground.server, ground.clock
        self.scheduler = Scheduler(ground)
        self._attempts, self._serving = Attempts(self), Serving(self)
        self._mount_at: dict[str, float] = {}  # pod uid -> when its volumes are tried again

    def moves(self) -> Iterator[Move]:
        for pod in self.ground.stored("v1", "Pod"):
            if pod["metadata"]["uid"] in self.ground.dead_pods and pod["spec"].get("nodeName"):
                continue
            if terminal(pod) and leaving(pod) and not pod["metadata"].get("finalizers"):
                yield f"pod {pod['metadata']['name']}: is gone", partial(self.server.finalize, pod)
            if not pod["spec"]["containers"] or terminal(pod):
                continue
            move = self.move(pod)
            if move and move[0]:
                yield f"pod {pod['metadata']['name']}: {move[0]}", move[1]

    def timers(self) -> Iterator[float]:
        for pod in self.ground.stored("v1", "Pod"):
            if not pod["spec"]["containers"] or terminal(pod):
                continue
            limit, start = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
            if limit and start:
                yield parse_timestamp(start) + limit
            if not _mounted(pod) and pod["metadata"]["uid"] in self._mount_at:
                yield self._mount_at[pod["metadata"]["uid"]]
            for one in containers(pod):
                if "terminated" in one["state"]:
                    yield _restart_at(one)
            yield from self._program(pod).due(pod)

    def _program(self, pod: Object) -> Program:
        return self._serving if consumer(pod) else self._attempts

    def move(self, pod: Object) -> Move | None:
        """The one thing that happens to a pod next."""
        if leaving(pod):
            return "is ended", lambda: self._stop(pod)
        if not pod["spec"].get("nodeName"):
            return self.scheduler.move(pod)
        start, limit = pod["status"].get("startTime"), pod["spec"].get("activeDeadlineSeconds")
        if start is None:
            return "is accepted by its node", lambda: self._accept(pod)
        if limit and self.clock.now >= parse_timestamp(start) + limit:
            return "is past its deadline", lambda: self._deadline(pod)
        if move := self._mount(pod):
            return move
        for container in pod["spec"].get("initContainers", ()):
            if move := self._init(pod, container):
                return move
        main = [self._main(pod, one) for one in pod["spec"]["containers"]]
        if any(main):
            return next((one for one in main if one and one[0]), WAIT)
        over = all("terminated" in state(pod, one["name"]) for one in pod["spec"]["containers"])
        return ("is over", lambda: self.finish(pod)) if over and not self.ground.lingers else None

    def _accept(self, pod: Object) -> None:
        pod, waiting = self.ground.fresh(pod), {"waiting": {"reason": "PodInitializing"}}
        for part, names in (
            ("initContainerStatuses", "initContainers"),
            ("containerStatuses", "containers"),
        ):
            pod["status"][part] = [
                {
                    "name": one["name"],
                    "state": waiting,
                    "restartCount": 0,
                    "ready": False,
                    "started": False,
                }
                for one in pod["spec"].get(names, ())
            ]
        pod["status"]["startTime"] = format_timestamp(self.clock.now)
        if consumer(pod):
            self.ground.condition(pod, "Ready", "False", "ContainersNotReady", "")
        self.ground.condition(
            pod, "PodReadyToStartContainers", str(not self._unmounted(pod)), "", ""
        )
        self.ground.write(pod)

    # --- volumes

    def _mount(self, pod: Object) -> Move | None:
        """Tried again and again, ever more slowly, until all is mounted: only then a container is made."""
        if _mounted(pod):
            return None
        if not self._unmounted(pod):
            return "its volumes are mounted", lambda: self._mount_succeeds(pod)
        if self.clock.now < self._mount_at.get(pod["metadata"]["uid"], 0.0):
            return WAIT
        return "its volumes cannot be mounted", lambda: self._mount_fails(pod)

    def _unmounted(self, pod: Object) -> str:
        """The claim that cannot be mounted; "": all are."""
        for name in claims(pod):
            claim = self.ground.claim(pod, name)
            bound = claim is not None and claim["status"]["phase"] == "Bound"
            is_bad = pod["spec"].get("nodeName") in self.ground.bad_nodes
            if not bound or (consumer(pod) and (name in self.ground.unmountable or is_bad)):
                return name
            if self._is_attached_elsewhere(pod, name):
                return name
        return ""

    def _is_attached_elsewhere(self, pod: Object, name: str) -> bool:
        """A ReadWriteOnce claim stays where a pod has it mounted."""
        return self.ground.is_for_one_node(pod, name) and any(
            name in claims(one)
            and one["spec"].get("nodeName") not in (None, pod["spec"].get("nodeName"))
            and one["status"].get("startTime")
            and _mounted(one)
            and not terminal(one)
            for one in self.ground.stored("v1", "Pod")
        )

    def _mount_succeeds(self, pod: Object) -> None:
        pod = self.ground.fresh(pod)
        self.ground.condition(pod, "PodReadyToStartContainers", "True", "", "")
        self.ground.write(pod)

    def _mount_fails(self, pod: Object) -> None:
        tried = self.clock.now - parse_timestamp(pod["status"]["startTime"])
        pause = next((one for one in MOUNT_AGAIN if one > tried), MOUNT_AGAIN[-1])
        self._mount_at[pod["metadata"]["uid"]] = self.clock.now + pause
        name = self._unmounted(pod)
        claim = self.ground.claim(pod, name)
        if self._is_attached_elsewhere(pod, name):
            words = f'Multi-Attach error for volume "{name}" Volume is already used by pod(s)'
            self.ground.event(pod, "FailedAttachVolume", words, f"attach.{pod['metadata']['uid']}")
        elif claim is not None and claim["status"]["phase"] == "Bound":
            words = f'MountVolume.SetUp failed for volume "{claim["spec"]["volumeName"]}" : mount failed: exit status 32'
            self.ground.event(pod, "FailedMount", words, f"mount.{pod['metadata']['uid']}")

    # --- one container: None where it is done, or goes on by itself, so that the next one is looked at

    def _init(self, pod: Object, container: Object) -> Move | None:
        name, found = container["name"], state(pod, container["name"])
        if "running" in found:
            return self._program(pod).running(pod, container)
        if "terminated" in found:
            if container.get("restartPolicy") == "Always":  # a sidecar: in place, by nobody's leave
                return self._again(pod, name)
            if found["terminated"]["exitCode"] == 0:
                return None
            return (
                self._again(pod, name) if _restarts(pod) else ("is over", lambda: self.finish(pod))
            )
        return self._start_move(pod, container)

    def _main(self, pod: Object, container: Object) -> Move | None:
        name, found = container["name"], state(pod, container["name"])
        if "terminated" in found:
            return self._again(pod, name) if _restarts(pod) else None
        return (
            self._program(pod).running(pod, container)
            if "running" in found
            else self._start_move(pod, container)
        )

    def _again(self, pod: Object, name: str) -> Move:
        due = self.clock.now >= _restart_at(status(pod, name))
        return (f"{name} starts again", lambda: self._start(pod, name, again=True)) if due else WAIT

    def _start_move(self, pod: Object, container: Object) -> Move:
        name, image = container["name"], container.get("image", "")
        if volume := self._stale(pod, container):
            if state(pod, name).get("waiting", {}).get("reason") == "CreateContainerError":
                return WAIT
            words = f'stat "/var/lib/kubelet/pods/{pod["metadata"]["uid"]}/volumes/nfs/{volume}": stale file handle'
            return f"{name} cannot be made", lambda: self._waits(
                pod, name, "CreateContainerError", words
            )
        if image not in self.ground.cannot_pull:
            return f"{name} starts", lambda: self._start(pod, name)
        if state(pod, name).get("waiting", {}).get("reason") == "ImagePullBackOff":
            return WAIT
        message = f'Back-off pulling image "{image}": not found'
        return f"{name}'s image cannot be pulled", lambda: self._waits(
            pod, name, "ImagePullBackOff", message
        )

    def _stale(self, pod: Object, container: Object) -> str:
        """The PersistentVolume that a consumer's container mounts, and whose handle is stale; ""."""
        mounted = {one["name"] for one in container.get("volumeMounts") or ()}
        for one in pod["spec"].get("volumes") or () if consumer(pod) else ():
            name = (one.get("persistentVolumeClaim") or {}).get("claimName", "")
            if (
                one["name"] in mounted
                and name in self.ground.stale
                and (claim := self.ground.claim(pod, name))
            ):
                return str(claim["spec"]["volumeName"])
        return ""

    def _waits(self, pod: Object, name: str, reason: str, message: str) -> None:
        pod = self.ground.fresh(pod)
        status(pod, name)["state"] = {"waiting": {"reason": reason, "message": message}}
        self.ground.write(pod)
        words = reason if reason == "ImagePullBackOff" else message
        self.ground.event(
            pod, "Failed", f"Error: {words}", f"failed.{name}.{pod['metadata']['uid']}"
        )

    def _start(self, pod: Object, name: str, again: bool = False) -> None:
        pod = self.ground.fresh(pod)
        found = status(pod, name)
        if again:
            found["lastState"], found["restartCount"] = found["state"], found["restartCount"] + 1
        found["state"] = {"running": {"startedAt": format_timestamp(self.clock.now)}}
        image = next(one.get("image", "") for one in every_container(pod) if one["name"] == name)
        content = self.ground.content.get(image, image)
        found["imageID"] = (
            f"registry.example/engine@sha256:{hashlib.sha256(content.encode()).hexdigest()}"
        )
        main = any(one["name"] == name for one in pod["spec"]["containers"])
        pod["status"]["phase"] = "Running" if main else "Pending"
        self._program(pod).starts(pod, name, again)
        self.ground.write(pod)

    # --- what programs tell it

    def ready(self, pod: Object, name: str) -> None:
        pod = self.ground.fresh(pod)
        status(pod, name).update(started=True, ready=True)
        if consumer(pod) and all(one["ready"] for one in pod["status"]["containerStatuses"]):
            self.ground.condition(pod, "Ready", "True", "", "")
        self.ground.write(pod)

    def end(self, pod: Object, name: str, code: int, message: str, reason: str = "") -> None:
        """A container ends."""
        pod = self.ground.fresh(pod)
        found = status(pod, name)
        began = found["state"].get("running", {}).get("startedAt", format_timestamp(self.clock.now))
        ended: dict[str, Any] = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "startedAt": began,
            "finishedAt": format_timestamp(self.clock.now),
        }
        if message:
            ended["message"] = message
        found.update(state={"terminated": ended}, ready=False)
        if said(pod, "Ready"):
            self.ground.condition(pod, "Ready", "False", "ContainersNotReady", "")
        self.ground.write(pod)

    def fail(self, pod: Object, reason: str, message: str) -> None:
        """The node ends the pod; its object stays."""
        pod = self.ground.fresh(pod)
        self._kill(pod, 137)
        pod["status"].update(phase="Failed", reason=reason, message=message)
        self.ground.write(pod)

    def finish(self, pod: Object, engine_code: int = 143) -> None:
        pod = self.ground.fresh(pod)
        self._kill(pod, 143, engine_code)
        main = [state(pod, one["name"]).get("terminated") for one in pod["spec"]["containers"]]
        well = all(one is not None and one["exitCode"] == 0 for one in main)
        pod["status"]["phase"] = "Succeeded" if well else "Failed"
        self.ground.write(pod)

    def _deadline(self, pod: Object) -> None:
        self.fail(
            pod, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
        )

    def _stop(self, pod: Object) -> None:
        """A deleted pod ends: what runs is told to, and the engine ends well. Its object goes with its last finalizer."""
        self.finish(pod, engine_code=0)

    def _kill(self, pod: Object, code: int, engine_code: int | None = None) -> None:
        """What runs in a copy."""
        for found in containers(pod):
            found["ready"] = False
            if "running" in found["state"]:
                began = found["state"]["running"]["startedAt"]
                is_engine = engine_code is not None and found["name"] == engine(pod)
                exit_code = engine_code if is_engine else code
                ended = {
                    "exitCode": exit_code,
                    "reason": "Error" if exit_code else "Completed",
                    "startedAt": began,
                    "finishedAt": format_timestamp(self.clock.now),
                }
                found["state"] = {"terminated": ended}
        if said(pod, "Ready"):
            self.ground.condition(pod, "Ready", "False", "PodFailed", "")


def _restarts(pod: Object) -> bool:
    return str(pod["spec"].get("restartPolicy", "Always")) == "Always"


def _restart_at(found: Object) -> float:
    return (
        parse_timestamp(found["state"]["terminated"]["finishedAt"])
        + RESTART[min(found["restartCount"], len(RESTART) - 1)]
    )


def _mounted(pod: Object) -> bool:
    found = said(pod, "PodReadyToStartContainers")
    return found is None or found["status"] == "True"
