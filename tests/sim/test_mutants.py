"""Each promise is one that can be broken: with this change of the product, that journey fails, and by that promise's own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pretune import origin
from pretune.api import reasons
from pretune.api.names import PROOF, TUNING
from pretune.api.status import BundleStatus, Undeliverable
from pretune.manifests.delivery_modes import Delivery
from pretune.manifests.injection import inject
from pretune.podspec import workloads
from pretune.policy.bundles import proofs, retries, tuning
from pretune.policy.hold import gate, release
from pretune.policy.model import Delete
from pretune.policy.objects import delete
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods import delivery, rescue
from pretune.policy.pods.consumers import Consumer
from pretune.webhook import admission, template_cache
from pretune.webhook.informers import CacheInformer

from tests.sim.fleet import Fleet
from tests.sim.reading import state
from tests.sim.simulation import CLAIM, FAR
from tests.sim.steps import lowest, replaced, rolled_out, scaled_to_zero_and_back

Journey = Callable[[Fleet], None]


# --- journeys, which end well as they are


def rollout(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.serve("vllm:2")
    assert lowest(fleet) == 3
    assert fleet.warm("vllm:2") == [True] * 3, "held pods start warm"
    assert len(fleet.world.starts) == 2, "one tuning a bundle"
    replaced(fleet, "vllm:2")


def rollout_of_pods_with_an_identity_each(fleet: Fleet) -> None:
    def identify(pod: Any) -> None:
        pod["spec"]["containers"][0].setdefault("env", []).append(
            {"name": "TOKEN", "value": pod["metadata"]["name"]}
        )

    fleet.world.webhook.before = [identify]
    fleet.serve("vllm:1")
    fleet.apply(source=None)
    fleet.settle()
    assert len(fleet.world.starts) == 1, "one tuning a bundle"


def rollout_with_another_gate(fleet: Fleet) -> None:
    def kueue(pod: Any) -> None:
        pod["spec"].setdefault("schedulingGates", []).append({"name": "kueue.x-k8s.io/admission"})

    rolled_out(fleet)
    fleet.world.webhook.before = [kueue]
    fleet.serve("vllm:2")
    fleet.settle()


def hold_that_times_out(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"hold": {"timeoutSeconds": 100}, "tuning": {"deadlineSeconds": 3000}})
    fleet.world.engine_hangs = True
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def scale_up(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.serve(replicas=5)
    fleet.settle()
    replaced(fleet, "vllm:1", 5)


def scale_up_where_pods_always_wait(fleet: Fleet) -> None:
    fleet.serve(replicas=0)
    fleet.apply(hold={"when": "Always"})
    fleet.settle()
    fleet.serve(replicas=2)
    fleet.settle()
    replaced(fleet, "vllm:1", 2)


def rollout_without_controller(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.down()
    fleet.clock.advance(15)
    fleet.serve("vllm:2")
    fleet.settle()


def broken_mount(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.world.unmountable.add(CLAIM)
    fleet.serve(replicas=4)
    fleet.settle(FAR)
    replaced(fleet, "vllm:1", 4)


def recreate(fleet: Fleet) -> None:
    rolled_out(fleet, strategy={"type": "Recreate"})
    fleet.serve("vllm:2")
    fleet.settle()
    replaced(fleet, "vllm:2")


def rollout_that_waits_for_its_proof(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"verify": "BeforeRelease"})
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.warm("vllm:2") == [True] * 3, "held pods start warm"
    replaced(fleet, "vllm:2")


def rollout_that_fails_its_proof(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"verify": "BeforeRelease"})
    fleet.world.tunes_again = True
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def a_workload_that_fails_is_scaled_to_zero(fleet: Fleet) -> None:
    fleet.world.engine_crashes = 1000
    fleet.serve()
    fleet.apply(source=None)
    fleet.settle(FAR)
    assert fleet.ready == ("False", "EngineFailed")
    before = len(fleet.world.starts)
    for _ in range(3):
        scaled_to_zero_and_back(fleet)
    assert fleet.ready == ("False", "EngineFailed")
    assert len(fleet.world.starts) == before, "a failure costs its attempts once"


def a_proof_is_disturbed(fleet: Fleet) -> None:
    """A drain, and a person who deletes its pod: nothing of that is the bundle's fault."""
    fleet.pace = 0.0  # every state of its pod is seen
    fleet.deploy()
    fleet.apply(verify="BeforeRelease", tuning={"maxAttempts": 1})
    for spoil in (fleet.world.evict, fleet.world.delete_pod):
        fleet.settle(
            FAR,
            until=lambda: any("running" in state(pod, "vllm") for pod in fleet.world.pods(PROOF)),
        )
        for pod in fleet.world.pods(PROOF):
            spoil(pod)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed"), "no verdict about the bundle"


