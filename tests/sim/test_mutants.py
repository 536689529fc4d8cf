"""Each promise is one that can be broken: with this change of the product, that journey fails, and by that promise's own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pretune import origin
from pretune.api import reasons
from pretune.api.names import BUNDLE, PROOF, TUNING
from pretune.api.status import BundleStatus, Undeliverable
from pretune.kube.server_clock import ServerClock
from pretune.manifests import copied_annotations, tuning_pod
from pretune.manifests import engine as manifests_engine
from pretune.manifests import job as manifests_job
from pretune.manifests.agent_archive import agent_name, build_agent_config_map, is_agent
from pretune.manifests.delivery_modes import Delivery
from pretune.manifests.injection import inject
from pretune.podspec import preflight, source, workloads
from pretune.policy.bundles import proofs, retries, start_rules, tuning
from pretune.policy.cache import agent_configmap
from pretune.policy.hold import gate, release
from pretune.policy.model import Delete
from pretune.policy.objects import delete
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods import delivery, rescue
from pretune.policy.pods.consumers import Consumer
from pretune.webhook import admission, template_cache
from pretune.webhook.informers import CacheInformer

from tests.builders.constants import KEY
from tests.builders.hostile_templates import growing_env
from tests.sim.fleet import Fleet
from tests.sim.promises import ACTING
from tests.sim.reading import note, state
from tests.sim.simulation import CLAIM, FAR, REF
from tests.sim.steps import a_claim, lowest, replaced, rolled_out, scaled_to_zero_and_back
from tests.sim.world import KUEUE

Journey = Callable[[Fleet], None]


# --- journeys, which end well as they are


def template_without_bounds(fleet: Fleet) -> None:
    """Its pods start cold, its owner reads why, and the next template is tuned as ever."""
    rolled_out(fleet)
    many = [{"name": f"B{n}", "value": ""} for n in range(1001)]
    for image, env, reason in (
        ("vllm:2", growing_env(6), "NotTunable"),
        ("vllm:3", many, "TooLarge"),
    ):
        fleet.serve(image, env=env)
        fleet.settle()
        replaced(fleet, image)
        assert fleet.reasons(image) == {reason}, f"{image} has no bounds"
        ready = next(one for one in fleet.status["conditions"] if one["type"] == "Ready")
        assert ready["reason"] == "TooLarge", f"{image}: its owner does not read why"
    fleet.serve("vllm:4")
    fleet.settle()
    replaced(fleet, "vllm:4")
    assert fleet.ready == ("True", "Sealed"), "the next template is tuned"


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


def release_that_is_refused(fleet: Fleet) -> None:
    """By a policy that somebody adds while pods are held. The second rollout is not held at all."""
    rolled_out(fleet)
    fleet.world.release_refusal = "no UPDATE of pods"
    for image in ("vllm:2", "vllm:3"):
        fleet.serve(image)
        assert lowest(fleet) == 3
        fleet.promises.at_rest()
        replaced(fleet, image)
    assert "no UPDATE of pods" in fleet.said("ReleaseRefused")[0]
    assert len(fleet.said("Held")) == 1, "whoever could not be released is held once"


def release_that_is_refused_for_a_moment(fleet: Fleet) -> None:
    """A webhook is away while its pod is replaced."""
    rolled_out(fleet)
    fleet.world.release_refusal = "failed calling webhook"
    fleet.serve("vllm:2")
    fleet.settle(FAR, until=lambda: bool(fleet.controller.refusals.of(KEY)))
    began = fleet.clock.now
    fleet.settle(FAR, until=lambda: fleet.clock.now >= began + 20)
    fleet.world.release_refusal = ""
    fleet.settle()
    replaced(fleet, "vllm:2")
    assert not fleet.promises.deleted, "a moment costs a held pod"
    assert "releaseRefused" not in fleet.status


def source_that_is_refused_while_storage_fails(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"hold": {"when": "Never"}})
    fleet.apply(source={"workloadRef": {**REF["workloadRef"], "name": "absent"}})
    fleet.settle()
    fleet.world.unmountable.add(CLAIM)
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")
    assert len(fleet.promises.deleted) == 1, "one pod finds out"


def seed_that_cannot_run(fleet: Fleet) -> None:
    """Nothing takes the place of these pods."""
    fleet.apply(source=None)
    rolled_out(fleet)
    fleet.world.without_shell.add("vllm:2")
    fleet.bare("vllm:2")
    fleet.batch("vllm:2")
    fleet.settle(FAR)
    assert fleet.reasons("vllm:2") == {"SeedUntried"}
    fleet.promises.at_rest()


def image_without_a_shell(fleet: Fleet) -> None:
    """Two engines with one image: the second one's pods need not find out again."""
    rolled_out(fleet, spec={"hold": {"when": "Never"}})
    fleet.world.without_shell.add("vllm:2")
    fleet.world.free_gpus = False  # no attempt finds it out
    for number in ("1", "2"):
        fleet.serve("vllm:2", env=[{"name": "N", "value": number}])
        fleet.settle()
        replaced(fleet, "vllm:2")
    assert len(fleet.promises.deleted) == 1, "known per image"


