"""The cluster's API as its administrator."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from localcluster.places import ADMIN
from localcluster.steps import StepError, build_folder


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints; StepError with its last words when it fails."""
    program = build_folder() / "bin" / "kubectl"
    done = subprocess.run(
        [program, f"--kubeconfig={ADMIN}", "--request-timeout=10s", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise StepError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def get(*arguments: str) -> dict[str, Any]:
    """One object or list, as a dict."""
    found: dict[str, Any] = json.loads(kubectl("get", *arguments, "-o", "json"))
    return found


def apply(*objects: dict[str, Any]) -> None:
    """Create the objects, or change them to this."""
    kubectl(
        "apply",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}),
    )


def api_ready() -> bool:
    """Whether the API server answers and all of its own parts have started."""
    try:
        return kubectl("get", "--raw", "/readyz").strip() == "ok"
    except StepError:
        return False
