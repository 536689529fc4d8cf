"""What consumers are promised: at every write, after every reconcile of the controller, at rest.

docs/dev/invariants.md: 3, 4, 5 and 8.
"""

from __future__ import annotations

from pretune.api.names import (
    BUNDLE,
    CACHE,
    DELIVERY,
    HOLD,
    KIND,
    PROOF,
    REASON,
    ROLE,
    SEALED,
    TUNING,
)
from pretune.api.reasons import Refused
from pretune.api.spec import Spec, claim_name
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.injection import inject, strip
from pretune.podspec import identity
from pretune.protocol import Report

from tests.sim.cluster import Server, Write, copied
from tests.sim.laws import Laws
from tests.sim.reading import (
    claims,
    consumer,
    controller,
    engine,
    every_container,
    is_held,
    label,
    leaving,
    note,
    owner,
    ready,
    state,
    status,
    terminal,
)
from tests.sim.world import World

SLACK = 5.0  # seconds that a look may come later than it is due
RESCUED = 150.0  # seconds that a pod may be kept from starting by us alone: 90 of a seed that hangs, and looks


IN_THE_WAY = 20.0  # seconds that a copy may keep a claim from a consumer: it is ended meanwhile

# Annotations by which a pod would be where the pods that serve are.
ACTING = (
    "cni.projectcalico.org/ipAddrs",
    "dual-pods.llm-d.ai/requester",
    "kueue.x-k8s.io/pod-suspending-parent",
    "prometheus.io/scrape",
    "scheduling.k8s.io/group-name",
)