def three_workloads(fleet: Fleet) -> None:
    """Prefill, decode and a router's engine: whether others serve is a question of each."""
    rolled_out(fleet)
    for name, image in (("decode", "vllm:2"), ("small", "vllm:3")):
        fleet.serve(image, name=name)
        fleet.settle()
        assert fleet.serving(image) == 3
    before = len(fleet.said("Held"))
    fleet.serve("vllm:4", name="decode")
    assert lowest(fleet) == 9
    assert len(fleet.said("Held")) == before + 1, "its own older pods serve: it is held"
    assert fleet.warm("vllm:4") == [True] * 3, "held pods start warm"
    fleet.promises.at_rest()


def clock_that_is_ahead(fleet: Fleet) -> None:
    fleet.controller.ahead = 600.0
    rolled_out(fleet, spec={"hold": {"timeoutSeconds": 300}})
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.warm("vllm:2") == [True] * 3, "held pods start warm"
    replaced(fleet, "vllm:2")


def clock_that_is_behind(fleet: Fleet) -> None:
    fleet.controller.ahead = -600.0
    hold_that_times_out(fleet)


def full_cluster(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"tuning": {"nodeWaitSeconds": 60}})
    fleet.world.free_gpus = False
    fleet.serve("vllm:2")
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")
    assert "nodeWaitSeconds" in fleet.said("Released")[0]


QUEUED = {"podTemplate": {"metadata": {"labels": {KUEUE: "gpus"}}}}


def quota_that_held_pods_use_up(fleet: Fleet) -> None:
    """Kueue has admitted the held pod, and has no GPU left for the attempt that it waits for."""

    def admit(pod: Any) -> None:
        pod["metadata"]["labels"][KUEUE] = "gpus"

    rolled_out(fleet)
    fleet.world.kueue = True
    fleet.world.webhook.before = [admit]
    fleet.apply(tuning=QUEUED)
    fleet.serve("vllm:2")
    fleet.settle(until=lambda: bool(fleet.held()))
    at = fleet.clock.now
    fleet.settle(until=lambda: not fleet.held())
    soon = not fleet.held() and fleet.clock.now - at <= 40
    assert soon, "the quota is given back soon"
    fleet.settle(FAR)
    replaced(fleet, "vllm:2")


def older_attempt_that_is_suspended(fleet: Fleet) -> None:
    """Nothing waits for it, and pods wait for the next one."""
    fleet.world.kueue = True
    fleet.serve("vllm:1")
    fleet.apply(source=None, tuning=QUEUED)
    fleet.settle(100)
    fleet.serve("vllm:2")
    fleet.settle(20)
    [job] = fleet.world.jobs(TUNING)
    [pod] = fleet.held("vllm:2")
    assert job["metadata"]["labels"][BUNDLE] == note(pod, BUNDLE), "pods wait for this one"
    fleet.world.resume(job)
    assert lowest(fleet) == 3
    assert fleet.warm("vllm:2") == [True] * 3, "held pods start warm"
    replaced(fleet, "vllm:2")


def source_that_is_suspended(fleet: Fleet) -> None:
    """The source is the newest bundle, and pods wait for an older one's attempt."""
    fleet.world.kueue = True
    fleet.serve("vllm:1")
    fleet.serve("vllm:3", name="next", replicas=0)
    fleet.apply(source={"workloadRef": {**REF["workloadRef"], "name": "next"}}, tuning=QUEUED)
    fleet.settle(100)
    fleet.serve("vllm:2")
    fleet.settle(20, until=lambda: len(fleet.writes("Job", "delete")) > 1)
    assert len(fleet.writes("Job", "delete")) == 1, "what gave way begins again at once"
    [job] = fleet.world.jobs(TUNING)
    [pod] = fleet.held("vllm:2")
    assert job["metadata"]["labels"][BUNDLE] == note(pod, BUNDLE), "pods wait for this one"
    fleet.world.resume(job)
    assert lowest(fleet) == 3
    assert fleet.warm("vllm:2") == [True] * 3, "held pods start warm"


