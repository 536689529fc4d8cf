"""Which releases can be played, and how each keeps its tactics.

Source: vLLM's `kernel_warmup.py` and `flashinfer_autotune_cache.py`, read at 0.25.1, 0.26.0, 0.27.1, 0.29.0 to 0.33.0. Not read, and
played as the nearest one that was: 0.24.0 (as several ranks of 0.25) and 0.28.0 (as 0.27.1).
"""

from __future__ import annotations

from enum import Enum
from typing import Dict, NamedTuple, Tuple

TOY_BUCKETS = (1, 2, 4, 8, 16)
VLLM_BUCKETS = (
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 8192,
)  # fmt: skip
UNKNOWN = "unknown"  # a prefix without package metadata: its version cannot be told


class Keeps(Enum):
    """How a release persists what it tuned."""

    NOTHING = "nothing"  # switched off in the code
    LEADER = "leader"  # one shared file, only where there is one rank
    SHARED = "shared"  # one shared file: rank 0 reads it for all, every rank writes it again, rank 0 saves
    PER_RANK = "per rank"  # a file for each rank
    MANAGED = "managed"  # FlashInfer's managed store; as PER_RANK where there are several ranks, stages or nodes


class Format(NamedTuple):
    """What a FlashInfer version's JSON file is like, and what it does with one of another environment."""

    heals: bool  # tells values that the writer did not know from definite conflicts, and replaces the file of such a writer
    generation: bool  # the file holds its own hash
    cutlass: bool  # the metadata has cutlass-dsl's version
    policy: bool  # an entry says how it was measured, even if as always
    ranks: bool  # the key of a mixture of experts holds the rank, not only the number of ranks


class Release(NamedTuple):
    """One vLLM release: `hints` is whether its log lines say how to switch autotuning off."""

    vllm: str
    torch: str
    flashinfer: str
    keeps: Keeps
    hints: bool = False

    @property
    def number(self) -> Tuple[int, ...]:
        """The version as numbers, to compare with: (0, 31, 0)."""
        return _numbers(self.vllm)

    @property
    def format(self) -> Format:
        """The format of its FlashInfer (`autotuner.py` of each version in the table below)."""
        flashinfer = _numbers(self.flashinfer)
        return Format(
            heals=flashinfer >= (0, 6, 16),
            generation=flashinfer >= (0, 6, 18),
            cutlass=flashinfer >= (0, 7),
            policy=flashinfer >= (0, 7, 2),
            ranks=(0, 6, 18) <= flashinfer < (0, 7, 2),
        )

    @property
    def buckets(self) -> Tuple[int, ...]:
        """The numbers of tokens that it tunes an operation for: up to 0.29 the operation's own, which are a toy's here."""
        return VLLM_BUCKETS if self.number >= (0, 30) else TOY_BUCKETS

    @property
    def says(self) -> str:
        """What it says before it tunes; empty up to 0.28."""
        if self.number < (0, 29):
            return ""
        buckets = f" and token buckets {VLLM_BUCKETS}" if self.number >= (0, 30) else ""
        return f"Running FlashInfer autotune with {VLLM_BUCKETS[-1]} tokens{buckets}."


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


RELEASES: Dict[str, Release] = {
    release.vllm: release
    for release in (
        Release("0.24.0", "2.11.0", "0.6.12", Keeps.NOTHING),
        Release("0.25.1", "2.11.0", "0.6.13", Keeps.LEADER),
        Release("0.26.0", "2.11.0", "0.6.14", Keeps.LEADER),
        Release("0.27.1", "2.13.0", "0.6.16.post3", Keeps.SHARED),
        Release("0.28.0", "2.13.0", "0.6.16.post3", Keeps.SHARED),
        Release("0.29.0", "2.13.0", "0.6.18", Keeps.SHARED),
        Release("0.30.0", "2.13.0", "0.6.18.post1", Keeps.SHARED),
        Release("0.31.0", "2.13.0", "0.7.0.post1", Keeps.SHARED),
        Release("0.32.0", "2.13.0", "0.7.0.post1", Keeps.PER_RANK),
        Release("0.33.0", "2.14.0", "0.7.2.post1", Keeps.MANAGED, hints=True),
    )
}
NEWEST = max(RELEASES.values(), key=lambda release: release.number).vllm


def played_by(name: str) -> Release:
    """The release that the prefix of this name plays; one whose version cannot be told plays the newest."""
    return RELEASES[NEWEST if name == UNKNOWN else name]
