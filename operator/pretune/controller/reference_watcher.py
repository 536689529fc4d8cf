"""Wake a cache when an object changes that its spec names: a workload, or a claim of the user's.

These objects do not have our label, and to watch every Deployment of the cluster for the few that
are named would cost too much. So they are watched by name, and only their metadata. Names of one
kind in one namespace share a watch of that namespace: each watch holds a connection, and a
connection of asyncio's TLS takes 350 KiB (200 caches with one each: 145 MiB instead of 75).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pretune.api.spec import Spec
from pretune.api.types import Key, Object
from pretune.kube.watch import DELETED, ENDED, LISTED, Change, watch_with_backoff


class Scope(NamedTuple):
    """One kind in one namespace."""

    api_version: str
    kind: str
    namespace: str


class Reference(NamedTuple):
    """An object that a cache's spec names."""

    scope: Scope
    name: str


Watch = Callable[[str, str, str, str], AsyncIterator[Change]]  # kube.client.Kubernetes.watch


def find_references(cache: Object) -> frozenset[Reference]:
    """Return the objects that an AutotuneCache names in its spec."""
    spec, namespace = Spec.from_cache(cache), cache["metadata"]["namespace"]
    references = set()
    if ref := spec.workload_ref:
        references.add(Reference(Scope(ref["apiVersion"], ref["kind"], namespace), ref["name"]))
    if spec.claim.existing:
        scope = Scope("v1", "PersistentVolumeClaim", namespace)
        references.add(Reference(scope, spec.claim.existing))
    return frozenset(references)


@dataclass
class _Stream:
    """The watch of a scope."""

    name: str  # of the only object that it watches; "": it watches all of the scope
    task: asyncio.Task[None]


class ReferenceWatcher:
    """Calls `wake` with each key that names an object when that object comes, changes or goes."""

    def __init__(self, watch: Watch, wake: Callable[[Key], None]) -> None:
        self._watch, self._wake = watch, wake
        self._references: dict[Key, frozenset[Reference]] = {}
        self._keys: dict[Scope, dict[str, set[Key]]] = {}  # the same, by scope and name
        # The state for which an object's keys were last woken; None: it does not exist.
        self._known: dict[Reference, tuple[str, str] | None] = {}
        self._streams: dict[Scope, _Stream] = {}
        self._group: asyncio.TaskGroup | None = None

    def set_references(self, key: Key, references: Iterable[Reference]) -> None:
        """Watch these objects for a key from now on, and no others."""
        before, after = self._references.pop(key, frozenset()), frozenset(references)
        if after:
            self._references[key] = after
        for added in after - before:
            self._keys.setdefault(added.scope, {}).setdefault(added.name, set()).add(key)
        for removed in before - after:
            keys = self._keys[removed.scope]
            keys[removed.name].discard(key)
            if not keys[removed.name]:
                del keys[removed.name]
                self._known.pop(removed, None)
        for scope in {changed.scope for changed in before ^ after}:
            self._adjust_stream(scope)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for scope in list(self._keys):
                self._adjust_stream(scope)
            await asyncio.Event().wait()

    def _adjust_stream(self, scope: Scope) -> None:
        """Open or close streams, so that the scope has the one that its names need.

        No name: no stream. One name: a stream of that object, or the scope's, if it is open
        already. Several: the scope's.
        """
        names, stream = self._keys[scope], self._streams.get(scope)
        if not names:
            del self._keys[scope]
        if self._group is None:
            return
        if names and stream is not None and (not stream.name or names.keys() == {stream.name}):
            return
        if stream is not None:
            self._streams.pop(scope).task.cancel()
        if names:
            name = next(iter(names)) if len(names) == 1 else ""
            task = self._group.create_task(self._watch_scope(scope, name))
            self._streams[scope] = _Stream(name, task)

    async def _watch_scope(self, scope: Scope, name: str) -> None:
        listed: set[str] = set()
        what = f"{scope.kind} in {scope.namespace}"
        async for change, obj in watch_with_backoff(what, lambda: self._watch(*scope, name)):
            if change == ENDED:
                listed.clear()
            elif change == LISTED:
                for missing in self._keys[scope].keys() - listed:
                    self._wake_if_changed(Reference(scope, missing), None)
            else:
                listed.add(obj["metadata"]["name"])
                state = _state_of(obj) if change != DELETED else None
                self._wake_if_changed(Reference(scope, obj["metadata"]["name"]), state)

    def _wake_if_changed(self, reference: Reference, state: tuple[str, str] | None) -> None:
        """Wake the keys that name the object, if its state is not the last known one.

        They are also woken for the first state: it may be newer than what their reconcile read.
        """
        keys = self._keys[reference.scope].get(reference.name)
        if keys and (reference not in self._known or self._known[reference] != state):
            self._known[reference] = state
            for key in keys:
                self._wake(key)


def _state_of(obj: Object) -> tuple[str, str]:
    """Return what changes when the object's spec does: uid and generation.

    Of a kind without generations (a claim) any change counts.
    """
    meta = obj["metadata"]
    if "generation" in meta:
        return meta["uid"], f"generation {meta['generation']}"
    return meta["uid"], meta["resourceVersion"]
