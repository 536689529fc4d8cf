"""The lines of vLLM's log that tell why it did not start.

vLLM runs as several processes. The one that fails writes its exception with level ERROR; those
above it end with exceptions of their own, which only say where to look ("See root cause above"), so
that the last lines never name the cause. Before an engine process exists, a Python traceback or the
argument parser's line is all there is. Real logs are in tests/unit/engines/vllm/data/failures.
"""

from __future__ import annotations

import re
from typing import Dict, Optional

from pretune.engines.logs import FailureParser, LogSummary

MAX_CAUSE = 400  # characters that are kept of one line
MAX_PROCESSES = 64  # whose tracebacks are followed at a time

_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}m")
# "(EngineCore pid=12) ERROR 11-30 12:00:00 [core.py:1510] ", each part on its own or none.
_PROCESS = re.compile(r"\(([\w :.-]{1,64}?)(?: pid=\d{1,9})?\) ")
_LOGGER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:.]{5,15} \[[^\]]{1,80}\] ")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,80}(?:: .*|$)")
_CHAINED = "During handling of the above exception"
_USAGE = re.compile(r"[\w./-]{1,64}(?: \w{1,32})?: error: (.+)")
_IMPORT = re.compile(r"Failed to import from (vllm\.[\w.]{1,60}): (.+)")
_DEATH = re.compile(r"(?:exited|died) unexpectedly")
# What only says that another process, or another exception, has the cause.
_ELSEWHERE = ("root cause", "core proc(s)", "SystemExit", "KeyboardInterrupt")


class _Traceback:
    """The lines of one process from a traceback's first line to its exception."""

    def __init__(self) -> None:
        self.is_open = False  # between "Traceback" and the exception
        self.is_replaced = False  # what follows was raised while the last one was handled
        self.exception = ""
        self.wants_detail = False  # the exception's next line belongs to it

    def read(self, text: str) -> None:
        if text.startswith("Traceback (most recent call last)"):
            self.is_open, self.wants_detail = True, False
        elif text.startswith(_CHAINED):
            self.is_replaced = True
        elif self.is_open and _EXCEPTION.match(text):
            if not self.exception or self.is_replaced:
                self.exception, self.wants_detail = text[:MAX_CAUSE], True
            self.is_open = self.is_replaced = False
        elif self.wants_detail:
            self.wants_detail = False
            if text.startswith("  ") and text.strip():
                self.exception = f"{self.exception}: {text.strip()}"[:MAX_CAUSE]


class Parser(FailureParser):
    """Finds the cause in the log of one start that failed."""

    hints = (b"",)  # every line is read

    def __init__(self, until: Optional[float] = None) -> None:
        super().__init__(until)
        self._errors: Dict[
            str, _Traceback
        ] = {}  # by process: of level ERROR, the first one's first
        self._plain: Dict[str, _Traceback] = {}  # of no level
        self._first_error = self._usage = self._import = self._death = ""

    def summary(self) -> LogSummary:
        return LogSummary(began=self.began)

    def read_line(self, line: str) -> None:
        text = _COLOUR.sub("", self.without_time(line))
        process = _PROCESS.match(text)
        text = text[process.end() :] if process else text
        logger = _LOGGER.match(text)
        text = text[logger.end() :] if logger else text
        level = logger.group(1) if logger else ""
        if found := _IMPORT.search(text):
            self._import = self._import or found.group(2)[:MAX_CAUSE]
        if _DEATH.search(text):
            self._death = self._death or text[:MAX_CAUSE]
        if level in ("ERROR", "CRITICAL"):
            self._first_error = self._first_error or text[:MAX_CAUSE]
            self._follow(self._errors, process.group(1) if process else "", text)
        elif not level:
            if found := _USAGE.match(text):
                self._usage = found.group(1)[:MAX_CAUSE]
            self._follow(self._plain, process.group(1) if process else "", text)

    @staticmethod
    def _follow(tracebacks: Dict[str, _Traceback], process: str, text: str) -> None:
        if process in tracebacks or len(tracebacks) < MAX_PROCESSES:
            tracebacks.setdefault(process, _Traceback()).read(text)

    @property
    def cause(self) -> str:
        """The exception of the first process that failed; "": the log names none."""
        tracebacks = (*self._errors.values(), *self._plain.values())
        found = [each.exception for each in tracebacks]
        found += [self._usage, self._death, self._first_error]
        cause = next((text for text in found if text and not _is_elsewhere(text)), "")
        if self._import and ("_OpNamespace" in cause or not cause):
            # A library that is missing is only a warning, and its functions are missing later.
            return f"{self._import}; then {cause}"[:MAX_CAUSE] if cause else self._import
        return cause


def _is_elsewhere(text: str) -> bool:
    return any(words in text for words in _ELSEWHERE)
