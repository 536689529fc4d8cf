"""The real cluster: the chart installed once, a namespace for each test. Refuses a cluster that is not marked as a test cluster.

All workers share one operator. A test that ends, scales or removes it is marked `disturbs`: it runs alone among this folder's tests,
and before them, so that the tests that need no cluster fill the other workers meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.operation import Operation
from tests.cluster.peace import Peace
from tests.cluster.sealed import Sealed, seal
from tests.cluster.seen import Seen, held
from tests.cluster.workloads import autotune_cache, deployment, serving
from tests.cluster.workloads import engine as engine

ROOT = Path(__file__).parents[2]
BUILD = Path(
    os.environ.get(
        "PRETUNE_BUILD", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretune"
    )
)
HELM, KUBECTL = BUILD / "bin/helm", BUILD / "bin/kubectl"
SYSTEM = "pretune-system"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "disturbs: ends, scales or removes the operator that all tests share"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.cluster)
    items.sort(
        key=lambda item: item.get_closest_marker("disturbs") is None
    )  # stable: the rest keeps its order


_PEACE = Peace()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.get_closest_marker("disturbs") is None:
        _PEACE.end()


@pytest.fixture(autouse=True)
def peace(request: pytest.FixtureRequest) -> None:
    """Nobody disturbs the operator while another test runs. One that disturbs keeps the right for a next one that does: to wait
    for all workers costs more than most of these tests."""
    _PEACE.begin(alone=request.node.get_closest_marker("disturbs") is not None)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process at a time."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same one for all of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    path = os.environ.get("PRETUNE_TEST_KUBECONFIG", str(ROOT / ".local/kubeconfig"))
    assert Path(path).exists(), f"{path} is not there: run `make cluster`"
    return path


@pytest.fixture(scope="session")
def kube(kubeconfig: str) -> Kube:
    kube = Kube(kubeconfig)
    system = kube.get("Namespace", "", "kube-system") or {}
    marked = (system.get("metadata", {}).get("labels") or {}).get(
        "pretune.dev/test-cluster"
    ) == "true"
    assert marked, (
        f"{kube.host} is not marked as a test cluster (label pretune.dev/test-cluster=true on namespace kube-system):"
        " these tests make and delete things, so they do not touch it"
    )
    return kube


@pytest.fixture(scope="session")
def operator(kube: Kube, shared: Path) -> str:
    """The chart, installed from the checkout as a user would; its namespace. Once for all of xdist's workers."""
    with locked(shared / "operator.lock"):
        if not (shared / "operator.done").exists():
            _PEACE.begin(alone=True)  # another run of the tests may be under way
            sweep(kube)
            install(kube)
            Operation(kube, SYSTEM, BUILD / "bin").until_working()
            (shared / "operator.done").touch()
            _PEACE.end()
    return SYSTEM


def install(kube: Kube, *more: str) -> None:
    """helm upgrade --install, in a namespace under Pod Security restricted, and wait until the controller runs."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    if kube.get("Namespace", "", SYSTEM) is None:
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": SYSTEM, "labels": labels},
            }
        )
    began = time.time()
    subprocess.run(
        [
            *(
                str(HELM),
                "upgrade",
                "--install",
                "pretune",
                str(ROOT / "charts/pretune"),
                "--namespace",
                SYSTEM,
            ),
            *("--set", "image.repository=localhost/pretune/operator", "--set", "image.tag=dev"),
            *(
                "--set",
                "image.pullPolicy=Never",
                "--set",
                "webhook.enabled=true",
                "--set",
                "proof.readLogs=true",
            ),
            *("--set-string", f"controller.podAnnotations.image={_image()}"),
            *("--set-string", f"webhook.podAnnotations.image={_image()}"),
            *("--wait", "--timeout", "120s", *more),
        ],
        env={**os.environ, "KUBECONFIG": kube.kubeconfig},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    Operation.note_change(began)


def _image() -> str:
    """Changes with the operator's code: the tag does not, so the Deployment would keep its old pods."""
    files = sorted(
        [
            *(ROOT / "operator").rglob("*.py"),
            ROOT / "Dockerfile",
            ROOT / "requirements/operator.txt",
        ]
    )
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:12]


RUN = (
    os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
)  # the process that the person started
OF_RUN = "pretune.dev/test-run"  # label of a namespace of a test: "<host>-<RUN>"


def fresh(kube: Kube, name: str) -> str:
    """A new namespace of this process, of that name with a mark of it: several runs may use the cluster at a time, and of a run's workers
    each has its own module's fixtures."""
    name = f"{name}-{hashlib.sha256(f'{RUN} {os.getpid()} {name}'.encode()).hexdigest()[:6]}"
    labels = {OF_RUN: f"{socket.gethostname()[:40]}-{RUN}"}
    kube.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    )
    return name


def sweep(kube: Kube) -> None:
    """Delete what runs left here that were cut off."""
    for one in kube.list("Namespace", "", OF_RUN):
        host, _, run = one["metadata"]["labels"][OF_RUN].rpartition("-")
        if host == socket.gethostname()[:40] and not Path(f"/proc/{run}").exists():
            kube.delete("Namespace", "", one["metadata"]["name"])


