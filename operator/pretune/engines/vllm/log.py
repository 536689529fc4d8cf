"""What an engine's log says of its start: what it loaded, what it tuned all the same, and what kept it from loading.

The lines are those of vLLM's `kernel_warmup.py` and FlashInfer's `autotuner.py` and `autotune_cache.py`
(docs/dev/facts-vllm.md); real logs of each
release are in tests/unit/engines/vllm/data/logs.
Prefixes (process, rank, time, colours, JSON) vary, so each message is looked for anywhere in its line.
Standard library only, no I/O, and bounded: whatever is fed, no more is kept than LONGEST bytes of one line and some short words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Dict, List, Optional, Tuple

WARM, PARTIAL, TUNED, UNKNOWN = "warm", "partial", "tuned", "unknown"
RESULTS = (WARM, PARTIAL, TUNED)  # that can be counted

LONGEST = 8192  # bytes of a line that are looked at; the messages stand in the first few hundred
MOST = 16  # operations, folders and differences that are kept
FILES = 1024  # paths: a file for each rank
WORD = 120  # characters of a name that are kept
PATH = 400  # of a path

_END = re.compile(rb"[\r\n]+")  # a progress bar is redrawn behind a \r
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) "
)  # the kubelet's, where it was asked for
_PATH = r"((?:/|~)[^\s\"'\\;,()]*)"
_USING = re.compile(r"Using FlashInfer autotune cache file: " + _PATH)
_ATTACHED = re.compile(
    r"Managed autotune cache attached for this process: .{0,200}?env_dir=['\"\\]*" + _PATH
)
_LOADED = re.compile(r"\[Autotuner\]: Loaded (\d{1,9}) configs from " + _PATH)
_PRELOADED = re.compile(r"\[Autotuner\]: Preloaded (\d{1,9})/(\d{1,9}) managed cache entries")
_SAVED = re.compile(
    r"\[Autotuner\]: Saved \d{1,9} configs to "
    + _PATH
    + r" \((-?\d{1,9}) new, (\d{1,9}) from previous"
)
_FOREIGN = "was created in a different environment ("
_DIFFERS = re.compile(
    r"(\w{1,64}): saved=(.{0,200}?) vs current=(.{0,200}?)(?=, \w{1,64}: saved=|\)\.)"
)
_BAR = re.compile(
    r"\[AutoTuner\]: Tuning (\S{1,200}):\s{1,8}\d{1,3}%\|[^|]{0,200}\|\s{0,8}(\d{1,9})/\d{1,9}"
)
_READ_ONLY = re.compile(r"\[Errno 30\]|Read-only file system")
_READY = re.compile(
    r"Application startup complete|Uvicorn running on |Starting vLLM (?:API )?server(?: \d+)? on |rehearsal: listening on port"
)
_HINTS = (
    *(b"[Autotuner]", b"[AutoTuner]", b"FlashInfer", b"autotune cache", b"Errno 30", b"Read-only"),
    *(b"startup complete", b"Uvicorn running", b"Starting vLLM", b"rehearsal: "),
)  # a line without any of them says nothing of all this


@dataclass(frozen=True)
class Difference:
    """A value that FlashInfer recorded with the tactics, and the one that it finds now."""

    name: str  # gpu, flashinfer_version, cuda_version …
    saved: str
    current: str


@dataclass(frozen=True)
class Start:
    """One start of an engine, as its log tells it."""

    result: str = UNKNOWN  # warm | partial | tuned | unknown
    loaded: int = 0  # entries that it had and kept; of several ranks, the largest number
    new: int = 0  # entries that it tuned all the same, at most so many; of several ranks, the largest number
    operations: Tuple[str, ...] = ()  # that it tuned, as its progress bars name them
    folders: Tuple[
        str, ...
    ] = ()  # names of the key folders, or of the managed store's environments, that it looked in
    managed: bool = False  # it uses FlashInfer's store
    differences: Tuple[Difference, ...] = ()  # why it refused what was there
    read_only: bool = False  # it could not write
    off: bool = False  # autotuning was switched off
    swept: bool = False  # it went through its operations, tuning what is missing
    ready: bool = False  # the log goes as far as the engine's readiness
    began: Optional[float] = (
        None  # Unix seconds of the first line, where the kubelet's times stand before each
    )


class Reader:
    """Is fed with a log from its beginning, in chunks of any size. `until`: Unix seconds, where the kubelet's times stand before each line:
    what was said later is none of the start's."""

    def __init__(self, until: Optional[float] = None) -> None:
        self._until = until
        self._line = bytearray()
        self._loaded: Dict[
            str, int
        ] = {}  # by path; what was saved there too says itself what was from before
        self._saved: Dict[str, Tuple[int, int]] = {}  # by path: new, from before
        self._preloaded = 0
        self._bars: Dict[str, int] = {}  # by operation: where its bar is
        self._profiled = 0
        self._folders: List[str] = []
        self._differences: Dict[str, Difference] = {}
        self._refusals = 0
        self._managed = self._read_only = self._off = self._swept = self._ready = False
        self._began: Optional[float] = None

    @property
    def done(self) -> bool:
        """Nothing that follows matters."""
        return self._ready

    def feed(self, chunk: bytes) -> bool:
        """Whether it is done."""
        begin = 0
        while not self._ready and begin < len(chunk):
            found = _END.search(chunk, begin)
            end = found.start() if found else len(chunk)
            room = LONGEST - len(self._line)
            if room > 0:
                self._line += chunk[begin : min(end, begin + room)]
            if found is None:
                break
            self._finish()
            begin = found.end()
        return self._ready

    def told(self) -> Start:
        """What the log says, as far as it was fed; a last line without an end is not looked at."""
        profiled = max(self._profiled, len(self._bars))  # a bar is drawn where an entry is missing
        tuned = max((new for new, _ in self._saved.values()), default=0) or profiled
        kept = [before for _, before in self._saved.values()]
        kept += [number for path, number in self._loaded.items() if path not in self._saved]
        loaded = max([*kept, self._preloaded])
        if tuned:
            result = PARTIAL if loaded else TUNED
        else:
            result = WARM if loaded else UNKNOWN
        return Start(
            result=result,
            loaded=loaded,
            new=tuned,
            operations=tuple(self._bars),
            folders=tuple(self._folders),
            managed=self._managed,
            differences=tuple(self._differences.values()),
            read_only=self._read_only,
            off=self._off,
            swept=self._swept,
            ready=self._ready,
            began=self._began,
        )

    # --- a line

    def _finish(self) -> None:
        raw, self._line = bytes(self._line), bytearray()
        if not raw:
            return
        if self._until is not None or self._began is None:
            stamped = _TIME.match(raw[:64].decode("ascii", "replace"))
            if stamped:
                at = _seconds(stamped)
                if self._began is None:
                    self._began = at
                if self._until is not None and at is not None and at > self._until:
                    self._ready = True
                    return
        if any(hint in raw for hint in _HINTS):
            self._read(raw.decode("utf-8", "replace"))

    def _read(self, line: str) -> None:
        for bar in _BAR.finditer(line):
            self._bar(bar.group(1)[:WORD], int(bar.group(2)))
        if found := _LOADED.search(line):
            path = found.group(2)[:PATH]
            if path in self._loaded or len(self._loaded) < FILES:
                self._loaded[path] = max(int(found.group(1)), self._loaded.get(path, 0))
            self._folder(found.group(2))
        if found := _SAVED.search(line):
            path, new = found.group(1)[:PATH], max(0, int(found.group(2)))
            if path in self._saved or len(self._saved) < FILES:
                before, kept = self._saved.get(path, (0, int(found.group(3))))
                self._saved[path] = before + new, kept
            self._folder(found.group(1))
        if found := _PRELOADED.search(line):
            self._managed, self._preloaded = True, max(self._preloaded, int(found.group(1)))
        if found := _USING.search(line):
            self._folder(found.group(1))
        if found := _ATTACHED.search(line):
            self._managed = True
            self._note(found.group(1).rstrip("/").rpartition("/")[2])
        if _FOREIGN in line and self._refusals < MOST:
            self._refusals += 1
            for name, saved, current in _DIFFERS.findall(line.partition(_FOREIGN)[2][: 20 * WORD]):
                if len(self._differences) < MOST:
                    self._differences.setdefault(
                        name, Difference(name, saved[:WORD], current[:WORD])
                    )
        self._managed = self._managed or "Using FlashInfer managed autotune cache" in line
        self._swept = self._swept or "[Autotuner]: Autotuning process starts" in line
        self._off = self._off or "Skipping FlashInfer autotune because it is disabled" in line
        self._read_only = self._read_only or bool(_READ_ONLY.search(line))
        self._ready = bool(_READY.search(line))

    def _bar(self, operation: str, at: int) -> None:
        """A bar begins where the first entry is missing; an operation may have several, and ranks draw theirs at the same time."""
        if operation not in self._bars and len(self._bars) >= MOST:
            return
        before = self._bars.get(operation, at)
        self._profiled += max(0, at - before)
        self._bars[operation] = at

    def _folder(self, path: str) -> None:
        """Of a file: `…/<key>/autotune_configs.json`."""
        self._note(path.rstrip(".").rpartition("/")[0].rpartition("/")[2])

    def _note(self, name: str) -> None:
        if name and name[:WORD] not in self._folders and len(self._folders) < MOST:
            self._folders.append(name[:WORD])


def _seconds(stamped: "re.Match[str]") -> Optional[float]:
    try:
        return datetime.fromisoformat(
            stamped.group(1) + stamped.group(2).replace("Z", "+00:00")
        ).timestamp()
    except ValueError:  # no such day
        return None
