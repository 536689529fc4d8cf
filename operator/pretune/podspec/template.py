"""What a pod template says: which container is the engine, what it is called with, how many GPUs it asks for, which nodes it
requires. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.podspec import canonical

# A GPU by NVIDIA's device plugin: whole, a MIG slice, or time-sliced under the plugin's renamed resource.
_GPU = re.compile(r"nvidia\.com/(gpu|mig-.+|.+\.shared)")


def engine_of(template: Object, engine_container: str) -> Object:
    """The container that runs vLLM, as written (not a copy): the one named, else the only one that asks for a GPU.

    One that only names a resource claim (DRA) is looked at when none asks by resource: a claim may be a network card's.
    Raises Refused: EngineNotFound, EngineAmbiguous; the message lists the containers.
    """
    containers = template["spec"]["containers"]
    names = ", ".join(one["name"] for one in containers)
    if engine_container:
        for one in containers:
            if one["name"] == engine_container:
                return one  # type: ignore[no-any-return]
        raise Refused(
            reasons.ENGINE_NOT_FOUND,
            f"spec.engineContainer: no container {engine_container}; the pod has {names}",
        )
    asking = [one for one in containers if gpu_resources(one)] or [
        one for one in containers if device_claims(one)
    ]
    if not asking:
        raise Refused(
            reasons.ENGINE_NOT_FOUND,
            f"no container asks for a GPU; name the engine in spec.engineContainer: one of {names}",
        )
    if len(asking) > 1:
        several = ", ".join(one["name"] for one in asking)
        raise Refused(
            reasons.ENGINE_AMBIGUOUS,
            f"containers {several} ask for a GPU; name the engine in spec.engineContainer",
        )
    return asking[0]  # type: ignore[no-any-return]


def all_containers(pod: Object) -> Iterator[tuple[str, Object]]:
    """Yield each container of any kind, after the name of the list that it stands in."""
    for place in ("initContainers", "containers", "ephemeralContainers"):
        for one in pod["spec"].get(place) or ():
            yield place, one


def gpu_resources(container: Object) -> dict[str, int]:
    """GPU resource name to count; limits win, since an extended resource's request must equal its limit.

    Raises Refused SourceInvalid for what is no quantity.
    """
    resources = container.get("resources") or {}
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    counts = {}
    for name in sorted(asked):
        if _GPU.fullmatch(name):
            try:
                counts[name] = math.ceil(canonical.parse_quantity(asked[name]))
            except ValueError as error:
                raise Refused(
                    reasons.SOURCE_INVALID,
                    f"container {container['name']}: resources: {name}: {error}",
                ) from None
    return {name: count for name, count in counts.items() if count > 0}


def count_gpus(container: Object) -> int:
    """How many GPUs the container asks for. With DRA: its claims, since only their classes know how many devices each is."""
    return sum(gpu_resources(container).values()) or len(device_claims(container))


def command_words(engine: Object) -> list[str]:
    """The command's and args' words, as written: `$(NAME)` and scripts are not resolved."""
    return [*(engine.get("command") or ()), *(engine.get("args") or ())]


def is_sidecar(container: Object) -> bool:
    """Of an init container: whether it is a native sidecar, which runs beside the engine rather than before it."""
    return bool(container.get("restartPolicy") == "Always")


def device_claims(container: Object) -> list[Object]:
    """The resource claims (DRA) that the container names."""
    return (container.get("resources") or {}).get("claims") or []


def required_terms(pod: Object) -> list[Object]:
    """The node selector terms that a pod spec requires, one of which must hold; nodeName is turned into a term, since a copy
    that keeps it would get round the scheduler and its GPU count."""
    required = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms: list[Object] = required.get("nodeSelectorTerms") or []
    if not pod.get("nodeName"):
        return terms
    here = {"key": "metadata.name", "operator": "In", "values": [pod["nodeName"]]}
    if not terms:
        return [{"matchFields": [here]}]
    return [
        {**one, "matchFields": [*(one.get("matchFields") or ()), here]}
        if canonical.drop_empty(one)
        else one
        for one in terms
    ]


# The first word of a tag that is put on something else every day; a commit or a date behind it makes it one of its kind.
_MOVING = (
    *(
        "canary",
        "current",
        "dev",
        "devel",
        "develop",
        "edge",
        "head",
        "latest",
        "main",
        "master",
        "nightly",
        "rolling",
    ),
    *("snapshot", "stable", "trunk", "unstable"),
)
_FIXED = re.compile(r"[0-9a-f]{7,40}|[0-9]{6,8}")


def moving_tag(image: str) -> str | None:
    """The tag of an image that may be other content tomorrow; "" where it has none, which means latest; None: it stays what it is."""
    tag = image.rpartition("/")[2].partition(":")[2]
    words = re.split(r"[-_.]", tag.lower())
    if not image or "@" in image:
        return None
    return (
        None
        if tag and (words[0] not in _MOVING or any(_FIXED.fullmatch(one) for one in words))
        else tag
    )
