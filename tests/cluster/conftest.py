"""The real cluster: the chart is installed once, and each test has its own namespace.

Refuses a cluster that is not marked as a test cluster. All workers share one operator. A test that
ends, scales or removes it is marked `disturbs`: it runs alone among the tests of this folder, and
before them, while the other workers run tests that need no cluster.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
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

from tests.cluster.cluster_lock import ClusterLock
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.operator_control import OperatorControl
from tests.cluster.recorder import Recorder, wait_until_held
from tests.cluster.sealed_caches import SealedCaches, seal
from tests.cluster.workloads import autotune_cache, deployment, serving_template

ROOT = Path(__file__).parents[2]
BUILD = Path(
    os.environ.get(
        "PRETUNE_BUILD", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretune"
    )
)
HELM, KUBECTL = BUILD / "bin/helm", BUILD / "bin/kubectl"
SYSTEM = "pretune-system"


_LOCK = ClusterLock()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.get_closest_marker("disturbs") is None:
        _LOCK.release()


@pytest.fixture(autouse=True)
def cluster_lock(request: pytest.FixtureRequest) -> None:
    """No test disturbs the operator while another one runs.

    A test that disturbs keeps the lock for the next one that does: waiting for all workers takes
    longer than most of these tests.
    """
    _LOCK.acquire(alone=request.node.get_closest_marker("disturbs") is not None)


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Let one process at a time run the body."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, for all of xdist's workers."""
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
        f"{kube.host} is not marked as a test cluster"
        " (label pretune.dev/test-cluster=true on namespace kube-system):"
        " these tests create and delete objects, and refuse"
    )
    return kube


@pytest.fixture(scope="session")
def operator(kube: Kube, run_folder: Path) -> str:
    """The operator's namespace, with the chart from the checkout; once for all of xdist's workers."""
    with file_lock(run_folder / "operator.lock"):
        if not (run_folder / "operator.done").exists():
            _LOCK.acquire(alone=True)  # another run of the tests may be under way
            delete_leftover_namespaces(kube)
            install(kube)
            OperatorControl(kube, SYSTEM, BUILD / "bin").wait_until_working()
            (run_folder / "operator.done").touch()
            _LOCK.release()
    return SYSTEM


def install(kube: Kube, *more: str) -> None:
    """Install or upgrade the chart, in a namespace with Pod Security restricted, and wait for it."""
    assert not _LOCK.is_shared, "mark this test `disturbs`: others run beside it"
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
    OperatorControl.record_change(began)


def _image() -> str:
    """Return a hash of the operator's code: the tag stays the same, and new pods are needed."""
    files = sorted(
        [
            *(ROOT / "operator").rglob("*.py"),
            ROOT / "Dockerfile",
            ROOT / "requirements/operator.txt",
        ]
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


RUN_PID = (
    os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
)  # the process that the person started
RUN_LABEL = "pretune.dev/test-run"  # label of a namespace of a test: "<host>-<RUN>"


_NUMBERS = itertools.count()


def create_namespace(kube: Kube, name: str) -> str:
    """Create a namespace of this process, and return its name, which has a hash at its end.

    Several runs may use the cluster at the same time, and each worker has its own fixtures.
    """
    unique = f"{RUN_PID} {os.getpid()} {next(_NUMBERS)} {name}"  # an earlier one may still be there
    name = f"{name}-{hashlib.sha256(unique.encode()).hexdigest()[:6]}"
    labels = {RUN_LABEL: f"{socket.gethostname()[:40]}-{RUN_PID}"}
    kube.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    )
    return name


def delete_leftover_namespaces(kube: Kube) -> None:
    """Delete the namespaces of runs that did not end normally."""
    for leftover in kube.list("Namespace", "", RUN_LABEL):
        host, _, run = leftover["metadata"]["labels"][RUN_LABEL].rpartition("-")
        if host == socket.gethostname()[:40] and not Path(f"/proc/{run}").exists():
            kube.delete("Namespace", "", leftover["metadata"]["name"])


