"""Wakes caches when an object changes that they name in their spec (a workload, a claim of the user's), or a pod that names them.

The former have no label of ours, and to watch every Deployment of the cluster for the few that are named would be much for little.
So they are watched by name and metadata only. Names of one kind in one namespace share a watch of that namespace, since each watch
holds a connection, and a connection of asyncio's TLS 350 KiB (200 caches with one each: 145 MiB instead of 75).

Pods are watched by our label, metadata only too, and not by kopf, which reads each whole and keeps a task and a memory for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pretune.api.names import CACHE, DELIVERY, REASON, ROLE
from pretune.api.spec import Spec
from pretune.api.types import Key, Object
from pretune.kube import watch
from pretune.kube.watch import Change, watch_with_backoff

log = logging.getLogger(__name__)

UNREADABLE = 30.0  # seconds between tries at what we may not read, or a kind that is not there
SHORTEST = 1.0  # seconds between two streams; doubled to UNREADABLE while they fail
FREED = 16  # tries at a time to free a pod: many may be deleted at once


class Place(NamedTuple):
    """What one watch is about."""

    api_version: str
    kind: str
    namespace: str


class Named(NamedTuple):
    """An object that a cache names."""

    place: Place
    name: str


Watch = Callable[[str, str, str, str], AsyncIterator[Change]]  # cluster.Kubernetes.watch


def named(cache: Object) -> frozenset[Named]:
    """The objects that an AutotuneCache names in its spec."""
    spec, namespace = Spec.from_cache(cache), cache["metadata"]["namespace"]
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
        if self._group is None or (
            names and stream is not None and (not stream.only or names.keys() == {stream.only})
        ):
            return
        if stream is not None:
            self._streams.pop(place).task.cancel()
        if names:
            only = next(iter(names)) if len(names) == 1 else ""
            self._streams[place] = _Stream(only, self._group.create_task(self._follow(place, only)))

    async def _follow(self, place: Place, only: str) -> None:
        found: set[str] = set()
        what = f"{place.kind} in {place.namespace}"
        async for change, obj in watch_with_backoff(what, lambda: self._watch(*place, only)):
            match change:
                case watch.ENDED:
                    found.clear()
                case watch.LISTED:
                    for name in self._keys[place].keys() - found:
                        self._tell(Named(place, name), None)
                case _:
                    found.add(obj["metadata"]["name"])
                    self._tell(
                        Named(place, obj["metadata"]["name"]),
                        _state(obj) if change != watch.DELETED else None,
                    )

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
    return meta["uid"], f"generation {meta['generation']}" if "generation" in meta else meta[
        "resourceVersion"
    ]


class Pods:
    """`wake` is called with the key that a pod's label names, when the pod comes, changes, names another one or goes.

    A key is not woken again for what a new stream tells of a pod that has not changed: it begins with all of them.

    `free` is called with the namespace and name of a pod that may be behind our gate and that no key's look finds any more, and with
    ("", "") for all that became one while nobody watched; again and again until it succeeds. The watch cannot tell: it knows no gates.
    """

    def __init__(
        self,
        watch: Callable[[], AsyncIterator[Change]],
        wake: Callable[[Key, bool], None],
        free: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._watch, self._wake, self._free = watch, wake, free
        self._freeing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._at_a_time = asyncio.Semaphore(FREED)
        self._told: dict[str, tuple[Key, str]] = {}  # by uid: what the pod named, and its version
        self._keys: dict[Key, Key] = {}  # each once, for the many pods of a cache

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(group))

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        missed: set[str] = (
            set()
        )  # that were there in the stream before, and are not told of by this one's list
        async for change, pod in watch_with_backoff("pods", self._watch):
            match change:
                case watch.ENDED:
                    missed = set(self._told)
                case watch.LISTED:
                    for uid in missed & self._told.keys():
                        self._wake_named(self._told.pop(uid)[0], False)
                    missed = set()
                    self._keys = {key: key for key, _ in self._told.values()}
                    self._try_to_free(group, "", "")
                case watch.DELETED:
                    self._gone(pod)
                    if (
                        "deletionTimestamp" not in pod["metadata"]
                    ):  # it may have lost its label alone
                        self._try_to_free(
                            group, pod["metadata"]["namespace"], pod["metadata"]["name"]
                        )
                case _:
                    missed.discard(pod["metadata"]["uid"])
                    self._there(pod, change == watch.ADDED)
                    if _is_lost(pod):
                        self._try_to_free(
                            group, pod["metadata"]["namespace"], pod["metadata"]["name"]
                        )

    def _try_to_free(self, group: asyncio.TaskGroup, *pod: str) -> None:
        if before := self._freeing.get((pod[0], pod[1])):
            before.cancel()  # it may have looked before this news
        task = self._freeing[pod[0], pod[1]] = group.create_task(self._freed(*pod))
        task.add_done_callback(lambda task: self._forget(task, *pod))

    def _forget(self, task: asyncio.Task[None], *pod: str) -> None:
        if self._freeing.get((pod[0], pod[1])) is task:
            del self._freeing[pod[0], pod[1]]

    async def _freed(self, namespace: str, name: str) -> None:
        """Frees it, or them: whatever is wrong may be right later, and a pod that is gone is no error."""
        pause = SHORTEST
        while True:
            try:
                async with self._at_a_time:
                    return await self._free(namespace, name)
            except Exception as error:
                what = f"pod {namespace}/{name}" if name else "pods without a cache"
                said = str(error) or type(error).__name__
                log.warning("%s may still be held, tried again in %.0f s: %s", what, pause, said)
            await asyncio.sleep(pause)
            pause = min(2 * pause, UNREADABLE)

    def _there(self, pod: Object, new: bool) -> None:
        meta = pod["metadata"]
        key = Key(meta["namespace"], meta["labels"][CACHE])
        key = self._keys.setdefault(key, key)
        before, version = self._told.get(meta["uid"], (key, ""))
        if version == meta["resourceVersion"]:
            return
        self._told[meta["uid"]] = key, meta["resourceVersion"]
        if before != key:
            self._wake_named(before, False)
        self._wake_named(key, waited_for(pod, new))

    def _gone(self, pod: Object) -> None:
        meta = pod["metadata"]
        before, _ = self._told.pop(meta["uid"], (None, ""))
        self._wake_named(
            before or Key(meta["namespace"], meta["labels"][CACHE]), waited_for(pod, False)
        )

    def _wake_named(self, key: Key, urgent: bool) -> None:
        if key.name:  # a label's value may be empty: no cache has that name
            self._wake(key, urgent)


def _is_lost(pod: Object) -> bool:
    """Whether a pod that is in the stream names no cache, or is a consumer that somebody gave a part's label."""
    meta = pod["metadata"]
    return not meta["labels"][CACHE] or (
        ROLE in meta["labels"] and DELIVERY in (meta.get("annotations") or {})
    )


def waited_for(pod: Object, new: bool) -> bool:
    """Whether others wait for what a pod's news may mean: an attempt's ends a hold, and a new pod that is held may not have to wait."""
    meta = pod["metadata"]
    return ROLE in meta["labels"] or (
        new and str((meta.get("annotations") or {}).get(REASON, "")).startswith("Held:")
    )
