"""Many rollouts after one another, each with a fault: none waits for ever, all serve.

`make soak` plays 300; otherwise it is a few.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from pretune.protocol import Versions

from tests.sim.fleet import Fleet
from tests.sim.reading import ready
from tests.sim.simulation import CLAIM, FAR
from tests.sim.world import World

pytestmark = pytest.mark.long

ROLLOUTS = int(os.environ.get("PRETUNE_SOAK") or 12)
REPLICAS = 3
STRATEGY = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def _mount(world: World) -> None:
    world.unmountable = {CLAIM}


def _no_shell(world: World) -> None:
    world.without_shell = {f"vllm:{number}" for number in range(ROLLOUTS + 1)}


def _other_versions(world: World) -> None:
    world.versions = {f"vllm:{number}": Versions(vllm="0.34.0") for number in range(ROLLOUTS + 1)}


def _attribute(name: str, value: object) -> Callable[[World], None]:
    return lambda world: setattr(world, name, value)


FAULTS: dict[str, Callable[[World], None]] = {
    "none": lambda world: None,
    "the claim cannot be mounted": _mount,
    "no shell": _no_shell,
    "other versions": _other_versions,
    "seed hangs": _attribute("seed_hangs", True),
    "tuning hangs": _attribute("engine_hangs", True),
    "releases are refused": _attribute("release_refusal", "no UPDATE of pods"),
    "no node": _attribute("free_gpus", False),
    "quota": _attribute("gpu_quota", REPLICAS + 1),
    "the webhook is down": lambda world: setattr(world.webhook, "up", False),
    "the webhook is late": lambda world: setattr(world.webhook, "lag", 30.0),
}


def _mend(world: World) -> None:
    world.unmountable, world.without_shell, world.versions = set(), set(), {}
    world.seed_hangs = world.engine_hangs = False
    world.release_refusal, world.free_gpus, world.gpu_quota = "", True, None
    world.webhook.up, world.webhook.lag = True, 0.0


def test_rollouts_with_faults_end_with_all_pods_ready_and_none_held() -> None:
    chance = random.Random(10)
    fleet = Fleet()
    fleet.promises.calm = False
    try:
        fleet.serve("vllm:0", replicas=REPLICAS, strategy=STRATEGY)
        fleet.apply(hold={"timeoutSeconds": 3600})
        fleet.settle(FAR)
        for number in range(1, ROLLOUTS + 1):
            fault = chance.choice(list(FAULTS))
            FAULTS[fault](fleet.world)
            fleet.ahead = fleet.controller.ahead = chance.choice((-600.0, 0.0, 600.0))
            fleet.serve(f"vllm:{number}")
            fleet.settle(chance.choice((30.0, 120.0, 600.0)))
            if chance.random() < 0.3:
                fleet.crash(chance.randint(1, 20), "after")
            fleet.settle(2 * FAR)
            _assert_all_serve(fleet, number, fault)
            _mend(fleet.world)
            fleet.come_up()
            fleet.settle(FAR)
            fleet.laws.check()
    finally:
        fleet.close()


def _assert_all_serve(fleet: Fleet, number: int, fault: str) -> None:
    pods = fleet.consumers()
    state = f"rollout {number}, {fault}: {[pod['status'] for pod in pods]}"
    assert not fleet.held(), state
    assert [ready(pod) for pod in pods] == [True] * REPLICAS, state
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    assert images == {f"vllm:{number}"}, state