def an_attempt_is_suspended(fleet: Fleet) -> None:
    """Kueue preempts it twice: nothing of that is the engine's fault."""
    fleet.pace = 0.0  # every state of its pod is seen
    fleet.deploy()
    fleet.apply(tuning={"maxAttempts": 1})
    for _ in range(2):
        fleet.settle(FAR, until=lambda: fleet.ready[1] == "Tuning")
        [job] = fleet.world.jobs(TUNING)
        fleet.world.suspend(job)
        fleet.settle(3)
        assert fleet.ready[1] == "Queued", "a suspension is no failure"
        fleet.world.resume(job)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed"), "a suspension is no failure"


def rollback_while_the_webhook_is_blind(fleet: Fleet) -> None:
    """What it last saw as sealed was pruned meanwhile."""
    rolled_out(fleet, spec={"bundleHistoryLimit": 1})
    fleet.serve("vllm:2")
    fleet.settle()
    fleet.world.webhook.lose_sight()
    fleet.settle(FAR)
    assert fleet.world.pruned, "the bundle of the older revision"
    fleet.serve("vllm:1")
    fleet.settle(FAR)
    assert fleet.modes("vllm:1") == {""}, "nothing is given that may be gone"


# --- mutants

RELEASES, HOLDS = list(release.RELEASE_RULES), list(gate.HOLD_RULES)
REAL_DELIVERY, REAL_INJECT, REAL_REQUEUE_AT, REAL_RESCUE = (
    delivery.decide_delivery,
    inject,
    PlanBuilder.requeue_at,
    rescue.rescue,
)


def asking_no_proof(pod: Any, given: Any) -> Any:
    return REAL_INJECT(pod, replace(given, proven=False))


def holding_all(*given: Any, **named: Any) -> Delivery:
    found = REAL_DELIVERY(*given, **named)
    return replace(found, held=True) if found.mode == "Overlay" else found


def labelling(pod: Any, given: Any) -> Any:
    made = REAL_INJECT(pod, given)
    return [*made, {"op": "add", "path": "/metadata/labels/ours", "value": "x"}] if made else made


def unless_proof_is_required(held: release.HeldPod) -> str | None:
    return None if held.plan.spec.verify == "BeforeRelease" else release.sealed(held)


def hourly(plan: PlanBuilder, when: float | None) -> None:
    REAL_REQUEUE_AT(plan, None if when is None else max(when, plan.now + 3600))


def deleting(plan: PlanBuilder, pods: Any) -> None:
    for one in pods:
        if one.given_bundle in plan.bundles and one.has_started:
            mark = Undeliverable(reasons.MOUNT_FAILED, "the mutant's mark", plan.timestamp)
            plan.put(replace(plan.bundles[one.given_bundle], undeliverable=mark))
            plan.after.append(delete(one.pod))


def forgetful(plan: PlanBuilder, pods: Any) -> None:
    REAL_RESCUE(plan, pods)
    plan.actions += [one for one in plan.after if isinstance(one, Delete)]


def insatiable(plan: PlanBuilder, pods: Any) -> None:
    REAL_RESCUE(plan, pods)
    plan.requeue_at(plan.now)


@dataclass(frozen=True)
class Mutant:
    where: tuple[Any, ...]  # modules or classes
    name: str
    what: Any
    journey: Journey
    caught_by: str


