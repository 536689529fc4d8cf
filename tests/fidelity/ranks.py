"""What an engine of several ranks does with tactics: vLLM's own warm-up, each rank a process, vLLM's own groups over gloo.

A situation is two starts over one folder, with something done to its files between them.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretune.engines.evidence import Unsound
from pretune.engines.vllm.tactics import judge

from tests.fidelity.playing import VARIABLE
from tests.fidelity.releases import REHEARSAL, RELEASES

DENSE, EXPERTS = "tiny-model", "tiny-moe-model"
READY, CRASH, HANG = "ready", "crash", "hang"
LONGEST = 90  # seconds that a start may take; one that waits is found sooner
QUIET = 8  # seconds with next to no CPU time: the ranks are asked whether all of them wait
NEXT_TO_NONE = 30  # clock ticks a rank: threads of gloo and of progress bars look around now and then, seen: 12 in 8 seconds
PATTERN = "*/autotune_configs*.json"


@dataclass(frozen=True)
class Situation:
    """`operations` are what the model consists of, as REHEARSAL_OPERATIONS; `then` those of the second start, where they differ."""

    name: str
    args: tuple[str, ...]
    gpus: int
    operations: str = "toy_gemm"
    model: str = DENSE
    change: Callable[[Path], None] | None = None
    then: str | None = None


@dataclass
class Start:
    """What one start did. `profiled`: tactics timed, by rank; `loaded`: entries read, once for each file; `waits`: by rank."""

    outcome: str
    seconds: float
    profiled: dict[int, int]
    loaded: list[int]
    files: dict[str, int]
    waits: dict[int, str] = field(default_factory=dict)
    log: str = ""

    @property
    def is_warm(self) -> bool:
        """Ready, and no rank timed anything."""
        return self.outcome == READY and not any(self.profiled.values())


@dataclass
class Seen:
    """Both starts of a situation, and what pretune says of the files that the second one found."""

    release: str
    situation: Situation
    cold: Start
    verdict: str
    again: Start | None


def rank_files(cache: Path) -> list[Path]:
    """Every file of vLLM's own kind, by name."""
    return sorted(cache.glob(PATTERN))


def entries_of(file: Path) -> int:
    """As vLLM counts them: all but what begins with "_"."""
    return sum(not name.startswith("_") for name in json.loads(file.read_text()))


def lose_a_file(cache: Path) -> None:
    """The second rank's."""
    rank_files(cache)[1].unlink()


def lose_an_entry(cache: Path) -> None:
    """In the last rank's file, or in the only one."""
    _change(rank_files(cache)[-1], None)


def swap_an_entry(cache: Path) -> None:
    """The last rank's file has as many entries, but one of them is of an operation that is not there."""
    _change(rank_files(cache)[-1], "toy_gone")


def _change(file: Path, to: str | None) -> None:
    content = json.loads(file.read_text())
    key = min(name for name in content if not name.startswith("_"))
    value = content.pop(key)
    if to:
        content[key.replace("toy_gemm", to)] = value
    file.write_text(json.dumps(content))


TP2, TP4 = ("--tensor-parallel-size", "2"), ("--tensor-parallel-size", "4")
PP2, DP2 = ("--pipeline-parallel-size", "2"), ("--data-parallel-size", "2")
EP = ("--enable-expert-parallel",)
MIXED = "toy_gemm,toy_moe"

