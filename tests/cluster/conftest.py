"""The real cluster: the chart installed once, a namespace for each test. Refuses a cluster that is not marked as a test cluster."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import Kube, Object, condition

ROOT = Path(__file__).parents[2]
BUILD = Path(
    os.environ.get("PRETUNE_BUILD", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretune")
)
HELM = BUILD / "bin/helm"
SYSTEM = "pretune-system"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    path = os.environ.get("PRETUNE_TEST_KUBECONFIG", str(ROOT / ".local/kubeconfig"))
    assert Path(path).exists(), f"{path} is not there: run `make cluster`"
    return path


@pytest.fixture(scope="session")
def kube(kubeconfig: str) -> Kube:
    kube = Kube(kubeconfig)
    system = kube.get("Namespace", "", "kube-system") or {}
    marked = (system.get("metadata", {}).get("labels") or {}).get("pretune.dev/test-cluster") == "true"
    assert marked, (
        f"{kube.host} is not marked as a test cluster (label pretune.dev/test-cluster=true on namespace kube-system):"
        " these tests make and delete things, so they do not touch it"
    )
    return kube


@pytest.fixture(scope="session")
def operator(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The chart, installed from the checkout as a user would; its namespace. Once for all of xdist's workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with (shared / "operator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "operator.done").exists():
            install(kube)
            (shared / "operator.done").touch()
    return SYSTEM


def install(kube: Kube, *more: str) -> None:
    """helm upgrade --install, in a namespace under Pod Security restricted, and wait until the controller runs."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    if kube.get("Namespace", "", SYSTEM) is None:
        kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}})
    subprocess.run(
        [
            *(str(HELM), "upgrade", "--install", "pretune", str(ROOT / "charts/pretune"), "--namespace", SYSTEM),
            *("--set", "image.repository=localhost/pretune/operator", "--set", "image.tag=dev"),
            *("--set", "image.pullPolicy=Never", "--set-string", f"controller.podAnnotations.image={_image()}"),
            *("--wait", "--timeout", "120s", *more),
        ],
        env={**os.environ, "KUBECONFIG": kube.kubeconfig},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _image() -> str:
    """Changes with the operator's code: the tag does not, so the Deployment would keep its old pods."""
    files = sorted([*(ROOT / "operator").rglob("*.py"), ROOT / "Dockerfile", ROOT / "requirements/operator.txt"])
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:12]


@pytest.fixture
def namespace(kube: Kube, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, deleted behind it."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    name = f"t-{words[:40].strip('-')}-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:6]}"
    if kube.get("Namespace", "", name) is not None:  # of a run that was cut off
        kube.delete("Namespace", "", name)
        kube.until_gone("Namespace", "", name)
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube.delete("Namespace", "", name)


Apply = Callable[..., Object]


@pytest.fixture
def apply(kube: Kube, namespace: str, operator: str) -> Apply:
    """Create an AutotuneCache named demo: `apply(template=…, targets=…)`; `storage` is our own claim unless given."""

    def do(name: str = "demo", template: Object | None = None, source: Object | None = None, **spec: Any) -> Object:
        if template is not None:
            source = {"template": template}
        body = {"storage": {"claim": {"storageClassName": "local-rwx"}}, **spec}
        if source is not None:
            body["source"] = source
        return kube.create(
            {
                "apiVersion": "pretune.dev/v1alpha1",
                "kind": "AutotuneCache",
                "metadata": {"namespace": namespace, "name": name},
                "spec": body,
            }
        )

    return do


def engine(
    release: str = "0.33.0",
    gpus: int = 1,
    env: dict[str, str] | None = None,
    args: tuple[str, ...] = (),
    **container: Any,
) -> Object:
    """A pod template with the stand-in engine, uid 1000, fit for Pod Security restricted."""
    settings = {"ENGINE_SECONDS_PER_ENTRY": "0.01", "ENGINE_START_SECONDS": "0.1", **(env or {})}
    return {
        "metadata": {"labels": {"app": "demo"}},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "vllm",
                    "image": "localhost/pretune/engine:dev",
                    "imagePullPolicy": "Never",
                    "command": [f"/opt/engines/{release}/bin/vllm"],
                    "args": ["serve", "demo", *args],
                    "env": [{"name": name, "value": value} for name, value in settings.items()],
                    "resources": {
                        "requests": {"cpu": "20m", "memory": "64Mi"},
                        "limits": {"nvidia.com/gpu": str(gpus), "memory": "256Mi"},
                    },
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    **container,
                }
            ],
        },
    }


@pytest.fixture
def ready(kube: Kube, namespace: str) -> Callable[..., Object]:
    """Wait until Ready is True (or another `status`/`reason`); the cache as it then is."""

    def wait(
        name: str = "demo", kind: str = "Ready", status: str = "True", reason: str = "", seconds: float = 90
    ) -> Object:
        def holds(cache: Object) -> bool:
            found = condition(cache, kind)
            return bool(found) and found["status"] == status and reason in ("", found["reason"])

        return kube.until("AutotuneCache", namespace, name, holds, seconds, f"{kind}={status} {reason}".strip())

    return wait
