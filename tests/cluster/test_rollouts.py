"""Journey B on the real cluster: who waits for a bundle and who does not, with an eye on the ready pods all the time."""

from __future__ import annotations

import time

import pytest

from tests.cluster.conftest import Apply, Moments, Ready, Roll, Served, Waiting
from tests.cluster.kube import Kube, bundles, condition, event
from tests.cluster.seen import SOON, Seen, given, held, is_held, tunes, version_of
from tests.cluster.workloads import annotated, bare, deployment, serving, statefulset

TUNING = "pretune.dev/role=tuning"
ONCE = {"maxAttempts": 1}


def reasons(seen: Seen, version: str | None = None) -> set[str]:
    return {given(one)[1] for one in seen.pods(version)}


def test_a_surge_waits_while_all_old_pods_serve_and_goes_on_within_a_second_of_the_seal(
    kube: Kube, namespace: str, seen: Seen, served: Served, roll: Roll, moments: Moments
) -> None:
    served(3, surge="1", down="0")
    began = roll("v2")
    held(seen, 1)
    assert given(seen.pods("v2")[0]) == (
        "Overlay",
        "Held",
    )  # what its layout will be is not known yet
    event(kube, namespace, "Held", "1 pod")
    moments.go("v2")
    seen.until(lambda s: s.ready(3) and s.ready(3, "v2"), 120, "v2 rolled out")
    [first] = seen.were_held("v2")
    assert seen.released_at(first) - seen.sealed_at(2) <= 1
    assert seen.least_ready(began) == 3
    assert reasons(seen, "v2") == {
        "Held",
        "Given",
    }  # those made after the seal are given it at once
    assert not seen.cold("v2")
    event(kube, namespace, "Released", "its bundle is sealed", "waited")

    began = roll("v1")  # back: its bundle is still there
    seen.until(lambda s: s.ready(3, "v1") and not s.pods("v2"), 120, "v1 again")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 5}})
    seen.until(lambda s: s.ready(5), 120, "five of v1")
    assert {given(one) for one in seen.pods()} == {("ReadOnly", "Given")}
    assert seen.were_held() == {first}
    assert seen.least_ready(began) == 3
    assert len(kube.list("Job", namespace, TUNING)) == 2


@pytest.mark.parametrize(
    ("replicas", "surge", "down", "least"), [(3, "0", "1", 2), (1, "25%", "25%", 1)]
)
def test_without_surge_and_with_one_replica_as_many_serve_as_the_strategy_says(
    seen: Seen, served: Served, roll: Roll, moments: Moments,
    replicas: int, surge: str, down: str, least: int,
) -> None:  # fmt: skip
    served(replicas, surge=surge, down=down)
    began = roll("v2")
    held(seen, 1)
    moments.go("v2")
    seen.until(lambda s: s.ready(replicas) and s.ready(replicas, "v2"), 120, "v2 rolled out")
    assert seen.least_ready(began) == least
    assert not seen.cold("v2")


def test_a_first_deployment_and_a_scale_from_zero_start_at_once_and_cold_and_fill_the_cache(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> None:
    apply()
    ready(kind="StorageReady")
    kube.create(deployment(namespace, serving("v1", moments=moments.folder), 0))
    ready(status="Unknown", reason="NoSource")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2) and tunes(s), 120, "two cold pods, while their bundle is tuned")
    assert {given(one) for one in seen.pods()} == {("Overlay", "NotSealedYet")}
    moments.go("v1")
    ready()
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 3}})
    seen.until(lambda s: s.ready(3), 120, "three pods")
    assert sorted(given(one)[1] for one in seen.pods()) == ["Given", "NotSealedYet", "NotSealedYet"]
    assert not seen.were_held()


