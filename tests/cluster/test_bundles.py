"""Bundles on the real cluster: they are tuned, sealed, kept, and found again on the claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import CreateCache
from tests.cluster.kube import Kube, Object, bundles, condition, list_failures
from tests.cluster.operator_control import CONTROLLER, OperatorControl
from tests.cluster.recorder import Recorder
from tests.cluster.workloads import deployment, engine_template

WaitForCondition = Callable[..., Object]
TUNING, PROOF = "pretune.dev/role=tuning", "pretune.dev/role=proof"


def workload(name: str = "serving") -> Object:
    return {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}


def reader(
    namespace: str, claim: str, folder: str, template: Object, name: str = "reader"
) -> Object:
    """Return a serving pod as one writes it by hand: the claim, read-only, as override directory."""
    spec = {**template["spec"], "restartPolicy": "Never"}
    container = {**spec["containers"][0], "resources": {}}
    container["env"] = [
        *container.get("env", []),
        {"name": "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", "value": f"/tactics/{folder}"},
    ]
    container["volumeMounts"] = [
        *container.get("volumeMounts", []),
        {"name": "tactics", "mountPath": "/tactics", "readOnly": True},
    ]
    claims = {"name": "tactics", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {**spec, "containers": [container], "volumes": [*spec.get("volumes", []), claims]},
    }


def wait_until_logged(kube: Kube, namespace: str, pod: str, words: str, seconds: float = 60) -> str:
    """Return the container's log, once it has the words."""
    kube.wait_until(
        "Pod",
        namespace,
        pod,
        lambda p: p["status"].get("phase") in ("Running", "Failed", "Succeeded"),
        seconds,
    )
    url = kube._url("Pod", namespace, pod, "log")
    with kube.session.get(url, params={"follow": "true"}, stream=True, timeout=seconds) as stream:
        lines: list[str] = []
        for line in stream.iter_lines(decode_unicode=True):
            lines.append(line)
            if words in line:
                return "\n".join(lines)
    raise AssertionError(f"{words!r} is not in the log of {pod}:\n" + "\n".join(lines))


def test_a_cache_gets_a_sealed_bundle_and_a_read_only_pod_starts_warm_from_it(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template())
    cache = wait_for_condition()
    [bundle] = bundles(cache)
    assert (bundle["state"], bundle["layout"], bundle["entries"], bundle["attempts"]) == (
        "Sealed",
        "Managed",
        20,
        1,
    )
    assert bundle["environment"]["vllm"] == "0.33.0"
    assert bundle["digest"].startswith("sha256:")
    assert bundle["engineImage"]
    assert cache["status"]["summary"] == {"bundles": "1/1", "entries": 20}
    assert condition(cache, "StorageReady")["status"] == "True"
    folder = f"{namespace}.demo/bundles/{bundle['id']}/tactics"
    kube.create(reader(namespace, "pretune-demo", folder, engine_template()))
    log = wait_until_logged(kube, namespace, "reader", "Preloaded")
    assert "Preloaded 20/20" in log


def test_several_ranks_are_sealed_as_one_file_each(
    namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template("0.32.0", gpus=4, args=("--tensor-parallel-size", "4")))
    [bundle] = bundles(wait_for_condition())
    assert (bundle["layout"], bundle["entries"]) == ("PerRank", 20)
    assert "4 rank files" in bundle["message"]


def test_an_engine_that_tunes_nothing_gets_an_empty_bundle_with_the_reason(
    create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template(env={"ENGINE_ENTRIES": "0"}))
    cache = wait_for_condition(reason="NothingToTune")
    [bundle] = bundles(cache)
    assert (bundle["state"], bundle["layout"]) == ("Sealed", "Empty")
    assert "9.0" in bundle["message"]


