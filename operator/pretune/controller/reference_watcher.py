"""Wake a cache when an object changes that its spec names: a workload, or a claim of the user's.

These objects do not have our label, so each kind that a spec names is watched as a whole: metadata
only, and nothing is kept of objects that no spec names. One connection for each kind, since one of
asyncio's TLS takes some hundred KiB: one for each namespace is too many with a thousand namespaces
(docs/decisions/0012-one-watch-for-each-kind.md; `make bench ROWS=namespaces`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NamedTuple

from pretune.api.spec import Spec
from pretune.api.types import Key, Object
from pretune.kube.types import ALL_NAMESPACES, UNREADABLE_CODES, ApiError
from pretune.kube.watch import DELETED, ENDED, LISTED, Change, watch_with_backoff

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A kind of objects."""

    api_version: str
    name: str


class Reference(NamedTuple):
    """An object that a cache's spec names."""

    kind: Kind
    namespace: str
    name: str


Watch = Callable[[str, str, str], AsyncIterator[Change]]  # kube.client.Kubernetes.watch


def find_references(cache: Object) -> frozenset[Reference]:
    """Return the objects that an AutotuneCache names in its spec."""
    spec, namespace = Spec.from_cache(cache), cache["metadata"]["namespace"]
    references = set()
    if ref := spec.workload_ref:
        references.add(Reference(Kind(ref["apiVersion"], ref["kind"]), namespace, ref["name"]))
    if spec.claim.existing:
        kind = Kind("v1", "PersistentVolumeClaim")
        references.add(Reference(kind, namespace, spec.claim.existing))
    return frozenset(references)


class _KindRefusedError(Exception):
    """The API server refuses our watch of a kind."""


class ReferenceWatcher:
    """Calls `wake` with each key that names an object when that object comes, changes or goes.

    `namespaces`: the only ones in which objects are watched, each with a connection for each kind.

    Anybody may name a kind that does not exist. A watch that is refused is not tried again before
    the next reconcile of a cache that names the kind.
    """

    def __init__(
        self,
        watch: Watch,
        wake: Callable[[Key], None],
        namespaces: Sequence[str] = ALL_NAMESPACES,
    ) -> None:
        self._watch, self._wake, self._namespaces = watch, wake, namespaces
        self._references: dict[Key, frozenset[Reference]] = {}
        self._keys: dict[Kind, dict[Reference, set[Key]]] = {}  # the same, by kind and object
        # The state for which an object's keys were last woken; None: it does not exist.
        self._known: dict[Reference, tuple[str, str] | None] = {}
        self._streams: dict[tuple[Kind, str], asyncio.Task[None]] = {}  # by kind and namespace
        self._group: asyncio.TaskGroup | None = None

    def set_references(self, key: Key, references: Iterable[Reference]) -> None:
        """Watch these objects for a key from now on, and no others.

        Call it before the objects are read: what changes after that wakes the key.
        """
        before, after = self._references.pop(key, frozenset()), frozenset(references)
        if after:
            self._references[key] = after
        for added in after - before:
            self._keys.setdefault(added.kind, {}).setdefault(added, set()).add(key)
        for removed in before - after:
            keys = self._keys[removed.kind]
            keys[removed].discard(key)
            if not keys[removed]:
                del keys[removed]
                self._known.pop(removed, None)
            if not keys:
                del self._keys[removed.kind]
        for kind in {each.kind for each in before | after}:
            self._adjust_streams(kind)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for kind in list(self._keys):
                self._adjust_streams(kind)
            await asyncio.Event().wait()

    def _adjust_streams(self, kind: Kind) -> None:
        """Watch the kind while a spec names an object of it."""
        for place in [(kind, namespace) for namespace in self._namespaces]:
            if kind not in self._keys:
                if stream := self._streams.pop(place, None):
                    stream.cancel()
            elif self._group is not None and place not in self._streams:
                self._streams[place] = self._group.create_task(self._watch_kind(*place))

    async def _watch_kind(self, kind: Kind, namespace: str) -> None:
        what = f"{kind.name} of {kind.api_version} in {namespace or 'all namespaces'}"
        try:
            await self._follow(what, kind, namespace)
        except _KindRefusedError as refusal:
            log.debug("%s: not watched: %s", what, refusal)  # the cache's status says it
            if self._streams.get((kind, namespace)) is asyncio.current_task():
                del self._streams[kind, namespace]

    async def _follow(self, what: str, kind: Kind, namespace: str) -> None:
        async def open_watch() -> AsyncIterator[Change]:
            try:
                async for change in self._watch(*kind, namespace):
                    yield change
            except ApiError as error:
                if error.code in UNREADABLE_CODES:
                    raise _KindRefusedError(str(error)) from error
                raise

        listed: set[Reference] = set()
        async for change, obj in watch_with_backoff(what, open_watch):
            if change == ENDED:
                listed.clear()
            elif change == LISTED:
                named = self._keys.get(kind, {})
                for missing in [each for each in named if each not in listed]:
                    if namespace in ("", missing.namespace):
                        self._wake_if_changed(missing, None)
                listed.clear()
            else:
                meta = obj["metadata"]
                reference = Reference(kind, meta["namespace"], meta["name"])
                if reference in self._keys.get(kind, {}):
                    listed.add(reference)
                    self._wake_if_changed(reference, None if change == DELETED else _state_of(obj))

    def _wake_if_changed(self, reference: Reference, state: tuple[str, str] | None) -> None:
        """Wake the keys that name the object, if its state is not the last known one.

        They are also woken for the first state: it may be newer than what their reconcile read.
        """
        keys = self._keys.get(reference.kind, {}).get(reference)
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
