"""What the rest needs of Kubernetes: the Cluster protocol, its errors, an Event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pretune.api.advice import Advice
from pretune.api.reasons import Reason
from pretune.api.types import Object


@dataclass(frozen=True)
class Event:
    """One core/v1 Event on the cache."""

    reason: Reason | Advice
    message: str
    warning: bool = False


class ApiError(Exception):
    """The API server refused. `message` is its own sentence, from the Status it answers with."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message


# HTTP codes with which the API server refuses an object itself: text for a condition, and no error
# of ours. With 500 it reports that an admission webhook failed.
REFUSAL_CODES = (400, 403, 422, 500)

# With which it answers a read: there is no right to it, or it does not exist.
UNREADABLE_CODES = (403, 404)


class NoSuchKind(ApiError):
    """The cluster has no such apiVersion and kind."""

    def __init__(self, api_version: str, kind: str) -> None:
        super().__init__(404, "NoSuchKind", f"the cluster has no kind {kind} of {api_version}")


def keep_all(obj: Object) -> Object:
    """Return the whole object: `project` of a list that keeps everything."""
    return obj


def metadata_only(obj: Object) -> Object:
    """Return only an object's metadata: as `project`, the API server is asked for nothing else."""
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": obj["metadata"]}


ALL_NAMESPACES = ("",)  # where namespaces are listed: one list or watch of the whole cluster


class Cluster(Protocol):
    """What reconcile needs of a cluster.

    Every call raises ApiError, and OSError or TimeoutError when the API server does not answer.
    """

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """Return the object, or None when it does not exist; no object has the name "".

        `namespace` is "" for kinds without one. Raises NoSuchKind.
        """

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        project: Callable[[Object], Object] = keep_all,
    ) -> list[Object]:
        """Return every object that matches both selectors, with its apiVersion and kind.

        Read in pages of a few MiB. `project` cuts each object down to what is kept of it, before
        the next page is read.
        """

    async def create(self, obj: Object) -> Object:
        """Create the object, and return it as stored.

        ApiError 409 AlreadyExists, 422 Invalid, 403 Forbidden (quota, Pod Security, no right).
        """

    async def apply(self, obj: Object) -> Object:
        """Apply on the server, forced, as field manager `pretune`; return the object as stored."""

    async def patch(
        self,
        ref: Object,
        patch: Mapping[str, Any],
        *,
        status: bool = False,
        strategic: bool = False,
    ) -> Object:
        """Merge a patch into `ref` or its status, and return the object as stored.

        `strategic`: as a strategic merge patch, which can remove one item of a list. `ref`'s
        metadata.uid and resourceVersion, where present, are preconditions: ApiError 409 when they
        do not hold any more.
        """

    async def delete(self, ref: Object) -> None:
        """Delete an object, its dependents in the background; an object that is gone is no error.

        `ref`'s metadata.uid and resourceVersion, where present, are preconditions (ApiError 409).
        """

    async def record_event(self, cache: Object, event: Event) -> None:
        """Write a core/v1 Event on the cache. Never raises.

        An event that is repeated while the API server keeps the first one (an hour) is counted
        there.
        """
