"""What one reconcile observes, on the simulator's API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CACHE, ROLE
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.controller.observe import observe
from pretune.kube.types import ApiError
from pretune.manifests.agent_archive import agent_name, build_agent_config_map
from pretune.policy.model import Observed

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.jobs import job
from tests.builders.observing import (
    NS,
    SECRET,
    Forbidding,
    labelled,
    observe_now,
    pod,
    refers_to,
    server,
    workload,
)
from tests.builders.pods import AttemptPod
from tests.builders.templates import serving_template
from tests.sim.cluster import Client


def deployment(**more: Any) -> Object:
    return workload("Deployment", {"template": serving_template()}, **more)


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
