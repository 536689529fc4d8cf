"""FlashInfer's AutoTuner and its JSON file, by version (`autotuner.py`; see `Format`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from .files import write_json
from .log import flashinfer as logger
from .profiles import POLICY, RUNNER, Metadata, Profile, measured
from .releases import Format

_META, _GENERATION = "_metadata", "_generation"
_INDETERMINATE = (None, "unknown", "None")


class Tuner:
    """One rank's AutoTuner and its JSON file."""

    def __init__(self, environment: Metadata, format: Format) -> None:
        self.environment, self._format = environment, format
        self.loaded: Dict[str, List[Any]] = {}
        self.tuned: Dict[str, List[Any]] = {}
        self._warned: Set[str] = set()
        self._hits: Set[str] = set()

    @property
    def is_warm(self) -> bool:
        """Whether it has found tactics."""
        return bool(self.loaded)

    def knows(self, profile: Profile) -> bool:
        """Whether the profile need not be measured."""
        entry = self.loaded.get(profile.key)
        if entry is not None and self._format.policy and entry[2:] not in ([], [POLICY]):
            entry = None  # measured in another way
        return entry is not None or profile.key in self.tuned

    def has(self, profile: Profile) -> bool:
        """The same; says so at an operation's first entry that it finds."""
        known = self.knows(profile)
        if known and profile.operation not in self._hits:
            self._hits.add(profile.operation)
            logger.info(
                f"[Autotuner]: Config cache hit for {profile.operation} (runner={RUNNER}, source=config file)"
            )
        return known

    def learn(self, profile: Profile) -> None:
        """Keeps a measured tactic."""
        entry: List[Any] = [RUNNER, measured()]
        self.tuned[profile.key] = [*entry, POLICY] if self._format.policy else entry

    def clear(self) -> None:
        """Forgets what was loaded."""
        self.loaded.clear()

    def load(self, path: Path) -> bool:
        """Reads a file; False if it is of another environment. Raises OSError, ValueError (no JSON), TypeError (no object)."""
        configs = json.loads(path.read_text())
        saved = configs.pop(_META, None)
        if self._format.generation:
            configs.pop(_GENERATION, None)
        if saved is not None:
            hard, soft = mismatches(saved, self.environment)
            if hard or soft:
                self._refuse(path, hard, soft)
                return False
        for name, entry in configs.items():
            self.loaded[name] = [entry[0], entry[1], *(entry[2:3] if self._format.policy else [])]
        logger.info(f"[Autotuner]: Loaded {len(configs)} configs from {path}")
        return True

    def _refuse(self, path: Path, hard: "Differing", soft: "Differing") -> None:
        kept = (
            "Results will not be saved to this file to avoid overwriting configs from a different environment. "
            "Use a different cache path "
        )
        if not self._format.heals:
            kind, end = "", f"{kept}to save configs for the current environment."
        elif hard:
            kind, end = (
                "hard",
                f"{kept}for the current environment, or delete the file to re-prime it.",
            )
        else:
            kind = "soft"
            end = (
                "The file's recorded environment is indeterminate, so the next save will replace it with freshly tuned configs for the "
                "current environment."
            )
        self._warn_once(
            kind,
            f"[Autotuner]: Cache file {path} was created in a different environment ({_listed({**hard, **soft})}). "
            f"Ignoring cached configs. {end}",
        )

    def save(self, path: Path) -> None:
        """Writes all that is known, joined with what the file holds by then. Raises OSError, ValueError (no text)."""
        configs = {**self.loaded, **self.tuned}
        previous, recorded = len(self.loaded), self.environment
        try:
            held = json.loads(path.read_text())
            if not isinstance(held, dict) and self._format.heals:
                held = {}
            saved = held.pop(_META, None)
            if self._format.generation:
                held.pop(_GENERATION, None)
            hard, soft = (
                mismatches(saved, self.environment)
                if saved is not None and self._format.heals
                else ({}, {})
            )
            if hard:
                self._warn_once(
                    "hard",
                    f"[Autotuner]: Not saving configs to {path}: the file was created in a different environment ({_listed(hard)}). "
                    "Use a different cache path for the current environment, or delete the file to re-prime it.",
                )
                return
            if not soft:
                configs, recorded = {**held, **configs}, saved or self.environment
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        write_json(path, whole_file(recorded, configs, self._format), prefix=".autotuner_")
        logger.info(
            f"[Autotuner]: Saved {len(configs)} configs to {path} ({len(configs) - previous} new, {previous} from previous config)"
        )

    def _warn_once(self, kind: str, message: str) -> None:
        """FlashInfer warns once of each kind: after a refused load, a refused save says nothing more. Before 0.6.16 it always does."""
        if not kind or kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)


def whole_file(recorded: Metadata, configs: Dict[str, List[Any]], format: Format) -> Dict[str, Any]:
    """A file's content: the metadata first, the entries by key, and the hash of both."""
    content: Dict[str, Any] = {_META: recorded, **{name: configs[name] for name in sorted(configs)}}
    if not format.generation:
        return content
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return {**content, _GENERATION: hashlib.sha256(canonical).hexdigest()}


Differing = Dict[str, Tuple[Any, str]]


def mismatches(saved: Any, current: Metadata) -> Tuple[Differing, Differing]:
    """What differs, as (saved, current): definite conflicts, and values that the writer did not know."""
    saved = saved if isinstance(saved, dict) else {}
    hard: Differing = {}
    soft: Differing = {}
    for name, now in current.items():
        then = saved.get(name)
        if then not in (now, "*"):
            (soft if then in _INDETERMINATE else hard)[name] = (then, now)
    return hard, soft


def _listed(differing: Differing) -> str:
    return ", ".join(
        f"{name}: saved={then} vs current={now}" for name, (then, now) in differing.items()
    )


def fingerprint(path: Path) -> Optional[Tuple[str, int]]:
    """What vLLM compares between ranks: the metadata and the number of entries; None for no or an unreadable file."""
    try:
        configs = json.loads(path.read_text())
        recorded = configs.pop(_META, None)
    except (OSError, ValueError, AttributeError):
        return None
    return json.dumps(recorded, sort_keys=True), len(configs)
