"""The demo's objects, and what an engine's log says about its tuning."""

from __future__ import annotations

import re
from datetime import datetime

from tools.demo.cluster import Object

CACHE = "qwen3-fp4"
WITHOUT, WITH = "qwen3-without", "qwen3-with"
REPLICAS = 3
ENTRIES, SECONDS_PER_ENTRY, START_SECONDS = 40, 0.5, 2
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
_PROCESS = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - INFO - .*?Autotuning process (starts|ends)"
)

# Prints a digest of the tactics that a pod serves with: those in the override's folder, or in the
# engine's own cache.
DIGEST_PROGRAM = f"""
import hashlib, os, pathlib
override = os.environ.get("{OVERRIDE}")
root = pathlib.Path(override or pathlib.Path.home() / ".cache")
files = sorted(path for path in root.rglob("*.json") if path.is_file())
files = [path for path in files if override or "autotune" in str(path)]
assert files, "no tactics below %s" % root
content = b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
print(hashlib.sha256(content).hexdigest()[:12])
"""


def template(image: str, pull_policy: str, release: str, arguments: list[str]) -> Object:
    """Return a pod template of an inference service.

    `release` is the one that the stand-in plays; with "" the image decides.
    """
    env = {
        "HOME": "/tmp",
        "ENGINE_ENTRIES": str(ENTRIES),
        "ENGINE_SECONDS_PER_ENTRY": str(SECONDS_PER_ENTRY),
        "ENGINE_START_SECONDS": str(START_SECONDS),
    }
    vllm = f"/opt/engines/{release}/bin/vllm" if release else "vllm"
    return {
        "metadata": {"labels": {}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "vllm",
                    "image": image,
                    "imagePullPolicy": pull_policy,
                    "command": [vllm, "serve", "Qwen/Qwen3-8B-FP4", *arguments],
                    "env": [{"name": name, "value": value} for name, value in env.items()],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    "readinessProbe": {
                        "httpGet": {"path": "/health", "port": 8000},
                        "periodSeconds": 1,
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def deployment(namespace: str, name: str, pods: Object, opted_in: bool) -> Object:
    """Return a Deployment that replaces one pod at a time.

    Opting in is one label on the pod template.
    """
    labels = {"app": name, **({"pretune.dev/cache": CACHE} if opted_in else {})}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "replicas": REPLICAS,
            "progressDeadlineSeconds": 3700,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {"matchLabels": {"app": name}},
            "template": {**pods, "metadata": {"labels": labels}},
        },
    }


def cache(namespace: str) -> Object:
    """Return the smallest cache that works: the labelled pods are its source."""
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": namespace, "name": CACHE},
        "spec": {"storage": {"claim": {}}},
    }


def tuning_seconds(log: str) -> float:
    """Return the seconds between an engine's log lines that its autotuning starts and ends.

    Returns 0.0 if it never tuned.
    """
    lines = [
        (datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f"), event)
        for at, event in _PROCESS.findall(log)
    ]
    starts, ends = ([at for at, event in lines if event == kind] for kind in ("starts", "ends"))
    return sum((end - start).total_seconds() for start, end in zip(starts, ends, strict=False))
