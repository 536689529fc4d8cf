"""An outcome held against what was expected: differences as sentences."""

from __future__ import annotations

from tests.fidelity.matrix.expected import Expected, expected
from tests.fidelity.matrix.outcome import Outcome, Played


def differences(played: Played) -> dict[str, list[str]]:
    """By cell, what is not as expected; cells that are, or that were not played, are left out."""
    wanted = expected(played.release)
    found = {name: differing(one, wanted[name], played.one) for name, one in played.cells.items()}
    return {name: said for name, said in found.items() if said}


def differing(outcome: Outcome, wanted: Expected, one: int) -> list[str]:
    """`one`: how many profiles one operation takes."""
    found = []
    if outcome.started != wanted.starts:
        ended = f"it ended: {outcome.error}"
        found.append(
            f"expected to {'start' if wanted.starts else 'end'}, but {'it started' if outcome.started else ended}"
        )
    if wanted.of_another:
        found += [] if outcome.profiled else [f"expected some profiles, seen {outcome.profiled}"]
    elif wanted.operations is not None and outcome.profiled != wanted.operations * one:
        found.append(f"expected {wanted.operations * one} profiles, seen {outcome.profiled}")
    signs = "".join(sorted({line[0] for line in outcome.changed}))
    if signs != wanted.changes:
        found.append(
            f"expected {_changes(wanted.changes)}, seen {'; '.join(outcome.changed) or 'no change'}"
        )
    lines = [*outcome.said, outcome.error]
    found += [
        f"expected a line with {part!r}"
        for part in wanted.says
        if not any(part in line for line in lines)
    ]
    found += [
        f"expected the operator to say {part!r}"
        for part in wanted.operator
        if not any(part in line for line in outcome.operator)
    ]
    return found


def _changes(signs: str) -> str:
    words = {
        "+": "new files",
        "~": "changed files",
        "=": "files written again with the same content",
        "-": "lost files",
    }
    return " and ".join(words[one] for one in signs) or "no change"
