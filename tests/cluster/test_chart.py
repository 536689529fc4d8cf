"""What only a Helm that sees the cluster shows: certificates over upgrades; and the lines that the chart's README gives people."""

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
from tests.cluster.test_policy import held

HOST = f"pretune-webhook.{SYSTEM}.svc"
SETTINGS = (
    "image.repository=localhost/pretune/operator",
    "image.tag=dev",
    "image.pullPolicy=Never",
)


def upgrade(kube: Kube, *settings: str) -> list[Object]:
    """What an upgrade of the release would apply; nothing is changed."""
    words = [word for one in (*SETTINGS, *settings) for word in ("--set", one)]
    done = subprocess.run(
        [
            str(HELM),
            "upgrade",
            "pretune",
            str(ROOT / "charts/pretune"),
            "-n",
            SYSTEM,
            "--dry-run=server",
            *words,
        ],
        env={**os.environ, "KUBECONFIG": kube.kubeconfig},
        check=True,
        capture_output=True,
        text=True,
    )
    manifest = done.stdout.partition("\nMANIFEST:\n")[2].partition("\nNOTES:\n")[0]
    return [one for one in yaml.safe_load_all(manifest) if one]


def secret(documents: list[Object], name: str) -> dict[str, bytes]:
    (found,) = (
        one for one in documents if one["kind"] == "Secret" and one["metadata"]["name"] == name
    )
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def bundle(documents: list[Object]) -> bytes:
    (found,) = (one for one in documents if one["kind"] == "MutatingWebhookConfiguration")
    return base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"])


def installed(kube: Kube) -> list[Object]:
    wanted = [
        ("Secret", "pretune-webhook"),
        ("Secret", "pretune-webhook-ca"),
        ("MutatingWebhookConfiguration", "pretune-webhook"),
    ]
    found = [kube.get(kind, SYSTEM if kind == "Secret" else "", name) for kind, name in wanted]
    assert all(found)
    return [{"kind": kind, **(one or {})} for (kind, _), one in zip(wanted, found, strict=True)]


def test_an_upgrade_renews_the_certificate_and_keeps_the_authority(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    """So that there is no moment in which the API server trusts another authority than that of the files the pods have."""
    now, then = installed(kube), upgrade(kube)
    assert bundle(then) == bundle(now)
    assert secret(then, "pretune-webhook-ca") == secret(now, "pretune-webhook-ca")
    old, new = (secret(one, "pretune-webhook") for one in (now, then))
    assert old["tls.crt"] != new["tls.crt"] and old["tls.key"] != new["tls.key"]
    for files in (old, new):
        handshake(tmp_path, files["tls.crt"], files["tls.key"], bundle(then), HOST)


def test_a_certificate_of_another_authority_is_not_taken_for_the_webhooks(
    kube: Kube, operator: str, tmp_path: Path
) -> None:
    """What the test before would not see if a handshake proved nothing."""
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
def test_the_webhook_is_asked_about_pods_that_opted_in(
    kube: Kube, operator: str, namespace: str, where: str, labels: dict[str, str], answered: bool
) -> None:
    pod = held(where or namespace, **labels)
    del pod["spec"]["schedulingGates"]  # with ours it would be a copy of an injected one
    made = kube.create(pod, dry_run=True)
    assert ("pretune.dev/reason" in made["metadata"]["annotations"]) == answered


def test_a_static_pods_mirror_is_left_alone(kube: Kube, operator: str, namespace: str) -> None:
    """It runs already; and the API server refuses one that names a claim, or waits."""
    (node,) = kube.list("Node", "")[:1]
    mirror = held(namespace, **{"pretune.dev/cache": "none"})
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "0"}
    mirror["spec"]["nodeName"] = node["metadata"]["name"]
    del mirror["spec"]["schedulingGates"]
    assert "pretune.dev/reason" not in kube.create(mirror, dry_run=True)["metadata"]["annotations"]


def test_the_lines_of_the_readme_free_held_pods_and_nothing_else(
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
        held(namespace, name, **label) for name in ("two", "one", "kueues", "strangers")
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
    for _ in range(2):  # with nothing left to free, the lines are as good
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
            ],  # its label was taken off: told by the gate
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
def test_a_claims_size_may_be_raised_and_written_otherwise_but_not_lowered(
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
        match=r"spec\.storage\.claim\.size: .*size cannot be lowered, since a claim's cannot",
    ):
        kube.patch("AutotuneCache", namespace, "demo", change)


@pytest.mark.disturbs
def test_a_rollout_of_the_webhook_loses_no_pod(kube: Kube, operator: str, namespace: str) -> None:
    """Pods are made by dry run, without a pause, while both of its pods are replaced, twice."""
    over, made, lost = threading.Event(), 0, 0

    def make() -> None:
        nonlocal made, lost
        person, pod = kube.again(), held(namespace, **{"pretune.dev/cache": "none"})
        del pod["spec"]["schedulingGates"]
        while not over.is_set():
            answered = (
                "pretune.dev/reason" in person.create(pod, dry_run=True)["metadata"]["annotations"]
            )
            with counting:
                made, lost = made + 1, lost + (not answered)

    def ours() -> set[str]:
        label = "app.kubernetes.io/component=webhook"
        return {one["metadata"]["name"] for one in kube.list("Pod", SYSTEM, labels=label)}

    counting = threading.Lock()
    makers = [threading.Thread(target=make) for _ in range(3)]
    for one in makers:
        one.start()
    try:
        for round_ in range(2):
            before = ours()
            note = {
                "spec": {"template": {"metadata": {"annotations": {"rolled": f"{time.time()}"}}}}
            }
            kube.patch("Deployment", SYSTEM, "pretune-webhook", note)
            end = time.monotonic() + 90
            while before & (now := ours()) or len(now) < 2:
                assert time.monotonic() < end, f"round {round_}: still {before & now}"
                time.sleep(0.5)
    finally:
        over.set()
        for one in makers:
            one.join()
    assert made > 200
    assert lost == 0, f"{lost} of {made} pods came without an answer"
