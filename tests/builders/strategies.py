"""Pod templates that an author could write, for hypothesis: it makes what it finds smaller."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pretune.api.types import Object

from tests.depth import examples


def law(*strategies: st.SearchStrategy[Any]) -> Any:
    """A property that holds for all of these."""
    settled = settings(max_examples=examples(60))
    return lambda test: settled(given(*strategies)(test))


NAMES = st.sampled_from(
    ["a", "b2", "fetch", "istio-proxy", "logs", "metrics", "models", "router", "shm", "x-y-z"]
)
VARIABLES = st.sampled_from(["A", "B", "HF_HOME", "PATH", "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"])
_WORDS = st.sampled_from(
    [
        "",
        "serve",
        "--port=9",
        "$(A)",
        "$$(A)",
        "$$$(B)",
        "a$b",
        "$(",
        "$(A",
        "x$$y",
        "--tp 8",
        "$(HF_HOME)/$(C)",
    ]
)
_REFERENCES = st.sampled_from(
    [
        {"fieldRef": {"fieldPath": "metadata.name"}},
        {"secretKeyRef": {"name": "hf", "key": "token"}},
        {"configMapKeyRef": {"name": "conf", "key": "k", "optional": False}},
        {"resourceFieldRef": {"resource": "limits.cpu"}},
    ]
)
_ENV = st.one_of(
    st.builds(lambda name, value: {"name": name, "value": value}, VARIABLES, _WORDS),
    st.builds(
        lambda name, source: {"name": name, "valueFrom": copy.deepcopy(source)},
        VARIABLES,
        _REFERENCES,
    ),
)
_HANDLERS = st.sampled_from(
    [
        {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 7},
        {
            "httpGet": {
                "path": "v1/models",
                "port": 9000,
                "scheme": "HTTPS",
                "httpHeaders": [{"name": "X", "value": "y"}],
            }
        },
        {"exec": {"command": ["curl", "localhost"]}},
        {"grpc": {"port": 5000}},
        {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    ]
)
_PROBES = st.builds(
    lambda handler, more: {**copy.deepcopy(handler), **more},
    _HANDLERS,
    st.fixed_dictionaries(
        {},
        optional={"failureThreshold": st.integers(1, 9), "initialDelaySeconds": st.integers(0, 9)},
    ),
)


def _containers(volumes: list[str]) -> st.SearchStrategy[Object]:
    amounts = st.dictionaries(
        st.sampled_from(["cpu", "memory", "ephemeral-storage", "rdma/hca"]),
        st.sampled_from([1, "2", "4Gi"]),
    )
    mounts = st.lists(
        st.builds(lambda name: {"name": name, "mountPath": f"/{name}"}, st.sampled_from(volumes)),
        max_size=2,
    )
    return st.fixed_dictionaries(
        {"image": st.sampled_from(["vllm:1", "vllm@sha256:0", "proxy:2"])},
        optional={
            "command": st.lists(_WORDS, max_size=2),
            "args": st.lists(_WORDS, max_size=3),
            "env": st.lists(_ENV, max_size=5),
            "envFrom": st.just([{"secretRef": {"name": "more"}}]),
            "ports": st.just([{"name": "http", "containerPort": 8001}]),
            "resources": st.fixed_dictionaries(
                {}, optional={"limits": amounts, "requests": amounts}
            ),
            "volumeMounts": mounts if volumes else st.just([]),
            "readinessProbe": _PROBES,
            "startupProbe": _PROBES,
            "livenessProbe": _PROBES,
            "lifecycle": st.just({"preStop": {"exec": {"command": ["sleep", "20"]}}}),
            "imagePullPolicy": st.sampled_from(["Always", "IfNotPresent"]),
            "workingDir": st.just("/srv"),
            "securityContext": st.sampled_from(
                [
                    {},
                    {"privileged": True},
                    {
                        "runAsUser": 1000,
                        "capabilities": {"add": ["IPC_LOCK", "CHOWN"], "drop": ["ALL"]},
                    },
                ]
            ),
        },
    )


def _affinity(value: str) -> Object:
    terms = [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [value]}]}]
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    }


@st.composite
def templates(draw: st.DrawFn) -> Object:
    """Draw a pod template whose engine is its container "vllm".

    With other containers, init containers, sidecars, labels, terms.
    """
    volumes = draw(st.lists(NAMES, unique=True, max_size=3))
    names = draw(st.lists(NAMES.filter(lambda name: name != "vllm"), unique=True, max_size=4))
    template: Object = {"metadata": {}, "spec": {"containers": [], "initContainers": []}}
    own = {**draw(_containers(volumes)), "name": "vllm"}
    own["resources"] = copy.deepcopy(own.get("resources", {}))
    own["resources"].setdefault("limits", {})["nvidia.com/gpu"] = draw(st.sampled_from([1, "8"]))
    template["spec"]["containers"].append(own)
    for name in names:
        container = {**draw(_containers(volumes)), "name": name}
        place = draw(st.sampled_from(["containers", "initContainers", "sidecar"]))
        if place == "sidecar":
            container["restartPolicy"] = "Always"
        elif place == "initContainers":  # the API knows none of these there
            container = {
                field: value
                for field, value in container.items()
                if not field.endswith("Probe") and field != "lifecycle"
            }
        template["spec"]["containers" if place == "containers" else "initContainers"].append(
            container
        )
    template["metadata"]["labels"] = draw(st.dictionaries(NAMES, NAMES, max_size=3)) | {
        "app": "qwen3"
    }
    template["metadata"]["annotations"] = draw(st.dictionaries(NAMES, NAMES, max_size=2))
    template["spec"]["volumes"] = [{"name": name, "emptyDir": {}} for name in volumes]
    template["spec"] |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "nodeSelector": st.just({"zone": "a", "gpu": ""}),
                "nodeName": st.just("node0"),
                "affinity": st.builds(_affinity, NAMES),
                "hostname": st.just("qwen"),
                "tolerations": st.just([{"operator": "Exists"}]),
                "serviceAccountName": st.just("model"),
                "hostNetwork": st.just(True),
                "priorityClassName": st.just("serving"),
                "topologySpreadConstraints": st.just(
                    [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
                ),
                "fieldOfTomorrow": st.just({"kept": True}),
            },
        )
    )
    return template
