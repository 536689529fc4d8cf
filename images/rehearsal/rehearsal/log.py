"""The rehearsal's own lines."""

from __future__ import annotations

import sys


def say(what: str) -> None:
    """One line on stdout, in one piece: ranks write at the same time."""
    sys.stdout.write(f"rehearsal: {what}\n")
    sys.stdout.flush()
