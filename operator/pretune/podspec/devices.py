"""How many GPUs an engine uses: by resource, by device claim (DRA), and by its own words. Pure.

A claim's devices are named in its ResourceClaimTemplate, of resource.k8s.io/v1, v1beta2 or v1beta1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pretune.api.types import Object
from pretune.podspec import canonical
from pretune.podspec.template import (
    command_words,
    device_claims,
    engine_type,
    gpu_resources,
    resource_amounts,
)

# Counted for an engine of which neither claims nor words say how many GPUs it uses: several, since
# one alone is treated differently.
UNKNOWN_GPUS = 2
MAX_GPUS = 9_999  # of an engine; more are read as so many

# Words in the name of a device class, or of a resource. A part of a word says nothing: ibm, netapp.
_GPU_WORD = re.compile(r"v?gpus?|mig|rtx\d*|(a|b|gb|gh|h|v)\d{2,3}|l4|l20|l40s?|t4")
_NETWORK_CARD = re.compile(
    r"((infiniband|network|rdma|sriov)[a-z]*|dranet|efa|ib|net|netdev|nics?|roce)\d*"
)


def count_used_gpus(template: Object, engine: Object, claims: Mapping[str, Object]) -> int:
    """Return how many GPUs an engine may use: what it asks for, or its ranks if these are more.

    UNKNOWN_GPUS where neither says it, and at most MAX_GPUS. claims: ResourceClaimTemplates by
    name, as far as they were read. A flag whose value is unknown (`$(TP)`) says nothing.
    """
    asked = (
        sum(gpu_resources(engine).values())
        or _count_renamed(engine)
        or count_devices(template, engine, claims)
    )
    ranks = engine_type(engine).count_ranks(command_words(engine))
    return min(MAX_GPUS, max(UNKNOWN_GPUS if asked is None else asked, ranks or 0))


def count_devices(template: Object, engine: Object, claims: Mapping[str, Object]) -> int | None:
    """Return how many GPUs the engine's device claims are for; None: unknown, or all of a node."""
    total = 0
    for classes, count in _requests(template, engine, claims):
        if any(_may_be_gpu(name) for name in classes):
            if count is None:
                return None
            total += count
    return total


def _may_be_gpu(device_class: str) -> bool:
    """Whether a device class is not, by its name, one of network cards or of compute domains."""
    name = device_class.lower()
    words = _words(re.sub(r"\.net(work)?$", "", name))  # that is a domain
    if any(map(_GPU_WORD.fullmatch, words)):
        return True
    return not (
        name == "dra.net" or "compute-domain" in name or any(map(_NETWORK_CARD.fullmatch, words))
    )


def asks_for_gpu(engine: Object) -> bool:
    """Whether the engine asks for a resource of a device plugin that is for GPUs, by its name."""
    return any(
        _parse_count(amount) > 0 and ("gpu" in name.partition("/")[2].lower() or _is_renamed(name))
        for name, amount in resource_amounts(engine).items()
    )


def _count_renamed(engine: Object) -> int:
    """Return how many GPUs the engine asks for by names that NVIDIA's device plugin was given.

    Of other vendors' resources nobody knows the unit: it may be memory, or a hundredth of a GPU.
    """
    amounts = resource_amounts(engine).items()
    return sum(_parse_count(amount) for name, amount in amounts if _is_renamed(name))


def _is_renamed(resource: str) -> bool:
    """Whether a resource is NVIDIA's, and has a GPU as a word of its name: nvidia.com/h100.

    NVIDIA's network cards have names in the same domain: nvidia.com/hostdev.
    """
    vendor, _, device = resource.lower().partition("/")
    return vendor == "nvidia.com" and any(map(_GPU_WORD.fullmatch, _words(device)))


def _parse_count(amount: Any) -> int:
    """Return an amount of devices as a number; 0 for what is none: no such pod is created."""
    try:
        return max(0, math.ceil(canonical.parse_quantity(amount)))
    except ValueError:
        return 0


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name)


def _requests(
    template: Object, engine: Object, claims: Mapping[str, Object]
) -> Iterator[tuple[list[str], int | None]]:
    """Yield device classes and count of each request that the engine's claims make.

    [""] and None for a claim whose template is unknown.
    """
    sources = {source["name"]: source for source in template["spec"].get("resourceClaims") or ()}
    for claim in device_claims(engine):
        name = sources.get(claim["name"], {}).get("resourceClaimTemplateName") or ""
        spec = ((claims.get(name) or {}).get("spec") or {}).get("spec") or {}
        requests = (spec.get("devices") or {}).get("requests") or ()
        wanted = (claim.get("request") or "").partition("/")[0]
        chosen = [each for each in requests if wanted in ("", each.get("name"))]
        if not chosen:
            yield [""], None
        for request in chosen:
            options = request.get("firstAvailable") or [request.get("exactly") or request]
            counts = [_count(option) for option in options]
            yield (
                [str(option.get("deviceClassName") or "") for option in options],
                None if None in counts else max(count for count in counts if count is not None),
            )


def _count(option: Object) -> int | None:
    """Return how many devices one option of a request is for; None: all, or unknown."""
    if option.get("allocationMode", "ExactCount") != "ExactCount":
        return None
    count = option.get("count", 1)
    return count if isinstance(count, int) and 0 < count <= MAX_GPUS else None
