"""How many GPUs an engine uses: by resource, by device claim (DRA), and by its own words. Pure.

A claim's devices are named in its ResourceClaimTemplate, of resource.k8s.io/v1, v1beta2 or v1beta1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pretune.api.types import Object
from pretune.podspec.template import command_words, device_claims, engine_type, gpu_resources

# Counted for an engine of which neither claims nor words say how many GPUs it uses: several, since
# one alone is treated differently.
UNKNOWN_GPUS = 2

# Device classes of network cards, and of what connects GPUs of several nodes.
_NO_GPU = re.compile(
    r"(^|[^a-z])(net|network|nic|rdma|sriov|roce|efa|ib|infiniband|dra-?net|compute-domain)"
    r"|network|sriov",
    re.IGNORECASE,
)


def count_used_gpus(template: Object, engine: Object, claims: Mapping[str, Object]) -> int:
    """Return how many GPUs an engine may use: what it asks for, or its ranks if these are more.

    UNKNOWN_GPUS where neither says it. claims: ResourceClaimTemplates by name, as far as they were
    read. A flag whose value is unknown (`$(TP)`) says nothing.
    """
    asked = sum(gpu_resources(engine).values()) or count_devices(template, engine, claims)
    ranks = engine_type(engine).count_ranks(command_words(engine))
    if asked is None:
        return max(UNKNOWN_GPUS, ranks or 0)
    return max(asked, ranks or 0)


def count_devices(template: Object, engine: Object, claims: Mapping[str, Object]) -> int | None:
    """Return how many GPUs the engine's device claims are for; None: unknown, or all of a node."""
    total = 0
    for classes, count in _requests(template, engine, claims):
        if any(not _NO_GPU.search(name) for name in classes):
            if count is None:
                return None
            total += count
    return total


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
    return count if isinstance(count, int) and 0 < count < 10_000 else None
