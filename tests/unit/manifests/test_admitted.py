"""The tuning pod starts what serves.

What admission changed in a pod is kept; what belongs to that one pod is not.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pretune.api import names
from pretune.api.types import Object
from pretune.manifests.admitted import apply_admission
from pretune.manifests.injection import inject
from pretune.manifests.job import build_tuning_job
from pretune.podspec import identity

from tests.builders.caches import cache, spec
from tests.builders.constants import AGENT, DEFAULT, KEY, SETTINGS
from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.templates import engine, stored, template
from tests.unit.manifests.test_injection import HELD, READ_ONLY

TOKEN = "kube-api-access-x7k2p"
MODEL = {"name": "model", "mountPath": "/mnt/models"}


def written() -> Object:
    """A Deployment's template: an engine, its init container, a sidecar of its own."""
    admitted = (
        template()
        .init("warm", volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
        .container("vllm", volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
        .gpus("1")
        .container("proxy")
        .pod(
            volumes=[{"name": "scratch", "emptyDir": {}}],
            nodeSelector={"gpu": "b200"},
            tolerations=[{"key": "gpu", "operator": "Exists"}],
            priorityClassName="serving",
        )
        .labels(app="qwen3")
    )
    return {**admitted, "metadata": {"labels": {"app": "qwen3"}, "annotations": {"team": "a"}}}


def arrived(*, injected: Any = HELD, marked: bool = True) -> Object:
    """Return its pod on the cluster.

    A storage initialiser, a mirror and a mesh changed it, then we, the scheduler and the kubelet.
    """
    pod = stored(written())
    spec_ = pod["spec"]
    token = {
        "name": TOKEN,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": True,
    }
    warm, (vllm, proxy) = spec_["initContainers"][0], spec_["containers"]
    vllm["image"] = "mirror/vllm:1"
    vllm["env"] = [{"name": "AWS_ROLE_ARN", "value": "role"}]
    vllm["volumeMounts"] += [MODEL, token]
    vllm["resources"]["limits"] |= {"cpu": "4", "memory": "8Gi"}
    proxy["volumeMounts"] = [token]
    spec_["initContainers"] = [
        {"name": "istio-init", "image": "mesh:1", "args": ["istio-iptables"]},
        {"name": "storage-initializer", "image": "fetch:2", "volumeMounts": [MODEL, token]},
        warm,
        {
            "name": "istio-proxy",
            "image": "mesh:1",
            "restartPolicy": "Always",
            "volumeMounts": [token],
        },
    ]
    spec_["volumes"] += [
        {"name": "model", "emptyDir": {}},
        {"name": TOKEN, "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ]
    pod["metadata"] |= {
        "name": "qwen3-5d-abcde",
        "uid": "uid",
        "annotations": {"team": "a", "vault.hashicorp.com/agent-inject-status": "injected"},
    }
    pod = patched(pod, inject(pod, injected)) if injected else pod
    pod["spec"] |= {
        "nodeName": "node0",
        "priority": 1000,
        "preemptionPolicy": "PreemptLowerPriority",
        "serviceAccountName": "default",
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "mirror"}],
        "hostname": "qwen3-0",
        "nodeSelector": {"gpu": "b200", "namespace-wide": "a"},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}
            }
        },
        "tolerations": [
            *pod["spec"]["tolerations"],
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
        ],
        "ephemeralContainers": [{"name": "debugger"}],
    }
    if marked:
        pod["metadata"]["managedFields"] = [
            {
                "manager": "kube-controller-manager",
                "fieldsV1": {
                    "f:metadata": {
                        "f:annotations": {
                            ".": {},
                            **{f"f:{name}": {} for name in pod["metadata"]["annotations"]},
                        }
                    },
                    "f:spec": {"f:containers": {}},
                },
            },
            {
                "manager": "ovnkube",
                "fieldsV1": {"f:metadata": {"f:annotations": {"f:k8s.ovn.org/pod-networks": {}}}},
            },
            {"manager": "kubelet", "fieldsV1": {"f:status": {}}, "subresource": "status"},
            {"manager": "odd"},
        ]
    pod["metadata"]["annotations"]["k8s.ovn.org/pod-networks"] = "10.0.0.7"
    return json.loads(json.dumps(pod))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "injected", [HELD, READ_ONLY, None], ids=["held", "read-only", "left alone"]
)
def test_what_admission_changed_is_kept_and_what_belongs_to_the_pod_is_not(injected: Any) -> None:
    admitted = apply_admission(written(), arrived(injected=injected))
    pod = admitted["spec"]
    assert admitted["metadata"] == {
        "labels": {"app": "qwen3"},
        "annotations": {"team": "a", "vault.hashicorp.com/agent-inject-status": "injected"},
    }
    (vllm, proxy) = pod["containers"]
    assert vllm["image"] == "mirror/vllm:1"
    assert vllm["env"] == [{"name": "AWS_ROLE_ARN", "value": "role"}]
    assert vllm["volumeMounts"] == [{"name": "scratch", "mountPath": "/scratch"}, MODEL]
    assert vllm["resources"]["limits"] == {"nvidia.com/gpu": "1", "cpu": "4", "memory": "8Gi"}
    assert proxy["volumeMounts"] == []
    assert [container["name"] for container in pod["initContainers"]] == [
        "storage-initializer",
        "warm",
    ]
    assert pod["initContainers"][0]["volumeMounts"] == [MODEL]
    assert pod["volumes"] == [
        {"name": "scratch", "emptyDir": {}},
        {"name": "model", "emptyDir": {}},
    ]
    assert pod["runtimeClassName"] == "nvidia" and pod["imagePullSecrets"] == [{"name": "mirror"}]
    for name in ("nodeSelector", "tolerations", "priorityClassName"):
        assert pod[name] == written()["spec"][name]
    alone = {"nodeName", "priority", "preemptionPolicy", "affinity", "hostname", "schedulingGates"}
    assert not (alone | {"ephemeralContainers"}) & set(pod)


