"""Whatever part of pretune is broken, a pod that would start without it starts in time.

The pod says why it starts as it does. docs/dev/invariants.md, 3 and 4, on a real cluster.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import (
    ROOT,
    CreateCache,
    RollOut,
    StartHeldPod,
    StartServing,
    TuningSignals,
    WaitForCondition,
    create_namespace,
    file_lock,
    install,
)
from tests.cluster.kube import Kube, Refusal, bundles, condition, wait_for_event
from tests.cluster.operator_control import CONTROLLER, WEBHOOK, OperatorControl
from tests.cluster.recorder import (
    SOON_SECONDS,
    Recorder,
    delivery_of,
    is_held,
    seed_report,
    wait_until_held,
)
from tests.cluster.sealed_caches import TEMPLATES, SealedCaches
from tests.cluster.workloads import autotune_cache, bare_pod, deployment, serving_template

GPU_QUOTA = "requests.nvidia.com/gpu"
RESCUED = 60 + 30  # seconds: the patience of rescue, and a start on a busy machine


# --- what befalls pods that are held: what happens, and what the event says


def _quota(kube: Kube, namespace: str) -> None:
    hard = {GPU_QUOTA: "2"}  # the old pod and the held one
    meta = {"namespace": namespace, "name": "gpus"}
    kube.create(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}}
    )


def _delete_cache(kube: Kube, namespace: str) -> None:
    kube.delete("AutotuneCache", namespace, "demo")


def _spec(**fields: Any) -> Callable[[Kube, str], object]:
    return lambda kube, namespace: kube.patch("AutotuneCache", namespace, "demo", {"spec": fields})


REF = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gone"}}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_delete_cache, ""),
        (_spec(suspend=True), "spec.suspend is true"),
        (_spec(engineContainer="nope"), "EngineNotFound"),
        (_spec(source=REF), "SourceNotFound"),
        (_spec(delivery={"mode": "None"}), "spec.delivery.mode is None"),
    ],
    ids=["cache deleted", "cache suspended", "engine invalid", "source invalid", "delivery off"],
)
def test_held_pods_are_released_at_once_when_their_cache_cannot_help_them_any_more(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_held_pod: StartHeldPod,
    fault: Callable[[Kube, str], object],
    words: str,
) -> None:
    pod = start_held_pod()
    at = time.monotonic()
    fault(kube, namespace)
    recorder.wait_until(lambda s: s.are_ready(1), 40, "the pod, cold")
    assert recorder.released_at(pod) - at <= SOON_SECONDS
    assert "NoBundle" in seed_report(recorder.pods()[0])
    if words:
        wait_for_event(kube, namespace, "Released", words)


def test_held_pods_that_use_up_a_quota_are_released_and_the_tuning_follows(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
) -> None:
    start_serving(1)
    signals.finish_tuning("v2")
    _quota(kube, namespace)
    began = roll_out("v2")
    recorder.wait_until(lambda s: s.are_ready(1) and s.are_ready(1, "v2"), 60, "v2, cold")
    assert recorder.least_ready(began) == 1
    wait_for_event(kube, namespace, "Released", "the attempt cannot start", "exceeded quota: gpus")
    recorder.wait_until(lambda s: s.has_sealed(2), 60, "v2 sealed, once the old pod's GPU is free")


@contextmanager
def _gates_that_stay(kube: Kube, namespace: str) -> Iterator[None]:
    """An admin's policy for a namespace: whoever removes a gate of a pod is refused."""
    api = "admissionregistration.k8s.io/v1"
    gates = "size({}.spec.?schedulingGates.orValue([]))"
    stays = f"{gates.format('object')} == {gates.format('oldObject')}"
    unprobed = "!('probe' in object.metadata.?annotations.orValue({}))"
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["UPDATE"],
        "resources": ["pods"],
    }
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    objects = (
        {
            "kind": "ValidatingAdmissionPolicy",
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
                "validations": [
                    {"expression": f"{stays} && {unprobed}", "message": "gates of pods stay"}
                ],
            },
        },
        {
            "kind": "ValidatingAdmissionPolicyBinding",
            "spec": {"policyName": namespace, "validationActions": ["Deny"]},
        },
    )
    try:
        for each in objects:
            kube.create({"apiVersion": api, "metadata": {"name": namespace}, **each})
        yield
    finally:
        for each in objects:
            kube.delete(str(each["kind"]), "", namespace)


