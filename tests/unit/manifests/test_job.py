"""The tuning Job is a copy of the serving pod, except for the fields in docs/dev/invariants.md, 10.

Inspect and prune Jobs are small and hold no GPU.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.reasons import REASONS
from pretune.api.spec import Target
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.engines.vllm import cli
from pretune.manifests.agent_archive import agent_digest
from pretune.manifests.agent_container import build_script
from pretune.manifests.job import (
    attempt_name,
    build_inspect_job,
    build_proof_job,
    build_prune_job,
    build_tuning_job,
)
from pretune.podspec import identity
from pretune.podspec.template import count_gpus
from pretune.protocol import Report, Task

from tests.builders.caches import cache, spec
from tests.builders.constants import AGENT, DEFAULT, KEY, SETTINGS
from tests.builders.strategies import NAMES, law, templates
from tests.builders.templates import Template, engine, stored, template

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def tuned(
    pod: Object, target: Target = DEFAULT, settings: Settings = SETTINGS, **fields: Any
) -> Object:
    """The Job that tunes a template whose engine is its container "vllm"."""
    return build_tuning_job(
        KEY, cache(engineContainer="vllm", **fields), pod, target, 1, settings, AGENT
    )


def proof(pod: Object, on_claim: bool = False, **fields: Any) -> Object:
    """The Job that proves the bundle of a template whose engine is its container "vllm"."""
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


# --- docs/dev/invariants.md, 10


@law(templates())
def test_the_engine_differs_only_in_the_override_variable_probes_hooks_and_place(
    pod: Object,
) -> None:
    served, tuning = pod["spec"]["containers"][0], engine_in(tuned(pod))
    probes = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
    ours = (*probes, "restartPolicy", "env", "volumeMounts", "terminationMessagePolicy", "ports")
    assert [
        {name: value for name, value in port.items() if name not in ("hostPort", "hostIP")}
        for port in served.get("ports", ())
    ] == tuning.get("ports", [])
    assert {name: value for name, value in tuning.items() if name not in ours} == {
        name: value for name, value in served.items() if name not in ours
    }
    other = [variable for variable in tuning["env"] if variable["name"] != cli.OVERRIDE]
    assert other == [
        variable for variable in served.get("env", []) if variable["name"] != cli.OVERRIDE
    ]
    assert tuning["volumeMounts"][:-1] == served.get("volumeMounts", [])
    assert (
        env_of(tuning)[cli.OVERRIDE]
        == tuning["volumeMounts"][-1]["mountPath"]
        == "/pretune/tactics"
    )
    assert [variable["name"] for variable in tuning["env"]].count(cli.OVERRIDE) == 1
    assert tuning["restartPolicy"] == "Always"
    assert not {"readinessProbe", "livenessProbe", "lifecycle"} & set(tuning)


@law(templates())
def test_the_job_tunes_what_its_fingerprint_says(pod: Object) -> None:
    """What the Job runs has the template's fingerprint, as if it were a template itself."""
    job = tuned(pod)
    copied = {
        "spec": {
            "containers": [engine_in(job)],
            "initContainers": pod_of(job)["initContainers"][1:-1],
        }
    }
    assert identity.fingerprint(copied, "vllm") == job["metadata"]["annotations"][names.FINGERPRINT]


@law(templates())
def test_the_job_of_a_template_as_stored_is_that_of_the_template_as_written(pod: Object) -> None:
    assert tuned(stored(pod))["metadata"]["name"] == tuned(pod)["metadata"]["name"]


@law(templates())
def test_building_a_job_leaves_its_inputs_as_they_are_and_shares_nothing_with_them(
    pod: Object,
) -> None:
    the_cache, before = (
        cache(engineContainer="vllm", tuning={"tolerations": [{"key": "x"}]}),
        copy.deepcopy(pod),
    )
    cache_before = copy.deepcopy(the_cache)
    job = build_tuning_job(KEY, the_cache, pod, DEFAULT, 1, SETTINGS, AGENT)
    assert (pod, the_cache) == (before, cache_before)
    spoil(job)
    assert (pod, the_cache) == (before, cache_before)


