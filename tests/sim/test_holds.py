"""Journeys of pods that wait: for how long, for what, and what ends it (docs/dev/invariants.md, 3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pretune.api.names import CACHE, HOLD, SEALED
from pretune.api.types import Object
from pretune.kube.types import ApiError

from tests.builders.constants import KEY
from tests.sim.fleet import Fleet
from tests.sim.reading import is_held
from tests.sim.simulation import CACHE as THE_CACHE
from tests.sim.simulation import FAR
from tests.sim.steps import CLAIM_PLACE, a_claim, held, lowest, replaced, rolled_out

TIMEOUT = 100
KUEUE_GATE = "kueue.x-k8s.io/admission"

Fault = Callable[[Fleet], object]


# --- spec.hold


def test_a_hold_ends_when_its_time_is_over_and_the_rest_of_the_rollout_is_not_held(
    fleet: Fleet,
) -> None:
    fleet.world.engine_hangs = True
    fleet.serve("vllm:1")
    fleet.apply(hold={"timeoutSeconds": TIMEOUT}, tuning={"deadlineSeconds": 3000})
    fleet.settle(100)
    at = fleet.clock.now
    fleet.serve("vllm:2")
    fleet.settle(until=lambda: bool(fleet.held()))
    fleet.settle(until=lambda: not fleet.held())
    assert TIMEOUT <= fleet.clock.now - at <= TIMEOUT + 5
    assert "spec.hold.timeoutSeconds" in fleet.said("Released")[0] and len(fleet.said("Held")) == 1
    fleet.settle(FAR)
    assert fleet.warm("vllm:2") == [False] * 3, (
        "those that come after the first that runs are not held"
    )
    replaced(fleet, "vllm:2")


def test_a_shorter_time_ends_a_hold_that_is_older(fleet: Fleet) -> None:
    fleet.world.engine_hangs = True
    held_though_nothing_is_sealed(fleet)
    fleet.clock.advance(50)
    fleet.apply(hold={"timeoutSeconds": 30})
    fleet.reconcile()
    assert not fleet.held()


def held_though_nothing_is_sealed(fleet: Fleet) -> None:
    fleet.serve("vllm:1")
    fleet.apply()
    fleet.settle(100)
    fleet.serve("vllm:2")
    fleet.settle(until=lambda: bool(fleet.held()))


@pytest.mark.parametrize(
    ("when", "serves", "waits"),
    [
        ("Always", True, True),
        ("Always", False, True),
        ("WhenServing", True, True),
        ("WhenServing", False, False),
        ("Never", True, False),
    ],
)
def test_who_waits_is_said_by_hold_when(fleet: Fleet, when: str, serves: bool, waits: bool) -> None:
    if serves:
        rolled_out(fleet, spec={"hold": {"when": when}})
    else:
        fleet.apply(source=None, hold={"when": when})
        fleet.settle()
    before = len(fleet.said("Held"))
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    assert bool(fleet.said("Held")[before:]) == waits
    assert all(fleet.warm("vllm:2")) == waits
    replaced(fleet, "vllm:2")


def spoil(fleet: Fleet) -> None:
    fleet.world.engine_crashes = 6  # three attempts, each started twice


def refuse(fleet: Fleet) -> None:
    fleet.world.check_says = [("ReleaseTooOld", "vllm 0.24 in the image")]


def time_is_over(fleet: Fleet) -> None:
    fleet.world.engine_hangs = True


@pytest.mark.parametrize(
    ("fault", "words"),
    [(spoil, "EngineFailed"), (refuse, "ReleaseTooOld"), (time_is_over, "timeoutSeconds")],
)
@pytest.mark.parametrize("on_failure", ["Start", "Keep"])
def test_what_fails_lets_pods_start_cold_unless_they_are_to_be_kept(
    fleet: Fleet, fault: Fault, words: str, on_failure: str
) -> None:
    hold = {"onFailure": on_failure, "timeoutSeconds": 300}
    rolled_out(fleet, spec={"hold": hold, "tuning": {"deadlineSeconds": 3000}})
    fault(fleet)
    fleet.serve("vllm:2")
    least = lowest(fleet, 2500)
    assert least == 3
    if on_failure == "Start":
        assert words in fleet.said("Released")[0] and fleet.warm("vllm:2") == [False] * 3
        replaced(fleet, "vllm:2")
        return
    assert len(fleet.held()) == 1 and not fleet.said("Released") and fleet.serving("vllm:1") == 3
    fleet.apply(hold={"onFailure": "Start"})
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


# --- what happens under a hold


def delete_cache(fleet: Fleet) -> None:
    fleet.delete(THE_CACHE)


def make_cache_again(fleet: Fleet) -> None:
    fleet.delete(THE_CACHE)
    fleet.apply()


def delete_source(fleet: Fleet) -> None:
    fleet.apply(
        source={"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "another"}}
    )


def use_up_the_quota(fleet: Fleet) -> None:
    """Four pods hold four GPUs of the quota, the attempt's pod would be the fifth."""
    fleet.world.evict(fleet.world.pods("tuning")[0])
    fleet.world.gpu_quota = 4


