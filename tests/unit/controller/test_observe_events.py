"""Of which claims, Jobs and pods the events are read."""

from __future__ import annotations

import pytest
from pretune.api import names
from pretune.api.names import KIND
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller.observe import API_VERSION
from pretune.policy.bundles.attempt_state import VOLUME_GRACE_SECONDS

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW
from tests.builders.jobs import Job, job
from tests.builders.observing import NS, consumer, observe_now, pod, server
from tests.builders.pods import AttemptPod
from tests.sim.cluster import Server


def server_with_jobs(the_cache: Object, *jobs: Job) -> Server:
    """Return a server with the cache, its claim, and Jobs that the cache controls."""
    world = server(the_cache, claim())
    for one in jobs:
        add_job(world, one)
    return world


def add_job(world: Server, the_job: Job) -> Object:
    owner = world.get(API_VERSION, KIND, NS, KEY.name) or {}
    made = world.create(the_job.owned_by(owner))
    return world.patch(made, {"status": the_job["status"]}, status=True)


PENDING = {
    **claim(),
    "spec": {**claim()["spec"], "storageClassName": "slow"},
    "status": {"phase": "Pending"},
}
CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"namespace": "", "name": "slow"},
}


def event(about: Object, message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": NS, "name": f"e-{message}"},
        "involvedObject": {"uid": about["metadata"]["uid"]},
        "reason": "FailedCreate",
        "message": message,
        "lastTimestamp": format_timestamp(NOW),
    }


def test_a_claim_is_asked_why_only_while_it_is_pending() -> None:
    world = server(cache(), PENDING, CLASS)
    found = world.get("v1", "PersistentVolumeClaim", NS, "pretune-qwen3")
    assert found is not None
    world.create(event(found, "no provisioner"))
    observed, _ = observe_now(world)
    assert [one["message"] for one in observed.claim_events] == ["no provisioner"]
    assert observed.storage_class is not None
    world.patch(found, {"status": {"phase": "Bound"}}, status=True)
    observed, calls = observe_now(world)
    assert observed.claim_events == () and observed.storage_class is None
    assert not any("Event" in call or "StorageClass" in call for call in calls)


