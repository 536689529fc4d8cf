"""Anything in any order: people edit, the world moves on, controllers are killed, stopped and go on late. The laws hold after each step,
and once everybody has calmed down the outcome is as if nothing had happened.

PRETUNE_SIM_SEARCH=1 looks for new faults with other seeds and longer runs; without it the same examples are run each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pretune.api.names import (
    BUNDLE,
    FAILED,
    INSPECT,
    PENDING,
    PROOF,
    PROVING,
    PRUNE,
    RETIRED,
    SEAL_CONTAINER,
    SEALED,
    TUNING,
    WHEN_DELETED,
)
from pretune.api.types import Object
from pretune.policy.pod_status import is_job_finished

from tests.builders.constants import KEY
from tests.depth import examples
from tests.sim.cluster import Write
from tests.sim.conftest import SEARCH
from tests.sim.reading import end_of, running
from tests.sim.simulation import CACHE, CLAIM, DEPLOYMENT, FAR, Simulation

pytestmark = pytest.mark.long

CLAIM_PLACE = ("v1", "PersistentVolumeClaim", KEY.namespace, CLAIM)
SHARED = "shared"
IMAGES = ("vllm:1", "vllm:2", "vllm:3")
TARGETS: tuple[list[Object], ...] = (
    [{"name": "b200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}}],
    [
        {"name": "b200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}},
        {"name": "h200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
    ],
)
CALL = st.integers(1, 16)  # of a reconcile, which makes some ten
WHEN = st.sampled_from(["before", "after"])
WHICH = st.integers(0, 5)
SEED = st.integers(0, 2**16)

# Until when all goes well before the next thing happens; where the moment does not come, until all is at rest.
MOMENTS: dict[str, Callable[[Simulation], bool]] = {
    "now": lambda sim: True,
    "a Job is there": lambda sim: bool(_unfinished(sim, TUNING)),
    "its pod is there": lambda sim: any(not _ended(pod) for pod in sim.world.pods(TUNING)),
    "the engine runs": lambda sim: _runs(sim, "vllm"),
    "seal runs": lambda sim: _runs(sim, SEAL_CONTAINER),
    "it is published, and not yet known": lambda sim: bool(
        set(sim.where_it_is_to_be()) - sim.sealed_ids
    ),
    "a report is there, and not yet read": lambda sim: any(
        end_of(pod, SEAL_CONTAINER) and pod["metadata"]["labels"][BUNDLE] not in sim.sealed_ids
        for pod in sim.world.pods(TUNING)
    ),
    "a proof runs": lambda sim: any(not _ended(pod) for pod in sim.world.pods(PROOF)),
    "it is proven, and not yet known": lambda sim: any(
        one["state"] == PROVING
        and any(
            one["id"] == place[1]
            for volume in sim.world.volumes.values()
            for place in volume.proofs
        )
        for one in sim.any_records
    ),
    "an attempt has failed": lambda sim: any("lastFailure" in one for one in sim.any_records),
    "the claim is read": lambda sim: bool(_unfinished(sim, INSPECT)),
    "a bundle is retired": lambda sim: any(one["state"] == RETIRED for one in sim.any_records),
    "a folder is deleted": lambda sim: bool(_unfinished(sim, PRUNE)),
    "a folder was deleted": lambda sim: bool(sim.world.pruned),
    "all is at rest": lambda sim: False,
}
MOMENT = st.sampled_from(list(MOMENTS))


class AnythingHappens(RuleBasedStateMachine):
    """One namespace, one name of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation()
        self.failures = 0  # faults that may use up an attempt
        self.sim.server.listeners.append(self._controllers_restraint)

    def teardown(self) -> None:
        try:
            self._calm_down()
        finally:
            self.sim.close()

    @initialize(
        past=st.integers(0, 3),
        wanted=st.sampled_from(TARGETS),
        history=st.integers(0, 1),
        kept=st.booleans(),
        verify=st.sampled_from(["Never", "BeforeRelease"]),
        seed=SEED,
    )
    def a_cache_with_a_past(
        self, past: int, wanted: list[Object], history: int, kept: bool, verify: str, seed: int
    ) -> None:
        """So many images were served before, and their bundles sealed."""
        self.sim.chance = random.Random(seed)
        meta, spec = (
            {"namespace": KEY.namespace, "name": SHARED},
            {"accessModes": ["ReadWriteMany"]},
        )
        self.sim.server.create(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
        )
        storage = {"claim": {"whenDeleted": "Retain" if kept else "Delete"}}
        self.sim.deploy(image=IMAGES[0])
        self.sim.apply(targets=wanted, storage=storage, bundleHistoryLimit=history, verify=verify)
        for image in IMAGES[:past]:
            self.sim.deploy(image=image)
            self.sim.settle(200)

    def _until(self, moment: str) -> None:
        if not MOMENTS[moment](self.sim):
            self.sim.settle(1500.0, until=lambda: MOMENTS[moment](self.sim))

    @invariant()
    def the_laws_hold(self) -> None:
        self.sim.laws.check()

    # --- people

    @rule(at=MOMENT, image=st.sampled_from(IMAGES))
    def the_source_is_edited(self, at: str, image: str) -> None:
        self._until(at)
        self.sim.deploy(image=image)

    @rule(at=MOMENT)
    def the_source_is_deleted(self, at: str) -> None:
        self._until(at)
        self.sim.delete(DEPLOYMENT)

    @rule(
        at=MOMENT,
        change=st.sampled_from(
            [
                {"targets": TARGETS[0]},
                {"targets": TARGETS[1]},
                {"revision": "r2"},
                {"revision": ""},
                {"suspend": True},
                {"suspend": False},
                {"tuning": {"maxAttempts": 1}},
                {"tuning": {"maxAttempts": 3}},
                {"storage": {"claim": {"whenDeleted": "Retain"}, "existingClaim": None}},
                {"storage": {"claim": {"whenDeleted": "Delete"}, "existingClaim": None}},
                {"storage": {"claim": None, "existingClaim": {"name": SHARED, "subPath": "a"}}},
                {"storage": {"claim": None, "existingClaim": {"name": SHARED, "subPath": "b"}}},
                {"verify": "BeforeRelease"},
                {"verify": "BeforeRelease"},
                {"verify": "Never"},
                {"bundleHistoryLimit": 0},
                {"bundleHistoryLimit": 1},
            ]
        ),
    )
    def the_cache_is_edited_or_made(self, at: str, change: Object) -> None:
        self._until(at)
        self.sim.apply(**change)

    @rule(at=MOMENT)
    def the_cache_is_deleted(self, at: str) -> None:
        self._until(at)
        self.sim.delete()

    @rule(at=MOMENT)
    def the_status_is_wiped(self, at: str) -> None:
        self._until(at)
        if self.there:
            self.sim.wipe_status()

    @rule(at=MOMENT)
    def all_memory_is_lost(self, at: str) -> None:
        """The status, and every Job that has ended with its pod: only the claim knows."""
        self._until(at)
        if self.there:
            self.sim.wipe_status()
        for job in self.sim.world.jobs():
            if is_job_finished(job):
                self.sim.server.delete(job)

    @rule(at=MOMENT)
    def reports_are_lost(self, at: str) -> None:
        """The controller is away while all goes on by itself, and ended pods are gone when it comes back."""
        self._until(at)
        self.sim.clock.advance(60.0)
        self.sim.world.run()
        for pod in self.sim.world.pods():
            self.sim.world.vanish(pod)

    @rule(at=MOMENT)
    def the_claim_is_deleted(self, at: str) -> None:
        self._until(at)
        self.failures += 1  # the attempt that was about to write to it
        self.sim.delete(CLAIM_PLACE)

    # --- the world

    @rule(at=MOMENT, which=st.lists(st.integers(0, 9), min_size=1, max_size=8))
    def the_world_moves(self, at: str, which: list[int]) -> None:
        self._until(at)
        for one in which:
            if moves := self.sim.world.moves():
                moves[one % len(moves)][1]()
                self.sim.laws.check()

    @rule(at=MOMENT, seconds=st.sampled_from([1.0, 6.0, 41.0, 130.0, 700.0, 4000.0]))
    def time_passes(self, at: str, seconds: float) -> None:
        self._until(at)
        self.sim.clock.advance(seconds)

    @rule(at=MOMENT, fault=st.sampled_from(["evict", "pressure", "vanish"]), which=WHICH)
    def a_pod_is_disrupted(self, at: str, fault: str, which: int) -> None:
        self._until(at)
        if not (pods := self.sim.world.pods()):
            return
        self.failures += fault == "pressure"  # an inspect pod's answer goes with it
        getattr(self.sim.world, fault)(pods[which % len(pods)])

    @rule(
        at=MOMENT,
        fault=st.sampled_from(["crash_engine", "crash_seal", "delete_pod", "kill_node"]),
        which=WHICH,
    )
    def an_attempt_is_spoilt(self, at: str, fault: str, which: int) -> None:
        self._until(at)
        if not (pods := [*self.sim.world.pods(TUNING), *self.sim.world.pods(PROOF)]):
            return
        self.failures += 1
        getattr(self.sim.world, fault)(pods[which % len(pods)])

    @rule(at=MOMENT, how=st.sampled_from(["hangs", "tunes", "cannot tell", "well"]))
    def warm_starts_go_wrong(self, at: str, how: str) -> None:
        self._until(at)
        self.failures += how != "well"
        world = self.sim.world
        world.warm_hangs, world.tunes_again = how == "hangs", how == "tunes"
        world.prove_says = ["it still writes"] if how == "cannot tell" else []

    @rule(
        at=MOMENT,
        quota=st.sampled_from(["", "exceeded quota: gpus"]),
        free=st.booleans(),
        silent=st.booleans(),
    )
    def the_cluster_has_its_moods(self, at: str, quota: str, free: bool, silent: bool) -> None:
        self._until(at)
        self.sim.world.quota, self.sim.world.free_gpus, self.sim.world.inspect_silent = (
            quota,
            free,
            silent,
        )

    # --- controllers

    @rule(at=MOMENT)
    def a_reconcile(self, at: str) -> None:
        self._until(at)
        self.sim.reconcile()

    @rule(at=MOMENT, call=CALL, when=WHEN)
    def a_controller_is_killed(self, at: str, call: int, when: str) -> None:
        self._until(at)
        self.sim.crash(call, when)

    @rule(at=MOMENT, call=CALL)
    def a_leader_is_stopped(self, at: str, call: int) -> None:
        self._until(at)
        self.sim.stop_before(call)

    @precondition(lambda self: self.sim.late)
    @rule(at=MOMENT)
    def old_leaders_go_on(self, at: str) -> None:
        self._until(at)
        self.sim.go_on()

    # --- what is expected

    @property
    def there(self) -> bool:
        return self.sim.server.get(*CACHE) is not None

    def _controllers_restraint(self, write: Write) -> None:
        """What a controller that sees the present must not do."""
        if write.by != "controller":
            return
        if write.kind == "PersistentVolumeClaim" and write.verb == "delete":
            assert not self.there, "the claim of a cache that is there is never deleted"
            assert write.object["metadata"]["annotations"][WHEN_DELETED] == "Delete"
        ends = (
            write.kind == "Job"
            and write.verb == "patch"
            and write.object["spec"].get("activeDeadlineSeconds") == 1
        )
        if ends and write.object["metadata"]["labels"].get(BUNDLE) in self.sim.wanted():
            for pod in self.sim.world.pods(TUNING):
                owners = [one["uid"] for one in pod["metadata"]["ownerReferences"]]
                if write.object["metadata"]["uid"] in owners:
                    assert not _healthy(pod), f"the wanted, healthy attempt {write.name} was ended"

    def _calm_down(self) -> None:
        """Every fault is over, late leaders have had their say: then all is as it would have been."""
        sim, world = self.sim, self.sim.world
        sim.go_on()
        world.quota, world.free_gpus, world.inspect_silent = "", True, False
        world.warm_hangs, world.tunes_again, world.prove_says = False, False, []
        if sim.server.get(*DEPLOYMENT) is None:
            sim.deploy()
        if self.there:
            sim.apply(suspend=False)
            world.dead_pods.clear()  # the nodes are back: what was being deleted there ends
            sim.settle(FAR)
            if any(one["state"] == FAILED for one in sim.records):
                assert self.failures, f"nothing was spoilt, and yet: {sim.records}"
                sim.apply(revision="another")
                sim.settle(FAR)
            self._is_sealed()
        world.dead_pods.clear()
        self._costs_nothing()
        sim.delete()
        sim.settle(2 * FAR)
        self._is_gone()

    def _is_sealed(self) -> None:
        sim = self.sim
        assert sim.ready == ("True", "Sealed"), (sim.ready, sim.message())
        on_claim = sim.where_it_is_to_be()
        for record in sim.records:
            if record["state"] == SEALED:
                there = on_claim.get(record["id"])
                assert there is not None and there.digest == record["digest"], (
                    f"{record['id']} is not what is on the claim"
                )
            assert record["state"] != PENDING, record
        assert {one["id"] for one in sim.records if one["state"] == SEALED} >= set(sim.wanted())

    def _costs_nothing(self) -> None:
        self.sim.settle(FAR)  # Jobs outlive their ttl
        before = len(self.sim.writes())
        self.sim.settle(3000)
        self.sim.reconcile()
        assert self.sim.writes()[before:] == [], "an idle cache costs no write"

    def _is_gone(self) -> None:
        sim = self.sim
        assert not sim.world.jobs() and not sim.world.pods()
        assert not sim.server.list("v1", "ConfigMap", KEY.namespace)
        claim = sim.server.get(*CLAIM_PLACE)
        assert claim is None or claim["metadata"]["annotations"][WHEN_DELETED] == "Retain"


