"""Runs vLLM's own `kernel_warmup()` over a worker that has a config and a toy model."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from . import kernels
from .device import Hollow
from .log import say
from .ranks import on_all_ranks
from .releases import replace, switch_off
from .settings import Settings

_REAL = ("kernel_warmup", "flashinfer_autotune_cache")


def warm_up(config: Any, settings: Settings) -> None:
    """Tunes, and keeps what was tuned, as vLLM does, on as many ranks as the config has. Raises what vLLM raises, or RuntimeError."""
    module = kernel_warmup_module()
    kernels.time_on_paper()

    def one(own: Any, number: int, rank: int) -> None:
        module.kernel_warmup(
            _worker(own, settings.of_stage(rank // own.parallel_config.tensor_parallel_size))
        )
        who = f"rank {number}: " if number else ""
        say(f"{who}profiled {kernels.profiled}")

    on_all_ranks(config, one)


def kernel_warmup_module() -> Any:
    """vLLM's module, with the warm-ups of other libraries' kernels emptied: they would compile for a GPU."""
    import vllm.model_executor.warmup as package

    for found in pkgutil.iter_modules(package.__path__):
        if found.name not in _REAL:
            name = f"{package.__name__}.{found.name}"
            sys.modules.setdefault(name, Hollow(name))
    module: Any = importlib.import_module("vllm.model_executor.warmup.kernel_warmup")
    replace(
        module,
        _warmup_ll_bf16_router_gemm=lambda *args: None,
        _warmup_bf16x3_router_gemm=lambda *args: None,
        is_deep_gemm_supported=lambda: False,
    )
    return module


def _worker(config: Any, operations: Sequence[str]) -> Any:
    switch_off(config.kernel_config, "enable_jit_warmup", "enable_cutedsl_warmup")
    model = torch.nn.Linear(1, 1)

    def dummy_run(num_tokens: int, **_: Any) -> None:
        kernels.run(operations, num_tokens)

    runner = SimpleNamespace(
        vllm_config=config,
        scheduler_config=config.scheduler_config,
        is_pooling_model=True,  # no attention warm-up
        max_num_reqs=config.scheduler_config.max_num_seqs,
        max_num_tokens=config.scheduler_config.max_num_batched_tokens,
        get_model=lambda: model,
        _dummy_run=dummy_run,
    )
    return SimpleNamespace(
        vllm_config=config,
        scheduler_config=config.scheduler_config,
        model_runner=runner,
        use_v2_model_runner=True,
        get_model=lambda: model,
    )
