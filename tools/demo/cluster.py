"""Runs kubectl and helm on the local cluster, or on the one that KUBECONFIG names."""

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
    os.environ.get("PRETUNE_BUILD")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pretune"
)
SYSTEM = "pretune-system"
REQUIRED_VARIABLES = ("OPERATOR_IMAGE", "ENGINE_IMAGE")  # on a cluster of the user's

Object = dict[str, Any]


class Cluster:
    """The demo's cluster; `is_users` is True for one that KUBECONFIG names.

    A command that fails ends the demo with its error message.
    """

    def __init__(self) -> None:
        self.is_users = bool(os.environ.get("KUBECONFIG"))
        missing = [name for name in REQUIRED_VARIABLES if name not in os.environ]
        if self.is_users and missing:
            sys.exit(
                f"KUBECONFIG is set, so the demo uses that cluster. Set {' and '.join(missing)} to"
                " images that it can pull (build them from Dockerfile and images/engine/Dockerfile)."
            )
        self.operator_image = os.environ.get("OPERATOR_IMAGE", "localhost/pretune/operator:dev")
        self.engine_image = os.environ.get("ENGINE_IMAGE", "localhost/pretune/engine:dev")
        self.pull_policy = "IfNotPresent" if self.is_users else "Never"
        self.environment = dict(os.environ)
        if not self.is_users:
            self.environment["KUBECONFIG"] = str(ROOT / ".local/kubeconfig")

    def bring_up(self) -> None:
        """Bring the local cluster up, with the images of the demo.

        It does nothing on a cluster of the user's.
        """
        if self.is_users:
            return
        for command in (["tools/cluster/up"], ["tools/images/build", "operator", "engine"]):
            if code := subprocess.run(command, cwd=ROOT).returncode:
                sys.exit(code)  # it has said why

    def install(self) -> None:
        """Install the chart of this checkout."""
        repository, colon, tag = self.operator_image.rpartition(":")
        if not colon or "/" in tag or "@" in repository:
            sys.exit(f"OPERATOR_IMAGE={self.operator_image}: name it as repository:tag")
        command = [
            *(
                self._program("helm"),
                "upgrade",
                "--install",
                "pretune",
                str(ROOT / "charts/pretune"),
            ),
            *(
                "--namespace",
                SYSTEM,
                "--create-namespace",
                "--set",
                f"image.repository={repository}",
            ),
            *("--set-string", f"image.tag={tag}", "--set", f"image.pullPolicy={self.pull_policy}"),
            *("--wait", "--timeout", "180s"),
        ]
        if not self.is_users:  # the tag stays when the code changes: this replaces the pods then
            for component in ("controller", "webhook"):
                command += ["--set-string", f"{component}.podAnnotations.image={_hash_code()}"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"helm upgrade --install pretune: {done.stderr.strip()}")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Return what kubectl prints."""
        done = subprocess.run(
            [self._program("kubectl"), *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Object) -> None:
        """Create these objects, or change them to this."""
        manifest = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def watch(self, kind: str, namespace: str) -> subprocess.Popen[str]:
        """Return a process that prints each event of that kind's objects, for `parse_events`."""
        arguments = ["get", kind, "-n", namespace, "--watch", "-o", "json", "--output-watch-events"]
        return subprocess.Popen(
            [self._program("kubectl"), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _program(self, name: str) -> str:
        """Return the program to run: the local cluster's own, or on a user's cluster that of PATH."""
        own = BUILD / "bin" / name
        on_path = None if not self.is_users and own.exists() else shutil.which(name)
        return on_path or str(own)


def _hash_code() -> str:
    files = [
        *(ROOT / "operator").rglob("*.py"),
        ROOT / "Dockerfile",
        ROOT / "requirements/operator.txt",
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def parse_events(lines: Iterable[str]) -> Iterator[tuple[str, Object]]:
    """Yield (ADDED | MODIFIED | DELETED, object) for each JSON object, as soon as it is complete.

    kubectl 1.34 prints one line for each, other releases print many.
    """
    text = ""
    for line in lines:
        text += line
        if not line.rstrip().endswith("}"):
            continue
        try:
            event = json.loads(text)
        except ValueError:
            continue
        text = ""
        yield event["type"], event["object"]
