"""Wakes caches when an object changes that they name in their spec: a workload, a claim of the user's.

Such objects have no label of ours, and to watch every Deployment of the cluster for the few that are named would be much for little.
So they are watched by name and metadata only. Names of one kind in one namespace share a watch of that namespace, since each watch
holds a connection, and a connection of asyncio's TLS 350 KiB (200 caches with one each: 145 MiB instead of 75).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pretune.api import Object, Spec
from pretune.cluster import ApiError, NoSuchKind
from pretune.model import Key

log = logging.getLogger(__name__)

UNREADABLE = 30.0  # seconds between tries at what we may not read, or a kind that is not there
SHORTEST = 1.0  # seconds between two streams; doubled to UNREADABLE while they fail


class Place(NamedTuple):
    """What one watch is about."""

    api_version: str
    kind: str
    namespace: str


class Named(NamedTuple):
    """An object that a cache names."""

    place: Place
    name: str


Watch = Callable[[str, str, str, str], AsyncIterator[tuple[str, Object]]]  # cluster.Kubernetes.watch


def named(cache: Object) -> frozenset[Named]:
    """The objects that an AutotuneCache names in its spec."""
    spec, namespace = Spec.of(cache), cache["metadata"]["namespace"]
    objects = set()
    if ref := spec.workload_ref:
        objects.add(Named(Place(ref["apiVersion"], ref["kind"], namespace), ref["name"]))
    if spec.claim.existing:
        objects.add(Named(Place("v1", "PersistentVolumeClaim", namespace), spec.claim.existing))
    return frozenset(objects)


@dataclass
class _Stream:
    """The watch of a place: of its only name, or of all of it."""

    only: str
    task: asyncio.Task[None]


class Watching:
    """`wake` is called with every key that names an object, when that object comes, changes or goes."""

    def __init__(self, watch: Watch, wake: Callable[[Key], None]) -> None:
        self._watch, self._wake = watch, wake
        self._named: dict[Key, frozenset[Named]] = {}
        self._keys: dict[Place, dict[str, set[Key]]] = {}  # the same by place and name
        self._told: dict[Named, object] = {}  # the state that its keys were last woken for
        self._streams: dict[Place, _Stream] = {}
        self._group: asyncio.TaskGroup | None = None

    def follow(self, key: Key, objects: Iterable[Named]) -> None:
        """From now on `key` names these objects, and no others."""
        before, after = self._named.pop(key, frozenset()), frozenset(objects)
        if after:
            self._named[key] = after
        for one in after - before:
            self._keys.setdefault(one.place, {}).setdefault(one.name, set()).add(key)
        for one in before - after:
            self._keys[one.place][one.name].discard(key)
            if not self._keys[one.place][one.name]:
                del self._keys[one.place][one.name]
                self._told.pop(one, None)
        for place in {one.place for one in before ^ after}:
            self._adjust(place)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for place in list(self._keys):
                self._adjust(place)
            await asyncio.Event().wait()

    def _adjust(self, place: Place) -> None:
        """Have the stream that the names need: none, the only name's, or the namespace's, which serves a single name as well."""
        names, stream = self._keys[place], self._streams.get(place)
        if not names:
            del self._keys[place]
        if self._group is None or (names and stream is not None and (not stream.only or names.keys() == {stream.only})):
            return
        if stream is not None:
            self._streams.pop(place).task.cancel()
        if names:
            only = next(iter(names)) if len(names) == 1 else ""
            self._streams[place] = _Stream(only, self._group.create_task(self._follow(place, only)))

    async def _follow(self, place: Place, only: str) -> None:
        pause = SHORTEST
        while True:
            found: set[str] = set()
            try:
                async for change, obj in self._watch(*place, only):
                    pause = SHORTEST
                    if change == "LISTED":
                        for name in self._keys[place].keys() - found:
                            self._tell(Named(place, name), None)
                    else:
                        found.add(obj["metadata"]["name"])
                        self._tell(Named(place, obj["metadata"]["name"]), _state(obj) if change != "DELETED" else None)
            except NoSuchKind:
                pause = UNREADABLE
            except (ApiError, OSError, TimeoutError, ValueError) as error:  # ValueError: a line was cut off
                pause = UNREADABLE if isinstance(error, ApiError) and error.code == 403 else min(2 * pause, UNREADABLE)
                log.debug("%s in %s: the watch ended: %s", place.kind, place.namespace, error)
            await asyncio.sleep(pause)

    def _tell(self, one: Named, state: object) -> None:
        """Wake whoever names it, if its state is news; the first one is, since it may have changed since the cache was looked at."""
        keys = self._keys[one.place].get(one.name)
        if keys and (one not in self._told or self._told[one] != state):
            self._told[one] = state
            for key in keys:
                self._wake(key)


def _state(obj: Object) -> tuple[str, str]:
    """What has to change before anybody cares: the spec, where the kind counts its changes, else anything."""
    meta = obj["metadata"]
    return meta["uid"], f"generation {meta['generation']}" if "generation" in meta else meta["resourceVersion"]