@pytest.mark.parametrize(
    ("case", "jobs", "pods", "age", "asked"),
    [
        ("without a pod for a while", [job("b-default")], [], 6, True),
        ("just made", [job("b-default")], [], 4, False),
        ("with a pod", [job("b-default")], [AttemptPod()], 60, False),
        ("over", [job("b-default").failed()], [], 60, False),
        ("suspended", [job("b-default", suspend=True)], [], 60, True),
        ("suspended, and its pod ends", [job("b-default", suspend=True)], [AttemptPod()], 60, True),
        ("suspended just now", [job("b-default", suspend=True)], [], 4, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_is_asked_why_it_has_no_pod(
    case: str, jobs: list[Object], pods: list[AttemptPod], age: float, asked: bool
) -> None:
    world = server_with_jobs(cache(), *jobs)
    made = world.list("batch/v1", "Job", NS)[0]
    for one in pods:
        owner = {"uid": made["metadata"]["uid"], "controller": True}
        world.create(one.but(ownerReferences=[owner]))
    world.create(event(made, "exceeded quota"))
    events = observe_now(world, now=NOW + age)[0].job_events
    assert (
        [one["message"] for one in events.get(made["metadata"]["uid"], ())] == ["exceeded quota"]
    ) == asked


def test_of_many_jobs_without_a_pod_only_the_caches_are_asked_why_and_five_of_them() -> None:
    suspended = [job("b-default", number, suspend=True) for number in range(1, 13)]
    world = server_with_jobs(cache(), *suspended)
    ours = {one["metadata"]["uid"] for one in world.list("batch/v1", "Job", NS)}
    for number in range(100):  # as anybody can create them who may create Jobs
        world.create(job("b-default", 100 + number, suspend=True).but_owned_by_nothing())
    observed, calls = observe_now(world, now=NOW + 60)
    assert len(observed.job_events) == sum("list Event" in call for call in calls) == 5
    assert set(observed.job_events) < ours and len(observed.jobs) == 112


SANDBOX = {
    "type": "PodReadyToStartContainers",
    "status": "False",
    "lastTransitionTime": format_timestamp(NOW),
}
UNMOUNTED = {"phase": "Pending", "conditions": [SANDBOX]}


def stuck(world: Server, number: int) -> Object:
    made = consumer(world, f"a-{number}", None, UNMOUNTED, annotations={names.BUNDLE: "b"})
    world.patch(made, {"spec": {"nodeName": "node0"}})
    world.create(
        {
            **event(made, f"unmounted-{number}"),
            "metadata": {"namespace": NS, "name": f"e-{number}", "managedFields": [{}]},
        }
    )
    return made


def test_a_pod_is_asked_why_it_does_not_start_once_it_should_have() -> None:
    world = server(cache(source=None), claim())
    uid = stuck(world, 1)["metadata"]["uid"]
    assert observe_now(world, now=NOW + 30)[0].pod_events == {}
    observed = observe_now(world, now=NOW + 61)[0]
    assert [one["message"] for one in observed.pod_events[uid]] == ["unmounted-1"]
    assert "managedFields" not in observed.pod_events[uid][0]["metadata"]


def test_of_many_pods_that_do_not_start_the_events_of_five_are_read_and_of_others_at_the_next_reconcile() -> (
    None
):
    world = server(cache(source=None), claim())
    uids = {stuck(world, number)["metadata"]["uid"] for number in range(12)}
    asked = set()
    for second in range(40):
        observed, calls = observe_now(world, now=NOW + 61 + 15 * second)
        assert len(observed.pod_events) == sum("list Event" in one for one in calls) == 5
        asked |= set(observed.pod_events)
    assert asked == uids


def test_the_events_of_claims_jobs_and_pods_are_not_mixed_up() -> None:
    world = server(cache(source=None), PENDING)
    for number in (1, 2):
        add_job(world, job("b-default", number))
    for number in range(2):
        stuck(world, number)
    found = world.get("v1", "PersistentVolumeClaim", NS, "pretune-qwen3")
    jobs = world.list("batch/v1", "Job", NS)
    for about, message in ((found, "claim"), (jobs[0], "job-0"), (jobs[1], "job-1")):
        assert about is not None
        world.create(event(about, message))
    observed = observe_now(world, now=NOW + 61)[0]
    assert [one["message"] for one in observed.claim_events] == ["claim"]
    for number, one in enumerate(jobs):
        assert [event["message"] for event in observed.job_events[one["metadata"]["uid"]]] == [
            f"job-{number}"
        ]
    for number, one in enumerate(observed.consumers):
        assert [event["message"] for event in observed.pod_events[one["metadata"]["uid"]]] == [
            f"unmounted-{number}"
        ]
    assert len(observed.job_events) == len(observed.pod_events) == 2


def test_the_events_of_an_attempts_pod_are_read_while_it_has_no_volumes() -> None:
    world = server(cache(), claim())
    add_attempt_pods(world, "mounts", "waits")
    made = world.patch(world.get("v1", "Pod", NS, "mounts") or {}, {"spec": {"nodeName": "node-1"}})
    for name in ("mounts", "waits"):
        about = world.get("v1", "Pod", NS, name) or {}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": NS, "name": f"{name}.1"},
            "involvedObject": {"uid": about["metadata"]["uid"]},
            "reason": "FailedMount",
        }
        world.create(event)
    uid = made["metadata"]["uid"]
    assert set(observe_now(world, now=NOW + 5)[0].pod_events) == set()
    observed = observe_now(world, now=NOW + VOLUME_GRACE_SECONDS)[0]
    assert [event["reason"] for event in observed.pod_events[uid]] == ["FailedMount"]
    assert set(observed.pod_events) == {uid}


def add_attempt_pods(world: Server, *pods: str, is_ours: bool = True) -> None:
    made = add_job(world, job("b-default"))
    uid = made["metadata"]["uid"] if is_ours else "of-another"
    for name in pods:
        obj = pod(name, labels={names.CACHE: KEY.name, names.ROLE: names.TUNING})
        obj["metadata"]["ownerReferences"] = [{"uid": uid, "controller": True}]
        world.create(obj)


@pytest.mark.parametrize(("is_ours", "asked"), [(True, 5), (False, 0)])
def test_of_many_pods_that_say_they_are_an_attempts_five_of_its_jobs_are_asked(
    is_ours: bool, asked: int
) -> None:
    world = server(cache(), claim())
    add_attempt_pods(world, *(f"p{number}" for number in range(40)), is_ours=is_ours)
    for obj in world.list("v1", "Pod", NS):
        world.patch(obj, {"spec": {"nodeName": "node-1"}})
    observed, _ = observe_now(world, now=NOW + VOLUME_GRACE_SECONDS)
    assert len(observed.pod_events) == asked
