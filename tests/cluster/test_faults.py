"""What bad input gets, read where a person reads it, on the real cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Apply
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.workloads import engine

Ready = Callable[..., Object]
TUNING = "pretune.dev/role=tuning"
ONCE = {"maxAttempts": 1}
TP2 = ("--tensor-parallel-size", "2")


def test_a_source_that_is_not_there_is_said_and_recovers(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(
        source={"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "serving"}}
    )
    cache = ready(kind="Stalled", reason="SourceNotFound")
    assert "/serving does not exist" in condition(cache, "Stalled")["message"]
    template = engine()
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
    ready()


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
def test_a_source_that_cannot_be_used_is_named(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, ref: Object, reason: str, words: str
) -> None:
    kube.create(claim(namespace, "models", "local-rwx-wait"))
    apply(source={"workloadRef": ref})
    cache = ready(kind="Stalled", reason=reason)
    assert words in condition(cache, "Stalled")["message"]


def test_a_template_that_the_api_server_refuses_is_answered_in_its_words(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine(imagePullPolicy="Sometimes"))
    cache = ready(kind="Stalled", reason="SourceInvalid")
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
    kube: Kube, namespace: str, apply: Apply, ready: Ready,
    spoil: Callable[[Object], object], spec: Object, reason: str, words: str,
) -> None:  # fmt: skip
    kube.create(claim(namespace, "rwop", "local-rwx-wait", "ReadWriteOncePod"))
    template = engine()
    spoil(template["spec"])
    apply(template=template, **spec)
    cache = ready(kind="Stalled", reason=reason)
    assert words in condition(cache, "Stalled")["message"]
    assert not kube.list("Job", namespace, TUNING)


@pytest.mark.parametrize(
    ("template", "state", "reason", "words"),
    [
        (engine("0.24.0"), "Refused", "ReleaseTooOld", "0.24.0"),
        (engine("0.31.0", gpus=2, args=TP2), "Refused", "SharedLayout", "0.31.0"),
        (engine(env={"PATH": "/opt/shell"}), "Refused", "NoPython", "python3"),
        (engine(image="localhost/pretune/nothing:dev"), "Failed", "ImagePullFailed", "nothing:dev"),
        (
            engine(envFrom=[{"secretRef": {"name": "hf-token"}}]),
            "Failed",
            "ContainerConfigError",
            "hf-token",
        ),
        (engine(env={"ENGINE_FAULT": "crash"}), "Failed", "EngineFailed", "Error: "),
        (engine(env={"ENGINE_FAULT": "half-written"}), "Failed", "CorruptFiles", ".json"),
        (engine(env={"ENGINE_FAULT": "symlink"}), "Failed", "UnsafeFiles", "link.json"),
        (engine(env={"ENGINE_FAULT": "device"}), "Failed", "UnsafeFiles", "device.json"),
        (engine(env={"ENGINE_FAULT": "dotdot"}), "Failed", "UnsafeFiles", "up"),
        (engine(env={"ENGINE_FAULT": "many-files"}), "Failed", "UnsafeFiles", "10000"),
        (engine(env={"ENGINE_FAULT": "huge"}), "Failed", "UnsafeFiles", "256 MiB"),
        (engine(env={"ENGINE_FAULT": "unreadable"}), "Failed", "UnreadableFiles", ".json"),
        (
            engine("0.32.0", 2, {"ENGINE_FAULT": "missing-rank"}, TP2),
            "Failed",
            "IncompleteRanks",
            "rank",
        ),
        (
            engine("0.32.0", 2, {"ENGINE_FAULT": "uneven-ranks"}, TP2),
            "Failed",
            "IncompleteRanks",
            "rank",
        ),
        (
            engine("0.32.0", 2, {"ENGINE_FAULT": "disagreeing-ranks"}, TP2),
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
def test_a_failed_attempt_says_what_happened_to_what(
    kube: Kube,
    namespace: str,
    apply: Apply,
    ready: Ready,
    template: Object,
    state: str,
    reason: str,
    words: str,
) -> None:
    apply(template=template, tuning=ONCE)
    cache = ready(kind="Stalled", reason=reason, seconds=120)
    [bundle] = bundles(cache)
    assert (bundle["state"], bundle["reason"]) == (state, reason)
    assert words in bundle["message"]
    assert words in condition(cache, "Ready")["message"]
    kube.until_one(  # events follow the status
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
        kube.until(
            "Job",
            namespace,
            job["metadata"]["name"],
            lambda j: condition(j, "Failed").get("status") == "True",
            60,
        )


def test_a_release_that_cannot_be_told_goes_on_and_says_so(apply: Apply, ready: Ready) -> None:
    apply(template=engine("unknown"))
    [bundle] = bundles(ready())
    assert "version" in bundle["message"]


def test_an_engine_that_never_gets_ready_ends_with_its_deadline(apply: Apply, ready: Ready) -> None:
    apply(
        template=engine(env={"ENGINE_FAULT": "never-ready"}),
        tuning={"maxAttempts": 1, "deadlineSeconds": 12},
    )
    cache = ready(kind="Stalled", reason="EngineNotReady")
    assert "spec.tuning.deadlineSeconds" in condition(cache, "Stalled")["message"]


def test_a_quota_and_pod_security_are_quoted(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
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
    apply("quota", template=engine(gpus=2))
    assert (
        "exceeded quota: gpus"
        in condition(ready("quota", status="False", reason="PodRefused"), "Ready")["message"]
    )
    apply("security", template=engine(securityContext={"privileged": True}))
    message = condition(ready("security", status="False", reason="PodRefused"), "Ready")["message"]
    assert 'violates PodSecurity "restricted' in message
    apply("fits", template=engine())
    ready("fits")


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
def test_storage_that_cannot_be_used_is_said_before_any_job(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, storage: Object, reason: str, words: str
) -> None:
    kube.create(claim(namespace, "rwop", "local-rwx-wait", "ReadWriteOncePod"))
    apply(template=engine(), storage=storage)
    ready(kind="StorageReady", status="False", reason=reason)
    kube.until(
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


def test_an_author_who_may_not_create_jobs_is_refused_and_told_which_right(
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
                "spec": {"storage": {"claim": {}}, "source": {"template": engine()}},
            }
        )


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_volume_that_takes_no_bundle_fails_the_attempt_and_says_what_to_do(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, tmp_path: Path, fault: str
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
        apply(template=engine(), storage={"existingClaim": {"name": "hand"}}, tuning=ONCE)
        reason = "NoSpace" if fault == "full" else "ReadOnlyClaim"
        message = condition(ready(kind="Stalled", reason=reason), "Stalled")["message"]
        assert ("free" if fault == "full" else "writable") in message
        kube.delete("AutotuneCache", namespace, "demo")
        for pod in kube.list("Pod", namespace, TUNING):
            kube.until_gone("Pod", namespace, pod["metadata"]["name"])
    finally:
        kube.delete("PersistentVolume", "", namespace)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