def spoil(value: Any) -> None:
    for item in list(value.values() if isinstance(value, dict) else value):
        if isinstance(item, dict | list):
            spoil(item)
    value.clear()


def test_the_override_stays_where_it_stood_so_that_what_refers_to_it_finds_ours() -> None:
    pod = (
        engine()
        .env(A="1", **{cli.OVERRIDE: "/old"})
        .env(LOG="$(VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR)/log")
        .env(**{cli.OVERRIDE: "/b"})
    )
    assert [variable["name"] for variable in engine_in(tuned(pod))["env"]] == [
        "A",
        cli.OVERRIDE,
        "LOG",
    ]


# --- docs/dev/invariants.md, 6 and 7


@law(templates())
def test_no_label_of_the_template_is_on_the_tuning_pod(pod: Object) -> None:
    labels = tuned(pod)["spec"]["template"]["metadata"]["labels"]
    assert not set(pod["metadata"]["labels"]) & set(labels)
    assert all("/" in name for name in labels)  # ours and the meshes' only


def test_labels_and_annotations_of_the_job_and_its_pod() -> None:
    overlay = {
        "labels": {"kueue.x-k8s.io/queue-name": "gpus", names.CACHE: "mine"},
        "annotations": {"team": "a", "own": "no"},
    }
    pod = engine().labels(app="qwen3")
    pod["metadata"]["annotations"] = {
        "own": "yes",
        "sidecar.istio.io/inject": "true",
        "k8s.v1.cni.cncf.io/networks": "rdma",
    }
    job = tuned(pod, tuning={"podTemplate": {"metadata": overlay}})
    inputs = identity.inputs(pod, spec(), DEFAULT)
    labels = {
        "kueue.x-k8s.io/queue-name": "gpus",
        "pretune.dev/cache": "qwen3",
        "pretune.dev/role": "tuning",
        "pretune.dev/bundle": inputs.bundle_id(),
        "pretune.dev/attempt": "1",
    }
    ours = {
        "pretune.dev/fingerprint": inputs.fingerprint,
        "pretune.dev/storage": "pretune-qwen3/",
        "pretune.dev/engine": "vllm",
        "pretune.dev/gpus": "1",
    }
    annotations = {"team": "a", "own": "no", **ours}
    assert job["metadata"]["labels"] == labels
    assert job["metadata"]["annotations"] == {**annotations, "pretune.dev/generation": "1"}
    assert job["spec"]["template"]["metadata"] == {
        "labels": {
            **labels,
            "sidecar.istio.io/inject": "false",
            "kuma.io/sidecar-injection": "disabled",
        },
        "annotations": {
            "k8s.v1.cni.cncf.io/networks": "rdma",
            "sidecar.istio.io/inject": "false",
            "kuma.io/sidecar-injection": "disabled",
            "linkerd.io/inject": "disabled",
            "consul.hashicorp.com/connect-inject": "false",
            "karpenter.sh/do-not-disrupt": "true",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            **annotations,
        },
    }


