"""The ranks of an engine: one process each, joined by gloo; this process is the first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .releases import name_process

_PR_SET_PDEATHSIG = 1
_PATIENCE = timedelta(minutes=30)  # gloo's own


class Group:
    """What vLLM's GroupCoordinator is to the warm-up: size, place, and three collectives."""

    def __init__(self, ranks: Sequence[int], rank: int, cpu_group: Any) -> None:
        self.ranks = list(ranks)
        self.world_size = len(self.ranks)
        self.rank_in_group = self.local_rank = self.ranks.index(rank)
        self.cpu_group = cpu_group

    def barrier(self) -> None:
        """Waits for all of the group."""
        if self.world_size > 1:
            dist.barrier(group=self.cpu_group)

    def broadcast_object(self, value: Any = None, src: int = 0) -> Any:
        """The value of the group's `src`."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.ranks[src], group=self.cpu_group)
        return box[0]


def on_all_ranks(tensor: int, pipeline: int, work: Callable[[int], None]) -> None:
    """Calls `work(rank)` in a process for each rank, with vLLM's world, pipeline and tensor groups made there.

    The first rank is this process. Raises what `work` raises here, or RuntimeError naming a rank that failed elsewhere.
    """
    size = tensor * pipeline
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        sys.stdout.flush()
        sys.stderr.flush()
        others = {
            rank: _fork(rank, lambda rank: _rank(rank, tensor, pipeline, meeting, work)) for rank in range(1, size)
        }
        _rank(0, tensor, pipeline, meeting, work)
        ends = {rank: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for rank, child in others.items()}
    failed = [f"rank {rank} ended with {status}" for rank, status in ends.items() if status]
    if failed:
        raise RuntimeError(", ".join(failed))


def _fork(rank: int, work: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not wait for gloo when the first rank is gone
    status = 1
    try:
        work(rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _rank(rank: int, tensor: int, pipeline: int, meeting: Path, work: Callable[[int], None]) -> None:
    size = tensor * pipeline
    if size > 1:
        dist.init_process_group("gloo", f"file://{meeting}", timeout=_PATIENCE, rank=rank, world_size=size)
    _groups(rank, tensor, pipeline)
    work(rank)
    if size > 1:
        dist.destroy_process_group()


def _groups(rank: int, tensor: int, pipeline: int) -> None:
    """Puts them where vLLM looks for them. A rank is stage × tensor size + place, as in vLLM."""
    import vllm.distributed.parallel_state as state

    def own(members: list[list[int]]) -> Group:
        groups = [(ranks, dist.new_group(ranks, backend="gloo") if len(ranks) > 1 else None) for ranks in members]
        return next(Group(ranks, rank, group) for ranks, group in groups if rank in ranks)

    stages = [[stage * tensor + place for place in range(tensor)] for stage in range(pipeline)]
    world = own([list(range(tensor * pipeline))])
    tensors, pipelines = own(stages), own([list(column) for column in zip(*stages, strict=True)])
    parallel: Any = state
    parallel.get_world_group = lambda: world
    parallel.get_tp_group = lambda: tensors
    parallel.get_pp_group = lambda: pipelines
    parallel.get_node_count = lambda: 1
    stage, place = divmod(rank, tensor)
    parts = ["Worker"] + [f"PP{stage}"] * (pipeline > 1) + [f"TP{place}"] * (tensor > 1)
    name_process("_".join(parts) if tensor * pipeline > 1 else "EngineCore")
