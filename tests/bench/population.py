"""Many caches and consumers: copies of one sample from the real cluster, statuses included."""

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
SERVER_FIELDS = (
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
    """The objects of one namespace: a sealed cache, claim, agent, Deployment, ReplicaSet, ready pod."""

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
        """The name of both the cache and the Deployment."""
        return str(self.cache["metadata"]["name"])


@dataclass(frozen=True)
class Population:
    """How many caches, and how many consumers for each; ten caches in a namespace."""

    caches: int
    each: int
    first: int = 0  # the number of the first cache: another population may be there already

    @property
    def namespaces(self) -> list[str]:
        return [f"n{number // 10}" for number in range(self.first, self.first + self.caches, 10)]


async def write_population(cluster: Kubernetes, sample: Sample, population: Population) -> None:
    """Write all of it. A cache is written after everything that it owns or names."""
    for namespace in population.namespaces:
        await cluster.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        )
        await cluster.create(_renamed(sample, sample.agent, namespace, ""))
    await for_each(
        lambda number: _write_cache(cluster, sample, population, number),
        range(population.first, population.first + population.caches),
    )


async def for_each(work: Callable[[int], Awaitable[None]], numbers: range) -> None:
    """Do the work of each number, AT_A_TIME of them at once."""
    left: Iterator[int] = iter(numbers)

    async def work_off() -> None:
        for number in left:
            await work(number)

    await asyncio.gather(*(work_off() for _ in range(AT_A_TIME)))


async def _write_cache(
    cluster: Kubernetes, sample: Sample, population: Population, number: int
) -> None:
    namespace, name = f"n{number // 10}", f"c{number}"
    claim = await create(cluster, _renamed(sample, sample.claim, namespace, name))
    deployment = await create(cluster, _renamed(sample, sample.deployment, namespace, name))
    replicaset = await create(
        cluster,
        _renamed(
            sample, sample.replicaset, namespace, name, {_uid(sample.deployment): _uid(deployment)}
        ),
    )
    renamed = {_uid(sample.replicaset): _uid(replicaset)}
    for index in range(population.each):
        pod = _renamed(sample, sample.pod, namespace, name, renamed)
        pod["metadata"]["name"] = f"{replicaset['metadata']['name']}-{index:04}"
        pod["status"]["podIP"] = "10.0.0.1"
        await create(cluster, pod)
    await create(
        cluster, _renamed(sample, sample.cache, namespace, name, {_uid(sample.claim): _uid(claim)})
    )


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def _renamed(
    sample: Sample, obj: Object, namespace: str, name: str, uids: dict[str, str] | None = None
) -> Object:
    """Return the object with other names and uids, without what only an API server writes."""
    text = json.dumps(obj)
    for old, new in itertools.chain((uids or {}).items(), [(sample.namespace, namespace)]):
        text = text.replace(old, new)
    if name:
        text = text.replace(sample.name, name)
    renamed: Object = json.loads(text)
    renamed["metadata"] = {
        key: value for key, value in renamed["metadata"].items() if key not in SERVER_FIELDS
    }
    return renamed


async def create(cluster: Kubernetes, obj: Object) -> Object:
    """Create the object, with its status; return it as stored."""
    stored = await cluster.create(obj)
    if status := obj.get("status"):
        meta = {key: stored["metadata"][key] for key in ("namespace", "name", "uid")}
        ref = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": meta}
        patch: dict[str, Any] = {"status": status}
        stored = await cluster.patch(ref, patch, status=True)
    return stored