def test_annotations_that_act_stay_with_the_pods_that_serve() -> None:
    acting = {
        "cni.projectcalico.org/ipAddrs": '["10.0.0.9"]',
        "net1.default.ovn.kubernetes.io/ip_address": "10.0.0.9",
        "dual-pods.llm-d.ai/requester": "pod-1",
        "scheduling.k8s.io/group-name": "serving",
        "kueue.x-k8s.io/pod-suspending-parent": "deployment",
        "kueue.x-k8s.io/queue-name": "serving",
        "prometheus.io/scrape": "true",
        "llm-d.ai/role": "decode",
        "karpenter.sh/do-not-disrupt": "false",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
    }
    kept = {
        "team": "a",
        "vault.hashicorp.com/agent-inject-status": "injected",
        "cni.projectcalico.org/ipv4pools": '["gpu"]',
        "myprometheus.io/scrape": "true",
    }
    pod = engine()
    pod["metadata"]["annotations"] = {**acting, **kept}
    overlay = {"annotations": {"kueue.x-k8s.io/queue-name": "gpus"}}
    job = tuned(pod, tuning={"podTemplate": {"metadata": overlay}})
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert {name: annotations[name] for name in annotations if name in acting} == {
        "kueue.x-k8s.io/queue-name": "gpus",  # only spec.tuning.podTemplate sets it
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    assert {name: annotations.get(name) for name in kept} == kept


def test_a_network_is_kept_and_a_fixed_address_in_it_is_not() -> None:
    name = "k8s.v1.cni.cncf.io/networks"
    fixed = [{"name": "rdma", "ips": ["10.0.0.9/24"], "mac": "02:00:00:00:00:01"}, {"name": "b"}]
    for value, expected in (
        (json.dumps(fixed), [{"name": "rdma"}, {"name": "b"}]),
        (json.dumps(fixed[1:]), [{"name": "b"}]),
        (json.dumps([{"name": "b", "cni-args": {"ips": ["10.0.0.9/24"]}}]), [{"name": "b"}]),
        ("default/rdma@net1", "default/rdma@net1"),
        ("[" * 100_000, "[" * 100_000),
    ):
        pod = engine()
        pod["metadata"]["annotations"] = {name: value}
        got = tuned(pod)["spec"]["template"]["metadata"]["annotations"][name]
        assert got == expected or json.loads(got) == expected


def test_an_apparmor_annotation_goes_with_its_container_since_the_api_refuses_it_alone() -> None:
    pod = engine().container("proxy")
    prefix = "container.apparmor.security.beta.kubernetes.io/"
    pod["metadata"]["annotations"] = {prefix + "vllm": "unconfined", prefix + "proxy": "unconfined"}
    annotations = tuned(pod)["spec"]["template"]["metadata"]["annotations"]
    assert [name for name in annotations if name.startswith(prefix)] == [prefix + "vllm"]


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


def volume(job: Object, name: str) -> Object:
    return next(volume for volume in pod_of(job)["volumes"] if volume["name"] == name)  # type: ignore[no-any-return]


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


# --- the probe


def web(port: Any, **more: Any) -> Object:
    return {"httpGet": {"path": "/health", "port": port, **more}}


PROBES: list[tuple[str, Template, Object, str | None]] = [
    (
        "readiness before startup",
        engine(readinessProbe=web(8001), startupProbe=web(9)),
        web(8001),
        "http://127.0.0.1:8001/health",
    ),
    (
        "startup where there is no readiness",
        engine(startupProbe=web(9), livenessProbe=web(7)),
        web(9),
        "http://127.0.0.1:9/health",
    ),
    (
        "only handler, headers and timeout",
        engine(
            readinessProbe={
                **web(1, httpHeaders=[{"name": "A", "value": "b"}]),
                "timeoutSeconds": 9,
                "initialDelaySeconds": 60,
                "periodSeconds": 30,
                "successThreshold": 3,
                "failureThreshold": 2,
            }
        ),
        {**web(1, httpHeaders=[{"name": "A", "value": "b"}]), "timeoutSeconds": 9},
        "http://127.0.0.1:1/health",
    ),
    (
        "a named port stays, and is resolved for seal",
        engine(
            readinessProbe=web("api"),
            ports=[{"containerPort": 1}, {"name": "api", "containerPort": 8443}],
        ),
        web("api"),
        "http://127.0.0.1:8443/health",
    ),
    ("a named port that is not there", engine(readinessProbe=web("api")), web("api"), None),
    (
        "scheme and path, and never a host",
        engine(readinessProbe=web("8443", scheme="HTTPS", host="fd00::1", path="ready?x=1")),
        web("8443", scheme="HTTPS", path="ready?x=1"),
        "https://127.0.0.1:8443/ready?x=1",
    ),
    (
        "no path",
        engine(readinessProbe={"httpGet": {"port": 8000}}),
        {"httpGet": {"port": 8000}},
        "http://127.0.0.1:8000/",
    ),
    (
        "exec",
        engine(readinessProbe={"exec": {"command": ["ok"]}}),
        {"exec": {"command": ["ok"]}},
        None,
    ),
    ("grpc", engine(readinessProbe={"grpc": {"port": 1}}), {"grpc": {"port": 1}}, None),
    ("tcp", engine(readinessProbe={"tcpSocket": {"port": 1}}), {"tcpSocket": {"port": 1}}, None),
    ("none", engine(), {**web(8000), "timeoutSeconds": 5}, "http://127.0.0.1:8000/health"),
    (
        "none, at a port",
        engine().args("serve", "--port=9"),
        {**web(9), "timeoutSeconds": 5},
        "http://127.0.0.1:9/health",
    ),
    (
        "an empty one",
        engine(readinessProbe={"periodSeconds": 1}),
        {**web(8000), "timeoutSeconds": 5},
        "http://127.0.0.1:8000/health",
    ),
]


@pytest.mark.parametrize(
    ("pod", "handler", "url"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES]
)
def test_the_engine_has_started_when_it_would_be_ready(
    pod: Template, handler: Object, url: str | None
) -> None:
    job = tuned(pod, tuning={"deadlineSeconds": 600})
    assert engine_in(job)["startupProbe"] == {
        **handler,
        "periodSeconds": 2,
        "successThreshold": 1,
        "failureThreshold": 360,
    }
    task = task_of(seal_in(job))
    assert task.ready == url
    assert task.headers == ({"A": "b"} if "httpHeaders" in handler.get("httpGet", {}) else {})


@pytest.mark.parametrize(
    ("pod", "urls"),
    [
        (engine(readinessProbe=web(1)), []),
        (engine(), []),
        (
            engine(readinessProbe={"tcpSocket": {"port": 8080}}),
            ["http://127.0.0.1:8080/health", "http://127.0.0.1:8080/v2/health/ready"],
        ),
        (
            engine(
                readinessProbe={"tcpSocket": {"port": "api", "host": "10.0.0.1"}},
                ports=[{"name": "api", "containerPort": 81}],
            ),
            ["http://127.0.0.1:81/health", "http://127.0.0.1:81/v2/health/ready"],
        ),
        (
            engine(readinessProbe={"exec": {"command": ["ok"]}}).args(
                "serve", "--port", "9", "--ssl-certfile", "/c"
            ),
            ["https://127.0.0.1:9/health", "https://127.0.0.1:9/v2/health/ready"],
        ),
    ],
)
def test_an_engine_without_an_http_probe_is_asked_where_it_would_answer_itself(
    pod: Template, urls: list[str]
) -> None:
    assert task_of(seal_in(tuned(pod))).health == urls
    assert task_of(seal_in(proof(pod))).health == urls
    assert "host" not in json.dumps(engine_in(tuned(pod))["startupProbe"])


@law(st.integers(60, 10**6))
def test_the_probe_never_gives_up_before_the_deadline(deadline: int) -> None:
    probe = engine_in(tuned(engine(), tuning={"deadlineSeconds": deadline}))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > deadline + 60


# --- the pod


@law(templates(), st.lists(NAMES, max_size=3))
def test_what_starts_before_the_engine_keeps_its_order_and_only_init_containers_and_kept_ones_do(
    pod: Object, more: list[str]
) -> None:
    init = pod["spec"]["initContainers"]
    beside = [container["name"] for container in pod["spec"]["containers"][1:]]
    keep = [*(container["name"] for container in init), *beside][::2] + more
    job = tuned(pod, tuning={"keepContainers": keep})
    wanted = [
        container["name"]
        for container in init
        if container.get("restartPolicy") != "Always" or container["name"] in keep
    ]
    wanted += [name for name in beside if name in keep]
    assert [container["name"] for container in pod_of(job)["initContainers"]] == [
        "pretune-check",
        *wanted,
        "vllm",
    ]
    assert [container["name"] for container in pod_of(job)["containers"]] == ["pretune-seal"]


def test_init_containers_stay_as_they_are_and_a_kept_container_becomes_a_sidecar() -> None:
    pod = (
        engine()
        .init("fetch", command=["get"])
        .init("cloud", restartPolicy="Always", startupProbe={"exec": {"command": ["up"]}})
    )
    pod.init("metrics", restartPolicy="Always").container(
        "store", startupProbe=web(1), livenessProbe=web(1), args=["-x"]
    )
    before = pod_of(tuned(pod, tuning={"keepContainers": ["cloud", "store"]}))["initContainers"][
        1:-1
    ]
    assert before[:2] == pod["spec"]["initContainers"][:2]
    assert before[2:] == [
        {"name": "store", "image": "vllm:1", "args": ["-x"], "restartPolicy": "Always"}
    ]


@law(templates())
def test_every_mount_has_its_volume_and_no_volume_is_there_for_nothing(pod: Object) -> None:
    copied = pod_of(tuned(pod))
    mounted = {
        mount["name"]
        for container in copied["initContainers"] + copied["containers"]
        for mount in container.get("volumeMounts", [])
    }
    assert {volume["name"] for volume in copied["volumes"]} == mounted
    assert len(copied["volumes"]) == len(mounted)


def test_fields_of_the_pod_that_are_kept_dropped_and_set() -> None:
    kept: Object = {
        "runtimeClassName": "nvidia",
        "serviceAccountName": "model",
        "imagePullSecrets": [{"name": "pull"}],
        "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
        "hostIPC": True,
        "shareProcessNamespace": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "enableServiceLinks": False,
        "schedulerName": "volcano",
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}],
        "fieldOfTomorrow": {"kept": True},
    }
    dropped: Object = {
        "hostNetwork": True,
        "hostname": "qwen3-0",
        "subdomain": "qwen3",
        "priority": 1000,
        "priorityClassName": "serving",
        "preemptionPolicy": "PreemptLowerPriority",
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "schedulingGates": [{"name": "gate"}],
        "readinessGates": [{"conditionType": "Routed"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "host"}]
            }
        },
        "terminationGracePeriodSeconds": 600,
        "restartPolicy": "Always",
        "automountServiceAccountToken": True,
    }
    copied = pod_of(tuned(engine().pod(**kept, **dropped)))
    ours = {
        name: value
        for name, value in copied.items()
        if name not in (*kept, "initContainers", "containers", "volumes")
    }
    assert {name: copied[name] for name in kept} == kept
    assert ours == {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "activeDeadlineSeconds": 5400,
        "automountServiceAccountToken": False,
        "priorityClassName": "pretune-tuning",
    }


