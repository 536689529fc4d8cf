"""The demo's hands: kubectl and helm, on the local cluster or on the one that KUBECONFIG names. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(
    os.environ.get(
        "PRETUNE_BUILD", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pretune"
    )
)
SYSTEM = "pretune-system"
NEEDED = ("OPERATOR_IMAGE", "ENGINE_IMAGE")

Object = dict[str, Any]


class Cluster:
    """`own`: the user's own, by KUBECONFIG. Every failed command ends the demo with what it said."""

    def __init__(self) -> None:
        self.own = bool(os.environ.get("KUBECONFIG"))
        missing = [name for name in NEEDED if name not in os.environ]
        if self.own and missing:
            sys.exit(
                f"KUBECONFIG is set, so the demo goes to that cluster: also set {' and '.join(missing)} to images that it can"
                " pull (build them from Dockerfile and images/engine/Dockerfile)."
            )
        self.operator = os.environ.get("OPERATOR_IMAGE", "localhost/pretune/operator:dev")
        self.engine = os.environ.get("ENGINE_IMAGE", "localhost/pretune/engine:dev")
        self.pull = "IfNotPresent" if self.own else "Never"
        self.environment = dict(os.environ)
        if not self.own:
            self.environment["KUBECONFIG"] = str(ROOT / ".local/kubeconfig")

    def bring_up(self) -> None:
        """The local cluster with the project's images; nothing for a cluster of the user's."""
        if not self.own:
            subprocess.run(["make", "--no-print-directory", "cluster"], cwd=ROOT, check=True)

    def install(self) -> None:
        """The chart, from the checkout."""
        repository, colon, tag = self.operator.rpartition(":")
        if not colon or "/" in tag or "@" in repository:
            sys.exit(f"OPERATOR_IMAGE={self.operator}: name it as repository:tag")
        words = [
            self._tool("helm"),
            "upgrade",
            "--install",
            "pretune",
            str(ROOT / "charts/pretune"),
        ]
        words += [
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--set",
            f"image.repository={repository}",
        ]
        words += ["--set-string", f"image.tag={tag}", "--set", f"image.pullPolicy={self.pull}"]
        if not self.own:  # the tag stays when the code changes: this makes new pods of it
            for part in ("controller", "webhook"):
                words += ["--set-string", f"{part}.podAnnotations.image={_code()}"]
        words += ["--wait", "--timeout", "180s"]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"helm upgrade --install pretune: {done.stderr.strip()}")

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [self._tool("kubectl"), *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Object) -> None:
        self.kubectl(
            "apply",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        )

    def watch(self, kind: str, namespace: str) -> subprocess.Popen[str]:
        """A process whose stdout is the objects of a kind, with what happened to each; for `events`."""
        words = ["get", kind, "-n", namespace, "--watch", "-o", "json", "--output-watch-events"]
        return subprocess.Popen(
            [self._tool("kubectl"), *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _tool(self, name: str) -> str:
        found = None if not self.own and (BUILD / "bin" / name).exists() else shutil.which(name)
        return found or str(BUILD / "bin" / name)


def _code() -> str:
    files = sorted(
        [
            *(ROOT / "operator").rglob("*.py"),
            ROOT / "Dockerfile",
            ROOT / "requirements/operator.txt",
        ]
    )
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:12]


def events(stream: Iterable[str]) -> Iterator[tuple[str, Object]]:
    """(ADDED | MODIFIED | DELETED, object): JSON objects that follow one another, each as soon as it is whole, however it is broken
    into lines (seen: a line each of kubectl 1.34, many lines of others)."""
    text = ""
    for line in stream:
        text += line
        if not line.rstrip().endswith("}"):
            continue
        try:
            event = json.loads(text)
        except ValueError:
            continue
        text = ""
        yield event["type"], event["object"]
