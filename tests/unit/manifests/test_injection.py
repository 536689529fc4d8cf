"""What a consumer is given, and that it can all be taken out again.

docs/dev/invariants.md: 5, and the half of 4 that is the pod's own form.
"""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from typing import Any

import kubernetes_validate
import pytest
from pretune.api import names
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.agent_container import build_script
from pretune.manifests.delivery_modes import Delivery
from pretune.manifests.gate import is_held, release_patch
from pretune.manifests.injection import find_collision, inject, is_injected, strip
from pretune.manifests.json_patch import add_entries, copy_json
from pretune.podspec import identity
from pretune.protocol import Inputs, Report, Task

from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.templates import Template, engine, stored

INPUTS = Inputs("f0" * 32, "", "b200", {"nodeSelector": {"gpu": "b200"}})
BUNDLE = INPUTS.bundle_id()
GIVEN: dict[str, Any] = {
    "reason": "Given",
    "message": f"bundle {BUNDLE}",
    "engine": "vllm",
    "bundle": BUNDLE,
    "inputs": INPUTS,
    "claim": "pretune-qwen3",
    "folder": "inference.qwen3",
    "agent": "pretune-agent-0123456789ab",
}
OVERLAY = Delivery("Overlay", **GIVEN)
READ_ONLY = Delivery("ReadOnly", **GIVEN)
HELD = Delivery("Overlay", **{**GIVEN, "reason": "Held", "message": ""}, held=True)
LEFT_ALONE = Delivery("None", "OverrideSet", "container vllm sets it")
DELIVERIES = (OVERLAY, READ_ONLY, HELD, LEFT_ALONE)
each_delivery = pytest.mark.parametrize(
    "delivery", DELIVERIES, ids=("Overlay", "ReadOnly", "Held", "None")
)


def given(pod: Object, delivery: Delivery = OVERLAY) -> Object:
    return patched(pod, inject(pod, delivery))


def pod_of(template: Object) -> Object:
    """A pod as the webhook gets it: it came as JSON."""
    pod: Object = json.loads(json.dumps({"apiVersion": "v1", "kind": "Pod", **template}))
    return pod


def engine_in(pod: Object) -> Object:
    return next(container for container in pod["spec"]["containers"] if container["name"] == "vllm")  # type: ignore[no-any-return]


def seed_in(pod: Object) -> Object:
    return pod["spec"]["initContainers"][-1]  # type: ignore[no-any-return]


# --- what is given


def test_overlay_gives_a_folder_that_seed_fills_and_the_engine_may_write() -> None:
    pod = given(pod_of(engine()))
    spec = pod["spec"]
    assert spec["volumes"] == [
        {
            "name": "pretune-claim",
            "persistentVolumeClaim": {"claimName": "pretune-qwen3", "readOnly": True},
        },
        {
            "name": "pretune-agent",
            "configMap": {"name": "pretune-agent-0123456789ab", "optional": True},
        },
        {"name": "pretune-tactics", "emptyDir": {}},
    ]
    assert engine_in(pod)["env"] == [{"name": OVERRIDE, "value": "/pretune/tactics"}]
    assert engine_in(pod)["volumeMounts"] == [
        {"name": "pretune-tactics", "mountPath": "/pretune/tactics"}
    ]
    assert seed_in(pod)["name"] == "pretune-seed"
    assert seed_in(pod)["volumeMounts"] == [
        {"name": "pretune-agent", "mountPath": "/pretune/agent", "readOnly": True},
        {"name": "pretune-claim", "readOnly": True, "mountPath": "/pretune/claim"},
        {"name": "pretune-tactics", "mountPath": "/pretune/tactics"},
    ]
    assert "schedulingGates" not in spec


