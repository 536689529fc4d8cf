"""What the webhook knows without a request: every cache, and whether the controller is alive.

Both come from watches. While the watch of the caches is down, or a namespace may not be read, its
caches stay as they were last seen, for five minutes: a bundle that was retired meanwhile may be
pruned five minutes later. A webhook that does not see the controller renew its lease holds no pod.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence

from pretune.api.names import GROUP, KIND, VERSION
from pretune.api.types import Key, Object
from pretune.kube import lease
from pretune.kube.client import Kubernetes
from pretune.kube.lease import LEASE_DURATION_SECONDS
from pretune.kube.types import ALL_NAMESPACES, keep_all
from pretune.kube.watch import (
    DELETED,
    ENDED,
    LEFT_OUT,
    LISTED,
    Change,
    watch_namespaces,
    watch_with_backoff,
)
from pretune.policy.bundles.retention import RETIREMENT_SECONDS
from pretune.webhook.cache_store import MAX_NAMESPACE_BYTES, CacheStore

log = logging.getLogger(__name__)

KEPT_METADATA = (
    "namespace",
    "name",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
# While the watch of the caches is down: then no pod is given a bundle any more. A pod that is given
# one needs a moment until the controller sees it, and that the bundle is wanted again.
MAX_OUTAGE_SECONDS = RETIREMENT_SECONDS / 2
MAX_PAUSE_SECONDS = 10.0  # before a watch that failed is opened again: pods are admitted meanwhile


class CacheInformer:
    """Every AutotuneCache, as last seen. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._caches = CacheStore()
        # What the stream has listed so far; None once the list is complete and changes follow.
        self._listing: CacheStore | None = CacheStore()
        self._down_since: float | None = None  # None while the watch is open
        self._left_out: dict[str, float] = {}  # since when a namespace may not be read
        self._left_out_now: set[str] = set()  # those of the stream that is open
        self._reported: set[str] = set()  # namespaces of which the log says that they are too large
        self.has_synced = False  # the caches were listed at least once

    def get(self, namespace: str, name: str) -> Object | None:
        """Return the cache as last seen; None: there is none of this name."""
        return self._caches.get(Key(namespace, name))

    def is_too_large(self, namespace: str, name: str) -> bool:
        """Whether there is a cache of this name, of which nothing is known: see CacheStore."""
        return self._caches.is_too_large(Key(namespace, name))

    def is_current(self, namespace: str = "") -> bool:
        """Whether the caches of a namespace are known as they were at most 15 s ago.

        "": of those namespaces that may be read. A watch that ends is opened again at once: that
        alone must not end a hold.
        """
        return self.has_synced and self._unread_seconds(namespace) < LEASE_DURATION_SECONDS

    def is_outdated(self, namespace: str = "") -> bool:
        """Whether a bundle that was sealed when the caches were last seen may be gone."""
        return self._unread_seconds(namespace) >= MAX_OUTAGE_SECONDS

    def _unread_seconds(self, namespace: str) -> float:
        times = (self._down_since, self._left_out.get(namespace))
        now = self._clock()
        return now - min((since for since in times if since is not None), default=now)

    def on_event(self, change: str, cache: Object) -> None:
        """Take over one change of the watch (kube.watch); `cache` is {} with LISTED and ENDED."""
        if change == ENDED:
            self._listing, self._left_out_now = CacheStore(), set()
            if self._down_since is None:
                self._down_since = self._clock()
        elif change == LEFT_OUT:
            namespace = cache["metadata"]["namespace"]
            self._left_out_now.add(namespace)
            self._left_out.setdefault(namespace, self._clock())
        elif change == LISTED:
            listed = self._listing or CacheStore()
            self._left_out = {
                name: since for name, since in self._left_out.items() if name in self._left_out_now
            }
            for namespace in self._left_out:
                listed.copy_namespace(namespace, self._caches)
            self._caches, self._listing = listed, None
            self._down_since, self.has_synced = None, True
        else:
            caches = self._caches if self._listing is None else self._listing
            key = Key(cache["metadata"]["namespace"], cache["metadata"]["name"])
            if change == DELETED:
                caches.remove(key)
            else:
                caches.put(key, cache)
                if caches.is_too_large(key):
                    self._report_once(key)

    def _report_once(self, key: Key) -> None:
        if key.namespace in self._reported:
            return
        self._reported.add(key.namespace)
        log.warning(
            "the AutotuneCaches of namespace %s have more than %d MiB together: pods of %s and of"
            " further ones start without a bundle: delete those that are not used",
            *(key.namespace, MAX_NAMESPACE_BYTES >> 20, key.name),
        )


class LeaseMonitor:
    """Whether the controller is alive, by its lease.

    Only a renewal that this process saw happen counts, on its own clock (`clock` returns monotonic
    seconds), whatever times the lease itself holds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holder_and_time: tuple[str | None, str | None] | None = None  # as last seen
        self._renewed_at: float | None = None  # when a renewal was last seen
        self._is_watching = False  # the list is complete, and changes follow
        self._is_listed = False  # the lease was in the list that is being read
        self.has_synced = False  # the lease was listed at least once

    def is_alive(self) -> bool:
        """Whether the lease was renewed within the last 15 s."""
        return (
            self._renewed_at is not None
            and self._clock() - self._renewed_at < LEASE_DURATION_SECONDS
        )

    def on_event(self, change: str, lease: Object) -> None:
        """Take over one change of the watch (kube.watch); `lease` is {} with LISTED and ENDED."""
        if change == ENDED:
            self._is_watching = self._is_listed = False
        elif change == LISTED:
            self._is_watching = self.has_synced = True
            if not self._is_listed:
                self._holder_and_time = self._renewed_at = None
        elif change == DELETED:
            self._holder_and_time = self._renewed_at = None
        else:
            spec = lease.get("spec") or {}
            holder_and_time = spec.get("holderIdentity"), spec.get("renewTime")
            if not spec.get("holderIdentity"):
                self._renewed_at = None  # its holder has released it
            elif self._is_watching and holder_and_time != self._holder_and_time:
                self._renewed_at = self._clock()
            self._holder_and_time, self._is_listed = holder_and_time, True


def trim_cache(cache: Object) -> Object:
    """Return what the webhook keeps of a cache: what the decision about a pod depends on.

    Not its annotations and templates, which are the larger part of a cache.
    """
    meta = {name: cache["metadata"][name] for name in KEPT_METADATA if name in cache["metadata"]}
    spec = dict(cache.get("spec") or {})
    for part, field in (("source", "template"), ("tuning", "podTemplate")):
        if field in (spec.get(part) or {}):
            spec[part] = {name: value for name, value in spec[part].items() if name != field}
    return {**cache, "metadata": meta, "spec": spec}


async def watch_caches(
    cluster: Kubernetes, caches: CacheInformer, namespaces: Sequence[str] = ALL_NAMESPACES
) -> None:
    """Keep `caches` current, until cancelled."""

    def open_namespace(namespace: str) -> AsyncIterator[Change]:
        return cluster.watch(f"{GROUP}/{VERSION}", KIND, namespace, project=trim_cache)

    def open_watch() -> AsyncIterator[Change]:
        return watch_namespaces(open_namespace, namespaces)

    async for change, cache in watch_with_backoff("caches", open_watch, MAX_PAUSE_SECONDS):
        caches.on_event(change, cache)


async def watch_lease(cluster: Kubernetes, namespace: str, controller: LeaseMonitor) -> None:
    """Keep `controller` current, until cancelled; `namespace` is that of the lease.

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
        controller.on_event(change, obj)