UNDER_A_HOLD: dict[str, tuple[Fault, str, float]] = {
    "cache deleted": (delete_cache, "", 1),
    "cache made again": (make_cache_again, "", 300),
    "suspended": (lambda fleet: fleet.apply(suspend=True), "spec.suspend", 1),
    "hold.when changed": (lambda fleet: fleet.apply(hold={"when": "Never"}), "spec.hold.when", 1),
    "delivery switched off": (
        lambda fleet: fleet.apply(delivery={"mode": "None"}),
        "spec.delivery.mode",
        1,
    ),
    "engine unknown": (lambda fleet: fleet.apply(engineContainer="another"), "EngineNotFound", 1),
    "source gone": (delete_source, "SourceNotFound", 1),
    "targets changed": (
        lambda fleet: fleet.apply(targets=[{"name": "a"}, {"name": "b"}]),
        "is unknown",
        1,
    ),
    "claim deleted": (lambda fleet: fleet.delete(CLAIM_PLACE), "", 600),
    "storage moved to what is not there": (
        lambda fleet: fleet.apply(storage={"claim": None, "existingClaim": {"name": "absent"}}),
        "ClaimNotFound",
        1,
    ),
    "quota used up": (use_up_the_quota, "exceeded quota", 60),
}


@pytest.mark.parametrize("name", UNDER_A_HOLD)
def test_what_happens_under_a_hold_ends_it_in_time_and_the_rollout_ends_well(
    fleet: Fleet, name: str
) -> None:
    fault, words, within = UNDER_A_HOLD[name]
    held(fleet)
    waiting = [one["metadata"]["uid"] for one in fleet.held()]
    fault(fleet)
    at = fleet.clock.now

    def free() -> bool:
        return not any(one["metadata"]["uid"] in waiting for one in fleet.held())

    fleet.settle(FAR, until=free)
    assert free() and fleet.clock.now - at <= within, fleet.clock.now - at
    if words:
        assert any(words in one for one in fleet.said("Released")), fleet.said("Released")
    lowest(fleet, FAR)
    assert fleet.serving("vllm:2") == 3 == len(fleet.consumers())
    if fleet.server.get(*THE_CACHE) is not None:
        fleet.promises.at_rest()


@pytest.mark.parametrize("on_failure", ["Start", "Keep"])
def test_nobody_waits_for_a_bundle_that_is_not_made_any_more(fleet: Fleet, on_failure: str) -> None:
    """Its seed looks for what it was given when it was made, whatever the cache says by now."""
    held(fleet, spec={"hold": {"onFailure": on_failure}})
    fleet.apply(revision="r2")
    fleet.settle(5)
    assert not fleet.held()


def test_pods_that_wait_for_what_others_cannot_start_with_are_let_go(fleet: Fleet) -> None:
    fleet.world.without_shell.add("vllm:2")
    held(fleet)
    fleet.world.engine_hangs = True
    fleet.stateful("vllm:2")  # whose pods are not held
    fleet.settle(200, until=lambda: not fleet.held())
    assert "SeedCannotRun" in fleet.said("Released")[0]
    fleet.settle(FAR)
    replaced_with_a_set(fleet, "vllm:2")


def replaced_with_a_set(fleet: Fleet, image: str) -> None:
    assert fleet.serving(image) == 3 + 2 == len(fleet.consumers())
    fleet.promises.at_rest()


@pytest.mark.parametrize("serves", [True, False])
def test_where_a_pod_of_the_attempt_is_refused_one_pod_waits_for_a_moment_and_the_others_not_at_all(
    fleet: Fleet, serves: bool
) -> None:
    rolled_out(fleet, spec={} if serves else {"hold": {"when": "Always"}})
    fleet.world.quota, before = "exceeded quota: gpus", len(fleet.said("Released"))
    fleet.serve("vllm:2")
    fleet.settle(600)
    assert len(fleet.said("Released")) == before + 1 and fleet.warm("vllm:2") == [False] * 3
    fleet.world.quota = ""
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def test_pods_of_too_many_engines_are_let_go_and_those_that_come_later_not_held(
    fleet: Fleet,
) -> None:
    fleet.apply(source=None, hold={"when": "Always"}, tuning={"deadlineSeconds": 3000})
    fleet.settle()
    fleet.world.engine_hangs = True
    for index in range(6):
        fleet.serve(name=f"each-{index}", replicas=1, env=[{"name": "POD_ID", "value": str(index)}])
        fleet.settle(5)
    assert any("TooManyFingerprints" in one for one in fleet.said("Released"))
    assert 1 <= len(fleet.held()) <= 4
    fleet.serve(name="each-6", replicas=1, env=[{"name": "POD_ID", "value": "6"}])
    before = len(fleet.said("Released"))
    fleet.settle(30)
    newest = [one for one in fleet.consumers() if one["metadata"]["labels"]["app"] == "each-6"]
    assert not is_held(newest[0]) and len(fleet.said("Released")) == before
    fleet.settle(FAR)
    fleet.promises.at_rest()


