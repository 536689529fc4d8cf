"""The objects of the demo, and what the engines' own logs say of their tuning."""

from __future__ import annotations

import re
from datetime import datetime

from tools.demo.cluster import Object

CACHE = "qwen3-fp4"
WITHOUT, WITH = "qwen3-without", "qwen3-with"
REPLICAS = 3
ENTRIES, SECONDS_PER_ENTRY, START = 40, 0.5, 2
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
_PROCESS = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - INFO - .*?Autotuning process (starts|ends)"
)

# Prints a digest of the tactics that a pod serves with: of the folder where the variable leads, else of the engine's own in its home.
DIGEST = f"""
import hashlib, os, pathlib
given = os.environ.get("{OVERRIDE}")
root = pathlib.Path(given or pathlib.Path.home() / ".cache")
files = sorted(one for one in root.rglob("*.json") if one.is_file() and (given or "autotune" in str(one)))
assert files, "no tactics below %s" % root
print(hashlib.sha256(b"".join(str(one.relative_to(root)).encode() + one.read_bytes() for one in files)).hexdigest()[:12])
"""


def template(image: str, pull: str, release: str, words: list[str]) -> Object:
    """A pod template as somebody has it today. `release`: the stand-in's; "" where the image alone says it."""
    env = {
        "HOME": "/tmp",
        "ENGINE_ENTRIES": str(ENTRIES),
        "ENGINE_SECONDS_PER_ENTRY": str(SECONDS_PER_ENTRY),
        "ENGINE_START_SECONDS": str(START),
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
                    "imagePullPolicy": pull,
                    "command": [vllm, "serve", "Qwen/Qwen3-8B-FP4", *words],
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
    """One new pod at a time beside the old ones. Opting in is one label on the pod template."""
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
    """The least that works: the labelled pods are the source."""
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": namespace, "name": CACHE},
        "spec": {"storage": {"claim": {}}},
    }


def tuned(log: str) -> float:
    """Seconds between the engine's own lines that its autotuning starts and ends; 0.0 where it never tuned."""
    seen = [
        (datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f"), what) for at, what in _PROCESS.findall(log)
    ]
    starts, ends = ([at for at, what in seen if what == wanted] for wanted in ("starts", "ends"))
    return sum((end - start).total_seconds() for start, end in zip(starts, ends, strict=False))
