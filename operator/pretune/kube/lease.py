"""Which replica works: a coordination.k8s.io Lease, held as client-go holds one.

`kubernetes.aio.leaderelection` was read and not used: it goes on renewing when what it leads has
died, never releases the lease, writes local time as UTC, compares wall clocks, and waits up to five
minutes for an answer. Here a lease is renewed only while the work moves, is released at the end,
and its age is measured on our own monotonic clock.
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

LEASE_NAME = "pretune-controller"
LEASE_API_VERSION, LEASE_KIND = "coordination.k8s.io/v1", "Lease"
LEASE_DURATION_SECONDS = 15  # without a renewal after which another replica may take it
RENEW_INTERVAL_SECONDS = 5.0
# Without a renewal after which the holder stops: well before another may begin.
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0  # between tries to take it; also the time that an answer may take
RENEW_RETRY_SECONDS = 1.0  # after a renewal that failed
RELEASE_TIMEOUT_SECONDS = 1.0


class LostLeaseError(Exception):
    """Another replica may work now: this one has to stop at once."""


class Lease:
    """The controller's lease: `acquire`, then `keep_renewing` beside the work, then `release`."""

    def __init__(self, cluster: Cluster, namespace: str, identity: str) -> None:
        self._cluster, self._namespace, self._identity = cluster, namespace, identity
        self._observed: object = None  # another replica's lease, as last read
        self._observed_at = 0.0  # when it was first read like that, on our clock
        self._ref: Object | None = None  # the lease as we wrote it last, while it is ours

    @property
    def is_held(self) -> bool:
        """Whether this replica holds the lease, as far as it knows."""
        return self._ref is not None

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        logged = ""
        while True:
            try:
                async with asyncio.timeout(RENEW_INTERVAL_SECONDS):
                    holder = await self._take()
                if holder == self._identity:
                    log.info("%s was acquired (%s)", self._name, self._identity)
                    return
                message = f"{self._name} is held by {holder}"
            except (ApiError, OSError, TimeoutError) as error:
                message = f"{self._name} cannot be acquired: {error or type(error).__name__}"
            if message != logged:
                log.info("%s; waiting", message)
                logged = message
            await asyncio.sleep(RETRY_SECONDS)

    async def keep_renewing(self, is_moving: Callable[[], bool]) -> None:
        """Renew until cancelled, as long as `is_moving` answers that the work moves.

        Raises LostLeaseError.
        """
        clock = asyncio.get_running_loop().time
        renewed_at, pause = clock(), RENEW_INTERVAL_SECONDS
        while True:
            await asyncio.sleep(pause)
            tried_at, cause = clock(), "the queue does not move"
            try:
                if is_moving():
                    async with asyncio.timeout(RETRY_SECONDS):
                        holder = await self._renew()
                    if holder != self._identity:
                        self._ref = None
                        raise LostLeaseError(f"{self._name} was taken by {holder}")
                    renewed_at, pause = tried_at, RENEW_INTERVAL_SECONDS
                    continue
            except (ApiError, OSError, TimeoutError) as error:
                cause = str(error) or type(error).__name__
            if clock() - renewed_at >= RENEW_DEADLINE_SECONDS:
                deadline = f"{RENEW_DEADLINE_SECONDS:.0f} s"
                raise LostLeaseError(f"{self._name} was not renewed for {deadline}: {cause}")
            pause = RENEW_RETRY_SECONDS

    async def release(self) -> None:
        """Release the lease, if it is ours: another replica starts at once. Never raises."""
        if self._ref is None:
            return
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
                await self._write(self._ref, {"holderIdentity": None, "leaseDurationSeconds": 1})
        except (ApiError, OSError, TimeoutError) as error:
            log.info("%s was not released: %s", self._name, error or type(error).__name__)
        self._ref = None

    @property
    def _name(self) -> str:
        return f"lease {self._namespace}/{LEASE_NAME}"

    # --- each returns the identity of the holder afterwards

    async def _renew(self) -> str:
        assert self._ref is not None
        try:
            await self._write(self._ref, {})
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            return await self._take()  # written meanwhile, perhaps by us: an answer may be lost
        return self._identity

    async def _take(self) -> str:
        lease = await self._cluster.get(LEASE_API_VERSION, LEASE_KIND, self._namespace, LEASE_NAME)
        try:
            if lease is None:
                self._ref = await self._cluster.create(self._new_lease())
                return self._identity
            spec: Object = lease.get("spec") or {}
            holder, now = spec.get("holderIdentity") or "", asyncio.get_running_loop().time()
            if holder not in ("", self._identity):
                if spec != self._observed:
                    self._observed, self._observed_at = spec, now
                duration = spec.get("leaseDurationSeconds") or LEASE_DURATION_SECONDS
                if now - self._observed_at < duration:
                    return str(holder)
            changes: Object = {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_DURATION_SECONDS,
            }
            if holder != self._identity:
                changes["acquireTime"] = _format_micro_time()
                changes["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
            await self._write(lease, changes)
        except ApiError as error:
            if error.code != 409:
                raise
            return "another replica"
        return self._identity

    async def _write(self, lease: Object, spec: dict[str, Any]) -> None:
        metadata = {
            name: lease["metadata"][name] for name in ("namespace", "name", "resourceVersion")
        }
        ref = {"apiVersion": LEASE_API_VERSION, "kind": LEASE_KIND, "metadata": metadata}
        patch = {"spec": {"renewTime": _format_micro_time(), **spec}}
        self._ref = await self._cluster.patch(ref, patch)

    def _new_lease(self) -> Object:
        now = _format_micro_time()
        return {
            "apiVersion": LEASE_API_VERSION,
            "kind": LEASE_KIND,
            "metadata": {"namespace": self._namespace, "name": LEASE_NAME},
            "spec": {
                "holderIdentity": self._identity,
                "leaseTransitions": 0,
                "acquireTime": now,
                "renewTime": now,
                "leaseDurationSeconds": LEASE_DURATION_SECONDS,
            },
        }


def _format_micro_time() -> str:
    """Return the time now as a Kubernetes MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
