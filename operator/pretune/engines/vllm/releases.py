"""Which releases of vLLM persist tactics, and in which layout."""

from __future__ import annotations

import re
from typing import Optional, Sequence, Tuple

from pretune.api import reasons
from pretune.engines.vllm.cli import last_number
from pretune.protocol import MANAGED, PER_RANK, SHARED

FIRST_RELEASE = (0, 25)  # 0.22 to 0.24 have the variable, and the saving switched off in the code
FIRST_DISTRIBUTED = (0, 27)  # 0.25 and 0.26 save on one rank only
FIRST_PER_RANK = (0, 32)  # 0.27 to 0.31: one file for all ranks, and a warm start that can hang
FIRST_MANAGED = (0, 33)  # FlashInfer's managed store, where one rank runs

NOTHING_TUNED = (
    "The engine tuned nothing. Possible causes: no tunable kernel is reached (dense FP8 on Hopper),"
    " compute capability below 9.0, -O0 or autotune switched off, FlashInfer without cubins and"
    " nvcc"
)


def release_of(version: str) -> Optional[Tuple[int, int]]:
    """Return the release, as (0, 33), of a distribution's version; None where it is unknown."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found or version.startswith("0.1.dev"):  # setuptools-scm's, of a clone without tags
        return None
    return int(found.group(1)), int(found.group(2))


def check_release(version: str, gpus: int) -> Tuple[str, str]:
    """Return ("", a note or "") where this release's tactics can be kept, else (reason, message).

    version: of the distribution, "" if unknown; gpus: what the engine may use, 0 if unknown.
    """
    if not version:
        return "", "vLLM's version unknown"
    release = release_of(version)
    if release is None:
        return "", "vLLM's version %s does not tell its release" % version
    if release < FIRST_RELEASE:
        return (
            reasons.RELEASE_TOO_OLD,
            "vLLM %s in the image does not persist tactics; 0.25 and newer do" % version,
        )
    if release < FIRST_DISTRIBUTED and gpus > 1:
        return (
            reasons.RELEASE_TOO_OLD,
            "vLLM %s in the image persists tactics on one GPU only, and the engine may use %d;"
            " 0.32 and newer do for all" % (version, gpus),
        )
    if release < FIRST_PER_RANK and gpus > 1:
        return (
            reasons.SHARED_LAYOUT,
            "vLLM %s in the image keeps one file for all ranks, and the engine may use %d GPUs:"
            " a warm start can hang for 30 minutes; 0.32 and newer keep a file per rank"
            % (version, gpus),
        )
    return "", ""


def readable_layouts(version: str, gpus: int, words: Sequence[str] = ()) -> Tuple[str, ...]:
    """Return the layouts that this release reads on so many GPUs, the likeliest first.

    All of them where the release is unknown. 0.33 keeps a managed store where one rank runs, which
    may be so on several GPUs (the others idle), and a file a rank where more do; on one GPU a file
    a rank only with a FlashInfer that has no managed store.
    """
    release = release_of(version)
    if release is not None and release < FIRST_PER_RANK:
        return (SHARED,)
    if release is not None and release < FIRST_MANAGED:
        return (PER_RANK,)
    tensor = last_number(words, "--tensor-parallel-size", "-tp") or 1
    ranks = tensor * (last_number(words, "--pipeline-parallel-size", "-pp") or 1)
    if gpus <= 1:
        read: Tuple[str, ...] = (MANAGED, PER_RANK)
    else:
        read = (PER_RANK, MANAGED) if ranks == 1 else (PER_RANK,)
    return read if release is not None else (*read, SHARED)
