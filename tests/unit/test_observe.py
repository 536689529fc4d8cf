"""What one look sees, on the simulator's API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pretune import api
from pretune.api import Object, Refused
from pretune.cluster import ApiError
from pretune.manifests.agent import agent
from pretune.model import Observed, stamp
from pretune.observe import observe

from tests.sim.cluster import Client, Clock, Server
from tests.unit.objects import KEY, NOW, SETTINGS, Pod, cache, claim, job, template

NS = KEY.namespace
SECRET = "hf_do_not_tell"


class Forbidding(Client):
    """A client that may not read some kinds."""

    forbidden: tuple[str, ...] = ()

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind in self.forbidden:
            raise ApiError(403, "Forbidden", f'{kind.lower()}s "{name}" is forbidden: User "pretune" cannot get it')
        return await super().get(api_version, kind, namespace, name)


def server(*objects: Object) -> Server:
    world = Server(Clock(NOW))
    for one in objects:
        status = one.get("status")
        made = world.create(one)
        if status:
            world.patch(made, {"status": status}, status=True)
    return world


def look(world: Server, forbidden: tuple[str, ...] = (), now: float = NOW) -> tuple[Observed, list[str]]:
    """What is seen, and the calls that it took."""
    client = Forbidding(world)
    client.forbidden = forbidden
    return asyncio.run(observe(KEY, client, SETTINGS, now)), client.calls


def deployment(**more: Any) -> Object:
    return workload("Deployment", {"template": template()}, **more)


def workload(kind: str, spec: Object, api_version: str = "apps/v1") -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"namespace": NS, "name": "qwen3"}, "spec": spec}


def refers_to(kind: str, api_version: str = "apps/v1") -> Object:
    return cache(source={"workloadRef": {"apiVersion": api_version, "kind": kind, "name": "qwen3"}})


def pod(name: str, *, labels: Object | None = None, **spec: Any) -> Object:
    meta = {"namespace": NS, "name": name, "labels": labels or {}}
    containers = [{"name": "vllm", "image": "x", "env": [{"name": "TOKEN", "value": SECRET}]}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": containers, **spec}}


def config_map(name: str) -> Object:
    meta = {"namespace": NS, "name": name, "labels": {api.ROLE: "agent"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "binaryData": {"agent.pyz": "AAAA"}}


def mounting(name: str, claim_name: str = "", config: str = "") -> Object:
    volumes = [{"name": "c", "persistentVolumeClaim": {"claimName": claim_name}}] if claim_name else []
    return pod(name, volumes=volumes + ([{"name": "a", "configMap": {"name": config}}] if config else []))


@pytest.mark.parametrize(
    ("case", "the_cache", "objects", "forbidden", "reason", "words"),
    [
        (
            "nothing of that name",
            refers_to("Deployment"),
            [],
            (),
            "SourceNotFound",
            ["spec.source.workloadRef", "Deployment inference/qwen3"],
        ),
        (
            "a kind that the cluster does not have",
            refers_to("Model", "serving.example/v1"),
            [],
            (),
            "SourceNotSupported",
            ["spec.source.workloadRef", "Model inference/qwen3", "serving.example/v1"],
        ),
        (
            "a kind without a template",
            refers_to("Service", "v1"),
            [workload("Service", {"ports": []}, "v1")],
            (),
            "SourceNotSupported",
            ["Service qwen3", "spec.template"],
        ),
        (
            "a kind that the operator may not read",
            refers_to("Deployment"),
            [deployment()],
            ("Deployment",),
            "SourceForbidden",
            ["Deployment inference/qwen3", 'deployments "qwen3" is forbidden: User "pretune" cannot get it'],
        ),
        (
            "a template without containers",
            cache(source={"template": {"spec": {"containers": []}}}),
            [],
            (),
            "SourceInvalid",
            ["spec.source.template", "containers"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_source_that_cannot_be_had_is_refused_by_name(
    case: str, the_cache: Object, objects: list[Object], forbidden: tuple[str, ...], reason: str, words: list[str]
) -> None:
    source = look(server(the_cache, *objects), forbidden)[0].source
    assert isinstance(source, Refused)
    assert source.reason == reason
    assert all(word in source.message for word in words), source.message


def test_a_source_is_the_pod_template_as_its_author_wrote_it() -> None:
    assert look(server(refers_to("Deployment"), deployment()))[0].source == template()
    assert look(server(cache(source={"template": template()})))[0].source == template()
    assert look(server(cache(source=None)))[0].source is None


def test_a_source_that_the_api_server_cannot_answer_for_now_is_an_error_and_no_verdict() -> None:
    world = server(refers_to("Deployment"), deployment())
    client = Client(world)

    async def get(api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind == "Deployment":
            raise ApiError(503, "ServiceUnavailable", "try again")
        return world.get(api_version, kind, namespace, name)

    client.get = get  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="503"):
        asyncio.run(observe(KEY, client, SETTINGS, NOW))


def test_pods_of_ours_and_consumers_are_told_apart_by_the_role() -> None:
    tuning = Pod().running("vllm").object
    consumer = pod("serving-1", labels={api.CACHE: KEY.name})
    stranger = pod("stranger", labels={api.CACHE: "other"})
    seen = look(server(cache(), claim(), tuning, consumer, stranger))[0]
    assert [one["metadata"]["name"] for one in seen.pods] == ["pod"]
    assert [one["metadata"]["name"] for one in seen.consumers] == ["serving-1"]
    assert seen.pods[0]["status"]["initContainerStatuses"] == tuning["status"]["initContainerStatuses"]
    assert [one["name"] for one in seen.pods[0]["spec"]["initContainers"]][-1] == "vllm"


def test_no_env_value_of_a_pod_or_a_job_is_kept() -> None:
    spec: Any = {"template": {"spec": pod("x")["spec"]}}
    labels = {api.CACHE: KEY.name}
    seen = look(
        server(
            cache(),
            claim(),
            job("b-default", **spec),
            pod("s", labels=labels),
            pod("t", labels={**labels, api.ROLE: "tuning"}),
        )
    )[0]
    assert len(seen.jobs) == len(seen.pods) == len(seen.consumers) == 1
    assert SECRET not in json.dumps([seen.jobs, seen.pods, seen.consumers])


def test_an_object_is_seen_with_its_kind_and_without_managed_fields() -> None:
    world = server(cache(), claim(), job("b-default"), Pod().object)
    for place in world.objects:
        world.objects[place]["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    seen = look(world)[0]
    for one in (seen.cache, seen.claim, *seen.jobs, *seen.pods):
        assert one is not None
        assert one["apiVersion"] and one["kind"]
        assert "managedFields" not in one["metadata"]


PENDING = {**claim(), "spec": {**claim()["spec"], "storageClassName": "slow"}, "status": {"phase": "Pending"}}
CLASS = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"namespace": "", "name": "slow"}}


def event(about: Object, message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": NS, "name": f"e-{message}"},
        "involvedObject": {"uid": about["metadata"]["uid"]},
        "reason": "FailedCreate",
        "message": message,
        "lastTimestamp": stamp(NOW),
    }


def test_a_claim_is_asked_why_only_while_it_is_pending() -> None:
    world = server(cache(), PENDING, CLASS)
    found = world.get("v1", "PersistentVolumeClaim", NS, "pretune-qwen3")
    assert found is not None
    world.create(event(found, "no provisioner"))
    seen, _ = look(world)
    assert [one["message"] for one in seen.claim_events] == ["no provisioner"]
    assert seen.storage_class is not None
    world.patch(found, {"status": {"phase": "Bound"}}, status=True)
    seen, calls = look(world)
    assert seen.claim_events == () and seen.storage_class is None
    assert not any("Event" in call or "StorageClass" in call for call in calls)


@pytest.mark.parametrize(
    ("case", "jobs", "pods", "age", "asked"),
    [
        ("without a pod for a while", [job("b-default")], [], 6, True),
        ("just made", [job("b-default")], [], 4, False),
        ("with a pod", [job("b-default")], [Pod()], 60, False),
        ("over", [job("b-default", over="Failed")], [], 60, False),
        ("suspended", [job("b-default", suspend=True)], [], 60, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_is_asked_why_it_has_no_pod(
    case: str, jobs: list[Object], pods: list[Pod], age: float, asked: bool
) -> None:
    world = server(cache(), claim(), *jobs)
    made = world.list("batch/v1", "Job", NS)[0]
    for one in pods:
        owner = {"uid": made["metadata"]["uid"], "controller": True}
        world.create(one.but(ownerReferences=[owner]).object)
    world.create(event(made, "exceeded quota"))
    events = look(world, now=NOW + age)[0].job_events
    assert ([one["message"] for one in events.get(made["metadata"]["uid"], ())] == ["exceeded quota"]) == asked


def test_every_pod_of_the_namespace_is_read_only_where_an_old_agent_could_go() -> None:
    current = agent()[0]
    world = server(cache(), claim(), config_map(current), mounting("serving", config="pretune-agent-old"))
    seen, calls = look(world)
    assert [one["metadata"]["name"] for one in seen.agents] == [current]
    assert calls.count("list Pod") == 1
    world.create(config_map("pretune-agent-old"))
    seen, calls = look(world)
    assert seen.agents_named == {"pretune-agent-old"}
    assert calls.count("list Pod") == 2


def test_no_byte_of_an_agent_is_read() -> None:
    seen = look(server(cache(), claim(), config_map("pretune-agent-old")))[0]
    assert all("binaryData" not in one for one in seen.agents)


def test_without_its_cache_a_claim_is_seen_with_the_pods_of_any_phase_that_name_it() -> None:
    done = mounting("done", claim_name="pretune-qwen3")
    world = server(claim(), {**done, "status": {"phase": "Succeeded"}}, mounting("other", claim_name="pretune-else"))
    seen = look(world)[0]
    assert seen.cache is None and seen.claim is not None
    assert seen.claim_users == {"done"}
    assert not seen.namespace_has_caches


def test_without_its_cache_agents_are_kept_for_the_others_of_the_namespace() -> None:
    other = cache()
    other["metadata"]["name"] = "other"
    seen = look(server(other, config_map("pretune-agent-old"), mounting("p", config="pretune-agent-old")))[0]
    assert seen.namespace_has_caches and seen.agents_named == {"pretune-agent-old"}


def test_a_label_of_a_cache_that_never_was_does_not_read_the_namespace() -> None:
    seen, calls = look(server(pod("p", labels={api.CACHE: KEY.name})))
    assert seen.cache is None and seen.claim is None
    assert "list Pod" not in calls


def test_jobs_are_read_before_their_pods() -> None:
    calls = look(server(cache(), claim(), job("b-default"), Pod().object))[1]
    assert calls.index("list Job") < calls.index("list Pod")
