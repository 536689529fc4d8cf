"""What is kept of an object that was read."""

from __future__ import annotations

import json

from pretune.api import names
from pretune.api.names import CACHE
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.controller import project
from pretune.intake import EXCESS

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW
from tests.builders.observing import NS, SECRET, labelled, observe_now, server

WHOLE: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        **labelled("a-1", KEY.name),
        "uid": "u",
        "generateName": "a-",
        "annotations": {names.BUNDLE: "b", names.TARGET: "t", "kubectl.kubernetes.io/last-applied-configuration": SECRET},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "ua", "controller": True}],
        "creationTimestamp": format_timestamp(NOW),
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {
        "nodeName": "node0",
        "nodeSelector": {"gpu": "b200"},
        "schedulingGates": [{"name": names.HOLD}],
        "containers": [{"name": "vllm", "env": [{"name": "TOKEN", "value": SECRET}]}],
        "volumes": [
            {"name": "pretune-claim", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
            {"name": "pretune-agent", "configMap": {"name": "pretune-agent-0", "optional": True, "items": []}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "tmp", "emptyDir": {}},
        ],
    },
    "status": {
        "phase": "Pending",
        "reason": "Evicted",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "podIP": "10.0.0.1",
        "initContainerStatuses": [
            {"name": "fetch", "state": {"terminated": {"exitCode": 0, "finishedAt": "t", "message": SECRET}}},
            {"name": names.SEED_CONTAINER, "state": {"terminated": {"exitCode": 0, "message": "{}"}}, "image": "x"},
        ],
        "containerStatuses": [
            {
                "name": "vllm",
                "imageID": "x@sha256:1",
                "image": "x",
                "containerID": "c",
                "ready": False,
                "started": False,
                "restartCount": 1,
                "state": {"waiting": {"reason": "CreateContainerError", "message": "/pretune/claim"}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "t", "message": SECRET}},
            }
        ],
    },
}  # fmt: skip


def test_a_consumer_is_cut_down_to_what_is_decided_on() -> None:
    world = server(cache(source=None), claim())
    world.objects["v1", "Pod", NS, "a-1"] = WHOLE
    (cut,) = observe_now(world)[0].consumers
    assert cut["metadata"] == {
        **{name: one for name, one in WHOLE["metadata"].items() if name != "managedFields"},
        "annotations": {names.BUNDLE: "b", names.TARGET: "t"},
    }
    assert cut["spec"] == {
        **{name: WHOLE["spec"][name] for name in ("nodeName", "nodeSelector", "schedulingGates")},
        "volumes": [
            {
                "name": "pretune-claim",
                "persistentVolumeClaim": {"claimName": "c", "readOnly": True},
            },
            {"name": "pretune-agent", "configMap": {"name": "pretune-agent-0"}},
            {"name": "scratch", "ephemeral": {}},
        ],
    }
    whole = WHOLE["status"]
    assert cut["status"] == {
        **{name: whole[name] for name in ("phase", "reason", "conditions")},
        "initContainerStatuses": [
            {"name": "fetch", "state": {"terminated": {"exitCode": 0, "finishedAt": "t"}}},
            {"name": names.SEED_CONTAINER, "state": {"terminated": {"exitCode": 0, "message": "{}"}}},
        ],
        "containerStatuses": [
            {
                **{name: one for name, one in whole["containerStatuses"][0].items() if name not in ("image", "containerID")},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "t"}},
            }
        ],
    }  # fmt: skip
    assert SECRET not in json.dumps(cut)


def test_of_many_large_single_pods_only_some_are_kept_whole() -> None:
    def single(number: int) -> Object:
        labels = {CACHE: "qwen3"}
        spec = {"containers": [{"name": "vllm", "args": ["x" * 1_000_000]}]}
        return {"metadata": {"name": f"p{number}", "labels": labels}, "spec": spec}

    projection = project.PodProjection()
    kept = list(map(projection, map(single, range(20))))
    assert [EXCESS in pod for pod in kept] == [False] * 8 + [True] * 12
    assert len(str(kept[8:])) < 20_000 and "more than 8 MiB" in kept[8][EXCESS]


def test_a_single_pod_counts_once_where_the_list_begins_again() -> None:
    def single(number: int) -> Object:
        spec = {"containers": [{"name": "vllm", "args": ["x" * 1_000_000]}]}
        return {"metadata": {"name": f"p{number}", "labels": {CACHE: "qwen3"}}, "spec": spec}

    projection = project.PodProjection()
    for _ in range(3):  # after an answer 410 (kube.client.Kubernetes.list)
        kept = list(map(projection, map(single, range(9))))
        assert [EXCESS in pod for pod in kept] == [False] * 8 + [True]