def test_a_copy_is_on_a_network_of_its_own_and_takes_no_port_of_its_node() -> None:
    """Else production answers its probe, or it gets production's requests (SO_REUSEPORT)."""
    port = {"containerPort": 8000, "hostPort": 8000, "hostIP": "10.0.0.1", "protocol": "TCP"}
    pod = (
        engine(ports=[dict(port)], readinessProbe=web(8000, host="127.0.0.1"))
        .init("fetch", ports=[dict(port)])
        .container("store", ports=[dict(port)])
        .pod(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")
    )
    fields: Object = {"engineContainer": "vllm", "tuning": {"keepContainers": ["store"]}}
    for job in (
        build_tuning_job(KEY, cache(**fields), pod, DEFAULT, 1, SETTINGS, AGENT),
        build_proof_job(KEY, cache(**fields), pod, DEFAULT, 1, SETTINGS, AGENT),
        build_proof_job(KEY, cache(**fields), pod, DEFAULT, 1, SETTINGS, AGENT, on_claim=True),
    ):
        text = json.dumps(job)
        assert "hostNetwork" not in text and "hostPort" not in text and "hostIP" not in text
        assert '"host"' not in text
        ports = [each["ports"] for each in pod_of(job)["initContainers"] if each.get("ports")]
        assert ports == [[{"containerPort": 8000, "protocol": "TCP"}]] * 3


@pytest.mark.parametrize(
    ("pod", "links"),
    [
        (engine(), False),
        (engine().pod(enableServiceLinks=True), True),
        (engine().pod(enableServiceLinks=False), False),
        (engine().args("serve", "--kv", "$(CACHE_SERVICE_HOST):1"), True),
        (engine(command=["sh", "-c", "vllm --kv ${CACHE_PORT_80_TCP_ADDR}"]), True),
        (engine().env(REMOTE="lm://$(LMCACHE_SERVICE_HOST)"), True),
        (engine().env(VLLM_HOST_PORT="1"), False),
    ],
)
def test_addresses_of_services_are_given_to_a_copy_that_uses_them_only(
    pod: Template, links: bool
) -> None:
    assert pod_of(tuned(pod))["enableServiceLinks"] is links


def test_service_links_that_the_api_server_set_in_a_pod_are_not_the_templates() -> None:
    example = copy.deepcopy(dict(engine().pod(enableServiceLinks=True)))
    job = build_tuning_job(KEY, cache(), engine(), DEFAULT, 1, SETTINGS, AGENT, example)
    assert pod_of(job)["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["serve", "--api-key", "KEY", "--port", "1"],
            ["serve", "--api-key", "***", "--port", "1"],
        ),
        (["--api-key", "KEY", "KEY2", "-tp", "2"], ["--api-key", "***", "***", "-tp", "2"]),
        (["--api_key=KEY", "x"], ["--api_key=***", "x"]),
        (["--hf-token=KEY"], ["--hf-token=***"]),
        (
            ["sh", "-c", "exec vllm serve q --api-key 'KEY 1' --port 9"],
            ["sh", "-c", "exec vllm serve q --api-key *** --port 9"],
        ),
        (["--api-key-file", "/a"], ["--api-key-file", "/a"]),
    ],
)
def test_a_key_in_the_arguments_is_in_the_engine_and_nowhere_else(
    words: list[str], shown: list[str]
) -> None:
    pod = engine().args(*words)
    for job in (tuned(pod), proof(pod)):
        assert engine_in(job)["args"] == words
        assert task_of(seal_in(job)).command == shown
        rest = copy.deepcopy(job)
        del engine_in(rest)["args"]
        assert "KEY" not in json.dumps(rest)


