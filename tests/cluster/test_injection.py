"""What a new pod gets, as the API server stores it; mostly by dry run, so that nothing starts."""

from __future__ import annotations

import copy
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import KUBECTL, CreateCache
from tests.cluster.kube import Kube, Object
from tests.cluster.other_webhook import LABEL, Change, OtherWebhook
from tests.cluster.recorder import Recorder, delivery_of, seed_report
from tests.cluster.sealed_caches import SealedCaches
from tests.cluster.test_bundles import wait_until_logged
from tests.cluster.workloads import (
    PER_RANK,
    bare_pod,
    daemonset,
    deployment,
    engine_template,
    job,
    serving_template,
    statefulset,
)

WaitForCondition = Callable[..., Object]
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
GUARANTEED = {"cpu": "20m", "memory": "64Mi"}


@pytest.fixture
def admitted(kube: Kube, sealed_caches: SealedCaches) -> Callable[..., Object]:
    """Return a ReplicaSet's pod as the API server would store it: `admitted("managed", change)`.

    `change` changes the pod before it is created.
    """

    def do(cache: str, change: Callable[[Object], object] = bool) -> Object:
        pod = sealed_caches.pod(cache)
        pod["spec"]["automountServiceAccountToken"] = False  # its volume has another name each time
        change(pod)
        return kube.create(pod, dry_run=True)

    return do


def vllm(pod: Object) -> Object:
    return next(container for container in pod["spec"]["containers"] if container["name"] == "vllm")


def env(container: Object) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("env") or ()}


def without_ours(pod: Object) -> Object:
    """Return the pod's spec without what the webhook adds, by its names."""
    spec = copy.deepcopy(pod["spec"])
    spec["volumes"] = [
        volume for volume in spec.get("volumes") or () if not volume["name"].startswith("pretune-")
    ]
    spec["initContainers"] = [
        container
        for container in spec.get("initContainers") or ()
        if container["name"] != "pretune-seed"
    ]
    for container in spec["containers"]:
        container["env"] = [
            entry for entry in container.get("env") or () if entry["name"] != OVERRIDE
        ]
        container["volumeMounts"] = [
            m
            for m in container.get("volumeMounts") or ()
            if not m["mountPath"].startswith("/pretune/")
        ]
    return {name: value for name, value in spec.items() if value}


# --- what is given


def test_a_managed_bundle_is_mounted_read_only_in_volume_and_mount(
    admitted: Callable[..., Object], sealed_caches: SealedCaches
) -> None:
    pod = admitted("managed")
    assert delivery_of(pod) == ("ReadOnly", "Given")
    assert pod["metadata"]["annotations"]["pretune.dev/bundle"] == sealed_caches.ids["managed"]
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "pretune-claim"]
    assert volume["persistentVolumeClaim"] == {"claimName": "pretune-managed", "readOnly": True}
    [mount] = [mount for mount in vllm(pod)["volumeMounts"] if mount["name"] == "pretune-claim"]
    assert (mount["mountPath"], mount["readOnly"], mount.get("subPath")) == (
        "/pretune/claim",
        True,
        None,
    )
    folder = f"/pretune/claim/{sealed_caches.namespace}.managed/bundles/{sealed_caches.ids['managed']}/tactics"
    assert env(vllm(pod))[OVERRIDE] == folder
    assert not pod["spec"].get("initContainers")


def test_rank_files_are_copied_by_an_init_container_and_only_it_mounts_the_claim(
    admitted: Callable[..., Object], sealed_caches: SealedCaches
) -> None:
    pod = admitted("ranks")
    assert delivery_of(pod) == ("Overlay", "Given")
    assert env(vllm(pod))[OVERRIDE] == "/pretune/tactics"
    [seed] = pod["spec"]["initContainers"]
    assert seed["name"] == "pretune-seed" and seed["image"] == vllm(pod)["image"]
    [claim] = [mount for mount in seed["volumeMounts"] if mount["name"] == "pretune-claim"]
    assert claim["readOnly"] is True
    assert not any(mount["name"] == "pretune-claim" for mount in vllm(pod)["volumeMounts"])
    assert env(seed)["NVIDIA_VISIBLE_DEVICES"] == "void" and "nvidia.com/gpu" not in str(
        seed["resources"]
    )


