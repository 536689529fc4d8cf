"""The delivery modes: how a consumer's pod gets its bundle. Pure.

One row of MODES says of a mode what it adds to a pod, by what its parts are recognised (so that
they can be taken out again), and for which bundles it is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pretune.api.delivery_reasons import DeliveryReason
from pretune.api.names import SEED_CONTAINER
from pretune.api.types import Object
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    build_seed_container,
    copy_resources,
)
from pretune.manifests.engine import TACTICS_VOLUME, tactics_on_claim
from pretune.podspec.template import command_words
from pretune.protocol import CLAIM_MOUNT, MANAGED, PER_RANK, SHARED, TACTICS_MOUNT, Inputs, Task

AUTO, NONE = "Auto", "None"  # of spec.delivery.mode: the first mode that fits; no mode


@dataclass(frozen=True)
class Delivery:
    """What one pod is given, and why: decided by policy/pods/delivery.py, added by inject()."""

    mode: str  # of a row of MODES, or NONE
    reason: DeliveryReason
    message: str
    held: bool = False
    engine: str = ""  # the container's name; here and below only where something is given
    bundle: str = ""  # its id
    inputs: Inputs | None = None
    claim: str = ""
    sub_path: str = ""
    folder: str = ""  # the cache's, on the claim: Key.folder
    agent: str = ""  # the agent ConfigMap's name
    proven: bool = False  # seed copies the bundle only if its proof is on the claim (spec.verify)
    warnings: tuple[str, ...] = ()  # for the person who created the pod


@dataclass(frozen=True)
class Parts:
    """What a mode adds to one pod, beside the annotations and the gate that any mode adds."""

    mount: Object  # of the engine's container
    folder: str  # where the engine finds the bundle: the value of its variable
    volumes: tuple[Object, ...] = ()
    init_containers: tuple[Object, ...] = ()  # after those of the pod


@dataclass(frozen=True)
class Choice:
    """What the choice of a mode for one pod depends on."""

    asked: str  # spec.delivery.mode
    bundle: str  # its id
    layout: str | None  # of the bundle's files; None: not known yet
    is_given: bool  # sealed, and proven where spec.verify asks for a proof
    is_trusted: bool  # tuned by this engine, or proven with it; not only imported
    is_current: bool  # the cache's status is of this very spec
    is_inspecting: bool  # a Job reads what the claim holds
    image_may_have_moved: bool  # the image's name may stand for other content than was tuned


@dataclass(frozen=True)
class Obstacle:
    """A reason why a mode is not chosen for a pod."""

    applies: Callable[[Choice], bool]
    warning: str = ""  # for a person who asked for the mode by name; "" where none is due


@dataclass(frozen=True)
class DeliveryMode:
    """One way to give a bundle to a pod."""

    name: str  # in spec.delivery.mode, and in the annotation pretune.dev/delivery

    # What it adds to a pod with this engine container, for this delivery.
    build_parts: Callable[[Object, Object, Delivery], Parts]

    # How its parts are recognised. No consumer may have any of these of its own.
    volume_names: tuple[str, ...]
    mount_path: str  # in the engine
    folders: re.Pattern[str]  # values of the engine's variable
    init_container: str = ""  # its name, if the mode adds one: it copies the bundle into the pod

    # When it is chosen: if none of these applies.
    obstacles: tuple[Obstacle, ...] = ()

    # Layouts whose proof starts from the claim itself if the mode was asked for by name
    # (docs/decisions/0007).
    proven_on_claim: tuple[str, ...] = ()

    @property
    def makes_a_copy(self) -> bool:
        """Whether an init container copies the bundle, and reports whether it could."""
        return bool(self.init_container)


class ModeTable(tuple[DeliveryMode, ...]):
    """The rows, and by what any of them is recognised."""

    @cached_property
    def volume_names(self) -> frozenset[str]:
        return frozenset(name for mode in self for name in mode.volume_names)

    @cached_property
    def mount_paths(self) -> tuple[str, ...]:
        return tuple(mode.mount_path for mode in self)

    @cached_property
    def init_containers(self) -> frozenset[str]:
        return frozenset(mode.init_container for mode in self if mode.init_container)

    def has_folder(self, value: str) -> bool:
        """Whether a mode gives the engine's variable this value."""
        return any(mode.folders.fullmatch(value) for mode in self)


def find_mode(name: str) -> DeliveryMode | None:
    """Return the mode of this name; None if there is none, as for "None" and "Auto"."""
    return next((mode for mode in MODES if mode.name == name), None)


def choose_mode(choice: Choice) -> tuple[str, str]:
    """Return the name of the mode that a pod gets, and a warning where another was asked for.

    The first row that was asked for (Auto: of all rows) and that has no obstacle; else the last
    row, which fits every bundle.
    """
    warning = ""
    for mode in MODES[:-1]:
        if choice.asked not in (AUTO, mode.name):
            continue
        obstacle = next((each for each in mode.obstacles if each.applies(choice)), None)
        if obstacle is None:
            return mode.name, ""
        if choice.asked == mode.name and obstacle.warning:
            reason = obstacle.warning.format(bundle=choice.bundle)
            warning = f"pretune: spec.delivery.mode {mode.name} is not used: {reason}"
    return MODES[-1].name, warning


