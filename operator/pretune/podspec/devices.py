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
MAX_GPUS = 9_999  # of an engine; more are read as so many

# Words in the name of a device class, or of a resource. A part of a word says nothing: ibm, netapp.
_GPU = re.compile(r"v?gpus?|mig|rtx\d*|(a|b|gb|gh|h|v)\d{2,3}|l4|l20|l40s?|t4")
_NETWORK_CARD = re.compile(
    r"((infiniband|network|rdma|sriov)[a-z]*|dranet|efa|ib|net|netdev|nics?|roce)\d*"
)


def count_used_gpus(template: Object, engine: Object, claims: Mapping[str, Object]) -> int:
    """Return how many GPUs an engine may use: what it asks for, or its ranks if these are more.

    UNKNOWN_GPUS where neither says it, and at most MAX_GPUS. claims: ResourceClaimTemplates by
    name, as far as they were read. A flag whose value is unknown (`$(TP)`) says nothing.
    """
    asked = sum(gpu_resources(engine).values()) or count_devices(template, engine, claims)
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
    if any(map(_GPU.fullmatch, words)):
        return True
    return not (
        name == "dra.net" or "compute-domain" in name or any(map(_NETWORK_CARD.fullmatch, words))
    )


def is_gpu_resource(name: str) -> bool:
    """Whether a resource of a device plugin is for GPUs, by its name: nvidia.com/h100.

    NVIDIA's network cards have names in the same domain: nvidia.com/hostdev.
    """
    vendor, _, device = name.lower().partition("/")
    if "gpu" in device:
        return True
    return vendor == "nvidia.com" and any(map(_GPU.fullmatch, _words(device)))


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