def test_a_changed_deployment_is_seen_within_two_seconds_and_tuned(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    kube.create(deployment(namespace, engine_template(), 0))
    create_cache(source=workload())
    [first] = bundles(wait_for_condition())
    changed = engine_template(args=("--max-model-len", "2048"))
    kube.patch("Deployment", namespace, "serving", {"spec": {"template": changed}})
    kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: condition(c, "Ready").get("status") == "False",
        seconds=2,
    )
    second = next(bundle for bundle in bundles(wait_for_condition()) if bundle["id"] != first["id"])
    assert second["state"] == "Sealed"
    kube.patch("Deployment", namespace, "serving", {"spec": {"template": engine_template()}})
    kube.wait_until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: (
            bundles(c)[0]["id"] == first["id"] and condition(c, "Ready").get("status") == "True"
        ),
        5,
    )
    assert len(kube.list("Job", namespace, TUNING)) == 2  # a rollback finds its bundle


def test_targets_are_tuned_one_after_another(
    create_cache: CreateCache, wait_for_condition: WaitForCondition, recorder: Recorder
) -> None:
    """Except one that waits for a node: it does not block the next, and on a busy machine both may."""
    selectors = [{"kubernetes.io/os": "linux"}, {"kubernetes.io/arch": "amd64"}]
    create_cache(
        template=engine_template(),
        targets=[
            {"name": n, "nodeSelector": s} for n, s in zip(("one", "two"), selectors, strict=True)
        ],
    )
    cache = wait_for_condition()
    assert cache["status"]["summary"]["bundles"] == "2/2"
    queued = [
        bundle["message"]
        for moment in recorder.records
        if moment.kind == "AutotuneCache"
        for bundle in bundles(moment.object)
        if bundle["reason"] == "Queued"
    ]
    first = next(bundle["id"] for bundle in bundles(cache) if bundle["target"] == "one")
    assert f"waits for {first}" in queued


def test_an_evicted_attempt_continues_and_is_not_counted_again(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template(env={"ENGINE_SECONDS_PER_ENTRY": "0.2"}))
    wait_for_condition(status="False", reason="Tuning")
    [pod] = kube.list("Pod", namespace, TUNING)
    kube.evict(namespace, pod["metadata"]["name"])
    [bundle] = bundles(wait_for_condition())
    assert bundle["attempts"] == 1
    assert len(kube.list("Job", namespace, TUNING)) == 1