@pytest.mark.parametrize(
    ("cache", "other", "expected"),
    [("managed", False, ("ReadOnly", "Given")), ("ranks", False, ("Overlay", "Given")), ("ranks", True, ("None", "SeedUntried"))],
)  # fmt: skip
def test_nothing_else_in_the_pod_is_changed(
    admitted: Callable[..., Object], cache: str, other: bool, expected: tuple[str, str]
) -> None:
    def rich(pod: Object) -> None:
        pod["spec"]["schedulingGates"] = [{"name": "example.com/theirs"}]
        pod["spec"]["containers"].insert(
            0, {"name": "proxy", "image": "proxy", "env": [{"name": "A", "value": "1"}]}
        )
        pod["spec"]["initContainers"] = [
            {"name": "sidecar", "image": "x", "restartPolicy": "Always"}
        ]
        pod["metadata"]["annotations"] = {"example.com/theirs": "1"}
        if other:  # what makes another engine of it, where the pod is its own template
            del pod["metadata"]["ownerReferences"]
            pod["spec"]["initContainers"].insert(0, {"name": "before", "image": "x"})
            vllm(pod)["env"] += [
                {"name": "TWICE", "value": "1"},
                {"name": "TWICE", "value": "$(TWICE)2"},
            ]

    def apart(pod: Object) -> None:
        rich(pod)
        del pod["metadata"]["labels"]["pretune.dev/cache"]

    with_us, without = admitted(cache, rich), admitted(cache, apart)
    assert delivery_of(with_us) == expected and delivery_of(without) == ("", "")
    assert without_ours(with_us) == without_ours(without)
    assert with_us["metadata"]["annotations"]["example.com/theirs"] == "1"


def _set(name: str, value: object) -> Callable[[Object], object]:
    """Return a change of a field of the engine's container."""
    return lambda pod: pod["spec"]["containers"][0].update({name: value})


def _env(name: str, value: str) -> Callable[[Object], object]:
    return lambda pod: pod["spec"]["containers"][0]["env"].append({"name": name, "value": value})


def _second_engine(pod: Object) -> None:
    pod["spec"]["containers"].append({**pod["spec"]["containers"][0], "name": "second"})


def _owner(api_version: str, kind: str) -> Callable[[Object], object]:
    """Return a change that gives the pod an owner that does not exist."""
    owner = {
        "apiVersion": api_version,
        "kind": kind,
        "name": "gone",
        "uid": "1",
        "controller": True,
    }
    return lambda pod: pod["metadata"].update(ownerReferences=[owner])


def _bare(change: Callable[[Object], object]) -> Callable[[Object], object]:
    """Return a change that removes the owner: the pod is its own template."""

    def spoil(pod: Object) -> None:
        del pod["metadata"]["ownerReferences"]
        change(pod)

    return spoil


