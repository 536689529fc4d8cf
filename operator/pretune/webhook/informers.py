"""What the webhook knows without asking: the caches, and whether the controller lives. Both come from watches.

While a watch is down the caches stay as they were seen last; but whoever cannot see the controller's lease being renewed holds nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from pretune.api.names import GROUP, KIND, VERSION
from pretune.api.types import Object
from pretune.kube import lease
from pretune.kube.client import Kubernetes
from pretune.kube.lease import LEASE_DURATION_SECONDS
from pretune.kube.types import keep_all
from pretune.kube.watch import DELETED, ENDED, LISTED, Change, watch_with_backoff

MAX_PAUSE_SECONDS = 10.0  # before a watch that failed is opened again: pods are admitted meanwhile


class Caches:
    """Every AutotuneCache, as last seen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._objects: dict[tuple[str, str], Object] = {}
        self._list: (
            dict[tuple[str, str], Object] | None
        ) = {}  # while what is there is told; None: what changes is
        self._down: float | None = None  # since when nothing is told, on our clock
        self.listed = False  # at least once

    def get(self, namespace: str, name: str) -> Object | None:
        return self._objects.get((namespace, name))

    def current(self) -> bool:
        """Whether what is known is at most 15 s old: a watch that ends is opened again at once, and that is not to end a hold."""
        return self.listed and (
            self._down is None or self._clock() - self._down < LEASE_DURATION_SECONDS
        )

    def tell(self, change: str, obj: Object) -> None:
        if change == ENDED:
            self._list = {}
            self._down = self._clock() if self._down is None else self._down
        elif change == LISTED:
            self._objects, self._list = self._list or {}, None
            self._down, self.listed = None, True
        else:
            place = obj["metadata"]["namespace"], obj["metadata"]["name"]
            known = self._objects if self._list is None else self._list
            if change == DELETED:
                known.pop(place, None)
            else:
                known[place] = obj


class Controller:
    """Whether the controller lives, by its lease: only a renewal that we saw happen counts, on our own monotonic clock, whatever
    times the lease itself says."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: Any = None  # the lease's words, as last seen
        self._renewed: float | None = None  # when it was last seen to be renewed
        self._open = False  # whether changes are told, rather than what is there
        self._there = False  # whether it was in the list that is being told
        self.listed = False  # at least once

    def alive(self) -> bool:
        return self._renewed is not None and self._clock() - self._renewed < LEASE_DURATION_SECONDS

    def tell(self, change: str, obj: Object) -> None:
        if change == ENDED:
            self._open = self._there = False
        elif change == LISTED:
            self._open = self.listed = True
            if not self._there:
                self._said = self._renewed = None
        elif change == DELETED:
            self._said = self._renewed = None
        else:
            spec = obj.get("spec") or {}
            said = spec.get("holderIdentity"), spec.get("renewTime")
            if not said[0]:
                self._renewed = None  # given back
            elif self._open and said != self._said:
                self._renewed = self._clock()
            self._said, self._there = said, True


def cut(cache: Object) -> Object:
    """What the webhook keeps of a cache: all but the record of who wrote which field, and the template, often the larger part."""
    meta = {name: one for name, one in cache["metadata"].items() if name != "managedFields"}
    spec = dict(cache.get("spec") or {})
    if "template" in (spec.get("source") or {}):
        spec["source"] = {}
    return {**cache, "metadata": meta, "spec": spec}


async def watch_caches(cluster: Kubernetes, caches: Caches) -> None:
    """Keep `caches` up to date, until cancelled."""

    def open_watch() -> AsyncIterator[Change]:
        return cluster.watch(f"{GROUP}/{VERSION}", KIND, "", project=cut)

    async for change, obj in watch_with_backoff("caches", open_watch, MAX_PAUSE_SECONDS):
        caches.tell(change, obj)


async def watch_controller(cluster: Kubernetes, namespace: str, controller: Controller) -> None:
    """Keep `controller` up to date, until cancelled.

    The lease is renewed every few seconds: when nothing comes for longer, either its watch is dead
    or its holder.
    """
    idle_seconds = LEASE_DURATION_SECONDS + lease.RENEW_INTERVAL_SECONDS

    def open_watch() -> AsyncIterator[Change]:
        return cluster.watch(
            lease.LEASE_API_VERSION,
            lease.LEASE_KIND,
            namespace,
            lease.LEASE_NAME,
            project=keep_all,
            idle_seconds=idle_seconds,
        )

    what = f"lease {namespace}/{lease.LEASE_NAME}"
    async for change, obj in watch_with_backoff(what, open_watch, MAX_PAUSE_SECONDS):
        controller.tell(change, obj)
