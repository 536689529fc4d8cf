"""Who is who: a pod template's fingerprint, where its pods run, and the id of the bundle that this makes. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from pretune.api.names import SEED_CONTAINER, TARGET
from pretune.api.spec import Spec, Target
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.podspec import canonical
from pretune.podspec.template import (
    device_claims,
    engine_of,
    gpu_resources,
    is_sidecar,
    required_terms,
)
from pretune.protocol import Inputs


def fingerprint(template: Object, engine_name: str) -> str:
    """64 hex: what can change the engine's tuning. The same for what an author wrote and what the API server stored of it.

    In: the engine's image, command, args, env, envFrom, GPUs (resource and count, or claim templates), and the same but for the
    GPUs of the init containers, in order: they may prepare files that the engine reads.
    Not in: the override variable and the seed container, which we add ourselves; values behind references (never read); native
    sidecars and other containers (beside the engine, not before it); names, labels, replicas, probes, ports, mounts, cpu, memory;
    placement, which has its own place in the bundle's id.
    """
    engine = engine_of(template, engine_name)
    init = template["spec"].get("initContainers") or ()
    before = [one for one in init if not is_sidecar(one) and one["name"] != SEED_CONTAINER]
    form = {
        "engine": canonical.program(engine, without=(OVERRIDE,)),
        "gpus": gpu_resources(engine),
        "claims": _claim_sources(template, engine),
        "init": [canonical.program(one) for one in before],
    }
    return hashlib.sha256(canonical.to_json(form).encode()).hexdigest()


def _claim_sources(template: Object, engine: Object) -> list[Any]:
    """Of each device claim of the engine: where the pod takes it from, and which request of it."""
    sources = {one["name"]: one for one in template["spec"].get("resourceClaims") or ()}
    return [
        canonical.drop_empty(
            {**sources.get(one["name"], {}), "name": None, "request": one.get("request")}
        )
        for one in device_claims(engine)
    ]


def placement(template: Object, target: Target) -> dict[str, Any]:
    """Where the target's pods run, canonical: the target's nodeSelector laid over the pod's own, and its required node terms.

    Part of the bundle's id, so that two GPU products never share a folder. {} means anywhere.
    """
    pod = template["spec"]
    terms = {
        "nodeSelector": {**(pod.get("nodeSelector") or {}), **target.node_selector},
        "nodeAffinity": canonical.node_terms(required_terms(pod)),
    }
    return {name: one for name, one in terms.items() if one}


def inputs(template: Object, spec: Spec, target: Target) -> Inputs:
    """All that the bundle's id is made of; its bundle_id() is the id. Raises Refused as engine_of does."""
    return Inputs(
        fingerprint=fingerprint(template, spec.engine_container),
        revision=spec.revision,
        target=target.name,
        nodeSelector=placement(template, target),
    )


def target_of(pod: Object, spec: Spec) -> Target | None:
    """The target whose bundle a consumer gets; None: it cannot be told. `pod`: whatever has metadata.annotations and
    spec.nodeSelector, a pod or its template.

    The only target of the cache; else the one that the annotation pretune.dev/target names; else the only one whose nodeSelector
    the pod's own contains.
    """
    if len(spec.targets) == 1:
        return spec.targets[0]
    if named := ((pod.get("metadata") or {}).get("annotations") or {}).get(TARGET):
        return next((one for one in spec.targets if one.name == named), None)
    own = (pod["spec"].get("nodeSelector") or {}).items()
    fitting = [one for one in spec.targets if one.node_selector.items() <= own]
    return fitting[0] if len(fitting) == 1 else None
