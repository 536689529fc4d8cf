"""A template's fingerprint, where its pods run, and the id of the bundle that follows. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pretune.api.names import SEED_CONTAINER, TARGET
from pretune.api.spec import Spec, Target
from pretune.api.types import Object
from pretune.podspec import canonical
from pretune.podspec.template import (
    device_claims,
    engine_of,
    engine_type,
    gpu_resources,
    is_empty_term,
    is_sidecar,
    required_terms,
)
from pretune.protocol import Inputs

# Fingerprints by the hash of what they are made of, as it is written: each reconcile needs those of
# all consumers' templates again, and most pods have the same. 4,096 are 1 MiB.
MAX_KNOWN = 4096
_known: dict[bytes, str] = {}


def fingerprint(template: Object, engine_name: str) -> str:
    """Return 64 hex digits that stand for all that can change the engine's tuning.

    The same for what an author wrote and for what the API server stored of it.
    In: the engine's image, command, args, env, envFrom and GPUs (resource and count, or claim
    templates); the same, without GPUs, of the init containers, in order: they may prepare files
    that the engine reads.
    Also in, where the engine has more than one part: the names of the others.
    Not in: the variables of its parts and the seed container, which we add; values behind
    references (never read); native sidecars and other containers (they run beside the engine, not
    before it); names, labels, replicas, probes, ports, mounts, cpu, memory; placement, which the
    bundle's id has beside the fingerprint.
    """
    engine = engine_of(template, engine_name)
    parts = engine_type(engine).parts
    before_engine = [
        container
        for container in template["spec"].get("initContainers") or ()
        if not is_sidecar(container) and container["name"] != SEED_CONTAINER
    ]
    variables = [part.variable for part in parts]
    claims = template["spec"].get("resourceClaims")
    written = json.dumps([engine, before_engine, claims, variables, [part.name for part in parts]])
    key = hashlib.sha256(written.encode()).digest()
    if key in _known:
        return _known[key]
    content = {
        "engine": canonical.program(engine, without=variables),
        "gpus": gpu_resources(engine),
        "claims": _device_sources(template, engine),
        "init": [canonical.program(container) for container in before_engine],
    }
    # A bundle without a part's folder is no bundle of an engine that has the part.
    if others := [part.name for part in parts[1:]]:
        content["parts"] = others
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    _known[key] = hashlib.sha256(canonical.to_json(content).encode()).hexdigest()
    return _known[key]


def _device_sources(template: Object, engine: Object) -> list[Any]:
    """Return, for each device claim of the engine, its source in the pod and its request."""
    sources = {source["name"]: source for source in template["spec"].get("resourceClaims") or ()}
    return [
        canonical.drop_empty(
            {**sources.get(claim["name"], {}), "name": None, "request": claim.get("request")}
        )
        for claim in device_claims(engine)
    ]


def placement(template: Object, target: Target) -> dict[str, Any]:
    """Return where the target's pods run, in one form; {} means anywhere.

    That is the target's nodeSelector laid over the pod's own, and the pod's required node terms.
    Part of the bundle's id, so that two GPU products never share a folder.
    """
    pod = template["spec"]
    terms = {
        "nodeSelector": {**(pod.get("nodeSelector") or {}), **target.node_selector},
        "nodeAffinity": canonical.node_terms(required_terms(pod)),
    }
    return {name: term for name, term in terms.items() if term}


def inputs(template: Object, spec: Spec, target: Target) -> Inputs:
    """Return all that the bundle's id is made of; its bundle_id() is the id.

    Raises Refused as engine_of does.
    """
    return inputs_of(fingerprint(template, spec.engine_container), template, spec, target)


def inputs_of(engine: str, template: Object, spec: Spec, target: Target) -> Inputs:
    """Return the same for a template whose engine has this fingerprint."""
    return Inputs(
        fingerprint=engine,
        revision=spec.revision,
        target=target.name,
        nodeSelector=placement(template, target),
    )


def target_of(pod: Object, spec: Spec) -> Target | None:
    """Return the target whose bundle a consumer gets; None if it is unknown, or none fits.

    The only target of the cache; else the one that the annotation pretune.dev/target names; else
    the only one whose nodeSelector is part of the pod's own. In any case one on whose nodes the pod
    may run: a bundle of another GPU product would be tuned again at each start.
    pod: a pod or a template: metadata.annotations, spec.nodeSelector and spec.affinity are read.
    """
    target = _named_target(pod, spec)
    return target if target is not None and may_run_on(pod["spec"], target) else None


def _named_target(pod: Object, spec: Spec) -> Target | None:
    if len(spec.targets) == 1:
        return spec.targets[0]
    if name := ((pod.get("metadata") or {}).get("annotations") or {}).get(TARGET):
        return next((target for target in spec.targets if target.name == name), None)
    selector = (pod["spec"].get("nodeSelector") or {}).items()
    fitting = [target for target in spec.targets if target.node_selector.items() <= selector]
    return fitting[0] if len(fitting) == 1 else None


def may_run_on(pod_spec: Object, target: Target) -> bool:
    """Whether no node term of a pod excludes the labels that the target's nodes have."""
    labels, selector = target.node_selector, pod_spec.get("nodeSelector") or {}
    if any(selector.get(name, value) != value for name, value in labels.items()):
        return False
    terms = required_terms(pod_spec)
    return not terms or any(
        all(_may_hold(expression, labels) for expression in term.get("matchExpressions") or ())
        for term in terms
        if not is_empty_term(term)
    )


def _may_hold(expression: Object, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels, and others that are unknown, may meet an expression."""
    operator, values = expression.get("operator"), expression.get("values") or ()
    label = labels.get(expression.get("key") or "")
    if label is None:
        return True
    if operator == "In":
        return label in values
    if operator == "NotIn":
        return label not in values
    return bool(operator != "DoesNotExist")
