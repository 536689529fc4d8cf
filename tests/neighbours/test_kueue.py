"""Beside the real Kueue: what it takes from an attempt is time, and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import (
    CreateCache,
    RollOut,
    TuningSignals,
    WaitForCondition,
)
from tests.cluster.kube import Kube, Object, bundles, condition, list_failures
from tests.cluster.recorder import Recorder, is_held
from tests.cluster.workloads import deployment, engine_template, job, serving_template
from tests.neighbours.kueue import QUEUE, QUEUE_LABEL, Kueue

pytestmark = pytest.mark.neighbours

CreateQueue = Callable[[int], None]
TUNING, PROOF = "pretune.dev/role=tuning", "pretune.dev/role=proof"
QUEUED: dict[str, Any] = {"podTemplate": {"metadata": {"labels": {QUEUE_LABEL: QUEUE}}}}
ONCE = {"maxAttempts": 1, **QUEUED}


def urgent_job(namespace: str, name: str = "urgent") -> Object:
    """Return a Job for one GPU that a person queues: its priority is 0, that of an attempt is -5."""
    template = engine_template()
    template["spec"]["containers"][0]["command"] = ["sleep", "600"]
    template["spec"]["containers"][0]["args"] = []
    template["spec"]["terminationGracePeriodSeconds"] = 0
    urgent = job(namespace, template, name, suspend=True)
    urgent["metadata"]["labels"] = {QUEUE_LABEL: QUEUE}
    return urgent


def preempt(kube: Kube, namespace: str, attempt: str) -> None:
    """Have Kueue give the attempt's GPU to another Job, for a moment."""
    kube.create(urgent_job(namespace))
    kube.wait_until("Job", namespace, attempt, _is_suspended, 60, "preempted")
    kube.delete("Job", namespace, "urgent")
    kube.wait_until("Job", namespace, attempt, lambda j: not _is_suspended(j), 120, "resumed")
    kube.wait_until_gone("Job", namespace, "urgent")


def _is_suspended(job: Object) -> bool:
    return bool(job["spec"].get("suspend"))


def test_an_attempt_waits_for_quota_and_says_why_kueue_took_its_place(
    kube: Kube,
    namespace: str,
    create_queue: CreateQueue,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
) -> None:
    create_queue(1)
    kube.create(urgent_job(namespace))
    kube.wait_until("Job", namespace, "urgent", lambda j: not _is_suspended(j), 60)
    create_cache(template=engine_template(env={"ENGINE_SECONDS_PER_ENTRY": "0.5"}), tuning=ONCE)
    cache = wait_for_condition(status="False", reason="Queued")
    assert "its queue has not admitted it yet" in condition(cache, "Ready")["message"]
    kube.delete("Job", namespace, "urgent")
    wait_for_condition(status="False", reason="Tuning")
    kube.wait_until_gone("Job", namespace, "urgent")
    kube.create(urgent_job(namespace))
    kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: (
            condition(c, "Ready")["reason"] == "Queued"
            and "Preempted" in condition(c, "Ready")["message"]
        ),
        30,
        "Kueue's reason",
    )
    kube.delete("Job", namespace, "urgent")
    [bundle] = bundles(wait_for_condition())
    assert bundle["attempts"] == 1 and not list_failures(kube, namespace)


@pytest.mark.long
@pytest.mark.parametrize("role", [TUNING, PROOF], ids=["attempt", "proof"])
def test_preemptions_at_random_moments_cost_time_and_nothing_else(
    kube: Kube,
    namespace: str,
    create_queue: CreateQueue,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    role: str,
) -> None:
    """25 of an attempt, 25 of a proof."""
    chance = random.Random(role)
    create_queue(1)
    # It starts in 10 s, tunes nothing new when it has its bundle, and is preempted before that.
    env = {"ENGINE_START_SECONDS": "10"}
    create_cache(template=engine_template(env=env), tuning=ONCE, verify="BeforeRelease")
    attempt = kube.wait_for_any("Job", namespace, role, seconds=180)["metadata"]["name"]
    for _ in range(25):
        kube.wait_until("Job", namespace, attempt, lambda j: not _is_suspended(j), 60)
        time.sleep(chance.uniform(0, 8))  # the moment is what is tried
        preempt(kube, namespace, attempt)
    [bundle] = bundles(wait_for_condition(seconds=300))
    assert bundle["proven"] and (bundle["attempts"], bundle["proofs"]) == (1, 1)
    assert not list_failures(kube, namespace)


def test_a_deployment_in_a_queue_is_tuned_although_kueue_marks_its_pods(
    kube: Kube,
    namespace: str,
    create_queue: CreateQueue,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
) -> None:
    """Kueue's Deployment integration writes an annotation that gates a pod which nobody admits."""
    create_queue(2)
    create_cache(tuning=ONCE)
    wait_for_condition(kind="StorageReady")
    serving = deployment(namespace, serving_template("v1"))
    serving["metadata"]["labels"] = {QUEUE_LABEL: QUEUE}
    created = kube.create(serving)
    annotations = created["spec"]["template"]["metadata"]["annotations"]
    assert "kueue.x-k8s.io/pod-suspending-parent" in annotations, "Kueue did not see it"
    [bundle] = bundles(wait_for_condition(seconds=120))
    assert bundle["attempts"] == 1


def test_a_held_pod_does_not_keep_the_quota_that_its_own_attempt_needs(
    kube: Kube,
    namespace: str,
    create_queue: CreateQueue,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    roll_out: RollOut,
    signals: TuningSignals,
) -> None:
    """The queue has room for the old pod and the surge: none is left for the attempt."""
    create_queue(2)
    create_cache(tuning=ONCE)
    wait_for_condition(kind="StorageReady")
    signals.finish_tuning("v1", "v2")
    serving = deployment(
        namespace, serving_template("v1", signals=signals.folder), surge="1", down="0"
    )
    serving["metadata"]["labels"] = {QUEUE_LABEL: QUEUE}
    kube.create(serving)
    recorder.wait_until(lambda s: s.are_ready(1, "v1") and s.has_sealed(), 180, "v1 sealed")
    roll_out("v2")
    recorder.wait_until(lambda s: s.names_of_held("v2"), 60, "v2 is held")
    recorder.wait_until(
        lambda s: s.are_ready(1, "v2") and not any(map(is_held, s.pods())), 180, "v2 serves"
    )


def test_a_timeout_for_pods_that_are_not_ready_is_named_with_what_to_do(
    kube: Kube,
    namespace: str,
    kueue: Kueue,
    create_queue: CreateQueue,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
) -> None:
    """A tuning pod is Ready only once its engine has tuned (docs/neighbours.md)."""
    create_queue(1)
    kueue.stop()
    strategy = {"backoffBaseSeconds": 1, "backoffMaxSeconds": 1}
    kueue.start(waitForPodsReady={"timeout": "15s", "requeuingStrategy": strategy})
    try:
        env = {"ENGINE_START_SECONDS": "60"}
        create_cache(template=engine_template(env=env), tuning=ONCE)
        kube.wait_until(
            "AutotuneCache",
            namespace,
            "demo",
            lambda c: "waitForPodsReady.timeout" in condition(c, "Ready").get("message", ""),
            120,
            "what to do",
        )
    finally:
        kueue.stop()
        kueue.start()
    [bundle] = bundles(wait_for_condition(seconds=240))
    assert bundle["attempts"] == 1 and not list_failures(kube, namespace)
