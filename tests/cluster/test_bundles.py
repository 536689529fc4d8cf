"""Journeys A, C and D on the real cluster: apply an object, get a sealed bundle; keep it, lose sight of it, find it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Apply
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.operation import CONTROLLER, Operation
from tests.cluster.seen import Seen
from tests.cluster.workloads import deployment, engine

Ready = Callable[..., Object]
TUNING = "pretune.dev/role=tuning"


def workload(name: str = "serving") -> Object:
    return {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}


def reader(
    namespace: str, claim: str, folder: str, template: Object, name: str = "reader"
) -> Object:
    """A serving pod as a person writes it by hand: the claim read-only at the override directory."""
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


def until_logged(kube: Kube, namespace: str, pod: str, words: str, seconds: float = 60) -> str:
    """The engine's log, once it has answered /health or ended."""
    kube.until(
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


def test_apply_gets_a_sealed_bundle_that_a_read_only_pod_starts_warm_from(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine())
    cache = ready()
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
    kube.create(reader(namespace, "pretune-demo", folder, engine()))
    log = until_logged(kube, namespace, "reader", "Preloaded")
    assert "Preloaded 20/20" in log


def test_several_ranks_are_sealed_as_a_file_each(
    namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine("0.32.0", gpus=4, args=("--tensor-parallel-size", "4")))
    [bundle] = bundles(ready())
    assert (bundle["layout"], bundle["entries"]) == ("PerRank", 20)
    assert "4 rank files" in bundle["message"]


def test_nothing_to_tune_is_an_empty_bundle_that_says_why(apply: Apply, ready: Ready) -> None:
    apply(template=engine(env={"ENGINE_ENTRIES": "0"}))
    cache = ready(reason="NothingToTune")
    [bundle] = bundles(cache)
    assert (bundle["state"], bundle["layout"]) == ("Sealed", "Empty")
    assert "9.0" in bundle["message"]


def test_a_changed_deployment_is_noticed_within_two_seconds_and_tuned_anew(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    kube.create(deployment(namespace, engine(), 0))
    apply(source=workload())
    [first] = bundles(ready())
    changed = engine(args=("--max-model-len", "2048"))
    kube.patch("Deployment", namespace, "serving", {"spec": {"template": changed}})
    kube.until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: condition(c, "Ready").get("status") == "False",
        seconds=2,
    )
    second = next(one for one in bundles(ready()) if one["id"] != first["id"])
    assert second["state"] == "Sealed"
    kube.patch("Deployment", namespace, "serving", {"spec": {"template": engine()}})
    kube.until(
        "AutotuneCache",
        namespace,
        "demo",
        lambda c: (
            bundles(c)[0]["id"] == first["id"] and condition(c, "Ready").get("status") == "True"
        ),
        5,
    )
    assert len(kube.list("Job", namespace, TUNING)) == 2  # a rollback finds its bundle


def test_targets_are_tuned_one_after_another(apply: Apply, ready: Ready, seen: Seen) -> None:
    """But for one that waits for a node, which holds up nobody, and on a busy machine both may."""
    selectors = [{"kubernetes.io/os": "linux"}, {"kubernetes.io/arch": "amd64"}]
    apply(
        template=engine(),
        targets=[
            {"name": n, "nodeSelector": s} for n, s in zip(("one", "two"), selectors, strict=True)
        ],
    )
    cache = ready()
    assert cache["status"]["summary"]["bundles"] == "2/2"
    queued = [
        one["message"]
        for moment in seen.moments
        if moment.kind == "AutotuneCache"
        for one in bundles(moment.object)
        if one["reason"] == "Queued"
    ]
    first = next(one["id"] for one in bundles(cache) if one["target"] == "one")
    assert f"waits for {first}" in queued


def test_an_evicted_attempt_goes_on_without_being_counted(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine(env={"ENGINE_SECONDS_PER_ENTRY": "0.2"}))
    ready(status="False", reason="Tuning")
    [pod] = kube.list("Pod", namespace, TUNING)
    kube.evict(namespace, pod["metadata"]["name"])
    [bundle] = bundles(ready())
    assert bundle["attempts"] == 1
    assert len(kube.list("Job", namespace, TUNING)) == 1


@pytest.mark.parametrize("evicted", [True, False], ids=["evicted", "killed"])
def test_a_pod_that_is_lost_while_it_seals_leaves_nothing_half_done(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, evicted: bool
) -> None:
    apply(template=engine(env={"ENGINE_ENTRIES": "2000", "ENGINE_SECONDS_PER_ENTRY": "0"}))
    ready(status="False", reason="Sealing")
    [pod] = kube.list("Pod", namespace, TUNING)
    if evicted:
        kube.evict(namespace, pod["metadata"]["name"])
    else:
        kube.delete("Pod", namespace, pod["metadata"]["name"], gracePeriodSeconds=0)
    [bundle] = bundles(ready())
    assert bundle["entries"] == 2000
    assert bundle["attempts"] <= (1 if evicted else 2)
    claim = kube.get("PersistentVolumeClaim", namespace, "pretune-demo") or {}
    volume = kube.get("PersistentVolume", "", claim["spec"]["volumeName"]) or {}
    folder = Path(volume["spec"]["hostPath"]["path"]) / f"{namespace}.demo"
    assert [one.name for one in (folder / "bundles").iterdir()] == [bundle["id"]]
    assert not list((folder / ".staging").iterdir())


def test_a_wiped_status_is_filled_from_the_claim_and_nothing_is_tuned_again(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine())
    [before] = bundles(ready())
    jobs = {job["metadata"]["uid"] for job in kube.list("Job", namespace, TUNING)}
    for job in kube.list("Job", namespace, TUNING):
        kube.delete("Job", namespace, job["metadata"]["name"])
        kube.until_gone("Job", namespace, job["metadata"]["name"])
    kube.patch("AutotuneCache", namespace, "demo", {"status": None}, "status")
    [after] = bundles(ready())
    assert after["digest"] == before["digest"]
    assert {job["metadata"]["uid"] for job in kube.list("Job", namespace, TUNING)} <= jobs


def test_a_cache_made_again_on_its_kept_claim_adopts_the_bundle(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    storage = {"claim": {"storageClassName": "local-rwx", "whenDeleted": "Retain"}}
    apply(template=engine(), storage=storage)
    [before] = bundles(ready())
    kube.delete("AutotuneCache", namespace, "demo")
    kube.until_gone("AutotuneCache", namespace, "demo")
    for job in kube.list("Job", namespace):
        kube.until_gone("Job", namespace, job["metadata"]["name"])
    assert kube.get("PersistentVolumeClaim", namespace, "pretune-demo")
    apply(template=engine(), storage=storage)
    [after] = bundles(ready())
    assert after["digest"] == before["digest"]
    assert not kube.list("Job", namespace, TUNING)


def test_a_lost_report_is_read_from_the_claim(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, operator: str
) -> None:
    """The controller is down while seal ends, and the pod is gone when it comes back."""
    apply(template=engine(env={"ENGINE_SECONDS_PER_ENTRY": "0.1"}))
    job = kube.until_one("Job", namespace, TUNING)
    kube.patch(
        "AutotuneCache", namespace, "demo", {"spec": {"suspend": True}}
    )  # it starts nothing new meanwhile
    kube.until(
        "Job",
        namespace,
        job["metadata"]["name"],
        lambda j: condition(j, "Complete").get("status") == "True",
    )
    [before] = bundles(ready())
    kube.delete("Job", namespace, job["metadata"]["name"])
    kube.until_gone("Job", namespace, job["metadata"]["name"])
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
    [after] = bundles(ready())
    assert after["digest"] == before["digest"]
    assert not kube.list("Job", namespace, TUNING)


@pytest.mark.parametrize("keep", ["Delete", "Retain"])
@pytest.mark.parametrize("moment", ["WaitingForPod", "Tuning", "Sealed"])
def test_a_deleted_cache_leaves_nothing_but_what_it_was_told_to_keep(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, keep: str, moment: str
) -> None:
    template = engine(env={"ENGINE_SECONDS_PER_ENTRY": "0.01" if moment == "Sealed" else "1"})
    if moment == "WaitingForPod":
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"namespace": namespace, "name": "none"},
                "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
            }
        )
    cache = apply(
        template=template, storage={"claim": {"storageClassName": "local-rwx", "whenDeleted": keep}}
    )
    assert not cache["metadata"].get("finalizers")
    ready(
        status="True" if moment == "Sealed" else "False",
        reason="PodRefused" if moment == "WaitingForPod" else moment,
    )
    kube.delete("AutotuneCache", namespace, "demo")
    kube.until_gone("AutotuneCache", namespace, "demo", seconds=5)
    for kind in ("Job", "Pod"):
        for one in kube.list(kind, namespace, "pretune.dev/cache=demo"):
            kube.until_gone(kind, namespace, one["metadata"]["name"])
    if keep == "Delete":
        kube.until_gone("PersistentVolumeClaim", namespace, "pretune-demo")
    else:
        assert kube.get("PersistentVolumeClaim", namespace, "pretune-demo")
    for one in kube.list("ConfigMap", namespace, "pretune.dev/role=agent"):
        kube.until_gone("ConfigMap", namespace, one["metadata"]["name"])


