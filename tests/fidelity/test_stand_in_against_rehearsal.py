"""The stand-in against each release's own code, in the same situations.

FIDELITY_RELEASES names the releases, with commas between, or is `installed`: they go through all situations. Without it those two that
CI runs go through all with one rank, and through those with several where the code for several ranks decides. What is missing is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from images.engine.stand_in.arguments import parse
from images.engine.stand_in.gpus import gpu
from images.engine.stand_in.key import key
from images.engine.stand_in.releases import RELEASES as PLAYED
from tests.fidelity.playing import VARIABLE, files, started
from tests.fidelity.releases import CI_RELEASES, REHEARSAL, RELEASES, installed, interpreter
from tests.fidelity.seen import differing, judged
from tests.fidelity.sides import MODEL, TOY_BUCKETS, VLLM_BUCKETS, Played, Real, Rehearsals, play
from tests.fidelity.situations import (
    H200,
    KEYS,
    KNOWN_DIFFERENCES,
    ONE,
    SITUATIONS,
    Engine,
    Situation,
    known,
)

pytestmark = pytest.mark.rehearsal
ASKED = os.environ.get("FIDELITY_RELEASES", "")


def chosen() -> list[str]:
    """The releases to be played, all situations of one after those of another."""
    if ASKED == "installed":
        return installed()
    return [name.strip() for name in ASKED.split(",")] if ASKED else list(CI_RELEASES)


def number(release: str) -> tuple[int, ...]:
    return RELEASES[release].number


PLAYS = [
    (release, situation, engine)
    for release in chosen()
    for situation in SITUATIONS
    for engine in situation.engines
    if situation.applies(number(release), engine)
    if ASKED or engine == ONE or situation.always
]


@pytest.mark.parametrize(
    ("release", "situation", "engine"),
    PLAYS,
    ids=[f"{release}-{engine.name}-{situation.name}" for release, situation, engine in PLAYS],
)
def test_the_stand_in_does_what_vllm_does(
    rehearsals: Callable[[str], Rehearsals],
    engines: Path,
    tmp_path: Path,
    release: str,
    situation: Situation,
    engine: Engine,
) -> None:
    buckets = VLLM_BUCKETS if number(release) >= (0, 30) else TOY_BUCKETS
    real = play(Real(rehearsals(release), tmp_path.name), engine, situation)
    played = play(Played(engines / release, tmp_path, buckets), engine, situation)
    found: dict[str, str] = {}
    for at, (left, right) in enumerate(zip(real, played, strict=True), 1):
        for aspect, text in differing(left, right).items():
            found[aspect] = found.get(aspect, "") + f"\nstart {at}, {aspect}:\n{text}"
    wrong = judged(found, known(situation, engine, number(release)))
    assert not wrong, wrong


def test_every_known_difference_is_one_of_a_situation_that_is_played() -> None:
    named = {
        (situation.name, engine.name) for situation in SITUATIONS for engine in situation.engines
    }
    assert {
        (difference.situation, difference.engine.name) for difference in KNOWN_DIFFERENCES
    } <= named


@pytest.mark.parametrize("release", chosen())
def test_the_stand_in_s_key_changes_with_what_changes_vllm_s(
    rehearsals: Callable[[str], Rehearsals], release: str
) -> None:
    real, played = rehearsals(release), PLAYED[release]
    plain = {"HOME": "/root"}
    base, base_played = (
        real.key(["MODEL"], plain),
        key(played, parse([MODEL]), gpu(H200.name), plain),
    )
    assert base and real.key(["MODEL"], plain) == base  # the same at each start
    wrong = []
    for args, environ, product, _ in KEYS:
        words, given = args.split(), {**plain, **environ}
        device = {"REHEARSAL_GPU": product.name, "REHEARSAL_CAPABILITY": product.capability}
        after = real.key(["MODEL", *words], {**given, **device})
        after_played = key(
            played, parse([MODEL, *words]), gpu(product.name), given
        )  # MODEL in words: any path
        if after is None or (after == base) != (after_played == base_played):
            answer = "cannot be had" if after is None else "same" if after == base else "changed"
            wrong.append(f"{args or environ or product.name}: vLLM's key {answer}")
    assert not wrong, "\n".join(wrong)


def test_the_rehearsal_serves_health_once_it_is_warm_and_says_what_it_profiled(
    tmp_path: Path,
) -> None:
    cache, python = tmp_path / "cache", interpreter("0.33.0", tmp_path)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), VARIABLE: str(cache)}
    command = [str(python), str(REHEARSAL / "vllm"), "serve", str(MODEL)]
    with started(command, environ, tmp_path / "log") as engine:
        assert engine.health() is None
        engine.until_ready(240)
        engine.process.terminate()
        assert engine.ended(5) == 0
        assert (
            f"rehearsal: profiled {5 * VLLM_BUCKETS}" in engine.log
        )  # four tactics and the fallback
    assert files(cache) == ["v2/ENV/entries/ENTRY.json"] * VLLM_BUCKETS + ["v2/ENV/manifest.json"]
