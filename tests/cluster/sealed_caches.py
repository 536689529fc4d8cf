"""Two caches with sealed bundles that all workers share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.workloads import PER_RANK, autotune_cache, bare_pod, replicaset, serving_template

TEMPLATES = {
    "managed": serving_template(cache="managed"),
    "ranks": serving_template(cache="ranks", **PER_RANK),
}


@dataclass(frozen=True)
class SealedCaches:
    """Cache `managed`: one file for each entry, mounted read-only. Cache `ranks`: one for each rank, copied."""

    namespace: str
    ids: dict[str, str]  # of the bundles, by cache
    owners: dict[str, str]  # uids of ReplicaSets without pods, by cache

    def pod(self, cache: str) -> Object:
        """Return a pod as the cache's ReplicaSet creates it: its template is read from there."""
        reference = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": cache,
            "uid": self.owners[cache],
        }
        pod = bare_pod(self.namespace, TEMPLATES[cache])
        pod["metadata"]["ownerReferences"] = [{**reference, "controller": True}]
        return pod


def seal(kube: Kube, namespace: str) -> dict[str, Any]:
    """Create the caches and ReplicaSets, and return the fields of SealedCaches."""
    for name, template in TEMPLATES.items():
        kube.create(autotune_cache(namespace, name, source={"template": template}))

    def is_ready(cache: Object) -> bool:
        return bool(condition(cache, "Ready").get("status") == "True")

    ids = {
        name: bundles(kube.wait_until("AutotuneCache", namespace, name, is_ready))[0]["id"]
        for name in TEMPLATES
    }
    sets = {
        name: kube.create(replicaset(namespace, template, name=name))
        for name, template in TEMPLATES.items()
    }
    return asdict(
        SealedCaches(
            namespace, ids, {name: created["metadata"]["uid"] for name, created in sets.items()}
        )
    )
