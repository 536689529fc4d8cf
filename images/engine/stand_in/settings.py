"""What the stand-in's own environment variables ask for. vLLM has none of these."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Tuple

FAULTS = (
    "crash-at-start", "crash", "never-ready", "exit-after-ready", "hang-on-term",
    "warm-hang", "warm-crash", "never-keeps-one",
    "half-written", "missing-rank", "uneven-ranks", "disagreeing-ranks",
    "symlink", "device", "dotdot", "many-files", "huge", "unreadable",
)  # fmt: skip


class SettingError(ValueError):
    """A variable holds what the stand-in does not understand."""


class Settings(NamedTuple):
    """The stand-in's behaviour: times in seconds, `fault` one of FAULTS or empty."""

    gpu: str
    entries: Tuple[int, ...]
    seconds_per_entry: float
    start_seconds: float
    hang_seconds: float
    fault: str
    fault_after: float
    tunes_until: str

    def entries_of(self, stage: int) -> int:
        """How many entries a rank of this pipeline stage tunes: the stage's own number, or one less in each."""
        if len(self.entries) > 1:
            return self.entries[min(stage, len(self.entries) - 1)]
        return max(0, self.entries[0] - stage)


def settings_of(environ: Mapping[str, str]) -> Settings:
    """Reads the ENGINE_* variables; raises SettingError with the variable's name."""
    fault = environ.get("ENGINE_FAULT", "")
    if fault and fault not in FAULTS:
        raise SettingError(f"ENGINE_FAULT={fault!r}: not one of {', '.join(FAULTS)}")
    return Settings(
        gpu=environ.get("ENGINE_GPU", "NVIDIA H200"),
        entries=_entries(environ),
        seconds_per_entry=_number(environ, "ENGINE_SECONDS_PER_ENTRY", 0.05),
        start_seconds=_number(environ, "ENGINE_START_SECONDS", 0.5),
        hang_seconds=_number(environ, "ENGINE_HANG_SECONDS", 1800),
        fault=fault,
        fault_after=_number(environ, "ENGINE_FAULT_AFTER", 1),
        tunes_until=environ.get("ENGINE_TUNES_UNTIL", ""),
    )


def _entries(environ: Mapping[str, str]) -> Tuple[int, ...]:
    parts = environ.get("ENGINE_ENTRIES", "").split(",")
    return tuple(
        int(_number({**environ, "ENGINE_ENTRIES": part}, "ENGINE_ENTRIES", 20)) for part in parts
    )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise SettingError(f"{name}={text!r}: a number from 0 is needed")
    return number
