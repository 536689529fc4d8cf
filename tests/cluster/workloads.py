"""What users write: caches, pod templates with the stand-in engine, and workloads."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.kube import Object

SIGNALS_MOUNT = "/signals"  # where a tuning engine waits for a file (conftest.TuningSignals)
TP2 = ("--tensor-parallel-size", "2")
# An engine with one file of tactics for each rank.
PER_RANK: dict[str, Any] = {"release": "0.32.0", "gpus": 2, "args": TP2}


def autotune_cache(namespace: str, name: str = "demo", **spec: Any) -> Object:
    """Return a cache with our own claim, unless `storage` names another one."""
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"storage": {"claim": {"storageClassName": "local-rwx"}}, **spec},
    }


def engine_template(
    release: str = "0.33.0",
    gpus: int = 1,
    env: dict[str, str] | None = None,
    args: tuple[str, ...] = (),
    **container: Any,
) -> Object:
    """Return a pod template with the stand-in engine, uid 1000, for Pod Security restricted."""
    settings = {"ENGINE_SECONDS_PER_ENTRY": "0.01", "ENGINE_START_SECONDS": "0.1", **(env or {})}
    return {
        "metadata": {"labels": {"app": "demo"}},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "vllm",
                    "image": "localhost/pretune/engine:dev",
                    "imagePullPolicy": "Never",
                    "command": [f"/opt/engines/{release}/bin/vllm"],
                    "args": ["serve", "demo", *args],
                    "env": [{"name": name, "value": value} for name, value in settings.items()],
                    "resources": {
                        "requests": {"cpu": "5m", "memory": "32Mi"},
                        "limits": {"nvidia.com/gpu": str(gpus), "memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    **container,
                }
            ],
        },
    }


def serving_template(
    version: str = "", cache: str = "demo", signals: str = "", probe: bool = True, **of_engine: Any
) -> Object:
    """Return a pod template with the cache's label. Another `version` is another fingerprint.

    With `signals` (a folder of this machine) it tunes until conftest.TuningSignals.finish_tuning().
    In its env, `$(ROLE)` is "tuning" in a tuning pod and "" in a serving one. HOME is where an
    engine without a bundle keeps its tactics.
    """
    env = {"HOME": "/tmp", "VERSION": version, **of_engine.pop("env", {})}
    if signals:
        env["ENGINE_TUNES_UNTIL"] = f"{SIGNALS_MOUNT}/$(ROLE)-{version}"
    template = engine_template(
        env={name: value for name, value in env.items() if value}, **of_engine
    )
    template["metadata"]["labels"]["pretune.dev/cache"] = cache
    template["spec"]["terminationGracePeriodSeconds"] = 1
    container = template["spec"]["containers"][0]
    role = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['pretune.dev/role']"}}
    container["env"].insert(0, {"name": "ROLE", "valueFrom": role})
    if probe:
        # Patient: on a busy machine an engine may be slow.
        patient = {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 10}
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": 8000}, **patient}
    if signals:
        container["volumeMounts"] = [
            {"name": "signals", "mountPath": SIGNALS_MOUNT, "readOnly": True}
        ]
        template["spec"]["volumes"] = [
            {"name": "signals", "hostPath": {"path": signals, "type": "Directory"}}
        ]
    return template


def with_annotations(template: Object, **annotations: str) -> Object:
    """Return the template with annotations pretune.dev/<name>."""
    annotated = copy.deepcopy(template)
    annotated["metadata"]["annotations"] = {
        f"pretune.dev/{name}": value for name, value in annotations.items()
    }
    return annotated


def deployment(
    namespace: str, template: Object, replicas: int = 1, name: str = "serving", surge: str = "25%", down: str = "25%",
    recreate: bool = False, **spec: Any,
) -> Object:  # fmt: skip
    rolling = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": _amount(surge), "maxUnavailable": _amount(down)},
    }
    strategy = {"type": "Recreate"} if recreate else rolling
    return _workload(
        "Deployment", namespace, name, template, replicas=replicas, strategy=strategy, **spec
    )


def replicaset(
    namespace: str, template: Object, replicas: int = 0, name: str = "serving"
) -> Object:
    return _workload("ReplicaSet", namespace, name, template, replicas=replicas)


def statefulset(
    namespace: str, template: Object, replicas: int = 1, name: str = "serving", **spec: Any
) -> Object:
    return _workload(
        "StatefulSet", namespace, name, template, replicas=replicas, serviceName=name, **spec
    )


def daemonset(namespace: str, template: Object, name: str = "serving", **spec: Any) -> Object:
    return _workload("DaemonSet", namespace, name, template, **spec)


def job(namespace: str, template: Object, name: str = "serving", **spec: Any) -> Object:
    job_template = copy.deepcopy(template)
    job_template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"backoffLimit": 0, "template": job_template, **spec},
    }


def bare_pod(namespace: str, template: Object, name: str = "serving", **spec: Any) -> Object:
    """Return a pod without an owner: nothing recreates it."""
    meta = {**copy.deepcopy(template["metadata"]), "namespace": namespace, "name": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {**copy.deepcopy(template["spec"]), **spec},
    }


def _workload(kind: str, namespace: str, name: str, template: Object, **spec: Any) -> Object:
    """Return a workload with its own selector: a DaemonSet removes other pods that it selects."""
    template, selector = copy.deepcopy(template), {"workload": name}
    template["metadata"]["labels"].update(selector)
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"matchLabels": selector}, "template": template, **spec},
    }


def _amount(text: str) -> int | str:
    return text if text.endswith("%") else int(text)
