"""A namespace whose owner may edit everything in it, and does the operator all the harm he can."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType

import requests

from tests.builders.hostile_templates import growing_env
from tests.cluster.kube import Kube, Object, Refusal, condition
from tests.cluster.workloads import autotune_cache, bare_pod, serving_template

# Expanded fully, the last one is 8^7 times as long as the first.
GROWING = {each["name"]: each["value"] for each in growing_env(8, length=16)}
LONG_VALUES = {
    "dollars": {"V": "$(" * 40_000},
    "digits": {"V": "1" * 20_000 + "x"},
    "path": {"PATH": "$(" * 20_000},
}
LONG_WORDS = {
    "quoted": ["sh", "-c", "exec vllm serve '" + "a" * 100_000 + "'"],
    "short-options": ["vllm", "serve", "-" + "c" * 20_000 + "!"],
    "open-quote": ["sh", "-c", "exec vllm serve " + '"' * 19_999],
}
# What a container can leave as its termination message: at most 4096 bytes.
TERMINATION_MESSAGES = {
    "brackets": "[" * 4096,
    "number": json.dumps({"by": "seed", "reason": "Seeded", "bundles": 5}),
    "words": json.dumps({"by": "seal", "reason": "Sealed", "entries": "many", "at": "yesterday"}),
    "writer": json.dumps({"by": "seal", "reason": "Sealed", "writer": {"uid": "root"}}),
}
OWNER = "apps/v1?watch=true&x=#"  # the API server checks only that there is at most one slash
NESTED, DEPTH = "nested", 1_000  # a word, and for how many lists in lists it stands
FOREIGN_JOBS, CLAIMS = 300, 900  # that name our cache in a label; that a template mounts
TARGETS = [{"name": f"t{n}", "nodeSelector": {"gpu": f"g{n}"}} for n in range(16)]


def deep_template() -> Object:
    """Return a template with NESTED in a field that the API server does not check."""
    template = serving_template()
    template["spec"]["containers"][0]["x-nested"] = NESTED
    return template


def template_with_claims() -> Object:
    """Return a template that mounts CLAIMS claims, none of which exists."""
    template = serving_template()
    template["spec"]["volumes"] = [
        {"name": f"v{number}", "persistentVolumeClaim": {"claimName": f"claim-{number}"}}
        for number in range(CLAIMS)
    ]
    return template


def suspended_job(namespace: str, number: int) -> Object:
    """Return a suspended Job that names a cache, and that no cache controls."""
    template = serving_template()
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": namespace,
            "name": f"foreign-{number}",
            "labels": {"pretune.dev/cache": "messages", "pretune.dev/role": "tuning"},
        },
        "spec": {"suspend": True, "template": template},
    }


def to_json(obj: Object) -> str:
    """Return an object as JSON, with lists in lists for NESTED: json.dumps would not go so deep."""
    return json.dumps(obj).replace(json.dumps(NESTED), "[" * DEPTH + "]" * DEPTH)


class HostileNamespace:
    """Harmful objects, and threads that change them until the end of the `with` block.

    Meanwhile this process, too, can read what is nested so deeply.
    """

    def __init__(self, kube: Kube, namespace: str, changes_per_second: float = 20) -> None:
        self.kube, self.namespace = kube, namespace
        self.refused: list[str] = []  # what the API server did not take, with its message
        self.changes = 0
        self._pause = 1 / changes_per_second
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=each, args=(kube.new_session(),), daemon=True)
            for each in (self._change_pods, self._change_caches)
        ]

    def __enter__(self) -> HostileNamespace:
        self._recursion_limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20 * DEPTH)
        self._create_caches()
        self._create_pods()
        for number in range(FOREIGN_JOBS):
            self._create(suspended_job(self.namespace, number))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
        sys.setrecursionlimit(self._recursion_limit)

    def read_stalled(self) -> dict[str, str]:
        """Return, of each cache, the reason of its condition Stalled."""
        return {
            cache["metadata"]["name"]: condition(cache, "Stalled").get("reason", "")
            for cache in self.kube.list("AutotuneCache", self.namespace)
        }

    def _create(self, obj: Object) -> None:
        url = self.kube._url(obj["kind"], self.namespace)
        as_json = {"Content-Type": "application/json"}
        try:
            self.kube._call("POST", url, data=to_json(obj), headers=as_json)
        except Refusal as refusal:
            name = f"{obj['kind']} {obj['metadata']['name']}"
            self.refused.append(f"{name}: {refusal.message[:200]}")

    def _create_caches(self) -> None:
        templates = {
            "growing": serving_template(env=GROWING),
            **{name: serving_template(env=env) for name, env in LONG_VALUES.items()},
            **{
                name: serving_template(command=words, args=()) for name, words in LONG_WORDS.items()
            },
            "deep": deep_template(),
            "large": serving_template(env={f"V{n}": "x" * 10_000 for n in range(100)}),
            "claims": template_with_claims(),
        }
        templates["short-options"]["spec"]["containers"][0]["args"] = []
        for name, template in templates.items():
            self._create(autotune_cache(self.namespace, name, source={"template": template}))
        self._create(autotune_cache(self.namespace, "many", targets=TARGETS))
        self._create(autotune_cache(self.namespace, "messages"))

    def _create_pods(self) -> None:
        unscheduled = {"nodeSelector": {"no": "node"}}
        for name, env in {"growing": GROWING, **LONG_VALUES}.items():
            template = serving_template(cache="messages", env=env)
            self._create(bare_pod(self.namespace, template, f"pod-{name}", **unscheduled))
        for number in range(60):
            template = serving_template(f"w{number}", cache="many")
            self._create(bare_pod(self.namespace, template, f"many-{number}", **unscheduled))
        owned = bare_pod(self.namespace, serving_template(cache="messages"), "owned", **unscheduled)
        owned["metadata"]["ownerReferences"] = [
            {
                "apiVersion": OWNER,
                "kind": "ReplicaSet",
                "name": "..",
                "uid": "0",
                "controller": True,
            }
        ]
        self._create(owned)
        for name, message in TERMINATION_MESSAGES.items():
            self._create(self._messenger(name, message))

    def _messenger(self, name: str, message: str) -> Object:
        """Return a pod that pretends to be a tuning pod, and leaves this termination message."""
        template = serving_template(cache="messages", probe=False)
        container = template["spec"]["containers"][0]
        container["name"] = "pretune-seal"
        container["command"] = ["sh", "-c", 'printf %s "$MESSAGE" > /dev/termination-log']
        container["args"] = []
        container["env"] = [{"name": "MESSAGE", "value": message}]
        container["resources"] = {"requests": {"cpu": "1m", "memory": "16Mi"}}
        labels = template["metadata"]["labels"]
        labels.update({"pretune.dev/role": "tuning", "pretune.dev/attempt": "9" * 60})
        labels["pretune.dev/bundle"] = "0" * 12 + "-default"
        annotations = {"pretune.dev/inputs": "[" * 2000, "pretune.dev/bundle": "../../x"}
        template["metadata"]["annotations"] = annotations
        return bare_pod(self.namespace, template, f"message-{name}", restartPolicy="Never")

    def _change_pods(self, kube: Kube) -> None:
        """Change annotations and labels of twenty pods, in turn."""
        number = 0
        while not self._ends.wait(self._pause):
            number += 1
            labels = {"pretune.dev/cache": ("many", "absent", "messages")[number % 3]}
            annotations = {"pretune.dev/noise": str(number)}
            self._patch(kube, "Pod", f"many-{number % 20}", labels, annotations)

    def _change_caches(self, kube: Kube) -> None:
        number = 0
        while not self._ends.wait(self._pause * 5):
            number += 1
            self._patch(kube, "AutotuneCache", ("many", "messages", "deep", "growing")[number % 4],
                        {"noise": str(number)}, {})  # fmt: skip

    def _patch(self, kube: Kube, kind: str, name: str, labels: Object, annotations: Object) -> None:
        patch = {"metadata": {"labels": labels, "annotations": annotations}}
        try:
            kube.patch(kind, self.namespace, name, patch)
            self.changes += 1
        except (Refusal, requests.ConnectionError):
            time.sleep(self._pause)
