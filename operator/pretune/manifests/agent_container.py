"""check, seal and seed: the agent, run in the engine's own image with its uid and PATH, and without its GPUs."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretune.api.types import Object
from pretune.protocol import (
    AGENT_FILE,
    AGENT_MOUNT,
    CLAIM_MOUNT,
    POD_UID_VARIABLE,
    TACTICS_MOUNT,
    TASK_VARIABLE,
    TOO_SLOW,
    Report,
    Task,
)

AGENT_VOLUME, CLAIM_VOLUME = "pretune-agent", "pretune-claim"

SEED = "seed"
LONGEST_TASK = 96 * 1024  # characters, all of them ASCII

FILE = f"{AGENT_MOUNT}/{AGENT_FILE}"
NO_PYTHON = "the image has no python3 on its PATH"
PYTHON = "python3 -I -S"  # without what the image adds to each start of Python: a .pth file may import anything
OLD_ENOUGH = f"{PYTHON} -c 'import sys; sys.exit(sys.version_info < (3, 8))'"
OLD = "python3 in the image is older than 3.8"
MISSING = f"{FILE} is not there: the agent's ConfigMap was missing when the pod started"

# seal is in the pod's sum, beside the engine. Requests are limits, so that a Guaranteed pod stays one and a quota on limits is content.
SEAL_RESOURCES = {"cpu": "500m", "memory": "256Mi"}
_COPIED = ("cpu", "memory", "ephemeral-storage")

# Of what the engine may add to its capabilities, that which decides what files it can read and write.
_FILE_CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"}


def agent_container(
    name: str,
    verb: str,
    engine: Object,
    task: Task,
    resources: Object,
    claim: Object,
    mounts: list[Object],
) -> Object:
    """A container that runs the agent's `verb` in the engine's image; its report is its termination message. claim: the mount of the
    claim, without its path."""
    made = {
        "name": name,
        "image": engine.get("image"),
        "imagePullPolicy": engine.get("imagePullPolicy"),
        "command": [
            "/bin/sh",
            "-c",
            script(verb),
        ],  # not by PATH, which the engine may have narrowed
        "env": [
            *path_variables(engine.get("env") or []),
            *task_variables(task),
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ],
        "resources": resources,
        "securityContext": security_context(engine.get("securityContext") or {}),
        "volumeMounts": [
            {"name": AGENT_VOLUME, "mountPath": AGENT_MOUNT, "readOnly": True},
            {**claim, "mountPath": CLAIM_MOUNT},
            *mounts,
        ],
    }
    return {field: value for field, value in made.items() if value is not None}


def seed_container(
    name: str, engine: Object, task: Task, resources: Object, claim: str, mounts: list[Object]
) -> Object:
    """A container that runs seed, and ends well whatever happens. claim: the volume that the claim is mounted by, read-only."""
    made = agent_container(
        name, SEED, engine, _short(task), resources, {"name": claim, "readOnly": True}, mounts
    )
    return {**made, "terminationMessagePolicy": "File"}


def _short(task: Task) -> Task:
    """Without the engine's words where they are so long (a script) that the container might not be started with them as one variable
    (128 KiB, Linux' MAX_ARG_STRLEN): its vLLM is then looked for on PATH."""
    return task if len(task.dump()) <= LONGEST_TASK else replace(task, command=[])


@functools.cache
def script(verb: str) -> str:
    """The shell's part: what the agent cannot report because it cannot run. Nothing in it means anything to the kubelet's `$(…)`."""
    return _script_of_seed() if verb == SEED else _script(verb)


def _script(verb: str) -> str:
    lines = (
        'say() { printf %s "$1" > /dev/termination-log; exit 1; }',
        f"command -v python3 > /dev/null || say {_words(verb, 'NoPython', NO_PYTHON)}",
        f"{OLD_ENOUGH} || say {_words(verb, 'NoPython', OLD)}",
        f"[ -f {FILE} ] || say {_words(verb, 'AgentMissing', MISSING)}",
        f"exec {PYTHON} {FILE} {verb}",
    )
    return "\n".join(lines)


def _script_of_seed() -> str:
    """Asks what was wrong only when the agent failed: one start of python3 less in every pod. Whoever kills the agent in the middle
    leaves half a bundle: all is taken out again here. TERM is the pod's end; a shell that is process 1 would ignore it.
    """
    killed = "the agent ended with status %s and no report; see the log of this container"
    lines = (
        'say() { printf "$@" > /dev/termination-log; exit 0; }',
        "trap 'exit 0' TERM",
        f"{PYTHON} {FILE} {SEED} &",
        "wait $!",
        "status=$?",
        '[ "$status" = 0 ] && exit 0',
        f"rm -rf -- {TACTICS_MOUNT}/* {TACTICS_MOUNT}/.[!.]* {TACTICS_MOUNT}/..?*",
        f'[ "$status" = {TOO_SLOW} ] && exit 0',  # it has said so
        f"command -v python3 > /dev/null || say {_words(SEED, 'NoPython', NO_PYTHON)}",
        f"{OLD_ENOUGH} || say {_words(SEED, 'NoPython', OLD)}",
        f"[ -f {FILE} ] || say {_words(SEED, 'AgentMissing', MISSING)}",
        f'say {_words(SEED, "SeedFailed", killed)} "$status"',
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
        kind: {
            name: amount for name, amount in (resources.get(kind) or {}).items() if name in _COPIED
        }
        for kind in ("limits", "requests")
    }
    return {kind: amounts for kind, amounts in copied.items() if amounts}


def security_context(engine: Object) -> Object:
    """The engine's, so that files are read and written as by it, without what only a GPU program needs.

    Passes Pod Security restricted where the engine does.
    """
    made = copy.deepcopy(
        {name: one for name, one in engine.items() if name not in ("privileged", "procMount")}
    )
    made["allowPrivilegeEscalation"] = False
    capabilities = made.get("capabilities") or {}
    if capabilities.get("add"):
        capabilities["add"] = [
            one for one in capabilities["add"] if one.removeprefix("CAP_") in _FILE_CAPABILITIES
        ]
    return made
