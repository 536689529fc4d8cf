"""The lines of vLLM's log that tell how it started: what it loaded, tuned, and why.

They are those of vLLM's `kernel_warmup.py` and FlashInfer's `autotuner.py` and `autotune_cache.py`
(docs/dev/facts-vllm.md); real logs of each release are in tests/unit/engines/vllm/data/logs.
Prefixes (process, rank, time, colours, JSON) vary, so each message is looked for anywhere in its
line.
"""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Tuple

from pretune.engines.logs import (
    PARTIAL,
    TUNED,
    UNKNOWN,
    WARM,
    Difference,
    LogParser,
    LogSummary,
)

MAX_WORDS = 16  # operations, folders and differences that are kept
MAX_PATHS = 1024  # a file for each rank
MAX_WORD = 120  # characters of a name that are kept
MAX_PATH = 400  # characters of a path that are kept

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
    r"Application startup complete|Uvicorn running on |Starting vLLM (?:API )?server(?: \d+)? on "
    r"|rehearsal: listening on port"
)
_HINTS = (
    *(b"[Autotuner]", b"[AutoTuner]", b"FlashInfer", b"autotune cache", b"Errno 30", b"Read-only"),
    *(b"startup complete", b"Uvicorn running", b"Starting vLLM", b"rehearsal: "),
)  # a line without any of them says nothing of all this


class Parser(LogParser):
    """Parses the log of one start of vLLM."""

    hints = _HINTS

    def __init__(self, until: Optional[float] = None) -> None:
        super().__init__(until)
        # By path; a line on what was saved there says itself what was there before.
        self._loaded: Dict[str, int] = {}
        self._saved: Dict[str, Tuple[int, int]] = {}  # by path: new, from before
        self._preloaded = 0
        self._bars: Dict[str, int] = {}  # by operation: where its bar is
        self._profiled = 0
        self._folders: List[str] = []
        self._differences: Dict[str, Difference] = {}
        self._refusals = 0
        self._managed = self._read_only = self._off = self._swept = False

    def summary(self) -> LogSummary:
        profiled = max(self._profiled, len(self._bars))  # a bar is drawn where an entry is missing
        tuned = max((new for new, _ in self._saved.values()), default=0) or profiled
        kept = [before for _, before in self._saved.values()]
        kept += [number for path, number in self._loaded.items() if path not in self._saved]
        loaded = max([*kept, self._preloaded])
        if tuned:
            result = PARTIAL if loaded else TUNED
        else:
            result = WARM if loaded else UNKNOWN
        return LogSummary(
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
            ready=self.ready,
            began=self.began,
        )

    def read_line(self, line: str) -> None:
        for bar in _BAR.finditer(line):
            self._advance_bar(bar.group(1)[:MAX_WORD], int(bar.group(2)))
        if found := _LOADED.search(line):
            path = found.group(2)[:MAX_PATH]
            if path in self._loaded or len(self._loaded) < MAX_PATHS:
                self._loaded[path] = max(int(found.group(1)), self._loaded.get(path, 0))
            self._add_folder_of(found.group(2))
        if found := _SAVED.search(line):
            path, new = found.group(1)[:MAX_PATH], max(0, int(found.group(2)))
            if path in self._saved or len(self._saved) < MAX_PATHS:
                before, kept = self._saved.get(path, (0, int(found.group(3))))
                self._saved[path] = before + new, kept
            self._add_folder_of(found.group(1))
        if found := _PRELOADED.search(line):
            self._managed, self._preloaded = True, max(self._preloaded, int(found.group(1)))
        if found := _USING.search(line):
            self._add_folder_of(found.group(1))
        if found := _ATTACHED.search(line):
            self._managed = True
            self._add_folder(found.group(1).rstrip("/").rpartition("/")[2])
        if _FOREIGN in line and self._refusals < MAX_WORDS:
            self._refusals += 1
            for name, saved, current in _DIFFERS.findall(
                line.partition(_FOREIGN)[2][: 20 * MAX_WORD]
            ):
                if len(self._differences) < MAX_WORDS:
                    self._differences.setdefault(
                        name, Difference(name, saved[:MAX_WORD], current[:MAX_WORD])
                    )
        self._managed = self._managed or "Using FlashInfer managed autotune cache" in line
        self._swept = self._swept or "[Autotuner]: Autotuning process starts" in line
        self._off = self._off or "Skipping FlashInfer autotune because it is disabled" in line
        self._read_only = self._read_only or bool(_READ_ONLY.search(line))
        self.ready = bool(_READY.search(line))

    def _advance_bar(self, operation: str, at: int) -> None:
        """Count what a bar has advanced. It begins where the first entry is missing.

        An operation may have several bars, and ranks draw theirs at the same time.
        """
        if operation not in self._bars and len(self._bars) >= MAX_WORDS:
            return
        before = self._bars.get(operation, at)
        self._profiled += max(0, at - before)
        self._bars[operation] = at

    def _add_folder_of(self, path: str) -> None:
        """Of a file: `…/<key>/autotune_configs.json`."""
        self._add_folder(path.rstrip(".").rpartition("/")[0].rpartition("/")[2])

    def _add_folder(self, name: str) -> None:
        if name and name[:MAX_WORD] not in self._folders and len(self._folders) < MAX_WORDS:
            self._folders.append(name[:MAX_WORD])


def explain_miss(summary: LogSummary, folders: str, others: str) -> str:
    """Return where a start did not find the entries of its bundle (Engine.explain_miss).

    FlashInfer names a folder of its store after the GPU and the versions of its libraries
    (docs/dev/facts-flashinfer.md), vLLM a key folder after its configuration. Seed has checked that
    the bundle is complete.
    """
    if summary.managed:
        found = ", others found it in %s" % others if others else ""
        return (
            "its store %s has no entries%s: the GPU, or the version of FlashInfer, CUDA, cuBLAS,"
            " cuDNN or CUTLASS, is not the one that was tuned with" % (folders, found)
        )
    found = ", which is in %s for other pods" % others if others else ""
    return (
        "its engine looked for it in the key folder %s, and the bundle has none of that name%s"
        % (folders, found)
    )
