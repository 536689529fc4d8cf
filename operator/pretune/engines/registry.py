"""The engines that pretune knows. One line adds one (docs/dev/adding-an-engine.md)."""

from __future__ import annotations

from typing import Sequence, Tuple

from pretune.engines.base import Engine, Part
from pretune.engines.vllm.engine import VLLM

ENGINES: Tuple[Engine, ...] = (VLLM,)  # asked in this order
# What a container runs that none recognises: an image whose entrypoint starts it.
DEFAULT: Engine = VLLM


def recognise(image: str, words: Sequence[str]) -> Engine:
    """Return the engine that a container of this image, command and args runs."""
    return next((engine for engine in ENGINES if engine.recognises(image, words)), DEFAULT)


def find_engine(name: str) -> Engine:
    """Return the engine of that name. Raises ValueError where there is none."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    raise ValueError("no engine %r: this release knows %s" % (name, [e.name for e in ENGINES]))


def all_parts() -> Tuple[Part, ...]:
    """Return the parts of all engines."""
    return tuple(part for engine in ENGINES for part in engine.parts)
