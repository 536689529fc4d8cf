"""What of a template cannot be tuned as a copy, and is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.podspec.preflight import find_refusal

from tests.builders.caches import spec
from tests.builders.constants import DEFAULT
from tests.builders.strategies import law, templates
from tests.builders.templates import Template, engine, requiring, template, term


def deployment() -> Object:
    return {
        "source": {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "qwen3"}}
    }


HERE = "Deployment qwen3: spec.template"
REFUSED: list[tuple[Template, str, str]] = [
    (engine().labels(leaderworkerset_sigs="x"), "", ""),
    (
        engine().labels(**{"leaderworkerset.sigs.k8s.io__name": "q"}),
        "MultiPodEngine",
        ".metadata.labels: leaderworkerset.sigs.k8s.io/name:",
    ),
    (
        engine().labels(**{"ray.io__cluster": "q"}),
        "MultiPodEngine",
        ".metadata.labels: ray.io/cluster:",
    ),
    (
        engine().labels(**{"jobset.sigs.k8s.io__jobset-name": "q"}),
        "MultiPodEngine",
        ".metadata.labels: jobset.sigs.k8s.io/jobset-name:",
    ),
    (
        engine().labels(**{"grove.io__podclique": "q"}),
        "MultiPodEngine",
        ".metadata.labels: grove.io/podclique:",
    ),
    (
        engine().args("serve", "q", "--nnodes=2"),
        "MultiPodEngine",
        ".spec.containers[0].args: --nnodes 2:",
    ),
    (
        engine().args("serve", "q", "--nnodes", "2"),
        "MultiPodEngine",
        ".spec.containers[0].args: --nnodes 2:",
    ),
    (engine().args("serve", "q", "--nnodes", "1"), "", ""),
    (
        engine(command=["vllm", "serve", "q", "--headless"]),
        "MultiPodEngine",
        ".spec.containers[0].command: --headless:",
    ),
    (
        engine(command=["sh", "-c", "vllm serve q --headless"]),
        "MultiPodEngine",
        ".spec.containers[0].command: --headless:",
    ),
    (
        engine().args("serve", "--host=$(LWS_LEADER_ADDRESS)"),
        "MultiPodEngine",
        ".spec.containers[0].args: LWS_LEADER_ADDRESS:",
    ),
    (
        engine().env(MASTER="$(LWS_LEADER_ADDRESS)"),
        "MultiPodEngine",
        ".spec.containers[0].env[0]: LWS_LEADER_ADDRESS:",
    ),
    (
        engine().env(DYN_NAMESPACE="prod"),
        "SelfRegistering",
        ".spec.containers[0].env: DYN_NAMESPACE:",
    ),
    (
        engine(command=["python3", "-m", "dynamo.vllm"]),
        "SelfRegistering",
        ".spec.containers[0].command: -m dynamo.vllm:",
    ),
    (
        engine(command=["vllm", "serve", "q", "--load-format=mx"]),
        "SelfRegistering",
        ".spec.containers[0].command: --load-format mx:",
    ),
    (
        engine().args("serve", "q", "--load_format", "modelexpress"),
        "SelfRegistering",
        ".spec.containers[0].args: --load-format modelexpress:",
    ),
    (engine().args("serve", "q", "--load-format", "auto"), "", ""),
    (
        engine().env(MX_SERVER_ADDRESS="mx:8001"),
        "SelfRegistering",
        ".spec.containers[0].env: MX_SERVER_ADDRESS:",
    ),
    (
        engine().env(LMCACHE_NIXL_ROLE="sender"),
        "SelfRegistering",
        ".spec.containers[0].env: LMCACHE_NIXL_ROLE:",
    ),
    (
        engine().env(LMCACHE_ENABLE_NIXL="True"),
        "SelfRegistering",
        ".spec.containers[0].env: LMCACHE_ENABLE_NIXL:",
    ),
    (engine().env(LMCACHE_ENABLE_NIXL="False", LMCACHE_CHUNK_SIZE="256"), "", ""),
    (
        engine().annotations(**{"dual-pods.llm-d.ai__server-patch": "x"}),
        "SelfRegistering",
        ".metadata.annotations: dual-pods.llm-d.ai/server-patch:",
    ),
    (engine().annotations(**{"scheduling.k8s.io__group-name": "g"}), "", ""),
    (
        engine().gpus(0).gpus(1, "nvidia.com/gpu.shared"),
        "SharedGPU",
        ".spec.containers[0].resources: nvidia.com/gpu.shared:",
    ),
    (
        engine().env(NVIDIA_VISIBLE_DEVICES="all"),
        "NodeGPUs",
        ".spec.containers[0].env[0]: NVIDIA_VISIBLE_DEVICES: all:",
    ),
    (engine().env(NVIDIA_VISIBLE_DEVICES="void", CUDA_VISIBLE_DEVICES="0"), "", ""),
    (engine().pod(hostNetwork=True), "", ""),
    (engine().pod(hostNetwork=True).env(NCCL_SOCKET_IFNAME="^docker0,lo"), "", ""),
    (engine().pod(hostNetwork=True).env(NCCL_SOCKET_IFNAME="eth", GLOO_SOCKET_IFNAME="lo"), "", ""),
    (engine().env(NCCL_SOCKET_IFNAME="ens3"), "", ""),
    (engine().pod(hostNetwork=True).env(GLOO_SOCKET_IFNAME="", NCCL_SOCKET_IFNAME=""), "", ""),
    (
        engine()
        .pod(hostNetwork=True)
        .env(GLOO_SOCKET_IFNAME={"fieldRef": {"fieldPath": "metadata.annotations['nic']"}}),
        "HostNetwork",
        ".spec.containers[0].env[0]: GLOO_SOCKET_IFNAME:",
    ),
    (
        engine().pod(hostNetwork=True).env(A="1", NCCL_SOCKET_IFNAME="=ens3"),
        "HostNetwork",
        ".spec.containers[0].env[1]: NCCL_SOCKET_IFNAME:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(GLOO_SOCKET_IFNAME={"configMapKeyRef": {"name": "nics", "key": "first"}}),
        "HostNetwork",
        ".spec.containers[0].env[0]: GLOO_SOCKET_IFNAME:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(VLLM_HOST_IP={"fieldRef": {"fieldPath": "status.hostIP"}}),
        "HostNetwork",
        ".spec.containers[0].env[0]: VLLM_HOST_IP:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(VLLM_HOST_IP={"fieldRef": {"fieldPath": "status.podIP"}}),
        "",
        "",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(HOST_IP={"fieldRef": {"fieldPath": "status.hostIP"}})
        .args("serve", "q", "--host", "$(HOST_IP)"),
        "HostNetwork",
        ".spec.containers[0].args: HOST_IP:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(
            A={"fieldRef": {"fieldPath": "status.hostIP"}}, B="$(A)", C="$(B)", VLLM_HOST_IP="$(C)"
        ),
        "HostNetwork",
        ".spec.containers[0].env[3]: VLLM_HOST_IP:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(A={"fieldRef": {"fieldPath": "status.hostIP"}}, B="$(A)")
        .args("serve", "q", "--host", "$(B)"),
        "HostNetwork",
        ".spec.containers[0].args: B:",
    ),
    (
        engine().pod(hostNetwork=True).env(NICS="eth0", NCCL_SOCKET_IFNAME="$(NICS)"),
        "",
        "",
    ),
    (
        engine().pod(hostNetwork=True).env(NICS="ens3", NCCL_SOCKET_IFNAME="$(NICS)"),
        "HostNetwork",
        ".spec.containers[0].env[1]: NCCL_SOCKET_IFNAME:",
    ),
    (
        engine()
        .pod(hostNetwork=True)
        .env(HOST_IP={"fieldRef": {"fieldPath": "status.hostIP"}}, OTLP="http://$(HOST_IP):4317"),
        "",
        "",
    ),
    (
        engine().pod(hostNetwork=True).args("serve", "q", "--host", "127.0.0.1"),
        "HostNetwork",
        ".spec.containers[0]: the engine listens on the node's loopback only",
    ),
    (
        engine().gpus(0).gpus(1, "nvidia.com/mig-1g.10gb"),
        "SharedGPU",
        ".spec.containers[0].resources: nvidia.com/mig-1g.10gb:",
    ),
    (
        engine().pod(nodeSelector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-SHARED"}),
        "SharedGPU",
        ".spec.nodeSelector: nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB-SHARED:",
    ),
    (
        engine().pod(
            affinity=requiring(
                {"matchExpressions": [term("nvidia.com/gpu.product", "H200", "H200-MIG-1g.18gb")]}
            )
        ),
        "SharedGPU",
        ".spec.affinity.nodeAffinity: nvidia.com/gpu.product: H200-MIG-1g.18gb:",
    ),
    (
        engine().pod(
            affinity=requiring(
                {"matchExpressions": [term("nvidia.com/gpu.product", "A-SHARED", operator="NotIn")]}
            )
        ),
        "",
        "",
    ),
    (engine().pod(nodeSelector={"nvidia.com/gpu.sharing-strategy": "none"}), "", ""),
    (
        engine().pod(nodeSelector={"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}),
        "SharedGPU",
        ".spec.nodeSelector: cloud.google.com/gke-gpu-partition-size: 1g.5gb:",
    ),
    (
        engine().pod(
            resourceClaims=[
                {"name": "a", "resourceClaimTemplateName": "t"},
                {"name": "b", "resourceClaimName": "mine"},
            ]
        ),
        "SharedResourceClaim",
        ".spec.resourceClaims[1].resourceClaimName: mine:",
    ),
    (
        engine(volumeMounts=[{"name": "models", "mountPath": "/m"}]),
        "SourceInvalid",
        ".spec.containers[0].volumeMounts[0]: the template has no volume models",
    ),
    (engine().container("proxy", volumeMounts=[{"name": "absent", "mountPath": "/x"}]), "", ""),
    (
        engine(volumeMounts=[{"name": "m", "mountPath": "/m"}]).pod(
            volumes=[{"name": "m", "persistentVolumeClaim": {"claimName": "once"}}]
        ),
        "SingleUseClaim",
        ".spec.volumes[0].persistentVolumeClaim: once is ReadWriteOncePod",
    ),
    (engine().pod(volumes=[{"name": "m", "persistentVolumeClaim": {"claimName": "once"}}]), "", ""),
    (
        engine(volumeMounts=[{"name": "m", "mountPath": "/m"}]).pod(
            volumes=[{"name": "m", "persistentVolumeClaim": {"claimName": "many"}}]
        ),
        "",
        "",
    ),
]


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    REFUSED,
    ids=[f"{i}-{case[1] or 'fine'}" for i, case in enumerate(REFUSED)],
)
def test_what_cannot_be_tuned_as_a_copy_is_refused_with_the_field(
    pod: Template, reason: str, words: str
) -> None:
    claims = {"once": ["ReadWriteOncePod"], "many": ["ReadWriteMany"]}
    refused = find_refusal(pod, spec(**deployment()), DEFAULT, claims)
    assert (refused.reason if refused else "") == reason
    if refused:
        assert refused.message.startswith(HERE + words)


def test_the_field_of_an_inline_template_is_the_caches_own() -> None:
    refused = find_refusal(engine().args("--headless"), spec(source={"template": {}}), DEFAULT)
    assert refused is not None
    assert refused.message.startswith("spec.source.template.spec.containers[0].args: --headless")


@pytest.mark.parametrize(
    ("pod", "allow"),
    [
        (engine().env(DYN_NAMESPACE="prod"), "SelfRegistering"),
        (engine().gpus(0).gpus(1, "nvidia.com/gpu.shared"), "SharedGPU"),
    ],
)
def test_a_risk_that_is_taken_knowingly_is_not_refused(pod: Template, allow: str) -> None:
    assert find_refusal(pod, spec(), DEFAULT) is not None
    assert find_refusal(pod, spec(tuning={"allow": [allow]}), DEFAULT) is None


@pytest.mark.parametrize("devices", ["all", "0,1", {"fieldRef": {"fieldPath": "metadata.name"}}])
def test_an_engine_that_sees_gpus_of_other_pods_is_refused_whatever_is_allowed(
    devices: Any,
) -> None:
    pod = engine().gpus(0).gpus(1, "nvidia.com/gpu.shared").env(NVIDIA_VISIBLE_DEVICES=devices)
    allow = ["SharedGPU", "SelfRegistering", "SingleNode"]
    refused = find_refusal(pod, spec(tuning={"allow": allow}), DEFAULT)
    assert refused is not None and refused.reason == "NodeGPUs"


@pytest.mark.parametrize(
    "pod",
    [
        template().container().env(NVIDIA_VISIBLE_DEVICES="all").pod(hostIPC=True),
        template().container().env(CUDA_VISIBLE_DEVICES="0"),
        engine().container("vllm2").gpus(0),
    ],
)
def test_a_named_engine_without_a_gpu_of_its_own_is_not_copied(pod: Template) -> None:
    name = pod["spec"]["containers"][-1]["name"]
    refused = find_refusal(
        pod, spec(engineContainer=name, tuning={"allow": ["SharedGPU"]}), DEFAULT
    )
    assert refused is not None and refused.reason == "EngineNotFound"
    assert f"{name} asks for no GPU" in refused.message and ".resources: " in refused.message


@pytest.mark.parametrize(
    "resource",
    ["nvidia.com/h100", "nvidia.com/L40S", "nvidia.com/GA102GL_A10", "nvidia.com/pgpu",
     "nvidia.com/a100-80gb", "vendor.example/gpu"],
)  # fmt: skip
def test_a_named_engine_with_gpus_of_another_name_is_copied(resource: str) -> None:
    pod = template().container().gpus(1, resource)
    assert find_refusal(pod, spec(engineContainer="vllm"), DEFAULT) is None


@pytest.mark.parametrize(
    "resource",
    ["nvidia.com/hostdev", "nvidia.com/rdma_shared_device_a", "nvidia.com/resibp0",
     "nvidia.com/cx7", "gpu.example/nic", "vendor.example/nic"],
)  # fmt: skip
def test_a_named_engine_with_a_network_card_only_is_not_copied(resource: str) -> None:
    pod = template().container().gpus(1, resource)
    refused = find_refusal(pod, spec(engineContainer="vllm"), DEFAULT)
    assert refused is not None and refused.reason == "EngineNotFound"


def test_a_target_of_a_shared_product_is_refused_by_its_own_field() -> None:
    two = spec(
        targets=[
            {"name": "a"},
            {"name": "b", "nodeSelector": {"nvidia.com/gpu.product": "L4-SHARED"}},
        ]
    )
    refused = find_refusal(engine(), two, two.targets[1])
    assert refused is not None
    assert refused.message.startswith(
        "spec.targets[1].nodeSelector: nvidia.com/gpu.product: L4-SHARED"
    )
    assert find_refusal(engine(), two, two.targets[0]) is None


def test_a_target_may_lead_away_from_the_templates_shared_product() -> None:
    pod = engine().pod(nodeSelector={"nvidia.com/gpu.product": "L4-SHARED"})
    assert find_refusal(pod, spec(), Target("whole", {"nvidia.com/gpu.product": "L4"})) is None


def test_a_container_to_keep_that_is_not_there_is_refused_with_the_names() -> None:
    refused = find_refusal(
        engine().container("proxy"),
        spec(engineContainer="vllm", tuning={"keepContainers": ["gone"]}),
        DEFAULT,
    )
    assert refused is not None
    assert (
        refused.message
        == "spec.tuning.keepContainers[0]: no container gone; the pod has vllm, proxy"
    )


@law(templates())
def test_no_template_makes_the_preflight_fail(pod: Object) -> None:
    refused = find_refusal(pod, spec(engineContainer="vllm"), DEFAULT)
    assert refused is None or refused.message