@pytest.fixture
def namespace(kube: Kube, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for the test, which is deleted after it."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    short = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:4]
    name = create_namespace(kube, f"t-{words[:36].strip('-')}-{short}")
    yield name
    kube.delete("Namespace", "", name)


@pytest.fixture
def recorder(kube: Kube, namespace: str, operator: str) -> Iterator[Recorder]:
    """Records everything that happens to the namespace's caches and consumers from now on."""
    recorder = Recorder(kube, namespace)
    yield recorder
    recorder.close()


@pytest.fixture
def operator_control(kube: Kube, operator: str) -> Iterator[OperatorControl]:
    """Ends, scales and removes the operator; it is restored after the test."""
    operator_control = OperatorControl(kube, operator, BUILD / "bin")
    yield operator_control
    operator_control.restore()


class TuningSignals:
    """A folder that engines mount: an engine in a tuning pod tunes until `finish_tuning(version)`.

    An engine in a serving pod does not wait (workloads.serving_template).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        for number in range(10):
            (folder / f"-v{number}").touch()

    def finish_tuning(self, *versions: str) -> None:
        for version in versions:
            (Path(self.folder) / f"tuning-{version}").touch()


@pytest.fixture
def signals(tmp_path: Path) -> Iterator[TuningSignals]:
    folder = tmp_path / "signals"
    folder.mkdir(mode=0o755)
    signals = TuningSignals(folder)
    yield signals
    signals.finish_tuning(
        *(f"v{number}" for number in range(10))
    )  # so that no engine has to be killed


@pytest.fixture(scope="session")
def sealed_caches(kube: Kube, operator: str, run_folder: Path) -> Iterator[SealedCaches]:
    """Two caches with sealed bundles, created once for all workers.

    For tests that do not change them and use no other engines.
    """
    _LOCK.acquire(alone=False)  # before the test itself acquires it
    notes, users = run_folder / "sealed.json", run_folder / "sealed.users"
    with file_lock(run_folder / "sealed.lock"):
        if not notes.exists():
            notes.write_text(json.dumps(seal(kube, create_namespace(kube, "t-sealed"))))
        users.write_text((users.read_text() if users.exists() else "") + "|")
        sealed_caches = SealedCaches(**json.loads(notes.read_text()))
    yield sealed_caches
    with file_lock(run_folder / "sealed.lock"):
        users.write_text(users.read_text()[1:])
        if not users.read_text():
            notes.unlink()
            kube.delete("Namespace", "", sealed_caches.namespace)


CreateCache = Callable[..., Object]
WaitForCondition = Callable[..., Object]
StartServing = Callable[..., None]
RollOut = Callable[..., float]
StartHeldPod = Callable[..., str]


@pytest.fixture
def create_cache(kube: Kube, namespace: str, operator: str) -> CreateCache:
    """Create a cache named demo: `create_cache(template=…, targets=…)`; `storage` is our own claim."""

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
def wait_for_condition(kube: Kube, namespace: str) -> Callable[..., Object]:
    """Wait until Ready is True (or another status or reason), and return the cache."""

    def wait(
        name: str = "demo",
        kind: str = "Ready",
        status: str = "True",
        reason: str = "",
        seconds: float = 180,
    ) -> Object:
        def has_condition(cache: Object) -> bool:
            found = condition(cache, kind)
            return bool(found) and found["status"] == status and reason in ("", found["reason"])

        return kube.wait_until(
            "AutotuneCache",
            namespace,
            name,
            has_condition,
            seconds,
            f"{kind}={status} {reason}".strip(),
        )

    return wait


@pytest.fixture
def start_serving(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> Callable[..., None]:
    """Create a cache without source, and a Deployment whose first revision is sealed and ready.

    `cold`: its pods start before the bundle is sealed.
    """

    def do(
        replicas: int, spec: Object | None = None, cold: bool = False, **of_deployment: Any
    ) -> None:
        if not cold:
            signals.finish_tuning("v1")
        create_cache(**(spec or {}))
        wait_for_condition(kind="StorageReady")
        kube.create(
            deployment(
                namespace, serving_template("v1", signals=signals.folder), replicas, **of_deployment
            )
        )
        recorder.wait_until(lambda s: s.are_ready(replicas, "v1"), 180, "v1 ready")
        signals.finish_tuning("v1")
        recorder.wait_until(lambda s: s.has_sealed(), 180, "v1 sealed")
        # The webhook decides by this, and sees it at the same time.
        recorder.wait_until(
            lambda s: bundles(s.cache())[0].get("serving"), 15, "v1's bundle is known to serve"
        )

    return do


@pytest.fixture
def start_held_pod(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    signals: TuningSignals,
) -> Callable[..., str]:
    """Create a cache that always holds, and a Deployment with one held pod; return the pod's name.

    This costs half as much as a rollout, where the pods that serve do not matter. On an overloaded
    machine the lease may be too old for a moment, and then the webhook holds no pod.
    """

    def do(**hold: Any) -> str:
        create_cache(hold={"when": "Always", **hold})
        wait_for_condition(kind="StorageReady")
        for _ in range(5):
            OperatorControl(kube, SYSTEM, BUILD / "bin").wait_until_working()
            kube.create(deployment(namespace, serving_template("v1", signals=signals.folder)))
            recorder.wait_until(lambda s: len(s.pods("v1")) == 1, 60, "its pod")
            annotations = recorder.pods("v1")[0]["metadata"]["annotations"]
            if "renewed its lease" not in annotations.get("pretune.dev/reason", ""):
                break
            kube.delete("Deployment", namespace, "serving")
            recorder.wait_until(lambda s: not s.pods("v1"), 60, "none of its pods")
        wait_until_held(recorder, 1, "v1")
        return str(recorder.pods()[0]["metadata"]["name"])

    return do


@pytest.fixture
def roll_out(kube: Kube, namespace: str, signals: TuningSignals) -> RollOut:
    """Give the Deployment another engine: `roll_out("v2")`. Return when, on the recorder's clock."""

    def do(version: str, **of_engine: Any) -> float:
        began = time.monotonic()
        template = serving_template(version, signals=signals.folder, **of_engine)
        kube.patch(
            "Deployment", namespace, "serving", {"spec": {"template": {"spec": template["spec"]}}}
        )
        return began

    return do
