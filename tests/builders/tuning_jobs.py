"""Jobs of attempts and proofs, and their parts: `engine_in(tuned(engine()))`."""

from __future__ import annotations

import re
from typing import Any

from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.config import Settings
from pretune.manifests.job import build_proof_job, build_tuning_job
from pretune.protocol import Task

from tests.builders.caches import cache
from tests.builders.constants import AGENT, DEFAULT, KEY, SETTINGS


def tuned(
    pod: Object, target: Target = DEFAULT, settings: Settings = SETTINGS, **fields: Any
) -> Object:
    """Return the Job that tunes a template whose engine is its container "vllm"."""
    return build_tuning_job(
        KEY, cache(engineContainer="vllm", **fields), pod, target, 1, settings, AGENT
    )


def proof(pod: Object, on_claim: bool = False, **fields: Any) -> Object:
    """Return the Job that proves the bundle of a template whose engine is its container "vllm"."""
    asked = cache(engineContainer="vllm", **fields)
    return build_proof_job(KEY, asked, pod, DEFAULT, 1, SETTINGS, AGENT, on_claim=on_claim)


def pod_of(job: Object) -> Object:
    return job["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def engine_in(job: Object) -> Object:
    return pod_of(job)["initContainers"][-1]  # type: ignore[no-any-return]


def check_in(job: Object) -> Object:
    return pod_of(job)["initContainers"][0]  # type: ignore[no-any-return]


def seal_in(job: Object) -> Object:
    (only,) = pod_of(job)["containers"]
    return only  # type: ignore[no-any-return]


def expanded(value: str) -> str:
    """Return an env value as the kubelet hands it over.

    A task refers to no variable of the pod, so that a `$(` that is left would be a lost one.
    """
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", value), value
    return value.replace("$$", "$")


def task_of(container: Object) -> Task:
    return Task.load(
        expanded(
            next(
                variable["value"]
                for variable in container["env"]
                if variable["name"] == "PRETUNE_TASK"
            )
        )
    )


def env_of(container: Object) -> dict[str, Any]:
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom"))
        for variable in container.get("env", [])
    }


def volume(job: Object, name: str) -> Object:
    return next(volume for volume in pod_of(job)["volumes"] if volume["name"] == name)  # type: ignore[no-any-return]


def web(port: Any, **more: Any) -> Object:
    return {"httpGet": {"path": "/health", "port": port, **more}}
