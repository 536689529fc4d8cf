"""What the chart renders from its values, and which values it refuses."""

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
        "architectures": ["amd64", "arm64"],
    },
    "controller": {"replicas": 2, "namespaces": ["inference", "staging"], **POD},
    "webhook": {
        "replicas": 3,
        "port": 9443,
        **POD,
        "namespaceSelector": {
            "matchLabels": {"serving": "yes"},
            "matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}],
        },
        "certificates": {"days": 30},
        "clientCA": {"configMap": "api-server"},
        "serviceAccount": {"annotations": {"a": "b"}},
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "networkPolicy": {
        "webhookFrom": [{"ipBlock": {"cidr": "192.0.2.0/28"}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egressTo": [{"ipBlock": {"cidr": "192.0.2.1/32"}}],
    },
    "sources": {"extraRules": [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"]}]},
}


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_document_is_valid_for_kubernetes(
    render: Render, values: Object, version: str
) -> None:
    documents = render(values)
    assert len(documents) >= 10
    for document in documents:
        kubernetes_validate.validate(
            json.loads(json.dumps(document, default=str)), version, strict=True
        )


def test_helm_lint_reports_nothing(helm: Helm) -> None:
    done = helm("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_in_the_releases_namespace_and_has_its_labels(render: Render) -> None:
    for document in render():
        meta = document["metadata"]
        assert (meta.get("namespace") == NAMESPACE) == (document["kind"] not in CLUSTER_WIDE), (
            document["kind"]
        )
        assert {
            "app.kubernetes.io/name": "pretune",
            "app.kubernetes.io/instance": "pretune",
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/part-of": "pretune",
        }.items() <= meta["labels"].items()
        assert meta["labels"]["helm.sh/chart"].startswith("pretune-")


def test_two_releases_share_only_the_name_of_the_crd(render: Render) -> None:
    first = {(document["kind"], document["metadata"]["name"]) for document in render(release="a")}
    second = {(document["kind"], document["metadata"]["name"]) for document in render(release="b")}
    assert first & second == {("CustomResourceDefinition", "autotunecaches.pretune.dev")}


def test_a_release_of_any_length_keeps_names_within_63_characters(render: Render) -> None:
    for document in render(release="r" * 53):
        assert len(document["metadata"]["name"]) <= 63


def test_the_crd_is_kept_after_the_release(render: Render) -> None:
    crd = only(render(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


COMPONENTS = ("controller", "webhook")
POLICY = "ValidatingAdmissionPolicy"
WEBHOOK = {  # the kinds of which one object is named after the webhook
    *(
        "ClusterRole",
        "ClusterRoleBinding",
        "Deployment",
        "MutatingWebhookConfiguration",
        "NetworkPolicy",
        "PodDisruptionBudget",
    ),
    *("Role", "RoleBinding", "Service", "ServiceAccount"),
}


def component(documents: list[Object], name: str) -> tuple[Object, Object]:
    """Return the spec of the component's pod, and its container."""
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
    assert all(volume.keys() <= {"name", "secret"} for volume in pod.get("volumes", []))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"].get("runAsUser") != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert not any("hostPort" in port for port in container["ports"])


def environment(container: Object) -> dict[str, str]:
    return {
        variable["name"]: variable["value"] for variable in container["env"] if "value" in variable
    }


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
def test_the_controllers_jobs_run_in_its_own_image(
    render: Render, image: Object, reference: str
) -> None:
    _, container = controller(render({"image": {**IMAGE["image"], **image}}))
    assert container["image"] == reference
    assert environment(container)["PRETUNE_IMAGE"] == reference


class RecordedEnvironment(dict[str, str]):
    """An environment that records which of its variables were read."""

    asked: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.asked = {*getattr(self, "asked", ()), key}
        return super().get(key, default)


def test_every_setting_of_the_controller_is_set_and_read(render: Render) -> None:
    chosen = {"logLevel": "DEBUG", "workers": 7, "namespaces": ["inference", "staging"]}
    _, container = controller(render({**EVERYTHING, "controller": chosen}))
    assert "args" not in container
    given = RecordedEnvironment(
        {"POD_NAMESPACE": NAMESPACE, "POD_NAME": "pretune-controller-0", **environment(container)}
    )
    found = ControllerSettings.from_environment(given)
    assert sorted(variable["name"] for variable in container["env"]) == sorted(given.asked)
    assert found == ControllerSettings(
        image=container["image"],
        pull_policy="Always",
        pull_secrets=("one", "two"),
        priority_class="pretune-tuning",
        namespace=NAMESPACE,
        identity="pretune-controller-0",
        namespaces=("inference", "staging"),
        log_level="DEBUG",
        liveness_port=container["ports"][0]["containerPort"],
        workers=7,
        webhook="pretune-webhook",
        certificate_days=30,
        architectures=("amd64", "arm64"),
    )


def test_every_setting_of_the_webhook_is_set_and_read(render: Render) -> None:
    _, container = component(render(EVERYTHING), "webhook")
    assert container["args"] == ["webhook"]
    given = RecordedEnvironment({"POD_NAMESPACE": NAMESPACE, **environment(container)})
    found = WebhookSettings.from_environment(given)
    assert sorted(variable["name"] for variable in container["env"]) == sorted(given.asked)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert found == WebhookSettings(
        certificates=mounts["certificates"],
        client_ca=f"{mounts['client-ca']}/ca.crt",
        namespace=NAMESPACE,
        namespaces=("inference", "staging"),
        port=ports["webhook"],
        health_port=ports["metrics"],
        log_level="DEBUG",
    )
    assert ports["webhook"] == 9443


def test_the_controller_may_write_its_lease_and_the_webhook_may_read_it(
    render: Render,
) -> None:
    rules = {name: only(render(), "Role", f"pretune-{name}")["rules"] for name in COMPONENTS}
    assert [rule.get("resourceNames") for rule in rules["controller"]] == [
        None,
        [lease.LEASE_NAME],
        ["pretune-webhook-tls"],
    ]
    assert [rule.get("resourceNames") for rule in rules["webhook"]] == [[lease.LEASE_NAME]]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_pods_placement_and_pull_secrets_come_from_the_values(render: Render, name: str) -> None:
    pod, container = component(render(EVERYTHING), name)
    assert container["imagePullPolicy"] == "Always"
    assert [secret["name"] for secret in pod["imagePullSecrets"]] == ["one", "two"]
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[field] == POD[field]
    meta = only(render(EVERYTHING), "Deployment", f"pretune-{name}")["spec"]["template"]["metadata"]
    assert meta["annotations"] == POD["podAnnotations"]


def test_jobs_pull_images_as_the_controller_does(render: Render) -> None:
    _, container = controller(render(EVERYTHING))
    assert environment(container)["PRETUNE_IMAGE_PULL_POLICY"] == "Always"
    assert environment(container)["PRETUNE_IMAGE_PULL_SECRETS"] == "one,two"


@pytest.mark.parametrize(
    ("values", "named", "is_created"),
    [
        ({}, "pretune-tuning", True),
        ({"create": True, "name": "low"}, "low", True),
        ({"create": False}, "", False),
        ({"create": False, "name": "mine"}, "mine", False),
    ],
    ids=["created", "created with a name", "none", "an existing class"],
)
def test_tuning_pods_get_the_priority_class_of_the_values(
    render: Render, values: Object, named: str, is_created: bool
) -> None:
    documents = render({"priorityClass": values})
    assert environment(controller(documents)[1])["PRETUNE_PRIORITY_CLASS"] == named
    assert [
        document["metadata"]["name"]
        for document in documents
        if document["kind"] == "PriorityClass"
    ] == [named] * is_created


@pytest.mark.parametrize(
    ("values", "expected"), [({}, "false"), ({"proof": {"readLogs": True}}, "true")]
)
def test_the_controller_reads_logs_only_if_a_value_says_so(
    render: Render, values: Object, expected: str
) -> None:
    assert environment(controller(render(values))[1])["PRETUNE_READ_LOGS"] == expected
    assert ControllerSettings.from_environment(
        environment(controller(render(values))[1])
    ).read_logs is (expected == "true")


def test_serving_pods_may_preempt_tuning_pods_and_never_the_reverse(render: Render) -> None:
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
            {
                f"{POLICY}{suffix} pretune-controller{name}"
                for suffix in ("", "Binding")
                for name in ("", "-objects", "-namespaces", "-webhook")
            },
        ),
        ({"priorityClass": {"create": False}}, {"PriorityClass pretune-tuning"}),
        ({"serviceAccount": {"create": False, "name": "mine"}}, {"ServiceAccount pretune"}),
        (
            {"webhook": {"serviceAccount": {"create": False, "name": "mine"}}},
            {"ServiceAccount pretune-webhook"},
        ),
        ({"webhook": {"replicas": 1}}, {"PodDisruptionBudget pretune-webhook"}),
        (
            {"networkPolicy": {"enabled": False}},
            {f"NetworkPolicy pretune-{name}" for name in COMPONENTS},
        ),
        ({"metrics": {"service": False}}, {"Service pretune-metrics"}),
        (
            {"webhook": {"enabled": False}},
            {f"{kind} pretune-webhook" for kind in WEBHOOK}
            | {"Secret pretune-webhook-tls"}
            | {f"{POLICY}{suffix} pretune-controller-webhook" for suffix in ("", "Binding")},
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_a_value_turns_off_is_not_installed_and_everything_else_is(
    render: Render, values: Object, gone: set[str]
) -> None:
    whole, fewer = (
        {f"{document['kind']} {document['metadata']['name']}" for document in render(given)}
        for given in ({}, values)
    )
    assert whole - fewer == gone
    assert fewer <= whole


def test_without_aggregation_only_the_operators_own_roles_exist(render: Render) -> None:
    roles = [
        document
        for document in render({"access": {"aggregate": False}})
        if document["kind"] == "ClusterRole"
    ]
    assert sorted(role["metadata"]["name"] for role in roles) == [
        "pretune-controller",
        "pretune-webhook",
    ]


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("own", [True, False], ids=["the chart's", "an existing account"])
def test_each_component_runs_with_the_account_that_has_its_rights(
    render: Render, name: str, own: bool
) -> None:
    mine = {"serviceAccount": {"create": False, "name": "mine"}}
    documents = render({} if own else (mine if name == "controller" else {name: mine}))
    account = component(documents, name)[0]["serviceAccountName"]
    assert account == (
        {"controller": "pretune", "webhook": "pretune-webhook"}[name] if own else "mine"
    )
    bindings = [
        document
        for document in documents
        if document["kind"].endswith("Binding") and document.get("roleRef")
    ]
    own_bindings = [
        binding for binding in bindings if binding["metadata"]["name"] == f"pretune-{name}"
    ]
    assert sorted(binding["kind"] for binding in own_bindings) == [
        "ClusterRoleBinding",
        "RoleBinding",
    ]
    for binding in own_bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
        ]
        assert binding["roleRef"]["name"] == f"pretune-{name}"


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
    (other,) = (component for component in COMPONENTS if component != name)
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
    "annotations without an account": (
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
    "the same account for both": (
        {"webhook": {"serviceAccount": {"create": False, "name": "pretune"}}},
        "webhook.serviceAccount.name and serviceAccount.name are both pretune",
    ),
    "the same port for both": (
        {"webhook": {"port": 8080}},
        "webhook.port is 8080, the port of health and metrics",
    ),
    "an issuer that is not used": (
        {"webhook": {"certificates": {"issuerRef": {"name": "company"}}}},
        "webhook.certificates.issuerRef names company, but webhook.certificates.source is controller",
    ),
    "kube-system": (
        {"controller": {"namespaces": ["kube-system"]}},
        "controller.namespaces names kube-system",
    ),
    "secrets": (
        {"sources": {"extraRules": [{"apiGroups": [""], "resources": ["secrets"]}]}},
        "a Secret has no pod template",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictory_values_are_refused_with_a_message(
    helm: Helm, values: Object, sentence: str
) -> None:
    done = helm("template", "pretune", str(CHART), values=values)
    assert done.returncode != 0
    assert sentence in done.stderr


WRONG: dict[str, Object] = {
    "unknown at the top": {"replicas": 2},
    "a log level that is none": {"controller": {"logLevel": "LOUD"}},
    "root": {"controller": {"runAsUser": 0}},
    "a namespace that is none": {"controller": {"namespaces": ["Inference"]}},
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
    "certificates from Helm": {"webhook": {"certificates": {"source": "chart"}}},
    "certificates for ten years": {"webhook": {"certificates": {"days": 3650}}},
    "an operator that is none": {
        "webhook": {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "="}]}}
    },
    "a peer that is none": {"networkPolicy": {"webhookFrom": ["192.0.2.1/32"]}},
    "an interval that is none": {"metrics": {"podMonitor": {"interval": "often"}}},
}


SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())


def resolved(schema: Any) -> Any:
    """Return the schema with its references resolved."""
    if isinstance(schema, list):
        return [resolved(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    return {name: resolved(value) for name, value in schema.items()}


def sections(schema: Object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if schema.get("additionalProperties") is False and "items" not in schema else []
    for name, field in schema.get("properties", {}).items():
        found += sections(field, (*path, name))
    return found


for _path in sections(
    resolved({name: value for name, value in SCHEMA.items() if name != "definitions"})
):
    _values: Any = {"typo": True}
    for _name in reversed(_path):
        _values = {_name: _values}
    WRONG[f"unknown in {'.'.join(_path) or 'values'}"] = _values


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_values_of_the_wrong_type_are_refused(helm: Helm, values: Object) -> None:
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


def test_the_cache_in_the_notes_is_valid(helm: Helm) -> None:
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
def test_the_notes_warn_about_what_is_turned_off(helm: Helm, values: Object, warning: str) -> None:
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


def test_the_chart_has_the_operators_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_probes_use_the_ports_and_paths_that_are_served(render: Render, name: str) -> None:
    _, container = component(render(EVERYTHING), name)
    asked = {probe: container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")}
    assert asked == {
        "livenessProbe": {"path": "/healthz", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
    }
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    served = {"controller": "PRETUNE_LIVENESS_PORT", "webhook": "PRETUNE_HEALTH_PORT"}[name]
    assert environment(container)[served] == ports["metrics"]
