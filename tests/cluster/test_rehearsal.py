"""vLLM 0.33.0's own warm-up and FlashInfer's own tuner write the bundle, and start warm from it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import ROOT, CreateCache
from tests.cluster.kube import Kube, Object, bundles
from tests.cluster.test_bundles import reader, wait_until_logged
from tests.cluster.workloads import engine_template

pytestmark = [pytest.mark.rehearsal, pytest.mark.long]
ENTRIES = 21  # one toy operation, for each of vLLM's token buckets
TP2 = ("--tensor-parallel-size", "2")


@pytest.fixture(scope="session")
def site_packages() -> str:
    """The folder with vLLM's own code on this machine, which is too large for an image."""
    where = subprocess.run(
        [ROOT / "images/rehearsal/install", "--where"], check=True, capture_output=True, text=True
    )
    return where.stdout.strip().splitlines()[-1]


@pytest.fixture
def rehearsal(site_packages: str) -> Callable[..., Object]:
    def template(gpus: int = 1, args: tuple[str, ...] = ()) -> Object:
        pod_template = engine_template(
            gpus=gpus,
            image="localhost/pretune/rehearsal:dev",
            command=["/opt/venv/bin/vllm"],
            resources={
                "requests": {"cpu": "20m"},
                "limits": {"nvidia.com/gpu": str(gpus), "memory": "4Gi"},
            },
            volumeMounts=[
                {
                    "name": "vllm",
                    "mountPath": "/opt/venv/lib/python3.11/site-packages",
                    "readOnly": True,
                },
                {"name": "tmp", "mountPath": "/tmp"},
            ],
        )
        pod_template["spec"]["containers"][0]["args"] = ["serve", "/opt/models/tiny-qwen3", *args]
        pod_template["spec"]["volumes"] = [
            {"name": "vllm", "hostPath": {"path": site_packages, "type": "Directory"}},
            {"name": "tmp", "emptyDir": {}},
        ]
        return pod_template

    return template


def test_vllms_own_store_is_sealed_and_a_read_only_pod_tunes_nothing(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: Callable[..., Object],
    rehearsal: Callable[..., Object],
) -> None:
    create_cache(template=rehearsal())
    [bundle] = bundles(wait_for_condition(seconds=300))
    assert (bundle["layout"], bundle["entries"]) == ("Managed", ENTRIES)
    assert bundle["environment"]["flashinfer"] == "0.7.2.post1"
    assert bundle["environment"]["gpu"] == "NVIDIA H200"
    kube.create(
        reader(
            namespace,
            "pretune-demo",
            f"{namespace}.demo/bundles/{bundle['id']}/tactics",
            rehearsal(),
        )
    )
    log = wait_until_logged(kube, namespace, "reader", "rehearsal: warm after", seconds=240)
    assert f"Preloaded {ENTRIES}/{ENTRIES} managed cache entries" in log
    assert "rehearsal: profiled 0" in log


def test_vllms_own_rank_files_are_sealed_and_a_copy_of_them_tunes_nothing(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: Callable[..., Object],
    rehearsal: Callable[..., Object],
) -> None:
    create_cache(template=rehearsal(2, TP2))
    [bundle] = bundles(wait_for_condition(seconds=400))
    assert (bundle["layout"], bundle["entries"]) == ("PerRank", ENTRIES)
    assert "2 rank files" in bundle["message"]
    pod: dict[str, Any] = reader(
        namespace,
        "pretune-demo",
        f"{namespace}.demo/bundles/{bundle['id']}/tactics",
        rehearsal(2, TP2),
    )
    log = wait_until_logged(
        kube, namespace, kube.create(pod)["metadata"]["name"], "rehearsal: warm after", seconds=300
    )
    assert log.count("[Autotuner]: Loaded") == 2
    assert "rehearsal: profiled 0" in log and "rank 1: profiled 0" in log
