"""FlashInfer's managed store: an environment's folder, a file for each entry (`autotune_cache.py` of 0.7.2.post1)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterator, Set

from .files import write_json
from .log import flashinfer as logger
from .profiles import POLICY, RUNNER, Metadata, Profile, decoded, measured


class ManagedStore:
    """`v2/<16 hex of the environment>/`: a manifest, and a file for each entry. It never raises."""

    def __init__(self, root: Path, environment: Metadata) -> None:
        self.manifest = {**environment, "cache_schema": "v2"}
        canonical = json.dumps(self.manifest, sort_keys=True, separators=(",", ":")).encode()
        self.folder = root / "v2" / hashlib.sha256(canonical).hexdigest()[:16]
        self.known: Dict[str, Any] = {}
        self._missing: Set[str] = set()
        self._hits: Set[str] = set()
        logger.info(
            "[Autotuner]: Managed autotune cache attached for this process: "
            f"ManagedAutotuneCache(env_dir={str(self.folder)!r}, hits=0, misses=0)"
        )
        self._preload()

    @property
    def is_warm(self) -> bool:
        """Whether it has found tactics."""
        return bool(self.known)

    def path(self, key: str) -> Path:
        """Where the entry of this key lies."""
        return self.folder / "entries" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def _preload(self) -> None:
        total = 0
        for path in self._entries():
            total += 1
            with contextlib.suppress(Exception):
                entry = json.loads(path.read_text())
                if decoded(entry["key_fields"]) == entry["key"] and path == self.path(entry["key"]):
                    self.known[entry["key"]] = _kept(entry)
        if total:
            lazily = total - len(self.known)
            note = f" ({lazily} not preloadable, served lazily)" if lazily else ""
            logger.info(
                f"[Autotuner]: Preloaded {len(self.known)}/{total} managed cache entries into memory{note}"
            )

    def _entries(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from sorted((self.folder / "entries").glob("*.json"))

    def knows(self, profile: Profile) -> bool:
        """Whether the profile need not be measured."""
        self._look_up(profile.key)
        return bool(self.known.get(profile.key) == {"runner": RUNNER, "profiling_policy": POLICY})

    def has(self, profile: Profile) -> bool:
        """The same; says so at an operation's first entry that it finds."""
        known = self.knows(profile)
        if known and profile.operation not in self._hits:
            self._hits.add(profile.operation)
            logger.info(
                f"[Autotuner]: Config cache hit for {profile.operation} (runner={RUNNER}, source=managed cache)"
            )
        return known

    def _look_up(self, key: str) -> None:
        """What was not preloaded is read at its first use."""
        if key in self.known or key in self._missing:
            return
        try:
            entry = json.loads(self.path(key).read_text())
            if entry["key"] != key:
                raise ValueError(f"embedded key mismatch (found {entry['key']!r})")
            self.known[key] = _kept(entry)
        except FileNotFoundError:
            self._missing.add(key)
        except Exception as error:
            logger.warning(
                f"[Autotuner]: Ignoring invalid managed cache entry {self.path(key)} for key {key}: {error}. Treating as a cache miss."
            )
            self._missing.add(key)

    def learn(self, profile: Profile) -> None:
        """Keeps a measured tactic; a folder that cannot be written gives a warning."""
        entry = {
            "key": profile.key, "key_fields": profile.key_fields, "profiling_policy": POLICY, "runner": RUNNER, "tactic": measured(),
        }  # fmt: skip
        self.known[profile.key] = _kept(entry)
        try:
            (self.folder / "entries").mkdir(parents=True, exist_ok=True)
            if not (self.folder / "manifest.json").exists():
                write_json(self.folder / "manifest.json", self.manifest, sort=True)
            write_json(self.path(profile.key), entry, sort=True)
        except Exception as error:
            logger.warning(
                f"[Autotuner]: Failed to persist managed cache entry for {profile.key} under {self.folder / 'entries'}: {error}. "
                "Tuning result remains available in memory for this process."
            )


def _kept(entry: Dict[str, Any]) -> Dict[str, Any]:
    """What decides whether an entry is used; raises KeyError for one that is not whole."""
    runner, _ = entry["runner"], entry["tactic"]
    return {"runner": runner, "profiling_policy": entry.get("profiling_policy")}