@pytest.mark.parametrize(
    ("sub_path", "folder"),
    [
        ("", "/pretune/claim/inference.qwen3"),
        ("a/b", "/pretune/claim/a/b/inference.qwen3"),
        ("./a//b/", "/pretune/claim/a/b/inference.qwen3"),
        ("a$(HOME)", "/pretune/claim/a$$(HOME)/inference.qwen3"),
    ],
)
def test_read_only_points_the_engine_into_the_claim_and_adds_no_container(
    sub_path: str, folder: str
) -> None:
    pod = given(pod_of(engine()), Delivery("ReadOnly", **GIVEN, sub_path=sub_path))
    assert pod["spec"]["volumes"] == [
        {
            "name": "pretune-claim",
            "persistentVolumeClaim": {"claimName": "pretune-qwen3", "readOnly": True},
        }
    ]
    assert engine_in(pod)["env"] == [
        {"name": OVERRIDE, "value": f"{folder}/bundles/{BUNDLE}/tactics"}
    ]
    assert engine_in(pod)["volumeMounts"] == [
        {"name": "pretune-claim", "mountPath": "/pretune/claim", "readOnly": True}
    ]
    assert "initContainers" not in pod["spec"]


@pytest.mark.parametrize(
    ("delivery", "annotations"),
    [
        (
            OVERLAY,
            {
                names.BUNDLE: BUNDLE,
                names.DELIVERY: "Overlay",
                names.REASON: f"Given: bundle {BUNDLE}",
            },
        ),
        (HELD, {names.BUNDLE: BUNDLE, names.DELIVERY: "Overlay", names.REASON: "Held"}),
        (LEFT_ALONE, {names.DELIVERY: "None", names.REASON: "OverrideSet: container vllm sets it"}),
    ],
)
def test_the_annotations_say_what_was_given_and_why(
    delivery: Delivery, annotations: dict[str, str]
) -> None:
    pod = pod_of(engine())
    pod["metadata"]["annotations"] = {"own": "1", names.TARGET: "b200"}
    assert given(pod, delivery)["metadata"]["annotations"] == {
        "own": "1",
        names.TARGET: "b200",
        **annotations,
    }


def test_a_pod_that_is_left_alone_gets_annotations_and_nothing_else() -> None:
    pod = pod_of(engine())
    assert given(pod, LEFT_ALONE)["spec"] == pod["spec"]


def test_a_held_pod_gets_our_gate_beside_those_of_others() -> None:
    assert given(pod_of(engine()), HELD)["spec"]["schedulingGates"] == [
        {"name": "pretune.dev/hold"}
    ]
    queued = pod_of(engine().pod(schedulingGates=[{"name": "kueue.x-k8s.io/admission"}]))
    gates = given(queued, HELD)["spec"]["schedulingGates"]
    assert gates == [{"name": "kueue.x-k8s.io/admission"}, {"name": "pretune.dev/hold"}]


def test_a_pod_with_a_node_gets_no_gate_since_the_api_refuses_both() -> None:
    assert not is_held(given(pod_of(engine().pod(nodeName="node0")), HELD))


def test_seed_is_the_last_init_container() -> None:
    pod = pod_of(engine().init("fetch").init("mesh", restartPolicy="Always"))
    assert [container["name"] for container in given(pod)["spec"]["initContainers"]] == [
        "fetch",
        "mesh",
        "pretune-seed",
    ]


def test_a_claim_that_the_pod_has_already_is_mounted_by_its_own_volume() -> None:
    """A pod with two volumes of one claim never starts (seen on Kubernetes 1.34)."""
    models = {"name": "models", "persistentVolumeClaim": {"claimName": "pretune-qwen3"}}
    pod = pod_of(
        engine(volumeMounts=[{"name": "models", "mountPath": "/models"}]).pod(volumes=[models])
    )
    overlay, read_only = given(pod), given(pod, READ_ONLY)
    assert [volume["name"] for volume in overlay["spec"]["volumes"]] == [
        "models",
        "pretune-agent",
        "pretune-tactics",
    ]
    assert {"name": "models", "readOnly": True, "mountPath": "/pretune/claim"} in seed_in(overlay)[
        "volumeMounts"
    ]
    assert read_only["spec"]["volumes"] == [models]
    assert engine_in(read_only)["volumeMounts"] == [
        {"name": "models", "mountPath": "/models"},
        {"name": "models", "mountPath": "/pretune/claim", "readOnly": True},
    ]
    assert strip(overlay) == strip(read_only) == pod


