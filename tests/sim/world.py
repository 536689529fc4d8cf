"""Everything beside the controller: Job controller, scheduler, kubelet, provisioner, garbage collector, and the agent on a claim in memory.

Each does its work in small moves, so that a test can stop between any two. `moves()` says what could happen now by itself; faults are
methods of their own, which a test calls by name. What it imitates was seen on a real cluster (facts/kubernetes.md) or read in its source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pretune.api import AGENT_CONTAINER, BUNDLE, CHECK_CONTAINER, ROLE, SEAL_CONTAINER, TUNING, Object
from pretune.cluster import ApiError
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.model import seconds, stamp
from pretune.wire import ANSWERS, TASK_VARIABLE, Inputs, Report, Task, Versions, Writer

from tests.sim.cluster import Clock, Server, copied

TRACKING = "batch.kubernetes.io/job-tracking"  # holds a pod until the Job controller has counted it
VERSIONS = Versions(vllm="0.33.0", flashinfer="0.7.2.post1", cuda="13.0", gpu="NVIDIA B200")
TUNES_FOR = 40.0  # seconds from the engine's start until it is ready
RESTART = 2.0  # seconds until the kubelet starts a crashed sidecar again
KUEUE = "kueue.x-k8s.io/queue-name"

Move = tuple[str, Callable[[], None]]


@dataclass(frozen=True)
class Bundle:
    """One sealed bundle: immutable, and told from every other one by its digest."""

    id: str
    inputs: Inputs
    digest: str
    layout: str
    entries: int
    message: str
    at: str
    seconds: int

    def report(self, by: str) -> Report:
        return Report(
            by=by,
            reason="NothingToTune" if self.layout == "Empty" else "Sealed",
            message=self.message,
            id=self.id,
            layout=self.layout,
            entries=self.entries,
            digest=self.digest,
            versions=VERSIONS,
            writer=Writer(1000, 1000, [1000]),
            seconds=self.seconds,
            at=self.at,
            fingerprint=self.inputs.fingerprint,
        )


@dataclass
class Volume:
    """What a bound claim holds: (the cache's folder, id) -> bundle."""

    bundles: dict[tuple[str, str], Bundle] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """An engine was started: GPU time is spent."""

    bundle: str
    pod: str  # uid
    sealed_already: bool


class World:
    """Plays on one Server. Public fields are the knobs that a test turns."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self.server, self.clock = server, clock
        self.volumes: dict[str, Volume] = {}  # by the claim's uid
        self.starts: list[Start] = []
        self.published: list[Bundle] = []
        self.pruned: list[str] = []
        # knobs
        self.free_gpus = True
        self.no_node_for: set[str] = set()  # GPU products
        self.idle_roles: set[str] = set()  # whose pods find no node
        self.quota = ""  # the API server's sentence when it refuses a pod
        self.kueue = False
        self.provisioner = True
        self.cannot_pull: set[str] = set()  # images
        self.engine_crashes = 0  # of the next engines, so many crash
        self.engine_hangs = False  # never ready
        self.lingers = False  # after seal the engine does not end
        self.check_says: list[tuple[str, str]] = []  # of the next checks: (reason, message)
        self.seal_says: list[tuple[str, str]] = []
        self.layout = "PerRank"
        self.dead_pods: set[str] = set()  # uids on nodes that do not answer any more
        self.inspect_silent = False
        self._sealed_by: dict[str, Bundle] = {}  # pod uid -> what its seal published, or found
        self._refused: dict[str, str] = {}  # Job uid -> the sentence that its events carry
        self._pods = 0
        server.admission.append(self._admit)

    # --- what a test asks

    def claim_uid(self, namespace: str, name: str) -> str:
        claim = self.server.get("v1", "PersistentVolumeClaim", namespace, name)
        return str(claim["metadata"]["uid"]) if claim else ""

    def bundles(self, namespace: str, claim: str) -> dict[tuple[str, str], Bundle]:
        """What is on a claim now; nothing where there is no claim."""
        volume = self.volumes.get(self.claim_uid(namespace, claim))
        return dict(volume.bundles) if volume else {}

    def pods(self, role: str = "") -> list[Object]:
        return self.server.list("v1", "Pod", "", labels=f"{ROLE}={role}" if role else ROLE)

    def jobs(self, role: str = "") -> list[Object]:
        return self.server.list("batch/v1", "Job", "", labels=f"{ROLE}={role}" if role else ROLE)

    # --- what happens by itself

    def moves(self) -> list[Move]:
        """All that could happen next, in a fixed order; each leads to new ones."""
        return [
            *self._claim_moves(),
            *self._job_moves(),
            *self._pod_moves(),
        ]

    def timers(self) -> list[float]:
        """When something else could happen (Unix seconds), all in the future."""
        found = []
        for job in self.jobs():
            spec, status = job["spec"], job.get("status") or {}
            if "activeDeadlineSeconds" in spec and status.get("startTime") and not _over(job):
                found.append(seconds(status["startTime"]) + spec["activeDeadlineSeconds"])
            if _over(job) and "ttlSecondsAfterFinished" in spec:
                found.append(_finished_at(job) + spec["ttlSecondsAfterFinished"])
        for pod in self.pods():
            limit, start = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
            if limit and start and not _terminal(pod):
                found.append(seconds(start) + limit)
            engine = _engine(pod)
            state = _state(pod, engine)
            if "running" in state and not _status(pod, engine).get("started") and not self.engine_hangs:
                found.append(seconds(state["running"]["startedAt"]) + TUNES_FOR)
            if "terminated" in state and not _terminal(pod):
                found.append(seconds(state["terminated"]["finishedAt"]) + RESTART)
        return sorted(when for when in found if when > self.clock.now)

    def run(self, limit: int = 500) -> int:
        """Let it all happen, without the clock: how many moves that were."""
        for count in range(limit):
            moves = self.moves()
            if not moves:
                return count
            moves[0][1]()
        raise AssertionError(f"the world does not come to rest: {[words for words, _ in self.moves()]}")

    # --- faults

    def evict(self, pod: Object) -> None:
        """By the eviction API (a drain, a preemption): the pod is deleted, with the condition that says so."""
        if _terminal(pod) or pod["metadata"].get("deletionTimestamp"):
            return
        self._disrupt(pod, "EvictionByEvictionAPI", "Eviction API: evicting")
        self.server.delete(_ref(pod))

    def pressure(self, pod: Object) -> None:
        """By the kubelet (node pressure): the pod is Failed at once, and its object stays."""
        if _terminal(pod) or not pod["spec"].get("nodeName"):
            return
        self._disrupt(pod, "TerminationByKubelet", "The node was low on resource: memory.")
        pod = self._fresh(pod)
        self._kill_containers(pod, 137)
        pod["status"].update(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
        self._write(pod)

    def delete_pod(self, pod: Object) -> None:
        """By a person: no condition says why."""
        self.server.delete(_ref(pod))

    def vanish(self, pod: Object) -> None:
        """A finished pod's object goes, read or not."""
        if _terminal(pod) and not pod["metadata"].get("finalizers"):
            self.server.delete(_ref(pod))

    def kill_node(self, pod: Object) -> None:
        """Its node does not answer any more; the node controller has marked the pod for deletion."""
        if not _terminal(pod) and pod["spec"].get("nodeName"):
            self.dead_pods.add(pod["metadata"]["uid"])
            self._disrupt(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
            self.server.delete(_ref(pod))

    def crash_engine(self, pod: Object) -> None:
        engine = _engine(pod)
        if "running" not in _state(pod, engine) or _terminal(pod):
            return
        self._end(pod, engine, 1, "RuntimeError: CUDA error: out of memory", reason="Error")

    def crash_seal(self, pod: Object) -> None:
        """Seal dies without a word: before or after it has published."""
        if "running" in _state(pod, SEAL_CONTAINER) and not _terminal(pod):
            self._end(pod, SEAL_CONTAINER, 137, "", reason="OOMKilled")

    # --- claims

    def _claim_moves(self) -> Iterator[Move]:
        for claim in self.server.list("v1", "PersistentVolumeClaim", ""):
            name, meta = claim["metadata"]["name"], claim["metadata"]
            users = [pod for pod in self.server.list("v1", "Pod", meta["namespace"]) if name in _claims(pod)]
            if meta.get("deletionTimestamp"):
                # pvc-protection holds it for every scheduled pod that there still is, ended ones included
                if not any(pod["spec"].get("nodeName") for pod in users):
                    yield f"claim {name} is gone", partial(self._drop, claim)
            elif claim["status"]["phase"] == "Pending" and self.provisioner:
                waits = self._binding_mode(claim) == "WaitForFirstConsumer"
                if not waits or any(pod["spec"].get("nodeName") for pod in users):
                    yield f"claim {name} is bound", partial(self._bind, claim)

    def _binding_mode(self, claim: Object) -> str:
        name = claim["spec"].get("storageClassName")
        found = self.server.get("storage.k8s.io/v1", "StorageClass", "", name) if name else None
        return str((found or {}).get("volumeBindingMode", "Immediate"))

    def _bind(self, claim: Object) -> None:
        uid = claim["metadata"]["uid"]
        self.volumes.setdefault(uid, Volume())
        self.server.patch(_ref(claim), {"status": {"phase": "Bound"}}, status=True)

    def _drop(self, claim: Object) -> None:
        self.volumes.pop(claim["metadata"]["uid"], None)
        self.server.finalize(claim)

    # --- the Job controller and the garbage collector

    def _job_moves(self) -> Iterator[Move]:
        jobs = {job["metadata"]["uid"]: job for job in self.jobs()}
        caches = {one["metadata"]["uid"] for one in self.server.list("pretune.dev/v1alpha1", "AutotuneCache", "")}
        pods: dict[str, list[Object]] = {}
        for pod in self.pods():
            pods.setdefault(_owner(pod), []).append(pod)
        for uid, job in jobs.items():
            name = job["metadata"]["name"]
            if _owner(job) not in caches:
                yield f"Job {name} is collected", partial(self.server.delete, _ref(job))
            elif move := self._job_move(job, pods.get(uid, [])):
                yield move
        for uid, orphans in pods.items():
            for pod in orphans if uid not in jobs else ():
                name = pod["metadata"]["name"]
                if not pod["metadata"].get("deletionTimestamp"):
                    yield f"pod {name} is collected", partial(self.server.delete, _ref(pod))
                elif _terminal(pod) and pod["metadata"].get("finalizers"):
                    yield f"pod {name} is let go", partial(self.server.finalize, pod)

    def _job_move(self, job: Object, pods: list[Object]) -> Move | None:
        """The one thing that the Job controller does next for a Job."""
        name, spec, status = job["metadata"]["name"], job["spec"], job.get("status") or {}
        uncounted = [pod for pod in pods if _terminal(pod) and TRACKING in pod["metadata"].get("finalizers", ())]
        if uncounted:
            return f"Job {name} counts a pod", lambda: self._count(job, uncounted[0])
        if _over(job):
            if (
                "ttlSecondsAfterFinished" in spec
                and self.clock.now >= _finished_at(job) + spec["ttlSecondsAfterFinished"]
            ):
                return f"Job {name} has outlived its ttl", lambda: self.server.delete(_ref(job))
            return None
        alive = [pod for pod in pods if not _terminal(pod)]
        active = [pod for pod in alive if not pod["metadata"].get("deletionTimestamp")]
        target = _condition(job, "FailureTarget")
        if target is not None:
            if active:
                return f"Job {name} ends its pod", lambda: self.server.delete(_ref(active[0]))
            if alive:
                return None
            return f"Job {name} is Failed", lambda: self._finish(job, "Failed", target["reason"], target["message"])
        if status.get("succeeded"):
            return f"Job {name} is Complete", lambda: self._finish(job, "Complete", "CompletionsReached", "")
        if status.get("failed", 0) > spec.get("backoffLimit", 6):
            return f"Job {name} gives up", lambda: self._fail_job(
                job, "BackoffLimitExceeded", "Job has reached the specified backoff limit"
            )
        if spec.get("suspend"):
            return (f"Job {name} ends its pod", lambda: self.server.delete(_ref(active[0]))) if active else None
        if not status.get("startTime"):
            return f"Job {name} starts", lambda: self._job_status(job, {"startTime": stamp(self.clock.now)})
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and self.clock.now >= seconds(status["startTime"]) + deadline:
            return f"Job {name} is past its deadline", lambda: self._fail_job(
                job, "DeadlineExceeded", "Job was active longer than specified deadline"
            )
        awaited = alive if spec.get("podReplacementPolicy") == "Failed" else active
        if not awaited and (not self.quota or self._refused.get(job["metadata"]["uid"]) != self.quota):
            return f"Job {name} makes a pod", lambda: self._make_pod(job)
        return None

    def _count(self, job: Object, pod: Object) -> None:
        status = dict(job.get("status") or {})
        if pod["status"]["phase"] == "Succeeded":
            status["succeeded"] = status.get("succeeded", 0) + 1
        elif not self._ignored(job, pod):
            status["failed"] = status.get("failed", 0) + 1
        self._job_status(job, status)
        self.server.finalize(pod)

    def _ignored(self, job: Object, pod: Object) -> bool:
        """By the Job's own podFailurePolicy."""
        said = {(one["type"], one["status"]) for one in pod["status"].get("conditions", ())}
        return any(
            rule["action"] == "Ignore"
            and any((one["type"], one.get("status", "True")) in said for one in rule.get("onPodConditions", ()))
            for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules", ())
        )

    def _make_pod(self, job: Object) -> None:
        self._pods += 1
        template, meta = copied(job["spec"]["template"]), job["metadata"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": meta["namespace"],
                "name": f"{meta['name'][:57]}-{self._pods:05x}",
                "labels": {**template["metadata"].get("labels", {}), "batch.kubernetes.io/job-name": meta["name"]},
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": meta["name"],
                        "uid": meta["uid"],
                        "controller": True,
                    }
                ],
                "finalizers": [TRACKING],
            },
            "spec": template["spec"],
        }
        try:
            self.server.create(pod)
            self._refused.pop(meta["uid"], None)
        except ApiError as error:
            self._refused[meta["uid"]] = self.quota
            self._event(job, "FailedCreate", f"Error creating: {error.message}")

    def _event(self, about: Object, reason: str, message: str) -> None:
        self._pods += 1
        meta = about["metadata"]
        self.server.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"namespace": meta["namespace"], "name": f"{meta['name'][:200]}.{self._pods:x}"},
                "involvedObject": {"kind": about["kind"], "name": meta["name"], "uid": meta["uid"]},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": stamp(self.clock.now),
            }
        )

    def _fail_job(self, job: Object, reason: str, message: str) -> None:
        """FailureTarget first: Failed only once its pods have ended (Kubernetes 1.31 and newer)."""
        self._add_condition(job, "FailureTarget", reason, message)

    def _finish(self, job: Object, kind: str, reason: str, message: str) -> None:
        self._add_condition(job, kind, reason, message)

    def _add_condition(self, job: Object, kind: str, reason: str, message: str) -> None:
        now = stamp(self.clock.now)
        found = [*(job.get("status") or {}).get("conditions", ())]
        found.append({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now})
        self._job_status(job, {"conditions": found})

    def _job_status(self, job: Object, status: Object) -> None:
        self.server.patch(_ref(job), {"status": status}, status=True)

    # --- scheduler and kubelet

    def _pod_moves(self) -> Iterator[Move]:
        for pod in self.pods():
            if pod["metadata"]["uid"] in self.dead_pods and pod["spec"].get("nodeName"):
                continue
            if move := self._pod_move(pod):
                yield f"pod {pod['metadata']['name']}: {move[0]}", move[1]

    def _pod_move(self, pod: Object) -> Move | None:
        """The one thing that happens to a pod next."""
        if _terminal(pod):
            return None
        on_node = bool(pod["spec"].get("nodeName"))
        if pod["metadata"].get("deletionTimestamp"):
            return "is ended", lambda: self._stop(pod)
        if pod["spec"].get("schedulingGates"):
            return None
        if not on_node:
            return self._schedule_move(pod)
        start, limit = pod["status"].get("startTime"), pod["spec"].get("activeDeadlineSeconds")
        if start is None:
            return "is accepted by its node", lambda: self._accept(pod)
        if limit and self.clock.now >= seconds(start) + limit:
            return "is past its deadline", lambda: self._deadline(pod)
        for container in pod["spec"].get("initContainers", ()):
            if move := self._init_move(pod, container):
                return move if move[0] else None
        for container in pod["spec"]["containers"]:
            state = _state(pod, container["name"])
            if "terminated" in state:
                continue
            if "running" not in state:
                return self._start_move(pod, container)
            if container["name"] == SEAL_CONTAINER:
                return self._seal_move(pod)
            return f"{container['name']} ends", partial(self._look_after, pod, container)
        return None if self.lingers else ("is over", lambda: self._finish_pod(pod))

    def _schedule_move(self, pod: Object) -> Move | None:
        why = self._unschedulable(pod)
        said = next((one for one in pod["status"].get("conditions", ()) if one["type"] == "PodScheduled"), None)
        if why:
            same = said is not None and said.get("message") == why
            return None if same else ("cannot be scheduled", lambda: self._unscheduled(pod, why))
        return "is scheduled", lambda: self._schedule(pod)

    def _unschedulable(self, pod: Object) -> str:
        for name in _claims(pod):
            claim = self.server.get("v1", "PersistentVolumeClaim", pod["metadata"]["namespace"], name)
            if claim is None:
                return f'0/1 nodes are available: persistentvolumeclaim "{name}" not found.'
            if claim["metadata"].get("deletionTimestamp"):
                return f'0/1 nodes are available: persistentvolumeclaim "{name}" is being deleted.'
            if claim["status"]["phase"] != "Bound" and self._binding_mode(claim) == "Immediate":
                return "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        product = (pod["spec"].get("nodeSelector") or {}).get("nvidia.com/gpu.product")
        if pod["metadata"]["labels"][ROLE] in self.idle_roles:
            return "0/1 nodes are available: 1 Insufficient cpu."
        if pod["metadata"]["labels"][ROLE] == TUNING and (not self.free_gpus or product in self.no_node_for):
            return "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        return ""

    def _unscheduled(self, pod: Object, why: str) -> None:
        self._set_condition(pod, "PodScheduled", "False", "Unschedulable", why)
        self._write(pod)

    def _schedule(self, pod: Object) -> None:
        self.server.patch(_ref(pod), {"spec": {"nodeName": "node-1"}})
        pod = self._fresh(pod)
        self._set_condition(pod, "PodScheduled", "True", "", "")
        self._write(pod)

    def _accept(self, pod: Object) -> None:
        waiting = {"waiting": {"reason": "PodInitializing"}}
        for part, names in (("initContainerStatuses", "initContainers"), ("containerStatuses", "containers")):
            pod["status"][part] = [
                {"name": one["name"], "state": waiting, "restartCount": 0, "ready": False, "started": False}
                for one in pod["spec"].get(names, ())
            ]
        pod["status"]["startTime"] = stamp(self.clock.now)
        self._write(pod)

    def _init_move(self, pod: Object, container: Object) -> Move | None:
        """None: this one is done, look at the next; ("", …): nothing happens before something else does."""
        name, sidecar = container["name"], container.get("restartPolicy") == "Always"
        status, state = _status(pod, name), _state(pod, name)
        wait: Move = ("", lambda: None)
        if "running" in state:
            if sidecar:
                if status.get("started"):
                    return None
                if name == _engine(pod):
                    ready = (
                        not self.engine_hangs and self.clock.now >= seconds(state["running"]["startedAt"]) + TUNES_FOR
                    )
                    if self.engine_crashes:
                        return f"{name} crashes", lambda: self._crash(pod)
                    return (f"{name} is ready", lambda: self._ready(pod, name)) if ready else wait
                return f"{name} is ready", lambda: self._ready(pod, name)
            return f"{name} ends", lambda: self._init_end(pod, container)
        if "terminated" in state:
            if sidecar:  # restarted in place, by nobody's leave, after a while
                due = seconds(state["terminated"]["finishedAt"]) + RESTART
                again: Move = (f"{name} starts again", lambda: self._start(pod, name, again=True))
                return again if self.clock.now >= due else wait
            if state["terminated"]["exitCode"] == 0:
                return None
            return "is over", lambda: self._finish_pod(pod)
        return self._start_move(pod, container) or wait

    def _start_move(self, pod: Object, container: Object) -> Move | None:
        name, image = container["name"], container.get("image", "")
        if image in self.cannot_pull:
            if _state(pod, name).get("waiting", {}).get("reason") == "ImagePullBackOff":
                return None
            return f"{name}'s image cannot be pulled", lambda: self._pull_back_off(pod, name, image)
        return f"{name} starts", lambda: self._start(pod, name)

    def _pull_back_off(self, pod: Object, name: str, image: str) -> None:
        message = f'Back-off pulling image "{image}": not found'
        _status(pod, name)["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
        self._write(pod)

    def _start(self, pod: Object, name: str, again: bool = False) -> None:
        status = _status(pod, name)
        if again:
            status["lastState"], status["restartCount"] = status["state"], status["restartCount"] + 1
        status["state"] = {"running": {"startedAt": stamp(self.clock.now)}}
        status["imageID"] = f"registry.example/engine@sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        if name == _engine(pod):
            task = _task(pod, SEAL_CONTAINER)
            bundle = pod["metadata"]["labels"][BUNDLE]
            there = not again and (_folder(task), bundle) in self._volume(pod).bundles
            self.starts.append(Start(bundle, pod["metadata"]["uid"], there))
        pod["status"]["phase"] = "Running" if name == SEAL_CONTAINER else "Pending"
        self._write(pod)

    def _crash(self, pod: Object) -> None:
        self.engine_crashes -= 1
        self.crash_engine(pod)

    def _ready(self, pod: Object, name: str) -> None:
        _status(pod, name).update(started=True, ready=True)
        self._write(pod)

    def _init_end(self, pod: Object, container: Object) -> None:
        name = container["name"]
        if name != CHECK_CONTAINER:
            self._end(pod, name, 0, "")
            return
        report = self._check(pod)
        self._end(pod, name, 0 if report.reason == "Checked" else 1, report.dump())

    def _check(self, pod: Object) -> Report:
        if self.check_says:
            reason, message = self.check_says.pop(0)
            return Report(by="check", reason=reason, message=message)
        agent = next(one["configMap"]["name"] for one in pod["spec"]["volumes"] if "configMap" in one)
        if self.server.get("v1", "ConfigMap", pod["metadata"]["namespace"], agent) is None:
            return Report(by="check", reason="AgentMissing", message="the agent's ConfigMap was missing")
        task = _task(pod, CHECK_CONTAINER)
        assert task.inputs is not None
        found = self._volume(pod).bundles.get((_folder(task), task.inputs.bundle_id()))
        if found is None:
            return Report(by="check", reason="Checked")
        if found.inputs != task.inputs:
            return Report(by="check", reason="IdCollision", message=f"bundle {found.id} was made of other inputs")
        return found.report("check")

    def _seal_move(self, pod: Object) -> Move:
        if self.seal_says:
            return "seal refuses", lambda: self._seal_refuses(pod)
        if pod["metadata"]["uid"] not in self._sealed_by:
            return "seal publishes", lambda: self._publish(pod)
        return "seal reports", lambda: self._end(
            pod, SEAL_CONTAINER, 0, self._sealed_by[pod["metadata"]["uid"]].report("seal").dump()
        )

    def _seal_refuses(self, pod: Object) -> None:
        reason, message = self.seal_says.pop(0)
        self._end(pod, SEAL_CONTAINER, 1, Report(by="seal", reason=reason, message=message).dump())

    def _publish(self, pod: Object) -> None:
        """The first one wins, and a second reports the winner."""
        task, uid = _task(pod, SEAL_CONTAINER), pod["metadata"]["uid"]
        assert task.inputs is not None
        volume, place = self._volume(pod), (_folder(task), task.inputs.bundle_id())
        if place not in volume.bundles:
            entries = 0 if self.layout == "Empty" else 20
            bundle = Bundle(
                id=place[1],
                inputs=task.inputs,
                digest="sha256:" + hashlib.sha256(f"{uid} {place}".encode()).hexdigest(),
                layout=self.layout,
                entries=entries,
                message=f"{entries} entries in 1 rank file",
                at=stamp(self.clock.now),
                seconds=int(TUNES_FOR),
            )
            volume.bundles[place] = bundle
            self.published.append(bundle)
        self._sealed_by[uid] = volume.bundles[place]

    def _look_after(self, pod: Object, container: Object) -> None:
        """inspect and prune."""
        task, volume = _task(pod, container["name"]), self._volume(pod)
        assert container["name"] == AGENT_CONTAINER, container["name"]
        if pod["metadata"]["labels"][ROLE] == "inspect":
            if self.inspect_silent:
                self._end(pod, AGENT_CONTAINER, 1, "", reason="OOMKilled")
                return
            mine = {place[1]: one for place, one in volume.bundles.items() if place[0] == _folder(task)}
            order = [one for one in task.ids if one in mine] + sorted(set(mine) - set(task.ids))
            report = Report(
                by="inspect",
                reason="Inspected",
                bundles=[mine[one].report("inspect") for one in order[:ANSWERS]],
                more=max(0, len(order) - ANSWERS),
            )
        else:
            for one in task.ids:
                if volume.bundles.pop((_folder(task), one), None) is not None:
                    self.pruned.append(one)
            report = Report(by="prune", reason="Pruned")
        self._end(pod, AGENT_CONTAINER, 0, report.dump())

    def _end(self, pod: Object, name: str, code: int, message: str, reason: str = "") -> None:
        pod = self._fresh(pod)
        status = _status(pod, name)
        began = status["state"].get("running", {}).get("startedAt", stamp(self.clock.now))
        ended: dict[str, Any] = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "startedAt": began,
            "finishedAt": stamp(self.clock.now),
        }
        if message:
            ended["message"] = message
        status.update(state={"terminated": ended}, ready=False)
        self._write(pod)

    def _stop(self, pod: Object) -> None:
        """A deleted pod ends: what runs is killed; the object goes with its last finalizer."""
        self._kill_containers(pod, 143)
        main = [_state(pod, one["name"]).get("terminated") for one in pod["spec"]["containers"]]
        well = bool(main) and all(one is not None and one["exitCode"] == 0 for one in main)
        pod["status"]["phase"] = "Succeeded" if well else "Failed"
        self._write(pod)
        pod = self._fresh(pod)
        if not pod["metadata"].get("finalizers"):
            self.server.finalize(pod)

    def _deadline(self, pod: Object) -> None:
        self._kill_containers(pod, 137)
        pod["status"].update(
            phase="Failed",
            reason="DeadlineExceeded",
            message="Pod was active on the node longer than the specified deadline",
        )
        self._write(pod)

    def _finish_pod(self, pod: Object) -> None:
        main = [_state(pod, one["name"]).get("terminated") for one in pod["spec"]["containers"]]
        well = all(one is not None and one["exitCode"] == 0 for one in main)
        self._kill_containers(pod, 143)
        pod["status"]["phase"] = "Succeeded" if well else "Failed"
        self._write(pod)

    def _kill_containers(self, pod: Object, code: int) -> None:
        for part in ("initContainerStatuses", "containerStatuses"):
            for status in pod["status"].get(part, ()):
                if "running" in status["state"]:
                    status["state"] = {
                        "terminated": {
                            "exitCode": code,
                            "reason": "Error",
                            "startedAt": status["state"]["running"]["startedAt"],
                            "finishedAt": stamp(self.clock.now),
                        }
                    }

    def _disrupt(self, pod: Object, reason: str, message: str) -> None:
        pod = self._fresh(pod)
        self._set_condition(pod, "DisruptionTarget", "True", reason, message)
        self._write(pod)

    def _set_condition(self, pod: Object, kind: str, status: str, reason: str, message: str) -> None:
        others = [one for one in pod["status"].get("conditions", ()) if one["type"] != kind]
        new = {"type": kind, "status": status, "reason": reason, "message": message}
        pod["status"]["conditions"] = [*others, new]

    # --- small things

    def _admit(self, verb: str, obj: Object) -> None:
        if verb == "create" and obj["kind"] == "Job" and self.kueue and KUEUE in (obj["metadata"].get("labels") or {}):
            obj["spec"]["suspend"] = True
        if verb == "create" and obj["kind"] == "Pod" and self.quota and obj["metadata"]["labels"].get(ROLE) == TUNING:
            raise ApiError(403, "Forbidden", f'pods "{obj["metadata"]["name"]}" is forbidden: {self.quota}')

    def _volume(self, pod: Object) -> Volume:
        name = next(
            one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"] if one["name"] == CLAIM_VOLUME
        )
        return self.volumes[self.claim_uid(pod["metadata"]["namespace"], name)]

    def _fresh(self, pod: Object) -> Object:
        found = self.server.get("v1", "Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        assert found is not None, pod["metadata"]["name"]
        return found

    def _write(self, pod: Object) -> None:
        self.server.patch(_ref(pod), {"status": pod["status"]}, status=True)


# --- reading objects


def _ref(obj: Object) -> Object:
    meta = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": {name: meta[name] for name in ("namespace", "name", "uid") if name in meta},
    }


