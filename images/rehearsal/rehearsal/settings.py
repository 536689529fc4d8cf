"""What the rehearsal's own environment variables ask for, and the surroundings that vLLM needs on a bare machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """`gpu` as its driver names it; `capability` as (9, 0); `operations` are what its model consists of, for each stage that says so."""

    gpu: str
    capability: tuple[int, int]
    memory_gib: int
    operations: tuple[tuple[str, ...], ...]

    def of_stage(self, stage: int) -> list[str]:
        """Pipeline stages have layers, and so operations, of their own: those given for it, or the first stage's under other names."""
        if stage < len(self.operations):
            return list(self.operations[stage])
        return [f"{name}_stage{stage}" for name in self.operations[0]]


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Reads the REHEARSAL_* variables. Raises ValueError for a capability that is not like 9.0."""
    major, _, minor = environ.get("REHEARSAL_CAPABILITY", "9.0").partition(".")
    return Settings(
        gpu=environ.get("REHEARSAL_GPU", "NVIDIA H200"),
        capability=(int(major), int(minor or 0)),
        memory_gib=int(environ.get("REHEARSAL_MEMORY_GIB", "140")),
        operations=tuple(
            tuple(name for name in stage.split(",") if name)
            for stage in environ.get("REHEARSAL_OPERATIONS", "toy_gemm").split("|")
        ),
    )


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets what must be there before vllm is imported: no network, no usage report, a user's name for an uid without one."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        environ.setdefault(name, "1")
    environ.setdefault(
        "VLLM_HAS_FLASHINFER_CUBIN", "1"
    )  # vLLM then takes FlashInfer as usable without nvcc
    environ.setdefault("USER", "rehearsal")
    environ.setdefault("OMP_NUM_THREADS", "1")
