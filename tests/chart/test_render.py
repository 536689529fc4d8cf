"""What the chart makes of its values, and which values it refuses."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pretune import __version__
from pretune.config import ControllerSettings, WebhookSettings
from pretune.kube import lease

from tests.chart.conftest import CHART, IMAGE, NAMESPACE, Helm, Object, Render, only
from tools import crd

CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
POD: Object = {  # what both components' pods may be given
    "logLevel": "DEBUG",
    "podLabels": {"team": "inference"},
    "podAnnotations": {"note": "yes"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}
EVERYTHING: Object = {
    "image": {
        "repository": "registry.test:5000/pretune/operator",
        "digest": "sha256:" + "0" * 64,
        "pullPolicy": "Always",
        "pullSecrets": ["one", "two"],
    },
    "controller": {"replicas": 2, **POD},
    "webhook": {
        "replicas": 3,
        "port": 9443,
        **POD,
        "namespaceSelector": {
            "matchLabels": {"serving": "yes"},
            "matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}],
        },
        "certificates": {"days": 30},
        "serviceAccount": {"annotations": {"a": "b"}},
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "sources": {"extraRules": [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"]}]},
}


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_document_is_what_kubernetes_knows(
    render: Render, values: Object, version: str
) -> None:
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
        assert (meta.get("namespace") == NAMESPACE) == (one["kind"] not in CLUSTER_WIDE), one[
            "kind"
        ]
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


COMPONENTS = ("controller", "webhook")
POLICY = "ValidatingAdmissionPolicy"
WEBHOOK = {  # of these, one is named after the webhook
    *(
        "ClusterRole",
        "ClusterRoleBinding",
        "Deployment",
        "MutatingWebhookConfiguration",
        "PodDisruptionBudget",
    ),
    *("Role", "RoleBinding", "Secret", "Service", "ServiceAccount"),
}


def component(documents: list[Object], name: str) -> tuple[Object, Object]:
    """The pod's spec and its container."""
    pod = only(documents, "Deployment", f"pretune-{name}")["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def controller(documents: list[Object]) -> tuple[Object, Object]:
    return component(documents, "controller")


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("values", [{}, {"runAsUser": None}], ids=["defaults", "no uid"])
def test_the_operators_pods_pass_pod_security_restricted(
    render: Render, values: Object, name: str
) -> None:
    """The profile's list: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    pod, container = component(render({name: values}), name)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(one.keys() <= {"name", "secret"} for one in pod.get("volumes", []))
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
        (
            {},
            "registry.test/pretune/operator:"
            + yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"],
        ),
        ({"tag": "dev"}, "registry.test/pretune/operator:dev"),
        ({"digest": "sha256:" + "a" * 64}, "registry.test/pretune/operator@sha256:" + "a" * 64),
    ],
    ids=["the chart's own release", "a tag", "a digest"],
)
def test_the_controller_hands_its_own_image_to_its_jobs(
    render: Render, image: Object, reference: str
) -> None:
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
    _, container = controller(
        render({**EVERYTHING, "controller": {"logLevel": "DEBUG", "workers": 7}})
    )
    assert "args" not in container
    given = Read(
        {"POD_NAMESPACE": NAMESPACE, "POD_NAME": "pretune-controller-0", **environment(container)}
    )
    found = ControllerSettings.from_environment(given)
    assert sorted(one["name"] for one in container["env"]) == sorted(given.asked)
    assert found == ControllerSettings(
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


def test_every_setting_of_the_webhook_is_set_and_understood(render: Render) -> None:
    _, container = component(render(EVERYTHING), "webhook")
    assert container["args"] == ["webhook"]
    given = Read({"POD_NAMESPACE": NAMESPACE, **environment(container)})
    found = WebhookSettings.from_environment(given)
    assert sorted(one["name"] for one in container["env"]) == sorted(given.asked)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    (mount,) = container["volumeMounts"]
    assert found == WebhookSettings(
        certificates=mount["mountPath"],
        namespace=NAMESPACE,
        port=ports["webhook"],
        health_port=ports["metrics"],
        log_level="DEBUG",
    )
    assert ports["webhook"] == 9443


def test_the_release_may_hold_the_controllers_lease_and_the_webhook_may_see_it(
    render: Render,
) -> None:
    rules = {name: only(render(), "Role", f"pretune-{name}")["rules"] for name in COMPONENTS}
    assert [one.get("resourceNames") for one in rules["controller"]] == [None, [lease.LEASE_NAME]]
    assert [one.get("resourceNames") for one in rules["webhook"]] == [[lease.LEASE_NAME]]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_pod_is_placed_and_pulled_as_its_values_say(render: Render, name: str) -> None:
    pod, container = component(render(EVERYTHING), name)
    assert container["imagePullPolicy"] == "Always"
    assert [one["name"] for one in pod["imagePullSecrets"]] == ["one", "two"]
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[field] == POD[field]
    meta = only(render(EVERYTHING), "Deployment", f"pretune-{name}")["spec"]["template"]["metadata"]
    assert meta["annotations"] == POD["podAnnotations"]


def test_jobs_pull_as_the_controller_does(render: Render) -> None:
    _, container = controller(render(EVERYTHING))
    assert environment(container)["PRETUNE_IMAGE_PULL_POLICY"] == "Always"
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
def test_tuning_pods_get_the_class_that_is_there(
    render: Render, values: Object, named: str, made: bool
) -> None:
    documents = render({"priorityClass": values})
    assert environment(controller(documents)[1])["PRETUNE_PRIORITY_CLASS"] == named
    assert [one["metadata"]["name"] for one in documents if one["kind"] == "PriorityClass"] == [
        named
    ] * made


@pytest.mark.parametrize(
    ("values", "said"), [({}, "false"), ({"proof": {"readLogs": True}}, "true")]
)
def test_the_controller_reads_logs_only_where_that_is_asked_for(
    render: Render, values: Object, said: str
) -> None:
    assert environment(controller(render(values))[1])["PRETUNE_READ_LOGS"] == said
    assert ControllerSettings.from_environment(
        environment(controller(render(values))[1])
    ).read_logs is (said == "true")


def test_tuning_gives_way_to_serving_and_never_preempts(render: Render) -> None:
    found = only(render(), "PriorityClass")
    assert found["preemptionPolicy"] == "Never"
    assert found["globalDefault"] is False
    assert -10 <= found["value"] < 0, (
        "below pods without a class, not below what the cluster autoscaler adds nodes for"
    )


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        ({"crds": {"install": False}}, {"CustomResourceDefinition autotunecaches.pretune.dev"}),
        (
            {"authorPolicy": {"enabled": False}},
            {f"{POLICY} pretune-author", f"{POLICY}Binding pretune-author"},
        ),
        (
            {"controllerPolicy": {"enabled": False}},
            {f"{POLICY} pretune-controller", f"{POLICY}Binding pretune-controller"},
        ),
        ({"priorityClass": {"create": False}}, {"PriorityClass pretune-tuning"}),
        ({"serviceAccount": {"create": False, "name": "mine"}}, {"ServiceAccount pretune"}),
        (
            {"webhook": {"serviceAccount": {"create": False, "name": "mine"}}},
            {"ServiceAccount pretune-webhook"},
        ),
        ({"webhook": {"replicas": 1}}, {"PodDisruptionBudget pretune-webhook"}),
        ({"metrics": {"service": False}}, {"Service pretune-metrics"}),
        (
            {"webhook": {"enabled": False}},
            {f"{kind} pretune-webhook" for kind in WEBHOOK} | {"Secret pretune-webhook-ca"},
        ),
    ],
    ids=lambda one: json.dumps(one) if isinstance(one, dict) else "",
)
def test_what_is_switched_off_is_not_installed_and_all_else_is(
    render: Render, values: Object, gone: set[str]
) -> None:
    whole, fewer = (
        {f"{one['kind']} {one['metadata']['name']}" for one in render(given)}
        for given in ({}, values)
    )
    assert whole - fewer == gone
    assert fewer <= whole


def test_without_aggregation_there_are_only_the_operators_own_roles(render: Render) -> None:
    rest = [one for one in render({"access": {"aggregate": False}}) if one["kind"] == "ClusterRole"]
    assert sorted(one["metadata"]["name"] for one in rest) == [
        "pretune-controller",
        "pretune-webhook",
    ]


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("own", [True, False], ids=["the chart's", "one's own"])
def test_each_component_runs_as_the_account_that_has_its_rights(
    render: Render, name: str, own: bool
) -> None:
    mine = {"serviceAccount": {"create": False, "name": "mine"}}
    documents = render({} if own else (mine if name == "controller" else {name: mine}))
    account = component(documents, name)[0]["serviceAccountName"]
    assert account == (
        {"controller": "pretune", "webhook": "pretune-webhook"}[name] if own else "mine"
    )
    bindings = [one for one in documents if one["kind"].endswith("Binding") and one.get("roleRef")]
    mine_only = [one for one in bindings if one["metadata"]["name"] == f"pretune-{name}"]
    assert sorted(one["kind"] for one in mine_only) == ["ClusterRoleBinding", "RoleBinding"]
    for one in mine_only:
        assert one["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
        ]
        assert one["roleRef"]["name"] == f"pretune-{name}"


@pytest.mark.parametrize("name", COMPONENTS)
def test_selectors_match_only_these_pods_and_do_not_change_with_the_release_number(
    render: Render, name: str
) -> None:
    documents = render(EVERYTHING)
    spec = only(documents, "Deployment", f"pretune-{name}")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert (
        not {"helm.sh/chart", "app.kubernetes.io/version"} & spec["selector"]["matchLabels"].keys()
    )
    assert labels["team"] == "inference"
    (other,) = (one for one in COMPONENTS if one != name)
    others = only(documents, "Deployment", f"pretune-{other}")["spec"]["template"]["metadata"][
        "labels"
    ]
    assert not spec["selector"]["matchLabels"].items() <= others.items()


CONTRADICTIONS: dict[str, tuple[Object, str]] = {
    "no image": ({"image": {}}, "image.repository is empty"),
    "tag and digest": (
        {"image": {"repository": "a", "tag": "b", "digest": "sha256:" + "0" * 64}},
        "image.tag (b) and image.digest are both set",
    ),
    "no account": (
        {"serviceAccount": {"create": False}},
        "set it to the ServiceAccount for the controller",
    ),
    "annotations for nobody": (
        {"serviceAccount": {"create": False, "name": "mine", "annotations": {"a": "b"}}},
        "annotate your own ServiceAccount instead",
    ),
    "no account for the webhook": (
        {"webhook": {"serviceAccount": {"create": False}}},
        "set it to the ServiceAccount for the webhook",
    ),
    "annotations for no account of the webhook": (
        {
            "webhook": {
                "serviceAccount": {"create": False, "name": "mine", "annotations": {"a": "b"}}
            }
        },
        "annotate your own ServiceAccount instead",
    ),
    "one account for both": (
        {"webhook": {"serviceAccount": {"create": False, "name": "pretune"}}},
        "webhook.serviceAccount.name and serviceAccount.name are both pretune",
    ),
    "one port for two": (
        {"webhook": {"port": 8080}},
        "webhook.port is 8080, the port of health and metrics",
    ),
    "an issuer that nobody asks": (
        {"webhook": {"certificates": {"issuerRef": {"name": "company"}}}},
        "webhook.certificates.issuerRef names company, but webhook.certificates.source is chart",
    ),
    "secrets": (
        {"sources": {"extraRules": [{"apiGroups": [""], "resources": ["secrets"]}]}},
        "a Secret has no pod template",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictory_values_are_refused_with_a_sentence(
    helm: Helm, values: Object, sentence: str
) -> None:
    done = helm("template", "pretune", str(CHART), values=values)
    assert done.returncode != 0
    assert sentence in done.stderr


WRONG: dict[str, Object] = {
    "unknown at the top": {"replicas": 2},
    "a log level that is none": {"controller": {"logLevel": "LOUD"}},
    "root": {"controller": {"runAsUser": 0}},
    "less than no replica": {"controller": {"replicas": -1}},
    "a rule with verbs": {
        "sources": {"extraRules": [{"apiGroups": ["a"], "resources": ["b"], "verbs": ["*"]}]}
    },
    "every resource": {"sources": {"extraRules": [{"apiGroups": ["a"], "resources": ["*"]}]}},
    "every group": {"sources": {"extraRules": [{"apiGroups": ["*"], "resources": ["b"]}]}},
    "a digest that is none": {"image": {"repository": "a", "digest": "latest"}},
    "a pull policy that is none": {"image": {"repository": "a", "pullPolicy": "Sometimes"}},
    "a switch that is a word": {"crds": {"install": "yes"}},
    "no pod that answers": {"webhook": {"replicas": 0}},
    "a port of the system's": {"webhook": {"port": 443}},
    "certificates from nowhere": {"webhook": {"certificates": {"source": "vault"}}},
    "an operator that is none": {
        "webhook": {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "="}]}}
    },
    "an interval that is none": {"metrics": {"podMonitor": {"interval": "often"}}},
}


SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())


def resolved(schema: Any) -> Any:
    """The schema with its definitions in place."""
    if isinstance(schema, list):
        return [resolved(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    return {name: resolved(one) for name, one in schema.items()}


def sections(schema: Object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if schema.get("additionalProperties") is False and "items" not in schema else []
    for name, one in schema.get("properties", {}).items():
        found += sections(one, (*path, name))
    return found


for _path in sections(
    resolved({name: one for name, one in SCHEMA.items() if name != "definitions"})
):
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

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), resolved(SCHEMA))


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
        ({"controllerPolicy": {"enabled": False}}, "WARNING: controllerPolicy.enabled is false"),
        ({"webhook": {"enabled": False}}, "WARNING: webhook.enabled is false"),
        (
            {"webhook": {"certificates": {"source": "certManager"}}},
            "WARNING: webhook.certificates.source is certManager, but this cluster does not have cert-manager",
        ),
    ],
    ids=[
        "no policy for authors",
        "no class",
        "no policy for the controller",
        "no webhook",
        "no cert-manager",
    ],
)
def test_the_notes_warn_of_what_is_missing(helm: Helm, values: Object, warning: str) -> None:
    done = helm(
        "install",
        "pretune",
        str(CHART),
        "--namespace",
        NAMESPACE,
        "--dry-run=client",
        values=values,
    )
    assert warning in done.stdout


def test_the_chart_is_of_the_operators_release() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_kubelet_asks_for_health_and_readiness_where_they_are_served(
    render: Render, name: str
) -> None:
    _, container = component(render(EVERYTHING), name)
    asked = {probe: container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")}
    assert asked == {
        "livenessProbe": {"path": "/healthz", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
    }
    ports = {one["name"]: str(one["containerPort"]) for one in container["ports"]}
    served = {"controller": "PRETUNE_LIVENESS_PORT", "webhook": "PRETUNE_HEALTH_PORT"}[name]
    assert environment(container)[served] == ports["metrics"]
