"""Pods: `AttemptPod("b-default").running("vllm")`, `Consumer("a").held()`."""

from __future__ import annotations

import copy
from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.protocol import Report

from tests.builders.constants import ENGINE, KEY, NOW
from tests.builders.jobs import job


class AttemptPod(dict[str, Any]):
    """The pod of an attempt, as the kubelet reports it. Each method returns a changed copy."""

    def __init__(
        self, bundle: str = "b-default", number: int = 1, of: Object | None = None
    ) -> None:
        owner = of or job(bundle, number)
        super().__init__(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": KEY.namespace,
                    "name": "pod",
                    "uid": "pod-uid",
                    "creationTimestamp": format_timestamp(NOW - 50),
                    "labels": {
                        names.CACHE: KEY.name,
                        names.ROLE: names.TUNING,
                        names.BUNDLE: bundle,
                        names.ATTEMPT: str(number),
                    },
                    "ownerReferences": [
                        {
                            "kind": "Job",
                            "name": owner["metadata"]["name"],
                            "uid": owner["metadata"]["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": {
                    "nodeName": "node0",
                    "activeDeadlineSeconds": 5400,
                    "initContainers": [
                        {"name": names.CHECK_CONTAINER},
                        {"name": "download"},
                        {"name": ENGINE},
                    ],
                    "containers": [{"name": names.SEAL_CONTAINER}],
                },
                "status": {
                    "phase": "Pending",
                    "conditions": [],
                    "initContainerStatuses": [],
                    "containerStatuses": [],
                },
            }
        )

    def but(self, **more: Any) -> AttemptPod:
        """Change metadata (`deletionTimestamp=…`), `nodeName` or `status={…}`."""
        pod = copy.deepcopy(self)
        for name, value in more.items():
            if name == "status":
                pod["status"].update(value)
            elif name == "nodeName":
                pod["spec"]["nodeName"] = value
            else:
                pod["metadata"][name] = value
        return pod

    def condition(self, kind: str, status: str = "True", **more: str) -> AttemptPod:
        pod = copy.deepcopy(self)
        pod["status"]["conditions"].append({"type": kind, "status": status, **more})
        return pod

    def container(self, name: str, state: Object, **more: Any) -> AttemptPod:
        pod = copy.deepcopy(self)
        is_main = any(container["name"] == name for container in pod["spec"]["containers"])
        statuses = pod["status"]["containerStatuses" if is_main else "initContainerStatuses"]
        others = [status for status in statuses if status["name"] != name]
        statuses[:] = [*others, {"name": name, "state": state, **more}]
        return pod

    def running(self, name: str, **more: Any) -> AttemptPod:
        return self.container(name, {"running": {"startedAt": format_timestamp(NOW - 30)}}, **more)

    def waiting(self, name: str, reason: str, message: str = "", **more: Any) -> AttemptPod:
        return self.container(name, {"waiting": {"reason": reason, "message": message}}, **more)

    def ended(
        self, name: str, code: int = 0, report: Report | None = None, message: str = "", **more: Any
    ) -> AttemptPod:
        text = report.dump() if report else message
        end = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "finishedAt": format_timestamp(NOW - 5),
        }
        return self.container(name, {"terminated": {**end, "message": text}}, **more)


class Consumer(dict[str, Any]):
    """A consumer of one ReplicaSet, as observe projects it. Each method returns a changed copy."""

    def __init__(
        self, owner: str = "a", number: int = 1, age: float = 60, kind: str = "ReplicaSet"
    ) -> None:
        name = f"{owner}-{number}"
        reference = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "name": owner,
            "uid": f"uid-{owner}",
            "controller": True,
        }
        super().__init__(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": KEY.namespace,
                    "name": name,
                    "uid": f"uid-{name}",
                    "creationTimestamp": format_timestamp(NOW - age),
                    "labels": {names.CACHE: KEY.name, "pod-template-hash": owner},
                    "annotations": {},
                    "ownerReferences": [reference],
                },
                "spec": {},
                "status": {
                    "phase": "Pending",
                    "conditions": [],
                    "initContainerStatuses": [],
                    "containerStatuses": [],
                },
            }
        )

    def _but(self, **parts: Any) -> Consumer:
        pod = copy.deepcopy(self)
        for part, fields in parts.items():
            pod[part].update(fields)
        return pod

    def meta(self, **more: Any) -> Consumer:
        return self._but(metadata=more)

    def given(self, bundle: str, mode: str = "Overlay") -> Consumer:
        return self.meta(annotations={names.BUNDLE: bundle, names.DELIVERY: mode})

    def noted(self, **annotations: str) -> Consumer:
        return self.meta(annotations={**self["metadata"]["annotations"], **annotations})

    def held(self, *others: str) -> Consumer:
        return self._but(
            spec={"schedulingGates": [{"name": gate} for gate in (*others, names.HOLD)]}
        )

    def runs(self, image: str = "", **state: Any) -> Consumer:
        """Its engine has started."""
        status = {
            "name": ENGINE,
            "imageID": image,
            "state": state or {"running": {"startedAt": format_timestamp(NOW - 30)}},
        }
        return self._but(
            spec={"nodeName": "node0"}, status={"phase": "Running", "containerStatuses": [status]}
        )

    def ready(self, status: str = "True", since: float = NOW - 30) -> Consumer:
        condition = {
            "type": "Ready",
            "status": status,
            "lastTransitionTime": format_timestamp(since),
        }
        return self.runs()._but(status={"conditions": [condition]})

    def seeded(self, reason: str = "Seeded") -> Consumer:
        end = {"exitCode": 0, "message": Report("seed", reason).dump()}
        container = {"name": names.SEED_CONTAINER, "state": {"terminated": end}}
        return self._but(status={"initContainerStatuses": [container]})

    def but(self, **status: Any) -> Consumer:
        return self._but(status=status)


def sealed_report(bundle: str, by: str = "seal") -> Report:
    return Report(
        by=by,
        reason="Sealed",
        message="20 entries",
        id=bundle,
        layout="Managed",
        entries=20,
        digest="sha256:1",
        at=format_timestamp(NOW - 6),
    )
