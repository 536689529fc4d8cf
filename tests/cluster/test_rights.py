"""The chart's rights are enough: read from the API server's audit log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.cluster.conftest import CreateCache
from tests.cluster.kube import Kube, Object
from tests.cluster.operator_control import OperatorControl
from tests.cluster.workloads import engine_template

AUDIT = Path(
    "/var/lib/pretune-cluster/logs/audit.log"
)  # tools/cluster/config/audit.yaml: what pretune's accounts ask
WITHHELD = {"cronjobs", "configmaps"}  # tests name such objects as sources on purpose


def asked(since: float) -> Iterator[tuple[Object, str]]:
    """Yield the object and the refusal ("" for none) of each request since a time (Unix seconds)."""
    for line in AUDIT.read_text().splitlines():
        event = json.loads(line)
        when = datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00")).timestamp()
        if when < since or OperatorControl.was_changing(when):
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
def test_no_request_of_the_operator_is_refused_for_a_missing_right(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: Callable[..., Object],
    run_folder: Path,
) -> None:
    since = (run_folder / "operator.done").stat().st_mtime
    create_cache(template=engine_template(env={"ENGINE_FAULT": "crash"}), tuning={"maxAttempts": 1})
    wait_for_condition(kind="Stalled", reason="EngineFailed")
    kube.patch(
        "AutotuneCache", namespace, "demo", {"spec": {"source": {"template": engine_template()}}}
    )
    wait_for_condition()
    kube.patch("AutotuneCache", namespace, "demo", {"status": None}, "status")
    wait_for_condition()
    kube.delete("AutotuneCache", namespace, "demo")
    kube.wait_until_gone("PersistentVolumeClaim", namespace, "pretune-demo")
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