def test_an_attempt_runs_on_the_nodes_where_its_claim_is_in_use() -> None:
    term = {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    pod = engine().pod(affinity={"nodeAffinity": nodes})
    job = build_tuning_job(KEY, cache(), pod, DEFAULT, 1, SETTINGS, AGENT, None, ["n1", "n2"])
    required = pod_of(job)["affinity"]["nodeAffinity"]
    assert required["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == [
        {**term, "matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}
        for name in ("n1", "n2")
    ]
    assert (
        job["metadata"]["labels"][names.BUNDLE] == identity.inputs(pod, spec(), DEFAULT).bundle_id()
    )


def test_the_token_that_an_engine_mounts_itself_stays() -> None:
    token = {
        "name": "token",
        "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
    }
    pod = engine(volumeMounts=[{"name": "token", "mountPath": "/token"}]).pod(volumes=[token])
    assert volume(tuned(pod), "token") == token


@pytest.mark.parametrize(
    ("asked", "installed", "priority"),
    [("mine", "chart", "mine"), ("", "chart", "chart"), ("", "", None)],
)
def test_the_priority_class_is_the_caches_else_the_charts_else_none(
    asked: str, installed: str, priority: str | None
) -> None:
    settings = Settings(operator_image="o", priority_class=installed)
    job = tuned(
        engine(), settings=settings, tuning={"podTemplate": {"spec": {"priorityClassName": asked}}}
    )
    assert pod_of(job).get("priorityClassName") == priority


def test_the_targets_terms_are_laid_over_the_pods_own() -> None:
    mine, taint, ours = ({"key": key, "operator": "Exists"} for key in ("mine", "gpu", "ours"))
    pod = engine().pod(
        nodeSelector={"product": "H200", "zone": "a"}, tolerations=[mine, taint], nodeName="node0"
    )
    target = Target("b200", {"product": "B200"}, (taint,))
    copied = pod_of(
        tuned(pod, target, tuning={"podTemplate": {"spec": {"tolerations": [ours, mine]}}})
    )
    assert copied["nodeSelector"] == {"product": "B200", "zone": "a"}
    assert copied["tolerations"] == [mine, taint, ours]
    assert copied["affinity"] == {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "In", "values": ["node0"]}
                        ]
                    }
                ]
            }
        }
    }