def _unfinished(sim: Simulation, role: str) -> list[Object]:
    return [job for job in sim.world.jobs(role) if not is_job_finished(job)]


def _ended(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _runs(sim: Simulation, container: str) -> bool:
    return any(container in running(pod) for pod in sim.world.pods(TUNING) if not _ended(pod))


def _healthy(pod: Object) -> bool:
    """Running its engine or its seal as it should, and nobody has done anything to it."""
    status = pod["status"]
    if status["phase"] not in ("Pending", "Running") or pod["metadata"].get("deletionTimestamp"):
        return False
    if any(one["type"] == "DisruptionTarget" for one in status.get("conditions", ())):
        return False
    containers: list[Any] = [
        *status.get("initContainerStatuses", ()),
        *status.get("containerStatuses", ()),
    ]
    ended = [one for one in containers if "terminated" in one["state"]]
    return all(one["restartCount"] == 0 for one in containers) and all(
        one["state"]["terminated"]["exitCode"] == 0 and one["name"] == "pretune-check"
        for one in ended
    )


TestAnythingHappens = AnythingHappens.TestCase
TestAnythingHappens.settings = hypothesis.settings(
    hypothesis.settings.get_profile("sim-search" if SEARCH else "sim"),
    max_examples=1000 if SEARCH else examples(60),
    stateful_step_count=16 if SEARCH else 12,
    suppress_health_check=list(hypothesis.HealthCheck),
)
