"""The ranks of an engine: one process each, in vLLM's own groups over gloo; this process is the first."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .releases import name_process, replace

_PR_SET_PDEATHSIG = 1
Work = Callable[[Any, int, int], None]


class _Done(BaseException):
    """The replica did its work: no busy loop follows. Not an Exception: vLLM would report one."""


def on_all_ranks(config: Any, work: Work) -> None:
    """Calls `work(config, number, rank)` in a process for each rank, with vLLM's groups made there.

    `rank` is that in its replica: stage × tensor size + place. `number` counts over the data-parallel replicas too. `config` is what
    vLLM makes of the engine's for that replica. The first rank is this process.
    Raises what `work` raises here, or RuntimeError naming a rank that failed elsewhere.
    """
    parallel = config.parallel_config
    size = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.flush()
        sys.stderr.flush()

        def run(number: int) -> None:
            replica, rank = divmod(number, size)
            _in_replica(
                config,
                replica,
                lambda own: _rank(own, number, rank, Path(folder) / f"meeting{replica}", work),
            )

        others = {
            number: _fork(number, run) for number in range(1, size * parallel.data_parallel_size)
        }
        run(0)
        ends = {
            number: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for number, child in others.items()
        }
    failed = [f"rank {number} ended with {status}" for number, status in ends.items() if status]
    if failed:
        raise RuntimeError(", ".join(failed))


def _fork(number: int, work: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL
    )  # it must not wait for gloo when the first rank is gone
    status = 1
    try:
        work(number)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _in_replica(config: Any, replica: int, work: Callable[[Any], None]) -> None:
    """Calls `work` with the config of that replica, as vLLM's own start of an engine process changes it."""
    if config.parallel_config.data_parallel_size == 1:
        work(config)
        return
    core = importlib.import_module("vllm.v1.engine.core")
    start = core.EngineCoreProc.run_engine_core

    class Engine:
        """In the place of vLLM's engines, dense or not."""

        def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
            work(vllm_config)
            raise _Done

    replace(core, EngineCoreProc=Engine, DPEngineCoreProc=Engine)
    replace(core, decorate_logs=lambda *args: None, set_process_title=lambda *args, **kwargs: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        start(vllm_config=config, dp_rank=replica, local_dp_rank=replica)
    except _Done:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rank(config: Any, number: int, rank: int, meeting: Path, work: Work) -> None:
    """Joins vLLM's groups, works, and leaves them."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state as state

    parallel = config.parallel_config
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    name_process(_label(parallel, rank))
    with set_current_vllm_config(config):
        # It meets elsewhere, under a rank of its own reckoning, where data parallelism makes one world of several replicas.
        state.init_distributed_environment(
            tensor * pipeline, rank, f"file://{meeting}", rank, "gloo"
        )
        state.initialize_model_parallel(tensor, pipeline)
    work(config, number, rank)
    state.destroy_model_parallel()
    dist.destroy_process_group()


def _label(parallel: Any, rank: int) -> str:
    """What vLLM calls the process in its log lines."""
    stage, place = divmod(rank, parallel.tensor_parallel_size)
    replica = [f"DP{parallel.data_parallel_index}"] * (
        parallel.data_parallel_index > 0 or parallel.data_parallel_size > 1
    )
    if parallel.tensor_parallel_size * parallel.pipeline_parallel_size == 1:
        return "_".join(["EngineCore", *replica])
    parts = [f"PP{stage}"] * (parallel.pipeline_parallel_size > 1) + [f"TP{place}"] * (
        parallel.tensor_parallel_size > 1
    )
    return "_".join(["Worker", *replica, *parts])
