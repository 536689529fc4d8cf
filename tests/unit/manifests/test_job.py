"""The Jobs of attempts and proofs.

Inspect and prune Jobs are small and hold no GPU.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import kubernetes_validate
import pytest
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.spec import Target
from pretune.api.types import Key, Object
from pretune.engines.vllm import cli
from pretune.manifests.job import attempt_name, build_inspect_job, build_prune_job, build_tuning_job
from pretune.podspec import identity
from pretune.podspec.template import count_gpus
from pretune.protocol import Task

from tests.builders.caches import cache, spec
from tests.builders.constants import AGENT, DEFAULT, KEY, SETTINGS
from tests.builders.strategies import law, templates
from tests.builders.templates import Template, engine, template
from tests.builders.tuning_jobs import (
    check_in,
    engine_in,
    env_of,
    pod_of,
    proof,
    seal_in,
    task_of,
    tuned,
    volume,
    web,
)

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

# --- docs/dev/invariants.md, 6 and 7


def test_two_caches_work_in_two_folders_of_one_claim() -> None:
    shared = {"storage": {"existingClaim": {"name": "shared", "subPath": "pretune"}}}
    jobs = [
        build_tuning_job(
            Key(namespace, name), cache(name, **shared), engine(), DEFAULT, 1, SETTINGS, AGENT
        )
        for namespace, name in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    tasks = [task_of(seal_in(job)) for job in jobs]
    assert [task.cache for task in tasks] == ["a.b", "a.c", "b.c"]
    assert {task.subPath for task in tasks} == {"pretune"}
    assert all(
        volume(job, "pretune-claim")["persistentVolumeClaim"] == {"claimName": "shared"}
        for job in jobs
    )


# --- proofs


@law(templates(), st.booleans())
def test_a_proof_starts_the_engine_as_the_attempt_did_but_for_where_its_tactics_are(
    pod: Object, on_claim: bool
) -> None:
    tuning, proving = engine_in(tuned(pod)), engine_in(proof(pod, on_claim))
    if on_claim:
        place = f"/pretune/claim/inference.qwen3/bundles/{identity.inputs(pod, spec(), DEFAULT).bundle_id()}/tactics"
        assert env_of(proving)[cli.OVERRIDE] == place
        mount = proving["volumeMounts"].pop()
        assert (mount["mountPath"], mount["readOnly"]) == ("/pretune/claim", True)
        tuning["volumeMounts"].pop()
        for container in (tuning, proving):
            container["env"] = [
                variable for variable in container["env"] if variable["name"] != cli.OVERRIDE
            ]
    assert proving == tuning


@law(templates(), st.booleans())
def test_what_starts_before_it_and_what_the_pod_is_are_the_attempts_too(
    pod: Object, on_claim: bool
) -> None:
    tuning, proving = pod_of(tuned(pod)), pod_of(proof(pod, on_claim))
    before = proving["initContainers"][: -1 if on_claim else -2]
    assert before == tuning["initContainers"][1:-1]
    ours = ("initContainers", "containers", "volumes")
    assert {name: value for name, value in proving.items() if name not in ours} == {
        name: value for name, value in tuning.items() if name not in ours
    }
    mounts = {
        mount["name"]
        for container in (*proving["initContainers"], *proving["containers"])
        for mount in container.get("volumeMounts", ())
    }
    assert mounts >= {volume["name"] for volume in proving["volumes"]}, (
        "no volume is there for nothing"
    )


def test_seed_and_prove_have_the_task_and_the_mounts_that_they_need_and_no_more() -> None:
    pod = engine().args("serve", "qwen3", "--port", "9")
    job = proof(pod)
    agent = {"name": "pretune-agent", "mountPath": "/pretune/agent", "readOnly": True}
    claim, tactics = (
        {"name": "pretune-claim", "mountPath": "/pretune/claim"},
        {"name": "pretune-tactics", "mountPath": "/pretune/tactics"},
    )
    seed, [prove] = pod_of(job)["initContainers"][-2], pod_of(job)["containers"]
    assert (seed["name"], prove["name"]) == ("pretune-seed", "pretune-prove")
    assert seed["volumeMounts"] == [agent, {**claim, "readOnly": True}, tactics]
    assert prove["volumeMounts"] == [agent, claim, {**tactics, "readOnly": True}]
    assert "readOnly" not in volume(job, "pretune-claim")["persistentVolumeClaim"], (
        "prove writes the proof there"
    )
    inputs = identity.inputs(pod, spec(), DEFAULT)
    words = ["serve", "qwen3", "--port", "9"]
    assert task_of(seed) == Task("inference.qwen3", inputs=inputs, command=words, argsOnly=True)
    assert not task_of(seed).proven, "its proof is what it is for"
    assert task_of(prove) == replace(task_of(seed), gpus=1, ready="http://127.0.0.1:9/health")
    with_command = proof(engine().having(command=["vllm"], args=words))
    for container in (
        pod_of(with_command)["initContainers"][-2],
        *pod_of(with_command)["containers"],
    ):
        assert (task_of(container).command, task_of(container).argsOnly) == (
            ["vllm", *words],
            False,
        )
    assert (
        seed["resources"] == check_in(tuned(pod))["resources"]
        and prove["resources"] == seal_in(tuned(pod))["resources"]
    )


def test_where_pods_read_the_claim_itself_there_is_nothing_to_seed_and_no_copy_to_compare() -> None:
    job = proof(engine(), on_claim=True)
    assert [container["name"] for container in pod_of(job)["initContainers"]] == ["vllm"]
    assert [volume["name"] for volume in pod_of(job)["volumes"]] == [
        "pretune-claim",
        "pretune-agent",
    ]
    assert task_of(seal_in(job)).onClaim and not task_of(seal_in(proof(engine()))).onClaim


def test_a_proof_and_an_attempt_differ_in_role_and_name() -> None:
    job, attempt = proof(engine()), tuned(engine())
    assert job["metadata"]["labels"] == {**attempt["metadata"]["labels"], names.ROLE: "proof"}
    assert job["metadata"]["annotations"] == attempt["metadata"]["annotations"]
    assert job["metadata"]["name"] == attempt["metadata"]["name"].removesuffix("-1") + "-p1"
    assert job["spec"]["template"]["metadata"]["labels"][names.ROLE] == "proof"


# --- names

CACHES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", fullmatch=True)
IDS = st.builds(
    lambda digest, target: f"{digest}-{target}",
    st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?", fullmatch=True),
)


@law(CACHES, IDS, st.integers(1, 20))
def test_a_jobs_name_is_a_dns_label_for_any_cache_target_and_attempt(
    name: str, bundle: str, attempt: int
) -> None:
    assert LABEL.fullmatch(attempt_name(name, bundle, attempt))


@law(st.lists(st.tuples(CACHES, IDS, st.integers(1, 20)), unique=True, min_size=2, max_size=6))
def test_no_two_attempts_share_a_name(attempts: list[tuple[str, str, int]]) -> None:
    assert len({attempt_name(*attempt) for attempt in attempts}) == len(attempts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "0123456789ab-b-0123456789ab-c", 1), ("a-0123456789ab-b", "0123456789ab-c", 1)),
        (("a.b", "0123456789ab-c", 1), ("a-b", "0123456789ab-c", 1)),
        (("x" * 63, "0123456789ab-c", 1), ("x" * 62, "0123456789ab-c", 1)),
        (("a", "0123456789ab-c-1", 2), ("a", "0123456789ab-c", 12)),
    ],
)
def test_names_that_could_be_read_in_two_ways_differ(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    assert attempt_name(*one) != attempt_name(*other)


def test_a_jobs_name_shows_cache_bundle_and_attempt_where_it_fits() -> None:
    assert attempt_name("qwen3-fp4", "3f9c2a7be1d0-b200", 2) == "qwen3-fp4-3f9c2a7be1d0-b200-2"


# --- the Job


def test_a_job_creates_one_pod_is_not_retried_and_does_not_count_disruptions() -> None:
    job = tuned(engine())
    frame = {name: value for name, value in job["spec"].items() if name != "template"}
    assert frame == {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "ttlSecondsAfterFinished": 3600,
    }
    assert job["metadata"]["namespace"] == "inference"
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "pretune.dev/v1alpha1",
            "kind": "AutotuneCache",
            "name": "qwen3",
            "uid": "cache-uid",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]


def test_the_deadline_is_on_the_pod_and_its_grace_is_short() -> None:
    pod = pod_of(tuned(engine(), tuning={"deadlineSeconds": 900}))
    assert (
        pod["activeDeadlineSeconds"],
        pod["terminationGracePeriodSeconds"],
        pod["restartPolicy"],
    ) == (
        900,
        5,
        "Never",
    )


# --- inspect and prune


def asked(fields: Object | None = None, question: str = "q") -> Object:
    return build_inspect_job(
        KEY, cache(), spec(**(fields or {})), ["a-1", "b-2"], question, SETTINGS
    )


def test_inspect_reads_the_claim_in_the_operators_image_as_a_user_without_rights() -> None:
    job = asked({"storage": {"existingClaim": {"name": "shared", "subPath": "pretune"}}})
    pod, (container,) = pod_of(job), pod_of(job)["containers"]
    assert container["image"] == "registry/pretune:1"
    assert container["command"] == ["python3", "-m", "pretune.agent", "inspect"]
    assert task_of(container) == Task(
        cache="inference.qwen3", subPath="pretune", ids=["a-1", "b-2"]
    )
    assert pod["volumes"] == [
        {
            "name": "pretune-claim",
            "persistentVolumeClaim": {"claimName": "shared", "readOnly": True},
        }
    ]
    assert container["volumeMounts"] == [
        {"name": "pretune-claim", "mountPath": "/pretune/claim", "readOnly": True}
    ]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }, "OpenShift chooses the uid, and refuses a fixed one"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert job["metadata"]["annotations"] == {
        "pretune.dev/question": "q",
        "pretune.dev/generation": "1",
    }
    assert job["metadata"]["labels"] == {
        "pretune.dev/cache": "qwen3",
        "pretune.dev/role": "inspect",
    }
    assert (
        job["spec"]["template"]["metadata"]["labels"].items() >= job["metadata"]["labels"].items()
    )


def test_another_request_key_is_another_job_and_the_same_key_the_same_job() -> None:
    assert (
        asked()["metadata"]["name"]
        == asked()["metadata"]["name"]
        != asked(question="r")["metadata"]["name"]
    )


def test_prune_runs_as_the_user_that_wrote_the_files_and_mounts_the_claim_for_writing() -> None:
    job = build_prune_job(
        KEY, cache(), spec(), ["a-1"], {"uid": 1000, "gid": 100, "groups": [44, 44, 5]}, SETTINGS
    )
    pod, (container,) = pod_of(job), pod_of(job)["containers"]
    assert pod["securityContext"] == {
        "runAsUser": 1000,
        "runAsGroup": 100,
        "runAsNonRoot": True,
        "supplementalGroups": [5, 44],
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["volumes"] == [
        {"name": "pretune-claim", "persistentVolumeClaim": {"claimName": "pretune-qwen3"}}
    ]
    assert container["volumeMounts"] == [{"name": "pretune-claim", "mountPath": "/pretune/claim"}]
    assert container["command"][-1] == "prune"
    assert task_of(container).ids == ["a-1"]
    assert job["metadata"]["labels"]["pretune.dev/role"] == "prune"


def test_prune_of_roots_files_runs_as_root() -> None:
    job = build_prune_job(KEY, cache(), spec(), ["a-1"], {"uid": 0, "gid": 0}, SETTINGS)
    assert pod_of(job)["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def small_jobs() -> list[Object]:
    return [
        asked(),
        build_prune_job(KEY, cache(), spec(), ["a-1"], {"uid": 1000, "gid": 100}, SETTINGS),
    ]


@pytest.mark.parametrize("job", small_jobs(), ids=["inspect", "prune"])
def test_jobs_on_the_claim_are_short_small_and_fit_for_pod_security_restricted(job: Object) -> None:
    pod, (container,) = pod_of(job), pod_of(job)["containers"]
    assert (
        pod["activeDeadlineSeconds"],
        pod["automountServiceAccountToken"],
        pod["restartPolicy"],
    ) == (
        300,
        False,
        "Never",
    )
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert count_gpus(container) == 0
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert job["spec"]["backoffLimit"] == 0
    assert job["metadata"]["ownerReferences"][0]["uid"] == "cache-uid"


def test_jobs_on_the_claim_have_the_targets_tolerations_since_its_volume_may_be_on_a_gpu_node() -> (
    None
):
    taint = {"key": "nvidia.com/gpu", "operator": "Exists"}
    job = asked(
        {"targets": [{"name": "a", "tolerations": [taint]}, {"name": "b", "tolerations": [taint]}]}
    )
    assert pod_of(job)["tolerations"] == [taint]


def test_jobs_on_the_claim_have_the_engines_tolerations_too_and_run_where_the_image_does() -> None:
    mine, other = ({"key": key, "operator": "Exists"} for key in ("mine", "other"))
    pods = [
        engine().pod(tolerations=[mine], serviceAccountName="model"),
        engine().pod(tolerations=[mine, other], serviceAccountName="model"),
    ]
    settings = replace(SETTINGS, operator_architectures=("arm64",))
    inspect = build_inspect_job(KEY, cache(), spec(), ["a-1"], "q", settings, pods)
    prune = build_prune_job(KEY, cache(), spec(), ["a-1"], {"uid": 1}, settings, pods)
    for job in (inspect, prune):
        assert pod_of(job)["tolerations"] == [mine, other]
        affinity = pod_of(job)["affinity"]["nodeAffinity"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert required["nodeSelectorTerms"] == [
            {
                "matchExpressions": [
                    {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}
                ]
            }
        ]
    assert pod_of(prune)["serviceAccountName"] == "model"
    assert "serviceAccountName" not in pod_of(inspect)
    pods[1]["spec"]["serviceAccountName"] = "another"
    prune = build_prune_job(KEY, cache(), spec(), ["a-1"], {"uid": 1}, settings, pods)
    assert "serviceAccountName" not in pod_of(prune)


@law(CACHES)
def test_names_of_small_jobs_are_dns_labels_too(name: str) -> None:
    key = Key("inference", name)
    for job in (
        build_inspect_job(key, cache(name), spec(), ["a-1"], "q", SETTINGS),
        build_prune_job(key, cache(name), spec(), ["a-1"], {"uid": 1, "gid": 1}, SETTINGS),
    ):
        assert LABEL.fullmatch(job["metadata"]["name"])


# --- against the API's own schema


def full() -> Template:
    return (
        template()
        .init(
            "fetch",
            command=["get", "model"],
            volumeMounts=[{"name": "models", "mountPath": "/models"}],
        )
        .container(
            "vllm",
            ports=[{"name": "http", "containerPort": 8000}],
            readinessProbe={**web("http"), "timeoutSeconds": 5},
            livenessProbe=web("http"),
            volumeMounts=[{"name": "models", "mountPath": "/models", "readOnly": True}],
            securityContext={"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}},
            resources={"limits": {"cpu": "4", "memory": "8Gi"}, "requests": {"cpu": "2"}},
        )
        .gpus("8")
        .args("serve", "qwen3", "--port", "$(PORT)")
        .env(PORT="8000", TOKEN={"secretKeyRef": {"name": "hf", "key": "token"}})
        .container("proxy", image="proxy:1")
        .pod(
            nodeSelector={"nvidia.com/gpu.product": "NVIDIA-B200"},
            tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
            volumes=[{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        )
    )


def jobs() -> dict[str, Object]:
    return {
        "plain": tuned(engine()),
        "full": tuned(full(), Target("b200", {"zone": "a"}), tuning={"keepContainers": ["proxy"]}),
        "pinned": tuned(full().pod(nodeName="node0")),
        "proof": proof(full(), tuning={"keepContainers": ["proxy"]}),
        "proof on the claim": proof(full(), on_claim=True),
        "inspect": asked(),
        "prune": small_jobs()[1],
    }


@pytest.mark.parametrize("job", jobs().values(), ids=jobs())
def test_the_api_knows_every_field_of_our_jobs(job: Object) -> None:
    kubernetes_validate.validate(job, "1.34", strict=True)
    json.dumps(job)
