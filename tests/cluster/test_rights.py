"""The controller works with exactly the rights that the chart gives it: read from the API server's own audit log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.cluster.conftest import Apply
from tests.cluster.kube import Kube, Object
from tests.cluster.operation import Operation
from tests.cluster.workloads import engine

AUDIT = Path(
    "/var/lib/pretune-cluster/logs/audit.log"
)  # tools/cluster/config/audit.yaml: what pretune's accounts ask
WITHHELD = {"cronjobs", "configmaps"}  # tests name such objects as sources on purpose


def asked(since: float) -> Iterator[tuple[Object, str]]:
    """What the controller has asked from a time (Unix seconds) on: the object's reference, and why it was forbidden ("": it was not)."""
    for line in AUDIT.read_text().splitlines():
        event = json.loads(line)
        when = datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00")).timestamp()
        if when < since or Operation.changed(when):
            continue  # its rights go before its last pod does
        status = event.get("responseStatus") or {}
        yield (
            {**event.get("objectRef", {}), "verb": event["verb"]},
            status.get("message", "403") if status.get("code") == 403 else "",
        )


@pytest.mark.skipif(
    not AUDIT.exists(),
    reason="the cluster of PRETUNE_TEST_KUBECONFIG is not ours: its audit log is elsewhere",
)
def test_a_whole_journey_needs_no_right_that_the_controller_lacks(
    kube: Kube, namespace: str, apply: Apply, ready: Callable[..., Object], shared: Path
) -> None:
    since = (shared / "operator.done").stat().st_mtime
    apply(template=engine(env={"ENGINE_FAULT": "crash"}), tuning={"maxAttempts": 1})
    ready(kind="Stalled", reason="EngineFailed")
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"source": {"template": engine()}}})
    ready()
    kube.patch("AutotuneCache", namespace, "demo", {"status": None}, "status")
    ready()
    kube.delete("AutotuneCache", namespace, "demo")
    kube.until_gone("PersistentVolumeClaim", namespace, "pretune-demo")
    lacking = [
        why
        for what, why in asked(since)
        if why
        and "unable to create new content in namespace" not in why
        and what.get("resource") not in WITHHELD
    ]
    assert not lacking
    ours = {
        (what.get("resource"), what["verb"])
        for what, _ in asked(since)
        if what.get("namespace") == namespace
    }
    assert {
        ("jobs", "create"),
        ("autotunecaches", "patch"),
        ("persistentvolumeclaims", "delete"),
    } <= ours
