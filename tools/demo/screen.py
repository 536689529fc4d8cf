"""Prints lines with the seconds since the start.

On a terminal it also draws a block below them, which follows what changes.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Sequence

BLOCK_LINE_SECONDS = (
    1.0  # at least, between two lines that stand for a block where stdout is no terminal
)
SILENCE_SECONDS = 5.0  # then the last line is repeated


class Screen:
    """Where stdout is no terminal, a block becomes one line, printed when it has changed.

    From `repeat_in_silence` on, the last line is repeated with its time while nothing else is
    printed.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._block_lines = 0  # of the block that stands at the bottom
        self._block_text, self._block_at = "", 0.0
        self._last_text, self._last_at = "", self.began
        self._lock = threading.RLock()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._erase_block()
            print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)
            self._last_text, self._last_at = text, time.monotonic()

    def plain(self, lines: Sequence[str]) -> None:
        """Print lines that stay, without a time."""
        with self._lock:
            self._erase_block()
            print("\n".join(lines), flush=True)

    def block(self, lines: Sequence[str], summary: str) -> None:
        """Draw the block. `summary` is the same in one line, without what only counts time."""
        with self._lock:
            if self._live:
                self._erase_block()
                width = shutil.get_terminal_size().columns - 1
                print("\n".join(line[:width] for line in lines), flush=True)
                self._block_lines, self._last_at = len(lines), time.monotonic()
            elif (
                summary != self._block_text
                and time.monotonic() - self._block_at >= BLOCK_LINE_SECONDS
            ):
                self.say(summary)
                self._block_text, self._block_at = summary, time.monotonic()

    def repeat_in_silence(self) -> None:
        """Begin to repeat the last line whenever nothing was printed for SILENCE_SECONDS."""
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        while True:
            time.sleep(0.5)
            with self._lock:
                if time.monotonic() - self._last_at >= SILENCE_SECONDS:
                    self.say(
                        self._last_text
                        if self._last_text.startswith("…")
                        else f"… {self._last_text.strip()}"
                    )

    def _erase_block(self) -> None:
        if self._block_lines:
            sys.stdout.write(f"\x1b[{self._block_lines}F\x1b[J")
            self._block_lines = 0
