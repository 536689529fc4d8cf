"""Toy kernels under FlashInfer's own AutoTuner; only the time of a tactic is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig, get_autotune_process_group

_BUCKETS = (1, 2, 4, 8, 16)
_TACTICS = (0, 1, 2, 3)
profiled = 0  # how often FlashInfer asked for the time of a tactic


class ToyGemmRunner(TunableRunner):  # type: ignore[misc]  # untyped where FlashInfer is not installed
    """A matrix product with four tactics that do the same."""

    def get_valid_tactics(self, inputs: list[torch.Tensor], profile: Any) -> list[int]:
        return list(_TACTICS)

    def get_cache_key_extras(self, inputs: list[torch.Tensor]) -> tuple[Any, ...]:
        return (inputs[0].dtype, inputs[1].dtype, False)

    def forward(
        self, inputs: list[torch.Tensor], tactic: int = -1, do_preparation: bool = False, **_: Any
    ) -> torch.Tensor:
        return inputs[0] @ inputs[1]


def time_on_paper() -> None:
    """Replaces what would run on the GPU: the measurement of one tactic, and the size of its cache."""

    def measure(self: Any, runner: Any, inputs: Any, tactic: int, tuning_config: Any = None, **_: Any) -> float:
        global profiled
        profiled += 1
        tokens = int(inputs[0].shape[0])
        time: float = (37 * (tokens % 7) + 11 * (tactic % 5)) % 17 + (100.0 if tactic < 0 else 0.0)
        group = get_autotune_process_group()
        if group is None:
            return time
        times = torch.tensor([time], dtype=torch.float64)
        dist.all_reduce(times, group=group)  # FlashInfer does it in the same place: ranks tune in step, or hang
        return float(times.item()) / len(dist.get_process_group_ranks(group))

    tuner: Any = AutoTuner
    tuner._profile_single_kernel = measure
    tuner._get_l2_cache_size_in_bytes = lambda self, device_id=None: 1 << 20


def run(operations: Sequence[str], tokens: int) -> None:
    """What a model does: asks FlashInfer for the best runner and tactic of each operation."""
    config = TuningConfig(
        dynamic_tensor_specs=(
            DynamicTensorSpec(
                input_idx=(0,),
                dim_idx=(0,),
                gen_tuning_buckets=_BUCKETS,
                map_to_tuning_buckets=lambda size: max((bucket for bucket in _BUCKETS if bucket <= size), default=1),
            ),
        )
    )
    inputs = [torch.ones(tokens, 8, dtype=torch.bfloat16), torch.ones(8, 4, dtype=torch.bfloat16)]
    for operation in operations:
        AutoTuner.get().choose_one(operation, [ToyGemmRunner()], config, inputs)
