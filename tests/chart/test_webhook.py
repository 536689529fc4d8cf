"""What the API server is told of the webhook: which pods, whom to ask, and how to know that it is the one."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
from pretune.api.names import CACHE, HOLD, ROLE

from tests.chart.conftest import CHART, NAMESPACE, Helm, Object, Render, only

OWN_ISSUER: Object = {
    "source": "certManager",
    "issuerRef": {"name": "company", "kind": "ClusterIssuer", "group": "example.com"},
}


def hook(render: Render, values: Object | None = None) -> Object:
    (one,) = only(render(values), "MutatingWebhookConfiguration")["webhooks"]
    assert isinstance(one, dict)
    return one


def pod(documents: list[Object]) -> Object:
    found = only(documents, "Deployment", "pretune-webhook")["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


# --- which pods


def test_only_the_making_of_pods_that_opted_in_and_are_not_ours_is_asked_about(
    render: Render,
) -> None:
    one = hook(render)
    assert one["rules"] == [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    assert one["objectSelector"] == {
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
def test_the_systems_namespaces_are_left_out_whatever_is_chosen_beside(
    render: Render, selector: Object, expected: Object
) -> None:
    left_out = {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE],
    }
    found = hook(render, {"webhook": {"namespaceSelector": selector}})["namespaceSelector"]
    assert found.pop("matchExpressions") == [left_out, *expected.pop("more", [])]
    assert found == expected


def test_a_pod_starts_without_us_rather_than_not_at_all(render: Render) -> None:
    one = hook(render)
    assert (one["failurePolicy"], one["timeoutSeconds"]) == ("Ignore", 5)
    assert (one["sideEffects"], one["reinvocationPolicy"]) == ("None", "IfNeeded")


# --- whom to ask


def test_the_api_servers_question_reaches_the_pods_port(render: Render) -> None:
    documents = render()
    asked = hook(render)["clientConfig"]["service"]
    service = only(documents, "Service", asked["name"])
    assert (asked["namespace"], asked["path"]) == (service["metadata"]["namespace"], "/pods")
    (port,) = service["spec"]["ports"]
    assert port["port"] == asked["port"]
    (container,) = pod(documents)["containers"]
    assert port["targetPort"] in [one["name"] for one in container["ports"]]
    labels = only(documents, "Deployment", "pretune-webhook")["spec"]["template"]["metadata"][
        "labels"
    ]
    assert service["spec"]["selector"].items() <= labels.items()


def test_one_pod_answers_while_another_is_rolled_or_drained(render: Render) -> None:
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


def test_a_pod_that_goes_answers_until_nobody_asks_it_any_more(render: Render) -> None:
    spec = pod(render())
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 3 <= sleep <= spec["terminationGracePeriodSeconds"] - 10, (
        "time for every node, and time to end in"
    )


# --- how to know it


def secrets(documents: list[Object]) -> dict[str, dict[str, bytes]]:
    return {
        one["metadata"]["name"]: {
            name: base64.b64decode(value) for name, value in one["data"].items()
        }
        for one in documents
        if one["kind"] == "Secret"
    }


def shakes_hands(folder: Path, certificate: bytes, key: bytes, bundle: bytes, host: str) -> None:
    """A whole TLS handshake in memory, as the API server does it. Raises ssl.SSLError."""
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


def presented(documents: list[Object]) -> dict[str, bytes]:
    """What the webhook's pod finds in its folder."""
    spec = pod(documents)
    (volume,) = spec["volumes"]
    data = secrets(documents)[volume["secret"]["secretName"]]
    return {one["path"]: data[one["key"]] for one in volume["secret"]["items"]}


@pytest.mark.parametrize("release", ["pretune", "r" * 53])
def test_the_api_server_knows_the_webhook_by_the_charts_certificate(
    render: Render, tmp_path: Path, release: str
) -> None:
    documents = render(release=release)
    documents = [
        one
        for one in documents
        if one["kind"] != "Deployment" or one["metadata"]["name"].endswith("webhook")
    ]
    spec = only(documents, "Deployment")["spec"]["template"]["spec"]
    data = secrets(documents)[spec["volumes"][0]["secret"]["secretName"]]
    (one,) = only(documents, "MutatingWebhookConfiguration")["webhooks"]
    asked, bundle = (
        one["clientConfig"]["service"],
        base64.b64decode(one["clientConfig"]["caBundle"]),
    )
    host = f"{asked['name']}.{asked['namespace']}.svc"
    shakes_hands(tmp_path, data["tls.crt"], data["tls.key"], bundle, host)
    with pytest.raises(ssl.SSLError):
        shakes_hands(
            tmp_path, data["tls.crt"], data["tls.key"], bundle, f"other.{asked['namespace']}.svc"
        )


