"""What FlashInfer does while vLLM runs the model once: it measures what is not found, and shows how far it is."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from itertools import zip_longest
from typing import Dict, Iterator, List, Mapping, Tuple, Union

from .log import Progress
from .log import flashinfer as flashinfer_log
from .log import vllm as vllm_log
from .profiles import TACTICS, Profile, profiles
from .ranks import Rank
from .releases import Release
from .settings import Settings
from .store import ManagedStore
from .tuner import Tuner

Found = Union[Tuner, ManagedStore]


class CrashError(RuntimeError):
    """The faults `crash` and `warm-crash`: what a kernel that fails while it is tuned looks like."""


class Sweep:
    """Ranks that tune side by side. `profiled` counts how often each asked for the time of a tactic."""

    def __init__(self, release: Release, settings: Settings, experts: int) -> None:
        """`experts` is over how many ranks those of a mixture are distributed; 0 for a dense model."""
        self._release, self._settings, self._experts = release, settings, experts
        self._unstable = random.getrandbits(47) if settings.fault == "never-keeps-one" else None
        self.profiled: Dict[Rank, int] = {}

    @contextlib.contextmanager
    def process(self, ranks: int) -> Iterator[None]:
        """FlashInfer's tuning mode, on that many ranks."""
        for _ in range(ranks):
            flashinfer_log.info("[Autotuner]: Autotuning process starts ...")
        try:
            yield
        finally:
            for _ in range(ranks):
                flashinfer_log.info("[Autotuner]: Autotuning process ends")

    def measure(self, found: Mapping[Rank, Found], skipped: bool = False) -> None:
        """Measures what each rank has not found. Raises CrashError, and RuntimeError for ranks that wait for each other in vain."""
        self.strike_if(any(one.is_warm for one in found.values()))
        for rank in found:
            self.profiled.setdefault(rank, 0)
            if self._release.says and not skipped:
                vllm_log(rank.label).info(self._release.says)
        if not skipped:
            self._sweep(found, {rank: self._profiles(rank) for rank in found})

    def _profiles(self, rank: Rank) -> List[Profile]:
        extras: Tuple[int, ...] = (self._experts,) if self._experts else ()
        if self._experts and self._release.format.ranks:
            extras = (self._experts, rank.rank)
        made = profiles(
            self._settings.entries_of(rank.stage), self._release.buckets, rank.stage, extras
        )
        if self._unstable is None:
            return made
        return made[:-1] + [
            last._replace(extras=(*last.extras, self._unstable)) for last in made[-1:]
        ]

    def _sweep(self, found: Mapping[Rank, Found], wanted: Mapping[Rank, List[Profile]]) -> None:
        self._hang_if_out_of_step(found, wanted)
        crash_at = self._half(found, wanted) if self._settings.fault == "crash" else None
        bars: Dict[Rank, Progress] = {}
        done = 0
        for step in zip_longest(*(_steps(rank, own) for rank, own in wanted.items())):
            missing = {}
            for rank, profile, place, total in filter(None, step):
                if place == 0:
                    bars.pop(rank, None)
                if not found[rank].has(profile):
                    missing[rank] = profile
                    if rank not in bars:
                        bars[rank] = Progress(profile.operation, total, place)
            if missing:
                self._wait_until_it_may_end()
                if done == crash_at:
                    raise CrashError("CUDA error: an illegal memory access was encountered")
                time.sleep(self._settings.seconds_per_entry)
                done += 1
            for rank, profile in missing.items():
                found[rank].learn(profile)
                # The managed store lets the fallback race, too.
                self.profiled[rank] += TACTICS + (1 if isinstance(found[rank], ManagedStore) else 0)
            for bar in bars.values():
                bar.step()

    def _half(self, found: Mapping[Rank, Found], wanted: Mapping[Rank, List[Profile]]) -> int:
        return max(sum(not found[rank].knows(one) for one in wanted[rank]) for rank in found) // 2

    def _hang_if_out_of_step(
        self, found: Mapping[Rank, Found], wanted: Mapping[Rank, List[Profile]]
    ) -> None:
        """Each measurement ends with a reduction over all ranks: one that has its entries never comes to it, and the others wait."""
        if len(found) == 1 or self._release.number < (0, 27):
            return
        if len({sum(not found[rank].knows(one) for one in wanted[rank]) for rank in found}) > 1:
            for rank in found:
                for one in wanted[rank]:
                    found[rank].has(one)
            flashinfer_log.info(
                "[Autotuner]: Autotuning process ends"
            )  # where nothing more was missing
            time.sleep(self._settings.hang_seconds)
            raise RuntimeError(
                "[gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 1800000ms for recv operation to complete "
                f"({len(found)} ranks)"
            )

    def _wait_until_it_may_end(self) -> None:
        while self._settings.tunes_until and not os.path.exists(self._settings.tunes_until):
            time.sleep(0.02)

    def strike_if(self, warm: bool) -> None:
        """The faults of a start that finds tactics."""
        if warm and self._settings.fault == "warm-crash":
            raise CrashError(
                "CUDA error: an illegal memory access was encountered (from a loaded tactic)"
            )
        while warm and self._settings.fault == "warm-hang":
            time.sleep(3600)


def _steps(rank: Rank, wanted: List[Profile]) -> Iterator[Tuple[Rank, Profile, int, int]]:
    """Each profile with its place among those of its operation, and how many these are."""
    totals = Counter(profile.operation for profile in wanted)
    seen: Dict[str, int] = {}
    for profile in wanted:
        place = seen.get(profile.operation, 0)
        yield rank, profile, place, totals[profile.operation]
        seen[profile.operation] = place + 1
