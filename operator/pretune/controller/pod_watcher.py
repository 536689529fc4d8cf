"""Wake a cache when a pod comes, changes or goes that names it in the label pretune.dev/cache.

Watched by label and metadata only, and not by kopf, which reads each pod whole and keeps a task and
a memory for it (docs/decisions/0008-pods-are-not-watched-by-kopf.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from pretune.api import delivery_reasons
from pretune.api.names import CACHE, DELIVERY, REASON, ROLE
from pretune.api.types import Key, Object
from pretune.kube.watch import ADDED, DELETED, ENDED, LEFT_OUT, LISTED, Change, watch_with_backoff

ALL_ORPHANS = Key("", "")  # pods of any namespace that no cache's reconcile finds


class PodWatcher:
    """Calls `wake(key, urgent)` for the key that a pod's label names, when the pod comes, changes,
    names another cache, or goes.

    A new stream begins with every pod; a key is not woken again for a pod that has not changed.

    The key without a name, of the pod's namespace, is woken for a pod that may be held and that no
    cache's reconcile finds any more; ALL_ORPHANS for all pods that became such while nothing was
    watched. The watch itself does not know which pods are held: it reads metadata only.
    """

    def __init__(
        self, watch: Callable[[], AsyncIterator[Change]], wake: Callable[[Key, bool], None]
    ) -> None:
        self._watch, self._wake = watch, wake
        self._known: dict[str, tuple[Key, str]] = {}  # by uid: what the pod named, and its version
        self._keys: dict[Key, Key] = {}  # one object for each key, for the many pods of a cache

    async def run(self) -> None:
        """Watch until cancelled."""
        missing: set[str] = set()  # uids of the stream before that this one has not listed yet
        async for change, pod in watch_with_backoff("pods", self._watch):
            if change == ENDED:
                missing = set(self._known)
            elif change == LISTED:
                for uid in missing & self._known.keys():
                    self._wake_key(self._known.pop(uid)[0], urgent=False)
                missing = set()
                self._keys = {key: key for key, _ in self._known.values()}
                self._wake(ALL_ORPHANS, True)
            elif change == LEFT_OUT:
                pass  # its pods count as gone: nothing can be done about them
            elif change == DELETED:
                self._remove(pod)
                if "deletionTimestamp" not in pod["metadata"]:  # perhaps it only lost its label
                    self._wake(Key(pod["metadata"]["namespace"], ""), True)
            else:
                missing.discard(pod["metadata"]["uid"])
                self._update(pod, is_new=change == ADDED)
                if _is_orphan(pod):
                    self._wake(Key(pod["metadata"]["namespace"], ""), True)

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
