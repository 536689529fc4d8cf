"""What several real ranks of each release do, and that pretune's rank rule agrees with it.

In CI: the two newest with two ranks, in the situations that tell most. With
FIDELITY_RELEASES=installed (`make fidelity`): every situation, with each release that is installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.fidelity.ranks import (
    HANG,
    READY,
    SITUATIONS,
    Player,
    Seen,
    Start,
    applies,
    second_of,
    see,
)
from tests.fidelity.ranks_table import DOCUMENT, document, part
from tests.fidelity.releases import CI_RELEASES, RELEASES, installed, interpreter

ALL = os.environ.get("FIDELITY_RELEASES") == "installed"
SHORT = (
    "two ranks",
    "two ranks, one rank's file is missing",
    "two ranks, one has an entry less",
    "two stages, the second has none",
    "two replicas of experts",
)
TIMES_OUT = "the first start hangs"

# By situation: pretune's verdict, then the second start; {n} is the number of entries of one operation, {m} of two, {t} the tactics timed
# for one, {twice} for two, {less} an entry less. First 0.32 and 0.33, where they agree.
PER_RANK = {
    "two ranks": "PerRank, {n}: warm",
    "four ranks": "PerRank, {n}: warm",
    "two ranks, one rank's file is missing": "IncompleteRanks: tunes all again: {t}, {t}",
    "two ranks, one has an entry less": "IncompleteRanks: tunes all again: {t}, {t}",
    "experts on two ranks": "PerRank, {m}: warm",
    "two stages of as many operations": "PerRank, {m}: warm",
    "two stages, the first has more operations": "PerRank, 63: warm",
    "two stages, the second has none": "PerRank, {n}: warm",
    "two stages, the second one's file is missing": "PerRank, {n}: tunes a part, {n} loaded: 0, {t}",
    "two stages of two ranks": "PerRank, 63: warm",
    "two stages of two ranks, the last rank has an entry less": "IncompleteRanks: tunes a part, {n}, {n} loaded: 0, 0, {t}, {t}",
    "two replicas of two ranks, dense": "PerRank, {n}: warm",
    "two replicas of experts": "PerRank, {m}: warm",
    "two replicas of experts on two ranks": "PerRank, {m}: warm",
}
ONLY = {
    "0.32.0": {
        "two ranks, then the model has another operation": "PerRank, {n}: tunes a part, {n}, {n} loaded: {t}, {t}",
        "two ranks, as many entries, one of them another's": "PerRank, {n}: hangs: rank 0 in barrier in flashinfer_autotune,"
        " rank 1 in all_reduce in measure",
        "two replicas, dense": "PerRank, {n}: warm",
    },
    "0.33.0": {
        "two ranks, then the model has another operation": "PerRank, {n}: warm",
        "two ranks, as many entries, one of them another's": "PerRank, {n}: warm",
        "two replicas, dense": "Managed, {n}: warm",
    },
}
EXPERTS = (
    "experts on two ranks",
    "two replicas of experts",
    "two replicas of experts on two ranks",
)
SHARED = {
    "two ranks": "SharedLayout: warm",
    "four ranks": "SharedLayout: warm",
    "two ranks, then the model has another operation": "SharedLayout: tunes a part, {n}, {n} loaded: {t}, {t}",
    "two ranks, one has an entry less": "SharedLayout: tunes a part, {less}, {less} loaded: 4, 4",
    "two stages of as many operations": "SharedLayout: hangs: rank 0 in barrier in flashinfer_autotune, rank 1 in all_reduce in measure",
    "two stages, the first has more operations": TIMES_OUT,
    "two stages, the second has none": TIMES_OUT,
    "two stages of two ranks": TIMES_OUT,
    "two replicas, dense": "SharedLayout: warm",
    "two replicas of two ranks, dense": "SharedLayout: warm",
}
KEEPING_NOTHING = {
    "two ranks, then the model has another operation": "Empty, 0: tunes all again: {twice}, {twice}",
    "two replicas, dense": "SharedLayout: warm",  # each has one rank
}
HANGING_EXPERTS = {
    2: "SharedLayout: hangs: rank 0 in barrier in flashinfer_autotune, rank 1 in all_reduce in measure",
    4: "SharedLayout: hangs: rank 0 in barrier in flashinfer_autotune, "
    + ", ".join(f"rank {rank} in all_reduce in measure" for rank in (1, 2, 3)),
}


def expected(seen: Seen) -> str:
    """The verdict and the second start, in words."""
    number, kept, situation = (
        RELEASES[seen.release].number,
        RELEASES[seen.release].several,
        seen.situation,
    )
    buckets = (
        5 if number < (0, 30) else 21
    )  # older ones hand FlashInfer no token buckets: the toy operation's own
    if kept == "PerRank":
        words = (PER_RANK | ONLY[seen.release])[situation.name]
    elif kept == "Nothing":
        words = KEEPING_NOTHING.get(
            situation.name, f"Empty, 0: tunes all again: {timed(seen.cold.profiled)}"
        )
    elif situation.name in EXPERTS:  # FlashInfer's keys hold the rank from 0.6.18 on
        words = "SharedLayout: warm" if number < (0, 29) else HANGING_EXPERTS[situation.gpus]
    else:
        words = SHARED[situation.name]
    return words.format(
        n=buckets, m=2 * buckets, t=4 * buckets, twice=8 * buckets, less=buckets - 1
    )


def timed(profiled: dict[int, int]) -> str:
    return ", ".join(str(number) for _, number in sorted(profiled.items()))


def told(seen: Seen) -> str:
    """The same of what was seen."""
    return (
        f"{seen.verdict}: {second_of(seen)}"
        if seen.again
        else f"the first start {seen.cold.outcome}s"
    )


def releases() -> list[str]:
    return installed() if ALL else list(CI_RELEASES)


@pytest.mark.long
@pytest.mark.rehearsal
@pytest.mark.parametrize("release", releases())
def test_ranks_do_in_every_situation_what_is_written_here(release: str, tmp_path: Path) -> None:
    player = Player(interpreter(release, tmp_path / "venv"), tmp_path / "player")
    try:
        all_seen = [
            see(player, release, situation, tmp_path / situation.name)
            for situation in SITUATIONS
            if applies(situation, release) and (ALL or situation.name in SHORT)
        ]
    finally:
        player.close()
    differences = [
        f"{seen.situation.name}: {told(seen)}, and not {expected(seen)}"
        for seen in all_seen
        if told(seen) != expected(seen)
    ]
    assert not differences, "\n".join(
        [*differences, "log of the last start:", (all_seen[-1].again or all_seen[-1].cold).log]
    )
    for seen in all_seen:  # with exactly one timing of each tactic by each rank, whatever the order in which they say so
        assert seen.cold.outcome == HANG or len(seen.cold.profiled) == seen.situation.gpus


def test_the_document_says_what_is_written_here() -> None:
    written = re.split(r"(?m)^## vLLM (\S+)$", DOCUMENT.read_text())[1:]
    by_name = {situation.name: situation for situation in SITUATIONS}
    for release, text in zip(written[::2], written[1::2], strict=True):
        rows = [
            [cell.strip().replace("**", "") for cell in row.split("|")[1:-1]]
            for row in text.splitlines()
            if row[:1] == "|"
        ]
        assert [row[0] for row in rows[2:]] == [
            one.name for one in SITUATIONS if applies(one, release)
        ], release
        for name, _, first, _, verdict, second in rows[2:]:
            numbers = (
                dict(enumerate(int(one) for one in first.split(", "))) if first[0].isdigit() else {}
            )
            cold = start(READY if numbers else HANG, numbers)
            said = f"{verdict}: {second}" if numbers else f"the first start {cold.outcome}s"
            assert said == expected(Seen(release, by_name[name], cold, verdict, None)), (
                f"{release}, {name}"
            )


def start(
    outcome: str = READY,
    profiled: dict[int, int] | None = None,
    loaded: list[int] | None = None,
    waits: dict[int, str] | None = None,
) -> Start:
    return Start(outcome, 1.0, profiled or {}, loaded or [], {}, waits or {})


SITUATION = SITUATIONS[0]


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (None, "-"),
        (start(profiled={0: 0, 1: 0}), "warm"),
        (start(profiled={0: 84, 1: 84}), "tunes all again: 84, 84"),
        (start(profiled={1: 84, 0: 0}, loaded=[21]), "tunes a part, 21 loaded: 0, 84"),
        (start(profiled={0: 4, 1: 4}), "tunes a part: 4, 4"),
        (
            start(HANG, waits={1: "all_reduce in measure", 0: "barrier"}),
            "hangs: rank 0 in barrier, rank 1 in all_reduce in measure",
        ),
        (start("crash"), "crash"),
    ],
)
def test_a_second_start_is_told_in_a_few_words(again: Start | None, words: str) -> None:
    assert (
        second_of(Seen("0.32.0", SITUATION, start(profiled={0: 84, 1: 84}), "PerRank, 21", again))
        == words
    )


def test_a_release_that_is_played_again_replaces_only_its_own_part_of_the_document() -> None:
    seen = Seen(
        "0.32.0",
        SITUATION,
        start(profiled={0: 84, 1: 84}),
        "PerRank, 21",
        start(profiled={0: 0, 1: 0}),
    )
    old = {release: part(release, [seen]) for release in ("0.31.0", "0.32.0", "0.33.0")}
    before = document(old, "")
    assert document({}, before) == before
    new = part(
        "0.32.0", [Seen("0.32.0", SITUATION, start(HANG, waits={0: "barrier"}), "Empty, 0", None)]
    )
    assert document({"0.32.0": new}, before) == before.replace(old["0.32.0"], new)
    assert before.index("## vLLM 0.33.0") < before.index("## vLLM 0.31.0")
    assert "**hangs**: rank 0 in barrier" in new and "| **warm** |" in old["0.32.0"]
