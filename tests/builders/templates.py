"""Pod templates: `template().container("vllm").gpus(8).args("--tp=8")`."""

from __future__ import annotations

import copy
from typing import Any

from pretune.api.types import Object
from pretune.manifests.json_patch import copy_json

from tests.builders.constants import ENGINE


class Template(dict[str, Any]):
    """A pod template. What concerns a container concerns the last one that was named."""

    def container(self, name: str = ENGINE, image: str = "vllm:1", **fields: Any) -> Template:
        return self._add("containers", {"name": name, "image": image, **fields})

    def init(self, name: str = "fetch", image: str = "fetch:1", **fields: Any) -> Template:
        return self._add("initContainers", {"name": name, "image": image, **fields})

    def gpus(self, count: Any, resource: str = "nvidia.com/gpu") -> Template:
        self._last.setdefault("resources", {}).setdefault("limits", {})[resource] = count
        return self

    def args(self, *words: str) -> Template:
        return self.having(args=list(words))

    def env(self, **values: Any) -> Template:
        """Add variables: a text is a value, an object is a valueFrom.

        A name may be given again by another call.
        """
        self._last.setdefault("env", []).extend(
            {"name": name, "value" if isinstance(value, str) else "valueFrom": value}
            for name, value in values.items()
        )
        return self

    def having(self, **fields: Any) -> Template:
        self._last.update(fields)
        return self

    def pod(self, **fields: Any) -> Template:
        self["spec"].update(fields)
        return self

    def labels(self, **labels: str) -> Template:
        self["metadata"].setdefault("labels", {}).update(
            {name.replace("__", "/"): value for name, value in labels.items()}
        )
        return self

    def annotations(self, **annotations: str) -> Template:
        self["metadata"].setdefault("annotations", {}).update(
            {name.replace("__", "/"): value for name, value in annotations.items()}
        )
        return self

    def _add(self, place: str, container: Object) -> Template:
        self["spec"].setdefault(place, []).append(container)
        self._last = container
        return self


def template() -> Template:
    """Return an empty template."""
    return Template(metadata={}, spec={})


def engine(**fields: Any) -> Template:
    """Return the plainest template: one container, one GPU."""
    return template().container(**fields).gpus(1)


def serving_template(**fields: Any) -> Object:
    """Return the template of a Deployment that serves, as plain data.

    fields: of the engine's container.
    """
    plain: Object = copy_json(engine(**{"args": ["serve", "qwen3"], **fields}).labels(app="qwen3"))
    return plain


def stored(template: Object) -> Object:
    """Return a template as the API server stores it.

    tests/unit/podspec/data/stored.json is what Kubernetes 1.34 stored of written.json. In a bare
    pod it also sets requests to the limits.
    """
    stored = copy.deepcopy(dict(template))
    pod = stored["spec"]
    for container in pod.get("initContainers", []) + pod["containers"]:
        for variable in container.get("env", []):
            if variable.get("value") == "":
                del variable["value"]
            if "fieldRef" in (variable.get("valueFrom") or {}):
                variable["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")
            if "resourceFieldRef" in (variable.get("valueFrom") or {}):
                variable["valueFrom"]["resourceFieldRef"].setdefault("divisor", "0")
        resources = container.setdefault("resources", {})
        for kind in ("limits", "requests"):
            if kind in resources:
                resources[kind] = {name: str(amount) for name, amount in resources[kind].items()}
        if "limits" in resources:
            resources["requests"] = {**resources["limits"], **resources.get("requests", {})}
        for empty in ("command", "args", "env", "envFrom", "volumeMounts"):
            if container.get(empty) == []:
                del container[empty]
        container |= {
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
        }
        container.setdefault("imagePullPolicy", "IfNotPresent")
    pod |= {
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "restartPolicy": "Always",
    }
    pod.setdefault("securityContext", {})
    pod.setdefault("terminationGracePeriodSeconds", 30)
    return stored


def term(key: str, *values: str, operator: str = "In") -> Object:
    """Return what a node selector's term requires of one label or field."""
    return {"key": key, "operator": operator, "values": list(values)}


def requiring(*terms: Object) -> Object:
    """Return an affinity to nodes that one of the terms admits."""
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}
        }
    }
