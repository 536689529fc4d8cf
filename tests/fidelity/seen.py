"""What one start of an engine shows, written so that two engines can be compared: names without hashes, logs without times."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HASHES = ((re.compile(r"\b[0-9a-f]{64}\b"), "KEY"), (re.compile(r"\b[0-9a-f]{16}\b"), "ENV"))
_PLAIN = (
    (re.compile(r"\b[0-9a-f]{24}\b"), "ENTRY"),
    (
        re.compile(r"(\.autotuner_|\.autotune_|\.autotune_configs\.json\.)[a-z0-9_]{8}(?=\.tmp)"),
        r"\1RANDOM",
    ),
    (re.compile(r"\b(toy_gemm|toy_moe|stand_in_gemm)_"), "op"),
    (
        re.compile(
            r"(Expecting|Unterminated|Extra data|Invalid)[^():]*: line \d+ column \d+ \(char \d+\)"
        ),
        "NO JSON",
    ),
    (re.compile(r"\b(ToyGemmRunner|ToyMoeRunner|StandInRunner)\b"), "RUNNER"),
)
_TOLD = re.compile(
    r"(Using (legacy )?FlashInfer|Running FlashInfer autotune|Skipping FlashInfer|FlashInfer autotune cache|No FlashInfer autotune"
    r"|\[Autotuner\]: |\[AutoTuner\]: (?!Tuning)).*"
)
_BAR = re.compile(
    r"\[AutoTuner\]: Tuning (\S+): +\d+%\|[^|]*\| (\d+)/(\d+) (\[[\d:]+<[\d:?]+, +[\d.?]+(?:profile/s|s/profile)\])"
)
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): .*$", re.MULTILINE)
_WRAPPING = ("RuntimeError: Engine core initialization failed", "RuntimeError: rank ")
_PROFILED = re.compile(r"^(?:rehearsal|stand-in): (?:rank (\d+): )?profiled (\d+)$", re.MULTILINE)

_MOST = 20  # lines of one aspect

Shown = dict[str, Any]
"""One start by aspect: see `Sight.shown`."""


class Names:
    """Writes keys' and environments' hashes as KEY1, KEY2 …, numbered as they appear: so that it shows which stay the same."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {what: {} for _, what in _HASHES}

    def plain(self, text: str) -> str:
        """`text` without what is random or only one side's."""
        for pattern, name in _PLAIN:
            text = pattern.sub(name, text)
        for pattern, what in _HASHES:
            text = pattern.sub(lambda found, what=what: self._numbered(what, found.group()), text)  # type: ignore[misc]
        return text

    def _numbered(self, what: str, found: str) -> str:
        numbers = self._numbers[what]
        return f"{what}{numbers.setdefault(found, len(numbers) + 1)}"


@dataclass(frozen=True)
class _Item:
    mode: str
    written: int
    content: bytes | None  # None: a folder


