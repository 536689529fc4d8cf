"""The controller's policies on Jobs, ConfigMaps, claims and the webhook: only pretune's.

Each case is a request that RBAC allows to the controller, by dry run; an administrator may do it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import pytest
from pretune.manifests.agent_archive import build_agent_config_map

from tests.cluster.conftest import SYSTEM, create_namespace
from tests.cluster.kube import Kube, Object, Refusal
from tests.cluster.workloads import autotune_cache

CONTROLLER = f"system:serviceaccount:{SYSTEM}:pretune"
OWNER = {
    "apiVersion": "pretune.dev/v1alpha1",
    "kind": "AutotuneCache",
    "name": "demo",
    "uid": "00000000-0000-0000-0000-000000000000",
    "controller": True,
}
OURS = {"pretune.dev/cache": "demo", "pretune.dev/role": "tuning"}


@pytest.fixture(scope="module")
def controller(kube: Kube, operator: str) -> Kube:
    return Kube(kube.kubeconfig, as_user=CONTROLLER)


@pytest.fixture(scope="module")
def place(kube: Kube, operator: str) -> Iterator[str]:
    """A namespace with a cache that starts nothing."""
    name = create_namespace(kube, "t-policy-objects")
    kube.create(autotune_cache(name, "demo", suspend=True))
    yield name
    kube.delete("Namespace", "", name)


def job(namespace: str, name: str = "demo-1") -> Object:
    container = {"name": "vllm", "image": "localhost/pretune/engine:dev"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": dict(OURS),
            "annotations": {"note": "a"},
            "ownerReferences": [dict(OWNER)],
        },
        "spec": {
            "suspend": True,
            "template": {
                "metadata": {"labels": dict(OURS)},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def config_map(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": "pretune-agent-0123456789ab"},
        "immutable": True,
        "binaryData": {"agent.py": "AAAA"},
    }


def claim(namespace: str, name: str = "pretune-other") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {
                "pretune.dev/cache": name.removeprefix("pretune-"),
                "pretune.dev/role": "claim",
            },
        },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "none",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def owned(made: Object, cache: Object) -> Object:
    """Return the Job with the cache's uid: without it the garbage collector deletes it."""
    made["metadata"]["ownerReferences"][0]["uid"] = cache["metadata"]["uid"]
    return made


BUILDERS = {"job": job, "config map": config_map, "claim": claim}
LABELS, OWNERS = ("metadata", "labels"), ("metadata", "ownerReferences")
POD_LABELS = ("spec", "template", "metadata", "labels")
ONLY_OURS = "may create, change and delete only Jobs whose controller is an AutotuneCache"
ONLY_CLAIMS = "may create, change and delete only the claims pretune-<cache>"
ONLY_AGENTS = "may create, change and delete only ConfigMaps named pretune-agent-"
ONLY_THE_AGENT = "must be immutable and hold agent.py, and nothing else"

REFUSED: dict[str, tuple[str, tuple[str, ...], object, str]] = {
    "no owner": ("job", OWNERS, None, ONLY_OURS),
    "an owner that does not control it": (
        "job",
        OWNERS,
        [{**OWNER, "controller": False}],
        ONLY_OURS,
    ),
    "another kind of owner": (
        "job",
        OWNERS,
        [{**OWNER, "apiVersion": "batch/v1", "kind": "CronJob"}],
        ONLY_OURS,
    ),
    "another group": ("job", OWNERS, [{**OWNER, "apiVersion": "evil.dev/v1"}], ONLY_OURS),
    "another cache's name": ("job", OWNERS, [{**OWNER, "name": "other"}], ONLY_OURS),
    "other labels": ("job", LABELS, {"app": "vllm"}, ONLY_OURS),
    "no role": ("job", LABELS, {"pretune.dev/cache": "demo"}, ONLY_OURS),
    "a pod without labels": ("job", POD_LABELS, None, "must give its pod the labels"),
    "a pod with a Service's label alone": (
        "job",
        POD_LABELS,
        {"app": "vllm"},
        "must give its pod the labels",
    ),
    "any ConfigMap": ("config map", ("metadata", "name"), "settings", ONLY_AGENTS),
    "a name that only begins so": (
        "config map",
        ("metadata", "name"),
        "pretune-agent-0123456789ab-x",
        ONLY_AGENTS,
    ),
    "a ConfigMap that can be changed": ("config map", ("immutable",), None, ONLY_THE_AGENT),
    "more than the agent": (
        "config map",
        ("binaryData",),
        {"agent.py": "AAAA", "sitecustomize.py": "AAAA"},
        ONLY_THE_AGENT,
    ),
    "text beside the agent": ("config map", ("data",), {"a": "b"}, ONLY_THE_AGENT),
    "any claim": ("claim", ("metadata", "name"), "models", ONLY_CLAIMS),
    "a claim without labels": ("claim", LABELS, None, ONLY_CLAIMS),
    "another cache's claim": (
        "claim",
        LABELS,
        {"pretune.dev/cache": "else", "pretune.dev/role": "claim"},
        ONLY_CLAIMS,
    ),
}