@pytest.mark.parametrize(
    ("change", "mode", "reason", "words"),
    [
        (_owner("example.com/v1", "Thing"), "ReadOnly", "Given", ""),
        (lambda pod: pod["spec"].update(nodeName="node0"), "ReadOnly", "Given", ""),
        (_env("ADMITTED", "1"), "ReadOnly", "Given", ""),
        (_bare(_env("VERSION", "new")), "None", "SeedUntried", "no controller recreates it"),
        (lambda pod: pod["metadata"]["labels"].update({"pretune.dev/cache": "no"}), "None", "NoCache", "AutotuneCache"),
        (_env(OVERRIDE, "/mine"), "None", "OverrideSet", OVERRIDE),
        (_bare(_second_engine), "None", "EngineUnknown", "vllm, second"),
        (_bare(_set("args", ["serve", "demo", "--nnodes", "2"])), "None", "NotTunable", "--nnodes"),
        (lambda pod: pod["spec"].update(volumes=[{"name": "pretune-claim", "emptyDir": {}}]), "None", "NamesCollide", "pretune-claim"),
        (_owner("apps/v1", "ReplicaSet"), "None", "OwnerUnreadable", "gone"),
    ],
    ids=[
        *("owner of another kind", "node name", "changed by admission", "not tuned yet", "no cache", "override set"),
        *("two engines", "several pods", "name taken", "owner gone"),
    ],
)  # fmt: skip
def test_a_pod_has_the_reason_of_its_delivery(
    kube: Kube,
    admitted: Callable[..., Object],
    change: Callable[[Object], object],
    mode: str,
    reason: str,
    words: str,
) -> None:
    pod = admitted("managed", change)
    assert delivery_of(pod) == (mode, reason)
    assert words in pod["metadata"]["annotations"]["pretune.dev/reason"]
    if mode != "None":
        assert not [warning for warning in kube.warnings if "pretune" in warning]
        return
    assert [warning for warning in kube.warnings if warning.startswith(f"pretune: {reason}: ")]

    def apart(pod: Object) -> None:
        change(pod)
        del pod["metadata"]["labels"]["pretune.dev/cache"]

    assert pod["spec"] == admitted("managed", apart)["spec"]


def test_a_warning_is_shown_at_the_terminal(sealed_caches: SealedCaches, kubeconfig: str) -> None:
    pod = bare_pod(sealed_caches.namespace, serving_template(cache="none"))
    command = [str(KUBECTL), "--kubeconfig", kubeconfig, "create", "--dry-run=server", "-f", "-"]
    output = subprocess.run(
        command, input=json.dumps(pod), capture_output=True, text=True, check=True
    ).stderr
    assert "Warning: pretune: NoCache: " in output


