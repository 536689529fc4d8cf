"""What a bundle was made with, held against what is here: vLLM and FlashInfer in the image, and the GPUs of the node.

FlashInfer compares each v1 file's `_metadata` with its own environment. Where they differ it uses nothing of the file, tunes everything
and does not overwrite it (docs/compatibility.md): the folder then looks as if the engine had been warm.
"""

from __future__ import annotations

import os
import re
from typing import Optional, Set, Tuple

from pretune.agent.context import Context
from pretune.agent.engine.versions import image_versions
from pretune.protocol import Manifest

_MODEL = re.compile(r"(?m)^Model:[ \t]*(\S.*?)[ \t]*$")
_LONGEST = 64  # characters of a GPU's name that a manifest keeps (engines/vllm/files.py)


def other_versions(manifest: Manifest, context: Context) -> str:
    """How the image differs from what the bundle was made with; "" where it does not.

    A version that cannot be told, here or when it was sealed, passes.
    """
    image, sealed = (
        image_versions(context.task.command, context.path, context.pythonpath),
        manifest.versions,
    )
    for what, here, there in (
        ("vLLM", image.vllm, sealed.vllm),
        ("FlashInfer", image.flashinfer, sealed.flashinfer),
    ):
        if here and there and here != there:
            return "%s %s in the image, %s in bundle %s" % (what, here, there, manifest.id)
    return ""


def other_gpu(gpu: str, proc: str) -> Tuple[str, str]:
    """(how the node's GPUs differ, ""), or ("", why that cannot be told), or ("", "") where each of them is the bundle's.

    `gpu` is the name in the bundle's files, as CUDA says it: of a MIG slice the model's with " MIG 1g.10gb". `proc` is where /proc is
    mounted: the kernel driver shows there all GPUs of the node, also in a container that was given none.
    """
    if not gpu:
        return "", "the bundle's files name none"
    models = _models(proc)
    if models is None:
        return "", "the node's cannot be told here"
    names = ", ".join(sorted(models))
    if not any(_is(gpu, model) for model in models):
        return (
            "the bundle is of %s, the node has %s; FlashInfer refuses its files and tunes anew"
            % (gpu, names),
            "",
        )
    if len(models) > 1:
        return "", "the node has %s, the bundle is of %s" % (names, gpu)
    return (
        "",
        ""
        if gpu in models
        else "the bundle is of %s, and the node's slices cannot be told here" % gpu,
    )


def _is(gpu: str, model: str) -> bool:
    return gpu == model or gpu.startswith(model + " MIG ")


def _models(proc: str) -> Optional[Set[str]]:
    """The models of the node's GPUs; None unless the driver names all of them."""
    top = os.path.join(proc, "driver", "nvidia", "gpus")
    found: Set[str] = set()
    try:
        for name in os.listdir(top):
            with open(
                os.path.join(top, name, "information"), encoding="utf-8", errors="replace"
            ) as file:
                said = _MODEL.search(file.read(4096))
            if said is None or said.group(1) == "Unknown":
                return None
            found.add(said.group(1)[:_LONGEST])
    except OSError:
        return None
    return found or None
