"""Files of a part that the engine wrote without pretune, at or below a folder that a person named.

Where to look is the part's (engines/base.py, Part.find); no link is followed on the way.
"""

from __future__ import annotations

import os
import stat
from typing import Callable, List, Optional, Set, Tuple

from pretune.agent.claim.fs import Folder
from pretune.agent.engine.scan import Scan, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.base import Part
from pretune.engines.evidence import Found, Tree

MAX_FOUND = 200  # folders that are judged


class ClaimTree(Tree):
    """The folders of an open claim.

    `obstacles` are sentences about what was in the way: links, and what may not be read.
    """

    def __init__(self, top: Folder) -> None:
        self.top = top
        self.obstacles: List[str] = []

    def folders(self, at: Tuple[str, ...], expected: Callable[[str], object]) -> List[str]:
        folder = self._open(at)
        if folder is None:
            return []
        found = []
        with folder:
            for name in folder.list_names():
                status = folder.lstat(name)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    found.append(name)
                elif status is not None and stat.S_ISLNK(status.st_mode) and expected(name):
                    self._note("%s is a link; it was not followed" % "/".join((*at, name)))
        return found

    def has(
        self, at: Tuple[str, ...], test: Callable[[str], object], is_noted: bool = True
    ) -> bool:
        folder = self._open(at, is_noted)
        if folder is None:
            return False
        with folder:
            return any(test(name) for name in folder.list_names())

    def is_missing(self, at: Tuple[str, ...]) -> bool:
        """Whether there is no such folder; False also if anything could not be looked at."""
        folder = self._open(at)
        if folder is not None:
            os.close(folder.fd)
        return folder is None and not self.obstacles

    def _open(self, at: Tuple[str, ...], is_noted: bool = True) -> Optional[Folder]:
        """Return None where there is none, or where it cannot be opened, which is noted."""
        try:
            return self.top.open_path(list(at))
        except FileNotFoundError:
            return None
        except PermissionError:
            obstacle = explain_unreadable(self.top, at)
        except AgentError as error:
            obstacle = error.message
        if is_noted:
            self._note(obstacle)
        return None

    def _note(self, obstacle: str) -> None:
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)


def find(part: Part, tree: ClaimTree, at: Tuple[str, ...]) -> List[Found]:
    """Return all that lies where the engine puts it, each once, in the order of their paths.

    Raises AgentError ImportRefused where they are too many, OSError.
    """
    found: Set[Found] = set()
    for written in part.find(tree, at):
        found.add(written)
        if len(found) > MAX_FOUND:
            raise AgentError(
                reasons.IMPORT_REFUSED,
                "more than %d folders of %s below %s: name one of them"
                % (MAX_FOUND, part.name, show(at)),
            )
    return sorted(found, key=lambda written: written.path)


def scan_found(top: Folder, written: Found) -> Scan:
    """Return what is in it, by paths from its root, as if this were the part's own folder.

    Raises as `scan` does.
    """
    with top.open_path([*written.root, *written.inner]) as folder:
        below = scan(folder)
    inner = "/".join(written.inner)
    above = ["/".join(written.inner[: n + 1]) for n in range(len(written.inner))]
    return Scan(
        {"%s/%s" % (inner, path): status for path, status in below.files.items()},
        above + ["%s/%s" % (inner, path) for path in below.folders],
    )


def explain_unreadable(top: Folder, at: Tuple[str, ...]) -> str:
    """Return which part of a path this uid may not read, and who owns it; "" where it may."""
    for depth in range(len(at)):
        with top.open_path(list(at[:depth])) as parent:
            status = parent.lstat(at[depth])
            if status is None:
                return ""
            try:
                if stat.S_ISDIR(status.st_mode):
                    os.close(parent.open_folder(at[depth]).fd)
                elif stat.S_ISREG(status.st_mode):
                    os.close(parent.open_file(at[depth])[0])
            except PermissionError:
                return _describe_owner("/".join(at[: depth + 1]), status)
    return ""


def _describe_owner(path: str, status: os.stat_result) -> str:
    return (
        "%s belongs to uid %d, gid %d (mode %04o), and uid %d, gid %d, as which the engine runs,"
        " may not read it"
        % (
            *(path, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)),
            *(os.geteuid(), os.getegid()),
        )
    )


def show(at: Tuple[str, ...]) -> str:
    """Return a folder of the claim, for a person."""
    return "/".join(at) or "the claim's root"