def _wait_until_gates_stay(kube: Kube, namespace: str, pod: str) -> None:
    """Until the API server has taken over the policy."""
    for number in range(200):
        try:
            kube.patch("Pod", namespace, pod, {"metadata": {"annotations": {"probe": str(number)}}})
        except Refusal as refusal:
            assert "gates of pods stay" in refusal.message
            return
    raise AssertionError("the policy is not in force after 200 requests")


@pytest.mark.long
def test_held_pods_that_cannot_be_released_are_recreated_and_the_next_ones_not_held(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
) -> None:
    start_serving(1)
    with _gates_that_stay(kube, namespace):
        began = roll_out("v2")
        wait_until_held(recorder, 1)
        [held] = recorder.names_of_held()
        _wait_until_gates_stay(kube, namespace, held)
        signals.finish_tuning("v2")
        recorder.wait_until(lambda s: s.are_ready(1) and s.are_ready(1, "v2"), 240, "v2, warm")
        assert recorder.least_ready(began) == 1
        wait_for_event(kube, namespace, "ReleaseRefused", "gates of pods stay")
        assert "gates of pods stay" in recorder.cache()["status"]["releaseRefused"]["message"]
        signals.finish_tuning("v3")
        roll_out("v3")
        recorder.wait_until(lambda s: s.are_ready(1) and s.are_ready(1, "v3"), 60, "v3, cold")
        assert delivery_of(recorder.pods("v3")[0])[1] == "NotSealedYet"


def test_a_claim_that_is_deleted_during_a_hold_costs_only_a_cold_start(
    kube: Kube, namespace: str, recorder: Recorder, start_serving: StartServing, roll_out: RollOut
) -> None:
    start_serving(1)
    began = roll_out("v2")
    wait_until_held(recorder, 1)
    kube.delete("PersistentVolumeClaim", namespace, "pretune-demo")
    recorder.wait_until(
        lambda s: s.are_ready(1) and s.are_ready(1, "v2"), RESCUED, "v2 without the claim"
    )
    assert recorder.least_ready(began) == 1
    wait_for_event(kube, namespace, "Released", "ClaimTerminating")
    wait_for_event(kube, namespace, "Rescued", "pretune-demo")
    assert delivery_of(recorder.pods()[0])[1] in ("Undeliverable", "StorageNotReady")


# --- pods that only our volume or seed keeps from starting are replaced


@contextmanager
def own_volume(kube: Kube, namespace: str, folder: Path) -> Iterator[Path]:
    """Create a bound claim named `hand` on a folder of this machine, with mode 0777."""
    folder.mkdir()
    folder.chmod(0o777)
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "by-hand",
        "claimRef": {"namespace": namespace, "name": "hand"},
        "hostPath": {"path": str(folder), "type": "Directory"},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": namespace},
            "spec": volume,
        }
    )
    claim = {
        "storageClassName": "by-hand",
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "volumeName": namespace,
    }
    meta = {"namespace": namespace, "name": "hand"}
    kube.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim}
    )
    try:
        yield folder
    finally:
        kube.delete("PersistentVolume", "", namespace)


@pytest.mark.long
def test_a_claim_that_can_no_longer_be_mounted_costs_a_minute_and_a_cold_start(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
    tmp_path: Path,
) -> None:
    with own_volume(kube, namespace, tmp_path / "volume") as folder:
        create_cache(template=serving_template(), storage={"existingClaim": {"name": "hand"}})
        wait_for_condition()
        folder.rename(tmp_path / "elsewhere")
        kube.create(deployment(namespace, serving_template(), 2))
        recorder.wait_until(lambda s: s.are_ready(2), RESCUED, "two pods without the claim")
        assert {delivery_of(pod) for pod in recorder.pods()} == {("None", "Undeliverable")}
        [bundle] = bundles(recorder.cache())
        assert "hostPath type check failed" in bundle["undeliverable"]["message"]
        wait_for_event(kube, namespace, "Rescued", "hostPath type check failed")
        kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 3}})
        recorder.wait_until(lambda s: s.are_ready(3), 20, "a third one at once")


