"""The table that make bench prints: what was measured, what it is held against in the same run, and whether the aim is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEAD = ("what", "measured", "against", "ratio", "aim", "met")


@dataclass(frozen=True)
class Row:
    """One line. `met` is None where there is no aim, or where the line only explains another."""

    what: str
    measured: str
    against: str = ""
    ratio: str = ""
    aim: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return self.what, self.measured, self.against, self.ratio, self.aim, met


def lines(rows: Sequence[Row]) -> list[str]:
    """Aligned columns under a head; columns that nothing stands in are left out."""
    cells = [HEAD, *(row.cells() for row in rows)]
    columns = [number for number in range(len(HEAD)) if any(one[number] for one in cells[1:])]
    widths = {number: max(len(one[number]) for one in cells) for number in columns}
    return [
        "  " + "   ".join(one[number].ljust(widths[number]) for number in columns).rstrip()
        for one in cells
    ]
