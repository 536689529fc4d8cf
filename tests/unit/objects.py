"""Small builders of what the API server would answer: a cache, its Jobs and their pods. A test shows only what matters to it."""

from __future__ import annotations

import copy
from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.policy.model import Observed
from pretune.protocol import Report

NOW = 1_790_000_000.0
KEY = Key("inference", "qwen3")
SETTINGS = Settings(operator_image="pretune/operator:test", priority_class="pretune-tuning")
ENGINE = "vllm"
Object = Object


def template(**engine: Any) -> Object:
    container = {
        "name": ENGINE,
        "image": "vllm:1",
        "args": ["serve", "qwen3"],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    return {
        "metadata": {"labels": {"app": "qwen3"}},
        "spec": {"containers": [{**container, **engine}]},
    }


def cache(status: Object | None = None, **spec: Any) -> Object:
    """An AutotuneCache with our own claim and a template, unless said otherwise."""
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {
            "namespace": KEY.namespace,
            "name": KEY.name,
            "uid": "cache-uid",
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {"source": {"template": template()}, "storage": {"claim": {}}, **spec},
        **({"status": status} if status else {}),
    }


def claim(phase: str = "Bound", modes: tuple[str, ...] = ("ReadWriteMany",), **meta: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": KEY.namespace,
            "name": f"pretune-{KEY.name}",
            "uid": "claim-uid",
            "labels": {names.CACHE: KEY.name, names.ROLE: "claim"},
            "annotations": {names.WHEN_DELETED: "Delete", names.SIZE: "1Gi"},
            **meta,
        },
        "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": phase},
    }


def record(bundle: str, state: str = names.SEALED, **more: Any) -> Object:
    base = {
        "id": bundle,
        "fingerprint": "f" * 64,
        "target": bundle.partition("-")[2],
        "state": state,
        "attempts": 1,
    }
    return {
        **base,
        "reason": {"Sealed": "Sealed", "Retired": "Unwanted"}.get(state, "Tuning"),
        "message": "",
        **more,
    }


def seen(the_cache: Object | None = None, **more: Any) -> Observed:
    the_cache = the_cache or cache()
    base: dict[str, Any] = {
        "key": KEY,
        "settings": SETTINGS,
        "agent_name": "pretune-agent-0",
        "cache": the_cache,
        "source": (the_cache["spec"].get("source") or {}).get("template"),
        "claim": claim(),
        "agents": ({"kind": "ConfigMap", "metadata": {"name": "pretune-agent-0"}},),
    }
    return Observed(**{**base, **more})


def job(
    bundle: str,
    number: int = 1,
    *,
    role: str = names.TUNING,
    uid: str = "",
    over: str = "",
    **spec: Any,
) -> Object:
    """A Job of ours; `over` is Complete or Failed."""
    name = f"{KEY.name}-{role}-{bundle}-{number}"
    conditions = [{"type": over, "status": "True"}] if over else []
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": uid or f"uid-{name}",
            "creationTimestamp": format_timestamp(NOW - 60),
            "labels": {
                names.CACHE: KEY.name,
                names.ROLE: role,
                names.BUNDLE: bundle,
                names.ATTEMPT: str(number),
            },
            "annotations": {names.FINGERPRINT: "f" * 64},
            "ownerReferences": [{"uid": "cache-uid", "controller": True}],
        },
        "spec": spec,
        "status": {"conditions": conditions},
    }


class Pod:
    """A tuning pod, as the kubelet tells it: `Pod("b").running("vllm").ended("pretune-check", report=…).object`."""

    def __init__(
        self, bundle: str = "b-default", number: int = 1, of: Object | None = None
    ) -> None:
        self.object: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": KEY.namespace,
                "name": "pod",
                "uid": "pod-uid",
                "creationTimestamp": format_timestamp(NOW - 50),
                "labels": {
                    names.CACHE: KEY.name,
                    names.ROLE: names.TUNING,
                    names.BUNDLE: bundle,
                    names.ATTEMPT: str(number),
                },
                "ownerReferences": [
                    {"uid": (of or job(bundle, number))["metadata"]["uid"], "controller": True}
                ],
            },
            "spec": {
                "nodeName": "node0",
                "activeDeadlineSeconds": 5400,
                "initContainers": [
                    {"name": names.CHECK_CONTAINER},
                    {"name": "download"},
                    {"name": ENGINE},
                ],
                "containers": [{"name": names.SEAL_CONTAINER}],
            },
            "status": {
                "phase": "Pending",
                "conditions": [],
                "initContainerStatuses": [],
                "containerStatuses": [],
            },
        }

    def but(self, **more: Any) -> Pod:
        """A copy with other metadata (`deletionTimestamp=…`), `nodeName` or `status={…}`."""
        other = copy.deepcopy(self)
        for name, value in more.items():
            if name == "status":
                other.object["status"].update(value)
            elif name == "nodeName":
                other.object["spec"]["nodeName"] = value
            else:
                other.object["metadata"][name] = value
        return other

    def condition(self, kind: str, status: str = "True", **more: str) -> Pod:
        other = copy.deepcopy(self)
        other.object["status"]["conditions"].append({"type": kind, "status": status, **more})
        return other

    def container(self, name: str, state: Object, **more: Any) -> Pod:
        other = copy.deepcopy(self)
        main = any(one["name"] == name for one in other.object["spec"]["containers"])
        part = other.object["status"]["containerStatuses" if main else "initContainerStatuses"]
        part[:] = [one for one in part if one["name"] != name] + [
            {"name": name, "state": state, **more}
        ]
        return other

    def running(self, name: str, **more: Any) -> Pod:
        return self.container(name, {"running": {"startedAt": format_timestamp(NOW - 30)}}, **more)

    def waiting(self, name: str, reason: str, message: str = "", **more: Any) -> Pod:
        return self.container(name, {"waiting": {"reason": reason, "message": message}}, **more)

    def ended(
        self, name: str, code: int = 0, report: Report | None = None, message: str = "", **more: Any
    ) -> Pod:
        words = report.dump() if report else message
        end = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "finishedAt": format_timestamp(NOW - 5),
        }
        return self.container(name, {"terminated": {**end, "message": words}}, **more)


def sealed_report(bundle: str, by: str = "seal") -> Report:
    return Report(
        by=by,
        reason="Sealed",
        message="20 entries",
        id=bundle,
        layout="Managed",
        entries=20,
        digest="sha256:1",
        at=format_timestamp(NOW - 6),
    )
