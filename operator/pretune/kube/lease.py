"""Which replica works: a coordination.k8s.io Lease, held as client-go holds one.

`kubernetes.aio.leaderelection` was read and left: it goes on renewing when what it leads has died, never releases the lease, writes
local time as UTC, compares wall clocks, and waits up to five minutes for an answer. Here a lease is renewed only while the work moves,
is given back at the end, and its age is measured on our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pretune.api.types import Object
from pretune.kube.types import ApiError, Cluster

log = logging.getLogger(__name__)

NAME = "pretune-controller"
DURATION = 15  # seconds after which an unrenewed lease may be taken
RENEW = 5.0  # seconds between renewals
GIVE_UP = (
    10.0  # seconds without a renewal after which the holder stops: well before another may begin
)
RETRY = 2.0  # seconds between tries to take it, and the answer to one may take
API, KIND = "coordination.k8s.io/v1", "Lease"


class LostLeaseError(Exception):
    """Another replica may work now: this one has to stop at once."""


class Lease:
    """`acquire`, then `hold` beside the work, then `release`."""

    def __init__(self, cluster: Cluster, namespace: str, identity: str) -> None:
        self._cluster, self._namespace, self._identity = cluster, namespace, identity
        self._seen: object = None  # what another's lease said
        self._since = 0.0  # since when it has said that, on our clock
        self._ref: Object | None = None  # the lease as we wrote it last, while it is ours

    @property
    def ours(self) -> bool:
        """Whether we hold it, as far as we know."""
        return self._ref is not None

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        said = ""
        while True:
            try:
                async with asyncio.timeout(RENEW):
                    holder = await self._take()
                if holder == self._identity:
                    log.info("lease %s/%s is ours (%s)", self._namespace, NAME, self._identity)
                    return
                news = f"lease {self._namespace}/{NAME} is held by {holder}"
            except (ApiError, OSError, TimeoutError) as error:
                news = f"lease {self._namespace}/{NAME} cannot be taken: {error or type(error).__name__}"
            if news != said:
                log.info("%s; waiting", news)
                said = news
            await asyncio.sleep(RETRY)

    async def hold(self, moving: Callable[[], bool]) -> None:
        """Renew until cancelled, as long as `moving` says that the work does. Raises LostLeaseError."""
        clock = asyncio.get_running_loop().time
        renewed, pause = clock(), RENEW
        while True:
            await asyncio.sleep(pause)
            began, why = clock(), "the queue does not move"
            try:
                if moving():
                    async with asyncio.timeout(RETRY):
                        holder = await self._renew()
                    if holder != self._identity:
                        self._ref = None
                        raise LostLeaseError(
                            f"lease {self._namespace}/{NAME} was taken by {holder}"
                        )
                    renewed, pause = began, RENEW
                    continue
            except (ApiError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
            if clock() - renewed >= GIVE_UP:
                raise LostLeaseError(
                    f"lease {self._namespace}/{NAME} was not renewed for {GIVE_UP:.0f} s: {why}"
                )
            pause = 1.0

    async def release(self) -> None:
        """Give it back, if it is ours, so that another replica begins at once. Never raises."""
        if self._ref is None:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._write(self._ref, {"holderIdentity": None, "leaseDurationSeconds": 1})
        except (ApiError, OSError, TimeoutError) as error:
            log.info(
                "lease %s/%s was not given back: %s",
                self._namespace,
                NAME,
                error or type(error).__name__,
            )
        self._ref = None

    # --- inside: each says who holds it then

    async def _renew(self) -> str:
        assert self._ref is not None
        try:
            await self._write(self._ref, {})
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            return await self._take()  # written by somebody, perhaps by us: an answer may be lost
        return self._identity

    async def _take(self) -> str:
        found = await self._cluster.get(API, KIND, self._namespace, NAME)
        try:
            if found is None:
                self._ref = await self._cluster.create(self._new())
                return self._identity
            spec: Object = found.get("spec") or {}
            holder, clock = spec.get("holderIdentity") or "", asyncio.get_running_loop().time()
            if holder not in ("", self._identity):
                if spec != self._seen:
                    self._seen, self._since = spec, clock
                if clock - self._since < (spec.get("leaseDurationSeconds") or DURATION):
                    return str(holder)
            new: Object = {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION}
            if holder != self._identity:
                new |= {
                    "acquireTime": _now(),
                    "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1,
                }
            await self._write(found, new)
        except ApiError as error:
            if error.code != 409:
                raise
            return "another replica"
        return self._identity

    async def _write(self, lease: Object, spec: dict[str, Any]) -> None:
        meta = {name: lease["metadata"][name] for name in ("namespace", "name", "resourceVersion")}
        ref = {"apiVersion": API, "kind": KIND, "metadata": meta}
        self._ref = await self._cluster.patch(ref, {"spec": {"renewTime": _now(), **spec}})

    def _new(self) -> Object:
        times = {"acquireTime": _now(), "renewTime": _now(), "leaseDurationSeconds": DURATION}
        return {
            "apiVersion": API,
            "kind": KIND,
            "metadata": {"namespace": self._namespace, "name": NAME},
            "spec": {"holderIdentity": self._identity, "leaseTransitions": 0, **times},
        }


def _now() -> str:
    """A MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
