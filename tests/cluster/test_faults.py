"""Invalid input on the real cluster, and the messages that users read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import CreateCache
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.workloads import engine_template

WaitForCondition = Callable[..., Object]
TUNING = "pretune.dev/role=tuning"
ONCE = {"maxAttempts": 1}
TP2 = ("--tensor-parallel-size", "2")


def test_a_missing_source_is_reported_and_used_once_it_exists(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(
        source={"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "serving"}}
    )
    cache = wait_for_condition(kind="Stalled", reason="SourceNotFound")
    assert "/serving does not exist" in condition(cache, "Stalled")["message"]
    template = engine_template()
    kube.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": namespace, "name": "serving"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": template["metadata"]["labels"]},
                "template": template,
            },
        }
    )
    wait_for_condition()


@pytest.mark.parametrize(
    ("ref", "reason", "words"),
    [
        (
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "models"},
            "SourceNotSupported",
            "spec.template",
        ),
        (
            {"apiVersion": "example.com/v1", "kind": "Nothing", "name": "x"},
            "SourceNotSupported",
            "Nothing",
        ),
        ({"apiVersion": "batch/v1", "kind": "CronJob", "name": "x"}, "SourceForbidden", "cronjobs"),
    ],
    ids=["no template", "no such kind", "no right"],
)
def test_a_source_that_cannot_be_used_is_reported_by_name(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    ref: Object,
    reason: str,
    words: str,
) -> None:
    kube.create(claim(namespace, "models", "local-rwx-wait"))
    create_cache(source={"workloadRef": ref})
    cache = wait_for_condition(kind="Stalled", reason=reason)
    assert words in condition(cache, "Stalled")["message"]


def test_a_template_that_the_api_server_refuses_has_its_message(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template(imagePullPolicy="Sometimes"))
    cache = wait_for_condition(kind="Stalled", reason="SourceInvalid")
    assert 'Unsupported value: "Sometimes"' in condition(cache, "Stalled")["message"]
    assert not kube.list("Job", namespace, TUNING)


def _second_engine(pod: Object) -> None:
    pod["containers"].append({**pod["containers"][0], "name": "second"})


def _shared_device(pod: Object) -> None:
    pod["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "ours"}]
    pod["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}


def _engine(**fields: Any) -> Callable[[Object], None]:
    return lambda pod: pod["containers"][0].update(fields)


def _volume(claim: str) -> Callable[[Object], None]:
    def add(pod: Object) -> None:
        pod["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/models"}]

    return add


@pytest.mark.parametrize(
    ("spoil", "spec", "reason", "words"),
    [
        (bool, {"engineContainer": "nope"}, "EngineNotFound", "vllm"),
        (_second_engine, {}, "EngineAmbiguous", "second"),
        (_engine(args=["serve", "demo", "--nnodes", "2"]), {}, "MultiPodEngine", "--nnodes"),
        (
            _engine(env=[{"name": "DYN_NAMESPACE", "value": "prod"}]),
            {},
            "SelfRegistering",
            "DYN_NAMESPACE",
        ),
        (
            _engine(resources={"limits": {"nvidia.com/mig-1g.10gb": "1"}}),
            {},
            "SharedGPU",
            "nvidia.com/mig-1g.10gb",
        ),
        (_shared_device, {}, "SharedResourceClaim", "ours"),
        (_volume("rwop"), {}, "SingleUseClaim", "rwop"),
    ],
    ids=[
        *(
            "no such container",
            "two GPU containers",
            "several pods",
            "self-registering",
            "part of a GPU",
        ),
        *("a claimed device", "a volume for one pod"),
    ],
)
def test_an_engine_that_cannot_be_copied_is_refused_before_any_job(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition,
    spoil: Callable[[Object], object], spec: Object, reason: str, words: str,
) -> None:  # fmt: skip
    kube.create(claim(namespace, "rwop", "local-rwx-wait", "ReadWriteOncePod"))
    template = engine_template()
    spoil(template["spec"])
    create_cache(template=template, **spec)
    cache = wait_for_condition(kind="Stalled", reason=reason)
    assert words in condition(cache, "Stalled")["message"]
    assert not kube.list("Job", namespace, TUNING)


@pytest.mark.parametrize(
    ("template", "state", "reason", "words"),
    [
        (engine_template("0.24.0"), "Refused", "ReleaseTooOld", "0.24.0"),
        (engine_template("0.31.0", gpus=2, args=TP2), "Refused", "SharedLayout", "0.31.0"),
        (engine_template(env={"PATH": "/opt/shell"}), "Refused", "NoPython", "python3"),
        (
            engine_template(image="localhost/pretune/nothing:dev"),
            "Failed",
            "ImagePullFailed",
            "nothing:dev",
        ),
        (
            engine_template(envFrom=[{"secretRef": {"name": "hf-token"}}]),
            "Failed",
            "ContainerConfigError",
            "hf-token",
        ),
        (engine_template(env={"ENGINE_FAULT": "crash"}), "Failed", "EngineFailed", "Error: "),
        (engine_template(env={"ENGINE_FAULT": "half-written"}), "Failed", "CorruptFiles", ".json"),
        (engine_template(env={"ENGINE_FAULT": "symlink"}), "Failed", "UnsafeFiles", "link.json"),
        (engine_template(env={"ENGINE_FAULT": "device"}), "Failed", "UnsafeFiles", "device.json"),
        (engine_template(env={"ENGINE_FAULT": "dotdot"}), "Failed", "UnsafeFiles", "up"),
        (engine_template(env={"ENGINE_FAULT": "many-files"}), "Failed", "UnsafeFiles", "10000"),
        (engine_template(env={"ENGINE_FAULT": "huge"}), "Failed", "UnsafeFiles", "256 MiB"),
        (engine_template(env={"ENGINE_FAULT": "unreadable"}), "Failed", "UnreadableFiles", ".json"),
        (
            engine_template("0.32.0", 2, {"ENGINE_FAULT": "missing-rank"}, TP2),
            "Failed",
            "IncompleteRanks",
            "rank",
        ),
        (
            engine_template("0.32.0", 2, {"ENGINE_FAULT": "uneven-ranks"}, TP2),
            "Failed",
            "IncompleteRanks",
            "rank",
        ),
        (
            engine_template("0.32.0", 2, {"ENGINE_FAULT": "disagreeing-ranks"}, TP2),
            "Failed",
            "IncompleteRanks",
            "_metadata",
        ),
    ],
    ids=[
        *(
            "too old",
            "shared layout",
            "no python",
            "no image",
            "no secret",
            "crash",
            "half-written",
            "symlink",
            "device",
        ),
        *(
            "dotdot",
            "many files",
            "huge",
            "unreadable",
            "missing rank",
            "uneven ranks",
            "disagreeing ranks",
        ),
    ],
)
def test_a_failed_attempt_has_a_message_that_says_what_happened(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    template: Object,
    state: str,
    reason: str,
    words: str,
) -> None:
    create_cache(template=template, tuning=ONCE)
    cache = wait_for_condition(kind="Stalled", reason=reason, seconds=120)
    [bundle] = bundles(cache)
    assert (bundle["state"], bundle["reason"]) == (state, reason)
    assert words in bundle["message"]
    assert words in condition(cache, "Ready")["message"]
    kube.wait_for_any(  # events follow the status
        "Event",
        namespace,
        "",
        lambda e: (
            e["involvedObject"]["kind"] == "AutotuneCache"
            and (e["type"], e["reason"]) == ("Warning", reason)
            and words in e["message"]
        ),
        seconds=10,
    )
    for job in kube.list("Job", namespace, TUNING):  # the GPU is given back
        kube.wait_until(
            "Job",
            namespace,
            job["metadata"]["name"],
            lambda j: condition(j, "Failed").get("status") == "True",
            60,
        )


def test_an_unknown_release_is_tuned_and_reported(
    create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template("unknown"))
    [bundle] = bundles(wait_for_condition())
    assert "version" in bundle["message"]


def test_an_engine_that_never_becomes_ready_ends_at_its_deadline(
    create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(
        template=engine_template(env={"ENGINE_FAULT": "never-ready"}),
        tuning={"maxAttempts": 1, "deadlineSeconds": 12},
    )
    cache = wait_for_condition(kind="Stalled", reason="EngineNotReady")
    assert "spec.tuning.deadlineSeconds" in condition(cache, "Stalled")["message"]


def test_messages_of_quota_and_pod_security_are_quoted(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"namespace": namespace, "name": "gpus"},
            "spec": {"hard": {"requests.nvidia.com/gpu": "1"}},
        }
    )
    kube.patch(
        "Namespace",
        "",
        namespace,
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    create_cache("quota", template=engine_template(gpus=2))
    assert (
        "exceeded quota: gpus"
        in condition(wait_for_condition("quota", status="False", reason="PodRefused"), "Ready")[
            "message"
        ]
    )
    create_cache("security", template=engine_template(securityContext={"privileged": True}))
    message = condition(
        wait_for_condition("security", status="False", reason="PodRefused"), "Ready"
    )["message"]
    assert 'violates PodSecurity "restricted' in message
    create_cache("fits", template=engine_template())
    wait_for_condition("fits")


@pytest.mark.parametrize(
    ("storage", "reason", "words"),
    [
        ({"existingClaim": {"name": "absent"}}, "ClaimNotFound", "absent"),
        ({"claim": {"storageClassName": "absent"}}, "ClaimPending", "absent"),
        (
            {"claim": {"storageClassName": "local-rwx", "accessModes": ["ReadWriteOnce"]}},
            "SingleNode",
            "SingleNode",
        ),
        ({"existingClaim": {"name": "rwop"}}, "SinglePod", "ReadWriteOncePod"),
    ],
    ids=["not there", "never bound", "one node", "one pod"],
)
def test_storage_that_cannot_be_used_is_reported_before_any_job(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    storage: Object,
    reason: str,
    words: str,
) -> None:
    kube.create(claim(namespace, "rwop", "local-rwx-wait", "ReadWriteOncePod"))
    create_cache(template=engine_template(), storage=storage)
    wait_for_condition(kind="StorageReady", status="False", reason=reason)
    kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: words in condition(c, "StorageReady")["message"],
        30,
    )
    assert not kube.list("Job", namespace, TUNING)


def claim(
    namespace: str, name: str, storage_class: str, mode: str = "ReadWriteMany", **spec: Any
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "storageClassName": storage_class,
            "accessModes": [mode],
            "resources": {"requests": {"storage": "1Gi"}},
            **spec,
        },
    }


def test_an_author_who_may_not_create_jobs_is_refused_with_the_missing_right(
    kube: Kube, namespace: str, operator: str
) -> None:
    rules = [
        {"apiGroups": ["pretune.dev"], "resources": ["autotunecaches"], "verbs": ["create", "get"]}
    ]
    for kind, more in (
        ("Role", {"rules": rules}),
        (
            "RoleBinding",
            {
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Role",
                    "name": "author",
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "author"}
                ],
            },
        ),
    ):
        meta = {"namespace": namespace, "name": "author"}
        kube.create(
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": meta, **more}
        )
    from tests.cluster.kube import Refusal

    author = Kube(kube.kubeconfig, as_user="author")
    with pytest.raises(Refusal, match="may not create jobs in namespace"):
        author.create(
            {
                "apiVersion": "pretune.dev/v1alpha1",
                "kind": "AutotuneCache",
                "metadata": {"namespace": namespace, "name": "demo"},
                "spec": {"storage": {"claim": {}}, "source": {"template": engine_template()}},
            }
        )


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_volume_that_cannot_hold_the_bundle_fails_the_attempt_with_what_to_do(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    tmp_path: Path,
    fault: str,
) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=777", "none", str(folder)], check=True
    )
    try:
        if fault == "full":
            (folder / "theirs").write_bytes(b"0" * (5 << 20))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        volume = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "by-hand",
            "claimRef": {"namespace": namespace, "name": "hand"},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": namespace},
                "spec": volume,
            }
        )
        kube.create(claim(namespace, "hand", "by-hand", volumeName=namespace))
        create_cache(
            template=engine_template(), storage={"existingClaim": {"name": "hand"}}, tuning=ONCE
        )
        reason = "NoSpace" if fault == "full" else "ReadOnlyClaim"
        message = condition(wait_for_condition(kind="Stalled", reason=reason), "Stalled")["message"]
        assert ("free" if fault == "full" else "writable") in message
        kube.delete("AutotuneCache", namespace, "demo")
        for pod in kube.list("Pod", namespace, TUNING):
            kube.wait_until_gone("Pod", namespace, pod["metadata"]["name"])
    finally:
        kube.delete("PersistentVolume", "", namespace)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_failed_attempts_pod_stays_with_its_log_and_holds_no_gpu(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    """The engine is started once more by the kubelet: what stays is a whole log of it."""
    create_cache(template=engine_template(env={"ENGINE_FAULT": "crash"}), tuning=ONCE)
    cache = wait_for_condition(kind="Stalled", reason="EngineFailed", seconds=120)
    [pod] = kube.list("Pod", namespace, TUNING)
    name = pod["metadata"]["name"]
    command = f"kubectl logs -n {namespace} {name} -c vllm"
    assert command in condition(cache, "Ready")["message"]
    pod = kube.wait_until(
        "Pod", namespace, name, lambda pod: pod["status"]["phase"] == "Failed", seconds=180
    )
    assert "deletionTimestamp" not in pod["metadata"]
    [job] = kube.list("Job", namespace, TUNING)
    kube.wait_until(
        "Job",
        namespace,
        job["metadata"]["name"],
        lambda job: condition(job, "Failed").get("status") == "True",
        60,
    )
    assert [one["metadata"]["name"] for one in kube.list("Pod", namespace, TUNING)] == [name]
    url = f"{kube.host}/api/v1/namespaces/{namespace}/pods/{name}/log"
    log = kube.session.get(url, params={"container": "vllm"}, timeout=30)
    assert log.status_code == 200 and "Error: " in log.text, log.text
