"""What vLLM wrote on another claim becomes a bundle, or is refused by name and tuned as usual."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.names import IMPORT

from tests.cluster.conftest import WaitForCondition
from tests.cluster.kube import Kube, Object, bundles, wait_for_event
from tests.cluster.test_bundles import wait_until_logged
from tests.cluster.workloads import PER_RANK, autotune_cache, bare_pod, engine_template

H200 = [{"name": "h200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}}]


def run_engine_on_claim(kube: Kube, namespace: str, template: Object, claim: str = "home") -> None:
    """Run an engine without pretune, whose home folder is a claim: it tunes, and writes as vLLM does."""
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": namespace, "name": claim},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "local-rwx",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    pod = bare_pod(
        namespace, template, "writer", restartPolicy="Never", terminationGracePeriodSeconds=0
    )
    pod["metadata"]["labels"] = {"app": "writer"}
    container = pod["spec"]["containers"][0]
    container |= {
        "resources": {},
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
    }
    container["env"] = [
        {"name": "HOME", "value": "/home/vllm"},
        *(e for e in container["env"] if e["name"] != "HOME"),
    ]
    container["volumeMounts"] = [{"name": "home", "mountPath": "/home/vllm"}]
    pod["spec"]["volumes"] = [{"name": "home", "persistentVolumeClaim": {"claimName": claim}}]
    kube.create(pod)
    kube.wait_until("Pod", namespace, "writer", _is_ready, 120, "ready")
    kube.delete("Pod", namespace, "writer")


def _is_ready(pod: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions") or ()
    )


def importing(namespace: str, template: Object, value: str, **spec: Any) -> Object:
    cache = autotune_cache(namespace, "demo", source={"template": template}, targets=H200, **spec)
    cache["metadata"]["annotations"] = {IMPORT: value}
    return cache


@pytest.mark.parametrize(
    ("of", "at", "layout", "path"),
    [
        ({}, "home", "Managed", ".cache/flashinfer/autotune/v2/"),
        (
            PER_RANK,
            "home/.cache/vllm",
            "PerRank",
            ".cache/vllm/flashinfer_autotune_cache/0.7.0.post1/90a/",
        ),
    ],
)
def test_vllms_default_folder_becomes_a_bundle_from_which_pods_start_warm(
    kube: Kube,
    namespace: str,
    wait_for_condition: WaitForCondition,
    operator: str,
    of: Any,
    at: str,
    layout: str,
    path: str,
) -> None:
    run_engine_on_claim(kube, namespace, engine_template(**of))
    kube.create(importing(namespace, engine_template(**of), at))
    [bundle] = bundles(wait_for_condition())
    assert (bundle["state"], bundle["layout"], bundle["entries"], bundle["attempts"]) == (
        "Sealed",
        layout,
        20,
        0,
    )
    assert bundle["import"]["from"] == at and bundle["import"]["reason"] == "Sealed"
    assert f"imported from {path}" in bundle["message"] and bundle["engineImage"]
    assert bundle["environment"]["gpu"] == "NVIDIA H200"
    wait_for_event(kube, namespace, "Sealed", "imported from")
    assert not kube.list("Pod", namespace, "pretune.dev/role=tuning"), "no GPU was used"
    kube.create(bare_pod(namespace, _opted_in(engine_template(**of)), "reader"))
    log = wait_until_logged(
        kube, namespace, "reader", "Preloaded" if layout == "Managed" else "Loaded"
    )
    assert "Preloaded 20/20" in log or "Loaded 20 configs" in log


def _opted_in(template: Object) -> Object:
    template["metadata"]["labels"]["pretune.dev/cache"] = "demo"
    return template


@pytest.mark.parametrize(
    "storage",
    [
        {
            "existingClaim": {"name": "home", "subPath": "pretune"}
        },  # the folder is on the claim that is to keep the bundle
        {"claim": {"storageClassName": "local-rwx-wait"}},  # bound by the import's own pod
    ],
)
def test_an_import_works_with_either_kind_of_claim(
    kube: Kube, namespace: str, wait_for_condition: WaitForCondition, operator: str, storage: Object
) -> None:
    run_engine_on_claim(kube, namespace, engine_template())
    kube.create(importing(namespace, engine_template(), "home", storage=storage))
    [bundle] = bundles(wait_for_condition())
    assert (bundle["attempts"], bundle["import"]["reason"]) == (0, "Sealed")


def test_a_folder_of_another_gpu_is_refused_by_name_and_the_bundle_is_tuned(
    kube: Kube, namespace: str, wait_for_condition: WaitForCondition, operator: str
) -> None:
    run_engine_on_claim(kube, namespace, engine_template(env={"ENGINE_GPU": "NVIDIA B200"}))
    kube.create(importing(namespace, engine_template(), "home"))
    words = "of GPU NVIDIA B200, and the target's nvidia.com/gpu.product is NVIDIA-H200"
    assert wait_for_event(kube, namespace, "ImportRefused", words)["type"] == "Warning"
    [bundle] = bundles(wait_for_condition())
    assert (bundle["state"], bundle["attempts"]) == ("Sealed", 1)
    assert bundle["import"]["reason"] == "ImportRefused" and words in bundle["import"]["message"]


def test_a_missing_claim_is_reported_and_without_the_annotation_the_bundle_is_tuned(
    kube: Kube, namespace: str, wait_for_condition: WaitForCondition, operator: str
) -> None:
    kube.create(importing(namespace, engine_template(), "nowhere/vllm"))
    cache = wait_for_condition(status="False", reason="Importing", seconds=60)
    not_found = 'persistentvolumeclaim "nowhere" not found'
    kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: not_found in bundles(c)[0]["message"],
        60,
        not_found,
    )
    assert bundles(cache)[0]["attempts"] == 0
    kube.patch("AutotuneCache", namespace, "demo", {"metadata": {"annotations": {IMPORT: None}}})
    [bundle] = bundles(wait_for_condition())
    assert bundle["attempts"] == 1 and "import" not in bundle
    assert not kube.list("Job", namespace, "pretune.dev/role=import")


def test_an_imported_bundle_is_proven_before_pods_get_it_if_the_spec_says_so(
    kube: Kube, namespace: str, wait_for_condition: WaitForCondition, operator: str
) -> None:
    """An import cannot know whether the key folder is this engine's; its proof can."""
    run_engine_on_claim(kube, namespace, engine_template(**PER_RANK))
    other = engine_template(**{**PER_RANK, "args": (*PER_RANK["args"], "--max-model-len", "2048")})
    kube.create(importing(namespace, other, "home", verify="BeforeRelease"))
    [bundle] = bundles(wait_for_condition(status="False", reason="NotReproducible"))
    assert (bundle["state"], bundle["attempts"], bundle["proofs"]) == ("Failed", 0, 1)
    assert bundle["newEntries"] == 20 and "folder added" in bundle["message"]
