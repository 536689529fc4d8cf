"""Types that every layer shares: a Kubernetes object, and the key of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]  # a Kubernetes object, as parsed from the API server's JSON


@dataclass(frozen=True, order=True)
class Key:
    """The namespace and name of a cache, which may be deleted: its claim is still looked after."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def folder(self) -> str:
        """The name of the cache's folder on a claim."""
        return f"{self.namespace}.{self.name}"
