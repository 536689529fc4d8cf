"""The webhook's copies of AutotuneCaches, in bounded memory."""

from __future__ import annotations

import json
from collections import Counter

from pretune.api.types import Key, Object

# JSON of the caches of one namespace.
MAX_NAMESPACE_BYTES = 8 << 20


class CacheStore:
    """Caches by key, as JSON: parsed they take five times as much.

    Those of one namespace take at most MAX_NAMESPACE_BYTES, or it could fill the memory of all. Of
    one beyond that only the name is kept.
    """

    def __init__(self) -> None:
        self._json: dict[Key, bytes | None] = {}
        self._taken: Counter[str] = Counter()  # bytes, by namespace

    def get(self, key: Key) -> Object | None:
        """Return the cache; None: there is none of this name, or it is too large."""
        raw = self._json.get(key)
        return None if raw is None else json.loads(raw)

    def is_too_large(self, key: Key) -> bool:
        """Whether there is a cache of this name, of which nothing else is kept."""
        return key in self._json and self._json[key] is None

    def copy_namespace(self, namespace: str, other: CacheStore) -> None:
        """Take over the other's caches of a namespace, except those that are known here."""
        for key, raw in other._json.items():
            if key.namespace == namespace and key not in self._json:
                self._json[key] = raw
                self._taken[namespace] += len(raw or b"")

    def put(self, key: Key, cache: Object) -> None:
        """Keep the cache, or its name alone where the caches of its namespace are too large."""
        self.remove(key)
        raw = json.dumps(cache, separators=(",", ":")).encode()
        if self._taken[key.namespace] + len(raw) > MAX_NAMESPACE_BYTES:
            self._json[key] = None
        else:
            self._json[key] = raw
            self._taken[key.namespace] += len(raw)

    def remove(self, key: Key) -> None:
        """Forget the cache, if it is known."""
        self._taken[key.namespace] -= len(self._json.pop(key, None) or b"")
        if not self._taken[key.namespace]:
            del self._taken[key.namespace]
