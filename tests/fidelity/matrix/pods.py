"""What a user writes: a pod template whose engine is the rehearsal, and the pods of each cell. What differs between cells and is not in
the fingerprint comes from annotations, as it comes from a node or a volume in production: the GPU product, the model's operations."""

from __future__ import annotations

import copy

from tests.cluster.kube import Object

OPERATION, MORE = "toy_gemm", "toy_gemm,toy_moe"
H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
ENGINE = "vllm"
_SEEN = {"REHEARSAL_OPERATIONS": "fidelity.test/operations", "REHEARSAL_GPU": "fidelity.test/gpu"}
_PAUSE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); signal.pause()"


def template(image: str, site_packages: str, **env: str) -> Object:
    """`site_packages`: a folder of the node, with vLLM in it."""
    references = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{one}']"}}}
        for name, one in _SEEN.items()
    ]
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    engine = {
        "name": ENGINE,
        "image": image,
        "imagePullPolicy": "Never",  # of the cell whose image moves: IfNotPresent
        "command": ["/opt/venv/bin/vllm"],
        "args": ["serve", "/opt/models/tiny-qwen3"],
        "env": [*references, *({"name": name, "value": value} for name, value in env.items())],
        "resources": {
            "requests": {"cpu": "20m", "memory": "64Mi"},
            "limits": {"nvidia.com/gpu": "1", "memory": "4Gi"},
        },
        "securityContext": safe,
        "volumeMounts": [
            {
                "name": "vllm",
                "mountPath": "/opt/venv/lib/python3.11/site-packages",
                "readOnly": True,
            },
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": 8000},
            "periodSeconds": 2,
            "timeoutSeconds": 10,
            "failureThreshold": 300,
        },
    }
    # The kubelet takes a pod's folders away once nothing runs in it: what an engine left that ended is looked at before.
    keeper = {
        "name": "keeper",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["/opt/venv/bin/python3", "-ISc", _PAUSE],
        "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": safe,
    }
    return {
        "metadata": {
            "annotations": {_SEEN["REHEARSAL_OPERATIONS"]: OPERATION, _SEEN["REHEARSAL_GPU"]: H200}
        },
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [engine, keeper],
            "volumes": [
                {"name": "vllm", "hostPath": {"path": site_packages}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def source(made: Object) -> Object:
    """The same as spec.source.template: the API server takes any pod template there."""
    return {"template": copy.deepcopy(made)}


def consumer(
    made: Object,
    namespace: str,
    name: str,
    cache: str,
    operations: str = OPERATION,
    gpu: str = H200,
) -> Object:
    """A pod of the template; it opted in where `cache` is given."""
    seen = {_SEEN["REHEARSAL_OPERATIONS"]: operations, _SEEN["REHEARSAL_GPU"]: gpu}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"pretune.dev/cache": cache} if cache else {},
            "annotations": seen,
        },
        "spec": copy.deepcopy(made["spec"]),
    }


def with_words(made: Object, *words: str) -> Object:
    """The template with these arguments more."""
    other = copy.deepcopy(made)
    other["spec"]["containers"][0]["args"] += words
    return other


def on_two_gpus(made: Object) -> Object:
    """Two ranks."""
    other = with_words(made, "--tensor-parallel-size", "2")
    other["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "2"
    return other


def as_uid(pod: Object, uid: int) -> Object:
    pod["spec"]["securityContext"]["runAsUser"] = uid
    return pod


def pulled_if_not_present(pod: Object) -> Object:
    """As most people have it: what a tag leads to may be other content tomorrow."""
    pod["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    return pod


def by_hand(pod: Object, claim: str, folder: str) -> Object:
    """The claim mounted read-only by the user, and the variable set to a bundle in it."""
    engine = pod["spec"]["containers"][0]
    engine["env"].append({"name": OVERRIDE, "value": f"/bundles/{folder}"})
    engine["volumeMounts"].append({"name": "bundles", "mountPath": "/bundles", "readOnly": True})
    volume = {"name": "bundles", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    pod["spec"]["volumes"].append(volume)
    return pod
