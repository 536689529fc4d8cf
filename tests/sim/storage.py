"""Claims: the provisioner that binds them, the protection that keeps them while pods use them, and what is on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pretune.api.types import Object
from pretune.protocol import Inputs, Report, Versions, Writer

from tests.sim.reading import claims, leaving, ref

if TYPE_CHECKING:
    from tests.sim.ground import Ground, Move

VERSIONS = Versions(vllm="0.33.0", flashinfer="0.7.2.post1", cuda="13.0", gpu="NVIDIA B200")


@dataclass(frozen=True)
class Bundle:
    """One sealed bundle: immutable, and told from every other one by its digest."""

    id: str
    inputs: Inputs
    digest: str
    layout: str
    entries: int
    message: str
    at: str
    seconds: int
    versions: Versions = VERSIONS

    def report(self, by: str, reason: str = "", proven: bool = False) -> Report:
        return Report(
            by=by,
            reason=reason or ("NothingToTune" if self.layout == "Empty" else "Sealed"),
            message=self.message,
            id=self.id,
            layout=self.layout,
            entries=self.entries,
            digest=self.digest,
            versions=self.versions,
            writer=Writer(1000, 1000, [1000]),
            seconds=self.seconds,
            at=self.at,
            fingerprint=self.inputs.fingerprint,
            proven=proven,
        )


@dataclass
class Volume:
    """What a bound claim holds: (the cache's folder, id) -> bundle."""

    bundles: dict[tuple[str, str], Bundle] = field(default_factory=dict)
    proofs: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # of a bundle: the digest that was proven
    torn: set[tuple[str, str]] = field(default_factory=set)  # of which a byte was flipped

    def proven(self, place: tuple[str, str]) -> bool:
        """Whether the proof of the very bundle that lies there is on the claim."""
        return place in self.bundles and self.proofs.get(place) == self.bundles[place].digest


class Storage:
    """Whether a pod protects the claim. An unscheduled pod, gated or not, does not; an ended one that was scheduled does.

    Seen on a real cluster: docs/dev/facts-kubernetes.md.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def moves(self) -> Iterator[Move]:
        for claim in self.ground.stored("v1", "PersistentVolumeClaim"):
            name = claim["metadata"]["name"]
            if leaving(claim):
                if not self._scheduled_users(claim):
                    yield f"claim {name} is gone", partial(self._drop, claim)
            elif self.ground.provisioner and self._binds(claim):
                yield f"claim {name} is bound", partial(self._bind, claim)

    def timers(self) -> Iterator[float]:
        return iter(())

    def _binds(self, claim: Object) -> bool:
        waits = binding_mode(self.ground, claim) == "WaitForFirstConsumer"
        return claim["status"]["phase"] == "Pending" and (not waits or self._scheduled_users(claim))

    def _scheduled_users(self, claim: Object) -> bool:
        meta = claim["metadata"]
        pods = self.ground.server.matching("v1", "Pod", meta["namespace"], "", "")
        return any(pod["spec"].get("nodeName") and meta["name"] in claims(pod) for pod in pods)

    def _bind(self, claim: Object) -> None:
        uid = claim["metadata"]["uid"]
        self.ground.volumes.setdefault(uid, Volume())
        self.ground.server.patch(ref(claim), {"spec": {"volumeName": f"pv-{uid}"}})
        self.ground.server.patch(ref(claim), {"status": {"phase": "Bound"}}, status=True)

    def _drop(self, claim: Object) -> None:
        self.ground.volumes.pop(claim["metadata"]["uid"], None)
        self.ground.server.finalize(claim)


def binding_mode(ground: Ground, claim: Object) -> str:
    name = claim["spec"].get("storageClassName")
    found = ground.server.stored("storage.k8s.io/v1", "StorageClass", "", name) if name else None
    return str((found or {}).get("volumeBindingMode", "Immediate"))
