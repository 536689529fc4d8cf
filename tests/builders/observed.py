"""What the controller observes: everything of one cache, and the origins of its consumers."""

from __future__ import annotations

from typing import Any

from pretune.api.reasons import Refused
from pretune.api.spec import Spec, Target
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.podspec import identity
from pretune.podspec.workloads import origin_key
from pretune.policy.model import Observed, Origin

from tests.builders.caches import cache, claim
from tests.builders.constants import AGENT, KEY, NOW, SETTINGS
from tests.builders.pods import Consumer
from tests.builders.templates import serving_template

WORKLOAD = "Deployment/qwen3"  # of every origin, unless a test names another one


def observed(the_cache: Object | None = None, **fields: Any) -> Observed:
    """Return what is observed of a cache: by default one with its claim and agent, and no Jobs."""
    the_cache = the_cache or cache()
    default: dict[str, Any] = {
        "key": KEY,
        "settings": SETTINGS,
        "agent_name": AGENT,
        "cache": the_cache,
        "source": (the_cache["spec"].get("source") or {}).get("template"),
        "claim": claim(),
        "agents": ({"kind": "ConfigMap", "metadata": {"name": AGENT}},),
    }
    return Observed(**{**default, **fields})


def origin(
    owner: str = "a",
    revision: int = 1,
    of: Object | Refused | None = None,
    created: float = NOW - 120,
    workload: Object | None = None,
) -> dict[str, Origin]:
    """Return origins by key: one ReplicaSet's, by default with the image `vllm:<owner>`."""
    written = serving_template(image=f"vllm:{owner}") if of is None else of
    key, order = origin_key(Consumer(owner)), (revision, format_timestamp(created))
    name = f"{workload['kind']}/{workload['metadata']['name']}" if workload else WORKLOAD
    return {key: Origin("ReplicaSet", owner, written, order, workload, name)}


def bundle_of(
    owner: str = "a", the_cache: Object | None = None, target: Target | None = None
) -> str:
    """Return the id of the bundle that an origin's pods need."""
    spec = Spec.from_cache(the_cache or cache())
    return identity.inputs(
        serving_template(image=f"vllm:{owner}"), spec, target or spec.targets[0]
    ).bundle_id()


def fingerprint_of(owner: str = "a") -> str:
    return identity.fingerprint(serving_template(image=f"vllm:{owner}"), "")
