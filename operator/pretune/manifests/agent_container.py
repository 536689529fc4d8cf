"""The containers that run the agent: in the engine's image, with its uid and PATH, no GPU."""

from __future__ import annotations

import copy
import functools
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pretune.api import reasons
from pretune.api.types import Object
from pretune.manifests.agent_archive import agent_digest
from pretune.podspec.canonical import list_references, parse_quantity
from pretune.protocol import (
    AGENT_CHANGED_EXIT_CODE,
    AGENT_FILE,
    AGENT_MOUNT,
    CLAIM_MOUNT,
    POD_UID_VARIABLE,
    SEED_FAILED,
    TASK_VARIABLE,
    TERMINATION_LOG,
    TOO_SLOW_EXIT_CODE,
    Report,
    Task,
)

AGENT_VOLUME, CLAIM_VOLUME = "pretune-agent", "pretune-claim"

SEED = "seed"

# Of seal, prove and import. Seal and prove run beside the engine: what they request, the node needs
# beside what a serving pod needs. They wait most of the time. A quota on limits accepts them.
_SEAL_LIMITS = {"cpu": "500m", "memory": "256Mi"}
_SEAL_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
_COPIED_RESOURCES = ("cpu", "memory", "ephemeral-storage")

# Linux refuses to start a process with a variable of 128 KiB (MAX_ARG_STRLEN).
MAX_TASK_CHARACTERS = 96 * 1024  # all of them ASCII

# Of the capabilities that the engine may add, those that decide which files it can read and write.
_FILE_CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"}

_AGENT = f"{AGENT_MOUNT}/{AGENT_FILE}"
_PYTHON = "python3 -I -S"  # without site-packages of the image: a .pth file may import anything
_HAS_PYTHON = "command -v python3 > /dev/null"
_HAS_PYTHON_38 = f"{_PYTHON} -c 'import sys; sys.exit(sys.version_info < (3, 8))'"
_NO_PYTHON = "the image has no python3 on its PATH"
_OLD_PYTHON = "python3 in the image is older than 3.8"
_NO_AGENT = f"{_AGENT} is not there: the agent's ConfigMap was missing when the pod started"
_CHANGED_AGENT = (
    f"{_AGENT} is not this release's agent: its ConfigMap was changed; nothing of it ran"
)
_NO_REPORT = "the agent ended with status %s and no report; see the log of this container"

# Runs the agent from the bytes that it has compared with the digest, and reads them once: another
# person may have written the ConfigMap, and may replace it at any moment. Arguments: the agent, its
# sha256, the report if that differs, the file for it, and what the agent gets.
_RUN_AGENT = f"""
import hashlib, sys
agent, digest, report, log = sys.argv[1:5]
del sys.argv[1:5]
with open(agent, "rb") as file:
    content = file.read()
if hashlib.sha256(content).hexdigest() != digest:
    with open(log, "w") as file:
        file.write(report)
    sys.exit({AGENT_CHANGED_EXIT_CODE})
exec(compile(content, agent, "exec"))
""".strip()


def build_agent_container(
    name: str,
    verb: str,
    engine: Object,
    task: Task,
    resources: Object,
    claim: Object,
    mounts: Iterable[Object],
) -> Object:
    """Return a container that runs the agent's `verb` in the engine's image.

    Its report is its termination message. claim: the mount of the claim, without its path.
    """
    container = {
        "name": name,
        "image": engine.get("image"),
        "imagePullPolicy": engine.get("imagePullPolicy"),
        # By its path, since the engine's PATH may not lead to it.
        "command": ["/bin/sh", "-c", build_script(verb, _paths(mounts))],
        "env": [
            *select_path_variables(engine.get("env") or []),
            *build_task_variables(task),
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ],
        "resources": resources,
        "securityContext": build_security_context(engine.get("securityContext") or {}),
        "volumeMounts": [
            {"name": AGENT_VOLUME, "mountPath": AGENT_MOUNT, "readOnly": True},
            {**claim, "mountPath": CLAIM_MOUNT},
            *mounts,
        ],
    }
    return {field: value for field, value in container.items() if value is not None}


def build_seed_container(
    name: str, engine: Object, task: Task, resources: Object, claim: str, mounts: Iterable[Object]
) -> Object:
    """Return a container that runs seed and succeeds whatever happens.

    claim: the name of the volume that mounts the claim, here read-only.
    """
    mount = {"name": claim, "readOnly": True}
    task = _fit_variable(task)
    container = build_agent_container(name, SEED, engine, task, resources, mount, mounts)
    return {**container, "terminationMessagePolicy": "File"}


def _fit_variable(task: Task) -> Task:
    """Return the task, without the engine's command where that is too long for a variable.

    A script can be that long. The agent then looks for the engine on PATH.
    """
    return task if len(task.dump()) <= MAX_TASK_CHARACTERS else replace(task, command=[])


# --- the script


def _paths(mounts: Iterable[Object]) -> tuple[str, ...]:
    return tuple(mount["mountPath"] for mount in mounts)


@functools.cache
def build_script(verb: str, folders: tuple[str, ...] = ()) -> str:
    """Return the shell script that runs the agent, and reports what the agent cannot report.

    folders: that seed copies a bundle's parts into.

    Nothing in it means anything to the kubelet, which expands `$(…)`.
    """
    return _build_seed_script(folders) if verb == SEED else _build_script(verb)


