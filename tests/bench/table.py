"""The table that make bench prints: what was measured, the comparison, and whether the aim is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEAD = ("what", "measured", "against", "ratio", "aim", "met")


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None without an aim, or where the line only explains another."""

    what: str
    measured: str
    against: str = ""
    ratio: str = ""
    aim: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return self.what, self.measured, self.against, self.ratio, self.aim, met


def format_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table, with aligned columns; empty columns are left out."""
    cells = [HEAD, *(row.cells() for row in rows)]
    columns = [number for number in range(len(HEAD)) if any(row[number] for row in cells[1:])]
    widths = {number: max(len(row[number]) for row in cells) for number in columns}
    return [
        "  " + "   ".join(row[number].ljust(widths[number]) for number in columns).rstrip()
        for row in cells
    ]
