"""What an engine's files show: judged in a part's folder, or found where the engine wrote them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Callable, List, Tuple

from pretune.protocol import Versions


class Unsound(Exception):
    """What the engine wrote may not be published; `reason` is one of reasons.REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Evidence:
    """What lies in a part's folder."""

    layout: str  # one of protocol.LAYOUTS
    entries: int  # that one rank loads
    files: List[str]  # what belongs into a bundle: temporary and foreign files do not
    summary: str  # what was found, for a person
    notes: List[str] = field(default_factory=list)  # what is odd about it
    # Ranks that should hold the same operations and do not, as a sentence; "": there are none.
    unlike: str = ""
    versions: Versions = field(default_factory=Versions)  # that the files name

    def message(self) -> str:
        """Return one line for a person: what was found, then what is odd about it."""
        return ", ".join([self.summary, *self.notes])


@dataclass(frozen=True)
class Found:
    """One engine configuration's files, where the engine wrote them itself."""

    root: Tuple[
        str, ...
    ]  # the folder that stands for the part's own, by names from the tree's root
    inner: Tuple[str, ...]  # what lies below it, by name
    versions: Versions = field(default_factory=Versions)  # that a folder is named after

    @property
    def path(self) -> str:
        """From the tree's root."""
        return "/".join(self.root + self.inner)


class Tree(ABC):
    """Folders that can be looked into, without following a link (agent/engine/discover.py)."""

    @abstractmethod
    def folders(self, at: Tuple[str, ...], expected: Callable[[str], object]) -> List[str]:
        """Return the names of the folders in a folder; a link with an expected name is noted."""

    @abstractmethod
    def has(
        self, at: Tuple[str, ...], test: Callable[[str], object], is_noted: bool = True
    ) -> bool:
        """Return whether a folder has a name that passes; one that cannot be opened is noted."""
