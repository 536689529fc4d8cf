"""What users see of their serving pods: counts, columns, events, advice and metrics."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import (
    BUILD,
    KUBECTL,
    CreateCache,
    RollOut,
    StartServing,
    TuningSignals,
    WaitForCondition,
)
from tests.cluster.images import tag_engine_image, untag_image
from tests.cluster.kube import Kube, Object, bundles, wait_for_event
from tests.cluster.operator_control import CONTROLLER, WEBHOOK, OperatorControl
from tests.cluster.recorder import Recorder, wait_until_held
from tests.cluster.workloads import bare_pod, deployment, serving_template


def counted(recorder: Recorder, **numbers: int) -> bool:
    found = (recorder.cache().get("status") or {}).get("consumers") or {}
    return {name: found.get(name) for name in numbers} == numbers


def test_consumers_are_counted_and_shown_through_a_rollout(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
    kubeconfig: str,
) -> None:
    start_serving(2, surge="1", down="0", cold=True)
    recorder.wait_until(
        lambda s: counted(s, seeded=0, cold=2, held=0, stale=0, ready=2),
        15,
        "two cold pods",
    )
    roll_out("v2")
    wait_until_held(recorder, 1)
    recorder.wait_until(
        lambda s: counted(s, seeded=0, cold=2, held=1, ready=2),
        15,
        "one held beside them",
    )
    command = [
        str(KUBECTL),
        "--kubeconfig",
        kubeconfig,
        "--namespace",
        namespace,
        "get",
        "atc",
        "demo",
    ]
    head, row = (line.split() for line in subprocess.check_output(command, text=True).splitlines())
    assert head == ["NAME", "READY", "REASON", "BUNDLES", "ENTRIES", "SEEDED", "HELD", "AGE"]
    assert row[:4] == ["demo", "False", "Tuning", "0/1"] and row[-2] == "1"
    signals.finish_tuning("v2")
    recorder.wait_until(
        lambda s: s.are_ready(2) and counted(s, seeded=2, cold=0, held=0, ready=2),
        120,
        "two seeded pods",
    )
    assert [
        (bundle.get("running"), bundle.get("serving")) for bundle in bundles(recorder.cache())
    ] == [
        (True, True),
        (None, None),
    ]
    times = [record.object["status"]["consumers"]["observedAt"] for record in recorder.records
             if record.kind == "AutotuneCache" and (record.object.get("status") or {}).get("consumers")]  # fmt: skip
    assert len(set(times)) <= 8  # at most every 10 s, where numbers change
    message = str(wait_for_event(kube, namespace, "Released", "its bundle is sealed")["message"])
    assert re.search(r"1 pod of bundle \w+-default: .* waited \d+ s", message)


@pytest.fixture
def moving(namespace: str) -> Iterator[str]:
    """An image with a tag that moves, on the local cluster's node."""
    if not Path("/run/pretune-cluster").exists():
        pytest.skip("the nodes of PRETUNE_TEST_KUBECONFIG are not on this machine")
    name = f"localhost/pretune/moving-{namespace[-6:]}:latest"
    tag_engine_image(name, "first")
    yield name
    untag_image(name)


def test_pods_of_a_tag_that_moved_after_the_tuning_are_stale(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    moving: str,
) -> None:
    create_cache()
    wait_for_condition(kind="StorageReady")
    kube.create(deployment(namespace, serving_template(image=moving)))
    wait_for_condition()
    warned = {
        warning["reason"]: warning["message"] for warning in recorder.cache()["status"]["warnings"]
    }
    assert moving in warned["MovingTag"]
    tag_engine_image(moving, "second")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    recorder.wait_until(lambda s: s.are_ready(2) and counted(s, stale=1), 120, "one of them stale")
    recorder.wait_until(
        lambda s: any(
            warning["reason"] == "StaleImage" for warning in s.cache()["status"]["warnings"]
        ),
        15,
        "advice",
    )
    wait_for_event(kube, namespace, "StaleImage")
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"revision": "2"}})
    recorder.wait_until(lambda s: s.has_sealed(2), 120, "tuned again")


