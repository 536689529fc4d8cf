"""What a bundle was made with, compared with what is here: versions in the image, GPUs of the node.

An engine ignores files of another environment, and does not say so in its folder. FlashInfer
compares each v1 file's `_metadata` with its own environment. Where they differ it uses nothing of
the file, tunes everything and does not overwrite it (docs/compatibility.md): the folder then
looks as if the engine had been warm.
"""

from __future__ import annotations

import os
import re
from typing import Optional, Set, Tuple

from pretune.agent.context import Context
from pretune.agent.engine.versions import image_versions
from pretune.protocol import Manifest

_MODEL = re.compile(r"(?m)^Model:[ \t]*(\S.*?)[ \t]*$")
MAX_GPU_NAME = 64  # characters that a manifest keeps (engines/vllm/tactics.py)


def other_versions(manifest: Manifest, context: Context) -> str:
    """Return how the image differs from what the bundle was made with, or "".

    A version that is unknown, here or when it was sealed, passes.
    """
    image = image_versions(context)
    for field, _, title in context.engine.distributions:
        here, there = getattr(image, field), getattr(manifest.versions, field)
        if here and there and here != there:
            return "%s %s in the image, %s in bundle %s" % (title, here, there, manifest.id)
    return ""


def other_gpu(gpu: str, proc: str) -> Tuple[str, str]:
    """Return (how the node's GPUs differ, "") or ("", why that is unknown).

    ("", "") where each of them is the bundle's. gpu: the name in the bundle's files, as CUDA
    gives it; of a MIG slice the model's with " MIG 1g.10gb". proc: where /proc is mounted: the
    kernel driver shows all GPUs of the node there, also in a container that was given none.
    """
    if not gpu:
        return "", "the bundle's files name none"
    models = _models(proc)
    if models is None:
        return "", "the node's are unknown here"
    names = ", ".join(sorted(models))
    if not any(_is_model(gpu, model) for model in models):
        return (
            "the bundle is of %s, the node has %s; the engine ignores its files and tunes again"
            % (gpu, names),
            "",
        )
    if len(models) > 1:
        return "", "the node has %s, the bundle is of %s" % (names, gpu)
    if gpu not in models:
        return "", "the bundle is of %s, and the node's slices are unknown here" % gpu
    return "", ""


def _is_model(gpu: str, model: str) -> bool:
    return gpu == model or gpu.startswith(model + " MIG ")


def _models(proc: str) -> Optional[Set[str]]:
    """Return the models of the node's GPUs; None unless the driver names all of them."""
    top = os.path.join(proc, "driver", "nvidia", "gpus")
    models: Set[str] = set()
    try:
        for name in os.listdir(top):
            path = os.path.join(top, name, "information")
            with open(path, encoding="utf-8", errors="replace") as file:
                line = _MODEL.search(file.read(4096))
            if line is None or line.group(1) == "Unknown":
                return None
            models.add(line.group(1)[:MAX_GPU_NAME])
    except OSError:
        return None
    return models or None