def test_the_delivery_mode_is_that_of_the_spec(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    create_cache(template=serving_template())
    wait_for_condition()
    for mode, expected_delivery in (
        ("Overlay", ("Overlay", "Given")),
        ("None", ("None", "DeliveryOff")),
        ("ReadOnly", ("ReadOnly", "Given")),
    ):
        kube.patch("AutotuneCache", namespace, "demo", {"spec": {"delivery": {"mode": mode}}})
        until(
            lambda: kube.create(bare_pod(namespace, serving_template()), dry_run=True),
            lambda pod, expected_delivery=expected_delivery: delivery_of(pod) == expected_delivery,
        )


# --- where rules are strict


@pytest.mark.parametrize("cache", ["managed", "ranks"])
@pytest.mark.parametrize(
    "resources", [{"limits": GUARANTEED, "requests": GUARANTEED}, {"requests": GUARANTEED}, {}]
)
def test_a_pod_keeps_its_quality_of_service(
    admitted: Callable[..., Object], cache: str, resources: dict[str, Object]
) -> None:
    def sized(pod: Object) -> None:
        gpu = {
            name: value for name, value in vllm(pod)["resources"]["limits"].items() if "gpu" in name
        }
        vllm(pod)["resources"] = {**resources, "limits": {**resources.get("limits", {}), **gpu}}

    def apart(pod: Object) -> None:
        sized(pod)
        del pod["metadata"]["labels"]["pretune.dev/cache"]

    with_us, without = admitted(cache, sized), admitted(cache, apart)
    assert delivery_of(with_us)[1] == "Given"
    assert with_us["status"]["qosClass"] == without["status"]["qosClass"]


def test_with_strict_quota_limits_and_pod_security_a_pod_starts_as_without_pretune(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    kube.patch("Namespace", "", namespace, restricted)
    rules = {
        "ResourceQuota": {"hard": {"limits.cpu": "2", "limits.memory": "2Gi", "requests.cpu": "2", "requests.memory": "2Gi"}},
        "LimitRange": {"limits": [{"type": "Container", "min": {"cpu": "20m", "memory": "64Mi"}, "max": {"cpu": "1", "memory": "512Mi"}}]},
    }  # fmt: skip
    for kind, spec in rules.items():
        kube.create({"apiVersion": "v1", "kind": kind, "metadata": {"namespace": namespace, "name": "all"}, "spec": spec})  # fmt: skip
    template = serving_template(**PER_RANK)
    sizes = {**GUARANTEED, "nvidia.com/gpu": "2"}
    template["spec"]["containers"][0]["resources"] = {"limits": {**sizes, "memory": "128Mi"}}
    create_cache()
    wait_for_condition(kind="StorageReady")
    kube.create(deployment(namespace, template))
    recorder.wait_until(lambda s: s.are_ready(1) and s.has_sealed(), 120, "a pod, and its bundle")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    recorder.wait_until(
        lambda s: s.are_ready(2), 120, "a pod from before the seal, and one from after it"
    )
    assert {pod["status"]["qosClass"] for pod in recorder.pods()} == {"Guaranteed"}
    assert {delivery_of(pod) for pod in recorder.pods()} == {
        ("Overlay", "NotSealedYet"),
        ("Overlay", "Given"),
    }
    assert any("Seeded" in seed_report(pod) for pod in recorder.pods())


# --- with other webhooks


def _mesh(pod: Object) -> list[Object]:
    """Inject as a mesh does: once, since it recognises its own container."""
    if any(container["name"] == "mesh" for container in pod["spec"]["containers"]):
        return []
    sidecar = {"name": "mesh", "image": "mesh", "env": [{"name": "A", "value": "1"}]}
    return [
        {"op": "add", "path": "/spec/containers/0", "value": sidecar},
        {"op": "add", "path": "/metadata/labels/mesh", "value": "on"},
    ]


def _appended(path: str, holder: Object, field: str, value: Object) -> Object:
    """Return an operation that appends to a list, or creates it."""
    if holder.get(field):
        return {"op": "add", "path": f"{path}/{field}/-", "value": value}
    return {"op": "add", "path": f"{path}/{field}", "value": [value]}


def _identity(pod: Object) -> list[Object]:
    """Inject as a cloud's identity webhook does: a variable and a mount for every container."""
    if any(volume["name"] == "token" for volume in pod["spec"].get("volumes") or ()):
        return []
    volume = {"name": "token", "emptyDir": {}}
    operations = [_appended("/spec", pod["spec"], "volumes", volume)]
    added = {
        "env": {"name": "ROLE_ARN", "value": "x"},
        "volumeMounts": {"name": "token", "mountPath": "/token"},
    }
    for place in ("initContainers", "containers"):
        for index, container in enumerate(pod["spec"].get(place) or ()):
            operations += [
                _appended(f"/spec/{place}/{index}", container, field, value)
                for field, value in added.items()
            ]
    return operations


@pytest.fixture
def asked() -> str:
    """The value of the label for this test's pods."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def other(
    kube: Kube, asked: str, tmp_path: Path
) -> Iterator[Callable[[str, Change], OtherWebhook]]:
    if not Path("/var/lib/pretune-cluster").exists():
        pytest.skip("the API server of PRETUNE_TEST_KUBECONFIG cannot reach this process")
    webhooks: list[OtherWebhook] = []

    def do(name: str, change: Change) -> OtherWebhook:
        webhooks.append(OtherWebhook(kube, asked, name, tmp_path, change))
        return webhooks[-1]

    yield do
    for webhook in webhooks:
        webhook.close()


@pytest.mark.parametrize("cache", ["managed", "ranks"])
@pytest.mark.parametrize(
    "order", [("aaa", "bbb"), ("yyy", "zzz"), ("zzz", "aaa")], ids=["before", "after", "around"]
)
def test_changes_of_other_webhooks_before_and_after_ours_are_kept_and_made_once(
    asked: str, other: Callable[[str, Change], OtherWebhook], admitted: Callable[..., Object],
    cache: str, order: tuple[str, str],
) -> None:  # fmt: skip
    other(order[0], _mesh)
    other(order[1], _identity)

    def both(pod: Object) -> bool:
        return "mesh" in pod["metadata"]["labels"] and any(
            volume["name"] == "token" for volume in pod["spec"]["volumes"]
        )

    def ours(pod: Object) -> None:
        pod["metadata"]["labels"][LABEL] = asked

    pod = until(
        lambda: admitted(cache, ours), both
    )  # the API server hears of a new configuration within a second
    assert delivery_of(pod)[1] == "Given"
    assert [container["name"] for container in pod["spec"]["containers"]] == ["mesh", "vllm"]
    for names in (
        [volume["name"] for volume in pod["spec"]["volumes"]],
        [container["name"] for container in pod["spec"].get("initContainers") or ()],
        *([variable["name"] for variable in c.get("env") or ()] for c in pod["spec"]["containers"]),
        *(
            [mount["mountPath"] for mount in c.get("volumeMounts") or ()]
            for c in pod["spec"]["containers"]
        ),
    ):
        assert len(names) == len(set(names))
    assert {"ROLE_ARN", OVERRIDE} <= set(env(vllm(pod)))
    assert OVERRIDE not in env(pod["spec"]["containers"][0])


def until(look: Callable[[], Object], holds: Callable[[Object], bool]) -> Object:
    """Return what `look` returns once `holds` is true of it. Each look is a request."""
    for _ in range(200):
        if holds(found := look()):
            return found
    raise AssertionError(f"not after 200 requests: {json.dumps(found)[:2000]}")


# --- each kind of workload


def test_each_kind_of_workload_starts_warm(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    template = serving_template()
    create_cache(template=template)
    wait_for_condition()
    builders = (deployment, statefulset, daemonset, job, bare_pod)
    for builder in builders:
        kube.create(builder(namespace, template, name=builder.__name__.replace("_", "-")))
    recorder.wait_until(lambda s: s.are_ready(len(builders)), 120, "one pod of each kind")
    assert {delivery_of(pod) for pod in recorder.pods()} == {("ReadOnly", "Given")}
    for pod in recorder.pods():
        assert "Preloaded 20/20" in wait_until_logged(
            kube, namespace, pod["metadata"]["name"], "Preloaded"
        )
    [bundle] = recorder.cache()["status"]["bundles"]  # five kinds, and one fingerprint
    assert bundle["attempts"] == 1


def test_a_pod_without_the_label_is_not_changed(kube: Kube, sealed_caches: SealedCaches) -> None:
    assert delivery_of(
        kube.create(bare_pod(sealed_caches.namespace, engine_template()), dry_run=True)
    ) == ("", "")


def test_a_pod_that_a_set_recreates_from_an_older_revision_gets_the_older_bundle(
    kube: Kube,
    namespace: str,
    create_cache: CreateCache,
    wait_for_condition: WaitForCondition,
    recorder: Recorder,
) -> None:
    create_cache(template=serving_template("v1"))
    wait_for_condition()
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    kube.create(statefulset(namespace, serving_template("v1"), 1, updateStrategy=rolling))
    recorder.wait_until(lambda s: s.are_ready(1), 120, "v1")
    [pod] = recorder.pods()
    kube.patch(
        "StatefulSet",
        namespace,
        "serving",
        {"spec": {"template": {"spec": serving_template("v2")["spec"]}}},
    )
    kube.delete("Pod", namespace, pod["metadata"]["name"])
    uid = pod["metadata"]["uid"]
    recorder.wait_until(
        lambda s: s.are_ready(1) and s.pods()[0]["metadata"]["uid"] != uid, 120, "v1 again"
    )
    assert delivery_of(recorder.pods("v1")[0]) == ("ReadOnly", "Given")
