"""Which releases of vLLM persist tactics, and in which layout."""

from __future__ import annotations

import re
from typing import Sequence, Tuple

from pretune.engines.vllm.cli import _number

PACKAGES = ("vllm", "flashinfer-python")  # distributions whose versions decide whether tactics fit

MANAGED, PER_RANK, SHARED, EMPTY = "Managed", "PerRank", "Shared", "Empty"

FIRST_RELEASE = (0, 25)  # 0.22 to 0.24 have the variable, and the saving switched off in the code
FIRST_DISTRIBUTED = (0, 27)  # 0.25 and 0.26 save on one rank only
FIRST_MANAGED = (0, 33)  # FlashInfer's managed store, where one rank runs
FIRST_PER_RANK = (0, 32)  # 0.27 to 0.31: one file for all ranks, and a warm start that can hang

NOTHING_TUNED = (
    "The engine tuned nothing. Possible causes: no tunable kernel is reached (dense FP8 on Hopper), compute capability below 9.0,"
    " -O0 or autotune switched off, FlashInfer without cubins and nvcc"
)


# --- releases


def support(version: str, gpus: int) -> Tuple[str, str]:
    """Whether this release's tactics can be kept: ("", note) to go on, or (reason, message that names the version).

    `version` is that of the distribution, "" if it cannot be told; `gpus` is what the engine asks for, 0 if unknown.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if not version:
        return "", "vLLM's version unknown"
    if not found or version.startswith(
        "0.1.dev"
    ):  # what setuptools-scm calls a build of a clone without tags
        return "", "vLLM's version %s does not tell its release" % version
    release = (int(found.group(1)), int(found.group(2)))
    if release < FIRST_RELEASE:
        return (
            "ReleaseTooOld",
            "vLLM %s in the image does not persist tactics; 0.25 and newer do" % version,
        )
    if release < FIRST_DISTRIBUTED and gpus > 1:
        return (
            "ReleaseTooOld",
            "vLLM %s in the image persists tactics on one GPU only, and the engine asks for %d; 0.32 and newer do for all"
            % (version, gpus),
        )
    if release < FIRST_PER_RANK and gpus > 1:
        return (
            "SharedLayout",
            "vLLM %s in the image keeps one file for all ranks, and the engine asks for %d GPUs: a warm start can hang for"
            " 30 minutes; 0.32 and newer keep a file per rank" % (version, gpus),
        )
    return "", ""


def layouts(version: str, gpus: int, words: Sequence[str] = ()) -> Tuple[str, ...]:
    """The layouts that this release reads on so many GPUs, the likeliest first; all of them where the release is not known.

    0.33 keeps a managed store where one rank runs, which may be so on several GPUs (the others idle), and a file a rank where more do;
    on one GPU a file a rank only with a FlashInfer that has no managed store.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    release = (
        (int(found.group(1)), int(found.group(2)))
        if found and not version.startswith("0.1.dev")
        else None
    )
    if release is not None and release < FIRST_PER_RANK:
        return (SHARED,)
    if release is not None and release < FIRST_MANAGED:
        return (PER_RANK,)
    ranks = (_number(words, "--tensor-parallel-size", "-tp") or 1) * (
        _number(words, "--pipeline-parallel-size", "-pp") or 1
    )
    managed_first = (
        (MANAGED, PER_RANK) if gpus <= 1 else (PER_RANK, MANAGED) if ranks == 1 else (PER_RANK,)
    )
    return managed_first if release is not None else (*managed_first, SHARED)
