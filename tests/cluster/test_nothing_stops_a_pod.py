"""Whatever part of pretune is broken, a pod that would start without it starts, in the stated time.

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
    Apply,
    Moments,
    Ready,
    Roll,
    Served,
    Waiting,
    fresh,
    install,
    locked,
)
from tests.cluster.kube import Kube, bundles, condition, event
from tests.cluster.operation import CONTROLLER, WEBHOOK, Operation
from tests.cluster.sealed import TEMPLATES, Sealed
from tests.cluster.seen import SOON, Seen, given, held, is_held, seed_report
from tests.cluster.workloads import autotune_cache, bare, deployment, serving

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
    ("befalls", "words"),
    [
        (_delete_cache, ""),
        (_spec(suspend=True), "spec.suspend is true"),
        (_spec(engineContainer="nope"), "EngineNotFound"),
        (_spec(source=REF), "SourceNotFound"),
        (_spec(delivery={"mode": "None"}), "spec.delivery.mode is None"),
    ],
    ids=["cache deleted", "cache suspended", "engine invalid", "source invalid", "delivery off"],
)
def test_held_pods_go_on_at_once_when_their_cache_no_longer_works_for_them(
    kube: Kube,
    namespace: str,
    seen: Seen,
    waiting: Waiting,
    befalls: Callable[[Kube, str], object],
    words: str,
) -> None:
    pod = waiting()
    at = time.monotonic()
    befalls(kube, namespace)
    seen.until(lambda s: s.ready(1), 40, "the pod, cold")
    assert seen.released_at(pod) - at <= SOON
    assert "NoBundle" in seed_report(seen.pods()[0])
    if words:
        event(kube, namespace, "Released", words)


def test_a_quota_that_held_pods_use_up_lets_them_go_and_the_tuning_comes_after_them(
    kube: Kube, namespace: str, seen: Seen, served: Served, roll: Roll, moments: Moments
) -> None:
    served(1)
    moments.go("v2")
    _quota(kube, namespace)
    began = roll("v2")
    seen.until(lambda s: s.ready(1) and s.ready(1, "v2"), 60, "v2, cold")
    assert seen.least_ready(began) == 1
    event(kube, namespace, "Released", "the attempt cannot start", "exceeded quota: gpus")
    seen.until(lambda s: s.sealed(2), 60, "v2 sealed, once the old pod's GPU is free")


def test_a_claim_that_is_deleted_under_a_hold_is_no_more_than_a_cold_start(
    kube: Kube, namespace: str, seen: Seen, served: Served, roll: Roll
) -> None:
    served(1)
    began = roll("v2")
    held(seen, 1)
    kube.delete("PersistentVolumeClaim", namespace, "pretune-demo")
    seen.until(lambda s: s.ready(1) and s.ready(1, "v2"), RESCUED, "v2 without the claim")
    assert seen.least_ready(began) == 1
    event(kube, namespace, "Released", "ClaimTerminating")
    event(kube, namespace, "Rescued", "pretune-demo")
    assert given(seen.pods()[0])[1] in ("Undeliverable", "StorageNotReady")


# --- what keeps a pod from starting only because of us: it is made again without us


@contextmanager
def own_volume(kube: Kube, namespace: str, folder: Path) -> Iterator[Path]:
    """A bound claim named `hand` on a folder of this machine, 0777."""
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


def test_a_claim_that_can_no_longer_be_mounted_costs_a_minute_and_a_cold_start(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen, tmp_path: Path
) -> None:
    with own_volume(kube, namespace, tmp_path / "volume") as folder:
        apply(template=serving(), storage={"existingClaim": {"name": "hand"}})
        ready()
        folder.rename(tmp_path / "elsewhere")
        kube.create(deployment(namespace, serving(), 2))
        seen.until(lambda s: s.ready(2), RESCUED, "two pods without the claim")
        assert {given(one) for one in seen.pods()} == {("None", "Undeliverable")}
        [bundle] = bundles(seen.cache())
        assert "hostPath type check failed" in bundle["undeliverable"]["message"]
        event(kube, namespace, "Rescued", "hostPath type check failed")
        kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 3}})
        seen.until(lambda s: s.ready(3), 20, "a third one at once")


def test_an_image_without_a_shell_costs_a_minute(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    """Its engine runs; our seed container cannot."""
    apply()
    ready(kind="StorageReady")
    template = serving(probe=False, image="localhost/pretune/pause:1", command=["/pause"])
    template["spec"]["containers"][0].pop("args")
    kube.create(deployment(namespace, template))
    seen.until(lambda s: s.ready(1), RESCUED, "the pod without our container")
    assert given(seen.pods()[0])[0] == "None"
    event(kube, namespace, "Rescued", "pretune-seed")


# --- what is wrong with the storage or the bundle before a pod is made


def test_a_claim_that_never_binds_stops_nobody(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    apply(storage={"claim": {"storageClassName": "absent"}})
    ready(kind="StorageReady", status="False", reason="ClaimPending")
    kube.create(deployment(namespace, serving(), 2))
    seen.until(lambda s: s.ready(2), 20, "two pods that are left alone")
    assert {given(one) for one in seen.pods()} == {("None", "StorageNotReady")}


def _folder(kube: Kube, sealed: Sealed, cache: str) -> Path:
    claim = kube.get("PersistentVolumeClaim", sealed.namespace, f"pretune-{cache}") or {}
    volume = kube.get("PersistentVolume", "", claim["spec"]["volumeName"]) or {}
    return (
        Path(volume["spec"]["hostPath"]["path"])
        / f"{sealed.namespace}.{cache}/bundles/{sealed.ids[cache]}"
    )


def _flip(folder: Path) -> None:
    file = next(
        one for one in sorted((folder / "tactics").rglob("*.json")) if one.name != "manifest.json"
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
def test_a_damaged_bundle_is_a_cold_start_that_says_why(
    kube: Kube, sealed: Sealed, tmp_path: Path, shared: Path,
    cache: str, damage: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    folder, name = _folder(kube, sealed, cache), f"damaged-{cache}-{words.split()[0].lower()}"
    with locked(shared / "damage.lock"):  # other workers have the same bundles
        shutil.copytree(folder, tmp_path / "whole", copy_function=shutil.copy2)
        try:
            damage(folder)
            kube.create(bare(sealed.namespace, TEMPLATES[cache], name=name))
            pod = kube.until(
                "Pod",
                sealed.namespace,
                name,
                lambda p: condition(p, "Ready").get("status") == "True",
                30,
            )
            assert given(pod)[1] == "Given"
            if cache == "ranks":
                assert json.loads(seed_report(pod))["reason"] == words
            else:
                assert words in kube.log(sealed.namespace, name, "vllm")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder, copy_function=shutil.copy2)
            kube.delete("Pod", sealed.namespace, name)


def test_an_image_without_python_starts_cold_and_is_left_alone_once_that_is_known(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    apply(tuning={"maxAttempts": 1})
    ready(kind="StorageReady")
    kube.create(deployment(namespace, serving(env={"PATH": "/opt/shell"})))
    seen.until(lambda s: s.ready(1), 30, "a cold pod")
    assert "NoPython" in seed_report(seen.pods()[0])
    ready(kind="Stalled", reason="NoPython")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2), 20, "a second one")
    assert sorted(given(one)[1] for one in seen.pods()) == ["NotSealedYet", "NotTunable"]


# --- what befalls the operator itself


@pytest.mark.disturbs
def test_without_a_webhook_pods_just_start(
    kube: Kube, seen: Seen, served: Served, roll: Roll, operation: Operation
) -> None:
    served(2, surge="1", down="0")
    operation.scale(WEBHOOK, 0, kill=True)
    operation.until_asked(answered=False)
    began = roll("v2")
    seen.until(lambda s: s.ready(2) and s.ready(2, "v2"), 30, "v2, as without us")
    assert seen.least_ready(began) == 2
    assert {given(one) for one in seen.pods()} == {("", "")}
    seen.until(
        lambda s: s.cache()["status"]["consumers"]["cold"] == 2, 15, "they are counted as cold"
    )


@pytest.mark.disturbs
def test_without_a_controller_nothing_is_held_and_what_was_held_goes_on_when_one_is_back(
    kube: Kube,
    namespace: str,
    seen: Seen,
    waiting: Waiting,
    moments: Moments,
    operation: Operation,
    elsewhere: str,
) -> None:
    pod = waiting()
    [tuning] = kube.list("Job", namespace, "pretune.dev/role=tuning")
    operation.scale(CONTROLLER, 0, kill=True)
    died = time.monotonic()
    moments.go("v1")
    kube.until(
        "Job", namespace, tuning["metadata"]["name"], lambda j: j["status"].get("succeeded"), 60
    )
    assert is_held(seen.pods()[0])  # the seal went by unseen
    _starts_without_an_agent(kube, namespace, elsewhere)
    while time.monotonic() < died + 16:  # the lease counts as alive for 15 s
        time.sleep(0.5)
    kube.create(deployment(namespace, serving("v2", moments=moments.folder), 1, name="other"))
    seen.until(lambda s: s.ready(1, "v2"), 20, "a pod that nobody could have released")
    [other] = seen.pods("v2")
    assert given(other) == ("Overlay", "NotSealedYet")
    assert "lease" in other["metadata"]["annotations"]["pretune.dev/reason"]
    operation.scale(CONTROLLER, 1)
    back = time.monotonic()
    seen.until(lambda s: s.ready(1, "v1"), 60, "what was held")
    assert seen.released_at(pod) - back <= 15 + SOON  # the dead one's lease runs out first
    assert not seen.cold("v1")
    moments.go("v2")
    seen.until(lambda s: s.sealed(2), 60, "v2 sealed")
    assert len(kube.list("Job", namespace, "pretune.dev/role=tuning")) == 2  # none twice


@pytest.fixture
def elsewhere(kube: Kube) -> Iterator[str]:
    """A second namespace."""
    name = fresh(kube, "t-elsewhere")
    yield name
    kube.delete("Namespace", "", name)


def _starts_without_an_agent(kube: Kube, namespace: str, elsewhere: str) -> None:
    """Elsewhere, since a kubelet remembers an immutable ConfigMap, deleted or not, for as long as a pod of the node names it."""
    ready = {"type": "StorageReady", "status": "True", "reason": "Bound", "message": ""}
    ready["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    kube.create(autotune_cache(elsewhere))
    kube.patch("AutotuneCache", elsewhere, "demo", {"status": {"conditions": [ready]}}, "status")
    claim = kube.get("PersistentVolumeClaim", namespace, "pretune-demo") or {}
    meta = {"namespace": elsewhere, "name": "pretune-demo", "labels": claim["metadata"]["labels"]}
    spec = {name: claim["spec"][name] for name in ("accessModes", "resources", "storageClassName")}
    kube.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
    )
    kube.create(bare(elsewhere, serving()))
    pod = kube.until(
        "Pod", elsewhere, "serving", lambda p: condition(p, "Ready").get("status") == "True", 20
    )
    assert json.loads(seed_report(pod))["reason"] == "AgentMissing"


@pytest.mark.disturbs
@pytest.mark.skipif(
    not Path("/var/lib/pretune-cluster").exists(),
    reason="only the local cluster is ours to restart",
)
def test_a_restart_of_the_api_server_loses_nothing(
    seen: Seen, served: Served, roll: Roll, moments: Moments, operation: Operation
) -> None:
    served(2, surge="1", down="0")
    began = roll("v2")
    held(seen, 1)
    subprocess.run(
        [ROOT / "tools/cluster/restart", "kube-apiserver"], check=True, capture_output=True
    )
    moments.go("v2")
    seen.until(lambda s: s.ready(2) and s.ready(2, "v2"), 90, "v2 rolled out")
    assert seen.least_ready(began) == 2
    [first] = seen.were_held("v2")
    assert not [
        line for line in seen.cold() if first in line
    ]  # the others' webhook may have been without news for too long


@pytest.mark.disturbs
def test_when_the_operator_is_uninstalled_under_a_hold_a_documented_line_frees_the_pods(
    kube: Kube, namespace: str, seen: Seen, waiting: Waiting, operation: Operation
) -> None:
    waiting()
    try:
        operation.uninstall()
        assert is_held(seen.pods()[0])
        operation.shell(documented("schedulingGates"))
        seen.until(lambda s: s.ready(1), 30, "the pod, cold")
        kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
        seen.until(lambda s: s.ready(2), 20, "a pod that is made afterwards")
        assert sorted(given(one)[1] for one in seen.pods()) == ["", "Held"]
        kube.delete("AutotuneCache", namespace, "demo")
        kube.until_gone("AutotuneCache", namespace, "demo", seconds=5)
    finally:
        install(kube)


def documented(word: str) -> str:
    """The shell command of docs/operations.md that has this word."""
    blocks = (ROOT / "docs/operations.md").read_text().split("```sh\n")[1:]
    return next(one for one in (block.partition("```")[0] for block in blocks) if word in one)


@pytest.mark.disturbs
def test_twenty_pods_roll_while_everything_of_ours_dies_again_and_again(
    kube: Kube, namespace: str, seen: Seen, served: Served, roll: Roll, moments: Moments,
    operation: Operation,
) -> None:  # fmt: skip
    served(20, surge="5", down="0")
    dice = random.Random(20)
    began = roll("v2")
    steps: list[Callable[[], object]] = [
        partial(operation.kill, CONTROLLER),
        partial(operation.kill, WEBHOOK),
        partial(moments.go, "v2"),
        *(partial(operation.kill, dice.choice((CONTROLLER, WEBHOOK))) for _ in range(4)),
    ]
    for step in steps:
        step()
        time.sleep(dice.uniform(0.5, 4))
    seen.until(lambda s: s.ready(20) and s.ready(20, "v2"), 180, "v2 rolled out")
    assert seen.least_ready(began) == 20
    operation.restored()
    seen.until(lambda s: s.sealed(2), 60, "v2 sealed")
    assert len(kube.list("Job", namespace, "pretune.dev/role=tuning")) == 2
