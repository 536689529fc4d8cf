"""Rollouts on the real cluster: which pods are held, and how many are ready meanwhile."""

from __future__ import annotations

import time

import pytest

from tests.cluster.conftest import (
    CreateCache,
    RollOut,
    StartHeldPod,
    StartServing,
    TuningSignals,
    WaitForCondition,
)
from tests.cluster.kube import Kube, bundles, condition, wait_for_event
from tests.cluster.recorder import (
    SOON_SECONDS,
    Recorder,
    delivery_of,
    is_held,
    is_tuning,
    version_of,
    wait_until_held,
)
from tests.cluster.workloads import (
    bare_pod,
    deployment,
    serving_template,
    statefulset,
    with_annotations,
)

TUNING = "pretune.dev/role=tuning"
ONCE = {"maxAttempts": 1}


def reasons(recorder: Recorder, version: str | None = None) -> set[str]:
    return {delivery_of(pod)[1] for pod in recorder.pods(version)}


def test_new_pods_are_held_while_all_old_pods_serve_and_released_at_the_seal(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
) -> None:
    start_serving(3, surge="1", down="0")
    began = roll_out("v2")
    wait_until_held(recorder, 1)
    assert delivery_of(recorder.pods("v2")[0]) == (
        "Overlay",
        "Held",
    )  # what its layout will be is not known yet
    wait_for_event(kube, namespace, "Held", "1 pod")
    signals.finish_tuning("v2")
    recorder.wait_until(lambda s: s.are_ready(3) and s.are_ready(3, "v2"), 120, "v2 rolled out")
    [first] = recorder.names_of_held("v2")
    assert recorder.released_at(first) - recorder.sealed_at(2) <= 1
    assert recorder.least_ready(began) == 3
    assert reasons(recorder, "v2") == {
        "Held",
        "Given",
    }  # those created after the seal get it at once
    assert not recorder.describe_cold_pods("v2")
    wait_for_event(kube, namespace, "Released", "its bundle is sealed", "waited")

    began = roll_out("v1")  # back: its bundle is still there
    recorder.wait_until(lambda s: s.are_ready(3, "v1") and not s.pods("v2"), 120, "v1 again")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 5}})
    recorder.wait_until(lambda s: s.are_ready(5), 120, "five of v1")
    assert {delivery_of(pod) for pod in recorder.pods()} == {("ReadOnly", "Given")}
    assert recorder.names_of_held() == {first}
    assert recorder.least_ready(began) == 3
    assert len(kube.list("Job", namespace, TUNING)) == 2


@pytest.mark.parametrize(
    ("replicas", "surge", "down", "least"), [(3, "0", "1", 2), (1, "25%", "25%", 1)]
)
def test_without_surge_and_with_one_replica_as_many_pods_serve_as_the_strategy_says(
    recorder: Recorder, start_serving: StartServing, roll_out: RollOut, signals: TuningSignals,
    replicas: int, surge: str, down: str, least: int,
) -> None:  # fmt: skip
    start_serving(replicas, surge=surge, down=down)
    began = roll_out("v2")
    wait_until_held(recorder, 1)
    signals.finish_tuning("v2")
    recorder.wait_until(
        lambda s: s.are_ready(replicas) and s.are_ready(replicas, "v2"), 120, "v2 rolled out"
    )
    assert recorder.least_ready(began) == least
    assert not recorder.describe_cold_pods("v2")


def test_a_first_deployment_and_a_scale_from_zero_start_cold_at_once_and_are_tuned(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> None:
    create_cache()
    wait_for_condition(kind="StorageReady")
    kube.create(deployment(namespace, serving_template("v1", signals=signals.folder), 0))
    wait_for_condition(status="Unknown", reason="NoSource")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    recorder.wait_until(
        lambda s: s.are_ready(2) and is_tuning(s), 120, "two cold pods, while their bundle is tuned"
    )
    assert {delivery_of(pod) for pod in recorder.pods()} == {("Overlay", "NotSealedYet")}
    signals.finish_tuning("v1")
    wait_for_condition()
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 3}})
    recorder.wait_until(lambda s: s.are_ready(3), 120, "three pods")
    assert sorted(delivery_of(pod)[1] for pod in recorder.pods()) == [
        "Given",
        "NotSealedYet",
        "NotSealedYet",
    ]
    assert not recorder.names_of_held()


