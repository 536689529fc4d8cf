"""docs/ranks.md, from what several real ranks did.

usage: python -m tests.fidelity.ranks_table [RELEASE…]    default: every release that is installed; "text" plays none

Plays every situation with each release (two to four minutes), and writes its part of the document; parts of other releases stay.
"""

from __future__ import annotations

import re
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.fidelity.ranks import READY, SITUATIONS, Player, Seen, applies, second_of, see, where
from tests.fidelity.releases import RELEASES, installed, interpreter

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/ranks.md"

HEAD = """# Several ranks

What vLLM's own warm-up does with tactics when an engine has several ranks: each rank a real process, in vLLM's own groups over gloo, with
FlashInfer's own tuner and files. Written by `python -m tests.fidelity.ranks_table`; do not edit. How it is played:
`images/rehearsal/README.md`.

Each line is a situation: two starts over one folder. *Timed* is how often FlashInfer asked for the time of a tactic, by rank; a toy
operation has 21 entries (5 where a release hands FlashInfer no token buckets), and four tactics each. *pretune says* is the verdict of
its rank rule on the files that the second start finds: layout and entries, or why it would not publish them. A start hangs when each
rank's own stack says that it waits for the others, and none has had CPU time for 8 seconds; it is ended then. By itself vLLM waits for
gloo's 30 minutes.

## What follows

- **0.32 and 0.33, one stage**: a warm start needs every rank's file, equal metadata, equal entry counts; else all ranks tune again and
  say nothing. pretune's rule is the same: whatever it publishes of a single cold start is warm, whatever it refuses is not.
- **Counts are not contents.** Files with as many entries of other operations pass vLLM's comparison. 0.32 then **hangs** in the middle of
  tuning: the rank that misses waits for the others' timings, which never come. 0.33 skips the sweep, and leaves what is missing on its
  heuristic. One cold start never writes such files; files put together from several can be so.
- **An operation that the files lack** is tuned in 0.32, by all ranks in step, and left on its heuristic in 0.33, with 0 timed: only 0.32
  and older show it.
- **Stages** agree each for itself. A stage that tunes nothing writes no file, so a stage's lost file cannot be told from a silent stage:
  pretune publishes it, and that stage alone tunes again at each start. `spec.verify` finds it.
- **Replicas**: dense ones are engines of their own that write the same names (`dp0_rank0…`) at the same time, and the last one's file
  stays: good for all, since they tune the same. Dense replicas of one GPU each use 0.33's managed store, together; those that come later
  find entries of the first. Replicas of experts are one world in 0.32 as in 0.33: ranks count on (`dp1_rank1`).
- **0.27 to 0.31**: one file, that of rank 0. It is warm for dense models on several ranks of one stage. It **hangs** warm for experts
  from FlashInfer 0.6.18 to 0.7.0.post1 (vLLM 0.29 to 0.31), whose keys hold the rank: rank 0 hits and waits at the barrier, the others
  miss and wait for its timings. With 0.27's FlashInfer 0.6.16.post3, experts are warm. With two stages it **hangs** warm in every one of
  them; and cold, before any file is written, where the stages tune unlike numbers of operations: ranks of all stages are one tuning group
  there.
- **0.25 and 0.26** tune on every rank and keep nothing. Dense replicas of one GPU each are engines of one rank: they keep one file, and are
  warm.

## What cannot be had without a GPU

- NCCL: vLLM's groups are gloo here, and its device communicators do nothing. FlashInfer averages timings over the CPU group, so that is
  the same.
- Real kernels: which operations a model really tunes on which rank and stage, whether their key holds what makes ranks differ (the toy
  mixture of experts holds what FlashInfer's own MoE runner of that release does), and ranks that run out of memory in the middle of
  tuning.
- Experts without tokens on a rank: the toy operation is reached by each rank.
- Several nodes, and the time that anything takes.
"""

TABLE = "| situation | flags | timed in the first start | files, entries | pretune says | second start |\n|---|---|---|---|---|---|\n"


def line(seen: Seen) -> str:
    """One line of a release's table."""
    situation, cold = seen.situation, seen.cold
    flags = (
        " ".join(situation.args)
        .replace("tensor-parallel-size", "tp")
        .replace("pipeline-parallel-size", "pp")
    )
    flags = (
        flags.replace("data-parallel-size", "dp")
        .replace("enable-expert-parallel", "ep")
        .replace("--", "")
    )
    timed = ", ".join(str(number) for _, number in sorted(cold.profiled.items()))
    if cold.outcome != READY:
        timed = f"**hangs**: {where(cold)}" if cold.waits else f"**{cold.outcome}**"
    files = ", ".join(f"{name.removeprefix('autotune_configs').removeprefix('_').removesuffix('.json') or 'shared'} {n}"
                      for name, n in cold.files.items())  # fmt: skip
    if not files:
        files = "managed store" if seen.verdict.startswith("Managed") else "none"
    second = re.sub(r"^(warm|hangs|crash)", r"**\1**", second_of(seen))
    return f"| {situation.name} | {flags} | {timed} | {files} | {seen.verdict} | {second} |\n"


def part(release: str, seen: list[Seen]) -> str:
    """A release's part of the document."""
    pins = RELEASES[release]
    day = datetime.now(UTC).date()
    heading = (
        f"## vLLM {release}\n\nFlashInfer {pins.flashinfer}, torch {pins.torch}; seen on {day}.\n\n"
    )
    return heading + TABLE + "".join(line(one) for one in seen)


def document(parts: dict[str, str], before: str) -> str:
    """The whole of it: what is new, and of `before` the releases that are not."""
    old: dict[str, str] = dict(re.findall(r"(?ms)^## vLLM (\S+)\n(.*?)(?=^## |\Z)", before))
    every = {
        name: f"## vLLM {name}\n{text}" for name, text in old.items() if name in RELEASES
    } | parts
    newest_first = [every[name].rstrip() + "\n" for name in reversed(RELEASES) if name in every]
    return "\n".join([HEAD, *newest_first])


def play(release: str, folder: Path) -> list[Seen]:
    """Every situation that a release can be in."""
    player = Player(interpreter(release, folder / "venv"), folder / "player")
    try:
        fitting = [situation for situation in SITUATIONS if applies(situation, release)]
        return [
            see(player, release, situation, folder / str(number))
            for number, situation in enumerate(fitting)
        ]
    finally:
        player.close()


def main() -> None:
    """See the module's text."""
    if sys.argv[1:] == ["text"]:
        DOCUMENT.write_text(document({}, DOCUMENT.read_text()))
        return
    for release in sys.argv[1:] or installed():
        with tempfile.TemporaryDirectory() as folder:
            made = part(release, play(release, Path(folder)))
        print(made, flush=True)
        before = DOCUMENT.read_text() if DOCUMENT.exists() else ""
        DOCUMENT.write_text(document({release: made}, before))


if __name__ == "__main__":
    main()