def test_without_managed_fields_annotations_are_the_templates() -> None:
    assert apply_admission(written(), arrived(marked=False))["metadata"]["annotations"] == {
        "team": "a"
    }


def test_a_volume_of_a_tokens_name_that_is_none_stays() -> None:
    pod = arrived()
    pod["spec"]["volumes"] = [
        {"name": TOKEN, "emptyDir": {}} if volume["name"] == TOKEN else volume
        for volume in pod["spec"]["volumes"]
    ]
    admitted = apply_admission(written(), pod)["spec"]
    assert TOKEN in [volume["name"] for volume in admitted["volumes"]]
    assert TOKEN in [mount["name"] for mount in admitted["containers"][0]["volumeMounts"]]


def test_an_init_container_that_serves_one_of_the_authors_stays() -> None:
    pod = arrived()
    mount = {"name": "secrets", "mountPath": "/s"}
    pod["spec"]["volumes"].append({"name": "secrets", "emptyDir": {}})
    next(container for container in pod["spec"]["initContainers"] if container["name"] == "warm")[
        "volumeMounts"
    ].append(mount)
    pod["spec"]["initContainers"].insert(
        0, {"name": "secrets", "image": "vault:1", "volumeMounts": [mount]}
    )
    kept = [
        container["name"] for container in apply_admission(written(), pod)["spec"]["initContainers"]
    ]
    assert kept == ["secrets", "storage-initializer", "warm"]


@law(templates())
def test_a_pod_that_admission_left_alone_makes_the_template_again(pod: Object) -> None:
    assert apply_admission(pod, {**pod, "metadata": {"name": "pod"}}) == pod


@law(templates())
def test_nothing_is_changed_or_shared(pod: Object) -> None:
    example = {**copy.deepcopy(pod), "metadata": {"name": "pod", "annotations": {"a": "1"}}}
    before = copy.deepcopy((pod, example))
    admitted = apply_admission(pod, example)
    admitted["spec"]["containers"][0].clear()
    admitted["spec"].get("nodeSelector", {}).clear()
    admitted["metadata"].get("labels", {}).clear()
    assert (pod, example) == before


