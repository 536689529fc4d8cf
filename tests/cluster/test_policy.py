"""The controller's policy: it may remove its own gate from pods, and change nothing else."""

from __future__ import annotations

import json
import time

import pytest

from tests.cluster.conftest import SYSTEM
from tests.cluster.kube import Kube, Object, Refusal

CONTROLLER = f"system:serviceaccount:{SYSTEM}:pretune"
GATES = ["kueue.x-k8s.io/before", "pretune.dev/hold", "kueue.x-k8s.io/after"]
RELEASE: Object = {"schedulingGates": [{"$patch": "delete", "name": "pretune.dev/hold"}]}


@pytest.fixture
def controller(kube: Kube, operator: str) -> Kube:
    return Kube(kube.kubeconfig, as_user=CONTROLLER)


def held_pod(namespace: str, name: str = "held", **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app": "demo", **labels},
            "annotations": {"team": "inference"},
        },
        "spec": {
            "schedulingGates": [{"name": gate} for gate in GATES],
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "vllm",
                    "image": "localhost/pretune/engine:dev",
                    "command": ["sleep", "60"],
                }
            ],
        },
    }


def patch(kube: Kube, pod: Object, change: Object, part: str = "", real: bool = False) -> Object:
    """Return the pod as it would be after the change, or is (`real`)."""
    meta = pod["metadata"]
    url = f"{kube.host}/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}{part}"
    answer = kube.session.patch(
        url,
        data=json.dumps(change),
        params={} if real else {"dryRun": "All"},
        headers={"Content-Type": "application/strategic-merge-patch+json"},
        timeout=30,
    )
    body: Object = answer.json()
    if answer.status_code >= 400:
        raise Refusal(answer.status_code, body["message"])
    return body


def delete(kube: Kube, pod: Object) -> None:
    meta = pod["metadata"]
    url = f"{kube.host}/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    answer = kube.session.delete(url, params={"dryRun": "All"}, timeout=30)
    if answer.status_code >= 400:
        raise Refusal(answer.status_code, answer.json()["message"])


NOTHING_ELSE = (
    "pretune's controller may remove the scheduling gate pretune.dev/hold from a pod, end a tuning"
    " pod by its activeDeadlineSeconds, and change nothing else in it"
)
NO_DEADLINE = "pretune's controller may set activeDeadlineSeconds only of pods that tune or prove"
NO_OTHER_GATE = "pretune's controller may remove the scheduling gate pretune.dev/hold from a pod, and no other gate"

# Each is a change that the API server accepts from accounts that may patch pods.
CHANGES: dict[str, tuple[Object, str]] = {
    "a label more": ({"metadata": {"labels": {"a": "b"}}}, NOTHING_ELSE),
    "a label changed": ({"metadata": {"labels": {"app": "other"}}}, NOTHING_ELSE),
    "a label less": ({"metadata": {"labels": {"app": None}}}, NOTHING_ELSE),
    "an annotation more": ({"metadata": {"annotations": {"a": "b"}}}, NOTHING_ELSE),
    "no annotations": ({"metadata": {"annotations": None}}, NOTHING_ELSE),
    "a finalizer": ({"metadata": {"finalizers": ["example.com/a"]}}, NOTHING_ELSE),
    "an owner": (
        {
            "metadata": {
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "1"}
                ]
            }
        },
        NOTHING_ELSE,
    ),
    "another image": ({"spec": {"containers": [{"name": "vllm", "image": "evil"}]}}, NOTHING_ELSE),
    "another node": ({"spec": {"nodeSelector": {"a": "b"}}}, NOTHING_ELSE),
    "a toleration": ({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}]}}, NOTHING_ELSE),
    "a deadline": ({"spec": {"activeDeadlineSeconds": 5}}, NO_DEADLINE),
    "its gate, and an image": (
        {"spec": {**RELEASE, "containers": [{"name": "vllm", "image": "evil"}]}},
        NOTHING_ELSE,
    ),
    "its gate, and a label": ({"metadata": {"labels": {"a": "b"}}, "spec": RELEASE}, NOTHING_ELSE),
    "another gate": (
        {"spec": {"schedulingGates": [{"$patch": "delete", "name": "kueue.x-k8s.io/after"}]}},
        NO_OTHER_GATE,
    ),
    "every gate": ({"spec": {"schedulingGates": None}}, NO_OTHER_GATE),
}


