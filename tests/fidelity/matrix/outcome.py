"""What is kept of one cell: what the engine did, said and left, and what the operator said. Lies as JSON beside the document."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WARM = "rehearsal: listening on port"  # its last line before it serves
_PROFILED = re.compile(r"rehearsal: profiled (\d+)")
_ERROR = re.compile(r"^(?:\S+ )?(\w+(?:\.\w+)*(?:Error|Exception|Exit)): ?(.*)$", re.MULTILINE)
_TOLD = re.compile(
    r"(Using (legacy )?FlashInfer|Running FlashInfer autotune|Skipping FlashInfer|FlashInfer autotune cache|No FlashInfer autotune"
    r"|\[Autotuner\]: |rank \d+: profiled ).*"
)
_PLAIN = (
    (re.compile(r"(/pretune/tactics|(/pretune/claim|/bundles)/\S*?/tactics)\b"), "ROOT"),
    (re.compile(r"for (key )?\(.*\)(?=:| under)"), "for (…)"),  # an entry's key
    (re.compile(r"\b[0-9a-f]{64}\b"), "KEY"),
    (re.compile(r"\b[0-9a-f]{24}\b"), "ENTRY"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "ENV"),
    (re.compile(r"\.(auto\w*?|autotune_configs[\w.]*?)_?[a-z0-9_]{8}\.tmp"), r".\1RANDOM.tmp"),
    (re.compile(r"token buckets \(.*"), "token buckets (…)"),
)
_SHAPES = ((re.compile(r"[0-9a-f]{64}"), "KEY"), (re.compile(r"[0-9a-f]{16}"), "ENV"))
_ENTRY = re.compile(r"[0-9a-f]{24}\.json")


@dataclass(frozen=True)
class Outcome:
    """One cell of one release."""

    started: bool  # it answered /health
    profiled: (
        int | None
    )  # how often FlashInfer asked for a tactic's time; None: it ended before it could say so
    said: list[
        str
    ]  # vLLM's and FlashInfer's own lines about tactics, each once, without hashes and keys
    error: str  # what it ended with; "" where it started
    before: list[
        str
    ]  # what lay in the override folder when it started: "21 × v2/ENV/entries/ENTRY.json 0444"
    changed: list[
        str
    ]  # "+ …" new, "~ …" other content, "= …" same content, written again, "- …" gone; modes as they are then
    operator: list[str]  # its words about this pod, its bundle and its cache
    seconds: float = 0.0  # from the container's start until it served or ended, on a busy machine


@dataclass(frozen=True)
class Played:
    """All that a run saw of one release. `missing`: cells that could not be played, and why."""

    release: str
    versions: dict[str, str]  # vllm, flashinfer, torch as they are installed
    at: str  # RFC 3339, UTC
    pretune: str  # the checkout's commit
    cells: dict[str, Outcome]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def one(self) -> int:
        """How many profiles one operation takes in this release."""
        return self.cells["cold"].profiled or 0

    def write(self, folder: Path = RESULTS) -> None:
        folder.mkdir(exist_ok=True)
        (folder / f"{self.release}.json").write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        )

    @classmethod
    def read(cls, file: Path) -> Played:
        data: dict[str, Any] = json.loads(file.read_text())
        data["cells"] = {name: Outcome(**one) for name, one in data["cells"].items()}
        return cls(**data)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- what an engine says


def profiled(log: str) -> int | None:
    found = _PROFILED.search(log)
    return int(found[1]) if found else None


def said(log: str) -> list[str]:
    return sorted({_plain(found.group()) for found in _TOLD.finditer(log.replace("\r", "\n"))})


def error(log: str) -> str:
    """The last line of its last traceback."""
    found = _ERROR.findall(log)
    return (
        _plain(": ".join(part for part in found[-1] if part))[:300]
        if found
        else "ended without a traceback"
    )


def _plain(text: str) -> str:
    for shape, name in _PLAIN:
        text = shape.sub(name, text)
    return text


# --- what lies in a folder

Files = dict[
    str, tuple[str, str, int]
]  # relative path -> mode, sha256 ("" for an empty folder), when it was written


def files(root: Path) -> Files:
    """Every file and empty folder below; {} where the folder is not there."""
    found: Files = {}
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        try:
            seen = path.lstat()
            mode = f"{stat.S_IMODE(seen.st_mode):04o}"
            if stat.S_ISREG(seen.st_mode):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(root))] = mode, digest, seen.st_mtime_ns
            elif stat.S_ISDIR(seen.st_mode) and not any(path.iterdir()):
                found[f"{path.relative_to(root)}/"] = mode, "", 0
        except FileNotFoundError:  # a temporary file, renamed meanwhile
            continue
    return found


def shown(before: Files, after: Files) -> tuple[list[str], list[str]]:
    """(what was there, what changed) in words: keys and environments by letters, alike files counted together."""
    names = _Names([*before, *after])
    was = Counter(f"{names.of(path)} {mode}" for path, (mode, _, _) in before.items())
    made: Counter[str] = Counter()
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        sign = (
            "+"
            if old is None
            else "-"
            if new is None
            else "~"
            if old[1] != new[1]
            else "="
            if old != new
            else ""
        )
        if sign and not (
            sign == "-" and path.endswith("/")
        ):  # an empty folder that is filled is told by its file
            made[f"{sign} {names.of(path)} {(new or old or ('',))[0]}"] += 1
    return [_counted(text, number) for text, number in was.items()], [
        _counted(*one) for one in made.items()
    ]


def _counted(text: str, number: int) -> str:
    sign, _, rest = text.partition(" ") if text[:2] in ("+ ", "- ", "~ ", "= ") else ("", "", text)
    return " ".join(part for part in (sign, f"{number} ×" if number > 1 else "", rest) if part)


class _Names:
    """KEY, KEY2, … for the folders that are named by a hash, in the order in which they are met."""

    def __init__(self, paths: list[str]) -> None:
        self._known: dict[str, str] = {}
        for path in paths:
            self.of(path)

    def of(self, path: str) -> str:
        return "/".join(self._part(part) for part in path.split("/"))

    def _part(self, part: str) -> str:
        if _ENTRY.fullmatch(part):
            return "ENTRY.json"
        for shape, name in _SHAPES:
            if shape.fullmatch(part):
                alike = sum(one.startswith(name) for one in self._known.values())
                return self._known.setdefault(part, f"{name}{alike + 1 if alike else ''}")
        return part
