"""FlashInfer's AutoTuner and its JSON file (`autotuner.py` of 0.7.2.post1; older ones are given the same format)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from .files import write_json
from .log import flashinfer as logger
from .profiles import POLICY, RUNNER, Metadata, Profile, measured

_META, _GENERATION = "_metadata", "_generation"


class Tuner:
    """One rank's AutoTuner and its JSON file."""

    def __init__(self, environment: Metadata) -> None:
        self.environment = environment
        self.loaded: Dict[str, List[Any]] = {}
        self.tuned: Dict[str, List[Any]] = {}
        self._warned: Set[str] = set()

    def has(self, profile: Profile) -> bool:
        """Whether the profile need not be measured."""
        return profile.key in self.loaded or profile.key in self.tuned

    def learn(self, profile: Profile) -> None:
        """Keeps a measured tactic."""
        self.tuned[profile.key] = [RUNNER, measured(), POLICY]

    def clear(self) -> None:
        """Forgets what was loaded."""
        self.loaded.clear()

    def load(self, path: Path) -> bool:
        """Reads a file; False if it is of another environment. Raises OSError, ValueError (not JSON)."""
        configs = json.loads(path.read_text())
        saved = configs.pop(_META, None)
        configs.pop(_GENERATION, None)
        if saved is not None:
            hard, soft = mismatches(saved, self.environment)
            if hard or soft:
                end = (
                    "Results will not be saved to this file to avoid overwriting configs from a different environment. Use a different "
                    "cache path for the current environment, or delete the file to re-prime it."
                    if hard
                    else "The file's recorded environment is indeterminate, so the next save will replace it with freshly tuned "
                    "configs for the current environment."
                )
                self._warn_once(
                    "hard" if hard else "soft",
                    f"[Autotuner]: Cache file {path} was created in a different environment ({_listed({**hard, **soft})}). "
                    f"Ignoring cached configs. {end}",
                )
                return False
        self.loaded.update(configs)
        logger.info(f"[Autotuner]: Loaded {len(configs)} configs from {path}")
        return True

    def save(self, path: Path) -> None:
        """Writes all that is known, joined with what the file holds by then. Raises OSError."""
        configs = {**self.loaded, **self.tuned}
        previous, recorded = len(self.loaded), self.environment
        try:
            held = json.loads(path.read_text())
            saved = held.pop(_META, None)
            held.pop(_GENERATION, None)
            hard, soft = mismatches(saved, self.environment) if saved is not None else ({}, {})
            if hard:
                self._warn_once(
                    "hard",
                    f"[Autotuner]: Not saving configs to {path}: the file was created in a different environment ({_listed(hard)}). "
                    "Use a different cache path for the current environment, or delete the file to re-prime it.",
                )
                return
            if not soft:
                configs, recorded = {**held, **configs}, saved or self.environment
        except (FileNotFoundError, ValueError):
            pass
        write_json(path, whole_file(recorded, configs), prefix=".autotuner_")
        logger.info(
            f"[Autotuner]: Saved {len(configs)} configs to {path} ({len(configs) - previous} new, {previous} from previous config)"
        )

    def _warn_once(self, severity: str, message: str) -> None:
        """FlashInfer warns once of each kind: after a refused load, a refused save says nothing more."""
        if severity not in self._warned:
            self._warned.add(severity)
            logger.warning(message)


def whole_file(recorded: Metadata, configs: Dict[str, List[Any]]) -> Dict[str, Any]:
    """A file's content: the metadata first, the entries by key, and the hash of both."""
    content: Dict[str, Any] = {_META: recorded, **{name: configs[name] for name in sorted(configs)}}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return {**content, _GENERATION: hashlib.sha256(canonical).hexdigest()}


def mismatches(saved: Any, current: Metadata) -> Tuple[Dict[str, Tuple[Any, str]], Dict[str, Tuple[Any, str]]]:
    """What differs, as (saved, current): definite conflicts, and values that the writer did not know."""
    saved = saved if isinstance(saved, dict) else {}
    hard: Dict[str, Tuple[Any, str]] = {}
    soft: Dict[str, Tuple[Any, str]] = {}
    for name, now in current.items():
        then = saved.get(name)
        if then not in (now, "*"):
            (soft if then in (None, "unknown") else hard)[name] = (then, now)
    return hard, soft


def _listed(differing: Dict[str, Tuple[Any, str]]) -> str:
    return ", ".join(f"{name}: saved={then} vs current={now}" for name, (then, now) in differing.items())


def fingerprint(path: Path) -> Optional[Tuple[str, int]]:
    """What vLLM compares between ranks: the metadata and the number of entries; None for no or an unreadable file."""
    try:
        configs = json.loads(path.read_text())
        recorded = configs.pop(_META, None)
    except (OSError, ValueError, AttributeError):
        return None
    return json.dumps(recorded, sort_keys=True), len(configs)
