"""What serving pods' own logs say, told by the controller: warm, in part, or tuned again with what differs (proof.readLogs)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cluster.conftest import BUILD, Apply, Ready
from tests.cluster.kube import Kube, Object, bundles, event
from tests.cluster.operation import CONTROLLER, Operation
from tests.cluster.test_consumers_status import metric
from tests.cluster.test_rehearsal import TP2, rehearsal, site_packages
from tests.cluster.workloads import PER_RANK, deployment, serving

__all__ = ["rehearsal", "site_packages"]


def told(kube: Kube, namespace: str, name: str, seconds: float = 60, **numbers: int) -> Object:
    """The cache, once its status counts so."""

    def holds(cache: Object) -> bool:
        found = (cache.get("status") or {}).get("consumers") or {}
        return {one: found.get(one) for one in numbers} == numbers

    return kube.until("AutotuneCache", namespace, name, holds, seconds, f"consumers {numbers}")


def test_pods_that_start_warm_are_counted_as_their_logs_say_and_what_they_saved_is_told(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, operator: str
) -> None:
    template = serving(
        "v1", env={"ENGINE_SECONDS_PER_ENTRY": "0.2"}, **PER_RANK
    )  # a cold start takes seconds
    apply(template=template, verify="BeforeRelease")
    [record] = bundles(ready())
    kube.create(deployment(namespace, template, 2))
    told(kube, namespace, "demo", warm=2, partial=0, tuned=0, seeded=2)
    saved = 2 * record["gpus"] * (record["coldSeconds"] - record["warmSeconds"])
    cache = kube.until("AutotuneCache", namespace, "demo",
                       lambda one: one["status"].get("gpuSecondsSaved") == saved, 60, f"{saved} GPU-seconds saved")  # fmt: skip
    assert saved >= 8 and cache["status"]["savedUntil"]
    [controller] = Operation(kube, operator, BUILD / "bin").metrics(CONTROLLER).values()
    assert metric(controller, "pretune_starts_total", namespace=namespace, result="warm") == 2
    assert metric(controller, "pretune_consumers", namespace=namespace, state="warm") == 2
    assert metric(controller, "pretune_gpu_seconds_saved", namespace=namespace) == saved
    assert not [one for one in kube.list("Event", namespace) if one["reason"] == "TunedAgain"]


def test_pods_that_tune_again_are_counted_and_what_differs_is_named(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    """Three engines that are not in the serving pod what they were in the tuning pod, which has another role and no serving labels."""
    key = serving(
        cache="key", **{**PER_RANK, "args": (*PER_RANK["args"], "--revision", "r$(ROLE)")}
    )
    gpu = serving(cache="gpu", env={"ENGINE_GPU": "NVIDIA $(ROLE)H200"}, **PER_RANK)
    part = serving(cache="part")
    part["metadata"]["labels"]["entries"] = "30"
    entries = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['entries']"}}
    part["spec"]["containers"][0]["env"].append({"name": "ENGINE_ENTRIES", "valueFrom": entries})
    templates = {"key": key, "gpu": gpu, "part": part}
    for name, template in templates.items():
        apply(name, template=template)
    for name, template in templates.items():
        ready(name)
        kube.create(deployment(namespace, template, name=name))
    told(kube, namespace, "key", warm=0, partial=0, tuned=1, seeded=1)
    told(kube, namespace, "gpu", warm=0, partial=0, tuned=1, seeded=1)
    told(kube, namespace, "part", warm=0, partial=1, tuned=0, seeded=1)
    said = {one: str(event(kube, namespace, "TunedAgain", words)["message"])
            for one, words in (("key", "key folder"), ("gpu", "GPU differs"), ("part", "not in the bundle"))}  # fmt: skip
    assert "leaves open: env ROLE (fieldRef)" in said["key"]
    assert "the bundle has NVIDIA tuningH200, the pod NVIDIA H200" in said["gpu"]
    assert "10 entries at most" in said["part"]
    for name, message in said.items():
        [bundle] = bundles(kube.get("AutotuneCache", namespace, name) or {})
        assert re.match(rf"bundle {bundle['id']}: pod {name}-\w+-\w+ had it and tuned ", message)


def consuming(template: Object, cache: str, **env: str) -> Object:
    """The template, opted in, ready when its engine is, with variables that may name ROLE."""
    template["metadata"]["labels"]["pretune.dev/cache"] = cache
    container = template["spec"]["containers"][0]
    role = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['pretune.dev/role']"}}
    named = [{"name": name, "value": value} for name, value in env.items()]
    container["env"] = [{"name": "ROLE", "valueFrom": role}, *container["env"], *named]
    probe = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 10}
    container["readinessProbe"] = {"httpGet": {"path": "/health", "port": 8000}, **probe}
    return template


@pytest.mark.rehearsal
def test_vllms_own_logs_tell_a_warm_start_and_the_gpu_that_differs(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, rehearsal: Callable[..., Object]
) -> None:
    templates = {
        "store": consuming(rehearsal(), "store"),
        "ranks": consuming(rehearsal(2, TP2), "ranks", REHEARSAL_GPU="NVIDIA $(ROLE)H200"),
    }
    for name, template in templates.items():
        apply(name, template=template)
    for name, template in templates.items():
        ready(name, seconds=400)
        kube.create(deployment(namespace, template, name=name))
    told(kube, namespace, "store", 300, warm=1, partial=0, tuned=0, seeded=1)
    told(kube, namespace, "ranks", 300, warm=0, partial=0, tuned=1, seeded=1)
    message = str(event(kube, namespace, "TunedAgain", "GPU differs")["message"])
    assert message.endswith("GPU differs: the bundle has NVIDIA tuningH200, the pod NVIDIA H200")
