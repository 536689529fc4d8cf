"""The engine, its fingerprint, its place, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.api.names import TARGET
from pretune.api.reasons import Refused
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.podspec import canonical, identity
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import count_gpus, engine_of, gpu_resources

from tests.builders.caches import spec
from tests.builders.constants import DEFAULT
from tests.builders.random_pods import RandomCase
from tests.builders.strategies import law, templates
from tests.builders.templates import Template, engine, stored, template

DATA = Path(__file__).parent / "data"


def fingerprint(of: Object) -> str:
    return identity.fingerprint(of, "vllm" if len(of["spec"]["containers"]) > 1 else "")


# --- the engine


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


# --- the fingerprint


@law(templates())
def test_what_the_author_wrote_and_what_the_api_server_stored_have_one_fingerprint(
    pod: Object,
) -> None:
    assert fingerprint(pod) == fingerprint(stored(pod))


def test_a_deployment_that_a_real_api_server_stored_has_the_fingerprint_of_what_was_written() -> (
    None
):
    written, kept = (
        json.loads((DATA / name).read_text())["spec"]["template"]
        for name in ("written.json", "stored.json")
    )
    assert written != kept
    assert fingerprint(written) == fingerprint(kept)


@law(templates())
def test_a_fingerprint_leaves_the_template_as_it_is(pod: Object) -> None:
    before = copy.deepcopy(pod)
    identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT)
    assert pod == before


def rich() -> Template:
    return (
        template()
        .init("fetch", "fetch:1", command=["get", "model"])
        .env(FROM="s3")
        .init("convert", "convert:1")
        .container(
            "vllm",
            command=["vllm"],
            envFrom=[{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        )
        .args("serve", "qwen3", "--tp=8")
        .gpus(8)
        .env(A="1", TOKEN={"secretKeyRef": {"name": "hf", "key": "token"}}, B="$(A)/b")
        .labels(app="qwen3")
    )


def engine_at(pod: Object) -> Object:
    return pod["spec"]["containers"][0]  # type: ignore[no-any-return]


def changed(change: Any) -> Object:
    pod = copy.deepcopy(rich())
    change(pod)
    return pod


SAME = {
    "a label": lambda p: p["metadata"]["labels"].update(version="2"),
    "an annotation": lambda p: p["metadata"].update(annotations={"restartedAt": "now"}),
    "another container": lambda p: p["spec"]["containers"].append(
        {"name": "proxy", "image": "proxy:2"}
    ),
    "a native sidecar": lambda p: p["spec"]["initContainers"].insert(
        0, {"name": "router", "image": "r:1", "restartPolicy": "Always"}
    ),
    "the engine's name": lambda p: engine_at(p).update(name="server"),
    "probes": lambda p: engine_at(p).update(livenessProbe={"exec": {"command": ["true"]}}),
    "mounts": lambda p: engine_at(p).update(
        volumeMounts=[{"name": "models", "mountPath": "/models"}]
    ),
    "cpu": lambda p: engine_at(p)["resources"]["limits"].update(cpu=4),
    "the GPUs' spelling": lambda p: engine_at(p).update(
        resources={"requests": {"nvidia.com/gpu": "8e0"}}
    ),
    "the override variable": lambda p: engine_at(p)["env"].append(
        {"name": OVERRIDE, "value": "/elsewhere"}
    ),
    "the override variable, first": lambda p: engine_at(p)["env"].insert(
        0, {"name": OVERRIDE, "value": "/elsewhere"}
    ),
    "a value that a later one of its name hides": lambda p: engine_at(p)["env"].insert(
        0, {"name": "B", "value": "old"}
    ),
    "the order of env where nothing refers to it": lambda p: engine_at(p)["env"].insert(
        0, engine_at(p)["env"].pop(1)
    ),
    "a reference written out": lambda p: engine_at(p)["env"][2].update(value="1/b"),
    "a secret's key that is required, in words": lambda p: engine_at(p)["env"][1]["valueFrom"][
        "secretKeyRef"
    ].update(optional=False),
    "a ConfigMap that is required, in words": lambda p: engine_at(p)["envFrom"][0][
        "configMapRef"
    ].update(optional=False),
}

OTHER = {
    "the image": lambda p: engine_at(p).update(image="vllm:2"),
    "the command": lambda p: engine_at(p).update(command=["python3", "-m", "vllm"]),
    "the order of args": lambda p: engine_at(p)["args"].reverse(),
    "an arg moved to the command": lambda p: engine_at(p).update(
        command=["vllm", "serve"], args=["qwen3", "--tp=8"]
    ),
    "an empty arg": lambda p: engine_at(p)["args"].append(""),
    "an env value": lambda p: engine_at(p)["env"][0].update(value="2"),
    "an empty env value": lambda p: engine_at(p)["env"].append({"name": "C", "value": ""}),
    "which secret": lambda p: engine_at(p)["env"][1]["valueFrom"]["secretKeyRef"].update(
        name="other"
    ),
    "a secret's key that is optional": lambda p: engine_at(p)["env"][1]["valueFrom"][
        "secretKeyRef"
    ].update(optional=True),
    "a ConfigMap that is optional": lambda p: engine_at(p)["envFrom"][0]["configMapRef"].update(
        optional=True
    ),
    "what a reference finds": lambda p: engine_at(p)["env"].insert(0, engine_at(p)["env"].pop(2)),
    "a dollar that is meant": lambda p: engine_at(p)["env"][2].update(value="$$(A)/b"),
    "the order of envFrom": lambda p: engine_at(p)["envFrom"].reverse(),
    "the GPU count": lambda p: engine_at(p)["resources"]["limits"].update({"nvidia.com/gpu": 4}),
    "the kind of GPU": lambda p: engine_at(p).update(
        resources={"limits": {"nvidia.com/mig-1g.10gb": 8}}
    ),
    "the image of an init container": lambda p: p["spec"]["initContainers"][0].update(
        image="fetch:2"
    ),
    "the env of an init container": lambda p: p["spec"]["initContainers"][0]["env"][0].update(
        value="gcs"
    ),
    "the order of init containers": lambda p: p["spec"]["initContainers"].reverse(),
    "an init container's override variable": lambda p: p["spec"]["initContainers"][0]["env"].append(
        {"name": OVERRIDE, "value": "/elsewhere"}
    ),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_fingerprint_stays_when_this_changes(change: Any) -> None:
    pod = changed(change)
    assert identity.fingerprint(pod, engine_at(pod)["name"]) == fingerprint(rich())


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_the_fingerprint_changes_with(change: Any) -> None:
    assert fingerprint(changed(change)) != fingerprint(rich())


def test_each_of_these_changes_gives_a_fingerprint_of_its_own() -> None:
    assert len({fingerprint(changed(change)) for change in OTHER.values()}) == len(OTHER)


def test_the_devices_of_a_claim_template_are_part_of_the_fingerprint() -> None:
    def pod(devices: str, called: str = "gpu") -> Template:
        pod = template().container(resources={"claims": [{"name": called}]})
        return pod.pod(resourceClaims=[{"name": called, "resourceClaimTemplateName": devices}])

    assert fingerprint(pod("one-b200")) != fingerprint(pod("two-b200"))
    assert fingerprint(pod("one-b200")) == fingerprint(pod("one-b200", called="device"))


@pytest.mark.parametrize("empty", [None, "", False, [], {}, {"b": {"c": None}}])
def test_a_field_that_says_nothing_counts_as_absent_at_any_depth(empty: Any) -> None:
    assert canonical.drop_empty({"a": empty, "d": {"e": [{"f": empty}]}}) == {"d": {"e": [{}]}}


@pytest.mark.parametrize("value", [0, True, "0", "false", [None], [False], [""]])
def test_a_field_that_says_something_is_kept(value: Any) -> None:
    assert canonical.drop_empty({"a": value}) == {"a": value}


@law(st.lists(st.tuples(st.sampled_from("ABC"), st.text("AB$()", max_size=6)), max_size=5))
def test_env_that_the_kubelet_would_make_equal_is_equal(pairs: list[tuple[str, str]]) -> None:
    """The kubelet's own rule, written another way: character by character."""
    env = [{"name": name, "value": value} for name, value in pairs]
    expected: dict[str, str] = {}
    for name, value in pairs:
        expected[name] = expanded(value, expected)
    got = canonical.environment(env)
    assert {name: value.replace("\0(", "$(") for name, value in got.items()} == expected


