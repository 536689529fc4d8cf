"""docs/compatibility.md, from the results that lie beside this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.cluster.conftest import ROOT
from tests.fidelity.matrix.cells import CELLS
from tests.fidelity.matrix.judge import differences
from tests.fidelity.matrix.outcome import RESULTS, Outcome, Played
from tests.fidelity.releases import RELEASES

FILE = ROOT / "docs/compatibility.md"


def write() -> None:
    FILE.write_text(text())


def text() -> str:
    return "\n".join(_lines(results())) + "\n"


def results(folder: Path = RESULTS) -> list[Played]:
    """What lies there, the oldest release first."""
    found = [Played.read(file) for file in folder.glob("*.json")]
    return sorted(found, key=lambda played: RELEASES[played.release].number)


def _lines(all_played: list[Played]) -> Iterator[str]:
    yield from (
        "# What each vLLM release does with a bundle",
        "",
        "Written by `make fidelity`: each release's own `kernel_warmup()` and FlashInfer's own AutoTuner, on a CPU (`images/rehearsal`),",
        "in pods of a real cluster that ask for one GPU, fed by the operator of this checkout. Real are the config, the key, the files,",
        "the log lines and the crashes; the model is one toy operation, for each of vLLM's token buckets. `make fidelity RELEASES=…` plays",
        "some releases again and keeps the other columns. Engines with several GPUs are not in it.",
        "",
    )
    yield from _played(all_played)
    yield from _matrix(all_played)
    yield from _unexpected(all_played)
    for name, sentence in CELLS.items():
        yield from _cell(name, sentence, all_played)


def _played(all_played: list[Played]) -> Iterator[str]:
    yield from (
        "## What was run",
        "",
        "| vLLM | FlashInfer | torch | layout | when | pretune |",
        "|---|---|---|---|---|---|",
    )
    for one in all_played:
        told = [one.versions[name] for name in ("vllm", "flashinfer", "torch")]
        yield f"| {' | '.join([*told, RELEASES[one.release].one, one.at, f'`{one.pretune}`'])} |"
    yield ""


def _matrix(all_played: list[Played]) -> Iterator[str]:
    yield from (
        "## The matrix",
        "",
        "Whether the engine started, and how often FlashInfer asked for a tactic's time: 0 is a warm start. **Bold**: it ended. \\*: not as"
        " expected, see below.",
        "",
        f"| situation | {' | '.join(one.release for one in all_played)} |",
        f"|---|{'---|' * len(all_played)}",
    )
    odd = {one.release: differences(one) for one in all_played}
    for name in CELLS:
        cells = []
        for one in all_played:
            mark = "\\*" if name in odd[one.release] else ""
            cells.append(_short(one.cells[name], one) + mark if name in one.cells else "not run")
        yield f"| [{name}](#{_anchor(name)}) | {' | '.join(cells)} |"
    yield ""


def _short(outcome: Outcome, played: Played) -> str:
    if not outcome.started:
        return "**ended**"
    what = "warm" if outcome.profiled == 0 else "all" if outcome.profiled == played.one else "tuned"
    return f"{outcome.profiled} ({what})" if outcome.profiled else "0"


def _unexpected(all_played: list[Played]) -> Iterator[str]:
    yield from ("## Where a run differs from what was expected", "")
    found = [
        f"- {one.release}, {cell}: {'; '.join(said)}" for one in all_played for cell, said in differences(one).items()
    ]
    yield from found or ["Nowhere."]
    missing = [f"- {one.release}, {cell}: not run: {why}" for one in all_played for cell, why in one.missing.items()]
    yield from (*missing, "")


def _cell(name: str, sentence: str, all_played: list[Played]) -> Iterator[str]:
    yield from (f"## {name[0].upper()}{name[1:]}", "", sentence, "")
    groups: dict[str, list[str]] = {}
    for one in all_played:
        if name in one.cells:
            groups.setdefault("\n".join(_details(one.cells[name])), []).append(one.release)
    for details, releases in groups.items():
        yield from (f"**{', '.join(releases)}**", "", details, "")


def _details(outcome: Outcome) -> Iterator[str]:
    if outcome.started:
        yield f"- Started; {outcome.profiled} tactics timed."
    else:
        yield f"- Ended with `{outcome.error}`."
    yield f"- Files: {_code(outcome.before) or 'none'}; then {_code(outcome.changed) or 'no change'}."
    yield from (f"- pretune: {line}" for line in outcome.operator)
    yield from (f"- `{line}`" for line in outcome.said)


def _code(lines: list[str]) -> str:
    return ", ".join(f"`{one}`" for one in lines)


def _anchor(name: str) -> str:
    return "".join(one for one in name.lower().replace(" ", "-") if one.isalnum() or one == "-")
