"""The engine in a tuning pod: the serving one, but for the override variable, probes, lifecycle hooks, its place and where its last
words are taken from (docs/dev/invariants.md, 10)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pretune.api.types import Object
from pretune.engines.vllm import cli
from pretune.podspec.template import command_words
from pretune.protocol import CLAIM_MOUNT, TACTICS_MOUNT

TACTICS_VOLUME = "pretune-tactics"
PERIOD = 2  # seconds between two questions to the engine
_HANDLERS = ("httpGet", "exec", "grpc", "tcpSocket")


def sidecar(container: Object) -> Object:
    """The container as a native sidecar. Its probes and hooks are left out: a startup probe would make those after it wait,
    a liveness probe would restart it, and nothing routes to it."""
    left_out = (
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "lifecycle",
        "restartPolicyRules",
    )
    made = {name: copy.deepcopy(value) for name, value in container.items() if name not in left_out}
    return {**made, "restartPolicy": "Always"}


def engine_sidecar(engine: Object, deadline: int, override: str = TACTICS_MOUNT) -> Object:
    """The engine, started once: to tune, or to prove that it need not. It counts as started when it would count as ready.

    override: its folder of tactics: an emptyDir's, where it may write, or (tactics_on_claim()) one whose mount is the caller's.
    deadline: seconds that its pod may take. Its last log lines become its termination message if it fails without one: vLLM
    writes none, and the attempt's reason would be an exit code (docs/decisions/0002).
    """
    made = sidecar(engine)
    made["env"] = _with(made.get("env") or [], {"name": cli.OVERRIDE, "value": override})
    if override == TACTICS_MOUNT:
        made["volumeMounts"] = [
            *(made.get("volumeMounts") or ()),
            {"name": TACTICS_VOLUME, "mountPath": TACTICS_MOUNT},
        ]
    made["terminationMessagePolicy"] = "FallbackToLogsOnError"
    made["startupProbe"] = {
        **copy.deepcopy(_question(engine)),
        "periodSeconds": PERIOD,
        "successThreshold": 1,
        "failureThreshold": deadline // PERIOD + 60,  # the pod's own deadline ends it first
    }
    return made


def tactics_on_claim(sub_path: str, folder: str, bundle: str) -> str:
    """The override variable's value where the claim itself is mounted at CLAIM_MOUNT: the bundle's folder, as the engine finds it; no
    link, no variable for the kubelet. folder: the cache's."""
    below = [name for name in sub_path.split("/") if name not in ("", ".")]
    return "/".join([CLAIM_MOUNT, *below, folder, "bundles", bundle, "tactics"]).replace("$", "$$")


def ready_url(engine: Object) -> str | None:
    """Where seal asks an HTTP engine whether it is ready. None: not over HTTP, or at a port whose name is unknown."""
    probe = _question(engine).get("httpGet")
    if not probe:
        return None
    port = probe.get("port")
    if isinstance(port, str) and not port.isdigit():
        port = next(
            (
                one.get("containerPort")
                for one in engine.get("ports") or ()
                if one.get("name") == port
            ),
            None,
        )
    if not port:
        return None
    host = probe.get("host") or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    path = probe.get("path") or "/"
    return f"{(probe.get('scheme') or 'HTTP').lower()}://{host}:{port}{path if path.startswith('/') else '/' + path}"


def ready_headers(engine: Object) -> dict[str, str]:
    """The headers to ask with: those of the probe (a repeated one counts once)."""
    headers = _question(engine).get("httpGet", {}).get("httpHeaders") or ()
    return {one.get("name", ""): one.get("value", "") for one in headers}


def _question(engine: Object) -> dict[str, Any]:
    """What tells that the engine is ready: of its readiness probe, else its startup probe, the handler and the timeout.

    Readiness comes first, since a startup probe may pass before the warm-up (Ray, Dynamo, KServe multinode).
    """
    for name in ("readinessProbe", "startupProbe"):
        probe = engine.get(name) or {}
        if any(probe.get(one) for one in _HANDLERS):
            return {one: probe[one] for one in (*_HANDLERS, "timeoutSeconds") if probe.get(one)}
    return {
        "httpGet": {"path": cli.HEALTH_PATH, "port": cli.port(command_words(engine))},
        "timeoutSeconds": 5,
    }


def _with(env: list[Object], variable: Mapping[str, str]) -> list[Object]:
    """The variable in the place where its name stands first, so that what refers to it after that still does; else at the end."""
    names = [one["name"] for one in env]
    place = names.index(variable["name"]) if variable["name"] in names else len(env)
    kept = [one for one in env if one["name"] != variable["name"]]
    return [*kept[:place], dict(variable), *kept[place:]]
