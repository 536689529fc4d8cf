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
        "in pods of a real cluster that ask for one GPU, or for two where it says so, fed by the operator of this checkout. Real are the",
        "config, the key, the files, the log lines, the collectives (over gloo) and the crashes; the model is one toy operation, or two",
        "where one is missing in the bundle, for each of the token buckets. `make fidelity RELEASES=…` plays some releases again and keeps",
        "the other columns; what was seen lies in `tests/fidelity/matrix/results`.",
        "",
    )
    yield from _played(all_played)
    yield from _matrix(all_played)
    yield from _unexpected(all_played)
    yield from (
        "## What was seen",
        "",
        "Of each situation: what lay in the override folder when the engine started, and what changed until it served or ended (`+` new,",
        "`~` other content, `=` written again with the same content, `-` gone; with modes). KEY, ENV and ENTRY stand for hashes, ROOT for",
        "the folder. Of pretune's words and the log's lines about tactics those are left out that every start of the release has.",
        "",
    )
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
        "How often FlashInfer asked for a tactic's time until the engine served. A star: not as expected, see below.",
        "",
        f"| situation | {' | '.join(one.release for one in all_played)} |",
        f"|---|{'---|' * len(all_played)}",
    )
    odd = {one.release: differences(one) for one in all_played}
    for name in CELLS:
        cells = []
        for one in all_played:
            mark = "\\*" if name in odd[one.release] else ""
            cells.append(_short(one.cells[name]) + mark if name in one.cells else "not run")
        yield f"| [{name}](#{_anchor(name)}) | {' | '.join(cells)} |"
    yield ""


def _short(outcome: Outcome) -> str:
    if not outcome.started:
        return "**crash**"
    return str(outcome.profiled) if outcome.profiled else "**0**"


def _unexpected(all_played: list[Played]) -> Iterator[str]:
    yield from ("## Where a run differs from what was expected", "")
    found = [
        f"- {one.release}, {cell}: {'; '.join(said)}"
        for one in all_played
        for cell, said in differences(one).items()
    ]
    yield from found or ["Nowhere."]
    yield ""
    missing = [
        f"- {one.release}, {cell}: {one.missing.get(cell, 'the run that is shown did not have it')}"
        for one in all_played
        for cell in CELLS
        if cell not in one.cells
    ]
    never = sorted(set(RELEASES) - {one.release for one in all_played})
    missing += [f"- {release}: `make fidelity RELEASES={release}`" for release in never]
    if missing:
        yield from ("## What was not played", "", *missing, "")


def _cell(name: str, sentence: str, all_played: list[Played]) -> Iterator[str]:
    yield from (f"### {name[0].upper()}{name[1:]}", "", sentence, "")
    groups: dict[str, list[str]] = {}
    for one in all_played:
        if name in one.cells:
            groups.setdefault("\n".join(_details(name, one)), []).append(one.release)
    for details, releases in groups.items():
        yield f"- **{', '.join(releases)}**: {details}"
    yield ""


def _details(name: str, played: Played) -> Iterator[str]:
    """Its first line goes on behind the releases' names."""
    outcome = played.cells[name]
    yield (
        f"started, {_timed(name, played)}." if outcome.started else f"ended with `{outcome.error}`."
    )
    yield f"  - Folder: {_code(outcome.before) or 'empty'}; then {_code(outcome.changed) or 'no change'}."
    usual = () if name in ("cold", "nothing to tune") else played.cells["cold"].operator
    told = [one for one in outcome.operator if one not in usual]
    yield f"  - pretune: {' · '.join(told) or 'nothing more'}."
    always = _said_always(played)
    if told := [one for one in outcome.said if one not in always]:
        yield f"  - Log: {' · '.join(f'`{one}`' for one in told)}"


def _timed(name: str, played: Played) -> str:
    number = played.cells[name].profiled or 0
    if name == "image swapped":
        return "all timed by the other release" if number else "nothing timed"
    whole = {
        0: "nothing timed",
        played.one: "one operation timed",
        2 * played.one: "both operations timed",
    }
    return whole.get(number, f"{number} times asked")


_USUAL = ("cold", "warm", "another FlashInfer, untold")  # saved, loaded, and neither


def _said_always(played: Played) -> set[str]:
    """What every engine says that comes to its tactics at all."""
    found = [set(played.cells[name].said) for name in _USUAL if name in played.cells]
    return set.intersection(*found) if len(found) == len(_USUAL) else set()


def _code(lines: list[str]) -> str:
    return ", ".join(f"`{one}`" for one in lines)


def _anchor(name: str) -> str:
    return "".join(one for one in name.lower().replace(" ", "-") if one.isalnum() or one == "-")
