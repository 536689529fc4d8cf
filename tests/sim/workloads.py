"""What makes consumers: Deployments with their ReplicaSets (as read in kube-controller-manager's pkg/controller/deployment)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial

from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.podspec.workloads import REVISION_ANNOTATION

from tests.sim.cluster import copied
from tests.sim.ground import Ground, Move
from tests.sim.reading import controller, leaving, note, owner, ready, ref, terminal

APPS = "apps/v1"
HASH = "pod-template-hash"


class Maker:
    """A controller that makes and ends the pods of its kind; what the API server refuses is tried again when that may have changed."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.server = ground, ground.server
        self._refused: dict[str, str] = {}  # owner's uid -> why its last pod was refused

    def timers(self) -> Iterator[float]:
        return iter(())

    def pods(self, uid: str) -> list[Object]:
        """Of one owner, ended ones apart."""
        return [
            one
            for one in self.ground.stored("v1", "Pod")
            if owner(one) == uid and not terminal(one)
        ]

    def make(
        self, of: Object, name: str, template: Object, words: str, **labels: str
    ) -> Move | None:
        """The move that makes a pod, unless the API server would refuse it as it did before."""
        uid, refusal = of["metadata"]["uid"], self.ground.refusal(template)
        if refusal and self._refused.get(uid) == refusal:
            return None
        meta = {
            "namespace": of["metadata"]["namespace"],
            "name": name,
            "labels": {**template["metadata"].get("labels", {}), **labels},
            "ownerReferences": [owned_by(of)],
            **{name: one for name, one in template["metadata"].items() if name == "annotations"},
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        return words, partial(self._make, of, pod)

    def end(self, pod: Object, words: str) -> Move:
        return f"{words} {pod['metadata']['name']}", partial(self.server.delete, ref(pod))

    def _make(self, of: Object, pod: Object) -> None:
        uid = of["metadata"]["uid"]
        self._refused.pop(uid, None)
        try:
            self.server.create(pod)
        except ApiError as error:
            self._refused[uid] = self.ground.refusal(pod)
            self.ground.event(of, "FailedCreate", f"Error creating: {error.message}")


class Garbage:
    """What these left behind when they were deleted. (Jobs: jobs.py.)"""

    OWNERS = ("Deployment", "StatefulSet", "ReplicaSet")

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def timers(self) -> Iterator[float]:
        return iter(())

    def moves(self) -> Iterator[Move]:
        there = {
            one["metadata"]["uid"] for kind in self.OWNERS for one in self.ground.stored(APPS, kind)
        }
        for api, kind in ((APPS, "ReplicaSet"), (APPS, "ControllerRevision"), ("v1", "Pod")):
            for one in self.ground.stored(api, kind):
                above = controller(one)
                if (
                    above.get("kind") in self.OWNERS
                    and above["uid"] not in there
                    and not leaving(one)
                ):
                    words = f"{kind} {one['metadata']['name']} is collected"
                    yield words, partial(self.ground.server.delete, ref(one))


class ReplicaSets(Maker):
    def moves(self) -> Iterator[Move]:
        for one in self.ground.stored(APPS, "ReplicaSet"):
            if move := self._move(one):
                yield f"ReplicaSet {one['metadata']['name']} {move[0]}", move[1]

    def _move(self, one: Object) -> Move | None:
        meta, wanted = one["metadata"], one["spec"]["replicas"]
        active = [pod for pod in self.pods(meta["uid"]) if not leaving(pod)]
        if len(active) < wanted:
            return self.make(
                one, f"{meta['name']}-{self.ground.name()}", one["spec"]["template"], "makes a pod"
            )
        if len(active) > wanted:
            return self.end(max(active, key=_dispensable), "ends pod")
        return None


class Deployments(Maker):
    def moves(self) -> Iterator[Move]:
        for one in self.ground.stored(APPS, "Deployment"):
            if "selector" not in one["spec"]:
                continue  # a template that nothing is made of
            if move := self._move(one):
                yield f"Deployment {one['metadata']['name']} {move[0]}", move[1]

    def _move(self, one: Object) -> Move | None:
        sets = [
            found
            for found in self.ground.stored(APPS, "ReplicaSet")
            if owner(found) == one["metadata"]["uid"]
        ]
        template = one["spec"]["template"]
        new = next(
            (found for found in sets if _without_hash(found["spec"]["template"]) == template), None
        )
        last = max((int(note(found, REVISION_ANNOTATION)) for found in sets), default=0)
        if new is None:
            return "makes a ReplicaSet", partial(self._make_set, one, last + 1)
        if int(note(new, REVISION_ANNOTATION)) < last:
            renewed = {"metadata": {"annotations": {REVISION_ANNOTATION: str(last + 1)}}}
            return "goes back", partial(self.server.patch, ref(new), renewed)
        old = sorted(
            (found for found in sets if found is not new),
            key=lambda found: int(note(found, REVISION_ANNOTATION)),
        )
        recreates = (one["spec"].get("strategy") or {}).get("type") == "Recreate"
        return self._recreate(one, new, old) if recreates else self._roll(one, new, old)

    def _make_set(self, one: Object, revision: int) -> None:
        template = copied(one["spec"]["template"])
        digest = hash_of(template)
        template["metadata"]["labels"][HASH] = digest
        meta = {
            "namespace": one["metadata"]["namespace"],
            "name": f"{one['metadata']['name']}-{digest}",
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION_ANNOTATION: str(revision)},
            "ownerReferences": [owned_by(one)],
        }
        spec = {"replicas": 0, "selector": {"matchLabels": {HASH: digest}}, "template": template}
        self.server.create(
            {"apiVersion": APPS, "kind": "ReplicaSet", "metadata": meta, "spec": spec}
        )

    def _scale(self, found: Object, replicas: int) -> Move:
        words = f"scales {found['metadata']['name']} to {replicas}"
        return words, partial(self.server.patch, ref(found), {"spec": {"replicas": replicas}})

    def _recreate(self, one: Object, new: Object, old: list[Object]) -> Move | None:
        for found in old:
            if found["spec"]["replicas"]:
                return self._scale(found, 0)
        if any(self.pods(found["metadata"]["uid"]) for found in old):
            return None
        wanted = one["spec"]["replicas"]
        return self._scale(new, wanted) if new["spec"]["replicas"] != wanted else None

    def _roll(self, one: Object, new: Object, old: list[Object]) -> Move | None:
        wanted, rolling = (
            one["spec"]["replicas"],
            (one["spec"].get("strategy") or {}).get("rollingUpdate") or {},
        )
        surge, unavailable = rolling.get("maxSurge", 1), rolling.get("maxUnavailable", 0)
        has, total = (
            new["spec"]["replicas"],
            sum(found["spec"]["replicas"] for found in (new, *old)),
        )
        if has > wanted:
            return self._scale(new, wanted)
        if has < wanted and total < wanted + surge:
            return self._scale(new, min(wanted, has + wanted + surge - total))
        most = total - (wanted - unavailable) - (has - self._available(new))
        if most <= 0:
            return None
        for found in old:  # the unhealthy ones first
            broken = found["spec"]["replicas"] - self._available(found)
            if broken > 0:
                return self._scale(found, found["spec"]["replicas"] - min(most, broken))
        spare = sum(self._available(found) for found in (new, *old)) - (wanted - unavailable)
        for found in old:
            if spare > 0 and found["spec"]["replicas"]:
                return self._scale(found, max(0, found["spec"]["replicas"] - spare))
        return None

    def _available(self, found: Object) -> int:
        return sum(ready(pod) for pod in self.pods(found["metadata"]["uid"]))


def owned_by(one: Object) -> Object:
    meta = one["metadata"]
    return {
        "apiVersion": one["apiVersion"],
        "kind": one["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }


def hash_of(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _without_hash(template: Object) -> Object:
    labels = {name: one for name, one in template["metadata"]["labels"].items() if name != HASH}
    return {**template, "metadata": {**template["metadata"], "labels": labels}}


def _dispensable(pod: Object) -> tuple[bool, bool, str]:
    """Who is ended first: without a node, not ready, the newest."""
    return not pod["spec"].get("nodeName"), not ready(pod), pod["metadata"]["uid"]
