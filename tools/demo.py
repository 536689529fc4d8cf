"""make demo: a cold start, an AutotuneCache from apply to sealed, and a warm start from its bundle, each measured in this run.

Uses the local cluster, or the one that KUBECONFIG names; there OPERATOR_IMAGE and ENGINE_IMAGE say where the images are.
The engine is the stand-in of images/engine: its tuning time is set, not measured on a GPU, and the demo says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = Path(
    os.environ.get("PRETUNE_BUILD", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretune")
)
SYSTEM, NAMESPACE, CACHE = "pretune-system", "pretune-demo", "qwen3-fp4"
ENTRIES, SECONDS_PER_ENTRY = 40, 0.5
OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"

Object = dict[str, Any]


class Demo:
    """One run. `own` is the user's own cluster."""

    def __init__(self) -> None:
        self.own = bool(os.environ.get("KUBECONFIG"))
        self.began = time.monotonic()
        self.operator = os.environ.get("OPERATOR_IMAGE", "localhost/pretune/operator:dev")
        self.engine = os.environ.get("ENGINE_IMAGE", "localhost/pretune/engine:dev")
        self.pull = "IfNotPresent" if self.own else "Never"
        self.environment = dict(os.environ)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def run(self) -> None:
        self.prepare()
        self.say(
            f"the chart is installed in namespace {SYSTEM}; the engine is the stand-in, {ENTRIES} entries of {SECONDS_PER_ENTRY} s each"
        )
        self.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        try:
            self.say("a pod as it starts today, without pretune:")
            cold = self.start(self.pod("cold"))
            self.say(f"  ready after {cold:.1f} s; {self.tuned('cold')}")
            tuning = self.tune()
            self.say("a pod that mounts the bundle read-only:")
            warm = self.start(self.pod("warm", bundle=self.bundle()))
            self.say(f"  ready after {warm:.1f} s; {self.tuned('warm')}")
            print()
            print("                       time to ready   tuned on a serving GPU")
            print(f"  cold start           {cold:9.1f} s     {self.tuned('cold')}")
            print(f"  warm start           {warm:9.1f} s     {self.tuned('warm')}")
            print(
                f"  tuned once, ahead:   {tuning:9.1f} s from apply to Ready;"
                f" each further pod starts warm ({cold / warm:.1f} times as fast here)"
            )
            print("  The stand-in engine played vLLM: these seconds show the machinery, not a GPU's tuning time.")
        finally:
            if os.environ.get("KEEP"):
                self.say(f"kept: namespace {NAMESPACE}")
            else:
                self.kubectl("delete", "namespace", NAMESPACE, "--wait=false")

    def prepare(self) -> None:
        """The cluster, the images, the chart."""
        if self.own:
            missing = [name for name in ("OPERATOR_IMAGE", "ENGINE_IMAGE") if name not in os.environ]
            if missing:
                sys.exit(
                    f"KUBECONFIG is set, so the demo goes to that cluster: also set {' and '.join(missing)} to images that it can"
                    " pull (build them from Dockerfile and images/engine/Dockerfile)."
                )
        else:
            subprocess.run(["make", "--no-print-directory", "cluster"], cwd=ROOT, check=True)
            self.environment["KUBECONFIG"] = str(ROOT / ".local/kubeconfig")
        repository, colon, tag = self.operator.rpartition(":")
        if not colon or "/" in tag or "@" in repository:
            sys.exit(f"OPERATOR_IMAGE={self.operator}: name it as repository:tag")
        self.say("installing the chart")
        subprocess.run(
            [
                *(self.tool("helm"), "upgrade", "--install", "pretune", str(ROOT / "charts/pretune")),
                *("--namespace", SYSTEM, "--create-namespace", "--set", f"image.repository={repository}"),
                *(
                    "--set-string",
                    f"image.tag={tag}",
                    "--set",
                    f"image.pullPolicy={self.pull}",
                    "--wait",
                    "--timeout",
                    "180s",
                ),
            ],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def tool(self, name: str) -> str:
        found = None if not self.own and (BUILD / "bin" / name).exists() else shutil.which(name)
        return found or str(BUILD / "bin" / name)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [self.tool("kubectl"), *words], env=self.environment, input=stdin, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, obj: Object) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps(obj))

    def template(self) -> Object:
        env = {
            "ENGINE_ENTRIES": str(ENTRIES),
            "ENGINE_SECONDS_PER_ENTRY": str(SECONDS_PER_ENTRY),
        }
        return {
            "metadata": {"labels": {"app": CACHE}},
            "spec": {
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "vllm",
                        "image": self.engine,
                        "imagePullPolicy": self.pull,
                        "command": ["vllm", "serve", "Qwen/Qwen3-8B-FP4"],
                        "env": [{"name": name, "value": value} for name, value in env.items()],
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ],
            },
        }

    def pod(self, name: str, bundle: str = "") -> Object:
        """A serving pod; with a bundle, as a person writes it by hand until injection does."""
        spec = self.template()["spec"]
        container = spec["containers"][0]
        if bundle:
            container["env"].append({"name": OVERRIDE, "value": f"/pretune/{bundle}"})
            container["volumeMounts"] = [{"name": "pretune", "mountPath": "/pretune", "readOnly": True}]
            claim = {"claimName": f"pretune-{CACHE}", "readOnly": True}
            spec["volumes"] = [{"name": "pretune", "persistentVolumeClaim": claim}]
        else:
            container["env"].append({"name": OVERRIDE, "value": "/cold"})
            container["volumeMounts"] = [{"name": "cold", "mountPath": "/cold"}]
            spec["volumes"] = [{"name": "cold", "emptyDir": {}}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}

    def start(self, pod: Object) -> float:
        """Seconds from the pod's creation to Ready."""
        began = time.monotonic()
        self.apply(pod)
        self.kubectl(
            "wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{pod['metadata']['name']}", "--timeout=300s"
        )
        return time.monotonic() - began

    def tuned(self, pod: str) -> str:
        """How many entries that pod tuned itself, and loaded, as its log says."""
        log = self.kubectl("logs", "-n", NAMESPACE, pod)
        loaded = re.search(r"Preloaded (\d+)/\d+", log)
        tuned: dict[str, int] = {}
        for operation, done in re.findall(r"Tuning (\S+): [^\r\n]*? (\d+)/\d+", log):
            tuned[operation] = max(tuned.get(operation, 0), int(done))
        return f"{sum(tuned.values())} entries tuned, {loaded.group(1) if loaded else 0} loaded"

    def tune(self) -> float:
        """Apply the cache and show what its conditions say until it is Ready; seconds that took."""
        self.say(f"kubectl apply: AutotuneCache {CACHE}")
        began = time.monotonic()
        self.apply(
            {
                "apiVersion": "pretune.dev/v1alpha1",
                "kind": "AutotuneCache",
                "metadata": {"name": CACHE, "namespace": NAMESPACE},
                "spec": {"source": {"template": self.template()}, "storage": {"claim": {}}},
            }
        )
        watch = subprocess.Popen(
            [
                self.tool("kubectl"),
                "get",
                "-n",
                NAMESPACE,
                "autotunecache",
                CACHE,
                "--watch",
                "-o",
                "json",
                "--output-watch-events",
            ],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout is not None
        said = None
        try:
            for event in _objects(watch.stdout):
                ready = next(
                    (c for c in event["object"].get("status", {}).get("conditions", []) if c["type"] == "Ready"), None
                )
                if ready is None or (ready["reason"], ready["message"]) == said:
                    continue
                said = (ready["reason"], ready["message"])
                self.say(f"  {ready['reason']}: {ready['message']}")
                if ready["status"] == "True":
                    break
                if any(
                    c["type"] == "Stalled" and c["status"] == "True" for c in event["object"]["status"]["conditions"]
                ):
                    sys.exit(f"the cache is stalled: {ready['message']}")
        finally:
            watch.terminate()
            watch.wait()
        print(self.kubectl("get", "-n", NAMESPACE, "autotunecache"))
        return time.monotonic() - began

    def bundle(self) -> str:
        cache = json.loads(self.kubectl("get", "-n", NAMESPACE, "autotunecache", CACHE, "-o", "json"))
        return f"{NAMESPACE}.{CACHE}/bundles/{cache['status']['bundles'][0]['id']}/tactics"


def _objects(stream: Any) -> Any:
    """JSON objects that follow one another in a stream, each as soon as it is whole, however it is broken into lines."""
    text = ""
    for line in stream:
        text += line
        try:
            whole = json.loads(text)
        except ValueError:
            continue
        text = ""
        yield whole


if __name__ == "__main__":
    Demo().run()
