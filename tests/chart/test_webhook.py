"""How the API server reaches the webhook: for which pods, where, and with which certificate."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest
import yaml
from pretune.api.names import CACHE, GROUP, HOLD, KIND, ROLE, VERSION
from pretune.api.spec import Spec
from pretune.api.types import Key
from pretune.manifests.agent_archive import agent_name
from pretune.manifests.claim import build_claim
from pretune.protocol import AGENT_FILE

from tests.chart.conftest import CHART, NAMESPACE, ROOT, Helm, Object, Render, only

OWN_ISSUER: Object = {
    "source": "certManager",
    "issuerRef": {"name": "company", "kind": "ClusterIssuer", "group": "example.com"},
}


def webhook_of(render: Render, values: Object | None = None) -> Object:
    (webhook,) = only(render(values), "MutatingWebhookConfiguration")["webhooks"]
    assert isinstance(webhook, dict)
    return webhook


def pod(documents: list[Object]) -> Object:
    found = only(documents, "Deployment", "pretune-webhook")["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


# --- which pods


def test_the_webhook_is_asked_only_about_new_consumers(
    render: Render,
) -> None:
    webhook = webhook_of(render)
    assert webhook["rules"] == [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    assert webhook["objectSelector"] == {
        "matchExpressions": [
            {"key": CACHE, "operator": "Exists"},
            {"key": ROLE, "operator": "DoesNotExist"},
        ]
    }


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, {}),
        ({"matchLabels": {"a": "b"}}, {"matchLabels": {"a": "b"}}),
        (
            {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]},
            {"more": [{"key": "team", "operator": "In", "values": ["a"]}]},
        ),
    ],
    ids=["nothing chosen", "labels", "expressions"],
)
def test_system_namespaces_are_excluded_whatever_the_values_select(
    render: Render, selector: Object, expected: Object
) -> None:
    left_out = {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE],
    }
    found = webhook_of(render, {"webhook": {"namespaceSelector": selector}})["namespaceSelector"]
    assert found.pop("matchExpressions") == [left_out, *expected.pop("more", [])]
    assert found == expected


def test_a_pod_starts_even_if_no_webhook_answers(render: Render) -> None:
    webhook = webhook_of(render)
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Ignore", 5)
    assert (webhook["sideEffects"], webhook["reinvocationPolicy"]) == ("None", "IfNeeded")


# --- whom to ask


def test_the_api_servers_request_reaches_the_pods_port(render: Render) -> None:
    documents = render()
    asked = webhook_of(render)["clientConfig"]["service"]
    service = only(documents, "Service", asked["name"])
    assert (asked["namespace"], asked["path"]) == (service["metadata"]["namespace"], "/pods")
    (port,) = service["spec"]["ports"]
    assert port["port"] == asked["port"]
    (container,) = pod(documents)["containers"]
    assert port["targetPort"] in [named["name"] for named in container["ports"]]
    labels = only(documents, "Deployment", "pretune-webhook")["spec"]["template"]["metadata"][
        "labels"
    ]
    assert service["spec"]["selector"].items() <= labels.items()


def test_one_pod_answers_while_another_one_is_updated_or_drained(render: Render) -> None:
    documents = render()
    deployment = only(documents, "Deployment", "pretune-webhook")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = only(documents, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["selector"]
    (spread,) = pod(documents)["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )
    assert spread["labelSelector"] == deployment["selector"]


def test_a_pod_that_ends_answers_until_no_request_comes_any_more(render: Render) -> None:
    spec = pod(render())
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 3 <= sleep <= spec["terminationGracePeriodSeconds"] - 10, (
        "time for every node, and time to end in"
    )


# --- how to know it


def handshake(folder: Path, certificate: bytes, key: bytes, bundle: bytes, host: str) -> None:
    """Do a TLS handshake in memory, as the API server does it. Raises ssl.SSLError."""
    for name, content in (("tls.crt", certificate), ("tls.key", key)):
        (folder / name).write_bytes(content)
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    client.load_verify_locations(cadata=bundle.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in tuple(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


def test_the_chart_renders_no_certificate_and_nothing_that_differs_from_time_to_time(
    helm: Helm,
) -> None:
    """So nothing that applies it again undoes what the controller has written."""
    command = ("template", "pretune", str(CHART), "--namespace", NAMESPACE)
    first, second = (helm(*command).stdout for _ in "12")
    assert first == second and "pretune-webhook-tls" in first
    assert "BEGIN CERTIFICATE" not in first and "caBundle: " not in first and "LS0tLS" not in first
    assert not any("lookup" in file.read_text() for file in (CHART / "templates").rglob("*.yaml"))


@pytest.mark.parametrize("release", ["pretune", "r" * 53])
def test_the_pod_mounts_the_secret_that_the_controller_may_write(
    render: Render, release: str
) -> None:
    documents = render(release=release)
    (volume,) = named(documents, "Deployment", "-webhook")["spec"]["template"]["spec"]["volumes"]
    secret = only(documents, "Secret")
    assert "data" not in secret and secret["type"] == "Opaque"
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert {item["key"] for item in volume["secret"]["items"]} == {"tls.crt", "tls.key"}
    configuration = only(documents, "MutatingWebhookConfiguration")
    (container,) = named(documents, "Deployment", "-controller")["spec"]["template"]["spec"][
        "containers"
    ]
    name = next(item["value"] for item in container["env"] if item["name"] == "PRETUNE_WEBHOOK")
    # As controller/certificates.py names them.
    assert configuration["metadata"]["name"] == name
    assert secret["metadata"]["name"] == f"{name}-tls"
    (webhook,) = configuration["webhooks"]
    assert webhook["clientConfig"]["service"]["name"] == name
    rules = [
        (role["kind"], rule["resources"], rule["resourceNames"], rule["verbs"])
        for role in documents
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        if {"secrets", "mutatingwebhookconfigurations"} & set(rule["resources"])
    ]
    assert sorted(rules) == [
        ("ClusterRole", ["mutatingwebhookconfigurations"], [name], ["get", "patch"]),
        ("Role", ["secrets"], [f"{name}-tls"], ["get", "patch"]),
    ]


def named(documents: list[Object], kind: str, end: str) -> Object:
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"].endswith(end)
    ]
    return found


@pytest.mark.parametrize(
    "webhook",
    [{"enabled": False}, {"certificates": {"source": "certManager"}}],
    ids=["no webhook", "cert-manager"],
)
def test_without_certificates_of_its_own_the_controller_has_no_right_to_any(
    render: Render, webhook: Object
) -> None:
    documents = render({"webhook": webhook})
    words = [
        word
        for role in documents
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for word in rule["resources"]
    ]
    assert not {"secrets", "mutatingwebhookconfigurations"} & set(words)
    assert not [document for document in documents if document["kind"] == "Secret"]


def test_cert_manager_issues_what_the_pod_mounts_and_injects_the_authority(render: Render) -> None:
    documents = render({"webhook": {"certificates": {"source": "certManager"}}})
    configuration = only(documents, "MutatingWebhookConfiguration")
    assert "caBundle" not in configuration["webhooks"][0]["clientConfig"]
    namespace, _, name = configuration["metadata"]["annotations"][
        "cert-manager.io/inject-ca-from"
    ].partition("/")
    leaf = only(documents, "Certificate", name)
    assert leaf["metadata"]["namespace"] == namespace == NAMESPACE
    asked = configuration["webhooks"][0]["clientConfig"]["service"]
    assert leaf["spec"]["dnsNames"] == [f"{asked['name']}.{asked['namespace']}.svc"]
    (volume,) = pod(documents)["volumes"]
    assert volume["secret"]["secretName"] == leaf["spec"]["secretName"]
    assert {item["key"] for item in volume["secret"]["items"]} == {"tls.crt", "tls.key"}
    issuer = only(documents, "Issuer", leaf["spec"]["issuerRef"]["name"])
    authority = next(
        document
        for document in documents
        if document["kind"] == "Certificate" and document["spec"].get("isCA")
    )
    assert (
        issuer["spec"]["ca"]["secretName"]
        == authority["spec"]["secretName"]
        != leaf["spec"]["secretName"]
    )
    assert only(documents, "Issuer", authority["spec"]["issuerRef"]["name"])["spec"] == {
        "selfSigned": {}
    }


def test_an_existing_issuer_is_used_and_none_is_created(render: Render) -> None:
    documents = render({"webhook": {"certificates": OWN_ISSUER}})
    assert only(documents, "Certificate")["spec"]["issuerRef"] == OWN_ISSUER["issuerRef"]
    assert not [document for document in documents if document["kind"] in ("Issuer", "Secret")]


def test_the_two_certificate_sources_use_different_secrets(render: Render) -> None:
    own = {only(render(), "Secret")["metadata"]["name"]}
    issued = {
        document["spec"]["secretName"]
        for document in render({"webhook": {"certificates": {"source": "certManager"}}})
        if document["kind"] == "Certificate"
    }
    assert own and issued and not own & issued


# --- figures


def test_one_service_leads_to_the_metrics_of_every_pod(render: Render) -> None:
    documents = render()
    service = only(documents, "Service", "pretune-metrics")["spec"]
    assert service["clusterIP"] == "None"
    for document in (document for document in documents if document["kind"] == "Deployment"):
        template = document["spec"]["template"]
        assert service["selector"].items() <= template["metadata"]["labels"].items()
        ports = {
            port["name"]: port["containerPort"]
            for port in template["spec"]["containers"][0]["ports"]
        }
        assert ports[service["ports"][0]["targetPort"]] == service["ports"][0]["port"]


def test_a_pod_monitor_exists_only_if_a_value_says_so(render: Render) -> None:
    assert not [document for document in render() if document["kind"] == "PodMonitor"]
    asked = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "30s"}
    documents = render({"metrics": {"podMonitor": asked}})
    monitor = only(documents, "PodMonitor")
    assert asked["labels"].items() <= monitor["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {
        "port": "metrics",
        "path": "/metrics",
        "interval": "30s",
        "honorLabels": True,  # else the label namespace of the alerts is that of our pods
    }
    for document in (document for document in documents if document["kind"] == "Deployment"):
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_rule_has_the_alerts_of_the_document_each_with_words_for_a_person(
    render: Render,
) -> None:
    assert not [document for document in render() if document["kind"] == "PrometheusRule"]
    asked = {"enabled": True, "labels": {"release": "prometheus"}}
    rule = only(render({"metrics": {"prometheusRule": asked}}), "PrometheusRule")
    assert asked["labels"].items() <= rule["metadata"]["labels"].items()
    (group,) = rule["spec"]["groups"]
    assert all(len(alert.pop("annotations")["summary"]) > 40 for alert in group["rules"])
    tables, _, text = (ROOT / "docs/metrics.md").read_text().partition("## Alerts")
    documented = yaml.safe_load(text.partition("```yaml")[2].partition("```")[0])
    assert group["rules"] == documented
    named = {name for alert in documented for name in re.findall(r"pretune_\w+", alert["expr"])}
    known = set(re.findall(r"pretune_\w+", tables))
    assert {name.removesuffix("_bucket") for name in named} <= known


# --- the network


@pytest.mark.parametrize("component", ["controller", "webhook"])
def test_pods_receive_connections_on_their_own_ports_only(render: Render, component: str) -> None:
    documents = render({"webhook": {"port": 9443}})
    spec = only(documents, "NetworkPolicy", f"pretune-{component}")["spec"]
    deployment = only(documents, "Deployment", f"pretune-{component}")["spec"]
    assert spec["podSelector"] == deployment["selector"]
    assert spec["policyTypes"] == ["Ingress"] and "egress" not in spec
    (container,) = deployment["template"]["spec"]["containers"]
    assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} == {
        port["containerPort"] for port in container["ports"]
    }
    assert not any("from" in rule for rule in spec["ingress"]), "by default from anywhere"


def test_values_say_from_where_and_to_where(render: Render) -> None:
    api_server = [{"ipBlock": {"cidr": "192.0.2.0/28"}}]
    prometheus = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    chosen = {"webhookFrom": api_server, "metricsFrom": prometheus, "egressTo": api_server}
    documents = render({"networkPolicy": chosen})
    spec = only(documents, "NetworkPolicy", "pretune-webhook")["spec"]
    assert {rule["ports"][0]["port"]: rule["from"] for rule in spec["ingress"]} == {
        8080: prometheus,
        8443: api_server,
    }
    for component in ("controller", "webhook"):
        spec = only(documents, "NetworkPolicy", f"pretune-{component}")["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["egress"] == [{"to": api_server}]
    (rule,) = only(documents, "NetworkPolicy", "pretune-controller")["spec"]["ingress"]
    assert rule["from"] == prometheus


# --- the policies on the controller itself (what they refuse: tests/cluster/test_policy*.py)


@pytest.mark.parametrize("name", ["", "-objects", "-namespaces", "-webhook"])
def test_each_policy_on_the_controller_fails_closed_and_applies_to_its_account_only(
    render: Render, name: str
) -> None:
    spec = only(render(), "ValidatingAdmissionPolicy", f"pretune-controller{name}")["spec"]
    (condition,) = spec["matchConditions"]
    account = f"system:serviceaccount:{NAMESPACE}:pretune"
    assert condition["expression"] == f"request.userInfo.username == '{account}'"
    assert spec["failurePolicy"] == "Fail"
    binding = only(render(), "ValidatingAdmissionPolicyBinding", f"pretune-controller{name}")
    assert binding["spec"]["validationActions"] == ["Deny"]


def test_the_policy_that_needs_a_cache_matches_only_jobs_with_our_label(render: Render) -> None:
    """The API server looks for the cache before it asks whose request it is."""
    spec = only(render(), "ValidatingAdmissionPolicy", "pretune-controller-namespaces")["spec"]
    assert spec["matchConstraints"]["objectSelector"] == {
        "matchExpressions": [{"key": ROLE, "operator": "Exists"}]
    }
    assert spec["paramKind"] == {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


def test_the_policy_on_objects_spells_the_names_of_the_code(render: Render) -> None:
    spec = only(render(), "ValidatingAdmissionPolicy", "pretune-controller-objects")["spec"]
    words = "".join(validation["expression"] for validation in spec["validations"])
    assert all(f"'{name}'" in words for name in (CACHE, ROLE, KIND, AGENT_FILE))
    pattern = words.partition("matches('")[2].partition("'")[0]
    assert re.match(pattern, agent_name())
    cache = Spec.from_cache({"spec": {"storage": {"claim": {}}}})
    assert build_claim(Key("a", "demo"), cache)["metadata"]["name"] == "pretune-demo"


@pytest.mark.parametrize(
    ("values", "account"),
    [({}, "pretune"), ({"serviceAccount": {"create": False, "name": "mine"}}, "mine")],
    ids=["the chart's", "an existing account"],
)
def test_the_policy_applies_only_to_the_controllers_account(
    render: Render, values: Object, account: str
) -> None:
    spec = only(render(values), "ValidatingAdmissionPolicy", "pretune-controller")["spec"]
    (condition,) = spec["matchConditions"]
    assert (
        condition["expression"]
        == f"request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'"
    )
    words = "".join(validation["expression"] for validation in spec["validations"])
    assert f"'{HOLD}'" in words and f"'{CACHE}'" in words
    assert spec["failurePolicy"] == "Fail"
