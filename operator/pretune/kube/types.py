"""What the rest needs of Kubernetes: the Cluster protocol, its errors, an Event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pretune.api.types import Object


@dataclass(frozen=True)
class Event:
    """One core/v1 Event on the cache."""

    reason: str
    message: str
    warning: bool = False


class ApiError(Exception):
    """The API server refused. `message` is its own sentence, from the Status it answers with."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message


class NoSuchKind(ApiError):
    """The cluster has no such apiVersion and kind."""

    def __init__(self, api_version: str, kind: str) -> None:
        super().__init__(404, "NoSuchKind", f"the cluster has no kind {kind} of {api_version}")


def whole(obj: Object) -> Object:
    """`keep` of a list that keeps everything."""
    return obj


def metadata(obj: Object) -> Object:
    """`keep` of a list that needs only metadata: the API server is asked for nothing else."""
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": obj["metadata"]}


class Cluster(Protocol):
    """What reconcile needs of a cluster. Every call raises ApiError, and OSError or TimeoutError when nobody answers."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """The object; None when it is not there, as none is whose name is "". Raises NoSuchKind. `namespace` is "" for what has none."""

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = whole,
    ) -> list[Object]:
        """All that match both selectors, read in pages of 500; each item is cut down by `keep` before the next page is read.

        Every item has its apiVersion and kind (which the API server leaves out of lists).
        """

    async def create(self, obj: Object) -> Object:
        """POST; the object as stored. ApiError 409 AlreadyExists, 422 Invalid, 403 Forbidden (quota, Pod Security, no right)."""

    async def apply(self, obj: Object) -> Object:
        """Server-side apply, forced, with the field manager `pretune`; the object as stored."""

    async def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
    ) -> Object:
        """Merge patch of `ref` (or its status), or a strategic one, which can remove one item of a list; the object as stored.

        `ref`'s metadata.uid and resourceVersion, where present, are preconditions: ApiError 409 when they no longer hold.
        """

    async def delete(self, ref: Object) -> None:
        """Delete, dependents in the background; 404 is no error. `ref`'s metadata.uid and resourceVersion, where present, are
        preconditions (409)."""

    async def event(self, cache: Object, event: Event) -> None:
        """A core/v1 Event on the cache; one said again while the API server keeps it (an hour) is counted there. Never raises."""