def expanded(value: str, known: dict[str, str]) -> str:
    out, rest = "", value
    while rest:
        if rest.startswith("$$"):
            out, rest = out + "$", rest[2:]
        elif rest.startswith("$(") and ")" in rest:
            name, _, rest = rest[2:].partition(")")
            out += known.get(name, f"$({name})")
        else:
            out, rest = out + rest[0], rest[1:]
    return out


@pytest.mark.parametrize(
    ("spellings", "value"),
    [
        ((8, "8", "8000m", "8.0", "0.008k", "8e0", "+8"), Fraction(8)),
        (("1Gi", 2**30, "1024Mi"), Fraction(2**30)),
        (("500m", 0.5, ".5", "0.5"), Fraction(1, 2)),
        (("1E", "1e18"), Fraction(10**18)),
        (("0", 0, "0m"), Fraction(0)),
    ],
)
def test_a_quantity_is_a_number_however_it_is_spelled(
    spellings: tuple[Any, ...], value: Fraction
) -> None:
    assert [canonical.parse_quantity(spelling) for spelling in spellings] == [value] * len(
        spellings
    )


@pytest.mark.parametrize("wrong", ["", "eight", "8 Gi", "1ki", "--8", "1e9999", True, None, {}])
def test_what_is_no_quantity_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        canonical.parse_quantity(wrong)