SITUATIONS = [
    Situation("two ranks", TP2, 2),
    Situation("four ranks", TP4, 4),
    Situation("two ranks, then the model has another operation", TP2, 2, then="toy_gemm,toy_more"),
    Situation("two ranks, one rank's file is missing", TP2, 2, change=lose_a_file),
    Situation("two ranks, one has an entry less", TP2, 2, change=lose_an_entry),
    Situation("two ranks, as many entries, one of them another's", TP2, 2, change=swap_an_entry),
    Situation("experts on two ranks", (*TP2, *EP), 2, MIXED, EXPERTS),
    Situation("two stages of as many operations", PP2, 2, "toy_gemm|toy_other"),
    Situation("two stages, the first has more operations", PP2, 2, "toy_gemm,toy_more|toy_other"),
    Situation("two stages, the second has none", PP2, 2, "toy_gemm|"),
    Situation(
        "two stages, the second one's file is missing",
        PP2,
        2,
        "toy_gemm|toy_other",
        change=lose_a_file,
    ),
    Situation("two stages of two ranks", (*PP2, *TP2), 4, "toy_gemm,toy_more|toy_other"),
    Situation(
        "two stages of two ranks, the last rank has an entry less",
        (*PP2, *TP2),
        4,
        "toy_gemm|toy_other",
        change=lose_an_entry,
    ),
    Situation("two replicas, dense", DP2, 2),
    Situation("two replicas of two ranks, dense", (*DP2, *TP2), 4),
    Situation("two replicas of experts", (*DP2, *EP), 2, MIXED, EXPERTS),
    Situation("two replicas of experts on two ranks", (*DP2, *TP2, *EP), 4, MIXED, EXPERTS),
]


def applies(situation: Situation, release: str) -> bool:
    """Files are lost and swapped by rank only where there is one for each, and changed only where there is any."""
    kept = RELEASES[release].several
    if kept == "PerRank" or situation.change is None:
        return True
    return kept == "Shared" and situation.change is lose_an_entry and PP2[0] not in situation.args


class Player:
    """Starts engines of one release, one after another; vLLM is imported once, each start is a fork of that."""

    def __init__(self, interpreter: Path, folder: Path) -> None:
        self._folder, self._number = folder, 0
        (folder / "home").mkdir(parents=True)
        command = [
            str(interpreter),
            str(Path(__file__).with_name("ranks_engine.py")),
            str(REHEARSAL),
        ]
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
        self._errors = (folder / "errors").open("wb")
        self._process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def start(self, situation: Situation, cache: Path, operations: str) -> Start:
        """One start over `cache`. What hangs is asked where each rank waits, and ended."""
        assert self._process.stdin and self._process.stdout
        self._number += 1
        log = self._folder / f"log{self._number}"
        environ = {VARIABLE: str(cache), "REHEARSAL_OPERATIONS": operations}
        words = [str(REHEARSAL / situation.model), *situation.args]
        self._process.stdin.write(
            json.dumps({"words": words, "environ": environ, "log": str(log)}) + "\n"
        )
        self._process.stdin.flush()
        began = time.monotonic()
        waits = self._watch(log, began)
        answer = self._answer()
        outcome = HANG if waits else READY if answer == "0" else CRASH
        text = log.read_text(errors="replace")
        profiled = {
            int(rank or 0): int(n)
            for rank, n in re.findall(r"rehearsal: (?:rank (\d+): )?profiled (\d+)", text)
        }
        return Start(
            outcome=outcome,
            seconds=time.monotonic() - began,
            profiled=profiled,
            loaded=[
                int(number) for number in re.findall(r"\[Autotuner\]: Loaded (\d+) configs", text)
            ],
            files={file.name: entries_of(file) for file in rank_files(cache)},
            waits=waits,
            log=text,
        )

    def _answer(self) -> str:
        assert self._process.stdout
        answer = self._process.stdout.readline().strip()
        assert answer, f"ranks_engine.py ended:\n{(self._folder / 'errors').read_text()}"
        return answer

    def _watch(self, log: Path, began: float) -> dict[int, str]:
        """Returns when it ended, with nothing; or when all of it waits, with where, and ends it."""
        assert self._process.stdout
        spent, since = 0, began
        while True:
            readable, _, _ = select.select(
                [self._process.stdout], [], [], 0.5 if time.monotonic() - began > 2 else 0.05
            )
            if readable:
                return {}
            ranks = _below(self._process.pid)
            now, used = time.monotonic(), sum(_cpu(pid) for pid in ranks)
            if abs(used - spent) > NEXT_TO_NONE * len(ranks) or not ranks:
                spent, since = used, now
            if ranks and (now - since > QUIET or now - began > LONGEST):
                waits = {number: _where(pid, log) for number, pid in enumerate(ranks)}
                if (
                    all(wait.startswith(_COLLECTIVES) for wait in waits.values())
                    or now - began > LONGEST
                ):
                    os.kill(ranks[0], signal.SIGKILL)  # the others end with it
                    return waits
                since = now  # one of them is at work, on a machine that has no time for it