def test_an_engine_that_is_not_in_the_pod_is_refused() -> None:
    with pytest.raises(Refused, match="no container vllm; the pod has other"):
        inject(pod_of(engine(name="other")), OVERLAY)


def test_annotations_that_would_be_too_many_are_not_added() -> None:
    """The API server would refuse the pod: 256 KiB in all."""
    pod = pod_of(engine())
    pod["metadata"]["annotations"] = {"own": "x" * (256 * 1024 - 80)}
    assert inject(pod, OVERLAY) == []
    pod["metadata"]["annotations"] = {"own": "x" * (250 * 1024)}
    long = Delivery("None", "TuningFailed", "é" * 5000)
    assert len(given(pod, long)["metadata"]["annotations"][names.REASON]) == 1024


# --- the seed container


def test_seed_runs_in_the_engines_image_as_its_user_without_its_gpus() -> None:
    secure = {
        "runAsUser": 1000,
        "privileged": True,
        "capabilities": {"add": ["IPC_LOCK"], "drop": ["ALL"]},
    }
    pod = engine(image="vllm@sha256:0", imagePullPolicy="Always", securityContext=secure).env(
        HOME="/h", A="1", PATH="$(HOME)/bin"
    )
    seed = seed_in(given(pod_of(pod)))
    assert (seed["image"], seed["imagePullPolicy"], seed["terminationMessagePolicy"]) == (
        "vllm@sha256:0",
        "Always",
        "File",
    )
    assert seed["securityContext"] == {
        "runAsUser": 1000,
        "capabilities": {"add": [], "drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
    }
    names = [variable["name"] for variable in seed["env"]]
    assert names == ["HOME", "PATH", "PRETUNE_POD_UID", "PRETUNE_TASK", "NVIDIA_VISIBLE_DEVICES"]
    assert seed["env"][-1]["value"] == "void"


def test_seeds_task_says_where_the_bundle_is_and_what_its_inputs_are() -> None:
    pod = engine(command=["/bin/sh", "-c", "exec vllm serve $(MODEL)"])
    seed = seed_in(given(pod_of(pod), Delivery("Overlay", **GIVEN, sub_path="a")))
    text = next(variable["value"] for variable in seed["env"] if variable["name"] == "PRETUNE_TASK")
    assert Task.load(text.replace("$$", "$")) == Task(
        "inference.qwen3", "a", INPUTS, command=["/bin/sh", "-c", "exec vllm serve $(MODEL)"]
    )


def test_seeds_task_requires_a_proof_if_the_delivery_does() -> None:
    for asked in (False, True):
        seed = seed_in(given(pod_of(engine()), Delivery("Overlay", **GIVEN, proven=asked)))
        text = next(
            variable["value"] for variable in seed["env"] if variable["name"] == "PRETUNE_TASK"
        )
        assert Task.load(text).proven == asked


def test_a_script_too_long_for_a_variable_is_left_out_of_the_task() -> None:
    seed = seed_in(given(pod_of(engine(args=["é" * 30_000]))))
    text = next(variable["value"] for variable in seed["env"] if variable["name"] == "PRETUNE_TASK")
    assert Task.load(text).command == []


RESOURCES: list[tuple[Object | None, Object]] = [
    (None, {}),
    ({"limits": {"nvidia.com/gpu": 1}}, {}),
    (
        {
            "limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 1},
            "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 1},
        },
        {"limits": {"cpu": "8", "memory": "64Gi"}, "requests": {"cpu": "8", "memory": "64Gi"}},
    ),
    (
        {
            "limits": {"memory": "9Gi", "hugepages-2Mi": "1Gi"},
            "requests": {"cpu": 1, "ephemeral-storage": "1Gi"},
        },
        {"limits": {"memory": "9Gi"}, "requests": {"cpu": 1, "ephemeral-storage": "1Gi"}},
    ),
    ({"limits": None, "requests": None, "claims": [{"name": "gpu"}]}, {}),
]


@pytest.mark.parametrize(("resources", "seeds"), RESOURCES)
def test_seed_asks_for_what_the_engine_does_so_that_no_quota_and_no_class_changes(
    resources: Object | None, seeds: Object
) -> None:
    pod = pod_of(Template(metadata={}, spec={}).container(resources=resources))
    assert seed_in(given(pod))["resources"] == seeds
    assert qos(given(pod)) == qos(pod)


def qos(pod: Object) -> str:
    """Return the pod's class as the kubelet computes it (core/v1/helper/qos).

    From cpu and memory of all containers and init containers.
    """
    whole = [
        container.get("resources") or {}
        for container in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    ]
    asked = [
        {
            (kind, name): str(amount)
            for kind in ("limits", "requests")
            for name, amount in (container.get(kind) or {}).items()
        }
        for container in whole
    ]
    asked = [
        {what: amount for what, amount in amounts.items() if what[1] in ("cpu", "memory")}
        for amounts in asked
    ]
    if not any(asked):
        return "BestEffort"
    full = all(
        amounts.get(("limits", name))
        and amounts.get(("requests", name), amounts[("limits", name)]) == amounts[("limits", name)]
        for amounts in asked
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if full else "Burstable"


@law(templates())
def test_a_pod_keeps_its_class(pod: Object) -> None:
    pod = stored(pod)
    assert qos(given(pod)) == qos(pod)


@law(templates())
def test_what_is_given_is_a_pod_of_the_api(pod: Object) -> None:
    pod["spec"].pop("fieldOfTomorrow", None)
    for container in pod["spec"]["containers"]:
        for name in ("limits", "requests"):
            amounts = (container.get("resources") or {}).get(name) or {}
            amounts.update({key: str(value) for key, value in amounts.items()})
    pod = pod_of(pod)
    pod["metadata"]["name"] = "pod"
    for delivery in DELIVERIES:
        kubernetes_validate.validate(given(pod, delivery), "1.30", strict=True)


# --- taken out again

PODS: dict[str, Object] = {
    "the plainest": engine(),
    "annotations, other and like ours": {
        **engine(),
        "metadata": {"annotations": {"own": "1", names.TARGET: "b200", "pretune.dev/other": "x"}},
    },
    "all lists there": engine(
        env=[{"name": "A", "value": "1"}], volumeMounts=[{"name": "shm", "mountPath": "/dev/shm"}]
    )
    .init("fetch")
    .pod(volumes=[{"name": "shm", "emptyDir": {}}], schedulingGates=[{"name": "other/gate"}]),
    "generateName": {
        **engine(),
        "metadata": {"generateName": "qwen3-", "labels": {names.CACHE: "qwen3"}},
    },
    "env twice": engine().env(A="1").env(A="2", B="$(A)"),
    "fields of tomorrow": {
        **engine(tomorrow=[{"x": None}]).pod(ofTomorrow={"a": []}),
        "more": {"b": None},
    },
    "the engine is not the first": Template(metadata={}, spec={})
    .container("proxy")
    .container("vllm")
    .gpus(1),
    "no metadata": {"spec": engine()["spec"]},
}


@each_delivery
@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_strip_is_the_inverse(pod: Object, delivery: Delivery) -> None:
    whole = pod_of(pod)
    before = copy.deepcopy(whole)
    out = strip(given(whole, delivery))
    assert out.pop("metadata", {}) == before.pop("metadata", {})
    assert out == before
    assert strip(whole) == whole


@each_delivery
@pytest.mark.parametrize("empty", [False, True], ids=("null", "empty"))
def test_lists_that_are_null_or_empty_are_as_good_as_absent(
    delivery: Delivery, empty: bool
) -> None:
    nothing: list[Object] | None = [] if empty else None
    template = engine(env=nothing, volumeMounts=nothing)
    pod = pod_of(template.pod(volumes=nothing, initContainers=nothing, schedulingGates=nothing))
    pod["metadata"]["annotations"] = {} if empty else None
    assert strip(pod) == pod and not is_injected(pod)
    assert lean(given(pod, delivery)) == given(lean(pod), delivery)
    assert lean(strip(given(pod, delivery))) == lean(pod)


def lean(pod: Object) -> Object:
    """Return the pod without empty or null lists and maps, which the API server never sends."""
    copied = copy_json(pod)
    for holder in (copied["metadata"], copied["spec"], *copied["spec"]["containers"]):
        for name in (
            "annotations",
            "volumes",
            "initContainers",
            "schedulingGates",
            "env",
            "volumeMounts",
        ):
            if name in holder and not holder[name]:
                del holder[name]
    return copied


def test_what_others_added_to_the_injected_pod_stays() -> None:
    pod = given(pod_of(engine().env(A="1").init("fetch")), HELD)
    spec = pod["spec"]
    pod["metadata"]["annotations"]["mesh/status"] = "injected"
    spec["volumes"].insert(0, {"name": "mesh", "emptyDir": {}})
    spec["volumes"].append({"name": "token", "projected": {}})
    spec["initContainers"].append({"name": "mesh-init", "image": "mesh"})
    spec["schedulingGates"].append({"name": "other/gate"})
    spec["containers"].insert(0, {"name": "mesh-proxy", "image": "mesh"})
    for container in (*spec["containers"], *spec["initContainers"]):
        container.setdefault("env", []).append({"name": "MESH", "value": "1"})
        container.setdefault("volumeMounts", []).append({"name": "mesh", "mountPath": "/mesh"})
    seed = next(
        container for container in spec["initContainers"] if container["name"] == "pretune-seed"
    )
    seed |= {
        "terminationMessagePath": "/dev/termination-log",
        "resources": {"limits": {"cpu": "1"}},
    }
    spec["initContainers"].reverse()
    engine_in(pod)["volumeMounts"].reverse()
    engine_in(pod)["env"].reverse()
    more = {
        "env": [{"name": "MESH", "value": "1"}],
        "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}],
    }
    assert strip(pod) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"annotations": {"mesh/status": "injected"}},
        "spec": {
            "volumes": [{"name": "mesh", "emptyDir": {}}, {"name": "token", "projected": {}}],
            "schedulingGates": [{"name": "other/gate"}],
            "initContainers": [
                {"name": "mesh-init", "image": "mesh", **more},
                {"name": "fetch", "image": "fetch:1", **more},
            ],
            "containers": [
                {"name": "mesh-proxy", "image": "mesh", **more},
                {
                    **engine()["spec"]["containers"][0],
                    "env": [{"name": "MESH", "value": "1"}, {"name": "A", "value": "1"}],
                    "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}],
                },
            ],
        },
    }


