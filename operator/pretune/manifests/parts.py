"""The parts of an engine in a pod: their folders, and the variables that name these. Pure."""

from __future__ import annotations

from pretune.api.types import Object
from pretune.engines.base import Engine
from pretune.protocol import CLAIM_MOUNT


def build_folder_volumes(engine: Engine) -> tuple[Object, ...]:
    """Return an emptyDir for each part."""
    return tuple({"name": part.volume, "emptyDir": {}} for part in engine.parts)


def build_folder_mounts(engine: Engine) -> tuple[Object, ...]:
    """Return the mounts of build_folder_volumes(), for the engine's container and the agent's."""
    return tuple({"name": part.volume, "mountPath": part.mount} for part in engine.parts)


def build_folder_variables(engine: Engine) -> dict[str, str]:
    """Return the variables that name the folders of build_folder_mounts()."""
    return {part.variable: part.mount for part in engine.parts}


def build_claim_variables(
    engine: Engine, sub_path: str, folder: str, bundle: str
) -> dict[str, str]:
    """Return the variables that name a bundle's folders on the claim, mounted at CLAIM_MOUNT.

    folder: the cache's. The kubelet replaces `$(NAME)` in a value, and hands over `$$` as a dollar.
    """
    names = [name for name in sub_path.split("/") if name not in ("", ".")]
    path = "/".join([CLAIM_MOUNT, *names, folder, "bundles", bundle]).replace("$", "$$")
    return {part.variable: f"{path}/{part.name}" for part in engine.parts}
