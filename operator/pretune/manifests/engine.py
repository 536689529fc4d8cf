"""The engine in a tuning pod, a copy of the serving one (docs/dev/invariants.md, 10).

It differs in the variables and mounts of its parts, in probes and lifecycle hooks, in ports of the
node, in its place, and in where its termination message comes from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pretune.api.types import Object
from pretune.podspec.template import command_words, engine_type

PROBE_PERIOD_SECONDS = 2
_HANDLERS = ("httpGet", "exec", "grpc", "tcpSocket")


def sidecar(container: Object) -> Object:
    """Return the container as a native sidecar.

    Its probes and hooks are left out: a startup probe would make those after it wait, a liveness
    probe would restart it, and nothing routes to it.
    """
    left_out = (
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "lifecycle",
        "restartPolicyRules",
    )
    kept = {name: value for name, value in container.items() if name not in left_out}
    return {**without_host_ports(kept), "restartPolicy": "Always"}


def without_host_ports(container: Object) -> Object:
    """Return a copy of the container that takes no port of its node.

    Requests for a port that serves would reach the copy, or no pod that serves could take it.
    """
    copied = copy.deepcopy(container)
    for port in copied.get("ports") or ():
        port.pop("hostPort", None)
        port.pop("hostIP", None)
    return copied


def engine_sidecar(
    engine: Object,
    deadline_seconds: int,
    variables: Mapping[str, str],
    mounts: Iterable[Object],
) -> Object:
    """Return the engine, to be started once: to tune, or to prove that it need not.

    It counts as started when it would count as ready. variables, mounts: of its parts
    (manifests/parts.py). deadline_seconds: of its pod. If it fails without a termination message,
    its last log lines become that: vLLM writes none, and the attempt's reason would be an exit code
    (docs/decisions/0002).
    """
    container = sidecar(engine)
    env = container.get("env") or []
    for name, value in variables.items():
        env = _with_variable(env, name, value)
    container["env"] = env
    if mounts := [*(container.get("volumeMounts") or ()), *copy.deepcopy(list(mounts))]:
        container["volumeMounts"] = mounts
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    container["startupProbe"] = {
        **copy.deepcopy(_readiness_handler(engine)),
        "periodSeconds": PROBE_PERIOD_SECONDS,
        "successThreshold": 1,
        # The pod's own deadline ends it first.
        "failureThreshold": deadline_seconds // PROBE_PERIOD_SECONDS + 60,
    }
    return container


def ready_url(engine: Object) -> str | None:
    """Return where seal asks an HTTP engine whether it is ready.

    None where that is not over HTTP, or at a port whose name is unknown.
    """
    probe = _readiness_handler(engine).get("httpGet") or {}
    port = _port_number(engine, probe.get("port"))
    if not port:
        return None
    path = probe.get("path") or "/"
    scheme = (probe.get("scheme") or "HTTP").lower()
    return f"{scheme}://127.0.0.1:{port}/{path.removeprefix('/')}"


def health_urls(engine: Object) -> list[str]:
    """Return where the engine may say itself that it is ready; [] where ready_url() asks it.

    A tcpSocket or exec probe may pass before the engine is loaded (KServe opens its port first), so
    that it shows nothing about an empty folder.
    """
    if ready_url(engine):
        return []
    kind, words = engine_type(engine), command_words(engine)
    probed = (_readiness_handler(engine).get("tcpSocket") or {}).get("port")
    port = _port_number(engine, probed) or kind.read_port(words)
    scheme = "https" if kind.serves_https(words) else "http"
    paths = (kind.health_path, *kind.other_health_paths)
    return [f"{scheme}://127.0.0.1:{port}{path}" for path in paths]


def _port_number(engine: Object, port: Any) -> Any:
    """Return a probe's port, by its number where it is a name; None: unknown."""
    if not isinstance(port, str) or port.isdigit():
        return port
    named = (each for each in engine.get("ports") or () if each.get("name") == port)
    return next((each.get("containerPort") for each in named), None)


def ready_headers(engine: Object) -> dict[str, str]:
    """Return the headers to ask with: those of the probe (a repeated one counts once)."""
    headers = _readiness_handler(engine).get("httpGet", {}).get("httpHeaders") or ()
    return {header.get("name", ""): header.get("value", "") for header in headers}


def _readiness_handler(engine: Object) -> dict[str, Any]:
    """Return what shows that the engine is ready: a handler and its timeout.

    They are those of its readiness probe, else of its startup probe, else those that its type has.
    Readiness comes first, since a startup probe may pass before the warm-up (Ray, Dynamo, KServe
    multinode). A host in a handler is left out: what answers there, on the node or elsewhere, may
    be an engine that serves.
    """
    for name in ("readinessProbe", "startupProbe"):
        probe = engine.get(name) or {}
        if any(probe.get(handler) for handler in _HANDLERS):
            fields = (*_HANDLERS, "timeoutSeconds")
            return {field: _without_host(probe[field]) for field in fields if probe.get(field)}
    kind, words = engine_type(engine), command_words(engine)
    get = {"path": kind.health_path, "port": kind.read_port(words)}
    if kind.serves_https(words):
        get["scheme"] = "HTTPS"
    return {"httpGet": get, "timeoutSeconds": 5}


def _without_host(field: Any) -> Any:
    if not isinstance(field, dict):
        return field
    return {name: value for name, value in field.items() if name != "host"}


def _with_variable(env: list[Object], name: str, value: str) -> list[Object]:
    """Return env with the variable in the place where its name stands first, else at its end.

    So what refers to it after that still does.
    """
    names = [variable["name"] for variable in env]
    place = names.index(name) if name in names else len(env)
    kept = [variable for variable in env if variable["name"] != name]
    return [*kept[:place], {"name": name, "value": value}, *kept[place:]]
