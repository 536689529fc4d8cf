"""The pod of an attempt is a copy of the serving pod, except for docs/dev/invariants.md, 10."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.config import Settings
from pretune.engines.vllm import cli
from pretune.manifests.job import build_proof_job, build_tuning_job
from pretune.podspec import identity

from tests.builders.caches import cache, spec
from tests.builders.constants import AGENT, DEFAULT, KEY, SETTINGS
from tests.builders.strategies import NAMES, law, templates
from tests.builders.templates import Template, engine, stored
from tests.builders.tuning_jobs import (
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


# --- the probe

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
        "none, and a certificate",
        engine().args("serve", "--ssl-certfile", "/c"),
        {**web(8000, scheme="HTTPS"), "timeoutSeconds": 5},
        "https://127.0.0.1:8000/health",
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
