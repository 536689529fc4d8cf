"""What the rooms of the world stand on: the server and the clock, the knobs that a test turns, and what has happened so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pretune.api.names import PROOF, ROLE, TUNING
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.protocol import CLAIM_MOUNT, Versions

from tests.sim import reading
from tests.sim.cluster import Clock, Server
from tests.sim.reading import every_container, gpus, label, ref, terminal
from tests.sim.storage import Bundle, Volume

TUNES_FOR = 40.0  # seconds from the engine's start until it is ready, when it has to tune
STARTS_FOR = 5.0  # when it finds its tactics

Move = tuple[str, Callable[[], object]]
WAIT: Move = ("", lambda: None)  # nothing happens before something else does


class Room(Protocol):
    """One part of the world. Each does its work in small moves, so that a test can stop between any two."""

    def moves(self) -> Iterator[Move]:
        """What could happen now by itself, in a fixed order: words, and the move. Each leads to new ones."""

    def timers(self) -> Iterator[float]:
        """When something else could happen (Unix seconds)."""


@dataclass(frozen=True)
class Start:
    """An engine was started in an attempt: GPU time is spent."""

    bundle: str
    pod: str  # uid
    sealed_already: bool


@dataclass(frozen=True)
class Serve:
    """A consumer's engine was started."""

    pod: str  # uid
    image: str
    bundle: str  # the one that it has; "" is a cold start
    at: float