def test_a_scale_up_of_a_running_revision_is_not_held(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    signals: TuningSignals,
) -> None:
    """Two Deployments with one cache: the first pod of the second one is not held, and runs cold."""
    start_serving(1)
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Never"}}})
    second = deployment(namespace, serving_template("v2", signals=signals.folder), 1, name="second")
    recorder.wait_until(
        lambda s: s.cache()["status"]["observedGeneration"] == 2, 10, "the change was seen"
    )
    kube.create(second)
    recorder.wait_until(lambda s: s.are_ready(1, "v2") and is_tuning(s), 120, "a cold pod of v2")
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "WhenServing"}}})
    recorder.wait_until(
        lambda s: any(b["state"] == "Tuning" and b.get("running") for b in bundles(s.cache())),
        15,
        "it runs",
    )
    kube.patch("Deployment", namespace, "second", {"spec": {"replicas": 2}})
    recorder.wait_until(lambda s: s.are_ready(2, "v2"), 120, "two cold pods of v2")
    assert not recorder.names_of_held()


@pytest.mark.long
def test_a_stateful_sets_pod_is_held_only_if_the_spec_says_always(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> None:
    signals.finish_tuning("v1")
    create_cache()
    wait_for_condition(kind="StorageReady")
    kube.create(statefulset(namespace, serving_template("v1", signals=signals.folder), 2))
    recorder.wait_until(lambda s: s.has_sealed() and s.are_ready(2), 120, "v1 sealed and ready")
    patch = {"spec": {"template": {"spec": serving_template("v2", signals=signals.folder)["spec"]}}}
    began = time.monotonic()
    kube.patch("StatefulSet", namespace, "serving", patch)
    recorder.wait_until(lambda s: s.are_ready(2, "v2"), 120, "v2, cold, while it is tuned")
    assert recorder.least_ready(began) == 1  # as without us: one after the other
    assert reasons(recorder) == {"NotSealedYet"}
    assert not recorder.has_sealed(2) and not recorder.names_of_held()

    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Always"}}})
    recorder.wait_until(
        lambda s: s.cache()["status"]["observedGeneration"] == 2, 10, "the change was seen"
    )
    patch = {"spec": {"template": {"spec": serving_template("v3", signals=signals.folder)["spec"]}}}
    kube.patch("StatefulSet", namespace, "serving", patch)
    recorder.wait_until(
        lambda s: any(is_held(pod) for pod in s.pods("v3")), 120, "the first pod of v3 waits"
    )
    signals.finish_tuning("v2", "v3")
    recorder.wait_until(lambda s: s.are_ready(2, "v3"), 120, "v3 is there")
    assert "serving-1" in recorder.names_of_held("v3")


def test_pods_of_the_strategy_recreate_are_not_held_since_none_serves_meanwhile(
    recorder: Recorder, start_serving: StartServing, roll_out: RollOut
) -> None:
    start_serving(2, recreate=True)
    began = roll_out("v2")
    recorder.wait_until(lambda s: s.are_ready(2, "v2"), 120, "v2, cold")
    assert not recorder.has_sealed(2)
    for pod in recorder.names_of_held(
        "v2"
    ):  # the webhook may not have heard yet that the old ones are gone
        created_at = recorder.first_time(lambda pod: version_of(pod) == "v2", name=pod)
        assert recorder.released_at(pod) - created_at <= SOON_SECONDS
    assert recorder.least_ready(began) == 0


def test_a_pods_target_is_known_from_its_annotation_or_its_node_selector(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> None:
    linux, amd64 = {"kubernetes.io/os": "linux"}, {"kubernetes.io/arch": "amd64"}
    create_cache(
        targets=[{"name": "one", "nodeSelector": linux}, {"name": "two", "nodeSelector": amd64}]
    )
    wait_for_condition(kind="StorageReady")
    signals.finish_tuning("v1")
    template = serving_template("v1", signals=signals.folder)
    selecting = {**template, "spec": {**template["spec"], "nodeSelector": linux}}
    kube.create(deployment(namespace, with_annotations(template, target="two"), name="annotated"))
    kube.create(deployment(namespace, selecting, name="selecting"))
    kube.create(deployment(namespace, template, name="neither"))
    recorder.wait_until(lambda s: s.are_ready(3), 120, "all start")
    both = {"one", "two"}
    recorder.wait_until(
        lambda s: {b["target"] for b in bundles(s.cache()) if b["state"] == "Sealed"} == both,
        180,
        "both sealed",
    )
    deliveries = {
        pod["metadata"]["name"].partition("-")[0]: delivery_of(pod)[1] for pod in recorder.pods()
    }
    assert deliveries == {
        "annotated": "NotSealedYet",
        "selecting": "NotSealedYet",
        "neither": "TargetUnknown",
    }
    named = {pod["metadata"]["name"].partition("-")[0]: pod["metadata"]["annotations"].get("pretune.dev/bundle", "")
             for pod in recorder.pods()}  # fmt: skip
    assert (
        named["annotated"].endswith("-two")
        and named["selecting"].endswith("-one")
        and not named["neither"]
    )


def test_a_hold_ends_when_its_time_is_over(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> None:
    create_cache(hold={"when": "Always", "timeoutSeconds": 4})
    wait_for_condition(kind="StorageReady")
    kube.create(deployment(namespace, serving_template("v1", signals=signals.folder)))
    recorder.wait_until(lambda s: s.are_ready(1), 60, "the pod, cold")
    [pod] = recorder.names_of_held()
    waited = recorder.released_at(pod) - recorder.first_time(is_held, name=pod)
    assert 3 <= waited <= 4 + SOON_SECONDS  # creation times are whole seconds
    assert not recorder.has_sealed()
    wait_for_event(kube, namespace, "Released", "spec.hold.timeoutSeconds (4 s) is over")


def test_pods_of_a_failed_tuning_are_released_unless_the_spec_keeps_them(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    create_cache(tuning=ONCE, hold={"when": "Always", "onFailure": "Keep"})
    wait_for_condition(kind="StorageReady")
    broken = serving_template(
        "v1", env={"ENGINE_ENTRIES": "$(ROLE)20"}
    )  # no number in the tuning pod
    kube.create(deployment(namespace, broken))
    recorder.wait_until(
        lambda s: any(bundle["state"] == "Failed" for bundle in bundles(s.cache())), 120, "v1 fails"
    )
    [pod] = recorder.pods()
    assert is_held(pod)
    at = time.monotonic()
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"onFailure": "Start"}}})
    recorder.wait_until(lambda s: s.are_ready(1), 120, "the pod, cold")
    assert recorder.released_at(pod["metadata"]["name"]) - at <= SOON_SECONDS
    wait_for_event(kube, namespace, "Released", "EngineFailed")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    recorder.wait_until(lambda s: s.are_ready(2), 120, "two pods")
    assert "TuningFailed" in reasons(recorder)  # who comes later is left alone


