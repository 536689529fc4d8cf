"""How many GPUs an engine may use: several where that is unknown, never one."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.types import Object
from pretune.podspec.devices import UNKNOWN_GPUS, count_used_gpus
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import engine_of

from tests.builders.caches import spec
from tests.builders.constants import DEFAULT
from tests.builders.templates import Template, engine, template


def with_claims(*claims: Object, **templates: str) -> Template:
    """An engine with these device claims; templates: by the pod's name of the claim."""
    sources = [{"name": name, "resourceClaimTemplateName": of} for name, of in templates.items()]
    return template().container(resources={"claims": list(claims)}).pod(resourceClaims=sources)


def claim_template(*requests: Object) -> Object:
    return {"spec": {"spec": {"devices": {"requests": list(requests)}}}}


def gpus(count: Any = None, name: str = "gpu", **more: Any) -> Object:
    counted = {} if count is None else {"count": count}
    return {"name": name, "exactly": {"deviceClassName": "gpu.nvidia.com", **counted, **more}}


NIC = {"name": "nic", "exactly": {"deviceClassName": "rdma.example.com", "count": 4}}
EIGHT = {"eight": claim_template(gpus(8))}
GPU = {"name": "gpu"}

TABLE: list[tuple[str, Template, dict[str, Object], int]] = [
    ("by resource", engine().gpus(4), {}, 4),
    ("one, and no words", engine().args("serve", "q"), {}, 1),
    ("by a resource that names a product", engine().gpus(0).gpus(4, "nvidia.com/h100"), {}, 4),
    (
        "by it, and the words cannot be read",
        engine().gpus(0).gpus(4, "nvidia.com/h100").args("serve", "-tp", "$(TP)"),
        {},
        4,
    ),
    ("memory is no number of GPUs", engine().gpus(0).gpus(4000, "nvidia.com/gpumem"), {}, 1),
    ("what is no quantity is none", engine().gpus(0).gpus("four", "nvidia.com/h100"), {}, 1),
    ("a network card is none", engine().gpus(4, "nvidia.com/hostdev"), {}, 1),
    ("the words say more", engine().args("serve", "q", "-tp", "4", "-pp=2"), {}, 8),
    ("the words say less", engine().gpus(8).args("serve", "q", "-tp", "4"), {}, 8),
    ("the words cannot be read", engine().gpus(2).args("serve", "-tp", "$(TP)"), {}, 2),
    ("one claim of eight", with_claims(GPU, gpu="eight"), EIGHT, 8),
    ("its count is one by default", with_claims(GPU, gpu="t"), {"t": claim_template(gpus())}, 1),
    (
        "the form of v1beta1",
        with_claims(GPU, gpu="t"),
        {"t": claim_template({"name": "g", "deviceClassName": "gpu.nvidia.com", "count": 4})},
        4,
    ),
    (
        "all that a node has",
        with_claims(GPU, gpu="t"),
        {"t": claim_template(gpus(allocationMode="All"))},
        UNKNOWN_GPUS,
    ),
    ("a template that was not read", with_claims(GPU, gpu="t"), {}, UNKNOWN_GPUS),
    (
        "and the words say more",
        with_claims(GPU, gpu="t").args("serve", "q", "--tensor-parallel-size=8"),
        {},
        8,
    ),
    (
        "one of several requests",
        with_claims({"name": "gpu", "request": "b"}, gpu="t"),
        {"t": claim_template(gpus(2, "a"), gpus(4, "b"))},
        4,
    ),
    ("all requests", with_claims(GPU, gpu="t"), {"t": claim_template(gpus(2, "a"), gpus(4))}, 6),
    (
        "the first that is available",
        with_claims(GPU, gpu="t"),
        {
            "t": claim_template(
                {
                    "name": "g",
                    "firstAvailable": [
                        {"name": "big", "deviceClassName": "gpu.nvidia.com", "count": 2},
                        {"name": "small", "deviceClassName": "gpu.nvidia.com", "count": 4},
                    ],
                }
            )
        },
        4,
    ),
    (
        "network cards are no GPUs",
        with_claims(GPU, {"name": "nic"}, gpu="eight", nic="nic"),
        {**EIGHT, "nic": claim_template(NIC)},
        8,
    ),
    ("no count at all", with_claims(GPU, gpu="t"), {"t": claim_template(gpus("many"))}, 2),
    ("no object at all", with_claims(GPU, gpu="t"), {"t": {"spec": None}}, 2),
]


@pytest.mark.parametrize(
    ("pod", "claims", "count"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_gpus_of_an_engine(pod: Template, claims: dict[str, Object], count: int) -> None:
    assert count_used_gpus(pod, engine_of(pod, "vllm"), claims) == count


@pytest.mark.parametrize(
    "device_class",
    ["dra.net", "dranet", "sriovnetwork.openshift.io", "rdma-nic", "efa.k8s.aws", "roce",
     "compute-domain-default-channel.nvidia.com", "mlnx-rdma", "nic.example.com", "RDMA", "nic0",
     "gpudirect-rdma", "net.example.net"],
)  # fmt: skip
def test_an_engine_that_claims_network_cards_only_has_no_gpu(device_class: str) -> None:
    pod = with_claims(GPU, gpu="t")
    request = {"name": "a", "exactly": {"deviceClassName": device_class}}
    refused = find_refusal(pod, spec(), DEFAULT, None, {"t": claim_template(request)})
    assert refused is not None and refused.reason == "EngineNotFound"
    assert "none of the devices that vllm claims is a GPU" in refused.message
    assert find_refusal(pod, spec(), DEFAULT) is None  # unknown: the webhook reads no templates


@pytest.mark.parametrize(
    "device_class",
    ["gpu.nvidia.com", "mig.nvidia.com", "gpu.example.com", "large", "h200", "gpu.ibm.com",
     "gpu-rdma", "h200-ib", "h100.network", "netapp-h100", "gpus.ib-pool", "ibm.example.com",
     "netapp", "large.example.net"],
)  # fmt: skip
def test_any_other_device_may_be_a_gpu(device_class: str) -> None:
    request = {"name": "a", "exactly": {"deviceClassName": device_class, "count": 3}}
    pod = with_claims(GPU, gpu="t")
    claims = {"t": claim_template(request)}
    assert count_used_gpus(pod, engine_of(pod, ""), claims) == 3
    assert find_refusal(pod, spec(), DEFAULT, None, claims) is None
