"""Where a consumer's template comes from, on the simulator's API server.

What is read, and how an owner that cannot be read is refused.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from pretune import origin
from pretune.api import names, spec
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.podspec import identity, workloads
from pretune.podspec.workloads import REVISION_ANNOTATION, WorkloadKind, origin_of
from pretune.policy.model import Origin
from pretune.protocol import TASK_VARIABLE

from tests.builders.constants import KEY, NOW
from tests.builders.templates import serving_template
from tests.sim import cluster
from tests.sim.cluster import Client, Clock, Server

NS = KEY.namespace
TEMPLATE = serving_template()


class Asked(Client):
    """A client that may be refused."""

    refuses: Callable[[str], ApiError | None] = staticmethod(lambda kind: None)

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        found = await super().get(api_version, kind, namespace, name)
        if error := self.refuses(kind):
            raise error
        return found


def create(
    world: Server, kind: str, name: str = "serving", version: str = "apps/v1", **parts: Any
) -> Object:
    meta = {"namespace": NS, "name": name, **parts.pop("metadata", {})}
    return world.create({"apiVersion": version, "kind": kind, "metadata": meta, **parts})


def controlled_by(owner: Object) -> list[Object]:
    meta = owner["metadata"]
    ref = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
    }
    return [{**ref, "controller": True}]


def pod_of(owner: Object | None, **labels: str) -> Object:
    meta: Object = {
        "namespace": NS,
        "name": "serving-1",
        "uid": "u",
        "labels": labels,
        "creationTimestamp": format_timestamp(NOW),
    }
    if owner is not None:
        meta["ownerReferences"] = controlled_by(owner)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": copy.deepcopy(TEMPLATE["spec"]),
    }


def rollout(world: Server, revision: str = "3", **spec: Any) -> tuple[Object, Object]:
    """A Deployment and its ReplicaSet."""
    above = create(
        world,
        "Deployment",
        "above",
        spec={"replicas": 2, "template": serving_template(image="newer")},
    )
    notes = {REVISION_ANNOTATION: revision}
    meta = {"ownerReferences": controlled_by(above), "annotations": notes}
    return above, create(world, "ReplicaSet", metadata=meta, spec={"template": TEMPLATE, **spec})


def revision(world: Server, kind: str, number: int = 2) -> tuple[Object, Object]:
    """A set, which is at a newer template, and the revision that a pod of it was created from."""
    the_set = create(
        world, kind, spec={"serviceName": "s", "template": serving_template(image="newer")}
    )
    data = {"spec": {"template": {"$patch": "replace", **TEMPLATE}}}
    name, meta = "serving-7f", {"ownerReferences": controlled_by(the_set)}
    return the_set, create(
        world, "ControllerRevision", name, metadata=meta, data=data, revision=number
    )


def ask(
    world: Server, pod: Object, workload: bool = False, refuses: Any = None
) -> tuple[Origin, list[str]]:
    client = Asked(world)
    if refuses is not None:
        client.refuses = refuses
    return asyncio.run(origin.read_origin(client, NS, pod, workload=workload)), client.calls


@pytest.fixture
def world() -> Server:
    return Server(Clock(NOW))


def test_a_deployments_pod_has_its_replica_sets_template_not_the_deployments_newer_one(
    world: Server,
) -> None:
    found, calls = ask(world, pod_of(rollout(world)[1]))
    assert (found.kind, found.name, found.template) == ("ReplicaSet", "serving", TEMPLATE)
    assert found.order == (3, format_timestamp(NOW)) and found.workload is None
    assert calls == ["get ReplicaSet serving"]


@pytest.mark.parametrize(("annotation", "number"), [("12", 12), ("", 0), ("newest", 0)])
def test_the_revision_is_the_deployments_number_where_there_is_one(
    world: Server, annotation: str, number: int
) -> None:
    assert ask(world, pod_of(rollout(world, annotation)[1]))[0].order == (
        number,
        format_timestamp(NOW),
    )


@pytest.mark.parametrize(("kind", "label"), [("StatefulSet", "serving-7f"), ("DaemonSet", "7f")])
def test_a_sets_pod_has_the_template_of_its_own_revision_not_the_sets_newer_one(
    world: Server, kind: str, label: str
) -> None:
    found, calls = ask(
        world, pod_of(revision(world, kind)[0], **{"controller-revision-hash": label})
    )
    assert (found.kind, found.name, found.template) == (kind, "serving", TEMPLATE)
    assert found.order == (2, format_timestamp(NOW)) and found.workload is None
    assert calls == ["get ControllerRevision serving-7f"]


def test_a_jobs_pod_has_the_jobs_template(world: Server) -> None:
    the_job = create(
        world, "Job", version="batch/v1", spec={"template": TEMPLATE, "backoffLimit": 0}
    )
    found = ask(world, pod_of(the_job), workload=True)[0]
    assert (found.kind, found.name, found.template, found.order) == (
        "Job",
        "serving",
        TEMPLATE,
        (0, format_timestamp(NOW)),
    )
    assert found.workload is not None and found.workload["spec"] == {"backoffLimit": 0}


def test_templates_keep_their_labels_since_preflight_reads_them(
    world: Server,
) -> None:
    of = {**TEMPLATE, "metadata": {"labels": {"ray.io/cluster": "x"}, "annotations": {"a": "b"}}}
    the_set = create(world, "ReplicaSet", spec={"template": of})
    assert ask(world, pod_of(the_set))[0].template == of
    bare = pod_of(None, **{"ray.io/cluster": "x"})
    assert ask(world, bare)[0].template["metadata"]["labels"] == {"ray.io/cluster": "x"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("case", "spec", "calls"),
    [
        ("ReplicaSet", {"replicas": 2}, ["get ReplicaSet serving", "get Deployment above"]),
        (
            "StatefulSet",
            {"serviceName": "s"},
            ["get ControllerRevision serving-7f", "get StatefulSet serving"],
        ),
    ],
)
def test_the_workload_above_is_read_when_it_is_asked_for_without_its_template(
    world: Server, case: str, spec: Object, calls: list[str]
) -> None:
    above, below = rollout(world) if case == "ReplicaSet" else revision(world, case)
    pod = (
        pod_of(below)
        if case == "ReplicaSet"
        else pod_of(above, **{"controller-revision-hash": "serving-7f"})
    )
    found, asked = ask(world, pod, workload=True)
    assert asked == calls and found.template == TEMPLATE
    assert found.workload is not None
    assert (found.workload["kind"], found.workload["spec"]) == (above["kind"], spec)
    assert found.workload["metadata"]["uid"] == above["metadata"]["uid"]


@pytest.mark.parametrize("above", [False, True], ids=("its own template", "one workload above"))
def test_a_kind_that_is_added_as_a_row_has_its_template_and_its_workload_read(
    world: Server, monkeypatch: pytest.MonkeyPatch, above: bool
) -> None:
    row = WorkloadKind(
        "serving.test",
        "Replica",
        order_annotations=("serving.test/number",),
        above=("Fleet",) if above else (),
    )
    monkeypatch.setattr(workloads, "KINDS", (*workloads.KINDS, row))
    monkeypatch.setattr(
        cluster,
        "KINDS",
        cluster.KINDS | {("serving.test/v1", "Replica"), ("serving.test/v1", "Fleet")},
    )
    fleet = create(world, "Fleet", "all", version="serving.test/v1", spec={"size": 3})
    meta = {
        "ownerReferences": controlled_by(fleet),
        "annotations": {"serving.test/number": "5"},
    }
    replica = create(
        world, "Replica", version="serving.test/v1", metadata=meta, spec={"template": TEMPLATE}
    )
    found, calls = ask(world, pod_of(replica), workload=True)
    assert (found.kind, found.name, found.template) == ("Replica", "serving", TEMPLATE)
    assert found.order == (5, format_timestamp(NOW))
    assert found.workload is not None
    expected = ("Fleet", {"size": 3}) if above else ("Replica", {})
    assert (found.workload["kind"], found.workload["spec"]) == expected
    assert found.workload_name == ("Fleet/all" if above else "Replica/serving")
    assert calls == ["get Replica serving", *(["get Fleet all"] if above else [])]


@pytest.mark.parametrize(
    ("kind", "annotation"),
    [
        ("Deployment", "deployment.kubernetes.io/revision"),
        ("Rollout", "rollout.argoproj.io/revision"),
    ],
)
def test_the_workload_and_its_newest_revision_are_known_from_the_replica_set_alone(
    world: Server, kind: str, annotation: str
) -> None:
    """A rollback makes an older ReplicaSet the newest revision, of an Argo Rollout too."""
    owner = {"apiVersion": "x/v1", "kind": kind, "name": "all", "uid": "u", "controller": True}
    meta = {"ownerReferences": [owner], "annotations": {annotation: "7"}}
    replica_set = create(world, "ReplicaSet", metadata=meta, spec={"template": TEMPLATE})
    found, calls = ask(world, pod_of(replica_set))
    assert (found.order[0], found.workload_name) == (7, f"{kind}/all")
    assert calls == ["get ReplicaSet serving"]


def test_a_replica_set_without_a_controller_or_with_one_of_another_kind_is_the_workload_itself(
    world: Server,
) -> None:
    fleets = [
        {
            "apiVersion": "serving.test/v1",
            "kind": "Fleet",
            "name": "r",
            "uid": "r",
            "controller": True,
        }
    ]
    for meta in ({}, {"ownerReferences": fleets}):
        the_set = create(
            world, "ReplicaSet", metadata=meta, spec={"replicas": 1, "template": TEMPLATE}
        )
        found, calls = ask(world, pod_of(the_set), workload=True)
        assert found.workload is not None and found.workload["spec"] == {"replicas": 1}
        assert calls == ["get ReplicaSet serving"]
        world.delete(the_set)


def no_deployment(code: int) -> Any:
    return lambda kind: ApiError(code, "", "no") if kind == "Deployment" else None


def test_a_workload_that_is_gone_another_or_forbidden_is_none_and_costs_no_template(
    world: Server,
) -> None:
    above, below = rollout(world)
    pod = pod_of(below)
    found = ask(world, pod, workload=True, refuses=no_deployment(403))[0]
    assert found.workload is None and found.template == TEMPLATE
    with pytest.raises(ApiError, match="503"):
        ask(world, pod, workload=True, refuses=no_deployment(503))
    world.delete(above)
    assert ask(world, pod, workload=True)[0].workload is None
    create(world, "Deployment", "above", spec={})
    assert ask(world, pod, workload=True)[0].workload is None


def gone(world: Server) -> Object:
    the_set = create(world, "ReplicaSet", spec={"template": TEMPLATE})
    world.delete(the_set)
    return pod_of(the_set)


def another(world: Server) -> Object:
    pod = gone(world)
    create(world, "ReplicaSet", spec={"template": TEMPLATE})
    return pod


def anothers_revision(world: Server) -> Object:
    the_set, _ = revision(world, "StatefulSet")
    pod = pod_of(the_set, **{"controller-revision-hash": "serving-7f"})
    pod["metadata"]["ownerReferences"][0]["uid"] = "of-a-set-that-was"
    return pod


def without_template(world: Server) -> Object:
    return pod_of(create(world, "ReplicaSet", spec={"replicas": 1}))


def odd_template(world: Server) -> Object:
    return pod_of(
        create(world, "ReplicaSet", spec={"template": {"spec": {"containers": [{"name": 8}]}}})
    )


def odd_revision(world: Server) -> Object:
    the_set = create(world, "StatefulSet", spec={})
    create(
        world,
        "ControllerRevision",
        "serving-7f",
        metadata={"ownerReferences": controlled_by(the_set)},
        data={},
    )
    return pod_of(the_set, **{"controller-revision-hash": "serving-7f"})


@pytest.mark.parametrize(
    ("build", "reason", "words"),
    [
        (gone, "SourceNotFound", ["ReplicaSet inference/serving", "does not exist"]),
        (another, "SourceNotFound", ["ReplicaSet inference/serving", "is gone"]),
        (
            anothers_revision,
            "SourceNotFound",
            ["ControllerRevision inference/serving-7f", "StatefulSet serving"],
        ),
        (without_template, "SourceInvalid", ["ReplicaSet inference/serving", "no pod template"]),
        (
            odd_template,
            "SourceInvalid",
            ["ReplicaSet inference/serving", "spec.containers[0].name must be a string"],
        ),
        (
            odd_revision,
            "SourceInvalid",
            ["ControllerRevision inference/serving-7f", "no pod template"],
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_owner_that_cannot_be_read_is_refused_by_name(
    world: Server, build: Callable[[Server], Object], reason: str, words: list[str]
) -> None:
    pod = build(world)
    found = ask(world, pod, workload=True)[0]
    assert (found.kind, found.name) == (pod["metadata"]["ownerReferences"][0]["kind"], "serving")
    assert isinstance(found.template, Refused) and found.template.reason == reason
    assert all(word in found.template.message for word in words), found.template.message


@pytest.mark.parametrize(("code", "reason"), [(403, "SourceForbidden"), (503, ""), (429, "")])
def test_only_a_lasting_refusal_is_a_verdict(world: Server, code: int, reason: str) -> None:
    pod = pod_of(rollout(world)[1])

    def refuses(kind: str) -> ApiError:
        return ApiError(code, "", f"{kind} is not for you")

    if not reason:
        with pytest.raises(ApiError, match=str(code)):
            ask(world, pod, refuses=refuses)
        return
    found = ask(world, pod, refuses=refuses)[0].template
    assert (
        isinstance(found, Refused)
        and found.reason == reason
        and "ReplicaSet is not for you" in found.message
    )


# --- a pod that is its own template


TOKEN = {"name": "kube-api-access-7hq2x", "projected": {"sources": []}}


def test_a_pod_of_an_unknown_owner_is_its_own_template_without_what_is_not_its_authors(
    world: Server,
) -> None:
    pod = pod_of(None, app="x", **{names.CACHE: "qwen3"})
    ray = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "name": "r",
        "uid": "r",
        "controller": True,
    }
    pod["metadata"]["ownerReferences"] = [ray]
    pod["metadata"]["annotations"] = {
        "a": "b",
        names.DELIVERY: "None",
        names.REASON: "x: y",
        names.TARGET: "b200",
    }
    pod["spec"] |= {
        "nodeName": "node7",
        "nodeSelector": {"zone": "a"},
        "priority": 0,
        "schedulingGates": [{"name": names.HOLD}],
    }
    pod["spec"]["volumes"] = [TOKEN]
    pod["spec"]["containers"][0] |= {
        "env": [{"name": "A", "value": "1"}],
        "volumeMounts": [
            {"name": TOKEN["name"], "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        ],
    }
    found, calls = ask(world, pod, workload=True)
    assert calls == []
    assert (found.kind, found.name, found.order, found.workload) == (
        "Pod",
        "serving-1",
        (0, format_timestamp(NOW)),
        None,
    )
    assert isinstance(found.template, dict)
    assert found.template["metadata"]["labels"] == {"app": "x", names.CACHE: "qwen3"}
    assert found.template["metadata"]["annotations"] == {"a": "b", names.TARGET: "b200"}
    spec = found.template["spec"]
    assert spec["containers"][0]["env"] == [{"name": "A", "value": "1"}]
    assert spec["nodeSelector"] == {"zone": "a"}
    assert not {"nodeName", "priority", "schedulingGates"} & set(spec)
    assert not spec.get("volumes") and not spec["containers"][0].get("volumeMounts")


BY_AUTHOR = {"manager": "kubectl", "fieldsV1": {"f:spec": {"f:nodeName": {}, "f:containers": {}}}}
BY_KUBELET = {"manager": "kubelet", "subresource": "status", "fieldsV1": {"f:status": {}}}


@pytest.mark.parametrize(
    ("case", "meta", "kept"),
    [
        ("the scheduler's", {"uid": "u", "managedFields": [BY_KUBELET, {"manager": "odd"}]}, False),
        ("the author's", {"uid": "u", "managedFields": [BY_AUTHOR, BY_KUBELET]}, True),
        ("the author's, while the pod is being created", {}, True),
        ("of a pod whose fields have no manager", {"uid": "u"}, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_node_counts_only_if_the_author_chose_it(
    world: Server, case: str, meta: Object, kept: bool
) -> None:
    pod = pod_of(None)
    del pod["metadata"]["uid"]
    pod["metadata"] |= meta
    pod["spec"]["nodeName"] = "node7"
    found = ask(world, pod)[0].template
    assert isinstance(found, dict) and ("nodeName" in found["spec"]) == kept


def test_a_pod_that_is_being_created_needs_the_same_bundle_as_later(world: Server) -> None:
    """The webhook sees no name, uid or node; the controller sees them, and the delivery."""
    early = pod_of(None, app="x")
    for name in ("name", "uid", "creationTimestamp"):
        del early["metadata"][name]
    early["metadata"]["generateName"] = "serving-"
    late = pod_of(None, app="x")
    late["spec"] |= {"nodeName": "node7", "priority": 0}
    late["metadata"]["annotations"] = {names.DELIVERY: "Overlay", names.BUNDLE: "b"}
    late["spec"]["initContainers"] = [
        {"name": names.SEED_CONTAINER, "env": [{"name": TASK_VARIABLE, "value": "{}"}]}
    ]
    first, other = ask(world, early)[0].template, ask(world, late)[0].template
    parsed = spec.Spec.from_cache({"spec": {"storage": {"claim": {}}}})
    assert isinstance(first, dict) and isinstance(other, dict)
    assert identity.inputs(first, parsed, parsed.targets[0]) == identity.inputs(
        other, parsed, parsed.targets[0]
    )
    assert origin_of(early) is None


def test_the_pod_stays_as_it_is(world: Server) -> None:
    pod = pod_of(None)
    pod["spec"]["nodeName"] = "node7"
    before = copy.deepcopy(pod)
    ask(world, pod)
    assert pod == before
