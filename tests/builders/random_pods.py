"""Any pod that could arrive at the webhook, from a number: the same pod each time.

Fast enough for a million. Hypothesis (strategies.py) makes what it finds smaller, but creates only
some hundred pods a second.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from pretune.api import names
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.delivery_modes import Delivery
from pretune.protocol import Inputs

NAMES = (
    "a",
    "b2",
    "fetch",
    "istio-proxy",
    "logs",
    "metrics",
    "models",
    "router",
    "shm",
    "x-y-z",
    "vllm-2",
)
_OURS = ("pretune-claim", "pretune-agent", "pretune-tactics", "pretune-seed")
_PATHS = (
    "/models",
    "/dev/shm",
    "/home/vllm/.cache",
    "/pretunes",
    "/mnt/pretune/claim",
    "/etc/a~b",
    "/var/run/secrets/x",
)
_OUR_PATHS = (
    "/pretune",
    "/",
    "/pretune/claim",
    "pretune/tactics/",
    "/pretune//claim/a",
    "/pretune/tactics/../claim",
)
_VALUES = (
    "",
    "1",
    "$(A)",
    "$$(A)",
    "a$b",
    "$(HOME)/bin",
    "/pretune/tactics",
    "é" * 9,
    "x~1y/z",
    "$($(A))",
)
_VARIABLES = (
    "A",
    "B",
    "HOME",
    "PATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "PRETUNE_POD_UID",
)
_SOURCES = (
    {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
    {"secretKeyRef": {"name": "hf", "key": "token"}},
    {"configMapKeyRef": {"name": "conf", "key": "k", "optional": False}},
    {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}},
)
_AMOUNTS = ("1", "500m", "8Gi", "1e3", "64Gi")
_PROBES = (
    {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10},
    {"exec": {"command": ["true"]}},
    {"grpc": {"port": 5000, "service": ""}},
)
_SECURITY: tuple[Object, ...] = (
    {},
    {"privileged": True},
    {"runAsUser": 1000, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    {
        "readOnlyRootFilesystem": True,
        "capabilities": {"add": ["IPC_LOCK", "CHOWN"]},
        "procMount": "Default",
    },
    {"capabilities": {"add": None, "drop": None}, "seccompProfile": {"type": "RuntimeDefault"}},
)
_POD_FIELDS: tuple[tuple[str, Any], ...] = (
    ("nodeSelector", {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-B200"}),
    ("tolerations", [{"operator": "Exists"}]),
    ("serviceAccountName", "model"),
    ("hostUsers", False),
    ("hostNetwork", True),
    ("priorityClassName", "serving"),
    ("priority", 0),
    ("resources", {"limits": {"cpu": "64", "memory": "640Gi"}}),
    ("securityContext", {"runAsNonRoot": True, "fsGroup": 1000}),
    ("terminationGracePeriodSeconds", 0),
    ("resourceClaims", [{"name": "gpu", "resourceClaimTemplateName": "gpus"}]),
    ("imagePullSecrets", [{"name": "pull"}]),
    ("fieldOfTomorrow", {"kept": [None, {"a": {}}]}),
    ("enableServiceLinks", True),
    ("affinity", {"podAntiAffinity": {}, "nodeAffinity": {}}),
)
_METADATA: tuple[tuple[str, Any], ...] = (
    ("generateName", "qwen3-5d-"),
    ("labels", {names.CACHE: "qwen3", "app": "qwen3"}),
    (
        "ownerReferences",
        [{"kind": "ReplicaSet", "name": "qwen3-5d", "uid": "u", "controller": True}],
    ),
    ("creationTimestamp", None),
    ("finalizers", ["a/b"]),
)
_ANNOTATIONS = (
    "own",
    names.TARGET,
    "pretune.dev/other",
    "a~b/c",
    "sidecar.istio.io/status",
    "kubernetes.io/limit-ranger",
)
_GATES = ("kueue.x-k8s.io/admission", "kueue.x-k8s.io/topology", "other/hold")

INPUTS = Inputs("f0" * 32, "$(rev)", "b200", {"nodeSelector": {"gpu": "b200"}})


class RandomCase:
    """A pod, a delivery, and what other webhooks do to the pod, all from one number."""

    def __init__(self, number: int) -> None:
        self._random = Random(number)

    def often(self) -> bool:
        return self._random.random() < 0.5

    def seldom(self, chance: float = 0.04) -> bool:
        return self._random.random() < chance

    def sample(self, items: tuple[Any, ...], most: int) -> list[Any]:
        return self._random.sample(items, self._random.randint(0, min(most, len(items))))

    def pick(self, items: tuple[Any, ...] | list[Any]) -> Any:
        return items[int(self._random.random() * len(items))]

    # --- the pod

    def pod(self) -> Object:
        """Return a pod whose engine is its container "vllm", as parsed from JSON."""
        volumes = self.sample(NAMES, 4)
        names = self.sample(NAMES, 5)
        if self.seldom(0.02):
            volumes.append(self.pick(_OURS))
        if self.seldom(0.01):
            names.append("pretune-seed")
        engine = self._container("vllm", volumes)
        engine.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = self.pick(
            ("1", 8)
        )
        if self.seldom(0.02):
            engine.setdefault("env", []).append({"name": OVERRIDE, "value": "/own"})
        if self.seldom(0.02):
            at = {"name": self.pick([*volumes, "v"]), "mountPath": self.pick(_OUR_PATHS)}
            engine.setdefault("volumeMounts", []).append(at)
        containers, init = [engine], []
        for name in names:
            place = self.pick((containers, containers, init, init, init))
            container = self._container(name, volumes)
            if place is init and self.often():
                container["restartPolicy"] = "Always"
            place.insert(int(self._random.random() * (len(place) + 1)), container)
        spec: Object = {"containers": containers}
        if init:
            spec["initContainers"] = init
        if volumes:
            spec["volumes"] = [self._volume(name) for name in volumes]
        if self.seldom(0.3):
            spec["schedulingGates"] = [{"name": name} for name in self.sample(_GATES, 2)] or [
                {"name": _GATES[0]}
            ]
        elif self.seldom():
            spec["nodeName"] = "node0"
        spec.update(self.sample(_POD_FIELDS, 6))
        meta: Object = dict(self.sample(_METADATA, 4))
        if annotations := self.sample(_ANNOTATIONS, 3):
            meta["annotations"] = {name: self.pick(_VALUES) for name in annotations}
        pod: Object = {"metadata": meta, "spec": spec, "status": {}}
        if self.seldom():
            self._make_odd(pod)
        return json.loads(json.dumps(pod))  # type: ignore[no-any-return]

    def _container(self, name: str, volumes: list[str]) -> Object:
        container: Object = {
            "name": name,
            "image": self.pick(("vllm:1", "vllm@sha256:0", "proxy:2")),
        }
        if self.often():
            container["env"] = [self._variable() for _ in range(self._random.randint(1, 5))]
        if volumes and self.often():
            paths = self.sample(_PATHS, 3) or [_PATHS[0]]
            container["volumeMounts"] = [
                {"name": self.pick(volumes), "mountPath": path} for path in paths
            ]
        if self.often():
            container["args"] = self.sample(_VALUES, 3)
        if self.often():
            amounts = [
                {
                    what: self.pick(_AMOUNTS)
                    for what in self.sample(("cpu", "memory", "ephemeral-storage", "rdma/x"), 3)
                }
                for _ in range(2)
            ]
            container["resources"] = {
                "limits": amounts[0],
                "requests": self.pick((amounts[1], dict(amounts[0]))),
            }
        if self.often():
            container["securityContext"] = self.pick(_SECURITY)
        if self.often():
            container["readinessProbe"] = self.pick(_PROBES)
        if self.seldom(0.2):
            container["tomorrow"] = {"x": [None]}
        if self.often():
            container |= {
                "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log",
            }
        return container

    def _variable(self) -> Object:
        name = self.pick(_VARIABLES)
        if self.seldom(0.3):
            return {"name": name, "valueFrom": self.pick(_SOURCES)}
        return {"name": name, "value": self.pick(_VALUES)}

    def _volume(self, name: str) -> Object:
        sources: tuple[Object, ...] = (
            {"emptyDir": {}},
            {"configMap": {"name": "conf"}},
            {"persistentVolumeClaim": {"claimName": "models"}},
            {"persistentVolumeClaim": {"claimName": "shared", "readOnly": True}},
            {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        )
        return {"name": name, **self.pick(sources)}

    def _make_odd(self, pod: Object) -> None:
        """Set null and empty values where the API server would send nothing."""
        holders = [pod["metadata"], pod["spec"], *pod["spec"]["containers"]]
        for name in (
            "annotations",
            "volumes",
            "initContainers",
            "schedulingGates",
            "env",
            "volumeMounts",
        ):
            for holder in holders:
                if name not in holder and self.often():
                    empty: Any = {} if name == "annotations" else []
                    holder[name] = self.pick((None, empty))

    # --- what happens to it

    def delivery(self) -> Delivery:
        mode = self.pick(("Overlay", "Overlay", "ReadOnly", "None"))
        if mode == "None":
            return Delivery(mode, "OverrideSet", self.pick(_VALUES))
        held = self.often()
        return Delivery(
            mode,
            "Held" if held else "Given",
            self.pick(_VALUES),
            held=held,
            engine="vllm",
            bundle=INPUTS.bundle_id(),
            inputs=INPUTS,
            claim=self.pick(("pretune-qwen3", "shared")),
            sub_path=self.pick(("", "a/b", "$(A)//")),
            folder="inference.qwen3",
            agent="pretune-agent-0123456789ab",
        )

    def others(self) -> int:
        """Return a number: by it other webhooks do the same to a pod with and without our parts."""
        return self._random.getrandbits(32)


def add_as_other_webhooks(pod: Object, number: int) -> None:
    """Add what other webhooks add: at either end of each list, to every container but ours."""
    case = RandomCase(number)
    spec = pod["spec"]
    first = case.often()

    def add(holder: Object, field: str, item: Object) -> None:
        if holder.get(field) is None:
            holder[field] = [item]
        elif first:
            holder[field].insert(0, item)
        else:
            holder[field].append(item)

    names = ("volumes", "initContainers", "containers", "schedulingGates")
    for name in case.sample(names, 4):
        add(spec, name, {"name": f"mesh-{name.lower()}"})
    each = [case.often() for _ in range(2)]
    for place in ("containers", "initContainers"):
        for container in spec.get(place) or ():
            if each[0]:
                add(container, "env", {"name": "MESH", "value": "1"})
            if each[1]:
                add(container, "volumeMounts", {"name": "mesh-volumes", "mountPath": "/mesh"})
    if case.often():
        if pod["metadata"].get("annotations") is None:
            pod["metadata"]["annotations"] = {}
        pod["metadata"]["annotations"]["mesh/status"] = "injected"
