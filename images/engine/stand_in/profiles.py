"""What there is to tune, and where it is tuned."""

from __future__ import annotations

import random
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from .releases import Release

RUNNER = "StandInRunner"
POLICY = ["cuda_graph_profile_replays", None, "l2_cache_policy", "hot"]
TACTICS = 4
_LIBRARIES = {
    "2.11.0": ("13.1.0", "91900"),
    "2.13.0": ("13.1.1", "92000"),
    "2.14.0": ("13.1.1", "92400"),
}

Metadata = Dict[str, str]


class Profile(NamedTuple):
    """One thing to tune: an operation at one number of tokens. `extras` are what else the operation puts into its key."""

    operation: str
    tokens: int
    extras: Tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """FlashInfer's canonical key of the entry."""
        return decoded(self.key_fields)

    @property
    def key_fields(self) -> object:
        """The same key as the managed store keeps it, to be read back."""
        bf16 = {"__dtype__": "bfloat16"}
        shapes = _tuple(_tuple(self.tokens, 8), _tuple(8, 4))
        return _tuple(self.operation, RUNNER, shapes, _tuple(bf16, bf16, False, *self.extras))


def _tuple(*items: object) -> object:
    return {"__tuple__": list(items)}


def decoded(fields: Any) -> str:
    """What Python writes for a key that was kept with its types. Raises ValueError for what is none."""
    if isinstance(fields, dict) and "__dtype__" in fields:
        return f"torch.{fields['__dtype__']}"
    if isinstance(fields, dict) and "__tuple__" in fields:
        items = [decoded(item) for item in fields["__tuple__"]]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if fields is None or isinstance(fields, (bool, int, float, str)):
        return repr(fields)
    raise ValueError(f"no part of a key: {fields!r}")


def profiles(
    count: int, buckets: Sequence[int], stage: int = 0, extras: Tuple[int, ...] = ()
) -> List[Profile]:
    """`count` profiles of toy operations; each pipeline stage has operations of its own. `extras` are in the keys of all of them."""
    suffix = f"_stage{stage}" if stage else ""
    return [
        Profile(f"stand_in_gemm_{at // len(buckets)}{suffix}", buckets[at % len(buckets)], extras)
        for at in range(count)
    ]


def measured() -> int:
    """The tactic that was fastest. Two tunings of a real GPU choose differently too."""
    return random.randrange(TACTICS)


def metadata(release: Release, gpu: str) -> Metadata:
    """What FlashInfer records of its environment: cuBLAS and cuDNN are those that the release's torch pins."""
    cublas, cudnn = _LIBRARIES[release.torch]
    recorded = {
        "flashinfer_version": release.flashinfer,
        "cuda_version": "13.0",
        "cublas_version": cublas,
        "cudnn_version": cudnn,
        "cudnn_frontend_version": "unknown",
    }
    if release.format.cutlass:
        recorded["cutlass_dsl_version"] = "unknown"
    return {**recorded, "gpu": gpu}
