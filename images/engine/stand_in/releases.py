"""Which releases can be played, and how each keeps its tactics.

Source: vLLM's `kernel_warmup.py` and `flashinfer_autotune_cache.py`, read at 0.25.1, 0.26.0, 0.27.1, 0.31.0, 0.32.0 and 0.33.0.
"""

from __future__ import annotations

from enum import Enum
from typing import Dict, NamedTuple, Tuple

UNKNOWN = "unknown"  # a prefix without package metadata: its version cannot be told


class Keeps(Enum):
    """How a release persists what it tuned."""

    NOTHING = "nothing"  # switched off in the code
    LEADER = "leader"  # one shared file, only where there is one rank
    SHARED = "shared"  # one shared file: rank 0 reads it for all, every rank writes it again, rank 0 saves
    PER_RANK = "per rank"  # a file for each rank
    MANAGED = "managed"  # FlashInfer's managed store; as PER_RANK where there are several ranks, stages or nodes


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
        return tuple(int(part) for part in self.vllm.split("."))


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
NEWEST = "0.33.0"


def played_by(name: str) -> Release:
    """The release that the prefix of this name plays; one whose version cannot be told plays the newest."""
    return RELEASES[NEWEST if name == UNKNOWN else name]
