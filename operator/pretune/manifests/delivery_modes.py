"""The delivery modes: how a consumer's pod gets its bundle. Pure.

One row of MODES says of a mode what it adds to a pod, by what that is recognised (so that
they can be taken out again), and for which bundles it is chosen.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pretune.api.delivery_reasons import DeliveryReason
from pretune.api.names import SEED_CONTAINER
from pretune.api.types import Object
from pretune.engines import registry
from pretune.engines.base import Part
from pretune.manifests.agent_container import (
    AGENT_VOLUME,
    CLAIM_VOLUME,
    build_seed_container,
    copy_resources,
)
from pretune.manifests.parts import (
    build_claim_variables,
    build_folder_mounts,
    build_folder_variables,
    build_folder_volumes,
)
from pretune.podspec.template import engine_type, task_command
from pretune.protocol import CLAIM_MOUNT, PER_RANK, SHARED, TASK_VARIABLE, Inputs, Task

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
class Additions:
    """What a mode adds to one pod, beside the annotations and the gate that any mode adds."""

    mounts: tuple[Object, ...]  # of the engine's container
    variables: Mapping[str, str]  # of the engine's container: where it finds its parts
    volumes: tuple[Object, ...] = ()
    init_containers: tuple[Object, ...] = ()  # after those of the pod


@dataclass(frozen=True)
class Choice:
    """What the choice of a mode for one pod depends on."""

    asked: str  # spec.delivery.mode
    bundle: str  # its id
    layout: str | None  # of the bundle's files; None: not known yet
    parts: tuple[Part, ...]  # of the engine
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
class Form:
    """By what the additions of a mode are recognised. No consumer may have any of these itself."""

    volume_names: tuple[str, ...]
    mount_paths: tuple[str, ...]  # in the engine
    folders: re.Pattern[str]  # values of the parts' variables


@dataclass(frozen=True, eq=False)  # one object a mode, so that a table of them is hashed at once
class DeliveryMode:
    """One way to give a bundle to a pod."""

    name: str  # in spec.delivery.mode, and in the annotation pretune.dev/delivery

    # What it adds to a pod with this engine container, for this delivery.
    build_additions: Callable[[Object, Object, Delivery], Additions]

    # How its additions are recognised, where the engines have these parts.
    form: Callable[[Sequence[Part]], Form]
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


@dataclass(frozen=True)
class Forms:
    """By what the additions of any mode are recognised."""

    volume_names: frozenset[str]
    mount_paths: tuple[str, ...]
    init_containers: frozenset[str]
    variables: frozenset[str]  # names
    folders: tuple[re.Pattern[str], ...]  # values of these variables

    def has_volume(self, volume_or_mount: Object) -> bool:
        return volume_or_mount["name"] in self.volume_names

    def has_mount(self, mount: Object) -> bool:
        return mount.get("mountPath") in self.mount_paths

    def has_variable(self, variable: Object) -> bool:
        if variable["name"] not in self.variables:
            return False
        return any(folders.fullmatch(variable.get("value") or "") for folders in self.folders)

    def has_init_container(self, container: Object) -> bool:
        return container["name"] in self.init_containers and any(
            variable["name"] == TASK_VARIABLE for variable in container.get("env") or ()
        )

    def has_engine(self, container: Object) -> bool:
        """Whether the container has a mode's mount, and a variable that leads there."""
        return any(self.has_variable(variable) for variable in container.get("env") or ()) and any(
            self.has_mount(mount) for mount in container.get("volumeMounts") or ()
        )


def forms() -> Forms:
    """Return by what the additions of any mode are recognised, for the parts of all engines."""
    return _forms(registry.all_parts(), MODES)


@functools.lru_cache(4)
def _forms(parts: tuple[Part, ...], modes: tuple[DeliveryMode, ...]) -> Forms:
    each = [mode.form(parts) for mode in modes]
    return Forms(
        volume_names=frozenset(name for form in each for name in form.volume_names),
        mount_paths=tuple(dict.fromkeys(path for form in each for path in form.mount_paths)),
        init_containers=frozenset(mode.init_container for mode in modes if mode.init_container),
        variables=frozenset(part.variable for part in parts),
        folders=tuple(form.folders for form in each),
    )


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


def _add_claim(pod: Object, engine: Object, delivery: Delivery) -> Additions:
    claim, volumes = claim_volume(pod, delivery.claim)
    return Additions(
        mounts=({"name": claim, "mountPath": CLAIM_MOUNT, "readOnly": True},),
        variables=build_claim_variables(
            engine_type(engine), delivery.sub_path, delivery.folder, delivery.bundle
        ),
        volumes=volumes,
    )


def _form_of_claim(parts: Sequence[Part]) -> Form:
    return Form(
        volume_names=(CLAIM_VOLUME,),
        mount_paths=(CLAIM_MOUNT,),
        folders=re.compile(f"{re.escape(CLAIM_MOUNT)}/.*", re.DOTALL),
    )


def _is_not_given(choice: Choice) -> bool:
    """Whether the pod is not given the bundle yet.

    Without the bundle's folder an engine with ReadOnly could not start; seed starts it cold.
    """
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
    """A part of the engine may write to files of this layout."""
    if choice.asked == AUTO:
        return any(choice.layout not in part.read_only for part in choice.parts)
    return any(choice.layout not in part.read_only_if_asked for part in choice.parts)


READ_ONLY = DeliveryMode(
    name="ReadOnly",
    build_additions=_add_claim,
    form=_form_of_claim,
    obstacles=(
        Obstacle(_is_not_given),
        Obstacle(
            _engine_writes,
            "with layout Shared, the engine writes to its one file at each start. The pod gets a"
            " copy",
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


def _add_copy(pod: Object, engine: Object, delivery: Delivery) -> Additions:
    kind = engine_type(engine)
    claim, volumes = claim_volume(pod, delivery.claim)
    mounts = build_folder_mounts(kind)
    task = Task(
        cache=delivery.folder,
        subPath=delivery.sub_path,
        inputs=delivery.inputs,
        **task_command(engine),
        proven=delivery.proven,
        engine=kind.name,
    )
    resources = copy_resources(engine)
    seed = build_seed_container(SEED_CONTAINER, engine, task, resources, claim, mounts)
    agent = {"name": delivery.agent, "optional": True}
    return Additions(
        mounts=mounts,
        variables=build_folder_variables(kind),
        volumes=(
            *volumes,
            {"name": AGENT_VOLUME, "configMap": agent},
            *build_folder_volumes(kind),
        ),
        init_containers=(seed,),
    )


def _form_of_copy(parts: Sequence[Part]) -> Form:
    paths = tuple(part.mount for part in parts)
    return Form(
        volume_names=(CLAIM_VOLUME, AGENT_VOLUME, *(part.volume for part in parts)),
        mount_paths=paths,
        folders=re.compile("|".join(re.escape(path) for path in paths)),
    )


OVERLAY = DeliveryMode(
    name="Overlay",
    build_additions=_add_copy,
    form=_form_of_copy,
    init_container=SEED_CONTAINER,
)


MODES = (READ_ONLY, OVERLAY)
