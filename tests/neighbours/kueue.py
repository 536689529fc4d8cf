"""The real Kueue: its manager as a process, its webhooks for the namespaces of our tests only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.conftest import KUBECTL
from tests.cluster.kube import Kube, Object
from tests.neighbours.programs import (
    HOST,
    LABEL,
    Program,
    delete_crds,
    kubectl,
    make_certificate,
)
from tests.ports import free_port

QUEUE = "gpus"  # the LocalQueue in each namespace
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PREFIX = "pretune-test-kueue"  # of webhook configurations
FRAMEWORKS = ("batch/job", "pod", "deployment")
WEBHOOKS = ("job", "pod", "deployment", "clusterqueue", "resourceflavor", "workload")
# The manager reads its metrics' certificate from here, whatever its configuration says.
METRICS_CERTIFICATE = Path("/etc/kueue/metrics/certs")


class Kueue:
    """Installed, started and removed by the fixture `kueue` (conftest.py)."""

    def __init__(self, kube: Kube, built: Path, folder: Path) -> None:
        self._kube, self._built, self._folder = kube, built, folder
        self._program = Program(folder / "kueue.log")
        self._port, self._health = free_port(HOST), free_port(HOST)
        manifests = kubectl(kube, "kustomize", str(built / "manifests/default"))
        docs = [doc for doc in yaml.safe_load_all(manifests) if doc]
        self._crds = [
            _one_version(doc) for doc in docs if doc["kind"] == "CustomResourceDefinition"
        ]
        self._webhooks = [doc for doc in docs if doc["kind"].endswith("WebhookConfiguration")]

    def install(self) -> None:
        assert KUBECTL.exists()
        crds = json.dumps({"apiVersion": "v1", "kind": "List", "items": self._crds})
        kubectl(self._kube, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=crds)
        names = [f"crd/{crd['metadata']['name']}" for crd in self._crds]
        kubectl(self._kube, "wait", "--for=condition=Established", "--timeout=60s", *names)
        self._authority = make_certificate(self._folder / "certificate")
        make_certificate(METRICS_CERTIFICATE)
        self.start()
        flavor = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "ResourceFlavor",
            "metadata": {"name": "default"},
        }
        self._kube.create(flavor)

    def start(self, **configuration: Any) -> None:
        """Start the manager with a configuration of its own, and then its webhooks."""
        file = self._folder / "configuration.yaml"
        file.write_text(json.dumps({**self._configuration(), **configuration}))
        self._program.start(
            [
                *(str(self._built / "kueue"), f"--config={file}"),
                *(
                    f"--kubeconfig={self._kube.kubeconfig}",
                    "--feature-gates=VisibilityOnDemand=false",
                ),
            ],
            f"http://127.0.0.1:{self._health}/readyz",
        )
        for webhook in self._webhooks:
            self._kube.create(self._ours(webhook))

    def stop(self) -> None:
        """Remove the webhooks, and then end the manager."""
        for webhook in self._webhooks:
            self._kube.delete(webhook["kind"], "", PREFIX)
        self._program.stop()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(METRICS_CERTIFICATE, ignore_errors=True)
        delete_crds(self._kube, self._crds)

    def create_queue(self, namespace: str, gpus: int) -> None:
        """Make a queue of a namespace's own, with so many GPUs; a lower priority gives way."""
        amounts = {"cpu": "100", "memory": "1000Gi", "nvidia.com/gpu": str(gpus)}
        resources = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
        group = {
            "coveredResources": list(amounts),
            "flavors": [{"name": "default", "resources": resources}],
        }
        self._kube.create(
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "ClusterQueue",
                "metadata": {"name": namespace},
                "spec": {
                    "namespaceSelector": {},
                    "resourceGroups": [group],
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                },
            }
        )
        self._kube.create(
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "LocalQueue",
                "metadata": {"namespace": namespace, "name": QUEUE},
                "spec": {"clusterQueue": namespace},
            }
        )

    def delete_queue(self, namespace: str) -> None:
        self._kube.delete("ClusterQueue", "", namespace)

    def _configuration(self) -> Object:
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": "kube-system",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {
                "host": HOST,
                "port": self._port,
                "certDir": str(self._folder / "certificate"),
            },
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "managedJobsNamespaceSelector": {"matchLabels": {LABEL: "true"}},
            "integrations": {"frameworks": list(FRAMEWORKS)},
        }

    def _ours(self, configuration: Object) -> Object:
        """Return the configuration with URLs, and of our namespaces and the kinds in use only."""
        kinds = {f"{letter}{kind}.kb.io" for letter in "mv" for kind in WEBHOOKS}
        webhooks = [
            {
                **webhook,
                "clientConfig": {
                    "url": f"https://{HOST}:{self._port}{webhook['clientConfig']['service']['path']}",
                    "caBundle": self._authority,
                },
                "namespaceSelector": {"matchLabels": {LABEL: "true"}},
            }
            for webhook in configuration["webhooks"]
            if webhook["name"] in kinds
        ]
        return {
            "apiVersion": configuration["apiVersion"],
            "kind": configuration["kind"],
            "metadata": {"name": PREFIX},
            "webhooks": webhooks,
        }


def _one_version(crd: Object) -> Object:
    """Return a kind with the version that is stored only: nothing has to be converted."""
    versions = [version for version in crd["spec"]["versions"] if version["storage"]]
    spec = {name: value for name, value in crd["spec"].items() if name != "conversion"}
    return {**crd, "spec": {**spec, "versions": versions}}