# --- placement and the bundle's id


def term(key: str, *values: str, operator: str = "In") -> Object:
    return {"key": key, "operator": operator, "values": list(values)}


def requiring(*terms: Object) -> Object:
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}
        }
    }


def test_the_targets_node_selector_is_laid_over_the_pods_own() -> None:
    pod = engine().pod(
        nodeSelector={"product": "H200", "zone": "a"},
        affinity=requiring({"matchExpressions": [term("x", "1")]}),
    )
    assert identity.placement(pod, Target("b200", {"product": "B200"})) == {
        "nodeSelector": {"product": "B200", "zone": "a"},
        "nodeAffinity": [{"matchExpressions": [{"key": "x", "operator": "In", "values": ["1"]}]}],
    }


def test_a_pod_that_may_run_anywhere_has_an_empty_placement() -> None:
    assert identity.placement(engine(), DEFAULT) == {}


def test_a_label_with_an_empty_value_is_a_term_too() -> None:
    assert identity.placement(engine().pod(nodeSelector={"role/gpu": ""}), DEFAULT) == {
        "nodeSelector": {"role/gpu": ""}
    }


def test_neither_order_nor_repetition_of_node_terms_counts() -> None:
    first = {"matchExpressions": [term("product", "B200", "H200"), term("zone", operator="Exists")]}
    turned = {
        "matchExpressions": [
            term("zone", operator="Exists"),
            term("product", "H200", "B200", "H200"),
        ]
    }
    two = {"matchFields": [term("metadata.name", "node0")]}
    ways = [requiring(first, two), requiring(two, turned), requiring(two, first, turned)]
    assert (
        len(
            {
                canonical.to_json(identity.placement(engine().pod(affinity=way), DEFAULT))
                for way in ways
            }
        )
        == 1
    )


def test_a_node_name_is_a_required_term() -> None:
    pinned, elsewhere = (
        identity.placement(engine().pod(nodeName=name), DEFAULT) for name in ("node0", "node1")
    )
    assert pinned == {"nodeAffinity": [{"matchFields": [term("metadata.name", "node0")]}]}
    assert pinned != elsewhere


def test_a_node_name_is_asked_of_each_alternative() -> None:
    pod = engine().pod(
        nodeName="node0",
        affinity=requiring(
            {"matchExpressions": [term("a", "1")]}, {"matchExpressions": [term("b", "2")]}
        ),
    )
    terms = identity.placement(pod, DEFAULT)["nodeAffinity"]
    assert [each["matchFields"] for each in terms] == [[term("metadata.name", "node0")]] * 2


def test_no_two_images_products_revisions_or_targets_share_a_bundle() -> None:
    ids = [
        identity.inputs(
            engine(image=image), spec(revision=revision), Target(name, {"product": product})
        ).bundle_id()
        for image, revision, name, product in itertools.product(
            ["v:1", "v:2"], ["", "again"], ["a", "b"], ["H200", "B200"]
        )
    ]
    assert len(set(ids)) == 16


