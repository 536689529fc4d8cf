"""The real Argo Rollouts: its controller as a process, for the namespaces of our tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kube import Kube, Object
from tests.cluster.workloads import deployment
from tests.neighbours.programs import Program, delete_crds, kubectl
from tests.ports import free_port


class ArgoRollouts:
    """Installed and removed by the fixture `argo` (conftest.py)."""

    def __init__(self, kube: Kube, built: Path, folder: Path) -> None:
        self._kube, self._built = kube, built
        self._program = Program(folder / "rollouts.log")
        docs = [
            doc
            for file in sorted((built / "manifests").glob("*.yaml"))
            for doc in yaml.safe_load_all(file.read_text())
            if doc
        ]
        self._crds = [doc for doc in docs if doc["kind"] == "CustomResourceDefinition"]

    def install(self) -> None:
        crds = json.dumps({"apiVersion": "v1", "kind": "List", "items": self._crds})
        kubectl(self._kube, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=crds)
        names = [f"crd/{crd['metadata']['name']}" for crd in self._crds]
        kubectl(self._kube, "wait", "--for=condition=Established", "--timeout=60s", *names)
        health = free_port()
        self._program.start(
            [
                str(self._built / "rollouts-controller"),
                f"--kubeconfig={self._kube.kubeconfig}",
                "--leader-elect=false",
                f"--healthzPort={health}",
                f"--metricsport={free_port()}",
            ],
            f"http://127.0.0.1:{health}/healthz",
        )

    def remove(self) -> None:
        for crd in self._crds[:]:
            assert "argoproj.io" in crd["metadata"]["name"]
        self._program.stop()
        delete_crds(self._kube, self._crds)


def rollout(
    namespace: str, template: Object, replicas: int, strategy: Object, **spec: Any
) -> Object:
    """Return a Rollout with this strategy, as a Deployment of the same template would be."""
    plain = deployment(namespace, template, replicas)
    return {
        **plain,
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "spec": {**plain["spec"], "strategy": strategy, **spec},
    }
