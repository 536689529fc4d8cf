"""Types that every layer shares: a Kubernetes object, and the key of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]  # a Kubernetes object, as plain as the API server sends it


@dataclass(frozen=True, order=True)
class Key:
    """A cache's name. It may have no cache any more: its claim still has to be looked after."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def folder(self) -> str:
        """The cache's folder on a claim."""
        return f"{self.namespace}.{self.name}"
