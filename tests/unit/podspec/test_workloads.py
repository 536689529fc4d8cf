"""What a source's pod template is, and what is said of an object that has none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.podspec import workloads

from tests.unit.builders import engine, law, stored, templates


def workload(template: Any, kind: str = "Deployment") -> Object:
    return {"kind": kind, "metadata": {"name": "qwen3"}, "spec": {"template": template}}


def inline(template: Any) -> Object:
    return {
        "kind": "AutotuneCache",
        "metadata": {"name": "qwen3"},
        "spec": {"source": {"template": template}},
    }


@law(templates())
def test_the_template_is_handed_on_as_its_author_wrote_it(pod: Object) -> None:
    assert workloads.template_of(workload(pod)) == pod
    assert workloads.template_of(inline(pod)) == pod


def test_nulls_are_left_out_as_the_api_server_does_and_the_source_stays_as_it_is() -> None:
    source = inline(
        engine(command=None, env=[{"name": "A", "value": None}]).pod(
            nodeSelector=None, volumes=None
        )
    )
    before = copy.deepcopy(source)
    pod = workloads.template_of(source)["spec"]
    assert set(pod) == {"containers"}
    assert "command" not in pod["containers"][0]
    assert pod["containers"][0]["env"] == [{"name": "A"}]
    assert source == before


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "CronJob", "metadata": {"name": "qwen3"}, "spec": {"jobTemplate": {}}},
        {"kind": "ConfigMap", "metadata": {"name": "qwen3"}, "data": {"template": "x"}},
        {"kind": "Rollout", "metadata": {"name": "qwen3"}, "spec": {"workloadRef": {"name": "x"}}},
        workload({"metadata": {}}),
        workload({"spec": {"replicas": 3}}),
        workload({"spec": {"containers": []}}),
        workload("a text"),
        workload(None),
    ],
)
def test_an_object_without_a_pod_template_is_not_supported_and_named(source: Object) -> None:
    with pytest.raises(Refused) as refused:
        workloads.template_of(source)
    assert refused.value.reason == "SourceNotSupported"
    assert refused.value.message.startswith(
        f"{source['kind']} qwen3: spec.template is no pod template"
    )


WRONG = [
    ({"metadata": {}, "spec": {}}, ".spec.containers: Required value"),
    ({"spec": {"containers": "vllm"}}, ".spec.containers must be a list"),
    ({"spec": {"containers": [None]}}, ".spec.containers[0] must be an object"),
    ({"spec": {"containers": [{"image": "vllm:1"}]}}, ".spec.containers[0].name: Required value"),
    (engine(args="serve"), ".spec.containers[0].args must be a list"),
    (engine().args("serve", 8), ".spec.containers[0].args[1] must be a string"),  # type: ignore[arg-type]
    (engine(env={"A": "1"}), ".spec.containers[0].env must be a list"),
    (engine(env=[{"name": "A", "value": 1}]), ".spec.containers[0].env[0].value must be a string"),
    (
        engine().having(resources={"limits": 8}),
        ".spec.containers[0].resources.limits must be an object",
    ),
    (
        engine(readinessProbe={"httpGet": "/health"}),
        ".spec.containers[0].readinessProbe.httpGet must be an object",
    ),
    (engine(volumeMounts=[{}]), ".spec.containers[0].volumeMounts[0].name: Required value"),
    (engine().pod(nodeSelector={"gpu": True}), ".spec.nodeSelector.gpu must be a string"),
    (engine().pod(initContainers=[{"name": 8}]), ".spec.initContainers[0].name must be a string"),
    (
        {"spec": engine()["spec"], "metadata": {"labels": {"a": 1}}},
        ".metadata.labels.a must be a string",
    ),
]


@pytest.mark.parametrize(("template", "words"), WRONG, ids=[one[1] for one in WRONG])
def test_a_template_of_another_form_is_invalid_with_the_field_since_nobody_else_looks_into_it(
    template: Any, words: str
) -> None:
    with pytest.raises(Refused) as refused:
        workloads.template_of(inline(template))
    assert (refused.value.reason, refused.value.message) == (
        "SourceInvalid",
        "AutotuneCache qwen3: spec.source.template" + words,
    )


@law(templates())
def test_what_the_api_server_stored_is_always_of_the_form(pod: Object) -> None:
    workloads.template_of(workload(stored(pod)))


# --- where a pod's template comes from


def pod(*owners: Object, name: str = "p", **labels: str) -> Object:
    return {
        "metadata": {"name": name, "ownerReferences": list(owners), "labels": labels},
        "spec": {},
    }


def owner(
    kind: str, version: str = "apps/v1", *, name: str = "o", controller: bool = True
) -> Object:
    return {
        "apiVersion": version,
        "kind": kind,
        "name": name,
        "uid": f"uid-{name}",
        "controller": controller,
    }


HASH = {"controller-revision-hash": "o-7f"}


def ref(kind: str, name: str, of: str = "", version: str = "apps/v1") -> workloads.TemplateRef:
    return workloads.TemplateRef(version, kind, name, "uid-o", of or kind, "o")


@pytest.mark.parametrize(
    ("case", "of", "expected"),
    [
        ("a ReplicaSet's", pod(owner("ReplicaSet")), ref("ReplicaSet", "o")),
        ("a Job's", pod(owner("Job", "batch/v1")), ref("Job", "o", version="batch/v1")),
        ("a StatefulSet's: the label is the name", pod(owner("StatefulSet"), **HASH), ref("ControllerRevision", "o-7f", "StatefulSet")),
        (
            "a DaemonSet's: the label is the hash",
            pod(owner("DaemonSet"), **{"controller-revision-hash": "7f"}),
            ref("ControllerRevision", "o-7f", "DaemonSet"),
        ),
        ("a newer version of the same group", pod(owner("ReplicaSet", "apps/v2")), ref("ReplicaSet", "o", version="apps/v2")),
        ("one of several owners", pod(owner("Job", "batch/v1", name="x", controller=False), owner("ReplicaSet")), ref("ReplicaSet", "o")),
        ("a bare pod", pod(), None),
        ("an owner that does not control it", pod(owner("ReplicaSet", controller=False)), None),
        ("a kind that we do not know", pod(owner("RayCluster", "ray.io/v1")), None),
        ("a kind of the same name in another group", pod(owner("StatefulSet", "apps.kruise.io/v1"), **HASH), None),
        ("a Job of another group", pod(owner("Job", "batch.volcano.sh/v1alpha1")), None),
        ("a pod that its set did not make", pod(owner("StatefulSet")), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pods_template_is_its_controllers_or_its_own(
    case: str, of: Object, expected: workloads.TemplateRef | None
) -> None:
    assert workloads.origin_of(of) == expected
    assert workloads.origin_key(of) == (f"{expected.kind}/{expected.name}" if expected else "Pod/p")


def test_a_pod_that_has_neither_a_name_nor_labels_yet_has_an_origin() -> None:
    assert workloads.origin_of({"metadata": {"generateName": "p-"}, "spec": {}}) is None
    assert workloads.origin_key({"metadata": {"generateName": "p-"}, "spec": {}}) == "Pod/"
    assert (
        workloads.origin_of({"metadata": {"ownerReferences": [owner("DaemonSet")]}, "spec": {}})
        is None
    )
