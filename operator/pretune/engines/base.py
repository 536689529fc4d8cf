"""What pretune knows of an inference engine, and of a part of what it keeps: one object each.

An engine is added by one object (docs/dev/adding-an-engine.md), a part by one object in its
engine's `parts` (docs/dev/adding-a-part.md). Standard library only, Python 3.8, no I/O: the caller
hands in words, names and a function that reads a file. Seed loads this in every pod: what judges
files or parses logs is imported where it is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Mapping, Optional, Sequence, Tuple

from pretune.protocol import MANAGED, PARTS_MOUNT, PER_RANK

if TYPE_CHECKING:
    from pretune.engines.evidence import Evidence, Found, Tree
    from pretune.engines.logs import FailureParser, LogParser, LogSummary


class Part(ABC):
    """One kind of files that an engine keeps in a folder, so that its next start is faster.

    The engine finds the folder by a variable. Seal publishes what lies there as one folder of a
    bundle, seed copies it, prove compares it. All paths are relative to that folder, with "/".
    """

    name = ""  # a DNS label: names the folder in a bundle and in the pod, and the pod's volume
    variable = ""  # of the engine's environment
    max_file_bytes = 8 * 1024 * 1024
    # For messages of an import: where the engine keeps the files when no variable says so, what
    # else a person may name, and the words of the engine's log that name the folder.
    places: Tuple[str, ...] = ()
    folder_kinds = ""
    named_in_log = ""
    # Layouts that the engine only reads, so that many pods may share one folder: without being
    # asked (spec.delivery.mode Auto), and where a person asks for it (ReadOnly).
    read_only: Tuple[str, ...] = (MANAGED,)
    read_only_if_asked: Tuple[str, ...] = (MANAGED, PER_RANK)

    @property
    def mount(self) -> str:
        """Where the folder is, in the engine's container and in the agent's."""
        return "%s/%s" % (PARTS_MOUNT, self.name)

    @property
    def volume(self) -> str:
        """The pod's emptyDir that holds the folder."""
        return "pretune-%s" % self.name

    @abstractmethod
    def is_known(self, path: str) -> bool:
        """Return whether a file of this path belongs into a bundle; a temporary file does not."""

    @abstractmethod
    def judge(
        self,
        paths: Sequence[str],
        read: Callable[[str], bytes],
        gpus: int = 0,
        words: Sequence[str] = (),
    ) -> "Evidence":
        """Check each file; return the layout, the entries and what belongs into a bundle.

        paths: all regular files; read: gives one file's bytes; gpus: what the engine asks for, 0 if
        unknown; words: the engine's command and args. Raises Unsound; what `read` raises passes.
        """

    @abstractmethod
    def read_entries(self, path: str, raw: bytes) -> Dict[str, str]:
        """Return the entries of one known file, by key, in a canonical form. Raises Unsound.

        Proof: an entry is new where the sealed file has not the same value for its key.
        """

    @abstractmethod
    def key_space_of(self, path: str) -> str:
        """Return what a key is unique within: files of one key space are read as one."""

    @abstractmethod
    def operation_of(self, key: str) -> str:
        """Return the operation that an entry is of, for messages."""

    def readable_layouts(
        self, version: str, gpus: int, words: Sequence[str] = ()
    ) -> Tuple[str, ...]:
        """Return the layouts that this release of the engine reads, the likeliest first.

        version: "" if unknown; then all of them. Asked only of a part that can be imported.
        """
        return ()

    def find(self, tree: "Tree", at: Tuple[str, ...]) -> "Iterable[Found]":
        """Yield the folders that the engine wrote without pretune, at or below a folder.

        Import makes a bundle of one of them. A part that cannot be imported has none: it is empty
        in an imported bundle.
        """
        return ()


class Engine(ABC):
    """An inference engine: how it is recognised, called and asked, and its parts."""

    name = ""  # of its folder in pretune.engines; a task names its engine by it
    title = ""  # for messages
    parts: Tuple[Part, ...] = ()  # the first is in every bundle
    # Programs by which the Python that runs the engine is found.
    programs: Tuple[str, ...] = ()
    # What decides whether files fit: the field of protocol.Versions, the distribution, its title.
    # The first is the engine itself.
    distributions: Tuple[Tuple[str, str, str], ...] = ()
    health_path = "/health"
    # Where servers of other projects around this engine say that it is ready.
    other_health_paths: Tuple[str, ...] = ()
    secret_flags: Tuple[str, ...] = ()  # whose values we repeat nowhere
    variable_prefix = ""  # of the environment variables that it reads: "VLLM_"

    @property
    def variables(self) -> Tuple[str, ...]:
        """The variables that pretune sets."""
        return tuple(part.variable for part in self.parts)

    @abstractmethod
    def recognises(self, image: str, words: Sequence[str]) -> bool:
        """Return whether a container of this image, command and args runs this engine."""

    @abstractmethod
    def read_port(self, words: Sequence[str]) -> int:
        """Return the port of its HTTP server."""

    def serves_https(self, words: Sequence[str]) -> bool:
        """Return whether its HTTP server has a certificate."""
        return False

    def read_host(self, words: Sequence[str]) -> str:
        """Return the address that its HTTP server listens on; "": all, or unknown."""
        return ""

    def count_ranks(self, words: Sequence[str]) -> Optional[int]:
        """Return how many processes with a GPU the words ask for in this pod; None: unknown."""
        return None

    def find_multi_pod_flag(self, words: Sequence[str]) -> Optional[str]:
        """Return the flag that makes it one of several pods, as in the words; None: it is whole."""
        return None

    def find_registration(self, words: Sequence[str], env: Mapping[str, str]) -> Optional[str]:
        """Return the variable or flag by which it announces itself to a router, or None.

        env: "" for a value that is a reference.
        """
        return None

    def check_release(self, version: str, gpus: int) -> Tuple[str, str]:
        """Return ("", a note or "") where this release's files can be kept, else (reason, message).

        version: of its distribution, "" if unknown; gpus: what it asks for, 0 if unknown.
        """
        return "", "" if version else "%s's version unknown" % self.title

    def create_log_parser(self, until: Optional[float] = None) -> "Optional[LogParser]":
        """Return a parser for the log of one start; None where its logs say nothing.

        until: Unix seconds; what the kubelet stamped later is not read.
        """
        return None

    def create_failure_parser(self) -> "Optional[FailureParser]":
        """Return a parser for the log of one start that failed; None: its logs do not tell why."""
        return None

    def explain_miss(self, summary: "LogSummary", folders: str, others: str) -> str:
        """Return where a start did not find the entries of its bundle, from what its log says.

        folders: those that it looked in, shortened; others: those in which other pods found the
        bundle, or "".
        """
        found = ", which is in %s for other pods" % others if others else ""
        return "its engine looked for it in %s, and the bundle has none of that name%s" % (
            folders,
            found,
        )
