"""What there is to tune, and where it is tuned."""

from __future__ import annotations

import random
from typing import Dict, List, NamedTuple, Optional

BUCKETS = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
    512,
    768,
    1024,
    1280,
    1536,
    1792,
    2048,
    2560,
    3072,
    3584,
    4096,
    8192,
)  # vLLM's, of 8192 tokens
RUNNER = "StandInRunner"
POLICY = ["cuda_graph_profile_replays", None, "l2_cache_policy", "hot"]
_TACTICS = 4

Metadata = Dict[str, str]


class Profile(NamedTuple):
    """One thing to tune: an operation at one number of tokens."""

    operation: str
    tokens: int
    unstable: Optional[int] = None  # a part of the key that differs in each process, as an object's address would

    @property
    def key(self) -> str:
        """FlashInfer's canonical key of the entry."""
        shapes = f"(({self.tokens}, 8), (8, 4))"
        extras = "torch.bfloat16, torch.bfloat16, False" + ("" if self.unstable is None else f", {self.unstable}")
        return f"('{self.operation}', '{RUNNER}', {shapes}, ({extras}))"

    @property
    def key_fields(self) -> object:
        """The same key as the managed store keeps it, to be read back."""
        bf16 = {"__dtype__": "bfloat16"}
        shapes = _tuple(_tuple(self.tokens, 8), _tuple(8, 4))
        extras = [bf16, bf16, False] + ([] if self.unstable is None else [self.unstable])
        return _tuple(self.operation, RUNNER, shapes, _tuple(*extras))


def _tuple(*items: object) -> object:
    return {"__tuple__": list(items)}


def profiles(count: int, stage: int = 0, unstable: Optional[int] = None) -> List[Profile]:
    """`count` profiles of toy operations; each pipeline stage has its own operations, and one profile less than the stage before.

    With `unstable` the last one's key holds this number.
    """
    suffix = f"_stage{stage}" if stage else ""
    made = [
        Profile(f"stand_in_gemm_{at // len(BUCKETS)}{suffix}", BUCKETS[at % len(BUCKETS)])
        for at in range(max(0, count - stage))
    ]
    return made[:-1] + [last._replace(unstable=unstable) for last in made[-1:]]


def measured() -> int:
    """The tactic that was fastest. Two tunings of a real GPU choose differently too."""
    return random.randrange(_TACTICS)


def metadata(flashinfer: str, gpu: str) -> Metadata:
    """What FlashInfer records of its environment."""
    return {
        "flashinfer_version": flashinfer,
        "cuda_version": "13.0",
        "cublas_version": "13.1.1",
        "cudnn_version": "92400",
        "cudnn_frontend_version": "unknown",
        "cutlass_dsl_version": "unknown",
        "gpu": gpu,
    }