def test_suspensions_and_a_deleted_pod_cost_an_attempt_and_its_proof_time_and_nothing_else(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    """What Kueue does when it preempts, and a person by `kubectl delete pod`."""
    env = {"ENGINE_START_SECONDS": "8"}
    create_cache(
        template=engine_template(env=env), tuning={"maxAttempts": 1}, verify="BeforeRelease"
    )
    for role in (TUNING, PROOF):
        name = kube.wait_for_any("Job", namespace, role)["metadata"]["name"]
        for moment in (0.0, 1.0, 2.5, 4.0):
            kube.wait_for_any("Pod", namespace, role, _runs)
            time.sleep(moment)  # of the attempt: what is tried
            for suspend in (True, False):
                kube.patch("Job", namespace, name, {"spec": {"suspend": suspend}})
                time.sleep(3 if suspend else 0)
        pod = kube.wait_for_any("Pod", namespace, role, _runs)["metadata"]["name"]
        kube.delete("Pod", namespace, pod)
        kube.wait_until_gone("Pod", namespace, pod)
    [bundle] = bundles(wait_for_condition())
    assert bundle["proven"] and (bundle["attempts"], bundle["proofs"]) == (1, 1)
    assert not list_failures(kube, namespace)


def _runs(pod: Object) -> bool:
    """Whether a container of a pod runs that is not being deleted."""
    statuses = pod["status"].get("initContainerStatuses") or ()
    is_deleted = "deletionTimestamp" in pod["metadata"]
    return not is_deleted and any("running" in status["state"] for status in statuses)


@pytest.mark.parametrize("evicted", [True, False], ids=["evicted", "killed"])
def test_a_pod_that_is_lost_while_it_seals_leaves_no_partial_bundle(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    evicted: bool,
) -> None:
    create_cache(
        template=engine_template(env={"ENGINE_ENTRIES": "2000", "ENGINE_SECONDS_PER_ENTRY": "0"})
    )
    wait_for_condition(status="False", reason="Sealing")
    [pod] = kube.list("Pod", namespace, TUNING)
    if evicted:
        kube.evict(namespace, pod["metadata"]["name"])
    else:
        kube.delete("Pod", namespace, pod["metadata"]["name"], gracePeriodSeconds=0)
    [bundle] = bundles(wait_for_condition())
    assert bundle["entries"] == 2000
    assert bundle["attempts"] <= (1 if evicted else 2)
    claim = kube.get("PersistentVolumeClaim", namespace, "pretune-demo") or {}
    volume = kube.get("PersistentVolume", "", claim["spec"]["volumeName"]) or {}
    folder = Path(volume["spec"]["hostPath"]["path"]) / f"{namespace}.demo"
    assert [bundle.name for bundle in (folder / "bundles").iterdir()] == [bundle["id"]]
    assert not list((folder / ".staging").iterdir())


def test_an_erased_status_is_rebuilt_from_the_claim_and_nothing_is_tuned_again(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template())
    [before] = bundles(wait_for_condition())
    jobs = {job["metadata"]["uid"] for job in kube.list("Job", namespace, TUNING)}
    for job in kube.list("Job", namespace, TUNING):
        kube.delete("Job", namespace, job["metadata"]["name"])
        kube.wait_until_gone("Job", namespace, job["metadata"]["name"])
    kube.patch("AutotuneCache", namespace, "demo", {"status": None}, "status")
    [after] = bundles(wait_for_condition())
    assert after["digest"] == before["digest"]
    assert {job["metadata"]["uid"] for job in kube.list("Job", namespace, TUNING)} <= jobs


def test_a_cache_recreated_on_its_retained_claim_adopts_the_bundle(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    storage = {"claim": {"storageClassName": "local-rwx", "whenDeleted": "Retain"}}
    create_cache(template=engine_template(), storage=storage)
    [before] = bundles(wait_for_condition())
    kube.delete("AutotuneCache", namespace, "demo")
    kube.wait_until_gone("AutotuneCache", namespace, "demo")
    for job in kube.list("Job", namespace):
        kube.wait_until_gone("Job", namespace, job["metadata"]["name"])
    assert kube.get("PersistentVolumeClaim", namespace, "pretune-demo")
    create_cache(template=engine_template(), storage=storage)
    [after] = bundles(wait_for_condition())
    assert after["digest"] == before["digest"]
    assert not kube.list("Job", namespace, TUNING)


def test_a_lost_report_is_read_from_the_claim(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    operator: str,
) -> None:
    """The controller is down while seal ends, and the pod is gone when it is back."""
    create_cache(template=engine_template(env={"ENGINE_SECONDS_PER_ENTRY": "0.1"}))
    job = kube.wait_for_any("Job", namespace, TUNING)
    kube.patch(
        "AutotuneCache", namespace, "demo", {"spec": {"suspend": True}}
    )  # it starts nothing new meanwhile
    kube.wait_until(
        "Job",
        namespace,
        job["metadata"]["name"],
        lambda j: condition(j, "Complete").get("status") == "True",
    )
    [before] = bundles(wait_for_condition())
    kube.delete("Job", namespace, job["metadata"]["name"])
    kube.wait_until_gone("Job", namespace, job["metadata"]["name"])
    lost = {**before, "state": "Tuning", "reason": "Sealing", "message": ""}
    for name in ("digest", "sealedAt", "layout", "entries"):
        lost[name] = None
    kube.patch(
        "AutotuneCache",
        namespace,
        "demo",
        {"status": {"bundles": [lost], "conditions": []}},
        "status",
    )
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"suspend": False}})
    [after] = bundles(wait_for_condition())
    assert after["digest"] == before["digest"]
    assert not kube.list("Job", namespace, TUNING)


