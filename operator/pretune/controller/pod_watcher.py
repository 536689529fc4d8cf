"""Wake a cache when a pod comes, changes or goes that names it in the label pretune.dev/cache.

Watched by label and metadata only, and not by kopf, which reads each pod whole and keeps a task and
a memory for it (docs/decisions/0008-pods-are-not-watched-by-kopf.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from pretune.api import delivery_reasons
from pretune.api.names import CACHE, DELIVERY, REASON, ROLE
from pretune.api.types import Key, Object
from pretune.kube.watch import ADDED, DELETED, ENDED, LISTED, Change, watch_with_backoff

log = logging.getLogger(__name__)

MAX_CONCURRENT_RELEASES = 16  # many pods may be deleted at once
MIN_RELEASE_RETRY_SECONDS = 1.0  # after the first failure, then doubled
MAX_RELEASE_RETRY_SECONDS = 30.0

ALL_PODS = ("", "")


class PodWatcher:
    """Calls `wake(key, urgent)` for the key that a pod's label names, when the pod comes, changes,
    names another cache, or goes.

    A new stream begins with every pod; a key is not woken again for a pod that has not changed.

    `on_orphan` is called with the namespace and name of a pod that may be held and that no key's
    reconcile finds any more, and with ("", "") for all pods that became such while nothing was
    watched. It is called again until it succeeds. The watch itself does not know which pods are
    held: it reads metadata only.
    """

    def __init__(
        self,
        watch: Callable[[], AsyncIterator[Change]],
        wake: Callable[[Key, bool], None],
        on_orphan: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._watch, self._wake, self._on_orphan = watch, wake, on_orphan
        self._releases: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_RELEASES)
        self._known: dict[str, tuple[Key, str]] = {}  # by uid: what the pod named, and its version
        self._keys: dict[Key, Key] = {}  # one object for each key, for the many pods of a cache

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_pods(group))

    async def _watch_pods(self, group: asyncio.TaskGroup) -> None:
        missing: set[str] = set()  # uids of the stream before that this one has not listed yet
        async for change, pod in watch_with_backoff("pods", self._watch):
            if change == ENDED:
                missing = set(self._known)
            elif change == LISTED:
                for uid in missing & self._known.keys():
                    self._wake_key(self._known.pop(uid)[0], urgent=False)
                missing = set()
                self._keys = {key: key for key, _ in self._known.values()}
                self._start_release(group, ALL_PODS)
            elif change == DELETED:
                self._remove(pod)
                if "deletionTimestamp" not in pod["metadata"]:  # perhaps it only lost its label
                    self._start_release(group, _name_of(pod))
            else:
                missing.discard(pod["metadata"]["uid"])
                self._update(pod, is_new=change == ADDED)
                if _is_orphan(pod):
                    self._start_release(group, _name_of(pod))

    def _update(self, pod: Object, is_new: bool) -> None:
        meta = pod["metadata"]
        key = Key(meta["namespace"], meta["labels"][CACHE])
        key = self._keys.setdefault(key, key)
        before, version = self._known.get(meta["uid"], (key, ""))
        if version == meta["resourceVersion"]:
            return
        self._known[meta["uid"]] = key, meta["resourceVersion"]
        if before != key:
            self._wake_key(before, urgent=False)
        self._wake_key(key, is_urgent(pod, is_new))

    def _remove(self, pod: Object) -> None:
        meta = pod["metadata"]
        key, _ = self._known.pop(meta["uid"], (None, ""))
        key = key or Key(meta["namespace"], meta["labels"][CACHE])
        self._wake_key(key, is_urgent(pod, is_new=False))

    def _wake_key(self, key: Key, urgent: bool) -> None:
        if key.name:  # a label's value may be empty: no cache has that name
            self._wake(key, urgent)

    # --- orphaned pods

    def _start_release(self, group: asyncio.TaskGroup, pod: tuple[str, str]) -> None:
        if running := self._releases.get(pod):
            running.cancel()  # it may have read the pod before this change
        task = self._releases[pod] = group.create_task(self._release_with_retries(pod))
        task.add_done_callback(lambda task: self._forget_release(task, pod))

    def _forget_release(self, task: asyncio.Task[None], pod: tuple[str, str]) -> None:
        if self._releases.get(pod) is task:
            del self._releases[pod]

    async def _release_with_retries(self, pod: tuple[str, str]) -> None:
        """Call on_orphan until it succeeds; for it, a pod that is gone is no error."""
        pause = MIN_RELEASE_RETRY_SECONDS
        while True:
            try:
                async with self._slots:
                    return await self._on_orphan(*pod)
            except Exception as error:
                what = "pods without a cache" if pod == ALL_PODS else f"pod {pod[0]}/{pod[1]}"
                log.warning(
                    "%s may still be held, tried again in %.0f s: %s",
                    *(what, pause, str(error) or type(error).__name__),
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RELEASE_RETRY_SECONDS)


def _name_of(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _is_orphan(pod: Object) -> bool:
    """Whether no key's reconcile finds a pod that has our label.

    Its label names no cache, or it is a consumer that somebody gave the label of a pod of ours.
    """
    meta = pod["metadata"]
    if not meta["labels"][CACHE]:
        return True
    return ROLE in meta["labels"] and DELIVERY in (meta.get("annotations") or {})


def is_urgent(pod: Object, is_new: bool) -> bool:
    """Whether pods may wait for what a change of this pod means.

    The end of an attempt ends a hold, and a new pod that is held may not have to wait.
    """
    meta = pod["metadata"]
    if ROLE in meta["labels"]:
        return True
    reason = str((meta.get("annotations") or {}).get(REASON, ""))
    return is_new and reason.startswith(f"{delivery_reasons.HELD}:")