def job_that_cannot_mount(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.world.unmountable.add(CLAIM)
    fleet.batch()
    fleet.settle(600)


def one_bad_node(fleet: Fleet) -> None:
    """A pod there is replaced by one without the bundle; ten minutes later others get it again."""
    fleet.world.nodes = ["node-1", "node-2"]
    rolled_out(fleet)
    fleet.world.bad_nodes = {"node-2"}
    fleet.serve(replicas=5)
    fleet.settle(200)
    assert len(fleet.promises.deleted) == 1
    assert fleet.record["undeliverable"].get("node") == "node-2", "one node is not the bundle"
    fleet.world.nodes = ["node-1"]
    fleet.clock.advance(600)
    fleet.serve(replicas=6)
    fleet.settle(60)
    assert fleet.warm()[-1], "one node does not withdraw the bundle from all"
    replaced(fleet, "vllm:1", 6)


MODELS: Any = {
    "pod": {
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    },
    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
}


def model_on_one_node(fleet: Fleet) -> None:
    """A ReadWriteOnce claim of the engine: each pod may be placed on another node."""
    fleet.world.nodes = ["node-1", "node-2"]
    a_claim(fleet, "models", "ReadWriteOnce")
    fleet.apply()
    fleet.settle()
    rolled_out(fleet, replicas=1, strategy={"type": "Recreate"}, **MODELS)
    fleet.serve("vllm:2", **MODELS)
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed"), "it starts once the claim has a node"
    replaced(fleet, "vllm:2", 1)
    fleet.serve("vllm:3", **MODELS)
    fleet.settle(FAR, until=lambda: fleet.ready[1] == "Tuning")
    fleet.world.delete_pod(fleet.consumers("vllm:3")[0])  # its next one is on the other node
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed")
    assert fleet.record["attempts"] == 1, "the one that gave way does not count"
    assert "lastFailure" not in fleet.record
    replaced(fleet, "vllm:3", 1)


def agent_that_is_changed(fleet: Fleet) -> None:
    rolled_out(fleet)
    foreign = build_agent_config_map(KEY.namespace)
    foreign["binaryData"] = {"agent.py": "ZXZpbA=="}
    fleet.delete(("v1", "ConfigMap", KEY.namespace, agent_name()))
    fleet.server.create(foreign)
    fleet.serve(replicas=5)
    fleet.settle(FAR)
    stored = fleet.server.stored("v1", "ConfigMap", KEY.namespace, agent_name())
    assert stored is not None and is_agent(stored), "a changed agent stays"


def engine_on_its_nodes_network(fleet: Fleet) -> None:
    notes = dict.fromkeys(ACTING, "x")
    del notes["dual-pods.llm-d.ai/requester"]  # refused: the engine registers itself
    port = {"containerPort": 8000, "hostPort": 8000}
    rolled_out(fleet, pod={"hostNetwork": True}, notes=notes, ports=[port])


# --- mutants

RELEASES, HOLDS = list(release.RELEASE_RULES), list(gate.HOLD_RULES)
CHECKS = preflight.PREFLIGHT_CHECKS
REAL_DELIVERY, REAL_INJECT, REAL_REQUEUE_AT, REAL_RESCUE = (
    delivery.decide_delivery,
    inject,
    PlanBuilder.requeue_at,
    rescue.rescue,
)
REAL_MARK = rescue._mark


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


def marking_what_has_a_record(plan: PlanBuilder, bundle_id: str, stuck: Any, node: Any) -> Any:
    _, failure = stuck
    if bundle_id in plan.bundles:
        return REAL_MARK(plan, bundle_id, stuck, node)
    return Undeliverable(failure.reason, failure.message, plan.timestamp)


def nothing_of_the_cache_serves(a: Any) -> str | None:
    fingerprint = a.need.inputs.fingerprint
    others = [one for one in a.status.bundles if one.fingerprint != fingerprint]
    return None if any(one.serving for one in others) else "nothing serves"


def without(rules: list[Any], name: str) -> list[Any]:
    """The rules of a list, or of pairs of a reason and a rule, but for the one of this name."""
    return [one for one in rules if (one[1] if isinstance(one, tuple) else one).__name__ != name]


@dataclass(frozen=True)
class Mutant:
    where: tuple[Any, ...]  # modules or classes
    name: str
    what: Any
    journey: Journey
    caught_by: str


MUTANTS = {
    "an agent of any content is taken": Mutant(
        (agent_configmap,),
        "exists",
        lambda plan: bool(plan.observed.agents),
        agent_that_is_changed,
        "a changed agent stays",
    ),
    "a Job is no cache's": Mutant(
        (manifests_job,), "KIND", "Deployment", rollout, "a policy would refuse"
    ),
    "an attempt is on its node's network": Mutant(
        (tuning_pod,),
        "_LEFT_OUT",
        [name for name in tuning_pod._LEFT_OUT if name != "hostNetwork"],
        engine_on_its_nodes_network,
        "is on its node's network",
    ),
    "an attempt takes a port of its node": Mutant(
        (manifests_engine,),
        "without_host_ports",
        dict,
        engine_on_its_nodes_network,
        "takes a node's port",
    ),
    "annotations that act are copied": Mutant(
        (copied_annotations,),
        "ACTING_ANNOTATIONS",
        (),
        engine_on_its_nodes_network,
        "is where the pods that serve are",
    ),
    "an attempt runs anywhere": Mutant(
        (tuning,),
        "find_nodes",
        lambda plan, desired: None,
        model_on_one_node,
        "takes models to",
    ),
    "an attempt does not wait for the pod that serves": Mutant(
        (start_rules,),
        "BLOCKERS",
        [rule for rule in start_rules.BLOCKERS if rule.__name__ != "volume_unavailable"],
        model_on_one_node,
        "it starts once the claim has a node",
    ),
    "an attempt keeps a claim": Mutant(
        (tuning,),
        "ATTEMPT_CHECKS",
        [check for check in tuning.ATTEMPT_CHECKS if check.__name__ != "needed_elsewhere"],
        model_on_one_node,
        "keeps .* from a pod that serves",
    ),
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
        lambda caches, namespace="": False,
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
    "pods are held where none could be released": Mutant(
        (gate,),
        "HOLD_RULES",
        without(HOLDS, "release_is_refused"),
        release_that_is_refused,
        "is held, and could not be released",
    ),
    "nobody notices that pods cannot be released": Mutant(
        (release,), "MAX_REFUSALS", 10**6, release_that_is_refused, "is held for ever"
    ),
    "a moment of a webhook is a refusal": Mutant(
        (release,),
        "REFUSED_SECONDS",
        0.0,
        release_that_is_refused_for_a_moment,
        "a moment costs a held pod",
    ),
    "a pod without a record is deleted": Mutant(
        (rescue,),
        "_mark",
        marking_what_has_a_record,
        source_that_is_refused_while_storage_fails,
        "was deleted without a mark",
    ),
    "seed is tried where nothing could be replaced": Mutant(
        (delivery,),
        "LEFT_ALONE_RULES",
        without(list(delivery.LEFT_ALONE_RULES), "seed_is_untried"),
        seed_that_cannot_run,
        "SeedUntried|would start without us",
    ),
    "each engine finds out about its image": Mutant(
        (delivery,),
        "LEFT_ALONE_RULES",
        without(list(delivery.LEFT_ALONE_RULES), "seed_cannot_run"),
        image_without_a_shell,
        "known per image",
    ),
    "what serves is asked of the cache": Mutant(
        (gate,),
        "HOLD_RULES",
        [nothing_of_the_cache_serves if one is gate.nothing_serves else one for one in HOLDS],
        three_workloads,
        "nothing serves meanwhile",
    ),
    "a clock that is ahead ends holds": Mutant(
        (ServerClock,), "observe", lambda clock, date: None, clock_that_is_ahead, "start warm"
    ),
    "a clock that is behind prolongs holds": Mutant(
        (ServerClock,),
        "observe",
        lambda clock, date: None,
        clock_that_is_behind,
        "is held for longer|nobody looks at .* in time",
    ),
    "pods wait for a node in a full cluster": Mutant(
        (release,),
        "RELEASE_RULES",
        [rule for rule in RELEASES if rule.cause != "NoNode"],
        full_cluster,
        "and the attempt has no node",
    ),
    "pods keep the quota that their attempt needs": Mutant(
        (release,),
        "RELEASE_RULES",
        [rule for rule in RELEASES if rule.cause != "QuotaUsedUp"],
        quota_that_held_pods_use_up,
        "the quota is given back soon",
    ),
    "the older attempt goes first though it is suspended": Mutant(
        (tuning,),
        "_withdraw_suspended",
        lambda plan, candidates: None,
        older_attempt_that_is_suspended,
        "pods wait for this one",
    ),
    "the newest bundle goes first though pods wait for another": Mutant(
        (tuning,),
        "_rank",
        list,
        source_that_is_suspended,
        "what gave way begins again at once",
    ),
    "one node withdraws a bundle from all": Mutant(
        (rescue,),
        "_find_node",
        lambda mark, stuck, nodes: None,
        one_bad_node,
        "one node is not the bundle",
    ),
    "a Job's pod is deleted": Mutant(
        (rescue,),
        "is_recreated",
        lambda pod: True,
        job_that_cannot_mount,
        "its Job counts that",
    ),
    "variables may grow without bound": Mutant(
        (preflight,),
        "PREFLIGHT_CHECKS",
        [row for row in CHECKS if row[1] is not preflight.variable_too_long],
        template_without_bounds,
        "vllm:2 has no bounds",
    ),
    "templates may have any size": Mutant(
        (source,),
        "find_excess_of_template",
        lambda template: "",
        template_without_bounds,
        "vllm:3 has no bounds",
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
