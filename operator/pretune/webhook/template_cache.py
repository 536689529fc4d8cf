"""The templates of pods that are being created, each read once.

A revision never changes, however many pods are created from it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.kube.types import ApiError, Cluster
from pretune.origin import read_origin
from pretune.podspec.workloads import TemplateRef, origin_of, template_version
from pretune.policy.model import Origin

READ_TIMEOUT_SECONDS = 1.5  # the API server waits for the webhook, and a person for the pod
# How long a template is remembered that may change: that of a Job (Kueue changes it), or of a
# ReplicaSet without a Deployment.
CHANGEABLE_SECONDS = 1.0
# JSON that is remembered: the pods of about 300 revisions. Parsed it takes five times as much.
MAX_JSON_CHARACTERS = 4 << 20

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SizedLRU(Generic[K, V]):
    """A mapping that drops its least recently used values once all of them are too large together.

    So no pods, however large, fill the webhook's memory.
    """

    def __init__(self, max_json_characters: int = MAX_JSON_CHARACTERS) -> None:
        self._max_size, self._size = max_json_characters, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value, and mark it as the most recently used; None if there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, sized_by: Object) -> None:
        """Remember the value. Its size is that of `sized_by` as JSON; too large alone, it is not
        remembered."""
        size = len(json.dumps(sized_by))
        self._size -= self._entries.pop(key, (value, 0))[1]
        if size > self._max_size:
            return
        self._entries[key] = value, size
        self._size += size
        while self._size > self._max_size:
            self._size -= self._entries.popitem(last=False)[1][1]


class TemplateCache:
    """Where pods come from, by the revision that they are created from.

    `clock` returns monotonic seconds.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._clock = cluster, clock
        # Each with the time until which it may be used.
        self._origins: SizedLRU[Hashable, tuple[Origin, float]] = SizedLRU()
        self._reads: dict[Hashable, asyncio.Task[Origin]] = {}

    async def find_origin(self, namespace: str, pod: Object) -> tuple[Origin, Hashable]:
        """Return the pod's origin, and the key of its revision; None where the template may change.

        What follows from the template may be remembered by that key. Pods of one revision that come
        at once share one read. Origin.template is Refused, with a message, where it could not be
        read, or not in time.
        """
        ref = origin_of(pod)
        if ref is None:
            return await read_origin(self._cluster, namespace, pod), None
        version = template_version(ref, pod)
        is_fixed = version is not None
        key = (namespace, ref.kind, ref.uid, ref.name, version)
        origin, usable_until = self._origins.get(key) or (None, 0.0)
        if origin is None or self._clock() >= usable_until:
            usable_seconds = float("inf") if is_fixed else CHANGEABLE_SECONDS
            origin = await self._read_once(key, namespace, pod, ref, usable_seconds)
        return origin, key if is_fixed else None

    async def _read_once(
        self, key: Hashable, namespace: str, pod: Object, ref: TemplateRef, usable_seconds: float
    ) -> Origin:
        """Read the origin and remember it, or wait for a read of it that is under way."""
        if key not in self._reads:

            async def read() -> Origin:
                try:
                    origin = await self._read(namespace, pod, ref)
                    if not isinstance(origin.template, Refused):
                        usable_until = self._clock() + usable_seconds
                        self._origins.put(key, (origin, usable_until), origin.template)
                    return origin
                finally:
                    del self._reads[key]

            self._reads[key] = asyncio.create_task(read())
        # Where one request gives up, another may still wait.
        return await asyncio.shield(self._reads[key])

    async def _read(self, namespace: str, pod: Object, ref: TemplateRef) -> Origin:
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                return await read_origin(self._cluster, namespace, pod)
        except (ApiError, OSError) as error:  # TimeoutError is an OSError
            cause = str(error) or f"no answer within {READ_TIMEOUT_SECONDS} s"
            message = f"{ref.kind} {namespace}/{ref.name}: {cause}"
            return Origin(ref.owner, ref.owner_name, Refused(reasons.SOURCE_NOT_FOUND, message))