def test_always_holds_a_first_deployment_and_a_change_to_never_releases_it(
    kube: Kube, namespace: str, recorder: Recorder, start_held_pod: StartHeldPod
) -> None:
    pod = start_held_pod()
    at = time.monotonic()
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Never"}}})
    recorder.wait_until(lambda s: s.are_ready(1), 120, "the pod, cold")
    assert recorder.released_at(pod) - at <= SOON_SECONDS
    wait_for_event(kube, namespace, "Released", "1 pod", "spec.hold.when is Never")


def test_engines_that_differ_in_each_pod_start_cold_and_the_difference_is_named(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> None:
    create_cache()
    wait_for_condition(kind="StorageReady")
    for number in range(5):
        kube.create(
            bare_pod(
                namespace,
                serving_template(f"v{number}", signals=signals.folder),
                name=f"serving-{number}",
            )
        )
    recorder.wait_until(lambda s: s.are_ready(5), 120, "five engines")
    cache = wait_for_condition(kind="Stalled", reason="TooManyFingerprints")
    message = condition(cache, "Stalled")["message"]
    assert "5 different engines ask for tactics, 4 get them" in message
    assert "env ENGINE_TUNES_UNTIL, env VERSION" in message and "v4" not in message
    assert not recorder.names_of_held()


def test_a_newer_revision_replaces_one_that_is_still_held(
    recorder: Recorder, start_serving: StartServing, roll_out: RollOut, signals: TuningSignals
) -> None:
    start_serving(2, surge="1", down="0")
    began = roll_out("v2")
    wait_until_held(recorder, 1)
    roll_out("v3")
    recorder.wait_until(lambda s: any(is_held(pod) for pod in s.pods("v3")), 120, "v3 waits")
    signals.finish_tuning("v3")
    recorder.wait_until(
        lambda s: s.are_ready(2) and s.are_ready(2, "v3"),
        120,
        "v3 rolled out, without v2 ever being tuned",
    )
    assert recorder.least_ready(began) == 2