@pytest.mark.parametrize(("change", "sentence"), CHANGES.values(), ids=CHANGES)
def test_the_controller_cannot_change_any_field_of_a_pod(
    kube: Kube, controller: Kube, namespace: str, change: Object, sentence: str
) -> None:
    pod = kube.create(held_pod(namespace, **{"pretune.dev/cache": "demo"}))
    with pytest.raises(Refusal) as refusal:
        patch(controller, pod, change)
    assert refusal.value.code == 403
    assert sentence in refusal.value.message
    patch(
        kube, pod, change
    )  # others may as before: it is this policy that refuses, and only the controller


def test_the_controller_removes_its_gate_and_no_other(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    pod = kube.create(held_pod(namespace, **{"pretune.dev/cache": "demo"}))
    freed = patch(controller, pod, {"spec": RELEASE}, real=True)
    assert [gate["name"] for gate in freed["spec"]["schedulingGates"]] == [GATES[0], GATES[2]]
    assert patch(controller, pod, {"spec": RELEASE})["spec"] == freed["spec"], (
        "a second patch changes nothing"
    )


def test_the_controller_sets_the_deadline_of_a_pod_that_tunes_and_changes_nothing_else_of_it(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    labels = {"pretune.dev/cache": "demo", "pretune.dev/role": "tuning"}
    pod = kube.create(held_pod(namespace, **labels))
    patch(controller, pod, {"spec": {"activeDeadlineSeconds": 1}}, real=True)
    with pytest.raises(Refusal) as refusal:
        patch(controller, pod, {"spec": {"containers": [{"name": "vllm", "image": "evil"}]}})
    assert NOTHING_ELSE in refusal.value.message


def test_the_controller_releases_the_largest_pods_too(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    """A policy has a budget in the API server; a pod that exceeds it would be held forever."""
    pod = held_pod(namespace, **{"pretune.dev/cache": "demo"})
    pod["metadata"]["annotations"] = {"notes": "n" * 250_000}
    pod["spec"]["containers"][0]["env"] = [
        {"name": f"V{number}", "value": "v" * 100} for number in range(4000)
    ]
    freed = patch(controller, kube.create(pod), {"spec": RELEASE})
    assert [gate["name"] for gate in freed["spec"]["schedulingGates"]] == [GATES[0], GATES[2]]


def test_the_controller_releases_a_pod_that_has_lost_its_label(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    freed = patch(controller, kube.create(held_pod(namespace)), {"spec": RELEASE})
    assert [gate["name"] for gate in freed["spec"]["schedulingGates"]] == [GATES[0], GATES[2]]


def test_the_controller_deletes_only_pods_with_the_caches_label(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    ours = kube.create(held_pod(namespace, **{"pretune.dev/cache": "demo"}))
    other = kube.create(held_pod(namespace, "other"))
    delete(controller, ours)
    sentence = r"may delete only pods that have the label pretune\.dev/cache"
    with pytest.raises(Refusal, match=sentence):
        delete(controller, other)
    delete(kube, other)
    systems = kube.create(held_pod("kube-system", namespace, **{"pretune.dev/cache": "demo"}))
    try:
        with pytest.raises(Refusal, match=sentence + ", and none in kube-system"):
            delete(controller, systems)
    finally:
        kube.delete("Pod", "kube-system", namespace, gracePeriodSeconds=0)


def test_the_policy_also_limits_rights_that_the_controller_gets_elsewhere(
    kube: Kube, controller: Kube, namespace: str
) -> None:
    """A role that grants the account too much does not allow it more."""
    rbac = "rbac.authorization.k8s.io"
    meta = {"namespace": namespace, "name": "careless"}
    rules = [
        {"apiGroups": [""], "resources": ["pods", "pods/status", "pods/resize"], "verbs": ["*"]}
    ]
    kube.create({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": rules})
    kube.create(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "careless"},
            "subjects": [{"kind": "ServiceAccount", "namespace": SYSTEM, "name": "pretune"}],
        }
    )
    pod = kube.create(held_pod(namespace, **{"pretune.dev/cache": "demo"}))
    sentence = "pretune's controller may change and delete pods, and nothing else"
    with pytest.raises(Refusal, match=sentence):
        create_once_allowed(controller, held_pod(namespace, "made"))
    with pytest.raises(Refusal, match=sentence):
        patch(controller, pod, {"status": {"phase": "Failed"}}, part="/status")


def create_once_allowed(person: Kube, obj: Object) -> None:
    """Create by dry run; a new right takes effect with a delay, and is waited for."""
    end = time.monotonic() + 20
    while True:
        try:
            person.create(obj, dry_run=True)
            return
        except Refusal as refusal:
            if "cannot create resource" not in refusal.message or time.monotonic() > end:
                raise