def test_an_existing_claim_holds_the_bundle_under_its_sub_path(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
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
    apply(template=engine(), storage={"existingClaim": {"name": "shared", "subPath": "teams/llm"}})
    [bundle] = bundles(ready())
    folder = f"teams/llm/{namespace}.demo/bundles/{bundle['id']}/tactics"
    kube.create(reader(namespace, "shared", folder, engine()))
    assert "Preloaded 20/20" in until_logged(kube, namespace, "reader", "Preloaded")
    kube.delete("AutotuneCache", namespace, "demo")
    kube.until_gone("AutotuneCache", namespace, "demo")
    assert not (kube.get("PersistentVolumeClaim", namespace, "shared") or {})["metadata"].get(
        "deletionTimestamp"
    )


def test_a_claim_that_waits_for_its_first_consumer_binds_with_the_tuning_pod(
    apply: Apply, ready: Ready
) -> None:
    apply(template=engine(), storage={"claim": {"storageClassName": "local-rwx-wait"}})
    assert condition(ready(), "StorageReady")["reason"] == "Bound"


def test_suspend_starts_nothing_and_revision_tunes_again(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine(), suspend=True)
    ready(status="False", reason="Suspended")
    assert not kube.list("Job", namespace, TUNING)
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"suspend": False}})
    [first] = bundles(ready())
    kube.patch("AutotuneCache", namespace, "demo", {"spec": {"revision": "2"}})
    kube.until("AutotuneCache", namespace, "demo", lambda c: len(bundles(c)) == 2)
    assert {one["state"] for one in bundles(ready())} == {"Sealed"}
    assert bundles(ready())[0]["id"] != first["id"]


@pytest.mark.disturbs
def test_a_restarted_controller_loses_nothing_and_starts_nothing_twice(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, operation: Operation
) -> None:
    apply(template=engine(env={"ENGINE_SECONDS_PER_ENTRY": "0.3"}))
    ready(status="False", reason="Tuning")
    operation.kill(CONTROLLER)
    [bundle] = bundles(ready())
    assert bundle["attempts"] == 1
    assert len(kube.list("Job", namespace, TUNING)) == 1
    assert len(kube.list("Pod", namespace, TUNING)) == 1


def test_no_service_selects_a_tuning_pod(
    kube: Kube, namespace: str, apply: Apply, ready: Ready
) -> None:
    apply(template=engine())
    ready()
    for pod in kube.list("Pod", namespace, TUNING):
        assert "app" not in pod["metadata"]["labels"]
