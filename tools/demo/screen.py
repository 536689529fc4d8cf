"""What a person sees: lines with the seconds gone by; on a terminal, below them, a block that is drawn anew while things move."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

EVERY = 1.0  # seconds between two plain lines of a block


class Screen:
    """Where stdout is no terminal, a block becomes a line when it says something new."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._drawn = 0  # lines of the block that stand at the bottom
        self._said, self._said_at = "", 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def plain(self, lines: Sequence[str]) -> None:
        """Lines that stay, without a time."""
        self._wipe()
        print("\n".join(lines), flush=True)

    def block(self, lines: Sequence[str], news: str) -> None:
        """How things stand. `news` is the same in one line without what only counts time: it decides whether a plain line is due."""
        if not self._live:
            now = time.monotonic()
            if news != self._said and now - self._said_at >= EVERY:
                self.say(news)
                self._said, self._said_at = news, now
            return
        self._wipe()
        width = shutil.get_terminal_size().columns - 1
        print("\n".join(one[:width] for one in lines), flush=True)
        self._drawn = len(lines)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0
