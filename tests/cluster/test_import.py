"""What vLLM wrote by itself on another claim becomes a bundle, or is refused by name; then it is tuned as usual."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.names import IMPORT

from tests.cluster.conftest import Ready
from tests.cluster.kube import Kube, Object, bundles, event
from tests.cluster.test_bundles import until_logged
from tests.cluster.workloads import PER_RANK, autotune_cache, bare, engine

H200 = [{"name": "h200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}}]


def wrote(kube: Kube, namespace: str, template: Object, claim: str = "home") -> None:
    """An engine without pretune, whose home folder is a claim: it tunes, and leaves what vLLM leaves there."""
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
    pod = bare(
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
    kube.until("Pod", namespace, "writer", _is_ready, 120, "ready")
    kube.delete("Pod", namespace, "writer")


def _is_ready(pod: Object) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True"
        for one in pod["status"].get("conditions") or ()
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
def test_what_vllm_left_under_its_default_root_is_a_bundle_that_pods_start_warm_from(
    kube: Kube,
    namespace: str,
    ready: Ready,
    operator: str,
    of: Any,
    at: str,
    layout: str,
    path: str,
) -> None:
    wrote(kube, namespace, engine(**of))
    kube.create(importing(namespace, engine(**of), at))
    [bundle] = bundles(ready())
    assert (bundle["state"], bundle["layout"], bundle["entries"], bundle["attempts"]) == (
        "Sealed",
        layout,
        20,
        0,
    )
    assert bundle["import"]["from"] == at and bundle["import"]["reason"] == "Sealed"
    assert f"imported from {path}" in bundle["message"] and bundle["engineImage"]
    assert bundle["environment"]["gpu"] == "NVIDIA H200"
    event(kube, namespace, "Sealed", "imported from")
    assert not kube.list("Pod", namespace, "pretune.dev/role=tuning"), "no GPU was used"
    kube.create(bare(namespace, _opted_in(engine(**of)), "reader"))
    log = until_logged(kube, namespace, "reader", "Preloaded" if layout == "Managed" else "Loaded")
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
def test_whichever_claim_keeps_the_bundle(
    kube: Kube, namespace: str, ready: Ready, operator: str, storage: Object
) -> None:
    wrote(kube, namespace, engine())
    kube.create(importing(namespace, engine(), "home", storage=storage))
    [bundle] = bundles(ready())
    assert (bundle["attempts"], bundle["import"]["reason"]) == (0, "Sealed")


def test_another_gpus_folder_is_refused_by_name_and_the_bundle_tuned_as_usual(
    kube: Kube, namespace: str, ready: Ready, operator: str
) -> None:
    wrote(kube, namespace, engine(env={"ENGINE_GPU": "NVIDIA B200"}))
    kube.create(importing(namespace, engine(), "home"))
    words = "of GPU NVIDIA B200, and the target's nvidia.com/gpu.product is NVIDIA-H200"
    assert event(kube, namespace, "ImportRefused", words)["type"] == "Warning"
    [bundle] = bundles(ready())
    assert (bundle["state"], bundle["attempts"]) == ("Sealed", 1)
    assert bundle["import"]["reason"] == "ImportRefused" and words in bundle["import"]["message"]


def test_a_claim_that_is_not_there_is_said_and_without_the_annotation_it_is_tuned(
    kube: Kube, namespace: str, ready: Ready, operator: str
) -> None:
    kube.create(importing(namespace, engine(), "nowhere/vllm"))
    cache = ready(status="False", reason="Importing", seconds=60)
    said = 'persistentvolumeclaim "nowhere" not found'
    kube.until(
        "AutotuneCache", namespace, "demo", lambda c: said in bundles(c)[0]["message"], 60, said
    )
    assert bundles(cache)[0]["attempts"] == 0
    kube.patch("AutotuneCache", namespace, "demo", {"metadata": {"annotations": {IMPORT: None}}})
    [bundle] = bundles(ready())
    assert bundle["attempts"] == 1 and "import" not in bundle
    assert not kube.list("Job", namespace, "pretune.dev/role=import")


def test_an_imported_bundle_is_proven_before_a_pod_gets_it_where_that_is_asked_for(
    kube: Kube, namespace: str, ready: Ready, operator: str
) -> None:
    """What an import cannot know is whether the folder's key is this engine's: its proof does."""
    wrote(kube, namespace, engine(**PER_RANK))
    other = engine(**{**PER_RANK, "args": (*PER_RANK["args"], "--max-model-len", "2048")})
    kube.create(importing(namespace, other, "home", verify="BeforeRelease"))
    [bundle] = bundles(ready(status="False", reason="NotReproducible"))
    assert (bundle["state"], bundle["attempts"], bundle["proofs"]) == ("Failed", 0, 1)
    assert bundle["newEntries"] == 20 and "folder added" in bundle["message"]
