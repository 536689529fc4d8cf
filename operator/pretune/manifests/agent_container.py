"""check and seal: the agent, run in the engine's own image with its uid and PATH, and without its GPUs (design, section 4)."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Mapping
from typing import Any

from pretune.api import Object
from pretune.wire import AGENT_FILE, AGENT_MOUNT, CLAIM_MOUNT, POD_UID_VARIABLE, TASK_VARIABLE, Report, Task

AGENT_VOLUME, CLAIM_VOLUME = "pretune-agent", "pretune-claim"

# seal is in the pod's sum, beside the engine. Requests are limits, so that a Guaranteed pod stays one and a quota on limits is content.
SEAL_RESOURCES = {"cpu": "500m", "memory": "256Mi"}
_COPIED = ("cpu", "memory", "ephemeral-storage")

# Of what the engine may add to its capabilities, that which decides what files it can read and write.
_FILE_CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"}


def agent_container(
    name: str, verb: str, engine: Object, task: Task, resources: Object, mounts: list[Object]
) -> Object:
    """A container that runs the agent's `verb` (check, seal) in the engine's image; its report is its termination message."""
    made = {
        "name": name,
        "image": engine.get("image"),
        "imagePullPolicy": engine.get("imagePullPolicy"),
        "command": ["/bin/sh", "-c", script(verb)],  # not by PATH, which the engine may have narrowed
        "env": [
            *path_variables(engine.get("env") or []),
            *task_variables(task),
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ],
        "resources": resources,
        "securityContext": security_context(engine.get("securityContext") or {}),
        "volumeMounts": [
            {"name": AGENT_VOLUME, "mountPath": AGENT_MOUNT, "readOnly": True},
            {"name": CLAIM_VOLUME, "mountPath": CLAIM_MOUNT},
            *mounts,
        ],
    }
    return {field: value for field, value in made.items() if value is not None}


def script(verb: str) -> str:
    """The shell's part: what the agent cannot report because it cannot run. Nothing in it means anything to the kubelet's `$(…)`."""
    file = f"{AGENT_MOUNT}/{AGENT_FILE}"
    old = "python3 in the image is older than 3.8"
    missing = f"{file} is not there: the agent's ConfigMap was missing when the pod started"
    lines = (
        'say() { printf %s "$1" > /dev/termination-log; exit 1; }',
        f"command -v python3 > /dev/null || say {_words(verb, 'NoPython', 'the image has no python3 on its PATH')}",
        f"python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 8))' || say {_words(verb, 'NoPython', old)}",
        f"[ -f {file} ] || say {_words(verb, 'AgentMissing', missing)}",
        f"exec python3 -I {file} {verb}",
    )
    return "\n".join(lines)


def _words(verb: str, reason: str, message: str) -> str:
    return shlex.quote(Report(by=verb, reason=reason, message=message).dump())


def task_variables(task: Task) -> list[Object]:
    """The agent's task, as the kubelet must find it to hand it over unchanged: to it `$$` is one dollar, `$(NAME)` a variable."""
    return [
        {"name": POD_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": TASK_VARIABLE, "value": task.dump().replace("$", "$$")},
    ]


def path_variables(env: list[Object]) -> list[Object]:
    """The engine's PATH, if it sets one, with the variables that this refers to, in their order."""
    needed, found = {"PATH"}, []
    for one in reversed(env):
        if one["name"] in needed:
            found.append(copy.deepcopy(one))
            needed |= set(re.findall(r"\$\(([^)]*)\)", one.get("value") or ""))
    return found[::-1]


def copied_resources(engine: Object) -> Object:
    """The engine's cpu, memory and ephemeral-storage: in an ordinary init container they add nothing to the pod's sum."""
    resources: Mapping[str, Any] = engine.get("resources") or {}
    copied = {
        kind: {name: amount for name, amount in (resources.get(kind) or {}).items() if name in _COPIED}
        for kind in ("limits", "requests")
    }
    return {kind: amounts for kind, amounts in copied.items() if amounts}


def security_context(engine: Object) -> Object:
    """The engine's, so that files are read and written as by it, without what only a GPU program needs.

    Passes Pod Security restricted where the engine does.
    """
    made = copy.deepcopy({name: one for name, one in engine.items() if name not in ("privileged", "procMount")})
    made["allowPrivilegeEscalation"] = False
    capabilities = made.get("capabilities") or {}
    if "add" in capabilities:
        capabilities["add"] = [one for one in capabilities["add"] if one.removeprefix("CAP_") in _FILE_CAPABILITIES]
    return made
