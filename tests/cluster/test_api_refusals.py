"""What the API server itself refuses, with which message: the CRD's rules, the author policy."""

from __future__ import annotations

import time

import pytest

from tests.cluster.kube import Kube, Object, Refusal

CLAIM: Object = {"claim": {}}
REF: Object = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "qwen3"}
TEMPLATE: Object = {"spec": {"containers": [{"name": "vllm", "image": "vllm"}]}}


def cache(namespace: str, name: str = "demo", **spec: object) -> Object:
    return {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"storage": CLAIM, **spec},
    }


REFUSED: dict[str, tuple[Object, str]] = {
    "both sources": (
        {"source": {"workloadRef": REF, "template": TEMPLATE}},
        'spec.source: Invalid value: "object": at most one of workloadRef and template',
    ),
    "no storage": (
        {"storage": {}},
        'spec.storage: Invalid value: "object": exactly one of claim and existingClaim',
    ),
    "both storages": (
        {"storage": {"claim": {}, "existingClaim": {"name": "shared"}}},
        'spec.storage: Invalid value: "object": exactly one of claim and existingClaim',
    ),
    "two targets with the same name": (
        {"targets": [{"name": "b200"}, {"name": "h200"}, {"name": "b200"}]},
        'spec.targets[2]: Duplicate value: {"name":"b200"}',
    ),
    "no target": ({"targets": []}, "spec.targets in body should have at least 1 items"),
    "a target's name that is not a label": (
        {"targets": [{"name": "B200"}]},
        "spec.targets[0].name in body should match",
    ),
    "a target's name of 21 characters": (
        {"targets": [{"name": "b" * 21}]},
        "spec.targets[0].name: Too long",
    ),
    "a subPath that leads out of the claim": (
        {"storage": {"existingClaim": {"name": "shared", "subPath": "a/../../b"}}},
        "subPath must be relative and without '..'",
    ),
    "an absolute subPath": (
        {"storage": {"existingClaim": {"name": "shared", "subPath": "/a"}}},
        "subPath must be relative and without '..'",
    ),
    "a claim for one pod": (
        {"storage": {"claim": {"accessModes": ["ReadWriteOncePod"]}}},
        'Unsupported value: "ReadWriteOncePod": supported values: "ReadWriteMany", "ReadWriteOnce"',
    ),
    "a claim without a size": (
        {"storage": {"claim": {"size": "0Gi"}}},
        "size must be more than 0",
    ),
    "a size that is not a quantity": (
        {"storage": {"claim": {"size": "much"}}},
        "spec.storage.claim.size in body should match",
    ),
    "a workload's name with a path": (
        {"source": {"workloadRef": {**REF, "name": "../secrets/token"}}},
        "spec.source.workloadRef.name in body should match",
    ),
    "a template without containers": (
        {"source": {"template": {"spec": {}}}},
        "spec.source.template.spec.containers: Required value",
    ),
    "no attempt": ({"tuning": {"maxAttempts": 0}}, "should be greater than or equal to 1"),
    "an unknown risk": (
        {"tuning": {"allow": ["Everything"]}},
        'spec.tuning.allow[0]: Unsupported value: "Everything"',
    ),
    "our own label": (
        {"tuning": {"podTemplate": {"metadata": {"labels": {"pretune.dev/role": "tuning"}}}}},
        "keys that start with pretune.dev/ are reserved for the operator",
    ),
    "a revision of 64 characters": ({"revision": "r" * 64}, "spec.revision: Too long"),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_cache_is_refused_at_apply_with_a_message(
    kube: Kube, operator: str, spec: Object, message: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        kube.create(cache("default", **spec), dry_run=True)
    assert refusal.value.code == 422
    assert message in refusal.value.message


def test_a_name_that_is_not_a_label_value_is_refused(kube: Kube, operator: str) -> None:
    kube.create(cache("default", name="n" * 63), dry_run=True)
    with pytest.raises(Refusal, match=r"metadata\.name must be at most 63 characters"):
        kube.create(cache("default", name="n" * 64), dry_run=True)


def test_access_modes_cannot_be_changed(kube: Kube, operator: str, namespace: str) -> None:
    kube.create(cache(namespace, suspend=True))
    change = {"spec": {"storage": {"claim": {"accessModes": ["ReadWriteOnce"]}}}}
    with pytest.raises(Refusal, match="accessModes cannot be changed"):
        kube.patch("AutotuneCache", namespace, "demo", change)


def test_the_smallest_cache_gets_every_default_and_a_pasted_template_is_kept(
    kube: Kube, operator: str
) -> None:
    pasted = {
        "metadata": {"creationTimestamp": None, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "vllm", "newer": {"than": "us"}}], "alsoNewer": [1]},
    }
    spec_as_stored = kube.create(cache("default", source={"template": pasted}), dry_run=True)[
        "spec"
    ]
    assert spec_as_stored["source"]["template"]["spec"] == pasted["spec"]
    assert spec_as_stored["storage"]["claim"] == {
        "accessModes": ["ReadWriteMany"],
        "size": "1Gi",
        "whenDeleted": "Delete",
    }
    assert spec_as_stored["targets"] == [{"name": "default"}]
    assert spec_as_stored["tuning"] == {
        "deadlineSeconds": 5400,
        "maxAttempts": 3,
        "nodeWaitSeconds": 300,
    }


