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
import yaml

from tests.chart.test_webhook import handshake
from tests.cluster.conftest import HELM, KUBECTL, ROOT, SYSTEM
from tests.cluster.kube import Kube, Object, Refusal
from tests.cluster.test_policy import held_pod

HOST = f"pretune-webhook.{SYSTEM}.svc"
SETTINGS = (
    "image.repository=localhost/pretune/operator",
    "image.tag=dev",
    "image.pullPolicy=Never",
)


def upgrade(kube: Kube, *settings: str) -> list[Object]:
    """Return what an upgrade of the release would apply, without a change."""
    options = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    done = subprocess.run(
        [
            str(HELM),
            "upgrade",
            "pretune",
            str(ROOT / "charts/pretune"),
            "-n",
            SYSTEM,
            "--dry-run=server",
            *options,
        ],
        env={**os.environ, "KUBECONFIG": kube.kubeconfig},
        check=True,
        capture_output=True,
        text=True,
    )
    manifest = done.stdout.partition("\nMANIFEST:\n")[2].partition("\nNOTES:\n")[0]
    return [document for document in yaml.safe_load_all(manifest) if document]


def secret(documents: list[Object], name: str) -> dict[str, bytes]:
    (found,) = (
        document
        for document in documents
        if document["kind"] == "Secret" and document["metadata"]["name"] == name
    )
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def bundle(documents: list[Object]) -> bytes:
    (found,) = (
        document for document in documents if document["kind"] == "MutatingWebhookConfiguration"
    )
    return base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"])


def installed(kube: Kube) -> list[Object]:
    wanted = [
        ("Secret", "pretune-webhook"),
        ("Secret", "pretune-webhook-ca"),
        ("MutatingWebhookConfiguration", "pretune-webhook"),
    ]
    found = [kube.get(kind, SYSTEM if kind == "Secret" else "", name) for kind, name in wanted]
    assert all(found)
    return [{"kind": kind, **(obj or {})} for (kind, _), obj in zip(wanted, found, strict=True)]


def test_an_upgrade_renews_the_certificate_and_keeps_the_authority(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    """So the API server always trusts the authority of the files that the pods have."""
    now, then = installed(kube), upgrade(kube)
    assert bundle(then) == bundle(now)
    assert secret(then, "pretune-webhook-ca") == secret(now, "pretune-webhook-ca")
    old, new = (secret(documents, "pretune-webhook") for documents in (now, then))
    assert old["tls.crt"] != new["tls.crt"] and old["tls.key"] != new["tls.key"]
    for files in (old, new):
        handshake(tmp_path, files["tls.crt"], files["tls.key"], bundle(then), HOST)


def test_a_certificate_of_another_authority_is_not_trusted(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    """Shows that the handshake in the test before means something."""
    other = upgrade(kube, "fullnameOverride=other")  # another name: its authority is not there yet
    files = secret(other, "other-webhook")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(
            tmp_path,
            files["tls.crt"],
            files["tls.key"],
            bundle(installed(kube)),
            f"other-webhook.{SYSTEM}.svc",
        )


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
