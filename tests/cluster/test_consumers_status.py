"""What people see of their serving pods: counts, columns, events, advice, metrics; and that a second controller changes nothing."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import BUILD, KUBECTL, Apply, Moments, Ready, Roll, Served
from tests.cluster.images import engine_as, forget
from tests.cluster.kube import Kube, Object, bundles, event
from tests.cluster.operation import CONTROLLER, WEBHOOK, Operation
from tests.cluster.seen import Seen, held
from tests.cluster.workloads import bare, deployment, serving


def counted(seen: Seen, **numbers: int) -> bool:
    found = (seen.cache().get("status") or {}).get("consumers") or {}
    return {name: found.get(name) for name in numbers} == numbers


def test_consumers_are_counted_and_shown_through_a_rollout(
    kube: Kube,
    namespace: str,
    seen: Seen,
    served: Served,
    roll: Roll,
    moments: Moments,
    kubeconfig: str,
) -> None:
    served(2, surge="1", down="0", cold=True)
    seen.until(
        lambda s: counted(s, seeded=0, cold=2, held=0, stale=0, ready=2), 15, "two cold pods"
    )
    roll("v2")
    held(seen, 1)
    seen.until(lambda s: counted(s, seeded=0, cold=2, held=1, ready=2), 15, "one held beside them")
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
    moments.go("v2")
    seen.until(
        lambda s: s.ready(2) and counted(s, seeded=2, cold=0, held=0, ready=2),
        120,
        "two seeded pods",
    )
    assert [(one.get("running"), one.get("serving")) for one in bundles(seen.cache())] == [
        (True, True),
        (None, None),
    ]
    times = [one.object["status"]["consumers"]["observedAt"] for one in seen.moments
             if one.kind == "AutotuneCache" and (one.object.get("status") or {}).get("consumers")]  # fmt: skip
    assert len(set(times)) <= 8  # at most every 10 s, where numbers change
    message = str(event(kube, namespace, "Released", "its bundle is sealed")["message"])
    assert re.search(r"1 pod of bundle \w+-default: .* waited \d+ s", message)


@pytest.fixture
def moving(namespace: str) -> Iterator[str]:
    """An image under a tag that moves, on the local cluster's node."""
    if not Path("/run/pretune-cluster").exists():
        pytest.skip("the nodes of PRETUNE_TEST_KUBECONFIG are not on this machine")
    name = f"localhost/pretune/moving-{namespace[-6:]}:latest"
    engine_as(name, "first")
    yield name
    forget(name)


def test_a_tag_that_moved_under_a_bundle_makes_its_pods_stale(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, moving: str
) -> None:
    apply()
    ready(kind="StorageReady")
    kube.create(deployment(namespace, serving(image=moving)))
    ready()
    warned = {one["reason"]: one["message"] for one in seen.cache()["status"]["warnings"]}
    assert moving in warned["MovingTag"]
    engine_as(moving, "second")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2) and counted(s, stale=1), 120, "one of them stale")
    seen.until(
        lambda s: any(one["reason"] == "StaleImage" for one in s.cache()["status"]["warnings"]),
        15,
        "advice",
    )
    event(kube, namespace, "StaleImage")
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"revision": "2"}})
    seen.until(lambda s: s.sealed(2), 120, "tuned again")


def test_what_will_go_wrong_is_said_with_the_line_to_change(
    kube: Kube, namespace: str, seen: Seen, served: Served
) -> None:
    def advised(*reasons: str) -> None:
        def there(seen: Seen) -> bool:
            told = {
                one["reason"]: one["message"]
                for one in (seen.cache().get("status") or {}).get("warnings") or ()
            }
            return all(one in told for one in reasons)

        seen.until(there, 20, f"advice: {', '.join(reasons)}")

    served(1)
    advised("ProgressDeadlineShort")  # 600 s by default, and a hold of 3600
    kube.patch("Deployment", namespace, "serving", {"spec": {"progressDeadlineSeconds": 4000}})
    seen.until(
        lambda s: (
            not [
                one
                for one in s.cache()["status"].get("warnings") or ()
                if one["reason"].startswith("Progress")
            ]
        ),
        20,
        "the advice is gone",
    )
    template = serving("v1")
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
    event(kube, namespace, "LabelInSelector", "other")


@pytest.mark.disturbs
def test_a_second_controller_waits_and_takes_over_when_the_first_one_dies(
    kube: Kube,
    namespace: str,
    seen: Seen,
    served: Served,
    roll: Roll,
    moments: Moments,
    operation: Operation,
) -> None:
    operation.scale(CONTROLLER, 2)
    leader = operation.lease()["holderIdentity"]
    served(1)
    roll("v2")
    held(seen, 1)
    assert operation.lease()["holderIdentity"] == leader
    kube.delete("Pod", "pretune-system", leader, gracePeriodSeconds=0)
    moments.go("v2")
    seen.until(lambda s: s.ready(1) and s.ready(1, "v2"), 120, "v2 rolled out by the other one")
    assert operation.lease()["holderIdentity"] != leader
    jobs = kube.list("Job", namespace, "pretune.dev/role=tuning")
    assert len(jobs) == 2 and [one["attempts"] for one in bundles(seen.cache())] == [1, 1]


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    assert f"# TYPE {name.removesuffix('_total')}" in text, f"there is no metric {name}"
    return sum(float(value) for told, value in found if all(one in told for one in wanted))


def test_controller_and_webhook_tell_prometheus_what_they_do(
    kube: Kube, namespace: str, seen: Seen, served: Served, operator: str
) -> None:
    served(1, cold=True)
    seen.until(lambda s: counted(s, cold=1), 15, "counted")
    operation = Operation(kube, operator, BUILD / "bin")
    [controller], webhooks = (
        operation.metrics(CONTROLLER).values(),
        list(operation.metrics(WEBHOOK).values()),
    )
    assert metric(controller, "pretune_bundles", namespace=namespace, state="Sealed") == 1
    assert metric(controller, "pretune_consumers", namespace=namespace, state="cold") == 1
    assert metric(controller, "pretune_tuning_gpu_seconds_total", namespace=namespace) > 0
    assert metric(controller, "pretune_attempts_total", reason="Sealed") >= 1
    assert metric(controller, "pretune_leader") == 1
    assert (
        sum(metric(one, "pretune_admissions_total", reason="NotSealedYet") for one in webhooks) >= 1
    )
    assert [metric(one, "pretune_controller_alive") for one in webhooks] == [1, 1]
    assert all(
        metric(one, "pretune_certificate_expiry_timestamp_seconds") > time.time()
        for one in webhooks
    )
    for text in (controller, *webhooks):
        for name in re.findall(r"^# TYPE (pretune_\w+)", text, re.MULTILINE):
            assert re.search(rf"^# HELP {name} \w", text, re.MULTILINE)


def test_a_bare_pods_dry_run_shows_what_it_would_be_given_and_changes_nothing(
    kube: Kube, namespace: str, seen: Seen, served: Served
) -> None:
    served(1)
    before: list[Object] = bundles(seen.cache())
    kube.create(bare(namespace, serving("v2")), dry_run=True)
    assert bundles(seen.cache()) == before