@law(templates(), templates())
def test_two_templates_share_a_bundle_only_with_equal_inputs(one: Object, other: Object) -> None:
    this, that = (
        identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT) for pod in (one, other)
    )
    assert (this.bundle_id() == that.bundle_id()) == (this == that)
    if one["spec"]["containers"][0]["image"] != other["spec"]["containers"][0]["image"]:
        assert this.bundle_id() != that.bundle_id()


# --- what is refused


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


def test_zero_gpus_are_none() -> None:
    assert gpu_resources({"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": "0"}}}) == {}


# --- the target of a consumer

B200, H200 = {"gpu": "b200"}, {"gpu": "h200"}
TWO = [{"name": "b", "nodeSelector": B200}, {"name": "h", "nodeSelector": H200}]
ANYWHERE: list[Object] = [{"name": "any"}, TWO[0]]


@pytest.mark.parametrize(
    ("case", "targets", "selector", "named", "target"),
    [
        ("the only one, if the pod may run on its nodes", TWO[:1], None, "h", "b"),
        ("the only one, whose nodes the pod's selector excludes", TWO[:1], H200, None, None),
        ("the cache names none", None, None, None, "default"),
        ("the annotation names it", TWO, None, "h", "h"),
        ("the annotation names one whose nodes the selector excludes", TWO, B200, "h", None),
        ("the annotation goes before a selector that names none", TWO, {"zone": "a"}, "h", "h"),
        ("the annotation names no target", TWO, B200, "x", None),
        ("an empty annotation names none", TWO, B200, "", "b"),
        ("the pod's selector contains the target's", TWO, {**H200, "zone": "a"}, None, "h"),
        (
            "the pod's selector is only a part of the target's",
            [*TWO, {"name": "z", "nodeSelector": {**B200, "z": "1"}}],
            B200,
            None,
            "b",
        ),
        ("the pod's selector has the label with another value", TWO, {"gpu": "l4"}, None, None),
        ("the pod selects nothing", TWO, None, None, None),
        ("the pod's selector contains two", ANYWHERE, B200, None, None),
        ("a target without selector is contained in any", ANYWHERE, None, None, "any"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_target_of_a_consumer(
    case: str, targets: list[Object] | None, selector: Any, named: str | None, target: str | None
) -> None:
    pod: Object = {
        "metadata": {"annotations": None if named is None else {TARGET: named}},
        "spec": {},
    }
    if selector is not None:
        pod["spec"]["nodeSelector"] = selector
    found = identity.target_of(pod, spec(**({"targets": targets} if targets else {})))
    assert (found.name if found else None) == target


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        ([[term("gpu", "b200", "h200")]], True),
        ([[term("gpu", "h200")]], False),
        ([[term("gpu", "b200", operator="NotIn")]], False),
        ([[term("gpu", "h200", operator="NotIn")]], True),
        ([[term("gpu", operator="Exists")]], True),
        ([[term("gpu", operator="DoesNotExist")]], False),
        ([[term("zone", "a")]], True),
        ([[term("gpu", "h200")], [term("zone", "a")]], True),
        ([[term("gpu", "h200"), term("zone", "a")]], False),
        ([[]], False),  # an empty term holds for no node
        ([[], [term("gpu", "b200")]], True),
        ([[], [term("gpu", "h200")]], False),
    ],
)
def test_a_pod_whose_terms_exclude_the_targets_nodes_does_not_get_its_bundle(
    terms: list[list[Object]], fits: bool
) -> None:
    affinity = requiring(*({"matchExpressions": expressions} for expressions in terms))
    pod: Object = {"metadata": {}, "spec": {"affinity": affinity}}
    assert (identity.target_of(pod, spec(targets=TWO[:1])) is not None) == fits


def test_the_fingerprints_of_ordinary_templates_never_change() -> None:
    """Another fingerprint is a cold start of every engine: the release notes have to say so."""
    digest = hashlib.sha256()
    for number in range(500):
        pod = RandomCase(number).pod()
        digest.update(identity.fingerprint(pod, "vllm").encode())
    assert digest.hexdigest() == "92b772135024302458c7778bccf33aceec4c49bcb90ddb79209af8f04512bde5"
