"""The chart on the cluster: certificates after upgrades, and the commands in the chart's README."""

from __future__ import annotations

import base64
import os
import re
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pretune.controller.certificates import issue

from tests.chart.test_webhook import handshake
from tests.cluster.conftest import KUBECTL, ROOT, SYSTEM, install
from tests.cluster.kube import Kube, Refusal
from tests.cluster.operator_control import OperatorControl
from tests.cluster.test_policy import held_pod

HOST = f"pretune-webhook.{SYSTEM}.svc"


def read_certificate(kube: Kube) -> tuple[dict[str, bytes], bytes]:
    """Return the files in the webhook's Secret, and caBundle."""
    secret = kube.get("Secret", SYSTEM, "pretune-webhook-tls") or {}
    files = {name: base64.b64decode(value) for name, value in (secret.get("data") or {}).items()}
    configuration = kube.get("MutatingWebhookConfiguration", "", "pretune-webhook") or {}
    (webhook,) = configuration["webhooks"]
    return files, base64.b64decode(webhook["clientConfig"].get("caBundle") or "")


def test_the_api_server_trusts_the_certificate_in_the_secret(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    files, bundle = read_certificate(kube)
    handshake(tmp_path, files["tls.crt"], files["tls.key"], bundle, HOST)
    other = issue(HOST, time.time(), 90)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, other.certificate, other.key, bundle, HOST)


@pytest.mark.disturbs
def test_an_upgrade_changes_neither_the_certificate_nor_whom_the_api_server_trusts(
    kube: Kube, operator: str
) -> None:
    before = read_certificate(kube)
    install(kube)
    assert read_certificate(kube) == before


@pytest.mark.disturbs
def test_an_upgrade_after_cert_manager_conflicts_with_nothing(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    """Its injector owns caBundle then; a chart that wrote it failed with a conflict."""
    foreign = issue("cert-manager.example", time.time(), 90).authority
    client = {
        "service": {"name": "pretune-webhook", "namespace": SYSTEM},
        "caBundle": base64.b64encode(foreign).decode(),
    }
    answer = kube.session.patch(
        kube._url("MutatingWebhookConfiguration", "", "pretune-webhook"),
        params={"fieldManager": "cert-manager-cainjector", "force": "true"},
        headers={"Content-Type": "application/apply-patch+yaml"},
        json={
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "pretune-webhook"},
            "webhooks": [
                {
                    "name": "pods.pretune.dev",
                    "clientConfig": client,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                }
            ],
        },
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    install(kube)
    end = time.monotonic() + 30
    while foreign == (found := read_certificate(kube))[1]:
        assert time.monotonic() < end, "the controller has not added its authority"
        time.sleep(0.5)
    files, bundle = found
    handshake(tmp_path, files["tls.crt"], files["tls.key"], bundle, HOST)


@pytest.mark.disturbs
def test_a_new_certificate_reaches_the_webhook_and_every_pod_gets_an_answer(
    kube: Kube, operator: str, namespace: str, operator_control: OperatorControl
) -> None:
    """The kubelet brings it within about a minute."""

    def expiries() -> set[str]:
        lines = "\n".join(operator_control.metrics("pretune-webhook").values()).splitlines()
        return {line for line in lines if line.startswith("pretune_certificate_expiry")}

    before, old = read_certificate(kube)[0], expiries()
    pod = held_pod(namespace, **{"pretune.dev/cache": "none"})
    del pod["spec"]["schedulingGates"]
    kube.patch("Secret", SYSTEM, "pretune-webhook-tls", {"data": None})
    end, created, lost = time.monotonic() + 150, 0, 0
    while expiries() & old:
        assert time.monotonic() < end, "the webhook still serves the old certificate"
        for _ in range(20):
            annotations = kube.create(pod, dry_run=True)["metadata"]["annotations"]
            created, lost = created + 1, lost + ("pretune.dev/reason" not in annotations)
    files, bundle = read_certificate(kube)
    assert files["tls.crt"] != before["tls.crt"]
    assert before["ca.crt"].strip() in bundle, "a pod may still serve the old one"
    assert (lost, created > 100) == (0, True), f"{lost} of {created} had no answer"


@pytest.mark.parametrize(
    ("where", "labels", "answered"),
    [
        ("", {"pretune.dev/cache": "none"}, True),
        ("", {"pretune.dev/cache": "none", "pretune.dev/role": "tuning"}, False),
        ("", {"app": "demo"}, False),
        ("kube-system", {"pretune.dev/cache": "none"}, False),
    ],
    ids=["opted in", "ours", "anybody's", "the system's"],
)
def test_the_webhook_is_asked_only_about_consumers(
    kube: Kube, operator: str, namespace: str, where: str, labels: dict[str, str], answered: bool
) -> None:
    pod = held_pod(where or namespace, **labels)
    del pod["spec"]["schedulingGates"]  # with our gate it would count as injected
    created = kube.create(pod, dry_run=True)
    assert ("pretune.dev/reason" in created["metadata"]["annotations"]) == answered


def test_the_mirror_of_a_static_pod_is_left_alone(
    kube: Kube, operator: str, namespace: str
) -> None:
    """It is running already, and the API server refuses it with a claim or a gate."""
    (node,) = kube.list("Node", "")[:1]
    mirror = held_pod(namespace, **{"pretune.dev/cache": "none"})
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "0"}
    mirror["spec"]["nodeName"] = node["metadata"]["name"]
    del mirror["spec"]["schedulingGates"]
    assert "pretune.dev/reason" not in kube.create(mirror, dry_run=True)["metadata"]["annotations"]


