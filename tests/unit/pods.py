"""Consumers as observe cuts them down, and what they were made from: a test shows only what matters to it."""

from __future__ import annotations

import copy
from typing import Any

from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, Target
from pretune.api.timestamps import format_timestamp
from pretune.podspec import identity
from pretune.podspec.workloads import origin_key
from pretune.policy.model import Origin
from pretune.protocol import Report

from tests.unit.objects import ENGINE, KEY, NOW, Object, cache, template


class Consumer:
    """A serving pod of one ReplicaSet: `Consumer("a").held()`, `.runs()`, `.ready()`, `.seeded()`."""

    def __init__(
        self, owner: str = "a", number: int = 1, age: float = 60, kind: str = "ReplicaSet"
    ) -> None:
        name = f"{owner}-{number}"
        self.object: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": KEY.namespace,
                "name": name,
                "uid": f"uid-{name}",
                "creationTimestamp": format_timestamp(NOW - age),
                "labels": {names.CACHE: KEY.name, "pod-template-hash": owner},
                "annotations": {},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": f"uid-{owner}", "controller": True}],
            },
            "spec": {},
            "status": {"phase": "Pending", "conditions": [], "initContainerStatuses": [], "containerStatuses": []},
        }  # fmt: skip

    def _but(self, **parts: Any) -> Consumer:
        other = copy.deepcopy(self)
        for part, more in parts.items():
            other.object[part].update(more)
        return other

    def meta(self, **more: Any) -> Consumer:
        return self._but(metadata=more)

    def given(self, bundle: str, mode: str = "Overlay") -> Consumer:
        return self.meta(annotations={names.BUNDLE: bundle, names.DELIVERY: mode})

    def noted(self, **annotations: str) -> Consumer:
        return self.meta(annotations={**self.object["metadata"]["annotations"], **annotations})

    def held(self, *others: str) -> Consumer:
        return self._but(spec={"schedulingGates": [{"name": one} for one in (*others, names.HOLD)]})

    def runs(self, image: str = "", **state: Any) -> Consumer:
        """Its engine has started."""
        status = {
            "name": ENGINE,
            "imageID": image,
            "state": state or {"running": {"startedAt": format_timestamp(NOW - 30)}},
        }
        return self._but(
            spec={"nodeName": "node0"}, status={"phase": "Running", "containerStatuses": [status]}
        )

    def ready(self, status: str = "True", since: float = NOW - 30) -> Consumer:
        one = {"type": "Ready", "status": status, "lastTransitionTime": format_timestamp(since)}
        return self.runs()._but(status={"conditions": [one]})

    def seeded(self, reason: str = "Seeded") -> Consumer:
        end = {"exitCode": 0, "message": Report("seed", reason).dump()}
        one = {"name": names.SEED_CONTAINER, "state": {"terminated": end}}
        return self._but(status={"initContainerStatuses": [one]})

    def but(self, **status: Any) -> Consumer:
        return self._but(status=status)


def origin(
    owner: str = "a",
    revision: int = 1,
    of: Object | Refused | None = None,
    made: float = NOW - 120,
    workload: Object | None = None,
) -> dict[str, Origin]:
    """Origins of a ReplicaSet's pods; unless said otherwise its engine has the image `vllm:<owner>`."""
    written = template(image=f"vllm:{owner}") if of is None else of
    key = origin_key(Consumer(owner).object)
    return {key: Origin("ReplicaSet", owner, written, (revision, format_timestamp(made)), workload)}


def bundle_of(
    owner: str = "a", the_cache: Object | None = None, target: Target | None = None
) -> str:
    """The id of the bundle that an origin's pods need."""
    spec = Spec.from_cache(the_cache or cache())
    return identity.inputs(
        template(image=f"vllm:{owner}"), spec, target or spec.targets[0]
    ).bundle_id()


def fingerprint_of(owner: str = "a") -> str:
    return identity.fingerprint(template(image=f"vllm:{owner}"), "")
