"""StatefulSets: one pod after another, each under its own name, from a ControllerRevision.

What they do was read in kube-controller-manager's pkg/controller/statefulset,
and seen on a real cluster (docs/dev/facts-kubernetes.md): a replaced pod that does not become ready stops
the rollout, and a rollback of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pretune.api.types import Object
from pretune.podspec.workloads import REVISION_LABEL

from tests.sim.cluster import copied
from tests.sim.ground import Move
from tests.sim.reading import label, leaving, owner, ready, ref, terminal
from tests.sim.workloads import APPS, Maker, hash_of, owned_by


class StatefulSets(Maker):
    """podManagementPolicy OrderedReady, updateStrategy RollingUpdate without a partition."""

    def moves(self) -> Iterator[Move]:
        for one in self.ground.stored(APPS, "StatefulSet"):
            if move := self._move(one):
                yield f"StatefulSet {one['metadata']['name']} {move[0]}", move[1]

    def _move(self, one: Object) -> Move | None:
        meta, template = one["metadata"], one["spec"]["template"]
        name = f"{meta['name']}-{hash_of(template)}"
        revisions = [
            found
            for found in self.ground.stored(APPS, "ControllerRevision")
            if owner(found) == meta["uid"]
        ]
        update = next((found for found in revisions if found["metadata"]["name"] == name), None)
        last = max((found["revision"] for found in revisions), default=0)
        if update is None:
            return "makes a revision", partial(self._make_revision, one, name, last + 1)
        if update["revision"] < last:
            return "goes back", partial(self.server.patch, ref(update), {"revision": last + 1})
        pods = {found["metadata"]["name"]: found for found in self._all(meta["uid"])}
        names = [f"{meta['name']}-{index}" for index in range(one["spec"]["replicas"])]
        before = [found for found in pods.values() if label(found, REVISION_LABEL) != name]
        for index, each in enumerate(names):
            pod = pods.get(each)
            if pod is None:
                found = update if index >= len(before) else self._revision(revisions, before)
                made = copied(found["data"]["spec"]["template"])
                labels = {REVISION_LABEL: found["metadata"]["name"]}
                return self.make(one, each, made, f"makes pod {each}", **labels)
            if terminal(pod) and not leaving(pod):
                return self.end(pod, "replaces pod")
            if leaving(pod) or not ready(pod):
                return None
        for each in sorted(set(pods) - set(names), reverse=True):
            return self.end(pods[each], "ends pod")
        for each in reversed(names):
            if label(pods[each], REVISION_LABEL) != name:
                return self.end(pods[each], "replaces pod")
        return None

    def _all(self, uid: str) -> list[Object]:
        return [one for one in self.ground.stored("v1", "Pod") if owner(one) == uid]

    def _revision(self, revisions: list[Object], pods: list[Object]) -> Object:
        names = {label(one, REVISION_LABEL) for one in pods}
        return next(one for one in revisions if one["metadata"]["name"] in names)

    def _make_revision(self, one: Object, name: str, number: int) -> None:
        self.server.create(
            {
                "apiVersion": APPS,
                "kind": "ControllerRevision",
                "metadata": {
                    "namespace": one["metadata"]["namespace"],
                    "name": name,
                    "ownerReferences": [owned_by(one)],
                },
                "data": {"spec": {"template": {**one["spec"]["template"], "$patch": "replace"}}},
                "revision": number,
            }
        )