def test_a_rendering_without_a_cluster_has_an_authority_of_its_own(
    helm: Helm, render: Render, tmp_path: Path
) -> None:
    """As `helm template` and Argo CD make it: whole in itself, and never the same twice."""
    other = helm("template", "pretune", str(CHART), "--namespace", NAMESPACE)
    assert other.returncode == 0
    bundle = hook(render)["clientConfig"]["caBundle"]
    assert bundle not in other.stdout
    files = presented(render())
    shakes_hands(
        tmp_path,
        files["tls.crt"],
        files["tls.key"],
        base64.b64decode(bundle),
        f"pretune-webhook.{NAMESPACE}.svc",
    )


def test_no_pod_is_given_the_authoritys_key(render: Render) -> None:
    documents = render()
    known = secrets(documents)
    mounted = {
        volume["secret"]["secretName"]
        for one in documents
        if one["kind"] == "Deployment"
        for volume in one["spec"]["template"]["spec"].get("volumes", [])
    }
    assert mounted == {"pretune-webhook"}
    assert known.keys() == {"pretune-webhook", "pretune-webhook-ca"}
    assert known["pretune-webhook-ca"]["tls.key"] not in known["pretune-webhook"].values()
    assert known["pretune-webhook-ca"]["tls.crt"] == base64.b64decode(
        hook(render)["clientConfig"]["caBundle"]
    )


def test_cert_manager_makes_what_the_pod_mounts_and_tells_the_api_server(render: Render) -> None:
    documents = render({"webhook": {"certificates": {"source": "certManager"}}})
    assert not secrets(documents)
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
    assert {one["key"] for one in volume["secret"]["items"]} == {"tls.crt", "tls.key"}
    issuer = only(documents, "Issuer", leaf["spec"]["issuerRef"]["name"])
    authority = next(
        one for one in documents if one["kind"] == "Certificate" and one["spec"].get("isCA")
    )
    assert (
        issuer["spec"]["ca"]["secretName"]
        == authority["spec"]["secretName"]
        != leaf["spec"]["secretName"]
    )
    assert only(documents, "Issuer", authority["spec"]["issuerRef"]["name"])["spec"] == {
        "selfSigned": {}
    }


def test_an_issuer_of_ones_own_is_asked_and_none_is_made(render: Render) -> None:
    documents = render({"webhook": {"certificates": OWN_ISSUER}})
    assert only(documents, "Certificate")["spec"]["issuerRef"] == OWN_ISSUER["issuerRef"]
    assert not [one for one in documents if one["kind"] in ("Issuer", "Secret")]


def test_neither_source_takes_the_others_secret_over(render: Render) -> None:
    made = set(secrets(render()))
    issued = {
        one["spec"]["secretName"]
        for one in render({"webhook": {"certificates": {"source": "certManager"}}})
        if one["kind"] == "Certificate"
    }
    assert made and issued and not made & issued


# --- figures


def test_one_service_leads_to_the_figures_of_every_pod(render: Render) -> None:
    documents = render()
    service = only(documents, "Service", "pretune-metrics")["spec"]
    assert service["clusterIP"] == "None"
    for one in (one for one in documents if one["kind"] == "Deployment"):
        template = one["spec"]["template"]
        assert service["selector"].items() <= template["metadata"]["labels"].items()
        ports = {
            port["name"]: port["containerPort"]
            for port in template["spec"]["containers"][0]["ports"]
        }
        assert ports[service["ports"][0]["targetPort"]] == service["ports"][0]["port"]


def test_a_pod_monitor_is_there_only_when_asked_for(render: Render) -> None:
    assert not [one for one in render() if one["kind"] == "PodMonitor"]
    asked = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "30s"}
    documents = render({"metrics": {"podMonitor": asked}})
    monitor = only(documents, "PodMonitor")
    assert asked["labels"].items() <= monitor["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "30s"}
    for one in (one for one in documents if one["kind"] == "Deployment"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- the policy on the controller itself (what it refuses: tests/cluster/test_policy.py)


@pytest.mark.parametrize(
    ("values", "account"),
    [({}, "pretune"), ({"serviceAccount": {"create": False, "name": "mine"}}, "mine")],
    ids=["the chart's", "one's own"],
)
def test_the_policy_is_about_the_controllers_account_and_nobody_else(
    render: Render, values: Object, account: str
) -> None:
    spec = only(render(values), "ValidatingAdmissionPolicy", "pretune-controller")["spec"]
    (condition,) = spec["matchConditions"]
    assert (
        condition["expression"]
        == f"request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'"
    )
    words = "".join(one["expression"] for one in spec["validations"])
    assert f"'{HOLD}'" in words and f"'{CACHE}'" in words
    assert spec["failurePolicy"] == "Fail"