def _below(pid: int) -> list[int]:
    """The first rank, a child of `pid`, and its own children, the other ranks in their order."""
    try:
        first = _children(pid)
        return first + [one for top in first for one in _children(top)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children(pid: int) -> list[int]:
    """Its forks; not the programs that it started, such as Python's own tracker of shared memory."""
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for one in found if Path(f"/proc/{one}/cmdline").read_bytes() == own]


def _cpu(pid: int) -> int:
    """Clock ticks spent by a process; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


_COLLECTIVES = (
    "all_reduce",
    "barrier",
    "broadcast_object_list",
    "all_gather_object",
    "init_process_group",
)
_TELLING = ("kernels.py", "kernel_warmup.py", "ranks.py")


def _where(pid: int, log: Path) -> str:
    """The collective that a rank waits in, and who called it, from its own stack."""
    before = log.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    said = (
        log.read_bytes()[before:]
        .decode(errors="replace")
        .rpartition("Current thread")[2]
        .partition("\nThread")[0]
    )
    stack = re.findall(r'File "[^"]*/([^/"]+)", line \d+ in (\w+)', said)
    collective = next(
        (function for _, function in stack if function in _COLLECTIVES),
        stack[0][1] if stack else "no answer",
    )
    caller = next((function for file, function in stack if file in _TELLING), "")
    return f"{collective} in {caller}" if caller else collective


def verdict_of(cache: Path, situation: Situation) -> str:
    """What pretune would publish these files as, or why not."""
    paths = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]
    words: Sequence[str] = ["vllm", "serve", "model", *situation.args]
    try:
        found = judge(paths, lambda path: (cache / path).read_bytes(), situation.gpus, words)
    except Unsound as error:
        return error.reason
    return f"{found.layout}, {found.entries}"


def second_of(seen: Seen) -> str:
    """The second start in a few words; "-" where there was none."""
    again = seen.again
    if again is None:
        return "-"
    if again.outcome != READY:
        return f"{again.outcome}s: {where(again)}" if again.waits else again.outcome
    timed = [number for _, number in sorted(again.profiled.items())]
    if not any(timed):
        return "warm"
    as_cold = all(
        again.profiled[rank] >= number for rank, number in seen.cold.profiled.items() if number
    )
    loaded = ", ".join(str(number) for number in sorted(again.loaded))
    words = (
        "tunes all again"
        if as_cold and not again.loaded
        else f"tunes a part, {loaded} loaded"
        if loaded
        else "tunes a part"
    )
    return f"{words}: {', '.join(str(number) for number in timed)}"


def where(start: Start) -> str:
    """Where each rank of a start that hangs waits."""
    return ", ".join(f"rank {rank} in {wait}" for rank, wait in sorted(start.waits.items()))


def see(player: Player, release: str, situation: Situation, folder: Path) -> Seen:
    """Plays a situation in an empty folder. There is no second start where the first one did not end well."""
    folder.mkdir(parents=True)
    cold = player.start(situation, folder, situation.operations)
    if cold.outcome != READY:
        return Seen(release, situation, cold, verdict_of(folder, situation), None)
    if situation.change:
        situation.change(folder)
    verdict = verdict_of(folder, situation)
    again = player.start(situation, folder, situation.then or situation.operations)
    return Seen(release, situation, cold, verdict, again)
