"""Wakes caches when an object changes that they name in their spec: a workload, a claim of the user's.

Such objects have no label of ours, and to watch every Deployment of the cluster for the few that are named would cost memory and
rights. So each is watched alone, by name and metadata only, once, however many caches name it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple

from pretune.api import Object, Spec
from pretune.cluster import ApiError, NoSuchKind
from pretune.model import Key

log = logging.getLogger(__name__)

UNREADABLE = 30.0  # seconds between tries at what we may not read, or a kind that is not there
SHORTEST = 1.0  # seconds between two streams; doubled to UNREADABLE while they fail


class Named(NamedTuple):
    """An object that a cache names."""

    api_version: str
    kind: str
    namespace: str
    name: str


Watch = Callable[[str, str, str, str], AsyncIterator[tuple[str, Object]]]  # cluster.Kubernetes.watch


def named(cache: Object) -> frozenset[Named]:
    """The objects that an AutotuneCache names in its spec."""
    spec, namespace = Spec.of(cache), cache["metadata"]["namespace"]
    objects = set()
    if ref := spec.workload_ref:
        objects.add(Named(ref["apiVersion"], ref["kind"], namespace, ref["name"]))
    if spec.claim.existing:
        objects.add(Named("v1", "PersistentVolumeClaim", namespace, spec.claim.existing))
    return frozenset(objects)


class Watching:
    """One watch for each object that some key names; `wake` is called with every key that names it."""

    def __init__(self, watch: Watch, wake: Callable[[Key], None]) -> None:
        self._watch, self._wake = watch, wake
        self._keys: dict[Named, set[Key]] = {}
        self._tasks: dict[Named, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def follow(self, key: Key, objects: Iterable[Named]) -> None:
        """From now on `key` names these objects, and no others."""
        wanted = frozenset(objects)
        for one in wanted:
            self._keys.setdefault(one, set()).add(key)
        for one in [one for one, keys in self._keys.items() if key in keys and one not in wanted]:
            self._keys[one].discard(key)
            if not self._keys[one]:
                del self._keys[one]
        self._adjust()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._adjust()
            await asyncio.Event().wait()

    def _adjust(self) -> None:
        if self._group is None:
            return
        for one in self._tasks.keys() - self._keys.keys():
            self._tasks.pop(one).cancel()
        for one in self._keys.keys() - self._tasks.keys():
            self._tasks[one] = self._group.create_task(self._follow(one))

    async def _follow(self, one: Named) -> None:
        seen, pause = None, SHORTEST
        while True:
            try:
                async for change, obj in self._watch(*one):
                    pause = SHORTEST
                    state = _state(obj) if change != "DELETED" else None
                    if state != seen:
                        seen = state
                        for key in self._keys.get(one, ()):
                            self._wake(key)
            except NoSuchKind:
                pause = UNREADABLE
            except (ApiError, OSError, TimeoutError) as error:
                pause = UNREADABLE if isinstance(error, ApiError) and error.code == 403 else min(2 * pause, UNREADABLE)
                log.debug("%s %s/%s: the watch ended: %s", one.kind, one.namespace, one.name, error)
            await asyncio.sleep(pause)


def _state(obj: Object) -> tuple[str, str]:
    """What has to change before anybody cares: the spec, where the kind counts its changes, else anything."""
    meta = obj["metadata"]
    return meta["uid"], f"generation {meta['generation']}" if "generation" in meta else meta["resourceVersion"]