@pytest.fixture
def namespace(kube: Kube, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, deleted behind it."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    short = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:4]
    name = fresh(kube, f"t-{words[:36].strip('-')}-{short}")
    yield name
    kube.delete("Namespace", "", name)


@pytest.fixture
def seen(kube: Kube, namespace: str, operator: str) -> Iterator[Seen]:
    """All that happens to the namespace's caches and consumers, from now on."""
    seen = Seen(kube, namespace)
    yield seen
    seen.close()


@pytest.fixture
def operation(kube: Kube, operator: str) -> Iterator[Operation]:
    """The operator, to be disturbed; as it was when the test is over."""
    operation = Operation(kube, operator, BUILD / "bin")
    yield operation
    operation.restored()


class Moments:
    """A folder that engines see: a tuning pod's tunes until `go(version)`, a serving pod's waits for nothing (workloads.serving)."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        for number in range(10):
            (folder / f"-v{number}").touch()

    def go(self, *versions: str) -> None:
        for one in versions:
            (Path(self.folder) / f"tuning-{one}").touch()


@pytest.fixture
def moments(tmp_path: Path) -> Iterator[Moments]:
    folder = tmp_path / "moments"
    folder.mkdir(mode=0o755)
    moments = Moments(folder)
    yield moments
    moments.go(*(f"v{number}" for number in range(10)))  # nothing has to be killed


@pytest.fixture(scope="session")
def sealed(kube: Kube, operator: str, shared: Path) -> Iterator[Sealed]:
    """Two caches with sealed bundles, for tests that neither change them nor bring other engines: made once, for all workers."""
    _PEACE.begin(alone=False)  # before the test's own turn comes
    notes, users = shared / "sealed.json", shared / "sealed.users"
    with locked(shared / "sealed.lock"):
        if not notes.exists():
            notes.write_text(json.dumps(seal(kube, fresh(kube, "t-sealed"))))
        users.write_text((users.read_text() if users.exists() else "") + "|")
        sealed = Sealed(**json.loads(notes.read_text()))
    yield sealed
    with locked(shared / "sealed.lock"):
        users.write_text(users.read_text()[1:])
        if not users.read_text():
            notes.unlink()
            kube.delete("Namespace", "", sealed.namespace)


Apply = Callable[..., Object]
Ready = Callable[..., Object]
Served = Callable[..., None]
Roll = Callable[..., float]
Waiting = Callable[..., str]


@pytest.fixture
def apply(kube: Kube, namespace: str, operator: str) -> Apply:
    """Create an AutotuneCache named demo: `apply(template=…, targets=…)`; `storage` is our own claim unless given."""

    def do(
        name: str = "demo",
        template: Object | None = None,
        source: Object | None = None,
        **spec: Any,
    ) -> Object:
        if template is not None:
            source = {"template": template}
        more = {} if source is None else {"source": source}
        return kube.create(autotune_cache(namespace, name, **spec, **more))

    return do


@pytest.fixture
def ready(kube: Kube, namespace: str) -> Callable[..., Object]:
    """Wait until Ready is True (or another `status`/`reason`); the cache as it then is."""

    def wait(
        name: str = "demo",
        kind: str = "Ready",
        status: str = "True",
        reason: str = "",
        seconds: float = 180,
    ) -> Object:
        def holds(cache: Object) -> bool:
            found = condition(cache, kind)
            return bool(found) and found["status"] == status and reason in ("", found["reason"])

        return kube.until(
            "AutotuneCache", namespace, name, holds, seconds, f"{kind}={status} {reason}".strip()
        )

    return wait


@pytest.fixture
def served(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> Callable[..., None]:
    """`served(replicas, …)`: a cache whose only source are labelled pods, and a Deployment whose first revision is sealed and ready.
    `cold`: its pods certainly started before the seal."""

    def do(
        replicas: int, spec: Object | None = None, cold: bool = False, **of_deployment: Any
    ) -> None:
        if not cold:
            moments.go("v1")
        apply(**(spec or {}))
        ready(kind="StorageReady")
        kube.create(
            deployment(namespace, serving("v1", moments=moments.folder), replicas, **of_deployment)
        )
        seen.until(lambda s: s.ready(replicas, "v1"), 180, "v1 ready")
        moments.go("v1")
        seen.until(lambda s: s.sealed(), 180, "v1 sealed")
        # What the webhook decides by: it hears of it as we do.
        seen.until(
            lambda s: bundles(s.cache())[0].get("serving"), 15, "v1's bundle is known to serve"
        )

    return do


@pytest.fixture
def waiting(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moments: Moments
) -> Callable[..., str]:
    """`waiting(…)`: a cache that holds always, and a Deployment of one pod that is held while its bundle is tuned; the pod's name.
    Half the cost of a rollout, where what serves meanwhile is of no interest. On a machine that is overloaded the lease may be old
    for a moment, and the webhook holds nobody then."""

    def do(**hold: Any) -> str:
        apply(hold={"when": "Always", **hold})
        ready(kind="StorageReady")
        for _ in range(5):
            Operation(kube, SYSTEM, BUILD / "bin").until_working()
            kube.create(deployment(namespace, serving("v1", moments=moments.folder)))
            seen.until(lambda s: len(s.pods("v1")) == 1, 60, "its pod")
            if "lease" not in seen.pods("v1")[0]["metadata"]["annotations"].get(
                "pretune.dev/reason", ""
            ):
                break
            kube.delete("Deployment", namespace, "serving")
            seen.until(lambda s: not s.pods("v1"), 60, "none of its pods")
        held(seen, 1, "v1")
        return str(seen.pods()[0]["metadata"]["name"])

    return do


@pytest.fixture
def roll(kube: Kube, namespace: str, moments: Moments) -> Roll:
    """`roll("v2")`: the Deployment gets another engine; when, on the records' clock."""

    def do(version: str, **of_engine: Any) -> float:
        began = time.monotonic()
        template = serving(version, moments=moments.folder, **of_engine)
        kube.patch(
            "Deployment", namespace, "serving", {"spec": {"template": {"spec": template["spec"]}}}
        )
        return began

    return do
