"""Two sealed bundles that all workers share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.workloads import PER_RANK, autotune_cache, bare, replicaset, serving

TEMPLATES = {"managed": serving(cache="managed"), "ranks": serving(cache="ranks", **PER_RANK)}


@dataclass(frozen=True)
class Sealed:
    """Cache `managed`: one file an entry, given read-only. Cache `ranks`: one file a rank, given as a copy."""

    namespace: str
    ids: dict[str, str]  # of the bundles, by cache
    owners: dict[str, str]  # uids of a ReplicaSet of each cache's name, without pods

    def pod(self, cache: str) -> Object:
        """As a ReplicaSet makes one: its template is read there, whatever admission does to the pod."""
        reference = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": cache,
            "uid": self.owners[cache],
        }
        pod = bare(self.namespace, TEMPLATES[cache])
        pod["metadata"]["ownerReferences"] = [{**reference, "controller": True}]
        return pod


def seal(kube: Kube, namespace: str) -> dict[str, Any]:
    """Make them there; the fields of Sealed."""
    for name, template in TEMPLATES.items():
        kube.create(autotune_cache(namespace, name, source={"template": template}))

    def sealed(cache: Object) -> bool:
        return bool(condition(cache, "Ready").get("status") == "True")

    ids = {
        name: bundles(kube.until("AutotuneCache", namespace, name, sealed))[0]["id"]
        for name in TEMPLATES
    }
    sets = {
        name: kube.create(replicaset(namespace, one, name=name)) for name, one in TEMPLATES.items()
    }
    return asdict(
        Sealed(namespace, ids, {name: one["metadata"]["uid"] for name, one in sets.items()})
    )
