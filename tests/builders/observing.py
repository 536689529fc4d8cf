"""What `observe` reads: objects on the simulator's API server, and one call of it."""

from __future__ import annotations

import asyncio
from typing import Any

from pretune.api import names
from pretune.api.types import Object
from pretune.controller.observe import observe
from pretune.kube.types import ApiError
from pretune.policy.model import Observed

from tests.builders.caches import cache
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.sim.cluster import Client, Clock, Server

NS = KEY.namespace
SECRET = "hf_secret"


class Forbidding(Client):
    """A client that may not read some kinds, and notes what its lists select by."""

    forbidden: tuple[str, ...] = ()

    async def list(self, api_version: str, kind: str, namespace: str, **how: Any) -> list[Object]:
        found = await super().list(api_version, kind, namespace, **how)
        self.calls[-1] = " ".join(
            [self.calls[-1], *(how[part] for part in ("labels", "fields") if how.get(part))]
        )
        return found

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind in self.forbidden:
            raise ApiError(
                403,
                "Forbidden",
                f'{kind.lower()}s "{name}" is forbidden: User "pretune" cannot get it',
            )
        return await super().get(api_version, kind, namespace, name)


def server(*objects: Object) -> Server:
    world = Server(Clock(NOW))
    for one in objects:
        status = one.get("status")
        made = world.create(one)
        if status:
            world.patch(made, {"status": status}, status=True)
    return world


def observe_now(
    world: Server, forbidden: tuple[str, ...] = (), now: float = NOW
) -> tuple[Observed, list[str]]:
    """Return what is observed, and the calls that it took."""
    client = Forbidding(world)
    client.forbidden = forbidden
    return asyncio.run(observe(KEY, client, SETTINGS, now)), client.calls


def workload(kind: str, spec: Object, api_version: str = "apps/v1") -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"namespace": NS, "name": "qwen3"},
        "spec": spec,
    }


def refers_to(kind: str, api_version: str = "apps/v1") -> Object:
    return cache(source={"workloadRef": {"apiVersion": api_version, "kind": kind, "name": "qwen3"}})


def pod(name: str, *, labels: Object | None = None, **spec: Any) -> Object:
    meta = {"namespace": NS, "name": name, "labels": labels or {}}
    containers = [{"name": "vllm", "image": "x", "env": [{"name": "TOKEN", "value": SECRET}]}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": containers, **spec},
    }


def labelled(name: str, the_cache: str) -> Object:
    return {"namespace": NS, "name": name, "labels": {names.CACHE: the_cache}}


def consumer(
    world: Server, name: str, owner: Object | None, status: Object | None = None, **meta: Any
) -> Object:
    if owner is not None:
        ref = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
        }
        meta["ownerReferences"] = [{**ref, "uid": owner["metadata"]["uid"], "controller": True}]
    spec = pod(name)["spec"]
    spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    made = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**labelled(name, KEY.name), **meta},
        "spec": spec,
    }
    made = world.create(made)
    return world.patch(made, {"status": status}, status=True) if status else made