def _owner(obj: Object) -> str:
    return next((one["uid"] for one in obj["metadata"].get("ownerReferences", ()) if one.get("controller")), "")


def _terminal(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _condition(job: Object, kind: str) -> Object | None:
    return next((one for one in (job.get("status") or {}).get("conditions", ()) if one["type"] == kind), None)


def _over(job: Object) -> bool:
    return bool(_condition(job, "Complete") or _condition(job, "Failed"))


def _finished_at(job: Object) -> float:
    found = _condition(job, "Complete") or _condition(job, "Failed")
    assert found is not None
    return seconds(found["lastTransitionTime"])


def _engine(pod: Object) -> str:
    """The engine is the last init container of a tuning pod; the others have none."""
    init = pod["spec"].get("initContainers") or ()
    return str(init[-1]["name"]) if init and pod["metadata"]["labels"][ROLE] == TUNING else ""


def _status(pod: Object, name: str) -> Object:
    for part in ("initContainerStatuses", "containerStatuses"):
        for one in pod["status"].get(part, ()):
            if one["name"] == name:
                return one  # type: ignore[no-any-return]
    return {}


def _state(pod: Object, name: str) -> Object:
    return _status(pod, name).get("state") or {}


def _claims(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or ()
    return [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]


def _task(pod: Object, container: str) -> Task:
    """As the kubelet hands it over: `$$` is one dollar."""
    for one in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
        if one["name"] == container:
            value = next(env["value"] for env in one["env"] if env["name"] == TASK_VARIABLE)
            return Task.load(value.replace("$$", "$"))
    raise AssertionError(f"no container {container}")


def _folder(task: Task) -> str:
    """Of the cache, below the claim's root."""
    return f"{task.subPath}/{task.cache}" if task.subPath else task.cache


def end_of(pod: Object, container: str) -> Object | None:
    """How a container ended, or None: for tests."""
    found = _state(pod, container).get("terminated")
    return dict(found) if found else None


def running(pod: Object) -> set[str]:
    """The names of its containers that run."""
    parts = [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]
    return {one["name"] for one in parts if "running" in one["state"]}
