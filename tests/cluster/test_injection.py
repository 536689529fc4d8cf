"""What a pod is given as it is made, as the API server then has it. Mostly by dry runs: admission is asked, and nothing has to start."""

from __future__ import annotations

import copy
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import KUBECTL, Apply
from tests.cluster.kube import Kube, Object
from tests.cluster.other_webhook import LABEL, Change, OtherWebhook
from tests.cluster.sealed import Sealed
from tests.cluster.seen import Seen, given, seed_report
from tests.cluster.test_bundles import until_logged
from tests.cluster.workloads import (
    PER_RANK,
    bare,
    daemonset,
    deployment,
    engine,
    job,
    serving,
    statefulset,
)

Ready = Callable[..., Object]
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
GUARANTEED = {"cpu": "20m", "memory": "64Mi"}


@pytest.fixture
def admitted(kube: Kube, sealed: Sealed) -> Callable[..., Object]:
    """`admitted("managed", change)`: a ReplicaSet's pod as the API server would keep it, with that change made by admission."""

    def do(cache: str, change: Callable[[Object], object] = bool) -> Object:
        pod = sealed.pod(cache)
        pod["spec"]["automountServiceAccountToken"] = False  # its volume has another name each time
        change(pod)
        return kube.create(pod, dry_run=True)

    return do


def vllm(pod: Object) -> Object:
    return next(one for one in pod["spec"]["containers"] if one["name"] == "vllm")


def env(container: Object) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env") or ()}


def without_ours(pod: Object) -> Object:
    """The pod's spec with what we are known to add taken out, by its names."""
    spec = copy.deepcopy(pod["spec"])
    spec["volumes"] = [
        one for one in spec.get("volumes") or () if not one["name"].startswith("pretune-")
    ]
    spec["initContainers"] = [
        one for one in spec.get("initContainers") or () if one["name"] != "pretune-seed"
    ]
    for one in spec["containers"]:
        one["env"] = [entry for entry in one.get("env") or () if entry["name"] != OVERRIDE]
        one["volumeMounts"] = [
            m for m in one.get("volumeMounts") or () if not m["mountPath"].startswith("/pretune/")
        ]
    return {name: value for name, value in spec.items() if value}


# --- what is given


def test_a_managed_bundle_is_mounted_read_only_at_both_ends(
    admitted: Callable[..., Object], sealed: Sealed
) -> None:
    pod = admitted("managed")
    assert given(pod) == ("ReadOnly", "Given")
    assert pod["metadata"]["annotations"]["pretune.dev/bundle"] == sealed.ids["managed"]
    [volume] = [one for one in pod["spec"]["volumes"] if one["name"] == "pretune-claim"]
    assert volume["persistentVolumeClaim"] == {"claimName": "pretune-managed", "readOnly": True}
    [mount] = [one for one in vllm(pod)["volumeMounts"] if one["name"] == "pretune-claim"]
    assert (mount["mountPath"], mount["readOnly"], mount.get("subPath")) == (
        "/pretune/claim",
        True,
        None,
    )
    folder = f"/pretune/claim/{sealed.namespace}.managed/bundles/{sealed.ids['managed']}/tactics"
    assert env(vllm(pod))[OVERRIDE] == folder
    assert not pod["spec"].get("initContainers")


def test_rank_files_are_copied_by_an_init_container_that_alone_sees_the_claim(
    admitted: Callable[..., Object], sealed: Sealed
) -> None:
    pod = admitted("ranks")
    assert given(pod) == ("Overlay", "Given")
    assert env(vllm(pod))[OVERRIDE] == "/pretune/tactics"
    [seed] = pod["spec"]["initContainers"]
    assert seed["name"] == "pretune-seed" and seed["image"] == vllm(pod)["image"]
    [claim] = [one for one in seed["volumeMounts"] if one["name"] == "pretune-claim"]
    assert claim["readOnly"] is True
    assert not any(one["name"] == "pretune-claim" for one in vllm(pod)["volumeMounts"])
    assert env(seed)["NVIDIA_VISIBLE_DEVICES"] == "void" and "nvidia.com/gpu" not in str(
        seed["resources"]
    )


