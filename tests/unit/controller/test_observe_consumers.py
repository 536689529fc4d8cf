"""What one reconcile observes of the pods that serve, and of the workloads that own them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CACHE
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller.observe import observe
from pretune.podspec import identity

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.observing import NS, SECRET, consumer, observe_now, refers_to, server, workload
from tests.builders.templates import serving_template
from tests.sim.cluster import Client, Server


def rollout(world: Server, name: str = "a", **engine: Any) -> Object:
    """Create a ReplicaSet without a Deployment."""
    meta = {
        "namespace": NS,
        "name": name,
        "annotations": {"deployment.kubernetes.io/revision": "2"},
    }
    spec = {"template": serving_template(**engine)}
    return world.create(
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
    )


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
    """Return the status in which the bundles of the templates have that state."""
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