def test_a_pod_that_chooses_its_node_is_not_held(fleet: Fleet) -> None:
    rolled_out(fleet, pod={"nodeName": "node-1"})
    fleet.serve("vllm:2", pod={"nodeName": "node-1"})
    fleet.settle()
    assert not fleet.said("Held") and fleet.reasons("vllm:2") == {"NotSealedYet", "Given"}


def test_a_revision_changed_under_a_hold_ends_in_a_rollout_that_serves(fleet: Fleet) -> None:
    held(fleet)
    fleet.apply(revision="r2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def test_a_cache_moved_to_another_claim_under_a_hold_lets_its_pods_start(fleet: Fleet) -> None:
    a_claim(fleet, "larger")
    held(fleet)
    fleet.apply(storage={"claim": None, "existingClaim": {"name": "larger"}})
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def test_one_answer_500_to_the_attempts_job_lets_nobody_go(fleet: Fleet) -> None:
    rolled_out(fleet)
    failures = [ApiError(500, "InternalError", "etcdserver: request timed out")]

    def fail(verb: str, obj: Object) -> None:
        if verb == "create" and obj["kind"] == "Job" and failures:
            raise failures.pop()

    fleet.server.admission.append(fail)
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    assert fleet.warm("vllm:2") == [True] * 3


# --- whose gates


def test_only_our_gate_is_removed_and_kueues_stays(fleet: Fleet) -> None:
    def kueue(pod: Object) -> None:
        pod["spec"].setdefault("schedulingGates", []).append({"name": KUEUE_GATE})

    rolled_out(fleet)
    fleet.world.webhook.before = [kueue]
    fleet.serve("vllm:2")
    fleet.settle()
    pod = fleet.consumers("vllm:2")[0]
    assert [one["name"] for one in pod["spec"]["schedulingGates"]] == [KUEUE_GATE]
    assert fleet.record["state"] == SEALED and fleet.said("Released")


def test_a_gate_of_our_name_on_a_pod_of_nobody_is_let_go_too(fleet: Fleet) -> None:
    """A manifest that was copied from a held pod, under a cache that is there."""
    rolled_out(fleet)
    fleet.world.webhook.up = False
    meta = {"namespace": KEY.namespace, "name": "copy", "labels": {CACHE: KEY.name}}
    spec = {
        "schedulingGates": [{"name": HOLD}],
        "containers": [{"name": "vllm", "image": "vllm:9"}],
    }
    fleet.server.listeners.remove(fleet.promises.on_pod)
    fleet.server.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    fleet.settle()
    found = fleet.server.get("v1", "Pod", KEY.namespace, "copy")
    assert found is not None and not is_held(found)


# --- the controller


def test_pods_made_while_no_controller_lives_are_not_held(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.down()
    fleet.clock.advance(15)
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.reasons("vllm:2") == {"NotSealedYet"} and fleet.warm("vllm:2") == [False] * 3
    assert fleet.serving("vllm:2") == 3
    fleet.come_up()
    fleet.settle()
    replaced(fleet, "vllm:2")
    assert fleet.record["state"] == SEALED


@pytest.mark.parametrize("moment", ["held", "tuning", "sealed"])
def test_a_controller_that_comes_back_lets_go_whoever_waited_meanwhile(
    fleet: Fleet, moment: str
) -> None:
    held(fleet)
    if moment == "sealed":
        fleet.settle(until=lambda: len(fleet.on_claim()) == 2)
    elif moment == "tuning":
        fleet.settle(until=lambda: fleet.engine_starts == 2)
    fleet.down()
    fleet.settle(3000)
    fleet.clock.advance(3000)
    assert len(fleet.held()) == 1 and fleet.serving("vllm:1") == 3
    fleet.come_up()
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")
    assert fleet.engine_starts == 2


def test_where_the_operator_is_gone_one_documented_line_frees_the_pods(fleet: Fleet) -> None:
    """kubectl patch pod -p '{"spec":{"schedulingGates":[{"$patch":"delete","name":"pretune.dev/hold"}]}}', pod after pod."""
    held(fleet)
    fleet.down()
    fleet.world.webhook.up = False
    fleet.clock.advance(3600)
    line = {"spec": {"schedulingGates": [{"$patch": "delete", "name": HOLD}]}}
    for pod in fleet.held():
        fleet.server.patch(pod, line, strategic=True)
    fleet.settle()
    assert fleet.serving("vllm:2") == 3 == len(fleet.consumers()) and not fleet.held()


@pytest.mark.parametrize("seconds", [5.0, 60.0])
def test_a_webhook_that_sees_late_holds_nobody_for_ever(fleet: Fleet, seconds: float) -> None:
    rolled_out(fleet)
    fleet.world.webhook.lag = seconds
    fleet.serve("vllm:2")
    assert lowest(fleet) == 3
    replaced(fleet, "vllm:2")


def test_a_webhook_that_sees_nothing_for_fifteen_seconds_holds_nobody(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.world.webhook.lose_sight()
    fleet.clock.advance(15)
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.reasons("vllm:2") == {"NotSealedYet"}
    replaced(fleet, "vllm:2")