def test_a_scale_up_of_a_revision_that_runs_is_not_held_though_its_bundle_is_not_sealed(
    kube: Kube, namespace: str, seen: Seen, served: Served, moments: Moments
) -> None:
    """Two Deployments of one cache: the second one's first pod runs cold, since it is held by nobody's wish."""
    served(1)
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Never"}}})
    second = deployment(namespace, serving("v2", moments=moments.folder), 1, name="second")
    seen.until(lambda s: s.cache()["status"]["observedGeneration"] == 2, 10, "the change was seen")
    kube.create(second)
    seen.until(lambda s: s.ready(1, "v2") and tunes(s), 120, "a cold pod of v2")
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "WhenServing"}}})
    seen.until(
        lambda s: any(b["state"] == "Tuning" and b.get("running") for b in bundles(s.cache())),
        15,
        "it runs",
    )
    kube.patch("Deployment", namespace, "second", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2, "v2"), 120, "two cold pods of v2")
    assert not seen.were_held()


def test_a_stateful_sets_pod_is_not_held_but_where_a_person_asks_for_it(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> None:
    moments.go("v1")
    apply()
    ready(kind="StorageReady")
    kube.create(statefulset(namespace, serving("v1", moments=moments.folder), 2))
    seen.until(lambda s: s.sealed() and s.ready(2), 120, "v1 sealed and ready")
    roll = {"spec": {"template": {"spec": serving("v2", moments=moments.folder)["spec"]}}}
    began = time.monotonic()
    kube.patch("StatefulSet", namespace, "serving", roll)
    seen.until(lambda s: s.ready(2, "v2"), 120, "v2, cold, while it is tuned")
    assert seen.least_ready(began) == 1  # as without us: one after the other
    assert reasons(seen) == {"NotSealedYet"}
    assert not seen.sealed(2) and not seen.were_held()

    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Always"}}})
    seen.until(lambda s: s.cache()["status"]["observedGeneration"] == 2, 10, "the change was seen")
    roll = {"spec": {"template": {"spec": serving("v3", moments=moments.folder)["spec"]}}}
    kube.patch("StatefulSet", namespace, "serving", roll)
    seen.until(
        lambda s: any(is_held(one) for one in s.pods("v3")), 120, "the first pod of v3 waits"
    )
    moments.go("v2", "v3")
    seen.until(lambda s: s.ready(2, "v3"), 120, "v3 is there")
    assert "serving-1" in seen.were_held("v3")


def test_recreate_waits_for_nothing_since_nothing_serves_meanwhile(
    seen: Seen, served: Served, roll: Roll
) -> None:
    served(2, recreate=True)
    began = roll("v2")
    seen.until(lambda s: s.ready(2, "v2"), 120, "v2, cold")
    assert not seen.sealed(2)
    for pod in seen.were_held(
        "v2"
    ):  # the webhook may not have heard yet that the old ones are gone
        made = seen.first(lambda one: version_of(one) == "v2", name=pod)
        assert seen.released_at(pod) - made <= SOON
    assert seen.least_ready(began) == 0


def test_several_targets_are_told_apart_by_annotation_and_by_node_selector(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> None:
    linux, amd64 = {"kubernetes.io/os": "linux"}, {"kubernetes.io/arch": "amd64"}
    apply(targets=[{"name": "one", "nodeSelector": linux}, {"name": "two", "nodeSelector": amd64}])
    ready(kind="StorageReady")
    moments.go("v1")
    template = serving("v1", moments=moments.folder)
    selecting = {**template, "spec": {**template["spec"], "nodeSelector": linux}}
    kube.create(deployment(namespace, annotated(template, target="two"), name="annotated"))
    kube.create(deployment(namespace, selecting, name="selecting"))
    kube.create(deployment(namespace, template, name="neither"))
    seen.until(lambda s: s.ready(3), 120, "all start")
    both = {"one", "two"}
    seen.until(
        lambda s: {b["target"] for b in bundles(s.cache()) if b["state"] == "Sealed"} == both,
        180,
        "both sealed",
    )
    told = {one["metadata"]["name"].partition("-")[0]: given(one)[1] for one in seen.pods()}
    assert told == {
        "annotated": "NotSealedYet",
        "selecting": "NotSealedYet",
        "neither": "TargetUnknown",
    }
    named = {one["metadata"]["name"].partition("-")[0]: one["metadata"]["annotations"].get("pretune.dev/bundle", "")
             for one in seen.pods()}  # fmt: skip
    assert (
        named["annotated"].endswith("-two")
        and named["selecting"].endswith("-one")
        and not named["neither"]
    )


def test_a_hold_is_over_when_its_time_is(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> None:
    apply(hold={"when": "Always", "timeoutSeconds": 4})
    ready(kind="StorageReady")
    kube.create(deployment(namespace, serving("v1", moments=moments.folder)))
    seen.until(lambda s: s.ready(1), 60, "the pod, cold")
    [pod] = seen.were_held()
    waited = seen.released_at(pod) - seen.first(is_held, name=pod)
    assert 3 <= waited <= 4 + SOON  # creation times are whole seconds
    assert not seen.sealed()
    event(kube, namespace, "Released", "spec.hold.timeoutSeconds (4 s) is over")


def test_a_failed_tuning_lets_its_pods_go_unless_they_are_to_be_kept(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    apply(tuning=ONCE, hold={"when": "Always", "onFailure": "Keep"})
    ready(kind="StorageReady")
    broken = serving("v1", env={"ENGINE_ENTRIES": "$(ROLE)20"})  # no number in the tuning pod
    kube.create(deployment(namespace, broken))
    seen.until(
        lambda s: any(one["state"] == "Failed" for one in bundles(s.cache())), 120, "v1 fails"
    )
    [pod] = seen.pods()
    assert is_held(pod)
    at = time.monotonic()
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"onFailure": "Start"}}})
    seen.until(lambda s: s.ready(1), 120, "the pod, cold")
    assert seen.released_at(pod["metadata"]["name"]) - at <= SOON
    event(kube, namespace, "Released", "EngineFailed")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2), 120, "two pods")
    assert "TuningFailed" in reasons(seen)  # who comes later is left alone


