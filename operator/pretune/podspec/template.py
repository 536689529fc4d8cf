"""What a pod template says: its engine, and that engine's command, GPUs, mounts and nodes. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.engines import registry
from pretune.engines.base import Engine
from pretune.podspec import canonical

# A GPU of NVIDIA's device plugin: whole, a MIG slice, or time-sliced under the plugin's renamed
# resource.
_GPU = re.compile(r"nvidia\.com/(gpu|mig-.+|.+\.shared)")


# --- containers


def engine_of(template: Object, engine_container: str) -> Object:
    """Return the container that runs the engine, as written (not a copy).

    It is the one of this name; if no name is given, the only one that asks for a GPU. A container
    with a resource claim (DRA) counts only if none asks for a GPU by resource: the claim may be
    for a network card. Raises Refused: EngineNotFound, EngineAmbiguous. The message lists the
    containers.
    """
    containers: list[Object] = template["spec"]["containers"]
    names = ", ".join(container["name"] for container in containers)
    if engine_container:
        for container in containers:
            if container["name"] == engine_container:
                return container
        raise Refused(
            reasons.ENGINE_NOT_FOUND,
            f"spec.engineContainer: no container {engine_container}; the pod has {names}",
        )
    with_gpu, what = [each for each in containers if gpu_resources(each)], "ask for a GPU"
    if not with_gpu:
        with_gpu, what = [each for each in containers if device_claims(each)], "have a device claim"
    if not with_gpu:
        raise Refused(
            reasons.ENGINE_NOT_FOUND,
            "no container asks for a GPU: add nvidia.com/gpu, or a device claim, to the resources of"
            f" the engine's container; the pod has {names}",
        )
    if len(with_gpu) > 1:
        several = ", ".join(container["name"] for container in with_gpu)
        raise Refused(
            reasons.ENGINE_AMBIGUOUS,
            f"containers {several} {what}; name the engine in spec.engineContainer",
        )
    return with_gpu[0]


def engine_type(container: Object) -> Engine:
    """Return which of the engines that pretune knows the container runs, by image and command."""
    return registry.recognise(container.get("image") or "", command_words(container))


def all_containers(pod: Object) -> Iterator[tuple[str, Object]]:
    """Yield the containers of every kind, each after the name of the list that it is in."""
    for place in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod["spec"].get(place) or ():
            yield place, container


def is_sidecar(init_container: Object) -> bool:
    """Whether an init container is a native sidecar, which runs beside the engine."""
    return bool(init_container.get("restartPolicy") == "Always")


def command_words(container: Object) -> list[str]:
    """Return command and args, as written: `$(NAME)` and scripts are not resolved."""
    return [*(container.get("command") or ()), *(container.get("args") or ())]


_HIDDEN = "***"


def words_without_secrets(container: Object) -> list[str]:
    """Return command_words(), with `***` for what is given to flags like `--api-key`.

    For what we write elsewhere: more people can read a Job than the pod template.
    """
    flags = "|".join(
        "[-_]".join(map(re.escape, flag.removeprefix("--").split("-")))
        for flag in engine_type(container).secret_flags
    )
    if not flags:
        return command_words(container)
    is_flag = re.compile(f"--(?:{flags})")
    given = re.compile(rf"""(--(?:{flags})(?:=|\s+))(?:"[^"]*"|'[^']*'|\S+)""")
    words, is_secret = [], False
    for word in command_words(container):
        is_secret = is_secret and not word.startswith("-")
        words.append(_HIDDEN if is_secret else given.sub(rf"\1{_HIDDEN}", word))
        is_secret = is_secret or is_flag.fullmatch(word) is not None
    return words


def task_command(engine: Object) -> dict[str, Any]:
    """Return the fields of a task (protocol.py) that say how the engine is called."""
    return {"command": words_without_secrets(engine), "argsOnly": not engine.get("command")}


def mounts_and_devices(container: Object) -> Iterator[tuple[str, int, Object]]:
    """Yield what the container uses of the pod's volumes: the list's name, the index, the item."""
    for use in ("volumeMounts", "volumeDevices"):
        for index, item in enumerate(container.get(use) or ()):
            yield use, index, item


# --- GPUs


def gpu_resources(container: Object) -> dict[str, int]:
    """Return the count of each GPU resource that the container asks for.

    Raises Refused SourceInvalid for what is no quantity.
    """
    amounts = resource_amounts(container)
    counts = {}
    for name in sorted(amounts):
        if _GPU.fullmatch(name):
            try:
                counts[name] = math.ceil(canonical.parse_quantity(amounts[name]))
            except ValueError as error:
                raise Refused(
                    reasons.SOURCE_INVALID,
                    f"container {container['name']}: resources: {name}: {error}",
                ) from None
    return {name: count for name, count in counts.items() if count > 0}


def count_gpus(container: Object) -> int:
    """Return how many GPUs the container asks for.

    With DRA that is the number of its claims; podspec/devices.py knows how many devices these are.
    """
    return sum(gpu_resources(container).values()) or len(device_claims(container))


def resource_amounts(container: Object) -> dict[str, Any]:
    """Return how much of each resource the container asks for, as written.

    Limits count before requests, which must be equal for an extended resource.
    """
    resources = container.get("resources") or {}
    return {**(resources.get("requests") or {}), **(resources.get("limits") or {})}


def device_claims(container: Object) -> list[Object]:
    """Return the resource claims (DRA) that the container names."""
    return (container.get("resources") or {}).get("claims") or []


# --- nodes


def required_terms(pod: Object) -> list[Object]:
    """Return the node selector terms that a pod spec requires, one of which must hold.

    nodeName becomes a term: a copy with that field would bypass the scheduler, which counts GPUs.
    """
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: list[Object] = required.get("nodeSelectorTerms") or []
    return require_nodes(terms, [pod["nodeName"]] if pod.get("nodeName") else None)


def require_nodes(terms: list[Object], nodes: Sequence[str] | None) -> list[Object]:
    """Return node selector terms, each of which asks for one of these nodes too; None: any."""
    if nodes is None:
        return terms
    names = [{"key": "metadata.name", "operator": "In", "values": [name]} for name in nodes]
    if not terms:
        return [{"matchFields": [name]} for name in names]
    return [
        {**term, "matchFields": [*(term.get("matchFields") or ()), name]}
        if not is_empty_term(term)
        else term
        for term in terms
        for name in names
    ]


def is_empty_term(term: Object) -> bool:
    """Whether a node selector term asks for nothing: such a term holds for no node."""
    return not canonical.drop_empty(term)


# --- the image

# First words of tags that get other content again and again. With a commit or a date behind it,
# such a tag keeps its content.
_MOVING = re.compile(
    "canary|current|dev|devel|develop|edge|head|latest|main|master|nightly|rolling|snapshot|stable"
    "|trunk|unstable"
)
_COMMIT_OR_DATE = re.compile(r"[0-9a-f]{7,40}|[0-9]{6,8}")


def moving_tag(image: str) -> str | None:
    """Return the tag of an image that may have other content tomorrow; None if it may not.

    "" stands for an image without a tag, which means latest.
    """
    if not image or "@" in image:
        return None
    tag = image.rpartition("/")[2].partition(":")[2]
    words = re.split(r"[-_.]", tag.lower())
    is_moving = _MOVING.fullmatch(words[0]) and not any(map(_COMMIT_OR_DATE.fullmatch, words))
    return tag if is_moving or not tag else None
