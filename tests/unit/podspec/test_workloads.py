"""A workload kind is a row of KINDS: where a pod's template is, for every row and one more."""

from __future__ import annotations

import pytest
from pretune.api.types import Object
from pretune.podspec import workloads
from pretune.podspec.workloads import KINDS, WorkloadKind


def pod(*owners: Object, name: str = "p", **labels: str) -> Object:
    return {
        "metadata": {"name": name, "ownerReferences": list(owners), "labels": labels},
        "spec": {},
    }


def owner(
    kind: str, version: str = "apps/v1", *, name: str = "o", controller: bool = True
) -> Object:
    return {
        "apiVersion": version,
        "kind": kind,
        "name": name,
        "uid": f"uid-{name}",
        "controller": controller,
    }


HASH = {"controller-revision-hash": "o-7f"}


def ref(kind: str, name: str, of: str = "", version: str = "apps/v1") -> workloads.TemplateRef:
    return workloads.TemplateRef(version, kind, name, "uid-o", of or kind, "o")


@pytest.mark.parametrize(
    ("case", "of", "expected"),
    [
        ("a ReplicaSet's", pod(owner("ReplicaSet")), ref("ReplicaSet", "o")),
        ("a Job's", pod(owner("Job", "batch/v1")), ref("Job", "o", version="batch/v1")),
        ("a StatefulSet's: the label is the name", pod(owner("StatefulSet"), **HASH), ref("ControllerRevision", "o-7f", "StatefulSet")),
        (
            "a DaemonSet's: the label is the hash",
            pod(owner("DaemonSet"), **{"controller-revision-hash": "7f"}),
            ref("ControllerRevision", "o-7f", "DaemonSet"),
        ),
        ("a newer version of the same group", pod(owner("ReplicaSet", "apps/v2")), ref("ReplicaSet", "o", version="apps/v2")),
        ("one of several owners", pod(owner("Job", "batch/v1", name="x", controller=False), owner("ReplicaSet")), ref("ReplicaSet", "o")),
        ("a bare pod", pod(), None),
        ("an owner that does not control it", pod(owner("ReplicaSet", controller=False)), None),
        ("a kind that we do not know", pod(owner("RayCluster", "ray.io/v1")), None),
        ("a kind of the same name in another group", pod(owner("StatefulSet", "apps.kruise.io/v1"), **HASH), None),
        ("a Job of another group", pod(owner("Job", "batch.volcano.sh/v1alpha1")), None),
        ("a pod that its set did not make", pod(owner("StatefulSet")), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_pods_template_is_its_controllers_or_its_own(
    case: str, of: Object, expected: workloads.TemplateRef | None
) -> None:
    assert workloads.origin_of(of) == expected
    assert workloads.origin_key(of) == (f"{expected.kind}/{expected.name}" if expected else "Pod/p")


def test_a_pod_that_has_neither_a_name_nor_labels_yet_has_an_origin() -> None:
    assert workloads.origin_of({"metadata": {"generateName": "p-"}, "spec": {}}) is None
    assert workloads.origin_key({"metadata": {"generateName": "p-"}, "spec": {}}) == "Pod/"
    assert (
        workloads.origin_of({"metadata": {"ownerReferences": [owner("DaemonSet")]}, "spec": {}})
        is None
    )


# --- the rows

CLONE_SET = WorkloadKind(
    "apps.kruise.io",
    "CloneSet",
    revision_name=lambda name, label: label,
    is_held_when_serving=True,
)


def test_a_kind_that_is_added_has_an_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a kind of the same name in another group."""
    stateful = WorkloadKind("apps.kruise.io", "StatefulSet")
    monkeypatch.setattr(workloads, "KINDS", (*KINDS, CLONE_SET, stateful))
    of = pod(owner("CloneSet", "apps.kruise.io/v1alpha1"), **HASH)
    assert workloads.origin_of(of) == ref("ControllerRevision", "o-7f", "CloneSet")
    assert workloads.origin_key(of) == "ControllerRevision/o-7f"
    assert workloads.held_kinds() == ["ReplicaSet", "CloneSet"]
    assert workloads.has_revisions("CloneSet")
    other = pod(owner("StatefulSet", "apps.kruise.io/v1beta1"), **HASH)
    assert workloads.origin_of(other) == ref("StatefulSet", "o", version="apps.kruise.io/v1beta1")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Deployment", True),
        ("Rollout", True),
        ("StatefulSet", True),
        ("DaemonSet", True),
        ("Job", False),
        ("ReplicaSet", False),
        ("Pod", False),
        ("", False),
    ],
)
def test_which_workloads_keep_revisions(kind: str, expected: bool) -> None:
    assert workloads.has_revisions(kind) == expected


@pytest.mark.parametrize(
    ("case", "of", "version"),
    [
        ("a Deployment's", pod(owner("ReplicaSet"), **{"pod-template-hash": "7f"}), "7f"),
        ("a ReplicaSet's without Deployment", pod(owner("ReplicaSet")), None),
        ("a StatefulSet's", pod(owner("StatefulSet"), **HASH), "o-7f"),
        ("a Job's, which Kueue may change", pod(owner("Job", "batch/v1")), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_identifies_a_template_that_never_changes(
    case: str, of: Object, version: str | None
) -> None:
    origin = workloads.origin_of(of)
    assert origin is not None and workloads.template_version(origin, of) == version