class Promises(Laws):
    """Of every consumer in the world."""

    def __init__(self, server: Server, world: World) -> None:
        super().__init__(server, world)
        self.deleted: list[str] = []  # uids of consumers that a controller deleted
        self.calm = True  # nobody is late: what the status says of who serves is true
        self.stuck_for = (
            0.0  # the longest that only we kept a pod from starting, with a controller that works
        )
        self._seen_clearly: set[str] = (
            set()
        )  # uids that a webhook admitted which saw the caches as they were
        self._pods: dict[str, Object] = {}  # uid -> as written last
        self._stuck: dict[
            str, float
        ] = {}  # uid -> since when looks see that only we keep it from starting
        self._looked = 0.0
        self._checked = 0  # of world.webhook.admitted
        self._to_be_proven: set[str] = (
            set()
        )  # uids that were made while the cache's spec.verify was BeforeRelease
        self._served = 0  # of world.serves
        # uid of a copy -> since when a consumer waits for the claim that the copy has (docs/copies.md)
        self._in_the_way: dict[str, float] = {}
        server.listeners.append(self.on_pod)
        server.listeners.append(self.on_copy)

    # --- at every write

    def on_copy(self, write: Write) -> None:
        """An attempt's or a proof's pod is apart from what serves."""
        pod = write.object
        if write.kind != "Pod" or label(pod, ROLE) not in (TUNING, PROOF):
            return
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        if write.verb == "create":
            assert not pod["spec"].get("hostNetwork"), f"{name} is on its node's network"
            for container in every_container(pod):
                ports = container.get("ports") or ()
                assert not any("hostPort" in port for port in ports), f"{name} takes a node's port"
            acts = [one for one in pod["metadata"].get("annotations", ()) if one in ACTING]
            assert not acts, f"{name} is where the pods that serve are: {acts}"
        elif node and not pod["status"].get("startTime"):
            for claim in claims(pod):
                if self.world.is_for_one_node(pod, claim) and write.verb == "patch":
                    assert node in self._users(claim), f"{name} takes {claim} to {node}"

    def _users(self, claim: str) -> list[str]:
        """The nodes of the living consumers that use a claim."""
        return [
            one["spec"]["nodeName"]
            for one in self._all()
            if claim in claims(one)
            and one["spec"].get("nodeName")
            and not terminal(one)
            and not leaving(one)
        ]

    def _no_copy_is_in_the_way(self) -> None:
        now = self.world.clock.now
        for pod in self.world.stored("v1", "Pod"):
            node, uid = pod["spec"].get("nodeName"), pod["metadata"]["uid"]
            if label(pod, ROLE) not in (TUNING, PROOF) or terminal(pod) or not node:
                continue
            others = [
                claim
                for claim in claims(pod)
                if self.world.is_for_one_node(pod, claim) and set(self._users(claim)) - {node}
            ]
            since = self._in_the_way.setdefault(uid, now)
            if not others:
                del self._in_the_way[uid]
            assert not others or now <= since + IN_THE_WAY, (
                f"{pod['metadata']['name']} keeps {others} from a pod that serves"
            )

    def on_pod(self, write: Write) -> None:
        pod = write.object
        if write.kind != "Pod" or not consumer(pod):
            return
        uid = pod["metadata"]["uid"]
        webhook = self.world.webhook
        if write.verb == "create":
            if webhook.up and not webhook.lag and webhook.blind is None:
                self._seen_clearly.add(uid)
                cache = self._cache(pod)
                if cache is not None and Spec.from_cache(cache).verify == "BeforeRelease":
                    self._to_be_proven.add(uid)
            if is_held(pod):
                self._may_be_held(pod)
        if write.by and write.verb == "patch":
            self._only_our_gate_goes(self._pods[uid], pod)
        elif write.by and write.verb == "delete" and uid not in self.deleted:
            self._may_be_deleted(self._pods[uid], late=write.by == "old leader")
            self.deleted.append(uid)
        elif write.by:
            assert write.verb == "delete", f"a controller wrote to a consumer: {write}"
        self._pods[uid] = pod

    def _may_be_held(self, pod: Object) -> None:
        """Never where nobody could release it, nor where it need not wait."""
        name, webhook = pod["metadata"]["name"], self.world.webhook
        assert webhook.may_hold, f"{name} is held, and no controller is seen to live"
        assert not pod["spec"].get("nodeName"), f"{name} has a node and a gate"
        if webhook.lag or webhook.blind is not None:
            return
        cache = self._cache(pod)
        assert cache is not None, f"{name} is held for no cache"
        spec, record = Spec.from_cache(cache), self._record(pod)
        assert not _is_given(record, spec), f"{name} is held although its bundle is sealed"
        assert "releaseRefused" not in cache.get("status", {}), (
            f"{name} is held, and could not be released"
        )
        if spec.hold.when == "WhenServing" and self.calm:
            assert controller(pod).get("kind") == "ReplicaSet", (
                f"{name} is held, and is missing where it served"
            )
            others = [
                one
                for one in self._living(pod)
                if note(one, BUNDLE) != note(pod, BUNDLE)
                and self._workload(one) == self._workload(pod)
            ]
            assert any(map(ready, others)), f"{name} is held, and nothing serves meanwhile"
        assert spec.hold.when != "Never" and not spec.suspend, f"{name} is held against the spec"

    def _only_our_gate_goes(self, before: Object, after: Object) -> None:
        gates = [one for one in before["spec"].get("schedulingGates", ()) if one["name"] != HOLD]
        kept = {name: one for name, one in before["spec"].items() if name != "schedulingGates"}
        wanted = {**kept, **({"schedulingGates": gates} if gates else {})}
        assert after["spec"] == wanted, (
            f"more than our gate was changed on {after['metadata']['name']}"
        )
        for part in ("labels", "annotations", "ownerReferences", "finalizers"):
            assert after["metadata"].get(part) == before["metadata"].get(part), part

    def _may_be_deleted(self, pod: Object, late: bool) -> None:
        """Once, by rescue alone: not one that runs, nor one that nothing makes anew; the status remembers it first."""
        name = pod["metadata"]["name"]
        assert controller(pod), f"{name} was deleted by us, and nothing makes it anew"
        assert controller(pod)["kind"] != "Job", f"{name} was deleted, and its Job counts that"
        assert note(pod, DELIVERY) in ("Overlay", "ReadOnly"), (
            f"{name} was deleted, and had nothing of ours"
        )
        assert late or not state(pod, engine(pod)).get("running"), (
            f"{name} was deleted while its engine ran"
        )
        cache, record = self._cache(pod), self._record(pod)
        if is_held(pod):
            assert cache is None or "releaseRefused" in cache.get("status", {}), (
                f"{name} was held, and deleted before the status remembers why"
            )
            return
        if cache is not None and not record and not late:
            claims = {claim_name(label(pod, CACHE), Spec.from_cache(cache)), ""}
            assert _our_claim(pod) not in claims, f"{name} was deleted without a mark"
        if record:
            assert "undeliverable" in record, f"{name} was deleted before the status remembers why"
            if pod["metadata"]["uid"] in self._seen_clearly:
                made = parse_timestamp(pod["metadata"]["creationTimestamp"])
                assert made <= parse_timestamp(record["undeliverable"]["at"]), (
                    f"{name} was made after it was known, and deleted"
                )

    # --- after every look that the controller took

    def after_look(self, look: float | None) -> None:
        now = self.world.clock.now
        for pod in self._all():
            if is_held(pod) and not leaving(pod):
                self._is_held_rightly(pod, look)
        self._no_copy_is_in_the_way()
        for uid in set(self._stuck) - {
            pod["metadata"]["uid"] for pod in self._all() if self.only_we_stop(pod)
        }:
            self.stuck_for = max(self.stuck_for, now - self._stuck.pop(uid))
        for pod in self._all():
            if self.only_we_stop(pod) and not is_held(pod):
                since = self._stuck.setdefault(pod["metadata"]["uid"], now)
                late = since + RESCUED <= self._looked
                assert not late or not _is_recreated(pod), (
                    f"{pod['metadata']['name']} is not rescued: {pod['status']}"
                )
        self._looked = now

    def _is_held_rightly(self, pod: Object, look: float | None) -> None:
        name, cache = pod["metadata"]["name"], self._cache(pod)
        assert cache is not None, f"{name} is held, and its cache is gone"
        spec, until = (
            Spec.from_cache(cache),
            parse_timestamp(pod["metadata"]["creationTimestamp"])
            + Spec.from_cache(cache).hold.timeout_seconds,
        )
        assert not _is_given(self._record(pod), spec), (
            f"{name} is held although its bundle is sealed"
        )
        assert not spec.suspend and spec.hold.when != "Never" and spec.delivery != "None", (
            f"{name} is held against the spec"
        )
        if spec.hold.on_failure != "Keep":
            assert self.world.clock.now < until, (
                f"{name} is held for longer than spec.hold.timeoutSeconds"
            )
            since = self._attempt_has_no_node_since(pod)
            assert since is None or self.world.clock.now < since + spec.node_wait_seconds + SLACK, (
                f"{name} is held, and the attempt has no node"
            )
            assert look is not None and self.world.clock.now + look <= until + SLACK, (
                f"nobody looks at {name} in time"
            )

    def only_we_stop(self, pod: Object) -> bool:
        """Its engine was never started, and would be if we were not there. (A gate of ours is another law's.)"""
        if terminal(pod) or leaving(pod) or not _waits(pod):
            return False
        if note(pod, DELIVERY) not in ("Overlay", "ReadOnly") or self.world.ready_to_move(pod):
            return False
        bare = without_us(pod)
        if bare["spec"].get("schedulingGates") or pod["metadata"]["uid"] in self.world.dead_pods:
            return False
        if any(one.get("image") in self.world.cannot_pull for one in every_container(bare)):
            return False
        return bool(pod["spec"].get("nodeName")) or not self.world.kubelet.scheduler.unschedulable(
            bare
        )

    def _attempt_has_no_node_since(self, pod: Object) -> float | None:
        """Since when the attempt at its bundle waits for a node, or the one that this is queued behind; None: it does not."""
        bundle = note(pod, BUNDLE)
        target = bundle.partition("-")[2]
        pods = self._attempts(f"{BUNDLE}={bundle}") or [
            one
            for one in self._attempts(f"{CACHE}={label(pod, CACHE)}")
            if label(one, BUNDLE).partition("-")[2] == target
        ]
        if not pods or any(one["spec"].get("nodeName") for one in pods):
            return None
        return min(parse_timestamp(one["metadata"]["creationTimestamp"]) for one in pods)

    def _attempts(self, selector: str) -> list[Object]:
        """The pods of attempts and proofs that live."""
        return [
            one
            for one in self.world.stored("v1", "Pod", selector)
            if label(one, ROLE) in (TUNING, PROOF) and not terminal(one) and not leaving(one)
        ]

    # --- at any time

    def check(self) -> None:
        super().check()
        for was, made in self.world.webhook.admitted[self._checked :]:
            _undone(was, made)
        self._checked = len(self.world.webhook.admitted)
        for start in self.world.serves[self._served :]:
            if start.bundle and start.pod in self._to_be_proven:
                self._to_be_proven.discard(start.pod)  # what it has, it keeps
                proven = (
                    place
                    for one in self.world.volumes.values()
                    for place in one.proofs
                    if one.proven(place)
                )
                assert start.bundle in {place[1] for place in proven}, (
                    f"{start.bundle} was given and is not proven"
                )
        self._served = len(self.world.serves)

    # --- at rest, with a controller that works

    def at_rest(self) -> None:
        for pod in self._all():
            name, cache = pod["metadata"]["name"], self._cache(pod)
            if leaving(pod) or terminal(pod):
                continue
            if is_held(pod):
                kept = cache is not None and Spec.from_cache(cache).hold.on_failure == "Keep"
                assert kept, f"{name} is held for ever"
                continue
            # What nothing can take the place of waits only for what was sealed when it came.
            kept = not _is_recreated(pod) and note(pod, REASON).startswith("Given")
            assert not self.only_we_stop(pod) or kept, (
                f"{name} would start without us, and does not"
            )
        self._counts_add_up()

    def _counts_add_up(self) -> None:
        for cache in self.world.stored("pretune.dev/v1alpha1", KIND):
            told = (cache.get("status") or {}).get("consumers")
            pods = [one for one in self._all() if label(one, CACHE) == cache["metadata"]["name"]]
            living = [one for one in pods if not terminal(one) and not leaving(one)]
            started = [one for one in living if not _waits(one)]
            seeded = [one for one in started if _has_tactics(one)]
            wanted = {
                "seeded": len(seeded),
                "held": sum(map(is_held, living)),
                "ready": sum(map(ready, living)),
            }
            if Spec.from_cache(cache).engine_container not in ("", "vllm"):
                continue  # which container serves cannot be told
            assert told is not None, "status.consumers is not there"
            assert {name: told[name] for name in wanted} == wanted, (told, wanted)
            assert told["seeded"] + told["cold"] <= len(started) and told["stale"] <= told["seeded"]

    # --- inside

    def _all(self) -> list[Object]:
        return [one for one in self.world.stored("v1", "Pod") if consumer(one)]

    def _living(self, pod: Object) -> list[Object]:
        return [
            one
            for one in self._all()
            if label(one, CACHE) == label(pod, CACHE) and not terminal(one)
        ]

    def _workload(self, pod: Object) -> str:
        """The uid of the Deployment, or of what else controls it at the top."""
        found = controller(pod)
        place = ("apps/v1", "ReplicaSet", pod["metadata"]["namespace"], found.get("name", ""))
        above = self.server.stored(*place) if found.get("kind") == "ReplicaSet" else None
        return owner(above) if above is not None else owner(pod)

    def _cache(self, pod: Object) -> Object | None:
        place = (pod["metadata"]["namespace"], label(pod, CACHE))
        return self.server.stored("pretune.dev/v1alpha1", KIND, *place)

    def _record(self, pod: Object) -> Object:
        records = ((self._cache(pod) or {}).get("status") or {}).get("bundles") or ()
        return next((one for one in records if one["id"] == note(pod, BUNDLE)), {})