def test_a_mount_of_our_volume_that_another_webhook_made_goes_with_the_volume() -> None:
    """The API refuses a mount without its volume."""
    plain = pod_of(engine().container("proxy"))
    pod = given(plain)
    pod["spec"]["containers"][1]["volumeMounts"] = [
        {"name": "pretune-tactics", "mountPath": "/all/pretune-tactics"}
    ]
    assert strip(pod) == plain


@each_delivery
def test_a_pod_is_injected_only_once(delivery: Delivery) -> None:
    pod = given(pod_of(engine()), delivery)
    assert is_injected(pod)
    for again in DELIVERIES:
        assert inject(pod, again) == []


@pytest.mark.parametrize(
    "delivery", [OVERLAY, READ_ONLY, HELD], ids=("Overlay", "ReadOnly", "Held")
)
def test_a_copied_manifest_without_its_annotations_is_recognised_by_its_form(
    delivery: Delivery,
) -> None:
    pod = given(pod_of(engine()), delivery)
    del pod["metadata"]["annotations"]
    assert is_injected(pod) and inject(pod, OVERLAY) == []
    assert strip(pod) == pod_of(engine())


def test_each_of_our_parts_is_recognised_alone() -> None:
    plain = pod_of(engine())
    assert not is_injected(plain)
    for name in (names.BUNDLE, names.DELIVERY):
        assert is_injected({**plain, "metadata": {"annotations": {name: ""}}})
    for name in (names.REASON, names.TARGET):
        pod = {**plain, "metadata": {"annotations": {name: "x"}}}
        assert not is_injected(pod) and strip(pod) == pod
    assert is_injected(pod_of(engine().pod(schedulingGates=[{"name": names.HOLD}])))


