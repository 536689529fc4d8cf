"""Everything beside the controller, room by room: storage, Jobs, workloads, kubelet; the webhook; and the faults that a test calls by name.

What it imitates was seen on a real cluster (docs/dev/facts-kubernetes.md) or read in its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from pretune.api.names import SEAL_CONTAINER
from pretune.api.types import Object
from pretune.kube.types import ApiError

from tests.sim.cluster import Clock, Server
from tests.sim.ground import WAIT, Ground, Move, Room
from tests.sim.jobs import Jobs
from tests.sim.kubelet import Kubelet
from tests.sim.reading import engine, is_held, label, leaving, ref, state, terminal
from tests.sim.statefulsets import StatefulSets
from tests.sim.storage import Storage
from tests.sim.webhook import Webhook
from tests.sim.workloads import Deployments, Garbage, ReplicaSets

KUEUE = "kueue.x-k8s.io/queue-name"


class World(Ground):
    """Plays on one Server."""

    def __init__(self, server: Server, clock: Clock) -> None:
        super().__init__(server, clock)
        self.kubelet = Kubelet(self)
        self.webhook = Webhook(self)
        workloads = Deployments(self), ReplicaSets(self), StatefulSets(self), Garbage(self)
        self.rooms: tuple[Room, ...] = (Storage(self), Jobs(self), *workloads, self.kubelet)
        server.admission += [self.webhook.admit, self._admit]

    # --- what happens by itself

    def moves(self) -> list[Move]:
        """All that could happen next."""
        return list(self._moves())

    def next(self) -> Move | None:
        """The first of them."""
        return next(self._moves(), None)

    def _moves(self) -> Iterator[Move]:
        return chain.from_iterable(room.moves() for room in self.rooms)

    def timers(self) -> list[float]:
        """When something else could happen (Unix seconds), all in the future."""
        return sorted(
            when for room in self.rooms for when in room.timers() if when > self.clock.now
        )

    def ready_to_move(self, pod: Object) -> bool:
        """Whether this pod would go on by itself, now; to try again what failed before is not to go on."""
        words = (self.kubelet.move(pod) or WAIT)[0]
        return bool(words) and not words.endswith(
            ("cannot be mounted", "cannot be scheduled", "starts again")
        )

    def run(self, limit: int = 500) -> int:
        """Let it all happen, without the clock: how many moves that were."""
        for count in range(limit):
            move = self.next()
            if move is None:
                return count
            move[1]()
        raise AssertionError(
            f"the world does not come to rest: {[words for words, _ in self.moves()]}"
        )

    # --- faults

    def evict(self, pod: Object) -> None:
        """By the eviction API (a drain, a preemption): the pod is deleted, with the condition that says so."""
        if terminal(pod) or leaving(pod):
            return
        self._disrupt(pod, "EvictionByEvictionAPI", "Eviction API: evicting")
        self.server.delete(ref(pod))

    def pressure(self, pod: Object) -> None:
        """By the kubelet (node pressure): the pod is Failed at once, and its object stays."""
        if terminal(pod) or not pod["spec"].get("nodeName"):
            return
        self._disrupt(pod, "TerminationByKubelet", "The node was low on resource: memory.")
        self.kubelet.fail(pod, "Evicted", "The node was low on resource: memory.")

    def delete_pod(self, pod: Object) -> None:
        """By a person: no condition says why."""
        self.server.delete(ref(pod))

    def suspend(self, job: Object, why: str = "") -> None:
        """By a queue (Kueue's preemption), which then says why by an event; its pod is the Job controller's to end."""
        self.server.patch(ref(job), {"spec": {"suspend": True}})
        if why:
            self.event(job, "Stopped", why)

    def resume(self, job: Object) -> None:
        """By its queue, which has room again."""
        self.server.patch(ref(job), {"spec": {"suspend": False}})

    def vanish(self, pod: Object) -> None:
        """A finished pod's object goes, read or not."""
        if terminal(pod) and not pod["metadata"].get("finalizers"):
            self.server.delete(ref(pod))

    def kill_node(self, pod: Object) -> None:
        """Its node does not answer any more; the node controller has marked the pod for deletion."""
        if not terminal(pod) and pod["spec"].get("nodeName"):
            self.dead_pods.add(pod["metadata"]["uid"])
            self._disrupt(
                pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"
            )
            self.server.delete(ref(pod))

    def crash_engine(self, pod: Object) -> None:
        if "running" in state(pod, engine(pod)) and not terminal(pod):
            self.kubelet.end(
                pod, engine(pod), 1, "RuntimeError: CUDA error: out of memory", reason="Error"
            )

    def crash_seal(self, pod: Object) -> None:
        """Seal dies without a word: before or after it has published."""
        if "running" in state(pod, SEAL_CONTAINER) and not terminal(pod):
            self.kubelet.end(pod, SEAL_CONTAINER, 137, "", reason="OOMKilled")

    def _disrupt(self, pod: Object, reason: str, message: str) -> None:
        pod = self.fresh(pod)
        self.condition(pod, "DisruptionTarget", "True", reason, message)
        self.write(pod)

    # --- admission

    def _admit(self, verb: str, obj: Object) -> None:
        if verb == "create" and obj["kind"] == "Job" and self.kueue and label(obj, KUEUE):
            obj["spec"]["suspend"] = True
        if verb == "update" and obj["kind"] == "Pod" and self.release_refusal:
            self._refuse_release(obj)
        if verb == "create" and obj["kind"] == "Pod" and (refusal := self.refusal(obj)):
            raise ApiError(
                403, "Forbidden", f'pods "{obj["metadata"]["name"]}" is forbidden: {refusal}'
            )

    def _refuse_release(self, pod: Object) -> None:
        """A policy of somebody else, which came after the pods were held."""
        meta = pod["metadata"]
        before = self.server.stored("v1", "Pod", meta["namespace"], meta["name"])
        if before is not None and is_held(before) and not is_held(pod):
            words = f'pods "{meta["name"]}" is forbidden: {self.release_refusal}'
            raise ApiError(403, "Forbidden", words)