@pytest.mark.parametrize(
    ("cache", "other", "expected"),
    [("managed", False, ("ReadOnly", "Given")), ("ranks", False, ("Overlay", "Given")), ("ranks", True, ("Overlay", "NotSealedYet"))],
)  # fmt: skip
def test_nothing_else_of_the_pod_is_changed(
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
    assert given(with_us) == expected and given(without) == ("", "")
    assert without_ours(with_us) == without_ours(without)
    assert with_us["metadata"]["annotations"]["example.com/theirs"] == "1"


def _set(name: str, value: object) -> Callable[[Object], object]:
    """Changes the engine container's field."""
    return lambda pod: pod["spec"]["containers"][0].update({name: value})


def _env(name: str, value: str) -> Callable[[Object], object]:
    return lambda pod: pod["spec"]["containers"][0]["env"].append({"name": name, "value": value})


def _second_engine(pod: Object) -> None:
    pod["spec"]["containers"].append({**pod["spec"]["containers"][0], "name": "second"})


def _owner(api_version: str, kind: str) -> Callable[[Object], object]:
    """Owned by an object that is not there."""
    owner = {
        "apiVersion": api_version,
        "kind": kind,
        "name": "gone",
        "uid": "1",
        "controller": True,
    }
    return lambda pod: pod["metadata"].update(ownerReferences=[owner])


def _bare(change: Callable[[Object], object]) -> Callable[[Object], object]:
    """As its author wrote it: the pod is its own template."""

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
        (_bare(_env("VERSION", "new")), "Overlay", "NotSealedYet", "is not sealed yet"),
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
def test_a_pod_says_why_it_was_given_what_it_was_given(
    kube: Kube,
    admitted: Callable[..., Object],
    change: Callable[[Object], object],
    mode: str,
    reason: str,
    words: str,
) -> None:
    pod = admitted("managed", change)
    assert given(pod) == (mode, reason)
    assert words in pod["metadata"]["annotations"]["pretune.dev/reason"]
    if mode != "None":
        assert not [one for one in kube.warnings if "pretune" in one]
        return
    assert [one for one in kube.warnings if one.startswith(f"pretune: {reason}: ")]

    def apart(pod: Object) -> None:
        change(pod)
        del pod["metadata"]["labels"]["pretune.dev/cache"]

    assert pod["spec"] == admitted("managed", apart)["spec"]


def test_a_warning_reaches_the_person_at_the_terminal(sealed: Sealed, kubeconfig: str) -> None:
    pod = bare(sealed.namespace, serving(cache="none"))
    command = [str(KUBECTL), "--kubeconfig", kubeconfig, "create", "--dry-run=server", "-f", "-"]
    said = subprocess.run(
        command, input=json.dumps(pod), capture_output=True, text=True, check=True
    ).stderr
    assert "Warning: pretune: NoCache: " in said


def test_the_delivery_mode_is_as_asked_for(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    apply(template=serving())
    ready()
    for mode, told in (
        ("Overlay", ("Overlay", "Given")),
        ("None", ("None", "DeliveryOff")),
        ("ReadOnly", ("ReadOnly", "Given")),
    ):
        kube.patch("AutotuneCache", namespace, "demo", {"spec": {"delivery": {"mode": mode}}})
        until(
            lambda: kube.create(bare(namespace, serving()), dry_run=True),
            lambda pod, told=told: given(pod) == told,
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
    assert given(with_us)[1] == "Given"
    assert with_us["status"]["qosClass"] == without["status"]["qosClass"]


def test_where_quota_limit_range_and_pod_security_are_strict_a_pod_starts_with_us_as_without_us(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    kube.patch("Namespace", "", namespace, restricted)
    rules = {
        "ResourceQuota": {"hard": {"limits.cpu": "2", "limits.memory": "2Gi", "requests.cpu": "2", "requests.memory": "2Gi"}},
        "LimitRange": {"limits": [{"type": "Container", "min": {"cpu": "20m", "memory": "64Mi"}, "max": {"cpu": "1", "memory": "512Mi"}}]},
    }  # fmt: skip
    for kind, spec in rules.items():
        kube.create({"apiVersion": "v1", "kind": kind, "metadata": {"namespace": namespace, "name": "all"}, "spec": spec})  # fmt: skip
    template = serving(**PER_RANK)
    sizes = {**GUARANTEED, "nvidia.com/gpu": "2"}
    template["spec"]["containers"][0]["resources"] = {"limits": {**sizes, "memory": "128Mi"}}
    apply()
    ready(kind="StorageReady")
    kube.create(deployment(namespace, template))
    seen.until(lambda s: s.ready(1) and s.sealed(), 120, "a pod, and its bundle")
    kube.patch("Deployment", namespace, "serving", {"spec": {"replicas": 2}})
    seen.until(lambda s: s.ready(2), 120, "a pod from before the seal, and one from after it")
    assert {one["status"]["qosClass"] for one in seen.pods()} == {"Guaranteed"}
    assert {given(one) for one in seen.pods()} == {
        ("Overlay", "NotSealedYet"),
        ("Overlay", "Given"),
    }
    assert any("Seeded" in seed_report(one) for one in seen.pods())


# --- with other webhooks


def _mesh(pod: Object) -> list[Object]:
    """A mesh's injector: once, since it knows its own container."""
    if any(one["name"] == "mesh" for one in pod["spec"]["containers"]):
        return []
    sidecar = {"name": "mesh", "image": "mesh", "env": [{"name": "A", "value": "1"}]}
    return [
        {"op": "add", "path": "/spec/containers/0", "value": sidecar},
        {"op": "add", "path": "/metadata/labels/mesh", "value": "on"},
    ]


def _appended(path: str, holder: Object, field: str, value: Object) -> Object:
    """An operation that adds to the end of a list, which is made where there is none."""
    if holder.get(field):
        return {"op": "add", "path": f"{path}/{field}/-", "value": value}
    return {"op": "add", "path": f"{path}/{field}", "value": [value]}


def _identity(pod: Object) -> list[Object]:
    """A cloud's identity webhook: a variable and a volume for each container, init containers included."""
    if any(one["name"] == "token" for one in pod["spec"].get("volumes") or ()):
        return []
    volume = {"name": "token", "emptyDir": {}}
    made = [_appended("/spec", pod["spec"], "volumes", volume)]
    added = {
        "env": {"name": "ROLE_ARN", "value": "x"},
        "volumeMounts": {"name": "token", "mountPath": "/token"},
    }
    for place in ("initContainers", "containers"):
        for index, one in enumerate(pod["spec"].get(place) or ()):
            made += [
                _appended(f"/spec/{place}/{index}", one, field, value)
                for field, value in added.items()
            ]
    return made


@pytest.fixture
def asked() -> str:
    """The label's value of this test's pods."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def other(
    kube: Kube, asked: str, tmp_path: Path
) -> Iterator[Callable[[str, Change], OtherWebhook]]:
    if not Path("/var/lib/pretune-cluster").exists():
        pytest.skip("the API server of PRETUNE_TEST_KUBECONFIG cannot reach this process")
    made: list[OtherWebhook] = []

    def do(name: str, change: Change) -> OtherWebhook:
        made.append(OtherWebhook(kube, asked, name, tmp_path, change))
        return made[-1]

    yield do
    for one in made:
        one.close()


@pytest.mark.parametrize("cache", ["managed", "ranks"])
@pytest.mark.parametrize(
    "order", [("aaa", "bbb"), ("yyy", "zzz"), ("zzz", "aaa")], ids=["before", "after", "around"]
)
def test_other_webhooks_before_and_after_us_lose_nothing_and_get_nothing_twice(
    asked: str, other: Callable[[str, Change], OtherWebhook], admitted: Callable[..., Object],
    cache: str, order: tuple[str, str],
) -> None:  # fmt: skip
    other(order[0], _mesh)
    other(order[1], _identity)

    def both(pod: Object) -> bool:
        return "mesh" in pod["metadata"]["labels"] and any(
            one["name"] == "token" for one in pod["spec"]["volumes"]
        )

    def ours(pod: Object) -> None:
        pod["metadata"]["labels"][LABEL] = asked

    pod = until(
        lambda: admitted(cache, ours), both
    )  # the API server hears of a new configuration within a second
    assert given(pod)[1] == "Given"
    assert [one["name"] for one in pod["spec"]["containers"]] == ["mesh", "vllm"]
    for names in (
        [one["name"] for one in pod["spec"]["volumes"]],
        [one["name"] for one in pod["spec"].get("initContainers") or ()],
        *([one["name"] for one in c.get("env") or ()] for c in pod["spec"]["containers"]),
        *(
            [one["mountPath"] for one in c.get("volumeMounts") or ()]
            for c in pod["spec"]["containers"]
        ),
    ):
        assert len(names) == len(set(names))
    assert {"ROLE_ARN", OVERRIDE} <= set(env(vllm(pod)))
    assert OVERRIDE not in env(pod["spec"]["containers"][0])


def until(look: Callable[[], Object], holds: Callable[[Object], bool]) -> Object:
    """What look() gives once it holds; each look is a request, so that this is no idle waiting."""
    for _ in range(200):
        if holds(found := look()):
            return found
    raise AssertionError(f"not after 200 requests: {json.dumps(found)[:2000]}")


# --- whoever makes pods


def test_each_kind_of_workload_starts_warm(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    template = serving()
    apply(template=template)
    ready()
    makers = (deployment, statefulset, daemonset, job, bare)
    for maker in makers:
        kube.create(maker(namespace, template, name=maker.__name__))
    seen.until(lambda s: s.ready(len(makers)), 120, "one pod of each kind")
    assert {given(one) for one in seen.pods()} == {("ReadOnly", "Given")}
    for pod in seen.pods():
        assert "Preloaded 20/20" in until_logged(
            kube, namespace, pod["metadata"]["name"], "Preloaded"
        )
    [bundle] = seen.cache()["status"]["bundles"]  # five kinds, and one fingerprint
    assert bundle["attempts"] == 1


def test_a_pod_without_the_label_is_not_looked_at(kube: Kube, sealed: Sealed) -> None:
    assert given(kube.create(bare(sealed.namespace, engine()), dry_run=True)) == ("", "")


def test_a_set_that_makes_a_pod_of_its_older_revision_again_gives_it_the_older_bundle(
    kube: Kube, namespace: str, apply: Apply, ready: Ready, seen: Seen
) -> None:
    apply(template=serving("v1"))
    ready()
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    kube.create(statefulset(namespace, serving("v1"), 1, updateStrategy=rolling))
    seen.until(lambda s: s.ready(1), 120, "v1")
    [pod] = seen.pods()
    kube.patch(
        "StatefulSet", namespace, "serving", {"spec": {"template": {"spec": serving("v2")["spec"]}}}
    )
    kube.delete("Pod", namespace, pod["metadata"]["name"])
    uid = pod["metadata"]["uid"]
    seen.until(lambda s: s.ready(1) and s.pods()[0]["metadata"]["uid"] != uid, 120, "v1 again")
    assert given(seen.pods("v1")[0]) == ("ReadOnly", "Given")