def test_what_a_left_alone_pod_has_of_its_own_under_our_names_stays() -> None:
    """Also where, by hand, it looks like ours in every respect: the annotation knows better."""
    own = engine(volumeMounts=[{"name": "pretune-claim", "mountPath": "/pretune/claim"}]).init(
        "pretune-seed"
    )
    own.pod(volumes=[{"name": "pretune-claim", "emptyDir": {}}])
    pod = pod_of(own)
    assert not is_injected(pod) and strip(pod) == pod
    assert lean(strip(given(pod, LEFT_ALONE))) == lean(pod)
    engine_in(pod)["env"] = [{"name": OVERRIDE, "value": "/pretune/claim/mine"}]
    left = patched(
        pod, [{"op": "add", "path": "/metadata/annotations", "value": {names.DELIVERY: "None"}}]
    )
    assert strip(left)["spec"] == pod["spec"]


# --- collisions


def mounted(path: str) -> Template:
    return engine(volumeMounts=[{"name": "own", "mountPath": path}])


COLLISIONS: list[tuple[Object, str | None]] = [
    (engine(), None),
    (engine().pod(volumes=[{"name": "pretune-claim", "emptyDir": {}}]), "the pod has a volume pretune-claim"),
    (engine().pod(volumes=[{"name": "pretune-agent", "emptyDir": {}}]), "the pod has a volume pretune-agent"),
    (engine().pod(volumes=[{"name": "pretune-tactics", "emptyDir": {}}]), "the pod has a volume pretune-tactics"),
    (engine().init("pretune-seed"), "the pod has a container pretune-seed (initContainers)"),
    (engine().container("pretune-seed"), "the pod has a container pretune-seed (containers)"),
    (mounted("/pretune/claim"), "container vllm uses /pretune/claim, where /pretune/claim would be mounted"),
    (mounted("/pretune"), "container vllm uses /pretune, where /pretune/claim would be mounted"),
    (mounted("/"), "container vllm uses /, where /pretune/claim would be mounted"),
    (mounted("pretune/./tactics//a/"), "container vllm uses pretune/./tactics//a/, where /pretune/tactics would be mounted"),
    (mounted("//pretune/x/../tactics"), "container vllm uses //pretune/x/../tactics, where /pretune/tactics would be mounted"),
    (mounted("/pretune/claims"), None),
    (mounted("/pretune/agent"), None),  # ours is in the seed container only
    (mounted("/pretune-claim"), None),
    (mounted("/a/pretune/claim"), None),
    (
        engine(volumeDevices=[{"name": "d", "devicePath": "/pretune/claim"}]),
        "container vllm uses /pretune/claim, where /pretune/claim would be mounted",
    ),
    (
        engine(terminationMessagePath="/pretune/claim/log"),
        "container vllm uses /pretune/claim/log, where /pretune/claim would be mounted",
    ),
    (engine(volumeMounts=None, volumeDevices=None).pod(volumes=None, initContainers=None), None),
    (engine().pod(os={"name": "windows"}), "the pod is one for Windows"),
    (
        {**engine(), "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}},
        "the pod is a static one, whose mirror may mount nothing",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("pod", "message"), COLLISIONS)
def test_what_of_a_pod_our_parts_would_collide_with(pod: Object, message: str | None) -> None:
    assert find_collision(pod, engine_in(pod)) == message


def test_mounts_of_another_container_are_no_collision() -> None:
    pod = engine().container("proxy", volumeMounts=[{"name": "own", "mountPath": "/pretune/claim"}])
    assert find_collision(pod, engine_in(pod)) is None
    assert strip(given(pod_of(pod))) == pod_of(pod)


# --- holds


def released(pod: Object) -> Object:
    """Return the pod as the API server releases it.

    schedulingGates is a list-map by name, and a list that becomes empty is gone.
    """
    copied = copy_json(pod)
    removed = [
        gate["name"]
        for gate in release_patch()["spec"]["schedulingGates"]
        if gate["$patch"] == "delete"
    ]
    copied["spec"]["schedulingGates"] = [
        gate for gate in copied["spec"].get("schedulingGates") or () if gate["name"] not in removed
    ]
    if not copied["spec"]["schedulingGates"]:
        del copied["spec"]["schedulingGates"]
    return copied


def test_release_removes_our_gate_only() -> None:
    pod = given(pod_of(engine().pod(schedulingGates=[{"name": "other/gate"}])), HELD)
    assert is_held(pod) and not is_held(released(pod))
    assert released(pod)["spec"]["schedulingGates"] == [{"name": "other/gate"}]
    alone = given(pod_of(engine()), HELD)
    assert released(alone) == {**given(pod_of(engine())), "metadata": alone["metadata"]}
    assert json.loads(json.dumps(release_patch())) == {
        "spec": {"schedulingGates": [{"$patch": "delete", "name": "pretune.dev/hold"}]}
    }


@pytest.mark.parametrize("gates", [None, [], [{"name": "other/gate"}]])
def test_a_pod_without_our_gate_is_not_held(gates: list[Object] | None) -> None:
    assert not is_held(pod_of(engine().pod(schedulingGates=gates)))
    assert not is_held(pod_of(engine()))


# --- the patch


def test_a_name_in_a_path_is_escaped() -> None:
    whole = {"metadata": {"annotations": {"old": "1"}}}
    patch = add_entries(whole, "metadata", "annotations", {"a/b~1c": "x"})
    assert patch[0]["path"] == "/metadata/annotations/a~1b~01c"
    assert patched(whole, patch) == {"metadata": {"annotations": {"old": "1", "a/b~1c": "x"}}}


@each_delivery
def test_injecting_changes_neither_the_pod_nor_shares_anything_with_it(delivery: Delivery) -> None:
    pod = pod_of(engine().env(PATH="/bin"))
    before = copy.deepcopy(pod)
    copied = given(pod, delivery)
    copied["spec"]["containers"][0]["env"][0]["value"] = "other"
    for container in copied["spec"].get("initContainers", []):
        container["env"][0]["value"] = "other"
    assert pod == before


# --- seed's script


def test_the_script_means_nothing_to_the_kubelet() -> None:
    assert "$(" not in build_script("seed", ("/pretune/tactics",)) and "$$" not in build_script(
        "seed", ("/pretune/tactics",)
    )


def test_the_script_is_one_of_any_posix_shell() -> None:
    subprocess.run(["/bin/sh", "-n", "-c", build_script("seed", ("/pretune/tactics",))], check=True)


def test_a_fingerprint_does_not_change_with_our_parts() -> None:
    for delivery in DELIVERIES:
        pod = pod_of(engine().init("fetch"))
        assert identity.fingerprint(given(pod, delivery), "vllm") == identity.fingerprint(
            pod, "vllm"
        )


def test_reports_of_the_script_are_reports() -> None:
    commands = [
        line.partition(" || ")[2] or line
        for line in build_script("seed", ("/pretune/tactics",)).splitlines()
        if " || fail " in line
    ]
    reports = [Report.load(shlex.split(line)[1]) for line in commands]
    assert [(report.by, report.reason) for report in reports if report] == [
        ("seed", "NoPython"),
        ("seed", "NoPython"),
        ("seed", "AgentMissing"),
    ]
