"""Which part of a source is its pod template, and how an object without one is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.podspec.source import template_of

from tests.builders.strategies import law, templates
from tests.builders.templates import engine, stored


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
    assert template_of(workload(pod)) == pod
    assert template_of(inline(pod)) == pod


def test_nulls_are_left_out_as_the_api_server_does_and_the_source_stays_as_it_is() -> None:
    source = inline(
        engine(command=None, env=[{"name": "A", "value": None}]).pod(
            nodeSelector=None, volumes=None
        )
    )
    before = copy.deepcopy(source)
    pod = template_of(source)["spec"]
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
        template_of(source)
    assert refused.value.reason == "SourceNotSupported"
    assert refused.value.message.startswith(
        f"{source['kind']} qwen3: spec.template is no pod template"
    )


def test_a_rollout_that_refers_to_a_deployment_says_which() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    source = {"kind": "Rollout", "metadata": {"name": "qwen3"}, "spec": {"workloadRef": ref}}
    with pytest.raises(Refused, match="name Deployment web, to which its spec"):
        template_of(source)


@pytest.mark.parametrize("ref", [{"kind": "Deployment"}, {"name": 1}, "web", [{}], None])
def test_a_reference_that_is_malformed_names_nothing(ref: object) -> None:
    source = {"kind": "Rollout", "metadata": {"name": "qwen3"}, "spec": {"workloadRef": ref}}
    with pytest.raises(Refused, match="name the object that holds the template"):
        template_of(source)


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


@pytest.mark.parametrize(("template", "words"), WRONG, ids=[case[1] for case in WRONG])
def test_a_template_of_another_form_is_invalid_with_the_field_since_nothing_else_checks_it(
    template: Any, words: str
) -> None:
    with pytest.raises(Refused) as refused:
        template_of(inline(template))
    assert (refused.value.reason, refused.value.message) == (
        "SourceInvalid",
        "AutotuneCache qwen3: spec.source.template" + words,
    )


@law(templates())
def test_what_the_api_server_stored_is_always_of_the_form(pod: Object) -> None:
    template_of(workload(stored(pod)))