def without_us(pod: Object) -> Object:
    """The pod as its author wrote it: told by the names alone, not by the product's own strip()."""
    made = copied(pod)
    spec = made["spec"]
    for part in ("schedulingGates", "volumes", "initContainers"):
        if part in spec:
            spec[part] = [one for one in spec[part] if not one["name"].startswith("pretune")]
    if spec.get("schedulingGates"):
        spec["schedulingGates"] = [one for one in spec["schedulingGates"] if one["name"] != HOLD]
    return made


def _undone(was: Object, made: Object) -> None:
    """docs/dev/invariants.md, 5."""
    if note(made, DELIVERY) == "None":
        return
    assert strip(made) == strip(was) == was, "strip is not the inverse of inject"
    try:
        before, after = (identity.fingerprint(one, "vllm") for one in (was, made))
    except Refused:
        return
    assert before == after, "injection made another fingerprint"
    assert inject(made, None) == [], "injected twice"  # type: ignore[arg-type]  # nothing of the delivery is looked at


def _is_given(record: Object, spec: Spec) -> bool:
    """By what a person reads: sealed, and proven where that is asked for."""
    asked = spec.verify == "BeforeRelease" and record.get("layout") != "Empty"
    return record.get("state") == SEALED and (not asked or record.get("proven") is True)


def _waits(pod: Object) -> bool:
    """Whether its engine was never started."""
    found = status(pod, engine(pod))
    return not found.get("restartCount") and "waiting" in found.get("state", {"waiting": {}})


def _is_recreated(pod: Object) -> bool:
    """A Job counts a pod that is deleted as one that failed."""
    return controller(pod).get("kind", "Job") != "Job"


def _our_claim(pod: Object) -> str:
    """The claim that is mounted because of us; "": none."""
    volumes = pod["spec"].get("volumes") or ()
    found = (one for one in volumes if one["name"] == "pretune-claim")
    return str(next(found, {}).get("persistentVolumeClaim", {}).get("claimName", ""))


def _has_tactics(pod: Object) -> bool:
    """As a person reads it: the mount, or the seed's own words."""
    if not note(pod, BUNDLE):
        return False
    if note(pod, DELIVERY) == "ReadOnly":
        return True
    end = state(pod, "pretune-seed").get("terminated") or {}
    report = Report.load(end.get("message") or "")
    return report is not None and report.reason == "Seeded"