class Sight:
    """One engine's folder over several starts."""

    def __init__(self, root: Path) -> None:
        self.root, self._names = root, Names()
        self._before = self._items()

    def shown(self, end: str, log: str, also: tuple[Path, ...] = ()) -> Shown:
        """What a start that ended so, and said this, has done to the folder. `also`: other paths that the log may call it by.

        end: ready, exit N or hangs · errors: exceptions · said: known log lines, each with its number · bars: operations tuned, from,
        to, of · profiled: measurements of each rank · files: modes and names · formats: what is in them · changes: what it did to them.
        Of a start that failed, lines count once, and bars and measurements not at all: a rank is ended anywhere when another fails.
        """
        for path in sorted((self.root, *also), key=lambda path: -len(str(path))):
            log = log.replace(str(path), "ROOT")
        said = Counter(
            self._names.plain(found.group()) for found in _TOLD.finditer(log.replace("\r", "\n"))
        )
        items = self._items()
        shown: Shown = {
            "end": end,
            "errors": sorted(
                {
                    self._error(line)
                    for line in _ERROR.findall(log)
                    if not line.startswith(_WRAPPING)
                }
            ),
            "said": dict(sorted(said.items())) if end == "ready" else sorted(said),
            "bars": self._bars(log) if end == "ready" else {},
            "profiled": self._profiled(log) if end == "ready" else [],
            "files": _counted(
                f"{item.mode} {self._names.plain(path)}" for path, item in items.items()
            ),
            "formats": self._formats(items),
            "changes": self._changes(items),
        }
        self._before = items
        return shown

    def changed(self) -> None:
        """The folder was changed by hand."""
        self._before = self._items()

    def _items(self) -> dict[str, _Item]:
        found: dict[str, _Item] = {}
        for path in sorted(self.root.rglob("*")):
            facts = path.lstat()
            folder = stat.S_ISDIR(facts.st_mode)
            name = f"{path.relative_to(self.root)}{'/' if folder else ''}"
            content = None if folder else path.read_bytes()
            found[name] = _Item(oct(stat.S_IMODE(facts.st_mode)), facts.st_mtime_ns, content)
        return found

    def _profiled(self, log: str) -> list[tuple[int, int]]:
        return sorted((int(rank or 0), int(number)) for rank, number in _PROFILED.findall(log))

    def _error(self, line: str) -> str:
        return re.sub(r"_rank\d+", "_rankN", self._names.plain(line))

    def _bars(self, log: str) -> dict[str, str]:
        steps: dict[str, list[tuple[int, int]]] = {}
        for operation, done, total, _ in _BAR.findall(log):
            steps.setdefault(self._names.plain(operation), []).append((int(done), int(total)))
        return {
            operation: f"{min(seen)[0]} to {max(seen)[0]} of {max(seen)[1]}"
            for operation, seen in sorted(steps.items())
        }

    def _formats(self, items: dict[str, _Item]) -> dict[str, list[str]]:
        """By name; entries of the managed store all have one name, and each content of theirs is listed once with its number."""
        found: dict[str, list[str]] = {}
        for path, item in items.items():
            if item.content is not None:
                found.setdefault(self._names.plain(path), []).append(
                    self._format(path, item.content)
                )
        return {name: list(_counted(formats)) for name, formats in sorted(found.items())}

    def _format(self, path: str, content: bytes) -> str:
        try:
            parsed = json.loads(content)
        except ValueError:
            return "no JSON"
        if not isinstance(parsed, dict):
            return f"JSON: {type(parsed).__name__}"
        written = "as dumped" if content.decode() == json.dumps(parsed, indent=2) else "otherwise"
        if "tactic" in parsed:
            named = hashlib.sha256(parsed["key"].encode()).hexdigest()[:24] == Path(path).stem
            parsed["tactic"], written = (
                "TACTIC",
                f"{written}, named {'after its key' if named else 'otherwise'}",
            )
        if "_generation" in parsed:
            source = {name: value for name, value in parsed.items() if name != "_generation"}
            right = hashlib.sha256(
                json.dumps(source, sort_keys=True, separators=(",", ":")).encode()
            ).hexdigest()
            parsed["_generation"] = "its sha256" if parsed["_generation"] == right else "another"
        for name, value in parsed.items():
            if name.startswith("(") and isinstance(value, list) and len(value) > 1:
                value[1] = "TACTIC"
        return f"{written}: {self._names.plain(json.dumps(parsed))}"

    def _changes(self, items: dict[str, _Item]) -> dict[str, int]:
        changes = []
        for path in {**self._before, **items}:
            before, now = self._before.get(path), items.get(path)
            name = self._names.plain(path)
            if before is None:
                changes.append(f"new {name}")
            elif now is None:
                changes.append(f"gone {name}")
            elif before.content is None or now.content is None:
                continue
            elif self._format(path, before.content) != self._format(path, now.content):
                changes.append(f"changed {name}")
            elif before.written != now.written:
                changes.append(f"rewritten {name}")  # with other tactics, or the same
        return _counted(changes)


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def differing(real: Shown, played: Shown) -> dict[str, str]:
    """The aspects that differ, each with what only one side shows."""
    return {
        aspect: _lines(real[aspect], played[aspect])
        for aspect in real
        if real[aspect] != played[aspect]
    }


def judged(differences: Mapping[str, str], known: Set[str]) -> str:
    """What is wrong about these differences: one that is not known, or a known one that is none any more. Empty if nothing is."""
    unknown = [text for aspect, text in differences.items() if aspect not in known]
    stale = [
        f"{aspect} is not a difference any more: take it out of KNOWN_DIFFERENCES"
        for aspect in known - differences.keys()
    ]
    return "\n".join([*unknown, *sorted(stale)])


def _lines(real: Any, played: Any) -> str:
    left, right = _flat(real), _flat(played)
    only = [f"  real:     {line}" for line in left if line not in right]
    only += [f"  stand-in: {line}" for line in right if line not in left]
    return "\n".join(only[:_MOST] + [f"  … {len(only) - _MOST} lines more"] * (len(only) > _MOST))


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name} | {part}" for name, held in value.items() for part in _flat(held)]
    if isinstance(value, list):
        return [line for part in value for line in _flat(part)]
    return str(value).replace("], ", "],\n").splitlines()  # a file's entries one by one