class Ground:
    """Public fields are knobs, or what a test looks at."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self.server, self.clock = server, clock
        # what has happened
        self.volumes: dict[str, Volume] = {}  # by the claim's uid
        self.starts: list[Start] = []
        self.proofs: list[Start] = []
        self.serves: list[Serve] = []
        self.published: list[Bundle] = []
        self.pruned: list[str] = []
        # knobs: the cluster
        self.nodes = ["node-1"]  # pods are bound to them in turn
        self.bad_nodes: set[str] = set()  # that can mount no claim into a consumer
        self.gpus = 64  # of all nodes
        self.free_gpus = True  # for attempts
        self.no_node_for: set[str] = set()  # GPU products
        self.idle_roles: set[str] = set()  # whose pods find no node
        self.quota = ""  # the API server's sentence when it refuses the pod of an attempt
        self.gpu_quota: int | None = (
            None  # GPUs that all pods of the namespace may ask for, gated ones too
        )
        self.release_refusal = ""  # the API server's sentence when it refuses to remove our gate
        self.kueue = False
        self.provisioner = True
        self.cannot_pull: set[str] = set()  # images
        self.dead_pods: set[str] = set()  # uids on nodes that do not answer any more
        self.unmountable: set[str] = set()  # claims that consumers' nodes cannot mount
        self.stale: set[str] = (
            set()
        )  # claims that are mounted there, and that no container can be made with
        # knobs: images
        self.content: dict[str, str] = {}  # what is behind a tag, where it has moved
        self.versions: dict[str, Versions] = {}  # in an image, where they are not VERSIONS
        self.without_python: set[str] = set()
        self.without_shell: set[str] = set()
        # knobs: the engine and the agent in an attempt
        self.engine_crashes = 0  # of the next engines, so many crash
        self.engine_hangs = False  # never ready
        self.warm_crashes = (
            0  # of the next engines that start from a bundle in a proof, so many crash
        )
        self.warm_hangs = False  # they are never ready
        self.tunes_again = False  # they tune although they have the bundle
        self.prove_says: list[str] = []  # of the next proves: why they could not tell
        self.lingers = False  # after seal the engine does not end
        self.check_says: list[tuple[str, str]] = []  # of the next checks: (reason, message)
        self.seal_says: list[tuple[str, str]] = []
        self.layout = "PerRank"
        self.inspect_silent = False
        # knobs: the agent in a consumer
        self.seed_says = ""  # why each seed leaves the folder empty
        self.seed_hangs = False
        self._names = 0

    # --- looking

    def stored(self, api_version: str, kind: str, labels: str = "") -> Iterator[Object]:
        """The stored objects of all namespaces, in their names' order: not to be changed."""
        return self.server.matching(api_version, kind, "", labels, "")

    def pods(self, role: str = "") -> list[Object]:
        """Ours, of one role or of all."""
        return self.server.list("v1", "Pod", "", labels=f"{ROLE}={role}" if role else ROLE)

    def jobs(self, role: str = "") -> list[Object]:
        return self.server.list("batch/v1", "Job", "", labels=f"{ROLE}={role}" if role else ROLE)

    def claim(self, pod: Object, name: str) -> Object | None:
        return self.server.stored("v1", "PersistentVolumeClaim", pod["metadata"]["namespace"], name)

    def is_for_one_node(self, pod: Object, name: str) -> bool:
        claim = self.claim(pod, name)
        return claim is not None and claim["spec"].get("accessModes") == ["ReadWriteOnce"]

    def claim_uid(self, namespace: str, name: str) -> str:
        claim = self.server.stored("v1", "PersistentVolumeClaim", namespace, name)
        return str(claim["metadata"]["uid"]) if claim else ""

    def bundles(self, namespace: str, claim: str) -> dict[tuple[str, str], Bundle]:
        """What is on a claim now; nothing where there is no claim."""
        volume = self.volumes.get(self.claim_uid(namespace, claim))
        return dict(volume.bundles) if volume else {}

    def volume(self, pod: Object, container: str) -> Volume:
        """The bound claim that one of the pod's containers has at CLAIM_MOUNT."""
        mounts = next(one for one in every_container(pod) if one["name"] == container)[
            "volumeMounts"
        ]
        name = next(one["name"] for one in mounts if one["mountPath"] == CLAIM_MOUNT)
        source = next(one for one in pod["spec"]["volumes"] if one["name"] == name)[
            "persistentVolumeClaim"
        ]
        return self.volumes[self.claim_uid(pod["metadata"]["namespace"], source["claimName"])]

    def refusal(self, pod: Object) -> str:
        """The quota's sentence about a pod that is being made; "": there is room."""
        if self.quota and label(pod, ROLE) in (TUNING, PROOF):
            return self.quota
        asked = gpus(pod)
        if self.gpu_quota is None or not asked:
            return ""
        used = sum(gpus(one) for one in self.stored("v1", "Pod") if not terminal(one))
        if used + asked <= self.gpu_quota:
            return ""
        amounts = f"requested: {asked}, used: {used}, limited: {self.gpu_quota}"
        return f"exceeded quota: gpus, requests.nvidia.com/gpu {amounts}"

    # --- writing

    def name(self) -> str:
        """A part of a name that was never given before."""
        self._names += 1
        return f"{self._names:05x}"

    def fresh(self, pod: Object) -> Object:
        """A copy as it is now, to be changed and written."""
        found = self.server.get("v1", "Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
        assert found is not None, pod["metadata"]["name"]
        return found

    def write(self, pod: Object) -> None:
        """Its status."""
        self.server.patch(ref(pod), {"status": pod["status"]}, status=True)

    def condition(self, pod: Object, kind: str, status: str, reason: str, message: str) -> None:
        """Put a condition into a copy. The transition's time moves when the status flips."""
        old = reading.said(pod, kind)
        same = old is not None and old["status"] == status
        new = {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": old["lastTransitionTime"]
            if same and old
            else format_timestamp(self.clock.now),
        }
        others = [one for one in pod["status"].get("conditions", ()) if one["type"] != kind]
        pod["status"]["conditions"] = [*others, new]

    def event(self, about: Object, reason: str, message: str, name: str = "") -> None:
        """A Warning; one of the same name is counted there."""
        meta = about["metadata"]
        made = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "namespace": meta["namespace"],
                "name": name or f"{meta['name'][:200]}.{self.name()}",
            },
            "involvedObject": {"kind": about["kind"], "name": meta["name"], "uid": meta["uid"]},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "count": 1,
            "lastTimestamp": format_timestamp(self.clock.now),
        }
        old = self.server.stored("v1", "Event", meta["namespace"], name) if name else None
        if old is None:
            self.server.create(made)
        else:
            again = {
                "count": old["count"] + 1,
                "message": message,
                "lastTimestamp": made["lastTimestamp"],
            }
            self.server.patch(ref(old), again)