def test_advice_names_the_line_to_change(
    kube: Kube, namespace: str, recorder: Recorder, start_serving: StartServing
) -> None:
    def advised(*reasons: str) -> None:
        def there(recorder: Recorder) -> bool:
            advised_reasons = {
                warning["reason"]: warning["message"]
                for warning in (recorder.cache().get("status") or {}).get("warnings") or ()
            }
            return all(reason in advised_reasons for reason in reasons)

        recorder.wait_until(there, 20, f"advice: {', '.join(reasons)}")

    start_serving(1)
    advised("ProgressDeadlineShort")  # 600 s by default, and a hold of 3600
    kube.patch("Deployment", namespace, "serving", {"spec": {"progressDeadlineSeconds": 4000}})
    recorder.wait_until(
        lambda s: (
            not [
                warning
                for warning in s.cache()["status"].get("warnings") or ()
                if warning["reason"].startswith("Progress")
            ]
        ),
        20,
        "the advice is gone",
    )
    template = serving_template("v1")
    template["metadata"]["labels"]["app"] = "other"
    template["spec"]["containers"][0]["startupProbe"] = {
        **template["spec"]["containers"][0]["readinessProbe"],
        "failureThreshold": 1,
        "periodSeconds": 1,
        "initialDelaySeconds": 1,
    }
    labels = {"app": "other", "pretune.dev/cache": "demo"}
    other = deployment(namespace, template, name="other")
    other["spec"]["selector"]["matchLabels"] = labels
    kube.create(other)
    advised("LabelInSelector")
    wait_for_event(kube, namespace, "LabelInSelector", "other")


@pytest.mark.disturbs
def test_a_second_controller_takes_over_when_the_first_one_dies(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
    operator_control: OperatorControl,
) -> None:
    operator_control.scale(CONTROLLER, 2)
    leader = operator_control.lease()["holderIdentity"]
    start_serving(1)
    roll_out("v2")
    wait_until_held(recorder, 1)
    assert operator_control.lease()["holderIdentity"] == leader
    kube.delete("Pod", "pretune-system", leader, gracePeriodSeconds=0)
    signals.finish_tuning("v2")
    recorder.wait_until(
        lambda s: s.are_ready(1) and s.are_ready(1, "v2"), 120, "v2 rolled out by the other one"
    )
    assert operator_control.lease()["holderIdentity"] != leader
    jobs = kube.list("Job", namespace, "pretune.dev/role=tuning")
    assert len(jobs) == 2 and [bundle["attempts"] for bundle in bundles(recorder.cache())] == [1, 1]


def metric(text: str, name: str, **labels: str) -> float:
    """Return the sum of the samples with this name and these labels."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    assert f"# TYPE {name.removesuffix('_total')}" in text, f"there is no metric {name}"
    return sum(float(value) for shown, value in found if all(label in shown for label in wanted))


def test_controller_and_webhook_have_metrics_of_what_they_do(
    kube: Kube, namespace: str, recorder: Recorder, start_serving: StartServing, operator: str
) -> None:
    start_serving(1, cold=True)
    recorder.wait_until(lambda s: counted(s, cold=1), 15, "counted")
    operator_control = OperatorControl(kube, operator, BUILD / "bin")
    [controller], webhooks = (
        operator_control.metrics(CONTROLLER).values(),
        list(operator_control.metrics(WEBHOOK).values()),
    )
    assert metric(controller, "pretune_bundles", namespace=namespace, state="Sealed") == 1
    assert metric(controller, "pretune_consumers", namespace=namespace, state="cold") == 1
    assert metric(controller, "pretune_tuning_gpu_seconds_total", namespace=namespace) > 0
    assert metric(controller, "pretune_attempts_total", reason="Sealed") >= 1
    assert metric(controller, "pretune_leader") == 1
    assert (
        sum(
            metric(webhook, "pretune_admissions_total", reason="NotSealedYet")
            for webhook in webhooks
        )
        >= 1
    )
    assert [metric(webhook, "pretune_controller_alive") for webhook in webhooks] == [1, 1]
    assert all(
        metric(webhook, "pretune_certificate_expiry_timestamp_seconds") > time.time()
        for webhook in webhooks
    )
    for text in (controller, *webhooks):
        for name in re.findall(r"^# TYPE (pretune_\w+)", text, re.MULTILINE):
            assert re.search(rf"^# HELP {name} \w", text, re.MULTILINE)


def test_the_dry_run_of_a_pod_shows_its_delivery_and_changes_nothing(
    kube: Kube, namespace: str, recorder: Recorder, start_serving: StartServing
) -> None:
    start_serving(1)
    before: list[Object] = bundles(recorder.cache())
    kube.create(bare_pod(namespace, serving_template("v2")), dry_run=True)
    assert bundles(recorder.cache()) == before
