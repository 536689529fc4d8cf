"""FlashInfer's managed store: an environment's folder, a file for each entry (`autotune_cache.py` of 0.7.2.post1)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Dict, Iterator

from .files import write_json
from .log import flashinfer as logger
from .profiles import POLICY, RUNNER, Metadata, Profile, measured


class ManagedStore:
    """`v2/<16 hex of the environment>/`: a manifest, and a file for each entry. It never raises."""

    def __init__(self, root: Path, environment: Metadata) -> None:
        self.manifest = {**environment, "cache_schema": "v2"}
        canonical = json.dumps(self.manifest, sort_keys=True, separators=(",", ":")).encode()
        self.folder = root / "v2" / hashlib.sha256(canonical).hexdigest()[:16]
        self.known: Dict[str, object] = {}
        logger.info(
            f"[Autotuner]: Managed autotune cache attached for this process: ManagedAutotuneCache(env_dir={str(self.folder)!r})"
        )
        self._preload()

    def path(self, key: str) -> Path:
        """Where the entry of this key lies."""
        return self.folder / "entries" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def _preload(self) -> None:
        total = 0
        for path in self._entries():
            total += 1
            with contextlib.suppress(Exception):
                entry = json.loads(path.read_text())
                if path == self.path(entry["key"]) and entry["key_fields"]:
                    self.known[entry["key"]] = entry["tactic"]
        if total:
            lazily = total - len(self.known)
            note = f" ({lazily} not preloadable, served lazily)" if lazily else ""
            logger.info(f"[Autotuner]: Preloaded {len(self.known)}/{total} managed cache entries into memory{note}")

    def _entries(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from sorted((self.folder / "entries").glob("*.json"))

    def has(self, profile: Profile) -> bool:
        """Whether the profile need not be measured."""
        if profile.key not in self.known and os.path.lexists(self.path(profile.key)):
            why = "not a valid entry"
            with contextlib.suppress(ValueError):
                try:
                    self.path(profile.key).read_text()
                except OSError as error:
                    why = str(error)
            logger.warning(
                f"[Autotuner]: Ignoring invalid managed cache entry {self.path(profile.key)} for key {profile.key}: {why}. "
                "Treating as a cache miss."
            )
        return profile.key in self.known

    def publish(self, profile: Profile) -> None:
        """Keeps a measured tactic; a folder that cannot be written gives a warning."""
        tactic = measured()
        self.known[profile.key] = tactic
        entry = {
            "key": profile.key, "key_fields": profile.key_fields, "profiling_policy": POLICY, "runner": RUNNER, "tactic": tactic,
        }  # fmt: skip
        try:
            (self.folder / "entries").mkdir(parents=True, exist_ok=True)
            if not (self.folder / "manifest.json").exists():
                write_json(self.folder / "manifest.json", self.manifest, sort=True)
            write_json(self.path(profile.key), entry, sort=True)
        except OSError as error:
            logger.warning(
                f"[Autotuner]: Failed to persist managed cache entry for {profile.key} under {self.folder / 'entries'}: {error}. "
                "Tuning result remains available in memory for this process."
            )
