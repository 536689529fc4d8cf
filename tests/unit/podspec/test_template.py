"""Which container of a template is the engine, and its GPUs."""

from __future__ import annotations

import pytest
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.podspec.template import count_gpus, engine_of, gpu_resources

from tests.builders.templates import Template, engine, template


def test_the_engine_is_the_only_container_that_asks_for_a_gpu() -> None:
    pod = template().container("proxy").container("vllm").gpus(8).container("logs")
    assert engine_of(pod, "")["name"] == "vllm"


def test_the_engine_is_the_container_that_the_cache_names_even_without_a_gpu() -> None:
    pod = template().container("cpu").container("vllm").gpus(8)
    assert engine_of(pod, "cpu")["name"] == "cpu"


def test_a_device_claim_identifies_the_engine_only_where_no_container_asks_for_a_gpu_resource() -> (
    None
):
    claims = {"claims": [{"name": "device"}]}
    assert (
        engine_of(template().container("proxy").container("vllm", resources=claims), "")["name"]
        == "vllm"
    )
    network = template().container("router", resources=claims).container("vllm").gpus(1)
    assert engine_of(network, "")["name"] == "vllm"


@pytest.mark.parametrize(
    ("pod", "named", "reason", "words"),
    [
        (
            template().container("a").container("b"),
            "",
            "EngineNotFound",
            ["no container asks for a GPU", "a, b"],
        ),
        (
            engine().container("proxy"),
            "gone",
            "EngineNotFound",
            ["spec.engineContainer", "gone", "vllm, proxy"],
        ),
        (
            engine().container("draft").gpus(1).container("proxy"),
            "",
            "EngineAmbiguous",
            ["vllm, draft ask"],
        ),
        (
            template()
            .container(resources={"claims": [{"name": "gpu"}]})
            .container("mesh", resources={"claims": [{"name": "nic"}]}),
            "",
            "EngineAmbiguous",
            ["vllm, mesh have a device claim", "spec.engineContainer"],
        ),
        (
            engine().gpus(0),
            "",
            "EngineNotFound",
            ["no container asks for a GPU", "add nvidia.com/gpu", "resources"],
        ),
        (
            engine().gpus("many"),
            "",
            "SourceInvalid",
            ["container vllm", "nvidia.com/gpu", "'many'"],
        ),
    ],
)
def test_an_engine_that_is_unknown_is_refused_with_the_containers_named(
    pod: Template, named: str, reason: str, words: list[str]
) -> None:
    with pytest.raises(Refused) as refused:
        engine_of(pod, named)
    assert refused.value.reason == reason
    for word in words:
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"limits": {"nvidia.com/gpu": 8}}, 8),
        ({"requests": {"nvidia.com/gpu": "8"}}, 8),
        ({"limits": {"nvidia.com/gpu": "8000m"}, "requests": {"nvidia.com/gpu": 8}}, 8),
        ({"limits": {"nvidia.com/gpu": "500m"}}, 1),
        ({"limits": {"nvidia.com/mig-1g.10gb": 2}}, 2),
        ({"limits": {"nvidia.com/gpu.shared": 1}}, 1),
        ({"limits": {"cpu": 8, "amd.com/gpu": 1, "nvidia.com/gpumem": 4000}}, 0),
        ({"claims": [{"name": "gpu", "request": "a"}, {"name": "gpu", "request": "b"}]}, 2),
        ({}, 0),
    ],
)
def test_gpus_are_counted_wherever_the_container_asks_for_them(
    resources: Object, count: int
) -> None:
    assert count_gpus({"name": "vllm", "resources": resources}) == count


def test_zero_gpus_are_none() -> None:
    assert gpu_resources({"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": "0"}}}) == {}