def test_the_commands_in_the_readme_release_held_pods_and_change_nothing_else(
    kube: Kube, namespace: str, tmp_path: Path
) -> None:
    (lines,) = re.findall(
        r"```sh\n(kubectl get pods .*?)```",
        (ROOT / "charts/pretune/README.md").read_text(),
        re.DOTALL,
    )
    (tmp_path / "kubectl").symlink_to(KUBECTL)
    path = f"{tmp_path}:{os.environ['PATH']}"
    label = {"pretune.dev/cache": "demo"}
    two, one, kueues, strangers = (
        held_pod(namespace, name, **label) for name in ("two", "one", "kueues", "strangers")
    )
    one["spec"]["schedulingGates"] = [{"name": "pretune.dev/hold"}]
    kueues["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    del strangers["metadata"]["labels"]
    for pod in (two, one, kueues, strangers):
        kube.create(pod)
    within = lines.replace(
        "--all-namespaces", f"--namespace {namespace}"
    )  # other tests hold pods too
    assert within != lines
    for _ in range(2):  # the commands also work when no pod is held any more
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", within],
            env={**os.environ, "KUBECONFIG": kube.kubeconfig, "PATH": path},
            check=True,
            capture_output=True,
        )
        left = {
            pod["metadata"]["name"]: [
                gate["name"] for gate in pod["spec"].get("schedulingGates", [])
            ]
            for pod in kube.list("Pod", namespace)
        }
        assert left == {
            "two": ["kueue.x-k8s.io/before", "kueue.x-k8s.io/after"],
            "one": [],
            "kueues": ["kueue.x-k8s.io/admission"],
            "strangers": [
                "kueue.x-k8s.io/before",
                "kueue.x-k8s.io/after",
            ],  # it has lost its label, and is known by the gate
        }


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        ("1023Mi", False),
        (1073741823, False),
        ("1G", False),
        ("1024Mi", True),
        (1073741824, True),
        ("1.5Gi", True),
        ("2T", True),
    ],
)
def test_a_claims_size_may_be_raised_or_written_differently_but_not_lowered(
    kube: Kube, operator: str, namespace: str, size: str | int, taken: bool
) -> None:
    spec = {"suspend": True, "storage": {"claim": {"storageClassName": "none", "size": "1Gi"}}}
    meta = {"namespace": namespace, "name": "demo"}
    kube.create(
        {
            "apiVersion": "pretune.dev/v1alpha1",
            "kind": "AutotuneCache",
            "metadata": meta,
            "spec": spec,
        }
    )
    change = {"spec": {"storage": {"claim": {"size": size}}}}
    if taken:
        changed = kube.patch("AutotuneCache", namespace, "demo", change)
        assert changed["spec"]["storage"]["claim"]["size"] == size
        return
    with pytest.raises(
        Refusal,
        match=r"spec\.storage\.claim\.size: .*size cannot be lowered, since that of a claim cannot",
    ):
        kube.patch("AutotuneCache", namespace, "demo", change)


@pytest.mark.disturbs
def test_every_pod_gets_an_answer_during_a_rollout_of_the_webhook(
    kube: Kube, operator: str, namespace: str
) -> None:
    """Pods are created by dry run, without a pause, while both webhook pods are replaced, twice."""
    over, created, lost = threading.Event(), 0, 0

    def create_pods() -> None:
        nonlocal created, lost
        person, pod = kube.new_session(), held_pod(namespace, **{"pretune.dev/cache": "none"})
        del pod["spec"]["schedulingGates"]
        while not over.is_set():
            answered = (
                "pretune.dev/reason" in person.create(pod, dry_run=True)["metadata"]["annotations"]
            )
            with counting:
                created, lost = created + 1, lost + (not answered)

    def webhook_pods() -> set[str]:
        label = "app.kubernetes.io/component=webhook"
        return {pod["metadata"]["name"] for pod in kube.list("Pod", SYSTEM, labels=label)}

    counting = threading.Lock()
    threads = [threading.Thread(target=create_pods) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(2):
            before = webhook_pods()
            note = {
                "spec": {"template": {"metadata": {"annotations": {"rolled": f"{time.time()}"}}}}
            }
            kube.patch("Deployment", SYSTEM, "pretune-webhook", note)
            end = time.monotonic() + 90
            while before & (now := webhook_pods()) or len(now) < 2:
                assert time.monotonic() < end, f"round {round_}: still {before & now}"
                time.sleep(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert created > 200
    assert lost == 0, f"{lost} of {created} pods were created without an answer"
