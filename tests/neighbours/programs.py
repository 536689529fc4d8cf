"""A neighbour as a process of this machine, beside the cluster, and the certificate of its webhooks."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path

import requests

from tests.cluster.conftest import KUBECTL, ROOT
from tests.cluster.kube import CLUSTER_WIDE, PATHS, Kube, Object

HOST = "10.244.0.1"  # the bridge of the cluster's first node, which the API server reaches
# A namespace with this label is one that the neighbours work in: others share the cluster.
LABEL = "pretune.dev/neighbours"

_KUEUE, _ARGO = "apis/kueue.x-k8s.io/v1beta2", "apis/argoproj.io/v1alpha1"
PATHS.update(
    {
        "ResourceFlavor": (_KUEUE, "resourceflavors"),
        "ClusterQueue": (_KUEUE, "clusterqueues"),
        "LocalQueue": (_KUEUE, "localqueues"),
        "Workload": (_KUEUE, "workloads"),
        "Rollout": (_ARGO, "rollouts"),
        "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
        "ValidatingWebhookConfiguration": (
            "apis/admissionregistration.k8s.io/v1",
            "validatingwebhookconfigurations",
        ),
    }
)
CLUSTER_WIDE.update(
    ("ResourceFlavor", "ClusterQueue", "CustomResourceDefinition", "ValidatingWebhookConfiguration")
)


def built(name: str) -> Path:
    """Return the folder of a neighbour that `make neighbours` builds; it may not exist."""
    script = f"from localcluster.neighbours import {name}; print({name}.folder)"
    command = ["python3", "-c", script]
    folder = subprocess.run(
        command, cwd=ROOT / "tools/cluster", check=True, capture_output=True, text=True
    )
    return Path(folder.stdout.strip())


class Program:
    """A process that is started, waited for until it is ready, and ended."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str], ready: str) -> None:
        """Start it, and wait until the URL `ready` answers with 200."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + 90
        while not self._answers(ready):
            assert self._process.poll() is None, f"it ended: {self.tail()}"
            assert time.monotonic() < end, f"not ready after 90 s: {self.tail()}"
            time.sleep(0.3)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return requests.get(url, timeout=2).status_code == 200
        except requests.RequestException:
            return False


def make_certificate(folder: Path) -> str:
    """Write tls.crt and tls.key for HOST, and return the certificate in base64: it is its own authority."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=neighbour", "-addext", f"subjectAltName=IP:{HOST}"),
            *("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")),
        ],
        check=True,
        capture_output=True,
    )
    return base64.b64encode((folder / "tls.crt").read_bytes()).decode()


def kubectl(kube: Kube, *arguments: str, stdin: str | None = None) -> str:
    command = [str(KUBECTL), f"--kubeconfig={kube.kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def delete_crds(kube: Kube, crds: list[Object]) -> None:
    """Delete the kinds, and with them all objects, whose finalizers nobody is left to remove."""
    names = [crd["metadata"]["name"] for crd in crds]
    listed = kubectl(kube, "get", ",".join(names), "--all-namespaces", "--output=json")
    for obj in json.loads(listed)["items"]:
        meta = obj["metadata"]
        if meta.get("finalizers"):
            kind = f"{obj['kind']}.{obj['apiVersion'].partition('/')[0]}"
            scope = [f"--namespace={meta['namespace']}"] if "namespace" in meta else []
            patch = json.dumps({"metadata": {"finalizers": None}})
            arguments = ["patch", kind, meta["name"], *scope, "--type=merge", f"--patch={patch}"]
            kubectl(kube, *arguments)
    for name in names:
        kube.delete("CustomResourceDefinition", "", name)
    for name in names:
        kube.wait_until_gone("CustomResourceDefinition", "", name)
