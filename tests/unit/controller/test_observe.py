"""What one reconcile observes, on the simulator's API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CACHE, KIND, ROLE
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller import project
from pretune.controller.observe import API_VERSION, observe
from pretune.intake import EXCESS
from pretune.kube.types import ApiError
from pretune.manifests.agent_archive import agent_name, build_agent_config_map
from pretune.podspec import identity
from pretune.policy.bundles.attempt_state import VOLUME_GRACE_SECONDS
from pretune.policy.model import Observed

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.jobs import Job, job
from tests.builders.pods import AttemptPod
from tests.builders.templates import serving_template
from tests.sim.cluster import Client, Clock, Server

NS = KEY.namespace
SECRET = "hf_secret"


class Forbidding(Client):
    """A client that may not read some kinds, and notes what its lists select by."""

    forbidden: tuple[str, ...] = ()

    async def list(self, api_version: str, kind: str, namespace: str, **how: Any) -> list[Object]:
        found = await super().list(api_version, kind, namespace, **how)
        self.calls[-1] = " ".join(
            [self.calls[-1], *(how[part] for part in ("labels", "fields") if how.get(part))]
        )
        return found

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind in self.forbidden:
            raise ApiError(
                403,
                "Forbidden",
                f'{kind.lower()}s "{name}" is forbidden: User "pretune" cannot get it',
            )
        return await super().get(api_version, kind, namespace, name)


def server(*objects: Object) -> Server:
    world = Server(Clock(NOW))
    for one in objects:
        status = one.get("status")
        made = world.create(one)
        if status:
            world.patch(made, {"status": status}, status=True)
    return world


def server_with_jobs(the_cache: Object, *jobs: Job) -> Server:
    """The cache, its claim, and Jobs that it controls."""
    world = server(the_cache, claim())
    for one in jobs:
        add_job(world, one)
    return world


def add_job(world: Server, the_job: Job) -> Object:
    owner = world.get(API_VERSION, KIND, NS, KEY.name) or {}
    made = world.create(the_job.owned_by(owner))
    return world.patch(made, {"status": the_job["status"]}, status=True)


def observe_now(
    world: Server, forbidden: tuple[str, ...] = (), now: float = NOW
) -> tuple[Observed, list[str]]:
    """What is observed, and the calls that it took."""
    client = Forbidding(world)
    client.forbidden = forbidden
    return asyncio.run(observe(KEY, client, SETTINGS, now)), client.calls


def deployment(**more: Any) -> Object:
    return workload("Deployment", {"template": serving_template()}, **more)


def workload(kind: str, spec: Object, api_version: str = "apps/v1") -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"namespace": NS, "name": "qwen3"},
        "spec": spec,
    }


def refers_to(kind: str, api_version: str = "apps/v1") -> Object:
    return cache(source={"workloadRef": {"apiVersion": api_version, "kind": kind, "name": "qwen3"}})


def pod(name: str, *, labels: Object | None = None, **spec: Any) -> Object:
    meta = {"namespace": NS, "name": name, "labels": labels or {}}
    containers = [{"name": "vllm", "image": "x", "env": [{"name": "TOKEN", "value": SECRET}]}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": containers, **spec},
    }


def config_map(name: str) -> Object:
    meta = {"namespace": NS, "name": name, "labels": {names.ROLE: "agent"}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "binaryData": {"agent.py": "AAAA"},
    }


def mounting(name: str, claim_name: str = "", config: str = "") -> Object:
    volumes = (
        [{"name": "c", "persistentVolumeClaim": {"claimName": claim_name}}] if claim_name else []
    )
    return pod(
        name, volumes=volumes + ([{"name": "a", "configMap": {"name": config}}] if config else [])
    )


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
            [
                "Deployment inference/qwen3",
                'deployments "qwen3" is forbidden: User "pretune" cannot get it',
            ],
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
    case: str,
    the_cache: Object,
    objects: list[Object],
    forbidden: tuple[str, ...],
    reason: str,
    words: list[str],
) -> None:
    source = observe_now(server(the_cache, *objects), forbidden)[0].source
    assert isinstance(source, Refused)
    assert source.reason == reason
    assert all(word in source.message for word in words), source.message


def test_what_a_cache_names_is_watched_before_it_is_read() -> None:
    client, read_before = Client(server(refers_to("Deployment"), deployment())), list[str]()
    asyncio.run(observe(KEY, client, SETTINGS, NOW, lambda cache: read_before.extend(client.calls)))
    assert any("Deployment" in call for call in client.calls)
    assert read_before and not any("Deployment" in call for call in read_before)


def test_a_source_is_the_pod_template_as_its_author_wrote_it() -> None:
    assert (
        observe_now(server(refers_to("Deployment"), deployment()))[0].source == serving_template()
    )
    assert (
        observe_now(server(cache(source={"template": serving_template()})))[0].source
        == serving_template()
    )
    assert observe_now(server(cache(source=None)))[0].source is None


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


def test_pods_of_ours_and_consumers_are_distinguished_by_the_role() -> None:
    tuning = AttemptPod().running("vllm")
    consumer = pod("serving-1", labels={names.CACHE: KEY.name})
    stranger = pod("stranger", labels={names.CACHE: "other"})
    observed = observe_now(server(cache(), claim(), tuning, consumer, stranger))[0]
    assert [one["metadata"]["name"] for one in observed.pods] == ["pod"]
    assert [one["metadata"]["name"] for one in observed.consumers] == ["serving-1"]
    assert (
        observed.pods[0]["status"]["initContainerStatuses"]
        == tuning["status"]["initContainerStatuses"]
    )
    assert [one["name"] for one in observed.pods[0]["spec"]["initContainers"]][-1] == "vllm"


def test_no_env_value_of_a_pod_or_a_job_is_kept() -> None:
    """But in templates and examples, of which attempts are made."""
    spec: Any = {"template": {"spec": pod("x")["spec"]}}
    labels = {names.CACHE: KEY.name}
    observed = observe_now(
        server(
            cache(),
            claim(),
            job("b-default", **spec),
            pod("s", labels=labels),
            pod("t", labels={**labels, names.ROLE: "tuning"}),
        )
    )[0]
    assert len(observed.jobs) == len(observed.pods) == len(observed.consumers) == 1
    assert SECRET not in json.dumps([observed.jobs, observed.pods, observed.consumers])


def test_an_object_is_seen_with_its_kind_and_without_managed_fields() -> None:
    world = server(cache(), claim(), job("b-default"), AttemptPod())
    for place in world.objects:
        world.objects[place]["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    observed = observe_now(world)[0]
    for one in (observed.cache, observed.claim, *observed.jobs, *observed.pods):
        assert one is not None
        assert one["apiVersion"] and one["kind"]
        assert "managedFields" not in one["metadata"]


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


MINE, ANYBODYS = f"list Pod {CACHE}={KEY.name}", "list Pod"


def test_every_pod_of_the_namespace_is_read_only_where_an_old_agent_could_go() -> None:
    current = agent_name()
    world = server(
        cache(), claim(), config_map(current), mounting("serving", config="pretune-agent-old")
    )
    observed, calls = observe_now(world)
    assert [one["metadata"]["name"] for one in observed.agents] == [current]
    assert MINE in calls and ANYBODYS not in calls
    world.create(config_map("pretune-agent-old"))
    observed, calls = observe_now(world)
    assert observed.agents_named == {"pretune-agent-old"} and ANYBODYS in calls
    world.create(
        {**mounting("mine", config="pretune-agent-old"), "metadata": labelled("mine", KEY.name)}
    )
    observed, calls = observe_now(world)
    assert observed.agents_named == {"pretune-agent-old"} and ANYBODYS not in calls


def test_no_byte_of_an_agent_is_kept() -> None:
    observed = observe_now(server(cache(), claim(), config_map("pretune-agent-old")))[0]
    assert all("binaryData" not in one for one in observed.agents)
    observed = observe_now(server(cache(), claim(), config_map(agent_name())))[0]
    assert observed.foreign_agent is not None and "binaryData" not in observed.foreign_agent


def test_the_agents_content_is_compared_once_for_each_version_of_its_config_map() -> None:
    world = server(cache(), claim())
    made = world.create(build_agent_config_map(NS))
    client, read = Forbidding(world), f"list ConfigMap metadata.name={agent_name()}"

    def see() -> tuple[Observed, bool]:
        client.calls.clear()
        return asyncio.run(observe(KEY, client, SETTINGS, NOW)), read in client.calls

    assert [see()[1] for _ in "123"] == [True, False, False]
    world.delete(made)
    world.create(config_map(agent_name()))
    for _ in "12":  # one that something else wrote is read until it is gone
        seen, is_read = see()
        assert is_read and seen.foreign_agent is not None
        assert seen.foreign_agent["metadata"]["name"] == agent_name()


def test_an_agent_without_our_label_is_noticed() -> None:
    stray = config_map(agent_name())
    del stray["metadata"]["labels"]
    observed = observe_now(server(cache(), claim(), stray))[0]
    assert observed.agents == () and observed.foreign_agent is not None


def test_without_its_cache_a_claim_is_seen_with_the_pods_of_any_phase_that_name_it() -> None:
    done = mounting("done", claim_name="pretune-qwen3")
    world = server(
        claim(),
        {**done, "status": {"phase": "Succeeded"}},
        mounting("other", claim_name="pretune-else"),
    )
    observed = observe_now(world)[0]
    assert observed.cache is None and observed.claim is not None
    assert observed.claim_users == {"done"}
    assert not observed.namespace_has_caches


def test_without_its_cache_a_claim_is_seen_with_the_caches_that_name_it() -> None:
    other = cache(name="other", storage={"existingClaim": {"name": f"pretune-{KEY.name}"}})
    another = cache(name="another", storage={"existingClaim": {"name": "a-claim"}})
    observed = observe_now(server(claim(), other, another))[0]
    assert observed.claim_caches == {"other"} and observed.namespace_has_caches


def test_without_its_cache_agents_are_kept_for_the_others_of_the_namespace() -> None:
    other = cache()
    other["metadata"]["name"] = "other"
    observed = observe_now(
        server(other, config_map("pretune-agent-old"), mounting("p", config="pretune-agent-old"))
    )[0]
    assert observed.namespace_has_caches and observed.agents_named == {"pretune-agent-old"}


@pytest.mark.parametrize("others", [False, True])
def test_a_label_of_a_cache_that_never_was_does_not_read_the_namespaces_pods(others: bool) -> None:
    other = cache()
    other["metadata"]["name"] = "other"
    around = [other, config_map(agent_name())] if others else []
    observed, calls = observe_now(server(*around, pod("p", labels={names.CACHE: KEY.name})))
    assert observed.cache is None and observed.claim is None and observed.held == ()
    assert [one for one in calls if "list Pod" in one] == [
        f"list Pod {CACHE}={KEY.name},!{ROLE} status.phase=Pending"
    ]
    assert not [one for one in calls if "list Event" in one]


def test_the_last_cache_gone_the_current_agent_is_kept_for_the_pods_that_name_it() -> None:
    observed = observe_now(server(config_map(agent_name()), mounting("p", config=agent_name())))[0]
    assert not observed.namespace_has_caches and observed.agents_named == {agent_name()}


def test_without_its_cache_the_pods_behind_our_gate_are_seen() -> None:
    gates, labels = (
        {"schedulingGates": [{"name": "kueue"}, {"name": names.HOLD}]},
        {names.CACHE: KEY.name},
    )
    observed = observe_now(
        server(
            pod("held", labels=labels, **gates),
            pod("others", labels=labels, schedulingGates=[{"name": "kueue"}]),
            pod("another-caches", labels={names.CACHE: "other"}, **gates),
            pod("free", labels=labels),
        )
    )[0]
    assert [one["metadata"]["name"] for one in observed.held] == ["held"]
    assert not observed.consumers  # none of them was given anything
    assert observed.held[0]["spec"]["schedulingGates"] == gates["schedulingGates"]
    assert SECRET not in json.dumps(observed.held)


def test_without_its_cache_pods_with_a_bundle_that_do_not_start_are_seen_with_their_events() -> (
    None
):
    stuck = pod("stuck", labels={names.CACHE: KEY.name}, nodeName="n")
    stuck["metadata"]["annotations"] = {names.BUNDLE: "3f9c2a7be1d0-b200"}
    stuck["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}],
    }
    world = server(stuck)
    uid = world.get("v1", "Pod", NS, "stuck")["metadata"]["uid"]
    meta = {"namespace": NS, "name": "e"}
    world.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": meta,
            "involvedObject": {"uid": uid},
            "reason": "FailedMount",
        }
    )
    observed = observe_now(world, now=NOW + 100)[0]
    assert [one["metadata"]["name"] for one in observed.consumers] == ["stuck"]
    assert [one["reason"] for one in observed.pod_events[uid]] == ["FailedMount"]


def test_jobs_are_read_before_their_pods() -> None:
    calls = observe_now(server(cache(), claim(), job("b-default"), AttemptPod()))[1]
    assert calls.index(f"list Job {CACHE}={KEY.name}") < calls.index(MINE)


# --- consumers


def labelled(name: str, the_cache: str) -> Object:
    return {"namespace": NS, "name": name, "labels": {names.CACHE: the_cache}}


def rollout(world: Server, name: str = "a", **engine: Any) -> Object:
    """A ReplicaSet without a Deployment."""
    meta = {
        "namespace": NS,
        "name": name,
        "annotations": {"deployment.kubernetes.io/revision": "2"},
    }
    spec = {"template": serving_template(**engine)}
    return world.create(
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
    )


def consumer(
    world: Server, name: str, owner: Object | None, status: Object | None = None, **meta: Any
) -> Object:
    if owner is not None:
        ref = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
        }
        meta["ownerReferences"] = [{**ref, "uid": owner["metadata"]["uid"], "controller": True}]
    spec = pod(name)["spec"]
    spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    made = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**labelled(name, KEY.name), **meta},
        "spec": spec,
    }
    made = world.create(made)
    return world.patch(made, {"status": status}, status=True) if status else made


RUNS = {"phase": "Running"}


def test_an_origin_is_read_once_however_many_pods_it_has() -> None:
    world = server(cache(source=None), claim())
    for owner in (rollout(world, "a"), rollout(world, "b", image="vllm:2")):
        for number in range(3):
            consumer(world, f"{owner['metadata']['name']}-{number}", owner, RUNS)
    observed, calls = observe_now(world)
    assert {
        name: one.template["spec"]["containers"][0]["image"]
        for name, one in observed.origins.items()
    } == {  # type: ignore[index]
        "ReplicaSet/a": "vllm:1",
        "ReplicaSet/b": "vllm:2",
    }
    assert sorted(one for one in calls if "ReplicaSet" in one) == [
        "get ReplicaSet a",
        "get ReplicaSet b",
    ]


def test_origins_of_pods_that_have_ended_or_are_ending_are_not_read() -> None:
    world = server(cache(source=None), claim())
    consumer(world, "done", rollout(world, "a"), {"phase": "Succeeded"})
    consumer(world, "failed", rollout(world, "b"), {"phase": "Failed"})
    leaving = consumer(world, "leaving", rollout(world, "c"), RUNS)
    world.objects["v1", "Pod", NS, leaving["metadata"]["name"]]["metadata"]["deletionTimestamp"] = (
        format_timestamp(NOW)
    )
    observed, calls = observe_now(world)
    assert len(observed.consumers) == 3
    assert observed.origins == {} and observed.examples == {}
    assert not any("ReplicaSet" in one for one in calls)


def test_an_owner_that_cannot_be_read_is_refused_in_its_place() -> None:
    world = server(cache(source=None), claim())
    consumer(world, "a-1", rollout(world), RUNS)
    template = observe_now(world, ("ReplicaSet",))[0].origins["ReplicaSet/a"].template
    assert isinstance(template, Refused) and template.reason == "SourceForbidden"


@pytest.mark.parametrize(("ref", "read"), [("Deployment", False), ("ReplicaSet", True), ("", True)])
def test_the_workload_above_is_read_for_advice_unless_the_source_is_it(
    ref: str, read: bool
) -> None:
    source = {"workloadRef": {"apiVersion": "apps/v1", "kind": ref, "name": "a"}} if ref else None
    world = server(cache(source=source), claim())
    consumer(world, "a-1", rollout(world), RUNS)
    found = observe_now(world)[0].origins["ReplicaSet/a"].workload
    assert (found is not None) == read


def test_the_sources_workload_is_seen_without_its_template() -> None:
    the_deployment = workload(
        "Deployment", {"template": serving_template(), "progressDeadlineSeconds": 600}
    )
    observed = observe_now(server(refers_to("Deployment"), the_deployment))[0].source_workload
    assert observed is not None and observed["spec"] == {"progressDeadlineSeconds": 600}
    assert observe_now(server(cache()))[0].source_workload is None


def test_a_sources_workload_without_a_template_is_seen_nevertheless() -> None:
    observed = observe_now(
        server(refers_to("Service", "v1"), workload("Service", {"ports": []}, "v1"))
    )[0]
    assert isinstance(observed.source, Refused) and observed.source_workload is not None


def tuned(*templates: Object, state: str = names.SEALED, **spec: Any) -> Object:
    """The status that says so."""
    of = Spec.from_cache(cache(**spec))
    ids = [
        identity.inputs(one, of, target).bundle_id() for one in templates for target in of.targets
    ]
    return {"bundles": [{"id": one, "state": state} for one in ids]}


TWO = [{"name": "a", "nodeSelector": {"gpu": "a"}}, {"name": "b", "nodeSelector": {"gpu": "b"}}]


@pytest.mark.parametrize(
    ("case", "status", "spec", "read"),
    [
        ("nothing is tuned", None, {}, True),
        ("all is sealed", tuned(serving_template()), {}, False),
        ("it is being tuned", tuned(serving_template(), state=names.TUNING_STATE), {}, True),
        ("another template is sealed", tuned(serving_template(image="vllm:2")), {}, True),
        ("another revision is sealed", tuned(serving_template()), {"revision": "2"}, True),
        ("one of two targets is sealed", {"bundles": tuned(serving_template(), targets=TWO)["bundles"][:1]}, {"targets": TWO}, True),
        ("both targets are sealed", tuned(serving_template(), targets=TWO), {"targets": TWO}, False),
        ("which container is the engine is unknown", None, {"engineContainer": "other"}, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_whole_pod_and_the_claims_of_its_template_are_read_only_while_a_bundle_of_it_is_not_sealed(
    case: str, status: Object | None, spec: Object, read: bool
) -> None:
    world = server(
        cache(status, source=None, **spec), claim(), claim(name="models", modes=("ReadOnlyMany",))
    )
    owner = rollout(world)
    volumes = [{"name": "m", "persistentVolumeClaim": {"claimName": "models"}}]
    world.patch(owner, {"spec": {"template": {"spec": {"volumes": volumes}}}})
    made = consumer(world, "a-1", owner, RUNS)
    observed, calls = observe_now(world)
    assert (observed.examples.get("ReplicaSet/a") == world.get("v1", "Pod", NS, "a-1")) == read
    assert ("get Pod a-1" in calls) == read
    assert observed.source_claims == ({"models": ("ReadOnlyMany",)} if read else {})
    assert made["metadata"]["uid"] == observed.consumers[0]["metadata"]["uid"]


def test_the_example_is_the_newest_pod_that_the_webhook_has_seen_else_the_newest() -> None:
    world = server(cache(source=None), claim())
    owner, touched = rollout(world), {"annotations": {names.DELIVERY: "Overlay"}}
    for name in ("a-1", "a-2"):
        consumer(world, name, owner, RUNS)
        world.clock.advance(60)
    assert observe_now(world)[0].examples["ReplicaSet/a"]["metadata"]["name"] == "a-2"
    for name, meta in (("a-3", touched), ("a-4", touched), ("a-5", {})):
        consumer(world, name, owner, RUNS, **meta)
        world.clock.advance(60)
    assert observe_now(world)[0].examples["ReplicaSet/a"]["metadata"]["name"] == "a-4"


def test_a_pod_that_is_gone_by_now_or_another_one_is_no_example() -> None:
    world = server(cache(source=None), claim())
    consumer(world, "a-1", rollout(world), RUNS)
    client = Client(world)

    async def get(api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        found = world.get(api_version, kind, namespace, name)
        return (
            {**found, "metadata": {**found["metadata"], "uid": "another"}}
            if found and kind == "Pod"
            else found
        )

    client.get = get  # type: ignore[method-assign]
    assert asyncio.run(observe(KEY, client, SETTINGS, NOW)).examples == {}


def test_a_pod_that_is_its_own_template_is_no_further_read() -> None:
    world = server(cache(source=None), claim())
    consumer(world, "bare", None, RUNS)
    observed, calls = observe_now(world)
    assert "get Pod bare" not in calls
    assert isinstance(found := observed.origins["Pod/bare"].template, dict)
    assert found["spec"]["containers"][0]["env"] == [{"name": "TOKEN", "value": SECRET}]
    assert observed.examples["Pod/bare"] == world.get("v1", "Pod", NS, "bare")
    assert SECRET not in json.dumps(observed.consumers)


WHOLE: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        **labelled("a-1", KEY.name),
        "uid": "u",
        "generateName": "a-",
        "annotations": {names.BUNDLE: "b", names.TARGET: "t", "kubectl.kubernetes.io/last-applied-configuration": SECRET},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "ua", "controller": True}],
        "creationTimestamp": format_timestamp(NOW),
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {
        "nodeName": "node0",
        "nodeSelector": {"gpu": "b200"},
        "schedulingGates": [{"name": names.HOLD}],
        "containers": [{"name": "vllm", "env": [{"name": "TOKEN", "value": SECRET}]}],
        "volumes": [
            {"name": "pretune-claim", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
            {"name": "pretune-agent", "configMap": {"name": "pretune-agent-0", "optional": True, "items": []}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "tmp", "emptyDir": {}},
        ],
    },
    "status": {
        "phase": "Pending",
        "reason": "Evicted",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "podIP": "10.0.0.1",
        "initContainerStatuses": [
            {"name": "fetch", "state": {"terminated": {"exitCode": 0, "finishedAt": "t", "message": SECRET}}},
            {"name": names.SEED_CONTAINER, "state": {"terminated": {"exitCode": 0, "message": "{}"}}, "image": "x"},
        ],
        "containerStatuses": [
            {
                "name": "vllm",
                "imageID": "x@sha256:1",
                "image": "x",
                "containerID": "c",
                "ready": False,
                "started": False,
                "restartCount": 1,
                "state": {"waiting": {"reason": "CreateContainerError", "message": "/pretune/claim"}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "t", "message": SECRET}},
            }
        ],
    },
}  # fmt: skip


def test_a_consumer_is_cut_down_to_what_is_decided_on() -> None:
    world = server(cache(source=None), claim())
    world.objects["v1", "Pod", NS, "a-1"] = WHOLE
    (cut,) = observe_now(world)[0].consumers
    assert cut["metadata"] == {
        **{name: one for name, one in WHOLE["metadata"].items() if name != "managedFields"},
        "annotations": {names.BUNDLE: "b", names.TARGET: "t"},
    }
    assert cut["spec"] == {
        **{name: WHOLE["spec"][name] for name in ("nodeName", "nodeSelector", "schedulingGates")},
        "volumes": [
            {
                "name": "pretune-claim",
                "persistentVolumeClaim": {"claimName": "c", "readOnly": True},
            },
            {"name": "pretune-agent", "configMap": {"name": "pretune-agent-0"}},
            {"name": "scratch", "ephemeral": {}},
        ],
    }
    whole = WHOLE["status"]
    assert cut["status"] == {
        **{name: whole[name] for name in ("phase", "reason", "conditions")},
        "initContainerStatuses": [
            {"name": "fetch", "state": {"terminated": {"exitCode": 0, "finishedAt": "t"}}},
            {"name": names.SEED_CONTAINER, "state": {"terminated": {"exitCode": 0, "message": "{}"}}},
        ],
        "containerStatuses": [
            {
                **{name: one for name, one in whole["containerStatuses"][0].items() if name not in ("image", "containerID")},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "t"}},
            }
        ],
    }  # fmt: skip
    assert SECRET not in json.dumps(cut)


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


def test_of_many_large_single_pods_only_some_are_kept_whole() -> None:
    def single(number: int) -> Object:
        labels = {CACHE: "qwen3"}
        spec = {"containers": [{"name": "vllm", "args": ["x" * 1_000_000]}]}
        return {"metadata": {"name": f"p{number}", "labels": labels}, "spec": spec}

    projection = project.PodProjection()
    kept = list(map(projection, map(single, range(20))))
    assert [EXCESS in pod for pod in kept] == [False] * 8 + [True] * 12
    assert len(str(kept[8:])) < 20_000 and "more than 8 MiB" in kept[8][EXCESS]


def test_a_single_pod_counts_once_where_the_list_begins_again() -> None:
    def single(number: int) -> Object:
        spec = {"containers": [{"name": "vllm", "args": ["x" * 1_000_000]}]}
        return {"metadata": {"name": f"p{number}", "labels": {CACHE: "qwen3"}}, "spec": spec}

    projection = project.PodProjection()
    for _ in range(3):  # after an answer 410 (kube.client.Kubernetes.list)
        kept = list(map(projection, map(single, range(9))))
        assert [EXCESS in pod for pod in kept] == [False] * 8 + [True]


# --- what an engine needs beside its pod


def source_with(**pod: Any) -> Object:
    template = serving_template()
    template["spec"].update(pod)
    return cache(source={"template": template})


def test_the_nodes_that_use_a_read_write_once_claim_are_read_and_of_living_pods_only() -> None:
    volumes = [
        {"name": "m", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "s", "persistentVolumeClaim": {"claimName": "shared"}},
    ]
    once, many = ("ReadWriteOnce",), ("ReadWriteOnce", "ReadOnlyMany")
    world = server(
        source_with(volumes=volumes), claim(), claim(name="models", modes=once),
        claim(name="shared", modes=many),
    )  # fmt: skip

    def use(name: str, node: str, phase: str = "Running", **more: Any) -> None:
        made = world.create({**mounting(name, "models"), **more})
        made = world.patch(made, {"spec": {"nodeName": node}} if node else {})
        world.patch(made, {"status": {"phase": phase}}, status=True)

    use("serves", "n1")
    use("held", "")
    use("done", "n2", phase="Succeeded")
    ours = {"namespace": NS, "name": "ours", "labels": {names.ROLE: names.TUNING}}
    use("ours", "n3", metadata=ours)
    assert observe_now(world)[0].claim_nodes == {"models": ("n1",)}


def test_who_uses_a_claim_is_not_read_where_many_nodes_may() -> None:
    volumes = [{"name": "s", "persistentVolumeClaim": {"claimName": "shared"}}]
    many = ("ReadWriteMany",)
    world = server(source_with(volumes=volumes), claim(), claim(name="shared", modes=many))
    observed, calls = observe_now(world)
    assert observed.claim_nodes == {} and ANYBODYS not in calls


def test_a_device_claims_template_is_read_and_unknown_where_that_is_forbidden() -> None:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "eight"}]
    devices = {"requests": [{"name": "g", "exactly": {"deviceClassName": "gpu", "count": 8}}]}
    eight = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"namespace": NS, "name": "eight"},
        "spec": {"spec": {"devices": devices}},
    }
    world = server(source_with(resourceClaims=claims), claim(), eight)
    observed, _ = observe_now(world)
    assert observed.device_claims["eight"]["spec"] == eight["spec"]
    assert observe_now(world, ("ResourceClaimTemplate",))[0].device_claims == {}


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


def test_many_claims_of_a_template_are_read_with_one_list() -> None:
    volumes = [
        {"name": f"v{number}", "persistentVolumeClaim": {"claimName": f"models-{number}"}}
        for number in range(900)
    ]
    modes = {f"models-{number}": ("ReadOnlyMany",) for number in range(3)}
    world = server(
        source_with(volumes=volumes), claim(), claim(name="other"),
        *(claim(name=name, modes=these) for name, these in modes.items()),
    )  # fmt: skip
    observed, calls = observe_now(world)
    assert observed.source_claims == modes
    assert sum("PersistentVolumeClaim" in call for call in calls) == 2, "its own, and the list"


def test_of_many_large_templates_only_the_newest_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretune.controller.observe.MAX_TEMPLATES_CHARACTERS", 200_000)
    world = server(cache(source=None))
    for number in range(40):
        template = serving_template(env=[{"name": "A", "value": "x" * 10_000}])
        template["metadata"]["labels"][CACHE] = KEY.name
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": f"j{number}", "controller": True}
        made = world.create(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"namespace": NS, "name": f"j{number}"},
                "spec": {"template": template, "suspend": True},
            }
        )
        world.clock.advance(1)
        owner["uid"] = made["metadata"]["uid"]
        meta = {"namespace": NS, "name": f"p{number}", "ownerReferences": [owner]}
        meta["labels"] = {CACHE: KEY.name}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        world.create(pod)
    seen, _ = observe_now(world)
    read = [name for name, one in seen.origins.items() if not isinstance(one.template, Refused)]
    assert len(seen.origins) == 40 and 15 < len(read) < 20
    assert set(read) == {f"Job/j{number}" for number in range(40 - len(read), 40)}
    refused = seen.origins["Job/j0"].template
    assert isinstance(refused, Refused) and refused.reason == "TooLarge"
