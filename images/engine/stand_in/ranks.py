"""Which ranks an engine has, how they are numbered in file names, and which of them tune together."""

from __future__ import annotations

from typing import List, NamedTuple

from .arguments import Arguments, ArgumentsError


class Rank(NamedTuple):
    """One worker: `dp` and `rank` are those of its file's name, `label` is its prefix in vLLM's log."""

    dp: int
    rank: int
    stage: int
    label: str

    @property
    def file_name(self) -> str:
        return f"autotune_configs_dp{self.dp}_rank{self.rank}.json"


class World(NamedTuple):
    """The ranks of one world group."""

    ranks: List[Rank]
    groups: List[List[Rank]]  # those that tune together
    is_simple: bool  # one rank, one stage, one node: what FlashInfer's managed store needs
    legacy: str  # what 0.33 says where it is not simple, if anything


def world_of(arguments: Arguments) -> World:
    """From the parallel sizes; `--enable-expert-parallel` makes the model a mixture of experts. Raises ArgumentsError.

    Data-parallel replicas of experts are one world. Those of a dense model are worlds of their own that do the same onto the same paths
    at the same time: one is played.
    """
    tp = arguments.number("tensor-parallel-size", 1)
    pp = arguments.number("pipeline-parallel-size", 1)
    dp = arguments.number("data-parallel-size", 1)
    if min(tp, pp, dp) < 1:
        raise ArgumentsError("parallel sizes start at 1")
    nodes = arguments.number("nnodes", 1)
    experts = arguments.is_on("enable-expert-parallel")

    def replica(index: int) -> List[Rank]:
        first = index * tp * pp if experts else 0
        return [
            Rank(
                index if experts else 0,
                first + stage * tp + at,
                stage,
                _label(index if dp > 1 else None, stage, at, tp, pp),
            )
            for stage in range(pp)
            for at in range(tp)
        ]

    ranks = [rank for index in range(dp if experts else 1) for rank in replica(index)]
    return World(
        ranks, _groups(ranks, pp), len(ranks) == 1 and nodes == 1, _legacy(ranks, pp, nodes)
    )


def _legacy(ranks: List[Rank], pp: int, nodes: int) -> str:
    if pp > 1 or (nodes == 1 and len(ranks) == 1):
        return ""
    if nodes > 1:
        return "multi-node deployments; managed-cache synchronization is currently supported only within one node."
    return "multi-rank deployments until FlashInfer coordinates cache hits."


def _groups(ranks: List[Rank], pp: int) -> List[List[Rank]]:
    if pp == 1:
        return [ranks]
    stages = sorted({(rank.dp, rank.stage) for rank in ranks})
    return [[rank for rank in ranks if (rank.dp, rank.stage) == stage] for stage in stages]


def _label(replica: object, stage: int, at: int, tp: int, pp: int) -> str:
    if tp * pp == 1:
        return "EngineCore" if replica is None else f"EngineCore_DP{replica}"
    parts = ["Worker"]
    parts += [] if replica is None else [f"DP{replica}"]
    parts += [f"PP{stage}"] if pp > 1 else []
    parts += [f"TP{at}"] if tp > 1 else []
    return "_".join(parts)
