"""Start logs (proof.readLogs): pods that started warm, partly warm, or tuned, and what differs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cluster.conftest import BUILD, CreateCache, WaitForCondition
from tests.cluster.kube import Kube, Object, bundles, wait_for_event
from tests.cluster.operator_control import CONTROLLER, OperatorControl
from tests.cluster.test_consumers_status import metric
from tests.cluster.test_rehearsal import TP2, rehearsal, site_packages
from tests.cluster.workloads import PER_RANK, deployment, serving_template

__all__ = ["rehearsal", "site_packages"]


def wait_for_counts(
    kube: Kube, namespace: str, name: str, seconds: float = 60, **numbers: int
) -> Object:
    """Return the cache once its status has these numbers of consumers."""

    def holds(cache: Object) -> bool:
        found = (cache.get("status") or {}).get("consumers") or {}
        return {name: found.get(name) for name in numbers} == numbers

    return kube.wait_until("AutotuneCache", namespace, name, holds, seconds, f"consumers {numbers}")


def test_warm_starts_are_counted_from_logs_with_what_they_saved(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    operator: str,
) -> None:
    template = serving_template(
        "v1", env={"ENGINE_SECONDS_PER_ENTRY": "1"}, **PER_RANK
    )  # a start that takes as long as a cold one saves nothing, and a busy machine delays a warm one
    create_cache(template=template, verify="BeforeRelease")
    [record] = bundles(wait_for_condition())
    kube.create(deployment(namespace, template, 2))
    wait_for_counts(kube, namespace, "demo", warm=2, partial=0, tuned=0, seeded=2)
    saved = 2 * record["gpus"] * (record["coldSeconds"] - record["warmSeconds"])
    cache = kube.wait_until("AutotuneCache", namespace, "demo",
                       lambda cache: cache["status"].get("gpuSecondsSaved") == saved, 120, f"{saved} GPU-seconds saved")  # fmt: skip
    assert saved >= 8 and cache["status"]["savedUntil"]
    [controller] = OperatorControl(kube, operator, BUILD / "bin").metrics(CONTROLLER).values()
    assert metric(controller, "pretune_starts_total", namespace=namespace, result="warm") == 2
    assert metric(controller, "pretune_consumers", namespace=namespace, state="warm") == 2
    assert metric(controller, "pretune_gpu_seconds_saved", namespace=namespace) == saved
    assert not [event for event in kube.list("Event", namespace) if event["reason"] == "TunedAgain"]


def test_pods_that_tune_again_are_counted_and_the_difference_is_named(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    """Three engines that differ between serving pod and tuning pod, by what their variables refer to."""
    key = serving_template(
        cache="key", **{**PER_RANK, "args": (*PER_RANK["args"], "--revision", "r$(ROLE)")}
    )
    gpu = serving_template(cache="gpu", env={"ENGINE_GPU": "NVIDIA $(ROLE)H200"}, **PER_RANK)
    part = serving_template(cache="part")
    part["metadata"]["labels"]["entries"] = "30"
    entries = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['entries']"}}
    part["spec"]["containers"][0]["env"].append({"name": "ENGINE_ENTRIES", "valueFrom": entries})
    templates = {"key": key, "gpu": gpu, "part": part}
    for name, template in templates.items():
        create_cache(name, template=template)
    for name, template in templates.items():
        wait_for_condition(name)
        kube.create(deployment(namespace, template, name=name))
    wait_for_counts(kube, namespace, "key", warm=0, partial=0, tuned=1, seeded=1)
    wait_for_counts(kube, namespace, "gpu", warm=0, partial=0, tuned=1, seeded=1)
    wait_for_counts(kube, namespace, "part", warm=0, partial=1, tuned=0, seeded=1)
    messages = {name: str(wait_for_event(kube, namespace, "TunedAgain", words)["message"])
            for name, words in (("key", "key folder"), ("gpu", "GPU differs"), ("part", "not in the bundle"))}  # fmt: skip
    assert "leaves open: env ROLE (fieldRef)" in messages["key"]
    assert "the bundle has NVIDIA tuningH200, the pod NVIDIA H200" in messages["gpu"]
    assert "10 entries at most" in messages["part"]
    for name, message in messages.items():
        [bundle] = bundles(kube.get("AutotuneCache", namespace, name) or {})
        assert re.match(rf"bundle {bundle['id']}: pod {name}-\w+-\w+ had it and tuned ", message)


def consuming(template: Object, cache: str, **env: str) -> Object:
    """Return the template with the cache's label and a probe; its variables may refer to ROLE."""
    template["metadata"]["labels"]["pretune.dev/cache"] = cache
    container = template["spec"]["containers"][0]
    role = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['pretune.dev/role']"}}
    named = [{"name": name, "value": value} for name, value in env.items()]
    container["env"] = [{"name": "ROLE", "valueFrom": role}, *container["env"], *named]
    probe = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 10}
    container["readinessProbe"] = {"httpGet": {"path": "/health", "port": 8000}, **probe}
    return template


@pytest.mark.rehearsal
def test_vllms_own_logs_show_a_warm_start_and_another_gpu(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    rehearsal: Callable[..., Object],
) -> None:
    templates = {
        "store": consuming(rehearsal(), "store"),
        "ranks": consuming(rehearsal(2, TP2), "ranks", REHEARSAL_GPU="NVIDIA $(ROLE)H200"),
    }
    for name, template in templates.items():
        create_cache(name, template=template)
    for name, template in templates.items():
        wait_for_condition(name, seconds=400)
        kube.create(deployment(namespace, template, name=name))
    wait_for_counts(kube, namespace, "store", 300, warm=1, partial=0, tuned=0, seeded=1)
    wait_for_counts(kube, namespace, "ranks", 300, warm=0, partial=0, tuned=1, seeded=1)
    message = str(wait_for_event(kube, namespace, "TunedAgain", "GPU differs")["message"])
    assert message.endswith("GPU differs: the bundle has NVIDIA tuningH200, the pod NVIDIA H200")