@pytest.mark.parametrize("keep", ["Delete", "Retain"])
@pytest.mark.parametrize("moment", ["WaitingForPod", "Tuning", "Sealed"])
def test_a_deleted_cache_leaves_only_what_its_spec_retains(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    keep: str,
    moment: str,
) -> None:
    template = engine_template(
        env={"ENGINE_SECONDS_PER_ENTRY": "0.01" if moment == "Sealed" else "1"}
    )
    if moment == "WaitingForPod":
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"namespace": namespace, "name": "none"},
                "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
            }
        )
    cache = create_cache(
        template=template, storage={"claim": {"storageClassName": "local-rwx", "whenDeleted": keep}}
    )
    assert not cache["metadata"].get("finalizers")
    wait_for_condition(
        status="True" if moment == "Sealed" else "False",
        reason="PodRefused" if moment == "WaitingForPod" else moment,
    )
    kube.delete("AutotuneCache", namespace, "demo")
    kube.wait_until_gone("AutotuneCache", namespace, "demo", seconds=5)
    for kind in ("Job", "Pod"):
        for name in kube.list(kind, namespace, "pretune.dev/cache=demo"):
            kube.wait_until_gone(kind, namespace, name["metadata"]["name"])
    if keep == "Delete":
        kube.wait_until_gone("PersistentVolumeClaim", namespace, "pretune-demo")
    else:
        assert kube.get("PersistentVolumeClaim", namespace, "pretune-demo")
    for name in kube.list("ConfigMap", namespace, "pretune.dev/role=agent"):
        kube.wait_until_gone("ConfigMap", namespace, name["metadata"]["name"])


def test_an_existing_claim_holds_the_bundle_under_its_sub_path(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": namespace, "name": "shared"},
            "spec": {
                "storageClassName": "local-rwx",
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    create_cache(
        template=engine_template(),
        storage={"existingClaim": {"name": "shared", "subPath": "teams/llm"}},
    )
    [bundle] = bundles(wait_for_condition())
    folder = f"teams/llm/{namespace}.demo/bundles/{bundle['id']}/tactics"
    kube.create(reader(namespace, "shared", folder, engine_template()))
    assert "Preloaded 20/20" in wait_until_logged(kube, namespace, "reader", "Preloaded")
    kube.delete("AutotuneCache", namespace, "demo")
    kube.wait_until_gone("AutotuneCache", namespace, "demo")
    assert not (kube.get("PersistentVolumeClaim", namespace, "shared") or {})["metadata"].get(
        "deletionTimestamp"
    )


def test_a_claim_that_waits_for_its_first_pod_binds_with_the_tuning_pod(
    create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(
        template=engine_template(), storage={"claim": {"storageClassName": "local-rwx-wait"}}
    )
    assert condition(wait_for_condition(), "StorageReady")["reason"] == "Bound"


def test_suspend_starts_nothing_and_revision_tunes_again(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template(), suspend=True)
    wait_for_condition(status="False", reason="Suspended")
    assert not kube.list("Job", namespace, TUNING)
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"suspend": False}})
    [first] = bundles(wait_for_condition())
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"revision": "2"}})
    kube.wait_until("AutotuneCache", namespace, "demo", lambda c: len(bundles(c)) == 2)
    assert {bundle["state"] for bundle in bundles(wait_for_condition())} == {"Sealed"}
    assert bundles(wait_for_condition())[0]["id"] != first["id"]


@pytest.mark.disturbs
def test_a_restarted_controller_loses_nothing_and_starts_nothing_twice(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    operator_control: OperatorControl,
) -> None:
    create_cache(template=engine_template(env={"ENGINE_SECONDS_PER_ENTRY": "0.3"}))
    wait_for_condition(status="False", reason="Tuning")
    operator_control.kill(CONTROLLER)
    [bundle] = bundles(wait_for_condition())
    assert bundle["attempts"] == 1
    assert len(kube.list("Job", namespace, TUNING)) == 1
    assert len(kube.list("Pod", namespace, TUNING)) == 1


def test_no_service_selects_a_tuning_pod(
    kube: Kube, namespace: str, create_cache: CreateCache, wait_for_condition: WaitForCondition
) -> None:
    create_cache(template=engine_template())
    wait_for_condition()
    for pod in kube.list("Pod", namespace, TUNING):
        assert "app" not in pod["metadata"]["labels"]
