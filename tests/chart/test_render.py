"""What the chart makes of its values, and which values it refuses."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pretune import __version__, lease
from pretune.settings import Installation

from tests.chart.conftest import CHART, IMAGE, NAMESPACE, Helm, Object, Render, only
from tools import crd

CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
EVERYTHING: Object = {
    "image": {
        "repository": "registry.test:5000/pretune/operator",
        "digest": "sha256:" + "0" * 64,
        "pullPolicy": "Always",
        "pullSecrets": ["one", "two"],
    },
    "controller": {
        "replicas": 2,
        "logLevel": "DEBUG",
        "podLabels": {"team": "inference"},
        "podAnnotations": {"note": "yes"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "sources": {"extraRules": [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"]}]},
}


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_document_is_what_kubernetes_knows(render: Render, values: Object, version: str) -> None:
    documents = render(values)
    assert len(documents) >= 10
    for one in documents:
        kubernetes_validate.validate(json.loads(json.dumps(one, default=str)), version, strict=True)


def test_helm_finds_nothing_to_complain_about(helm: Helm) -> None:
    done = helm("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_in_the_releases_namespace_and_labelled(render: Render) -> None:
    for one in render():
        meta = one["metadata"]
        assert (meta.get("namespace") == NAMESPACE) == (one["kind"] not in CLUSTER_WIDE), one["kind"]
        assert {
            "app.kubernetes.io/name": "pretune",
            "app.kubernetes.io/instance": "pretune",
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/part-of": "pretune",
        }.items() <= meta["labels"].items()
        assert meta["labels"]["helm.sh/chart"].startswith("pretune-")


def test_two_releases_share_no_name_but_the_definition(render: Render) -> None:
    first = {(one["kind"], one["metadata"]["name"]) for one in render(release="a")}
    second = {(one["kind"], one["metadata"]["name"]) for one in render(release="b")}
    assert first & second == {("CustomResourceDefinition", "autotunecaches.pretune.dev")}


def test_a_release_of_any_length_keeps_names_within_63_characters(render: Render) -> None:
    for one in render(release="r" * 53):
        assert len(one["metadata"]["name"]) <= 63


def test_the_definition_outlives_the_release(render: Render) -> None:
    crd = only(render(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def controller(documents: list[Object]) -> tuple[Object, Object]:
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


@pytest.mark.parametrize("values", [{}, {"controller": {"runAsUser": None}}], ids=["defaults", "no uid"])
def test_the_controller_passes_pod_security_restricted(render: Render, values: Object) -> None:
    """The profile's list: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    pod, container = controller(render(values))
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"].get("runAsUser") != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert not any("hostPort" in port for port in container["ports"])


def environment(container: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "registry.test/pretune/operator:" + yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]),
        ({"tag": "dev"}, "registry.test/pretune/operator:dev"),
        ({"digest": "sha256:" + "a" * 64}, "registry.test/pretune/operator@sha256:" + "a" * 64),
    ],
    ids=["the chart's own release", "a tag", "a digest"],
)
def test_the_controller_hands_its_own_image_to_its_jobs(render: Render, image: Object, reference: str) -> None:
    _, container = controller(render({"image": {**IMAGE["image"], **image}}))
    assert container["image"] == reference
    assert environment(container)["PRETUNE_IMAGE"] == reference


class Read(dict[str, str]):
    """An environment that notes which of its variables were asked for."""

    asked: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.asked = {*getattr(self, "asked", ()), key}
        return super().get(key, default)


def test_every_setting_of_the_controller_is_set_and_understood(render: Render) -> None:
    _, container = controller(render({**EVERYTHING, "controller": {"logLevel": "DEBUG", "workers": 7}}))
    names = [one["name"] for one in container["env"]]
    given = Read({"POD_NAMESPACE": NAMESPACE, "POD_NAME": "pretune-controller-0", **environment(container)})
    found = Installation.of(given)
    assert sorted(names) == sorted(given.asked)
    assert found == Installation(
        image=container["image"],
        pull_policy="Always",
        pull_secrets=("one", "two"),
        priority_class="pretune-tuning",
        namespace=NAMESPACE,
        identity="pretune-controller-0",
        log_level="DEBUG",
        liveness_port=container["ports"][0]["containerPort"],
        workers=7,
    )


def test_the_release_may_hold_the_controllers_lease(render: Render) -> None:
    named = [one.get("resourceNames") for one in only(render(), "Role")["rules"]]
    assert named == [None, [lease.NAME]]


def test_jobs_pull_as_the_controller_does(render: Render) -> None:
    pod, container = controller(render(EVERYTHING))
    assert container["imagePullPolicy"] == environment(container)["PRETUNE_IMAGE_PULL_POLICY"] == "Always"
    assert [one["name"] for one in pod["imagePullSecrets"]] == ["one", "two"]
    assert environment(container)["PRETUNE_IMAGE_PULL_SECRETS"] == "one,two"


@pytest.mark.parametrize(
    ("values", "named", "made"),
    [
        ({}, "pretune-tuning", True),
        ({"create": True, "name": "low"}, "low", True),
        ({"create": False}, "", False),
        ({"create": False, "name": "mine"}, "mine", False),
    ],
    ids=["made", "made under a name", "none", "one that is there"],
)
def test_tuning_pods_get_the_class_that_is_there(render: Render, values: Object, named: str, made: bool) -> None:
    documents = render({"priorityClass": values})
    assert environment(controller(documents)[1])["PRETUNE_PRIORITY_CLASS"] == named
    assert [one["metadata"]["name"] for one in documents if one["kind"] == "PriorityClass"] == [named] * made