@pytest.mark.long
def test_an_image_without_a_shell_costs_a_minute(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    """Its engine can run, and our seed container cannot."""
    create_cache()
    wait_for_condition(kind="StorageReady")
    template = serving_template(probe=False, image="localhost/pretune/pause:1", command=["/pause"])
    template["spec"]["containers"][0].pop("args")
    kube.create(deployment(namespace, template))
    recorder.wait_until(lambda s: s.are_ready(1), RESCUED, "the pod without our container")
    assert delivery_of(recorder.pods()[0])[0] == "None"
    wait_for_event(kube, namespace, "Rescued", "pretune-seed")


# --- storage or bundle are damaged before a pod is created


def test_a_claim_that_never_binds_keeps_no_pod_from_starting(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    create_cache(storage={"claim": {"storageClassName": "absent"}})
    wait_for_condition(kind="StorageReady", status="False", reason="ClaimPending")
    kube.create(deployment(namespace, serving_template(), 2))
    recorder.wait_until(lambda s: s.are_ready(2), 20, "two pods that are left alone")
    assert {delivery_of(pod) for pod in recorder.pods()} == {("None", "StorageNotReady")}


def _folder(kube: Kube, sealed_caches: SealedCaches, cache: str) -> Path:
    claim = kube.get("PersistentVolumeClaim", sealed_caches.namespace, f"pretune-{cache}") or {}
    volume = kube.get("PersistentVolume", "", claim["spec"]["volumeName"]) or {}
    return (
        Path(volume["spec"]["hostPath"]["path"])
        / f"{sealed_caches.namespace}.{cache}/bundles/{sealed_caches.ids[cache]}"
    )


def _flip(folder: Path) -> None:
    file = next(
        path
        for path in sorted((folder / "tactics").rglob("*.json"))
        if path.name != "manifest.json"
    )
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def _other_versions(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["vllm"] = "0.1.0"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("cache", "damage", "words"),
    [
        ("ranks", shutil.rmtree, "NoBundle"),
        ("ranks", _flip, "CorruptBundle"),
        ("ranks", _other_versions, "VersionsDiffer"),
        ("managed", shutil.rmtree, "Failed to persist managed cache entry"),
        ("managed", _flip, "Preloaded 19/20"),
    ],
    ids=["folder removed", "byte flipped", "other versions", "mounted folder removed", "byte flipped in a mounted file"],
)  # fmt: skip
def test_a_damaged_bundle_costs_a_cold_start_with_the_reason(
    kube: Kube, sealed_caches: SealedCaches, tmp_path: Path, run_folder: Path,
    cache: str, damage: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    folder, name = (
        _folder(kube, sealed_caches, cache),
        f"damaged-{cache}-{words.split()[0].lower()}",
    )
    with file_lock(run_folder / "damage.lock"):  # other workers have the same bundles
        shutil.copytree(folder, tmp_path / "whole", copy_function=shutil.copy2)
        try:
            damage(folder)
            kube.create(bare_pod(sealed_caches.namespace, TEMPLATES[cache], name=name))
            pod = kube.wait_until(
                "Pod",
                sealed_caches.namespace,
                name,
                lambda p: condition(p, "Ready").get("status") == "True",
                30,
            )
            assert delivery_of(pod)[1] == "Given"
            if cache == "ranks":
                assert json.loads(seed_report(pod))["reason"] == words
            else:
                assert words in kube.log(sealed_caches.namespace, name, "vllm")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder, copy_function=shutil.copy2)
            kube.delete("Pod", sealed_caches.namespace, name)


def test_an_image_without_python_starts_cold_and_later_pods_get_nothing(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    create_cache(tuning={"maxAttempts": 1})
    wait_for_condition(kind="StorageReady")
    kube.create(deployment(namespace, serving_template(env={"PATH": "/opt/shell"})))
    recorder.wait_until(lambda s: s.are_ready(1), 30, "a cold pod")
    assert "NoPython" in seed_report(recorder.pods()[0])
    wait_for_condition(kind="Stalled", reason="NoPython")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    recorder.wait_until(lambda s: s.are_ready(2), 20, "a second one")
    assert sorted(delivery_of(pod)[1] for pod in recorder.pods()) == ["NotSealedYet", "NotTunable"]


# --- what befalls the operator itself


@pytest.mark.disturbs
def test_without_a_webhook_pods_start(
    kube: Kube,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    operator_control: OperatorControl,
) -> None:
    start_serving(2, surge="1", down="0")
    operator_control.scale(WEBHOOK, 0, kill=True)
    operator_control.wait_until_asked(answered=False)
    began = roll_out("v2")
    recorder.wait_until(lambda s: s.are_ready(2) and s.are_ready(2, "v2"), 30, "v2, as without us")
    assert recorder.least_ready(began) == 2
    assert {delivery_of(pod) for pod in recorder.pods()} == {("", "")}
    recorder.wait_until(
        lambda s: s.cache()["status"]["consumers"]["cold"] == 2, 15, "they are counted as cold"
    )


@pytest.mark.disturbs
def test_without_a_controller_no_pod_is_held_and_held_ones_are_released_once_it_is_back(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_held_pod: StartHeldPod,
    signals: TuningSignals,
    operator_control: OperatorControl,
    elsewhere: str,
) -> None:
    pod = start_held_pod()
    [tuning] = kube.list("Job", namespace, "pretune.dev/role=tuning")
    operator_control.scale(CONTROLLER, 0, kill=True)
    died = time.monotonic()
    signals.finish_tuning("v1")
    kube.wait_until(
        "Job", namespace, tuning["metadata"]["name"], lambda j: j["status"].get("succeeded"), 60
    )
    assert is_held(recorder.pods()[0])  # the seal went by unseen
    _starts_without_an_agent(kube, namespace, elsewhere)
    while time.monotonic() < died + 16:  # the lease counts as alive for 15 s
        time.sleep(0.5)
    kube.create(
        deployment(namespace, serving_template("v2", signals=signals.folder), 1, name="other")
    )
    recorder.wait_until(
        lambda s: s.are_ready(1, "v2"), 20, "a pod that could not have been released"
    )
    [other] = recorder.pods("v2")
    assert delivery_of(other) == ("Overlay", "NotSealedYet")
    assert "lease" in other["metadata"]["annotations"]["pretune.dev/reason"]
    operator_control.scale(CONTROLLER, 1)
    back = time.monotonic()
    recorder.wait_until(lambda s: s.are_ready(1, "v1"), 60, "what was held")
    assert (
        recorder.released_at(pod) - back <= 15 + SOON_SECONDS
    )  # the dead one's lease runs out first
    assert not recorder.describe_cold_pods("v1")
    signals.finish_tuning("v2")
    recorder.wait_until(lambda s: s.has_sealed(2), 60, "v2 sealed")
    assert len(kube.list("Job", namespace, "pretune.dev/role=tuning")) == 2  # none twice


@pytest.fixture
def elsewhere(kube: Kube) -> Iterator[str]:
    """A second namespace."""
    name = create_namespace(kube, "t-elsewhere")
    yield name
    kube.delete("Namespace", "", name)


def _starts_without_an_agent(kube: Kube, namespace: str, elsewhere: str) -> None:
    """In another namespace: a kubelet keeps a deleted immutable ConfigMap while one of its pods uses it."""
    storage_ready = {"type": "StorageReady", "status": "True", "reason": "Bound", "message": ""}
    storage_ready["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    kube.create(autotune_cache(elsewhere))
    kube.patch(
        "AutotuneCache", elsewhere, "demo", {"status": {"conditions": [storage_ready]}}, "status"
    )
    claim = kube.get("PersistentVolumeClaim", namespace, "pretune-demo") or {}
    meta = {"namespace": elsewhere, "name": "pretune-demo", "labels": claim["metadata"]["labels"]}
    spec = {name: claim["spec"][name] for name in ("accessModes", "resources", "storageClassName")}
    kube.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
    )
    kube.create(deployment(elsewhere, serving_template()))
    name = kube.wait_for_any("Pod", elsewhere, "pretune.dev/cache")["metadata"]["name"]
    pod = kube.wait_until(
        "Pod", elsewhere, name, lambda p: condition(p, "Ready").get("status") == "True", 20
    )
    assert json.loads(seed_report(pod))["reason"] == "AgentMissing"


@pytest.mark.disturbs
@pytest.mark.skipif(
    not Path("/var/lib/pretune-cluster").exists(),
    reason="only the local cluster is ours to restart",
)
def test_a_restart_of_the_api_server_loses_nothing(
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
    operator_control: OperatorControl,
) -> None:
    start_serving(2, surge="1", down="0")
    began = roll_out("v2")
    wait_until_held(recorder, 1)
    subprocess.run(
        [ROOT / "tools/cluster/restart", "kube-apiserver"], check=True, capture_output=True
    )
    signals.finish_tuning("v2")
    recorder.wait_until(lambda s: s.are_ready(2) and s.are_ready(2, "v2"), 90, "v2 rolled out")
    assert recorder.least_ready(began) == 2
    [first] = recorder.names_of_held("v2")
    assert not [
        line for line in recorder.describe_cold_pods() if first in line
    ]  # the others' webhook may have been without news for too long


@pytest.mark.disturbs
def test_a_documented_command_releases_held_pods_after_the_operator_was_uninstalled(
    kube: Kube,
    namespace: str,
    recorder: Recorder,
    start_held_pod: StartHeldPod,
    operator_control: OperatorControl,
) -> None:
    start_held_pod()
    try:
        operator_control.uninstall()
        assert is_held(recorder.pods()[0])
        operator_control.shell(documented("schedulingGates"))
        recorder.wait_until(lambda s: s.are_ready(1), 30, "the pod, cold")
        kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
        recorder.wait_until(lambda s: s.are_ready(2), 20, "a pod that is created afterwards")
        assert sorted(delivery_of(pod)[1] for pod in recorder.pods()) == ["", "Held"]
        kube.delete("AutotuneCache", namespace, "demo")
        kube.wait_until_gone("AutotuneCache", namespace, "demo", seconds=5)
    finally:
        install(kube)


def documented(word: str) -> str:
    """Return the shell command in docs/operations.md that has this word."""
    blocks = (ROOT / "docs/operations.md").read_text().split("```sh\n")[1:]
    return next(command for block in blocks if word in (command := block.partition("```")[0]))


@pytest.mark.disturbs
def test_a_rollout_of_twenty_pods_survives_repeated_deaths_of_controller_and_webhook(
    kube: Kube, namespace: str, recorder: Recorder, start_serving: StartServing, roll_out: RollOut, signals: TuningSignals,
    operator_control: OperatorControl,
) -> None:  # fmt: skip
    start_serving(20, surge="5", down="0")
    dice = random.Random(20)
    began = roll_out("v2")
    steps: list[Callable[[], object]] = [
        partial(operator_control.kill, CONTROLLER),
        partial(operator_control.kill, WEBHOOK),
        partial(signals.finish_tuning, "v2"),
        *(partial(operator_control.kill, dice.choice((CONTROLLER, WEBHOOK))) for _ in range(4)),
    ]
    for step in steps:
        step()
        time.sleep(dice.uniform(0.5, 4))
    recorder.wait_until(lambda s: s.are_ready(20) and s.are_ready(20, "v2"), 180, "v2 rolled out")
    assert recorder.least_ready(began) == 20
    operator_control.restore()
    recorder.wait_until(lambda s: s.has_sealed(2), 60, "v2 sealed")
    assert len(kube.list("Job", namespace, "pretune.dev/role=tuning")) == 2