def changed(obj: Object, path: tuple[str, ...], value: object) -> Object:
    """Return a copy with another value at a path; None: without it."""
    whole = copy.deepcopy(obj)
    part = whole
    for name in path[:-1]:
        part = part[name]
    if value is None:
        part.pop(path[-1], None)
    else:
        part[path[-1]] = value
    return whole


@pytest.mark.parametrize(("what", "path", "value", "sentence"), REFUSED.values(), ids=REFUSED)
def test_the_controller_creates_only_what_is_pretunes(
    kube: Kube,
    controller: Kube,
    place: str,
    what: str,
    path: tuple[str, ...],
    value: object,
    sentence: str,
) -> None:
    obj = changed(BUILDERS[what](place), path, value)
    with pytest.raises(Refusal) as refusal:
        controller.create(obj, dry_run=True)
    assert (refusal.value.code, sentence in refusal.value.message) == (403, True), refusal.value
    kube.create(obj, dry_run=True)  # others may: only the controller is limited


@pytest.mark.parametrize("what", BUILDERS)
def test_what_the_controller_creates_is_accepted_but_not_in_kube_system(
    controller: Kube, place: str, what: str
) -> None:
    controller.create(BUILDERS[what](place), dry_run=True)
    with pytest.raises(Refusal, match=r"changes nothing in kube-system|no params found"):
        controller.create(BUILDERS[what]("kube-system"), dry_run=True)


def test_the_agent_itself_is_accepted(controller: Kube, place: str) -> None:
    try:
        controller.create(build_agent_config_map(place), dry_run=True)
    except Refusal as refusal:  # the controller was first: this comes after all policies
        assert refusal.code == 409, refusal