MUTANTS = {
    "nobody is let go when the time is over": Mutant(
        (release,),
        "RELEASE_RULES",
        [rule for rule in RELEASES if rule.cause != "TimedOut"],
        hold_that_times_out,
        "is held for longer|nobody looks at .* in time",
    ),
    "nobody looks when the time is over": Mutant(
        (PlanBuilder,), "requeue_at", hourly, hold_that_times_out, "nobody looks at .* in time"
    ),
    "nobody is let go when it is sealed": Mutant(
        (release,),
        "RELEASE_RULES",
        [rule for rule in RELEASES if rule.cause != "Sealed"],
        rollout,
        "held although its bundle is sealed",
    ),
    "pods are let go before the seal": Mutant(
        (release,),
        "RELEASE_RULES",
        [release.Rule("Sealed", lambda held: "soon"), *RELEASES],
        rollout,
        "held pods start warm",
    ),
    "every gate is removed": Mutant(
        (release,),
        "release_patch",
        lambda: {"spec": {"schedulingGates": None}},
        rollout_with_another_gate,
        "more than our gate",
    ),
    "pods are held where nobody lives to release them": Mutant(
        (gate,),
        "HOLD_RULES",
        [rule for rule in HOLDS if rule is not gate.controller_is_gone],
        rollout_without_controller,
        "no controller is seen to live",
    ),
    "pods are held where nothing serves": Mutant(
        (gate,),
        "HOLD_RULES",
        [rule for rule in HOLDS if rule is not gate.nothing_serves],
        recreate,
        "nothing serves meanwhile",
    ),
    "pods of a sealed revision are held": Mutant(
        (admission,),
        "decide_delivery",
        holding_all,
        scale_up_where_pods_always_wait,
        "held although its bundle is sealed",
    ),
    "a bundle is given before it is proven": Mutant(
        (BundleStatus,),
        "may_be_given",
        lambda bundle, spec: bundle.is_on_claim,
        rollout_that_waits_for_its_proof,
        "held pods start warm",
    ),
    "nobody is let go when it is proven": Mutant(
        (release,),
        "RELEASE_RULES",
        [release.Rule("Sealed", unless_proof_is_required), *RELEASES[1:]],
        rollout_that_waits_for_its_proof,
        "held although its bundle is sealed",
    ),
    "seed is not told to ask for the proof": Mutant(
        (admission,),
        "inject",
        asking_no_proof,
        rollout_that_fails_its_proof,
        "was given and is not proven",
    ),
    "a failure is forgotten with its pods": Mutant(
        (retries,),
        "find_remembered",
        lambda plan, desired: set(),
        a_workload_that_fails_is_scaled_to_zero,
        "a failure costs its attempts once",
    ),
    "what a deleted pod's containers say is a verdict": Mutant(
        (proofs,),
        "PROOF_CHECKS",
        [check for check in proofs.PROOF_CHECKS if check.__name__ not in ("disrupted", "deleted")],
        a_proof_is_disturbed,
        "no verdict about the bundle",
    ),
    "what a suspended Job's containers say is a failure": Mutant(
        (tuning,),
        "ATTEMPT_CHECKS",
        [
            check
            for check in tuning.ATTEMPT_CHECKS
            if check.__name__ not in ("suspended", "disrupted", "deleted")
        ],
        an_attempt_is_suspended,
        "a suspension is no failure",
    ),
    "bundles are given however long the webhook has been blind": Mutant(
        (CacheInformer,),
        "is_outdated",
        lambda caches: False,
        rollback_while_the_webhook_is_blind,
        "nothing is given that may be gone|only we keep",
    ),
    "each pod is its own template": Mutant(
        (workloads, origin, template_cache),
        "origin_of",
        lambda pod: None,
        rollout_of_pods_with_an_identity_each,
        "one tuning a bundle",
    ),
    "what is injected is not taken out": Mutant(
        (admission,), "inject", labelling, rollout, "not the inverse"
    ),
    "nobody is rescued": Mutant(
        (rescue,), "rescue", lambda plan, pods: None, broken_mount, "is not rescued"
    ),
    "whoever runs is rescued too": Mutant(
        (rescue,), "rescue", deleting, scale_up, "while its engine ran"
    ),
    "a pod is deleted before the status says why": Mutant(
        (rescue,), "rescue", forgetful, broken_mount, "before the status remembers why"
    ),
    "a look wants another one at once": Mutant(
        (rescue,), "rescue", insatiable, broken_mount, "wants another one at once"
    ),
    "cold pods are counted as seeded": Mutant(
        (Consumer,), "is_seeded", property(lambda one: one.has_started), scale_up, "'seeded'"
    ),
}


@pytest.mark.parametrize("journey", list(dict.fromkeys(one.journey for one in MUTANTS.values())))
def test_the_journeys_end_well_as_they_are(fleet: Fleet, journey: Journey) -> None:
    journey(fleet)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, fleet = MUTANTS[name], Fleet()
    for place in mutant.where:
        monkeypatch.setattr(place, mutant.name, mutant.what)
    with pytest.raises(AssertionError, match=mutant.caught_by):
        mutant.journey(fleet)
    fleet.close()
