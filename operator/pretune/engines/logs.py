"""What an engine's log says of its start, and a parser that an engine completes with its own lines.

The controller alone reads logs: this is no part of the agent. Standard library only, no I/O, and
bounded: whatever is fed, no more is kept than MAX_LINE_BYTES of one line and some short words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Optional, Tuple

WARM, PARTIAL, TUNED, UNKNOWN = "warm", "partial", "tuned", "unknown"
RESULTS = (WARM, PARTIAL, TUNED)  # that can be counted

MAX_LINE_BYTES = 8192  # that are looked at; messages stand in the first few hundred

_END = re.compile(rb"[\r\n]+")  # a progress bar is redrawn behind a \r
# The kubelet's time, where it was asked for.
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")


@dataclass(frozen=True)
class Difference:
    """A value that the engine recorded with its files, and the one that it finds now."""

    name: str  # gpu, flashinfer_version, cuda_version …
    saved: str
    current: str


@dataclass(frozen=True)
class LogSummary:
    """One start of an engine, as its log reports it."""

    result: str = UNKNOWN  # warm | partial | tuned | unknown
    loaded: int = 0  # entries that it had and kept; of several ranks, the largest number
    new: int = (
        0  # entries that it tuned nevertheless, at most; of several ranks, the largest number
    )
    operations: Tuple[str, ...] = ()  # that it tuned, as its progress bars name them
    # Names of the key folders, or of the managed store's environments, that it looked in.
    folders: Tuple[str, ...] = ()
    managed: bool = False  # it uses FlashInfer's store
    differences: Tuple[Difference, ...] = ()  # why it refused the files that it found
    read_only: bool = False  # it could not write
    off: bool = False  # tuning was switched off
    swept: bool = False  # it went through its operations, and tuned what was missing
    ready: bool = False  # the log goes as far as the engine's readiness
    # Unix seconds of the first line, where the kubelet's times stand before each.
    began: Optional[float] = None


class LogParser:
    """Parses the log of one start, which is fed from its beginning in chunks of any size.

    until: Unix seconds; lines that the kubelet stamped later belong to no start. An engine's parser
    sets `hints` and defines `read_line` and `summary`.
    """

    hints: Tuple[bytes, ...] = ()  # a line without any of these is not read

    def __init__(self, until: Optional[float] = None) -> None:
        self.began: Optional[float] = None  # Unix seconds
        self.ready = False
        self._until = until
        self._line = bytearray()

    def read_line(self, line: str) -> None:
        """Take in one line that has a hint; sets `ready` where it says that the engine is."""
        raise NotImplementedError

    def summary(self) -> LogSummary:
        """Return what the log said so far. A last line without an end is not read."""
        raise NotImplementedError

    def feed(self, chunk: bytes) -> bool:
        """Read the next bytes of the log; return whether nothing that follows matters."""
        begin = 0
        while not self.ready and begin < len(chunk):
            found = _END.search(chunk, begin)
            end = found.start() if found else len(chunk)
            room = MAX_LINE_BYTES - len(self._line)
            if room > 0:
                self._line += chunk[begin : min(end, begin + room)]
            if found is None:
                break
            self._finish_line()
            begin = found.end()
        return self.ready

    def _finish_line(self) -> None:
        raw, self._line = bytes(self._line), bytearray()
        if not raw:
            return
        if self._until is not None or self.began is None:
            stamp = _TIME.match(raw[:64].decode("ascii", "replace"))
            if stamp:
                at = _unix_seconds(stamp)
                if self.began is None:
                    self.began = at
                if self._until is not None and at is not None and at > self._until:
                    self.ready = True
                    return
        if any(hint in raw for hint in self.hints):
            self.read_line(raw.decode("utf-8", "replace"))


class FailureParser(LogParser):
    """Parses the log of one start that failed, or the part of it that is there."""

    @property
    def cause(self) -> str:
        """The line that tells why; "": there is none."""
        raise NotImplementedError

    def find_cause(self, text: str) -> str:
        """Return the cause that a text names; "": none."""
        self.feed(text.encode("utf-8", "replace") + b"\n")
        return self.cause

    @staticmethod
    def without_time(line: str) -> str:
        """Return a line without the kubelet's time."""
        stamp = _TIME.match(line)
        return line[stamp.end() :] if stamp else line


def _unix_seconds(stamp: "re.Match[str]") -> Optional[float]:
    try:
        text = stamp.group(1) + stamp.group(2).replace("Z", "+00:00")
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # no such day
        return None