def claim_volume(pod: Object, claim: str) -> tuple[str, tuple[Object, ...]]:
    """Return the name of the volume that the claim is mounted by, and the volumes to add for it.

    A volume of the pod's own if it has one of this claim: a pod with two volumes of one claim
    stays in ContainerCreating, and no event says why (seen on 1.34; kubernetes#122140).
    """
    for volume in pod["spec"].get("volumes") or ():
        if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim:
            return volume["name"], ()
    source = {"claimName": claim, "readOnly": True}
    return CLAIM_VOLUME, ({"name": CLAIM_VOLUME, "persistentVolumeClaim": source},)


# --- ReadOnly: the engine reads the bundle on the claim


def _read_only_parts(pod: Object, engine: Object, delivery: Delivery) -> Parts:
    claim, volumes = claim_volume(pod, delivery.claim)
    return Parts(
        mount={"name": claim, "mountPath": CLAIM_MOUNT, "readOnly": True},
        folder=tactics_on_claim(delivery.sub_path, delivery.folder, delivery.bundle),
        volumes=volumes,
    )


def _is_not_given(choice: Choice) -> bool:
    """Without its folder the engine could not start, while seed starts it cold."""
    return not choice.is_given


def _engine_writes(choice: Choice) -> bool:
    return choice.layout == SHARED


def _may_miss(choice: Choice) -> bool:
    """A miss in a folder that it cannot write crashes the engine (docs/dev/facts-vllm.md)."""
    return choice.layout == PER_RANK and not choice.is_trusted


def _status_is_outdated(choice: Choice) -> bool:
    return not choice.is_current


def _claim_is_inspected(choice: Choice) -> bool:
    """The bundle may be gone from the claim."""
    return choice.is_inspecting


def _image_may_have_moved(choice: Choice) -> bool:
    """The image may be a release that writes to its folder. Seed compares versions."""
    return choice.asked == AUTO and choice.image_may_have_moved


def _layout_does_not_fit(choice: Choice) -> bool:
    """Only an engine with this layout reads nothing but what is sealed."""
    fitting = (MANAGED,) if choice.asked == AUTO else (MANAGED, PER_RANK)
    return choice.layout not in fitting


READ_ONLY = DeliveryMode(
    name="ReadOnly",
    build_parts=_read_only_parts,
    volume_names=(CLAIM_VOLUME,),
    mount_path=CLAIM_MOUNT,
    folders=re.compile(f"{re.escape(CLAIM_MOUNT)}/.*", re.DOTALL),
    obstacles=(
        Obstacle(_is_not_given),
        Obstacle(
            _engine_writes,
            "with layout Shared, vLLM writes to its one file at each start. The pod gets a copy",
        ),
        Obstacle(
            _may_miss,
            "bundle {bundle} was imported and is not proven, and an engine that looks for another"
            " key folder would crash. The pod gets a copy. Set spec.verify to BeforeRelease to"
            " have the bundle proven",
        ),
        Obstacle(_status_is_outdated),
        Obstacle(_claim_is_inspected),
        Obstacle(_image_may_have_moved),
        Obstacle(_layout_does_not_fit),
    ),
    proven_on_claim=(PER_RANK,),
)


# --- Overlay: seed copies the bundle into a folder of the pod, where the engine may write


def _overlay_parts(pod: Object, engine: Object, delivery: Delivery) -> Parts:
    claim, volumes = claim_volume(pod, delivery.claim)
    mount = {"name": TACTICS_VOLUME, "mountPath": TACTICS_MOUNT}
    task = Task(
        cache=delivery.folder,
        subPath=delivery.sub_path,
        inputs=delivery.inputs,
        command=command_words(engine),
        proven=delivery.proven,
    )
    resources = copy_resources(engine)
    seed = build_seed_container(SEED_CONTAINER, engine, task, resources, claim, [mount])
    agent = {"name": delivery.agent, "optional": True}
    return Parts(
        mount=mount,
        folder=TACTICS_MOUNT,
        volumes=(
            *volumes,
            {"name": AGENT_VOLUME, "configMap": agent},
            {"name": TACTICS_VOLUME, "emptyDir": {}},
        ),
        init_containers=(seed,),
    )


OVERLAY = DeliveryMode(
    name="Overlay",
    build_parts=_overlay_parts,
    volume_names=(CLAIM_VOLUME, AGENT_VOLUME, TACTICS_VOLUME),
    mount_path=TACTICS_MOUNT,
    folders=re.compile(re.escape(TACTICS_MOUNT)),
    init_container=SEED_CONTAINER,
)


MODES = ModeTable((READ_ONLY, OVERLAY))