# --- check and seal


@law(templates())
def test_only_the_engine_keeps_its_gpus(pod: Object) -> None:
    job = tuned(pod)
    for container in (check_in(job), seal_in(job)):
        assert count_gpus(container) == 0
        assert env_of(container)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert (
        count_gpus(engine_in(job))
        == count_gpus(pod["spec"]["containers"][0])
        == task_of(seal_in(job)).gpus
    )


@law(templates())
def test_check_copies_the_engines_resources_so_that_no_quota_counts_it(pod: Object) -> None:
    own, copied = engine_in(tuned(pod)).get("resources", {}), check_in(tuned(pod))["resources"]
    named = ("cpu", "memory", "ephemeral-storage")
    for kind in ("limits", "requests"):
        wanted = {name: own[kind][name] for name in named if name in own.get(kind, {})}
        assert copied.get(kind, {}) == wanted


@pytest.mark.parametrize(
    ("limits", "requests", "cpu"),
    [
        ({}, {}, "100m"),
        ({"cpu": "8", "memory": "64Gi"}, {"cpu": "4", "memory": "64Gi"}, "100m"),
        ({"memory": "64Gi"}, {"cpu": "8", "memory": "64Gi"}, "100m"),
        ({"cpu": "8", "memory": "64Gi"}, {"cpu": "8", "memory": "64Gi"}, "500m"),
        ({"cpu": "8", "memory": "64Gi"}, {}, "500m"),
    ],
)
def test_seal_requests_little_but_its_whole_limit_where_the_engine_is_guaranteed(
    limits: Object, requests: Object, cpu: str
) -> None:
    resources = seal_in(tuned(engine(resources={"limits": limits, "requests": requests})))
    assert resources["resources"] == {
        "limits": {"cpu": "500m", "memory": "256Mi"},
        "requests": {"cpu": cpu, "memory": "256Mi"},
    }


