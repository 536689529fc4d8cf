"""Log lines in the two shapes that an engine's log has: vLLM's on stdout, FlashInfer's on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO


def _logger(name: str, stream: TextIO, shape: str, dates: str = "") -> logging.Logger:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(shape, dates or None))
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


_vllm = _logger(
    "vllm",
    sys.stdout,
    f"(%(label)s pid={os.getpid()}) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
    "%m-%d %H:%M:%S",
)
flashinfer = _logger(
    "flashinfer.jit",
    sys.stderr,
    "%(asctime)s - %(levelname)s - %(filename)s:%(lineno)d - flashinfer.jit: %(message)s",
)


def vllm(label: str) -> "logging.LoggerAdapter[logging.Logger]":
    """vLLM's logger in the process of this label (APIServer, EngineCore, Worker_TP0 …)."""
    return logging.LoggerAdapter(_vllm, {"label": label})


class Progress:
    """FlashInfer's bar while it tunes one operation: a line redrawn on stderr, which a container's log shows whole.

    It begins at the first profile that is not found, and counts those that are found after it too.
    """

    def __init__(self, operation: str, total: int, initial: int) -> None:
        self._what, self._total, self._done = f"[AutoTuner]: Tuning {operation}", total, initial
        self._initial, self._began, self._drawn = initial, time.monotonic(), 0.0
        self._draw()

    def step(self) -> None:
        """One profile more."""
        self._done += 1
        if self._done == self._total or time.monotonic() - self._drawn >= 0.1:  # as often as tqdm
            self._draw("\n" if self._done == self._total else "")

    def _draw(self, end: str = "") -> None:
        self._drawn = time.monotonic()
        share = self._done / self._total
        bar = "█" * int(10 * share)
        sys.stderr.write(
            f"\r{self._what}: {100 * share:3.0f}%|{bar:<10}| {self._done}/{self._total} {self._speed()}{end}"
        )
        sys.stderr.flush()

    def _speed(self) -> str:
        done, passed = self._done - self._initial, time.monotonic() - self._began
        if not done:
            return "[00:00<?, ?profile/s]"
        rate = done / max(passed, 1e-6)
        shown = f"{rate:5.2f}profile/s" if rate >= 1 else f"{1 / rate:5.2f}s/profile"
        return f"[{_clock(passed)}<{_clock((self._total - self._done) / rate)}, {shown}]"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
