"""`make neighbours`: the operator on the local cluster, beside the real Kueue and Argo Rollouts.

Their processes run on this machine, with an administrator's kubeconfig. Without their programs the
tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import (
    cluster_lock,
    create_cache,
    kube,
    kubeconfig,
    namespace,
    operator,
    pytest_runtest_teardown,
    recorder,
    roll_out,
    run_folder,
    signals,
    start_serving,
    wait_for_condition,
)
from tests.cluster.kube import Kube
from tests.neighbours.argo import ArgoRollouts
from tests.neighbours.kueue import Kueue
from tests.neighbours.programs import LABEL, built

__all__ = [
    "cluster_lock",
    "create_cache",
    "kube",
    "kubeconfig",
    "namespace",
    "operator",
    "pytest_runtest_teardown",
    "recorder",
    "roll_out",
    "run_folder",
    "signals",
    "start_serving",
    "wait_for_condition",
]


def _folder_of(name: str) -> Path:
    folder = built(name)
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not built: make neighbours")
    return folder


@pytest.fixture(scope="session")
def kueue(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    """Kueue, for namespaces with the label LABEL."""
    kueue = Kueue(kube, _folder_of("KUEUE"), tmp_path_factory.mktemp("kueue"))
    try:
        kueue.install()
        yield kueue
    finally:
        kueue.remove()


@pytest.fixture
def create_queue(kube: Kube, namespace: str, kueue: Kueue) -> Iterator[Callable[[int], None]]:
    """Have Kueue manage the test's namespace, with so many GPUs: `create_queue(2)`."""

    def do(gpus: int) -> None:
        kube.patch("Namespace", "", namespace, {"metadata": {"labels": {LABEL: "true"}}})
        kueue.create_queue(namespace, gpus)

    yield do
    kueue.delete_queue(namespace)


@pytest.fixture(scope="session")
def argo(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoRollouts]:
    argo = ArgoRollouts(kube, _folder_of("ROLLOUTS"), tmp_path_factory.mktemp("argo"))
    try:
        argo.install()
        yield argo
    finally:
        argo.remove()