def test_in_a_pod_with_resources_our_containers_have_none_since_they_could_exceed_them() -> None:
    job = tuned(
        engine(resources={"limits": {"cpu": 1}}).pod(
            resources={"limits": {"cpu": 1, "memory": "1Gi"}}
        )
    )
    assert check_in(job)["resources"] == seal_in(job)["resources"] == {}


def test_the_mounts_of_each_container() -> None:
    pod = engine(volumeMounts=[{"name": "models", "mountPath": "/models"}]).pod(
        volumes=[{"name": "models", "emptyDir": {}}]
    )
    job = tuned(pod)
    agent, claim = (
        {"name": "pretune-agent", "mountPath": "/pretune/agent", "readOnly": True},
        {"name": "pretune-claim", "mountPath": "/pretune/claim"},
    )
    assert check_in(job)["volumeMounts"] == [agent, claim]
    assert seal_in(job)["volumeMounts"] == [
        agent,
        claim,
        {"name": "pretune-tactics", "mountPath": "/pretune/tactics", "readOnly": True},
    ]
    assert [mount["name"] for mount in engine_in(job)["volumeMounts"]] == [
        "models",
        "pretune-tactics",
    ]
    assert volume(job, "pretune-agent")["configMap"] == {"name": AGENT, "optional": True}
    assert volume(job, "pretune-claim")["persistentVolumeClaim"] == {"claimName": "pretune-qwen3"}
    assert volume(job, "pretune-tactics")["emptyDir"] == {}


def test_check_and_seal_run_in_the_engines_image_with_its_path() -> None:
    pod = engine(image="vllm@sha256:1", imagePullPolicy="Always")
    pod.env(
        UNUSED="1",
        VENV={"configMapKeyRef": {"name": "c", "key": "venv"}},
        BIN="$(VENV)/bin",
        PATH="$(BIN):/bin",
        HOME="/h",
    )
    for container in (check_in(tuned(pod)), seal_in(tuned(pod))):
        assert (container["image"], container["imagePullPolicy"]) == ("vllm@sha256:1", "Always")
        assert [variable["name"] for variable in container["env"]] == [
            "VENV", "BIN", "PATH", "PRETUNE_POD_UID", "PRETUNE_TASK", "NVIDIA_VISIBLE_DEVICES",
        ]  # fmt: skip