# --- who may write a cache

EDIT_CACHES = {
    "apiGroups": ["pretune.dev"],
    "resources": ["autotunecaches"],
    "verbs": ["create", "update", "patch"],
}
MAKE_JOBS = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}
MAKE_CLAIMS = {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["create"]}
EXISTING = {"storage": {"existingClaim": {"name": "shared"}}}


def author(kube: Kube, namespace: str, *rules: Object) -> Kube:
    """Return a user with exactly these rights in the namespace."""
    meta = {"namespace": namespace, "name": "author"}
    rbac = "rbac.authorization.k8s.io"
    kube.create(
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": list(rules)}
    )
    kube.create(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "author"},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": "ann"}],
        }
    )
    return Kube(kube.kubeconfig, as_user="ann")


def attempt(person: Kube, obj: Object) -> str:
    """Return the API server's message, or "" when it accepts the object.

    Rights take effect with a delay: where RBAC still refuses ("cannot create resource"), try again.
    """
    end = time.monotonic() + 20
    while True:
        try:
            person.create(obj, dry_run=True)
            return ""
        except Refusal as refusal:
            if "cannot create resource" not in refusal.message or time.monotonic() > end:
                return refusal.message


@pytest.mark.parametrize(
    ("rules", "spec", "message"),
    [
        (
            (),
            {},
            "user ann may not create jobs in namespace {}, which an AutotuneCache does on its behalf",
        ),
        ((MAKE_CLAIMS,), {}, "user ann may not create jobs in namespace {}"),
        (
            (MAKE_JOBS,),
            {},
            "user ann may not create persistentvolumeclaims in namespace {}, which spec.storage.claim does",
        ),
        ((MAKE_JOBS,), EXISTING, ""),
        ((MAKE_JOBS, MAKE_CLAIMS), {}, ""),
    ],
    ids=["neither", "claims only", "jobs only", "jobs, on a claim that is there", "both"],
)
def test_an_author_needs_the_rights_that_the_cache_uses(
    kube: Kube,
    operator: str,
    namespace: str,
    rules: tuple[Object, ...],
    spec: Object,
    message: str,
) -> None:
    ann = author(kube, namespace, EDIT_CACHES, *rules)
    answer = attempt(ann, cache(namespace, **spec))
    assert message.format(namespace) in answer if message else answer == ""


IMPORT = "pretune.dev/import"


def test_labels_and_annotations_are_written_without_these_rights(
    kube: Kube, operator: str, namespace: str
) -> None:
    kube.create(cache(namespace, suspend=True))
    ann = author(kube, namespace, EDIT_CACHES)
    attempt(
        ann, cache(namespace, name="other")
    )  # once the answer is the policy's, her rights have arrived
    ann.patch("AutotuneCache", namespace, "demo", {"metadata": {"labels": {"team": "a"}}})
    ann.patch("AutotuneCache", namespace, "demo", {"metadata": {"annotations": {"team": "a"}}})
    with pytest.raises(Refusal, match="may not create jobs"):
        ann.patch("AutotuneCache", namespace, "demo", {"spec": {"revision": "2"}})


def test_an_author_who_may_not_create_jobs_cannot_have_a_claim_read_by_one(
    kube: Kube, operator: str, namespace: str
) -> None:
    """For the annotation a Job is created that mounts a claim, which may be another user's."""
    kube.create(cache(namespace, suspend=True))
    ann = author(kube, namespace, EDIT_CACHES)
    attempt(
        ann, cache(namespace, name="other")
    )  # once the answer is the policy's, her rights have arrived
    for turn, there in enumerate(({}, {"team": "a"}, {IMPORT: "mine"})):
        kube.patch("AutotuneCache", namespace, "demo", {"metadata": {"annotations": there}})
        for value in ("theirs/cache", *([None] if IMPORT in there else [])):  # null takes it away
            with pytest.raises(Refusal, match="user ann may not create jobs in namespace"):
                ann.patch(
                    "AutotuneCache",
                    namespace,
                    "demo",
                    {"metadata": {"annotations": {IMPORT: value}}},
                )
        ann.patch("AutotuneCache", namespace, "demo", {"metadata": {"labels": {"turn": str(turn)}}})
