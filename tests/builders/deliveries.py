"""What the webhook knows of a pod that is being created: `NewPod().record("Tuning").answer()`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pretune.api.spec import Spec
from pretune.api.types import Key, Object
from pretune.manifests.delivery_modes import Delivery
from pretune.podspec import identity
from pretune.policy.model import Origin
from pretune.policy.pods.admission import find_need
from pretune.policy.pods.delivery import decide_delivery

from tests.builders.observed import WORKLOAD
from tests.builders.templates import engine

KEY, AGENT = Key("inference", "qwen3"), "pretune-agent-0"
READY = {
    "type": "StorageReady",
    "status": "True",
    "reason": "Bound",
    "message": "claim pretune-qwen3 is Bound",
}
OTHER = {
    "id": "0ther-default",
    "fingerprint": "0",
    "target": "default",
    "state": "Sealed",
    "serving": True,
    "servingWorkloads": [WORKLOAD],
}


class NewPod:
    """A cache whose older revision serves, and a ReplicaSet's pod whose bundle has no record: held.

    The controller is alive. Each method changes one thing.
    """

    def __init__(self) -> None:
        self.template: Any = engine(env=[{"name": "HF_HOME", "value": "/models"}])
        self.pod: Object | None = None
        self.owner, self.alive, self.workload = "ReplicaSet", True, WORKLOAD
        self.more: list[Object] = [dict(OTHER)]
        self.own: Object | None = None  # the record of the pod's bundle
        self.conditions: list[Object] = [dict(READY)]
        self.status: Object = {}  # more of it
        self.cache: Object | None = {
            "metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": "u", "generation": 3},
            "spec": {"storage": {"claim": {}}},
            "status": {"observedGeneration": 3},
        }

    def spec(self, **fields: Any) -> NewPod:
        assert self.cache
        self.cache["spec"].update(fields)
        return self

    def set(self, **fields: Any) -> NewPod:
        for name, value in fields.items():
            setattr(self, name, value)
        return self

    def record(
        self, state: str, reason: str = "Tuning", message: str = "since noon", **more: Any
    ) -> NewPod:
        self.own = {"state": state, "reason": reason, "message": message, "attempts": 1, **more}
        return self

    def sealed(self, layout: str = "Managed", **more: Any) -> NewPod:
        return self.record(
            "Sealed", "Sealed", "20 entries", layout=layout, **{"tunedSeconds": 300, **more}
        )

    def stalled(self, reason: str) -> NewPod:
        self.conditions.append(
            {
                "type": "Stalled",
                "status": "True",
                "reason": reason,
                "message": "env A keeps changing",
            }
        )
        return self

    def storage(self, status: str, reason: str, message: str) -> NewPod:
        self.conditions = [
            {"type": "StorageReady", "status": status, "reason": reason, "message": message}
        ]
        return self

    def cached(self, **meta: Any) -> NewPod:
        assert self.cache
        self.cache["metadata"].update(meta)
        return self

    def as_arrives(self, change: Callable[[Object], Any]) -> NewPod:
        """What admission, or the author of a bare pod, made of the template's pod."""
        self.pod = copy.deepcopy(dict(self.template))
        change(self.pod)
        return self

    def id(self) -> str:
        assert self.cache
        spec = Spec.from_cache(self.cache)
        target = identity.target_of(self.pod or self.template, spec)
        assert target
        return find_need(self.template, spec, target).bundle_id

    def seen(self) -> Object | None:
        """The cache with its status."""
        cache = copy.deepcopy(self.cache)
        if cache is not None:
            records = [*self.more]
            if self.own is not None:
                fingerprint = identity.fingerprint(
                    self.template, cache["spec"].get("engineContainer", "")
                )
                records.append(
                    {"id": self.id(), "fingerprint": fingerprint, "target": "default", **self.own}
                )
            cache["status"].update(bundles=records, conditions=self.conditions, **self.status)
        return cache

    def answer(self) -> Delivery:
        pod = copy.deepcopy(dict(self.pod or self.template))
        origin = Origin(self.owner, "a", self.template, workload_name=self.workload)
        return decide_delivery(KEY.namespace, self.seen(), pod, origin, self.alive, AGENT)
