"""Toy kernels under FlashInfer's own AutoTuner; only the time of a tactic is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flashinfer.autotuner
import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig

from .releases import ranks_are_in_experts_keys

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


class ToyMoeRunner(ToyGemmRunner):
    """As a mixture of experts, whose keys hold its parallel sizes, and in some releases of FlashInfer its ranks."""

    def get_cache_key_extras(self, inputs: list[torch.Tensor]) -> tuple[Any, ...]:
        from vllm.distributed import parallel_state as state

        group = state._EP or state.get_tp_group()  # dense models have none of experts
        extras: tuple[Any, ...] = (*super().get_cache_key_extras(inputs), group.world_size)
        return (*extras, group.rank_in_group) if ranks_are_in_experts_keys() else extras


def time_on_paper() -> None:
    """Replaces what would run on the GPU: the measurement of one tactic, and the size of its cache."""

    asked = getattr(
        flashinfer.autotuner, "get_autotune_process_group", None
    )  # before 0.6.16 ranks tune each for itself

    def measure(
        self: Any, runner: Any, inputs: Any, tactic: int, tuning_config: Any = None, **_: Any
    ) -> float:
        global profiled
        profiled += 1
        tokens = int(inputs[0].shape[0])
        time: float = (37 * (tokens % 7) + 11 * (tactic % 5)) % 17 + (100.0 if tactic < 0 else 0.0)
        group = asked() if asked else None
        if group is None:
            return time
        times = torch.tensor([time], dtype=torch.float64)
        dist.all_reduce(
            times, group=group
        )  # FlashInfer does it in the same place: ranks tune in step, or hang
        return float(times.item()) / len(dist.get_process_group_ranks(group))

    tuner: Any = AutoTuner
    tuner._profile_single_kernel = measure
    tuner._get_l2_cache_size_in_bytes = lambda self, device_id=None: 1 << 20


def run(operations: Sequence[str], tokens: int) -> None:
    """What a model does: asks FlashInfer for the best runner and tactic of each operation; toy_moe… are mixtures of experts."""
    config = TuningConfig(
        dynamic_tensor_specs=(
            DynamicTensorSpec(
                input_idx=(0,),
                dim_idx=(0,),
                gen_tuning_buckets=_BUCKETS,
                map_to_tuning_buckets=lambda size: max(
                    (bucket for bucket in _BUCKETS if bucket <= size), default=1
                ),
            ),
        )
    )
    inputs = [torch.ones(tokens, 8, dtype=torch.bfloat16), torch.ones(8, 4, dtype=torch.bfloat16)]
    for operation in operations:
        runner = ToyMoeRunner() if operation.startswith("toy_moe") else ToyGemmRunner()
        AutoTuner.get().choose_one(operation, [runner], config, inputs)