def test_tuning_gives_way_to_serving_and_never_preempts(render: Render) -> None:
    found = only(render(), "PriorityClass")
    assert found["preemptionPolicy"] == "Never"
    assert found["globalDefault"] is False
    assert -10 <= found["value"] < 0, "below pods without a class, not below what the cluster autoscaler adds nodes for"


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        ({"crds": {"install": False}}, {"CustomResourceDefinition"}),
        ({"authorPolicy": {"enabled": False}}, {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}),
        ({"priorityClass": {"create": False}}, {"PriorityClass"}),
        ({"serviceAccount": {"create": False, "name": "mine"}}, {"ServiceAccount"}),
    ],
    ids=["no definition", "no policy", "no class", "no account"],
)
def test_what_is_switched_off_is_not_installed(render: Render, values: Object, gone: set[str]) -> None:
    kinds, fewer = ({one["kind"] for one in render(given)} for given in ({}, values))
    assert kinds - fewer == gone
    assert fewer <= kinds


def test_without_aggregation_there_is_only_the_controllers_own_role(render: Render) -> None:
    rest = [one for one in render({"access": {"aggregate": False}}) if one["kind"] == "ClusterRole"]
    assert [one["metadata"]["name"] for one in rest] == ["pretune-controller"]


def test_an_account_of_ones_own_gets_the_rights(render: Render) -> None:
    documents = render({"serviceAccount": {"create": False, "name": "mine"}})
    assert controller(documents)[0]["serviceAccountName"] == "mine"
    bindings = [one for one in documents if one["kind"] in ("ClusterRoleBinding", "RoleBinding")]
    assert len(bindings) == 2
    for one in bindings:
        assert one["subjects"] == [{"kind": "ServiceAccount", "name": "mine", "namespace": NAMESPACE}]


def test_selectors_match_the_pods_and_do_not_change_with_the_release_number(render: Render) -> None:
    spec = only(render(EVERYTHING), "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & spec["selector"]["matchLabels"].keys()
    assert labels["team"] == "inference"


CONTRADICTIONS: dict[str, tuple[Object, str]] = {
    "no image": ({"image": {}}, "image.repository is empty"),
    "tag and digest": (
        {"image": {"repository": "a", "tag": "b", "digest": "sha256:" + "0" * 64}},
        "image.tag (b) and image.digest are both set",
    ),
    "no account": ({"serviceAccount": {"create": False}}, "name the ServiceAccount that the controller is to run as"),
    "annotations for nobody": (
        {"serviceAccount": {"create": False, "name": "mine", "annotations": {"a": "b"}}},
        "annotate your own ServiceAccount instead",
    ),
    "secrets": (
        {"sources": {"extraRules": [{"apiGroups": [""], "resources": ["secrets"]}]}},
        "a Secret has no pod template",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictory_values_are_refused_with_a_sentence(helm: Helm, values: Object, sentence: str) -> None:
    done = helm("template", "pretune", str(CHART), values=values)
    assert done.returncode != 0
    assert sentence in done.stderr


WRONG: dict[str, Object] = {
    "unknown at the top": {"replicas": 2},
    "a log level that is none": {"controller": {"logLevel": "LOUD"}},
    "root": {"controller": {"runAsUser": 0}},
    "less than no replica": {"controller": {"replicas": -1}},
    "a rule with verbs": {"sources": {"extraRules": [{"apiGroups": ["a"], "resources": ["b"], "verbs": ["*"]}]}},
    "every resource": {"sources": {"extraRules": [{"apiGroups": ["a"], "resources": ["*"]}]}},
    "every group": {"sources": {"extraRules": [{"apiGroups": ["*"], "resources": ["b"]}]}},
    "a digest that is none": {"image": {"repository": "a", "digest": "latest"}},
    "a pull policy that is none": {"image": {"repository": "a", "pullPolicy": "Sometimes"}},
    "a switch that is a word": {"crds": {"install": "yes"}},
}


def sections(schema: Object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if schema.get("additionalProperties") is False and "items" not in schema else []
    for name, one in schema.get("properties", {}).items():
        found += sections(one, (*path, name))
    return found


for _path in sections(json.loads((CHART / "values.schema.json").read_text())):
    _values: Any = {"typo": True}
    for _name in reversed(_path):
        _values = {_name: _values}
    WRONG[f"unknown in {'.'.join(_path) or 'values'}"] = _values


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_values_of_the_wrong_form_are_refused(helm: Helm, values: Object) -> None:
    done = helm("template", "pretune", str(CHART), values=values)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


def test_every_value_is_in_the_schema_and_every_default_is_valid() -> None:
    def compare(values: Object, schema: Object, path: str = "") -> None:
        if "properties" not in schema:
            return
        assert values.keys() == schema["properties"].keys() - {"global", "claims"}, path
        for name, value in values.items():
            if isinstance(value, dict):
                compare(value, schema["properties"][name], f"{path}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text()))


def test_the_notes_lead_to_an_object_that_the_api_takes(helm: Helm) -> None:
    done = helm("install", "pretune", str(CHART), "--namespace", NAMESPACE, "--dry-run=client")
    assert done.returncode == 0, done.stderr
    example = done.stdout.partition("<<END\n")[2].partition("\nEND\n")[0]
    jsonschema.validate(yaml.safe_load(example), crd.strict())
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"authorPolicy": {"enabled": False}}, "WARNING: authorPolicy.enabled is false"),
        ({"priorityClass": {"create": False}}, "WARNING: tuning pods have no PriorityClass"),
    ],
    ids=["no policy", "no class"],
)
def test_the_notes_warn_of_what_is_missing(helm: Helm, values: Object, warning: str) -> None:
    done = helm("install", "pretune", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=values)
    assert warning in done.stdout


def test_the_chart_is_of_the_operators_release() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
