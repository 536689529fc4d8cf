"""Anything in any order, with consumers: rollouts, faults of ours, people's edits, killed and late controllers. What is promised holds at
every write and after every look; once everybody has calmed down all pods serve, and nobody waits.

PRETUNE_SIM_SEARCH=1 looks for new faults, as in test_sim.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pretune.api.names import PROOF, PROVING, TUNING
from pretune.api.types import Object
from pretune.manifests.agent_archive import agent_name
from pretune.protocol import Versions

from tests.builders.constants import KEY
from tests.depth import examples
from tests.sim.conftest import SEARCH
from tests.sim.fleet import Fleet
from tests.sim.reading import ready, state
from tests.sim.simulation import CACHE, CLAIM, FAR, REF
from tests.sim.steps import CLAIM_PLACE, a_claim

pytestmark = pytest.mark.long

IMAGES = "vllm:1", "vllm:2", "vllm:3"
STRATEGIES: tuple[Object, ...] = (
    {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
    {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
    {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
)
EDITS: tuple[Object, ...] = (
    {"hold": {"when": "Always"}},
    {"hold": {"when": "Never"}},
    {"hold": {"when": "WhenServing", "timeoutSeconds": 3600}},
    {"hold": {"timeoutSeconds": 90}},
    {"hold": {"onFailure": "Keep"}},
    {"hold": {"onFailure": "Start"}},
    {"delivery": {"mode": "None"}},
    {"delivery": {"mode": "ReadOnly"}},
    {"delivery": {"mode": "Auto"}},
    {"suspend": True},
    {"suspend": False},
    {"engineContainer": "another"},
    {"engineContainer": None},
    {"tuning": {"maxAttempts": 1}},
    {"revision": "r2"},
    {"revision": ""},
    {"bundleHistoryLimit": 0},
    {"verify": "BeforeRelease"},
    {"verify": "Never"},
    {"source": None},
    {"source": REF},
    {"source": {"workloadRef": {**REF["workloadRef"], "name": "another"}}},
    {"targets": [{"name": "a"}]},
    {"targets": [{"name": "a"}, {"name": "b"}]},
    {"storage": {"claim": None, "existingClaim": {"name": "shared", "subPath": "a"}}},
    {"storage": {"claim": {}, "existingClaim": None}},
)
CALL = st.integers(1, 20)
WHEN = st.sampled_from(["before", "after"])
WHICH = st.integers(0, 5)
SEED = st.integers(0, 2**16)

MOMENTS: dict[str, Callable[[Fleet], bool]] = {
    "now": lambda fleet: True,
    "a pod is held": lambda fleet: bool(fleet.held()),
    "the engine tunes": lambda fleet: any(
        "running" in state(pod, "vllm") for pod in fleet.world.pods(TUNING)
    ),
    "a proof runs": lambda fleet: any(
        "running" in state(pod, "vllm") for pod in fleet.world.pods(PROOF)
    ),
    "a bundle is withheld": lambda fleet: any(one["state"] == PROVING for one in fleet.any_records),
    "it is published, and not yet known": lambda fleet: bool(
        set(fleet.where_it_is_to_be()) - fleet.sealed_ids
    ),
    "a new revision serves": lambda fleet: (
        len({image(one) for one in fleet.consumers() if ready(one)}) > 1
    ),
    "a pod cannot start": lambda fleet: any(
        fleet.promises.only_we_stop(one) for one in fleet.consumers()
    ),
    "a bundle cannot be delivered": lambda fleet: any(
        "undeliverable" in one for one in fleet.any_records
    ),
    "all is at rest": lambda fleet: False,
}
MOMENT = st.sampled_from(list(MOMENTS))


def image(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])


class AnythingHappensToConsumers(RuleBasedStateMachine):
    """A Deployment, now and then others, a StatefulSet, Jobs and single pods; one cache."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.fleet.promises.calm = False
        self.made = 0

    def teardown(self) -> None:
        try:
            self._calm_down()
        finally:
            self.fleet.close()

    @initialize(
        layout=st.sampled_from(["PerRank", "Managed"]),
        strategy=st.sampled_from(STRATEGIES),
        verify=st.sampled_from(["Never", "BeforeRelease"]),
        seed=SEED,
    )
    def something_serves(self, layout: str, strategy: Object, verify: str, seed: int) -> None:
        self.fleet.chance = random.Random(seed)
        self.fleet.world.layout = layout
        a_claim(self.fleet, "shared")
        self.fleet.serve(IMAGES[0], replicas=2, strategy=strategy)
        self.fleet.apply(verify=verify)
        self.fleet.settle(100)

    def _until(self, moment: str) -> None:
        if not MOMENTS[moment](self.fleet):
            self.fleet.settle(400.0, until=lambda: MOMENTS[moment](self.fleet))

    @invariant()
    def the_laws_hold(self) -> None:
        self.fleet.laws.check()

    @property
    def there(self) -> bool:
        return self.fleet.server.get(*CACHE) is not None

    # --- people

    @rule(at=MOMENT, image=st.sampled_from(IMAGES))
    def a_rollout_begins(self, at: str, image: str) -> None:
        self._until(at)
        self.fleet.serve(image)

    @rule(at=MOMENT, image=st.sampled_from(IMAGES), replicas=st.integers(0, 4))
    def it_is_scaled(self, at: str, image: str, replicas: int) -> None:
        self._until(at)
        self.fleet.serve(image, replicas=replicas)

    @rule(at=MOMENT, image=st.sampled_from(IMAGES))
    def a_statefulset_is_made_or_changed(self, at: str, image: str) -> None:
        self._until(at)
        self.fleet.stateful(image)

    @rule(at=MOMENT, image=st.sampled_from(IMAGES), name=st.sampled_from(["decode", "small"]))
    def another_deployment_is_made_or_changed(self, at: str, image: str, name: str) -> None:
        self._until(at)
        self.fleet.serve(image, replicas=2, name=name)

    @rule(at=MOMENT, seconds=st.sampled_from([-600.0, 0.0, 600.0]))
    def a_controllers_clock_is_wrong(self, at: str, seconds: float) -> None:
        self._until(at)
        self.fleet.ahead = self.fleet.controller.ahead = seconds

    @rule(at=MOMENT, image=st.sampled_from(IMAGES))
    def a_pod_of_nobody_is_made(self, at: str, image: str) -> None:
        self._until(at)
        self.made += 1
        self.fleet.bare(image, name=f"bare-{self.made}")

    @rule(at=MOMENT, image=st.sampled_from(IMAGES))
    def a_batch_is_run(self, at: str, image: str) -> None:
        self._until(at)
        self.made += 1
        self.fleet.batch(image, name=f"batch-{self.made}")

    @rule(at=MOMENT, number=st.integers(0, 9))
    def engines_differ(self, at: str, number: int) -> None:
        self._until(at)
        self.fleet.serve(env=[{"name": "NUMBER", "value": str(number)}])

    @rule(at=MOMENT, edit=st.sampled_from(EDITS))
    def the_cache_is_edited_or_made(self, at: str, edit: Object) -> None:
        self._until(at)
        self.fleet.apply(**edit)

    @rule(at=MOMENT, again=st.booleans())
    def the_cache_is_deleted(self, at: str, again: bool) -> None:
        """The webhook knows, and nothing keeps pods from starting: nobody rescues them any more (test_unhindered.py)."""
        self._until(at)
        self._mend()
        self.fleet.world.webhook.lag = 0.0
        self.fleet.world.webhook.regain_sight()
        self.fleet.delete()
        if again:
            self.fleet.apply()

    @rule(at=MOMENT)
    def the_claim_is_deleted(self, at: str) -> None:
        self._until(at)
        if self.there:
            self.fleet.delete(CLAIM_PLACE)

    @rule(at=MOMENT)
    def the_agent_is_deleted(self, at: str) -> None:
        self._until(at)
        self.fleet.delete(("v1", "ConfigMap", KEY.namespace, agent_name()))

    @rule(at=MOMENT)
    def the_status_is_wiped(self, at: str) -> None:
        self._until(at)
        if self.there:
            self.fleet.wipe_status()

    # --- the world

    @rule(at=MOMENT, which=st.lists(st.integers(0, 9), min_size=1, max_size=8))
    def the_world_moves(self, at: str, which: list[int]) -> None:
        self._until(at)
        for one in which:
            if moves := self.fleet.world.moves():
                moves[one % len(moves)][1]()
                self.fleet.laws.check()

    @rule(at=MOMENT, seconds=st.sampled_from([1.0, 6.0, 41.0, 130.0, 700.0, 4000.0]))
    def time_passes(self, at: str, seconds: float) -> None:
        self._until(at)
        self.fleet.clock.advance(seconds)

    @rule(at=MOMENT, fault=st.sampled_from(["evict", "delete_pod", "crash_engine"]), which=WHICH)
    def a_consumer_is_disrupted(self, at: str, fault: str, which: int) -> None:
        self._until(at)
        if pods := self.fleet.consumers():
            getattr(self.fleet.world, fault)(pods[which % len(pods)])

    @rule(
        at=MOMENT,
        fault=st.sampled_from(["evict", "crash_engine", "crash_seal", "pressure"]),
        which=WHICH,
    )
    def an_attempt_is_spoilt(self, at: str, fault: str, which: int) -> None:
        self._until(at)
        if pods := [*self.fleet.world.pods(TUNING), *self.fleet.world.pods(PROOF)]:
            getattr(self.fleet.world, fault)(pods[which % len(pods)])

    @rule(
        at=MOMENT,
        fault=st.sampled_from(
            [
                "tag",
                "mount",
                "stale",
                "hangs",
                "shell",
                "python",
                "torn",
                "folder",
                "versions",
                "quota",
                "gpus",
                "tuning",
                "warm hangs",
                "warm tunes",
                "warm crash",
                "release",
                "no node",
            ]
        ),
    )
    def something_breaks(self, at: str, fault: str) -> None:
        self._until(at)
        if not self.there:
            return
        world = self.fleet.world
        volume = world.volumes.get(world.claim_uid(KEY.namespace, CLAIM))
        if fault == "mount":
            world.unmountable = {CLAIM, "shared"}
        elif fault == "stale":
            world.stale = {CLAIM, "shared"}
        elif fault == "tag":
            world.content = {one: f"{one} of today" for one in IMAGES}
        elif fault == "hangs":
            world.seed_hangs = True
        elif fault == "shell":
            world.without_shell = set(IMAGES[1:])
        elif fault == "python":
            world.without_python = set(IMAGES[1:])
        elif fault == "versions":
            world.versions[IMAGES[1]] = Versions(vllm="0.34.0")
        elif fault == "quota":
            world.gpu_quota = 4
        elif fault == "gpus":
            world.gpus = 4
        elif fault == "tuning":
            world.engine_hangs = True
        elif fault == "warm hangs":
            world.warm_hangs = True
        elif fault == "warm tunes":
            world.tunes_again = True
        elif fault == "warm crash":
            world.warm_crashes = 1
        elif fault == "release":
            world.release_refusal = "no UPDATE of pods"
        elif fault == "no node":
            world.free_gpus = False
        elif volume and fault == "torn":
            volume.torn |= set(volume.bundles)
        elif volume and fault == "folder":
            world.pruned += [place[1] for place in volume.bundles]  # by somebody
            volume.bundles.clear()

    @rule(at=MOMENT)
    def all_is_mended(self, at: str) -> None:
        self._until(at)
        self._mend()

    @rule(at=MOMENT, how=st.sampled_from(["down", "up", "late", "prompt", "blind", "seeing"]))
    def the_webhook_has_its_moods(self, at: str, how: str) -> None:
        self._until(at)
        webhook = self.fleet.world.webhook
        if how in ("down", "up"):
            webhook.up = how == "up"
        elif how in ("late", "prompt"):
            webhook.lag = 30.0 if how == "late" else 0.0
        else:
            (webhook.lose_sight if how == "blind" else webhook.regain_sight)()

    # --- controllers

    @rule(at=MOMENT, alive=st.booleans())
    def the_controller_goes_or_comes(self, at: str, alive: bool) -> None:
        self._until(at)
        (self.fleet.come_up if alive else self.fleet.down)()

    @rule(at=MOMENT, call=CALL, when=WHEN)
    def a_controller_is_killed(self, at: str, call: int, when: str) -> None:
        self._until(at)
        self.fleet.crash(call, when)

    @rule(at=MOMENT, call=CALL)
    def a_leader_is_stopped(self, at: str, call: int) -> None:
        self._until(at)
        self.fleet.stop_before(call)

    @precondition(lambda self: self.fleet.late)
    @rule(at=MOMENT)
    def old_leaders_go_on(self, at: str) -> None:
        self._until(at)
        self.fleet.go_on()

    # --- what is expected

    def _mend(self) -> None:
        world = self.fleet.world
        world.unmountable, world.without_shell, world.without_python = set(), set(), set()
        world.release_refusal, world.free_gpus = "", True
        world.seed_hangs = world.engine_hangs = world.warm_hangs = world.tunes_again = False
        world.content.clear()
        world.stale.clear()
        world.gpu_quota, world.gpus = None, 64
        world.versions.clear()

    def _calm_down(self) -> None:
        """Nobody waits any more and all serve, with whatever is broken still broken but for what pods need without us too."""
        fleet, world = self.fleet, self.fleet.world
        world.gpu_quota, world.gpus = None, 64
        fleet.come_up()
        fleet.go_on()
        world.webhook.regain_sight()
        fleet.settle(2 * FAR)
        fleet.promises.at_rest()
        self._all_serve()
        self._mend()
        world.webhook.up, world.webhook.lag = True, 0.0
        fleet.delete()
        fleet.settle(2 * FAR)
        assert not fleet.held() and not fleet.world.jobs()
        self._all_serve()

    def _all_serve(self) -> None:
        """But for those that are to be kept: their bundle is not sealed, and a person has asked for it."""
        fleet = self.fleet
        waiting = {one["metadata"]["name"] for one in fleet.held()}
        for kind in ("Deployment", "StatefulSet"):
            for one in fleet.server.list("apps/v1", kind, KEY.namespace):
                mine = [
                    pod
                    for pod in fleet.consumers()
                    if pod["metadata"]["labels"]["app"] == one["metadata"]["name"]
                ]
                wanted = one["spec"]["replicas"]
                if not any(pod["metadata"]["name"] in waiting for pod in mine):
                    assert sum(map(ready, mine)) == wanted == len(mine), (
                        kind,
                        [pod["status"] for pod in mine],
                    )


TestAnythingHappensToConsumers = AnythingHappensToConsumers.TestCase
TestAnythingHappensToConsumers.settings = hypothesis.settings(
    hypothesis.settings.get_profile("sim-search" if SEARCH else "sim"),
    max_examples=1000 if SEARCH else examples(40),
    stateful_step_count=14 if SEARCH else 10,
    suppress_health_check=list(hypothesis.HealthCheck),
)
