"""The scheduler: which pod gets the node, and the sentence that says why one does not."""

from __future__ import annotations

from pretune.api.names import PROOF, ROLE, TUNING
from pretune.api.types import Object

from tests.sim.ground import Ground, Move
from tests.sim.reading import (
    claims,
    consumer,
    gpus,
    label,
    leaving,
    ref,
    required_nodes,
    said,
    terminal,
)
from tests.sim.storage import binding_mode

SELECTED = "volume.kubernetes.io/selected-node"


class Scheduler:
    """Nodes that differ in nothing but their names, and GPUs that a test gives and takes."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._bound = 0  # consumers

    def move(self, pod: Object) -> Move | None:
        """What it does next with a pod that has no node."""
        if pod["spec"].get("schedulingGates"):
            return None
        if why := self.unschedulable(pod):
            told = said(pod, "PodScheduled")
            if told is not None and told.get("message") == why:
                return None
            return "cannot be scheduled", lambda: self._unscheduled(pod, why)
        if claim := self._unprovisioned(pod):
            return (
                None
                if SELECTED in (claim["metadata"].get("annotations") or {})
                else self._choose(claim)
            )
        return "is scheduled", lambda: self._schedule(pod)

    def _unprovisioned(self, pod: Object) -> Object | None:
        """A claim that waits for its first pod, and whose volume nobody makes."""
        found = (self.ground.claim(pod, name) for name in claims(pod))
        return next(
            (
                one
                for one in found
                if one and one["status"]["phase"] == "Pending" and not self.ground.provisioner
            ),
            None,
        )

    def _choose(self, claim: Object) -> Move:
        """A node is chosen, and the scheduler waits, without a word, for a volume there."""

        def choose() -> None:
            self.ground.server.patch(
                ref(claim), {"metadata": {"annotations": {SELECTED: "node-1"}}}
            )
            self.ground.event(claim, "ProvisioningFailed", "no space left in the pool")

        return f"chooses a node for {claim['metadata']['name']}", choose

    def unschedulable(self, pod: Object) -> str:
        """Why no node takes it; "": one does. A pod whose claim is missing or being deleted waits for ever."""
        for name in claims(pod):
            claim = self.ground.claim(pod, name)
            if claim is None:
                return f'0/1 nodes are available: persistentvolumeclaim "{name}" not found.'
            if leaving(claim):
                return f'0/1 nodes are available: persistentvolumeclaim "{name}" is being deleted.'
            if (
                claim["status"]["phase"] != "Bound"
                and binding_mode(self.ground, claim) == "Immediate"
            ):
                return "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        product = (pod["spec"].get("nodeSelector") or {}).get("nvidia.com/gpu.product")
        if label(pod, ROLE) in self.ground.idle_roles:
            return "0/1 nodes are available: 1 Insufficient cpu."
        free = self.ground.free_gpus or label(pod, ROLE) not in (TUNING, PROOF)
        if gpus(pod) and (
            not free or product in self.ground.no_node_for or gpus(pod) > self._free()
        ):
            return "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        return ""

    def _free(self) -> int:
        pods = (
            one
            for one in self.ground.stored("v1", "Pod")
            if one["spec"].get("nodeName") and not terminal(one)
        )
        return self.ground.gpus - sum(gpus(one) for one in pods)

    def _unscheduled(self, pod: Object, why: str) -> None:
        pod = self.ground.fresh(pod)
        self.ground.condition(pod, "PodScheduled", "False", "Unschedulable", why)
        self.ground.write(pod)

    def _schedule(self, pod: Object) -> None:
        nodes = required_nodes(pod) or self.ground.nodes
        node = nodes[self._bound % len(nodes)]
        self._bound += consumer(pod)
        self.ground.server.patch(ref(pod), {"spec": {"nodeName": node}})
        pod = self.ground.fresh(pod)
        self.ground.condition(pod, "PodScheduled", "True", "", "")
        self.ground.write(pod)
