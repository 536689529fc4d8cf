"""Many caches and consumers, each as one looks on the real cluster: one sample, copied under other names, statuses included."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pretune.kube.client import Kubernetes

from tests.cluster.kube import Object

AT_A_TIME = 32
SERVERS_OWN = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
)


@dataclass(frozen=True)
class Sample:
    """One namespace of the real cluster: a sealed cache, its claim and agent, its Deployment with ReplicaSet, one ready consumer."""

    cache: Object
    claim: Object
    agent: Object
    deployment: Object
    replicaset: Object
    pod: Object

    @property
    def namespace(self) -> str:
        return str(self.cache["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The same of cache and Deployment."""
        return str(self.cache["metadata"]["name"])


@dataclass(frozen=True)
class Crowd:
    """`caches` of them, `each` consumers of every one, ten caches in a namespace."""

    caches: int
    each: int
    first: int = 0  # the number of the first cache: a crowd can grow

    @property
    def namespaces(self) -> list[str]:
        return [f"n{number // 10}" for number in range(self.first, self.first + self.caches, 10)]


async def gather(cluster: Kubernetes, sample: Sample, crowd: Crowd) -> None:
    """Write all of it. A cache comes after everything that it owns or names, so that nobody finds it half there."""
    for namespace in crowd.namespaces:
        await cluster.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        )
        await cluster.create(_copy(sample, sample.agent, namespace, ""))
    await _all(
        lambda number: _cache(cluster, sample, crowd, number),
        range(crowd.first, crowd.first + crowd.caches),
    )


async def _all(work: Callable[[int], Awaitable[None]], numbers: range) -> None:
    left: Iterator[int] = iter(numbers)

    async def some() -> None:
        for number in left:
            await work(number)

    await asyncio.gather(*(some() for _ in range(AT_A_TIME)))


async def _cache(cluster: Kubernetes, sample: Sample, crowd: Crowd, number: int) -> None:
    namespace, name = f"n{number // 10}", f"c{number}"
    claim = await _made(cluster, _copy(sample, sample.claim, namespace, name))
    deployment = await _made(cluster, _copy(sample, sample.deployment, namespace, name))
    replicaset = await _made(
        cluster,
        _copy(
            sample, sample.replicaset, namespace, name, {_uid(sample.deployment): _uid(deployment)}
        ),
    )
    renamed = {_uid(sample.replicaset): _uid(replicaset)}
    for one in range(crowd.each):
        pod = _copy(sample, sample.pod, namespace, name, renamed)
        pod["metadata"]["name"] = f"{replicaset['metadata']['name']}-{one:04}"
        pod["status"]["podIP"] = "10.0.0.1"
        await _made(cluster, pod)
    await _made(
        cluster, _copy(sample, sample.cache, namespace, name, {_uid(sample.claim): _uid(claim)})
    )


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def _copy(
    sample: Sample, obj: Object, namespace: str, name: str, uids: dict[str, str] | None = None
) -> Object:
    """The object under other names, wherever they stand in it, without what only an API server writes."""
    text = json.dumps(obj)
    for old, new in itertools.chain((uids or {}).items(), [(sample.namespace, namespace)]):
        text = text.replace(old, new)
    if name:
        text = text.replace(sample.name, name)
    made: Object = json.loads(text)
    made["metadata"] = {key: one for key, one in made["metadata"].items() if key not in SERVERS_OWN}
    return made


async def _made(cluster: Kubernetes, obj: Object) -> Object:
    """Created, and its status written as it was."""
    made = await cluster.create(obj)
    if status := obj.get("status"):
        meta = {key: made["metadata"][key] for key in ("namespace", "name", "uid")}
        ref = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": meta}
        patch: dict[str, Any] = {"status": status}
        made = await cluster.patch(ref, patch, status=True)
    return made