# --- in the Job


def tuned(pod: Object, example: Object | None, **fields: Any) -> Object:
    return build_tuning_job(KEY, cache(**fields), pod, DEFAULT, 1, SETTINGS, AGENT, example)


def test_the_jobs_pod_is_the_examples_and_its_bundle_the_templates() -> None:
    job = tuned(written(), arrived())
    plain = tuned(written(), None)
    for field in ("name", "labels", "annotations"):
        assert job["metadata"][field] == plain["metadata"][field]
    assert job["metadata"]["annotations"][names.FINGERPRINT] == identity.fingerprint(
        written(), "vllm"
    )
    pod = job["spec"]["template"]["spec"]
    check, *before, vllm = pod["initContainers"]
    assert [container["name"] for container in before] == ["storage-initializer", "warm"]
    assert check["image"] == vllm["image"] == "mirror/vllm:1"
    assert check["resources"]["limits"] == {"cpu": "4", "memory": "8Gi"}
    assert [variable["name"] for variable in vllm["env"]] == [
        "AWS_ROLE_ARN",
        "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
    ]
    assert [volume["name"] for volume in pod["volumes"]] == [
        "scratch", "model", "pretune-claim", "pretune-tactics", "pretune-agent",
    ]  # fmt: skip
    assert pod["nodeSelector"] == {"gpu": "b200"} and "affinity" not in pod


def test_the_engine_is_that_of_the_template_also_where_admission_added_another_with_a_gpu() -> None:
    pod = arrived()
    pod["spec"]["containers"].append(
        {"name": "probe", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    )
    vllm = tuned(written(), pod)["spec"]["template"]["spec"]["initContainers"][-1]
    assert (vllm["name"], vllm["image"]) == ("vllm", "mirror/vllm:1")


def test_an_example_without_the_engine_is_no_example() -> None:
    pod = arrived()
    pod["spec"]["containers"] = pod["spec"]["containers"][1:]
    assert tuned(written(), pod) == tuned(written(), None)


def test_a_template_that_was_copied_from_an_injected_pod_is_tuned_as_if_it_were_not() -> None:
    copied = engine().env(A="1")
    whole = patched(copied, inject(copied, HELD))
    inputs = identity.inputs(copied, spec(), DEFAULT)
    job = tuned(whole, None)
    assert identity.inputs(whole, spec(), DEFAULT) == inputs
    assert job["spec"]["template"]["spec"] == tuned(copied, None)["spec"]["template"]["spec"]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_claim_that_the_engine_mounts_too_is_one_volume_that_the_agent_may_write(
    read_only: bool,
) -> None:
    """A pod with two volumes of one claim never starts (seen on Kubernetes 1.34)."""
    source = {"claimName": "shared", **({"readOnly": True} if read_only else {})}
    pod = (
        engine(volumeMounts=[{"name": "models", "mountPath": "/models"}])
        .init(
            "fetch",
            volumeMounts=[
                {"name": "models", "mountPath": "/m"},
                {"name": "other", "mountPath": "/o"},
            ],
        )
        .pod(
            volumes=[
                {"name": "models", "persistentVolumeClaim": source},
                {"name": "other", "emptyDir": {}},
            ]
        )
    )
    admitted = tuned(pod, None, storage={"existingClaim": {"name": "shared"}})["spec"]["template"][
        "spec"
    ]
    check, fetch, vllm = admitted["initContainers"]
    assert [volume["name"] for volume in admitted["volumes"]] == [
        "models",
        "other",
        "pretune-tactics",
        "pretune-agent",
    ]
    assert admitted["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    own = {"readOnly": True} if read_only else {}
    assert vllm["volumeMounts"][0] == {"name": "models", "mountPath": "/models", **own}
    assert fetch["volumeMounts"] == [
        {"name": "models", "mountPath": "/m", **own},
        {"name": "other", "mountPath": "/o"},
    ]
    for container in (check, admitted["containers"][0]):
        assert {"name": "models", "mountPath": "/pretune/claim"} in container["volumeMounts"]
