"""Any template that a tenant could put into an AutotuneCache, from a number: the same each time.

The CRD keeps unknown fields, so the API server checks nothing inside spec.source.template.
"""

from __future__ import annotations

import json
from typing import Any

from pretune.api.types import Object

from tests.builders.random_pods import RandomCase

_TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "9" * 5000,
    "²",
    "\0",
    "\0\0",
    "$(",
    "$$",
    "$(A)$(B)$(PATH)",
    "../..",
    "a/b",
    "nvidia.com/gpu",
    "'",
    '"',
    "--headless",
    "--tensor-parallel-size",
    "ray start --address",
    "-c",
    "Always",
    "MIG-" * 50,
    "é" * 300,
)
_LONG = ("x", "$(", "$(A)", "9", "'", '"', "a ", "-c", "\\", "MIG-", "-", "#\n")
# Names of variables: the API server looks at them only after the webhook did.
_PATTERNS = ("(a+)+!", "(a", "a{", "[", "\\", "(?P<a", "a|b", ".*", "HOST_IP")
_NUMBERS = ("²", "١", "9" * 9, "9" * 3000, "9" * 5000, "-1", "1.5", "$(N)", "0", "8")
_SIZES = ("-tp", "--tensor-parallel-size", "-pp", "-dp", "-pcp", "--port")
_PLAIN = (None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1.5, 1e300)
_FIELDS = (
    "name",
    "image",
    "command",
    "args",
    "env",
    "envFrom",
    "value",
    "valueFrom",
    "ports",
    "resources",
    "limits",
    "nvidia.com/gpu",
    "claims",
    "volumeMounts",
    "volumeDevices",
    "securityContext",
    "capabilities",
    "startupProbe",
    "readinessProbe",
    "livenessProbe",
    "httpGet",
    "exec",
    "periodSeconds",
    "failureThreshold",
    "initialDelaySeconds",
    "lifecycle",
    "restartPolicy",
    "containers",
    "initContainers",
    "volumes",
    "persistentVolumeClaim",
    "claimName",
    "resourceClaims",
    "nodeName",
    "nodeSelector",
    "tolerations",
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "nodeSelectorTerms",
    "matchExpressions",
    "values",
    "hostNetwork",
    "hostname",
    "labels",
    "annotations",
    "metadata",
    "spec",
    "imagePullPolicy",
    "terminationMessagePath",
    "os",
    "overhead",
    "securityContext",
)


def growing_env(variables: int, length: int = 100, references: int = 8) -> list[Object]:
    """Return variables of which each refers to the one before it `references` times.

    Expanded fully, the last value has length * references ** (variables - 1) characters.
    """
    first = {"name": "A0", "value": "x" * length}
    rest = [{"name": f"A{n}", "value": f"$(A{n - 1})" * references} for n in range(1, variables)]
    return [first, *rest]


class HostileCase(RandomCase):
    """A template of which some values are anything, all from one number."""

    def template(self) -> Object:
        """Return the template, as parsed from JSON."""
        pod = self.pod()
        template: Object = {"metadata": pod["metadata"], "spec": pod["spec"]}
        if self.seldom(0.2):
            self._use_node_address(template)
        if self.seldom(0.2):
            self._ask_for_ranks(template)
        for _ in range(self._random.randint(1, 4)):
            holder = self._holder(template)
            value = json.loads(json.dumps(self._anything()))  # nothing is there twice
            if isinstance(holder, list):
                holder.insert(self._random.randint(0, len(holder)), value)
            elif holder and self.often():
                holder[self.pick(list(holder))] = value
            else:
                holder[self.pick(_FIELDS)] = value
        return json.loads(json.dumps(template))  # type: ignore[no-any-return]

    def _use_node_address(self, template: Object) -> None:
        """Have the engine read the node's address, from variables of any name."""
        engine = _engine(template)
        address = {"fieldRef": {"fieldPath": "status.hostIP"}}
        names = self.sample(_PATTERNS, 3)
        engine["env"] = [
            *(engine.get("env") or ()),
            *({"name": name, "valueFrom": address} for name in names),
        ]
        words = ["$" + "a" * 40, *(f"$({name})" for name in names if self.often())]
        engine["args"] = [*(engine.get("args") or ()), *words]
        template["spec"]["hostNetwork"] = True

    def _ask_for_ranks(self, template: Object) -> None:
        """Give the engine sizes that are hardly numbers."""
        engine = _engine(template)
        engine["args"] = [*(engine.get("args") or ())]
        for flag in self.sample(_SIZES, 3):
            engine["args"] += [flag, self.pick(_NUMBERS)]

    def _holder(self, value: Any) -> Any:
        """Return any object or list in the template."""
        while True:
            items = value.values() if isinstance(value, dict) else value
            inner = [item for item in items if isinstance(item, dict | list)]
            if not inner or self.seldom(0.2):
                return value
            value = self.pick(inner)

    def _anything(self) -> Any:
        kind = self._random.random()
        if kind < 0.3:
            return self.pick(_PLAIN)
        if kind < 0.55:
            return self.pick(_TEXTS)
        if kind < 0.6:
            return self.pick(_LONG) * self._random.choice((100, 3000, 70_000))
        if kind < 0.65:
            return self._nested(self._random.choice((3, 30, 300)))
        if kind < 0.7:
            return growing_env(12, self._random.choice((1, 100, 10_000)), references=9)
        if kind < 0.75:
            return [self.pick(({}, [], "x", 0, {"name": "x"}, [[]]))] * self._random.choice(
                (40, 1500)
            )
        if kind < 0.9:
            return [self.pick((*_PLAIN, *_TEXTS, {}, [], {"name": "vllm"})) for _ in range(3)]
        return {self.pick(_FIELDS): self.pick((*_PLAIN, *_TEXTS, {}, [])) for _ in range(3)}

    def _nested(self, depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value] if self.often() else {self.pick(_FIELDS): value}
        return value


def _engine(template: Object) -> Any:
    return next(each for each in template["spec"]["containers"] if each["name"] == "vllm")