def _build_script(verb: str) -> str:
    lines = (
        f'fail() {{ printf %s "$1" > {TERMINATION_LOG}; exit 1; }}',
        *_explain_no_agent(verb),
        f"exec {_run(verb)}",
    )
    return "\n".join(lines)


def _build_seed_script(folders: Iterable[str]) -> str:
    """Return seed's script, which ends with 0 whatever happens.

    It looks for what is wrong only after the agent failed: that saves a start of python3 in every
    pod. An agent that was killed leaves half a bundle, so the folders are emptied here too. TERM is
    sent when the pod is deleted; a shell that is process 1 ignores it without a trap.
    """
    lines = (
        f'fail() {{ printf "$@" > {TERMINATION_LOG}; exit 0; }}',
        "trap 'exit 0' TERM",
        f"{_run(SEED)} &",
        "wait $!",
        "status=$?",
        '[ "$status" = 0 ] && exit 0',
        *(f"rm -rf -- {folder}/* {folder}/.[!.]* {folder}/..?*" for folder in folders),
        # These two are reported already.
        f'[ "$status" = {TOO_SLOW_EXIT_CODE} ] && exit 0',
        f'[ "$status" = {AGENT_CHANGED_EXIT_CODE} ] && exit 0',
        *_explain_no_agent(SEED),
        f'fail {_report(SEED, SEED_FAILED, _NO_REPORT)} "$status"',
    )
    return "\n".join(lines)


def _run(verb: str) -> str:
    """Return the words that run the agent, if it is this release's."""
    report = _report(verb, reasons.AGENT_CHANGED, _CHANGED_AGENT)
    words = f"{_PYTHON} -c {shlex.quote(_RUN_AGENT)} {_AGENT} {agent_digest()} {report}"
    return f"{words} {TERMINATION_LOG} {verb}"


def _explain_no_agent(verb: str) -> tuple[str, ...]:
    """Return the lines that report why the agent cannot run."""
    return (
        f"{_HAS_PYTHON} || fail {_report(verb, reasons.NO_PYTHON, _NO_PYTHON)}",
        f"{_HAS_PYTHON_38} || fail {_report(verb, reasons.NO_PYTHON, _OLD_PYTHON)}",
        f"[ -f {_AGENT} ] || fail {_report(verb, reasons.AGENT_MISSING, _NO_AGENT)}",
    )


def _report(verb: str, reason: str, message: str) -> str:
    return shlex.quote(Report(by=verb, reason=reason, message=message).dump())


# --- variables, resources, rights


def build_task_variables(task: Task) -> list[Object]:
    """Return the variables that hold the agent's task and its pod's uid.

    The kubelet replaces `$(NAME)` in a value; it hands over `$$` as one dollar.
    """
    return [
        {"name": POD_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": TASK_VARIABLE, "value": task.dump().replace("$", "$$")},
    ]


def select_path_variables(env: list[Object]) -> list[Object]:
    """Return the engine's PATH, if it sets one, after the variables that PATH refers to."""
    needed, selected = {"PATH"}, []
    for variable in reversed(env):
        if variable["name"] in needed:
            selected.append(copy.deepcopy(variable))
            needed.update(list_references(variable.get("value") or ""))
    return selected[::-1]


def build_seal_resources(engine: Object) -> Object:
    """Return the resources of a container that seals, proves or imports.

    Requests equal limits where the engine's do, so that a Guaranteed pod stays Guaranteed.
    """
    resources: Mapping[str, Any] = engine.get("resources") or {}
    limits = resources.get("limits") or {}
    requests = {**limits, **(resources.get("requests") or {})}
    is_guaranteed = all(
        name in limits and _are_equal(requests[name], limits[name]) for name in _SEAL_LIMITS
    )
    requested = _SEAL_LIMITS if is_guaranteed else _SEAL_REQUESTS
    return {"limits": dict(_SEAL_LIMITS), "requests": dict(requested)}


def _are_equal(amount: Any, other: Any) -> bool:
    """Whether two quantities are equal: 4 is "4000m". What is no quantity equals none."""
    try:
        return parse_quantity(amount) == parse_quantity(other)
    except ValueError:
        return False


def copy_resources(engine: Object) -> Object:
    """Return the engine's cpu, memory and ephemeral-storage.

    In an ordinary init container they add nothing to what the pod requests.
    """
    resources: Mapping[str, Any] = engine.get("resources") or {}
    copied = {
        kind: {
            name: amount
            for name, amount in (resources.get(kind) or {}).items()
            if name in _COPIED_RESOURCES
        }
        for kind in ("limits", "requests")
    }
    return {kind: amounts for kind, amounts in copied.items() if amounts}


def build_security_context(engine: Object) -> Object:
    """Return the engine's security context without what only a GPU program needs.

    So files are read and written as the engine does it. It passes Pod Security "restricted" where
    the engine's does.
    """
    context = copy.deepcopy(
        {name: value for name, value in engine.items() if name not in ("privileged", "procMount")}
    )
    context["allowPrivilegeEscalation"] = False
    capabilities = context.get("capabilities") or {}
    if capabilities.get("add"):
        capabilities["add"] = [
            name for name in capabilities["add"] if name.removeprefix("CAP_") in _FILE_CAPABILITIES
        ]
    return context