def test_always_holds_a_first_deployment_and_never_lets_it_go(
    kube: Kube, namespace: str, seen: Seen, waiting: Waiting
) -> None:
    pod = waiting()
    at = time.monotonic()
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"hold": {"when": "Never"}}})
    seen.until(lambda s: s.ready(1), 120, "the pod, cold")
    assert seen.released_at(pod) - at <= SOON
    event(kube, namespace, "Released", "1 pod", "spec.hold.when is Never")


def test_engines_that_differ_in_every_pod_start_cold_and_what_differs_is_named(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> None:
    apply()
    ready(kind="StorageReady")
    for number in range(5):
        kube.create(
            bare(namespace, serving(f"v{number}", moments=moments.folder), name=f"serving-{number}")
        )
    seen.until(lambda s: s.ready(5), 120, "five engines")
    cache = ready(kind="Stalled", reason="TooManyFingerprints")
    message = condition(cache, "Stalled")["message"]
    assert "env ENGINE_TUNES_UNTIL, env VERSION" in message and "v4" not in message
    assert len(bundles(cache)) == 4
    assert not seen.were_held()


def test_a_newer_revision_takes_the_place_of_one_that_is_still_held(
    seen: Seen, served: Served, roll: Roll, moments: Moments
) -> None:
    served(2, surge="1", down="0")
    began = roll("v2")
    held(seen, 1)
    roll("v3")
    seen.until(lambda s: any(is_held(one) for one in s.pods("v3")), 120, "v3 waits")
    moments.go("v3")
    seen.until(
        lambda s: s.ready(2) and s.ready(2, "v3"), 120, "v3 rolled out, without v2 ever being tuned"
    )
    assert seen.least_ready(began) == 2
