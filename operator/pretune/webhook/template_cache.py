"""The templates of pods that are being made, each read once: a revision never changes, however many pods are made of it."""

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
from pretune.podspec.workloads import TemplateRef, origin_of
from pretune.policy.model import Origin

TIMEOUT = 1.5  # seconds that a read may take: the API server waits for us, and a person for the pod
BRIEFLY = 1.0  # seconds that a template is believed which may be changed: a Job's (Kueue does), a ReplicaSet's without Deployment
MOST = (
    4 << 20
)  # characters of JSON that are remembered: the pods of some 300 revisions; parsed they take five times as much

# The Deployment controller's label: the ReplicaSet is one revision, and it will not change the template.
_HASH = "pod-template-hash"

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lately(Generic[K, V]):
    """A dict that forgets what was not asked for the longest, once its values are too large together: nobody's pods, however large
    they are, fill the webhook's memory."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: K, value: V, of: Object) -> None:
        """`of`: the plain data that makes up the value's size."""
        size = len(json.dumps(of))
        self._size -= self._kept.pop(key, (value, 0))[1]
        if size > self._most:
            return
        self._kept[key] = value, size
        self._size += size
        while self._size > self._most:
            self._size -= self._kept.popitem(last=False)[1][1]


class Revisions:
    """Where pods come from, by the revision that they are made of."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._clock = cluster, clock
        self._known: Lately[Hashable, tuple[Origin, float]] = Lately()  # until when it is believed
        self._reading: dict[Hashable, asyncio.Task[Origin]] = {}

    async def of(self, namespace: str, pod: Object) -> tuple[Origin, Hashable]:
        """The pod's origin (model.Origin), and a key by which what follows from its template may be remembered; None: by none.

        Its template is Refused, with a sentence, where it could not be read, or not in time. Pods of one revision that come at
        once share one read.
        """
        ref = origin_of(pod)
        if ref is None:
            return await read_origin(self._cluster, namespace, pod), None
        labels = pod["metadata"].get("labels") or {}
        fixed = ref.kind == "ControllerRevision" or (ref.kind == "ReplicaSet" and _HASH in labels)
        key = (namespace, ref.kind, ref.uid, ref.name, labels.get(_HASH))
        known, until = self._known.get(key) or (None, 0.0)
        if known is None or self._clock() >= until:
            known = await self._shared(key, namespace, pod, ref, float("inf") if fixed else BRIEFLY)
        return known, key if fixed else None

    async def _shared(
        self, key: Hashable, namespace: str, pod: Object, ref: TemplateRef, believed: float
    ) -> Origin:
        if key not in self._reading:

            async def read() -> Origin:
                try:
                    found = await self._read(namespace, pod, ref)
                    if not isinstance(found.template, Refused):
                        self._known.put(key, (found, self._clock() + believed), found.template)
                    return found
                finally:
                    del self._reading[key]

            self._reading[key] = asyncio.create_task(read())
        return await asyncio.shield(
            self._reading[key]
        )  # where one request gives up, another may still wait

    async def _read(self, namespace: str, pod: Object, ref: TemplateRef) -> Origin:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await read_origin(self._cluster, namespace, pod)
        except (ApiError, OSError) as error:  # TimeoutError is an OSError
            words = f"{ref.kind} {namespace}/{ref.name}: {str(error) or f'no answer within {TIMEOUT} s'}"
            return Origin(ref.owner, ref.owner_name, Refused(reasons.SOURCE_NOT_FOUND, words))