def test_jobs_are_created_only_where_a_cache_is(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    with pytest.raises(Refusal, match="no params found"):
        controller.create(job(namespace), dry_run=True)
    kube.create(changed(job(namespace), LABELS, {"app": "vllm"}), dry_run=True)
    kube.create(autotune_cache(namespace, "demo", suspend=True))
    end = time.monotonic() + 10  # the policy's own watch sees the cache with a delay
    while True:
        try:
            controller.create(job(namespace), dry_run=True)
            break
        except Refusal as refusal:
            assert refusal.code == 422 and "no params found" in refusal.message
            assert time.monotonic() < end


def test_jobs_of_others_are_created_anywhere(kube: Kube, operator: str, namespace: str) -> None:
    """The API server looks for a cache before it asks whose request it is."""
    plain = changed(changed(job(namespace), OWNERS, None), LABELS, {"app": "backup"})
    plain["spec"]["template"]["metadata"]["labels"] = {"app": "backup"}
    kube.create(plain, dry_run=True)
    kube.create(changed(plain, ("metadata", "namespace"), "kube-system"), dry_run=True)


CHANGES: dict[str, tuple[Object, bool]] = {
    "ended": ({"spec": {"activeDeadlineSeconds": 1}}, True),
    "released from a queue": ({"spec": {"suspend": False}}, True),
    "another image": (
        {"spec": {"template": {"spec": {"containers": [{"name": "vllm", "image": "evil"}]}}}},
        False,
    ),
    "another node": ({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, False),
    "more pods": ({"spec": {"parallelism": 8}}, False),
    "an annotation": ({"metadata": {"annotations": {"a": "b"}}}, False),
    "no owner": ({"metadata": {"ownerReferences": None}}, False),
}


@pytest.mark.parametrize(("change", "allowed"), CHANGES.values(), ids=CHANGES)
def test_the_controller_changes_the_deadline_of_its_jobs_and_not_what_runs(
    kube: Kube, controller: Kube, place: str, change: Object, allowed: bool
) -> None:
    """The Job is suspended: the API server then accepts a change of its node selector."""
    if kube.get("Job", place, "demo-1") is None:
        kube.create(owned(job(place), kube.get("AutotuneCache", place, "demo") or {}))
    path = f"{kube._url('Job', place, 'demo-1')}?dryRun=All"
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    answer = controller.session.patch(path, json=change, headers=headers, timeout=30)
    assert answer.status_code == (200 if allowed else answer.status_code)
    assert answer.status_code in ((200,) if allowed else (403, 422)), answer.text
    if not allowed and answer.status_code == 403:
        assert "pretune's controller" in answer.text


def test_the_controller_ends_the_largest_jobs_too(kube: Kube, controller: Kube, place: str) -> None:
    """A policy has a budget in the API server; an attempt that exceeds it would go on."""
    large = owned(job(place, "large"), kube.get("AutotuneCache", place, "demo") or {})
    template = large["spec"]["template"]
    template["metadata"]["annotations"] = {"notes": "n" * 250_000}
    template["spec"]["containers"][0]["env"] = [
        {"name": f"V{number}", "value": "v" * 100} for number in range(4000)
    ]
    controller.create(large, dry_run=True)
    kube.create(large)
    path = f"{kube._url('Job', place, 'large')}?dryRun=All"
    headers = {"Content-Type": "application/merge-patch+json"}
    change = {"spec": {"activeDeadlineSeconds": 1}}
    answer = controller.session.patch(path, json=change, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text[:1000]
    assert controller.session.delete(path, timeout=30).status_code == 200


@pytest.mark.parametrize("what", BUILDERS)
def test_the_controller_changes_and_deletes_nothing_of_others(
    kube: Kube, controller: Kube, namespace: str, what: str
) -> None:
    obj = BUILDERS[what](namespace)
    obj["metadata"] = {"namespace": namespace, "name": "others", "labels": {"app": "others"}}
    obj.pop("immutable", None)
    kube.create(obj)
    url = f"{kube._url(obj['kind'], namespace, 'others')}?dryRun=All"
    merge = {"Content-Type": "application/merge-patch+json"}
    taken = {"metadata": {"labels": OURS, "ownerReferences": [OWNER]}}
    for answer in (
        controller.session.delete(url, timeout=30),
        controller.session.patch(url, json=taken, headers=merge, timeout=30),
    ):
        assert answer.status_code == 403 and "pretune's controller may" in answer.text, answer.text


HOOK, CLIENT = {"name": "pods.pretune.dev"}, {"name": "pods.pretune.dev", "clientConfig": {}}
OF_THE_WEBHOOK: dict[str, tuple[Object, bool]] = {
    "whom to trust": ({**CLIENT, "clientConfig": {"caBundle": ""}}, True),
    "another address": (
        {**CLIENT, "clientConfig": {"service": {"namespace": "evil", "name": "evil"}}},
        False,
    ),
    "another path": ({**CLIENT, "clientConfig": {"service": {"path": "/evil"}}}, False),
    "every pod": ({**HOOK, "objectSelector": {"matchExpressions": None}}, False),
    "kube-system": ({**HOOK, "namespaceSelector": {"matchExpressions": None}}, False),
    "no pod without it": ({**HOOK, "failurePolicy": "Fail"}, False),
    "Secrets": (
        {
            **HOOK,
            "rules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["secrets"],
                    "operations": ["CREATE"],
                }
            ],
        },
        False,
    ),
    "a second webhook": (
        {
            "name": "evil.example.com",
            "clientConfig": {"url": "https://evil.example.com"},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        },
        False,
    ),
}


@pytest.mark.parametrize(("change", "allowed"), OF_THE_WEBHOOK.values(), ids=OF_THE_WEBHOOK)
def test_of_the_webhooks_configuration_the_controller_may_change_whom_to_trust(
    kube: Kube, controller: Kube, change: Object, allowed: bool
) -> None:
    path = f"{kube._url('MutatingWebhookConfiguration', '', 'pretune-webhook')}?dryRun=All"
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    patch = {"webhooks": [change]}
    answer = controller.session.patch(path, json=patch, headers=headers, timeout=30)
    assert answer.status_code == (200 if allowed else 403), answer.text
    assert allowed or "may change caBundle" in answer.text
    if not allowed:
        assert kube.session.patch(path, json=patch, headers=headers, timeout=30).status_code == 200


def test_of_the_webhooks_configuration_no_label_may_change_and_it_may_not_be_deleted(
    kube: Kube, controller: Kube
) -> None:
    path = f"{kube._url('MutatingWebhookConfiguration', '', 'pretune-webhook')}?dryRun=All"
    headers = {"Content-Type": "application/merge-patch+json"}
    for change in (
        {"labels": {"a": "b"}},
        {"annotations": {"cert-manager.io/inject-ca-from": "a/b"}},
    ):
        answer = controller.session.patch(
            path, json={"metadata": change}, headers=headers, timeout=30
        )
        assert answer.status_code == 403 and "may change caBundle" in answer.text
    assert controller.session.delete(path, timeout=30).status_code == 403