@law(templates())
def test_the_task_arrives_as_it_was_meant_whatever_dollars_the_engines_words_hold(
    pod: Object,
) -> None:
    served = pod["spec"]["containers"][0]
    for container in (check_in(tuned(pod)), seal_in(tuned(pod))):
        task = task_of(container)
        assert task.command == [*served.get("command", []), *served.get("args", [])]
        assert task.inputs == identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT)
        assert task.cache == "inference.qwen3"


@pytest.mark.parametrize(
    ("own", "ours"),
    [
        (None, {"allowPrivilegeEscalation": False}),
        ({"privileged": True, "runAsUser": 0}, {"runAsUser": 0, "allowPrivilegeEscalation": False}),
        (
            {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
            {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
        ),
        (
            {
                "capabilities": {"add": ["IPC_LOCK", "SYS_ADMIN", "DAC_OVERRIDE"], "drop": ["ALL"]},
                "allowPrivilegeEscalation": True,
            },
            {
                "capabilities": {"add": ["DAC_OVERRIDE"], "drop": ["ALL"]},
                "allowPrivilegeEscalation": False,
            },
        ),
    ],
    ids=["none", "privileged", "restricted", "capabilities"],
)
def test_check_and_seal_read_and_write_as_the_engine_does_with_no_more_rights_than_that(
    own: Object | None, ours: Object
) -> None:
    job = tuned(engine(securityContext=own) if own else engine())
    assert check_in(job)["securityContext"] == seal_in(job)["securityContext"] == ours


# Asked for its version, or given the program that compares the agent.
FAKE = """#!/bin/sh
[ $# = 4 ] && exit {old}
shift 4
echo "$@" > {output}
"""


def run_script(tmp_path: Any, python: str | None, agent: bool = True) -> tuple[int, str, str]:
    """Run the shell script of check in tmp_path.

    Return its exit code, its termination message, and the arguments of python3.
    """
    text = build_script("check").replace("/dev/termination-log", str(tmp_path / "log"))
    text = text.replace("/pretune/agent/agent.py", str(tmp_path / "agent.py"))
    (tmp_path / "bin").mkdir()
    if python is not None:
        (tmp_path / "bin" / "python3").write_text(python)
        (tmp_path / "bin" / "python3").chmod(0o755)
    if agent:
        (tmp_path / "agent.py").touch()
    done = subprocess.run(
        ["/bin/sh", "-c", text],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        check=False,
    )
    read = [
        (tmp_path / name).read_text() if (tmp_path / name).exists() else ""
        for name in ("log", "output")
    ]
    return done.returncode, read[0], read[1].strip()


@pytest.mark.parametrize(
    ("python", "agent", "reason"),
    [(None, True, "NoPython"), ("old", True, "NoPython"), ("new", False, "AgentMissing")],
)
def test_what_keeps_the_agent_from_running_is_reported_by_the_shell(
    tmp_path: Any, python: str | None, agent: bool, reason: str
) -> None:
    fake = FAKE.format(old=int(python == "old"), output=tmp_path / "output") if python else None
    code, log, output = run_script(tmp_path, fake, agent)
    report = Report.load(log)
    assert report is not None
    assert (code, report.by, report.reason, output) == (1, "check", reason, "")
    assert report.message
    assert reason in REASONS


def test_otherwise_the_shell_hands_over_to_the_agent(tmp_path: Any) -> None:
    code, log, output = run_script(tmp_path, FAKE.format(old=0, output=tmp_path / "output"))
    agent, digest, rest = output.split(" ", 2)
    _, log_file, verb = rest.rsplit(" ", 2)
    assert (code, log) == (0, "")
    assert (agent, digest) == (f"{tmp_path}/agent.py", agent_digest())
    assert (log_file, verb) == (f"{tmp_path}/log", "check")


def test_an_agent_that_something_else_wrote_does_not_run(tmp_path: Any) -> None:
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    code, log, _ = run_script(tmp_path, python)  # the file is empty
    report = Report.load(log)
    assert report is not None
    assert code != 0
    assert (report.by, report.reason) == ("check", "AgentChanged")


@pytest.mark.parametrize("verb", ["check", "seal"])
def test_the_kubelet_finds_nothing_to_replace_in_the_script(verb: str) -> None:
    assert "$(" not in build_script(verb)
    assert "$$" not in build_script(verb)


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
