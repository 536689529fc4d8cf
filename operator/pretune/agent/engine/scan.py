"""What the engine left in a part's folder; only plain files are opened, and no link is followed."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

from pretune.agent.claim.fs import Folder, is_safe_name, read_and_close
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import MAX_BYTES, MAX_FILES

MAX_DEPTH = 8  # folders below one another; a managed store of vLLM has three


class Changed(Exception):
    """The folder changed while it was read; the message is the path."""


@dataclass
class Scan:
    """Files and folders by relative path.

    Two scans are equal when no file was made, removed, replaced or written between them.
    """

    # Size in bytes, mtime in ns, inode.
    files: Dict[str, Tuple[int, int, int]] = field(default_factory=dict)
    folders: List[str] = field(default_factory=list)


def scan(root: Folder) -> Scan:
    """Return what is in the folder.

    A file with several hard links is taken: a link cannot leave its file system, here an emptyDir
    of this pod, and what is published is a copy. Raises AgentError (UnsafeFiles, UnreadableFiles)
    that names the path, and Changed.
    """
    found = Scan()
    _scan(root, "", 1, found)
    if sum(size for size, _, _ in found.files.values()) > MAX_BYTES:
        largest = max(found.files, key=lambda path: found.files[path][0])
        raise AgentError(
            reasons.UNSAFE_FILES,
            "the engine left more than %d MiB; the largest file is %s" % (MAX_BYTES >> 20, largest),
        )
    return found


def _scan(folder: Folder, prefix: str, depth: int, found: Scan) -> None:
    try:
        names = folder.list_names()
    except PermissionError as error:
        raise _unreadable(prefix or ".", error) from None
    for name in names:
        path = prefix + name
        if not is_safe_name(name):
            raise AgentError(
                reasons.UNSAFE_FILES, "%s: not a name that an engine gives" % ascii(path)[:200]
            )
        if len(found.files) + len(found.folders) >= MAX_FILES:
            raise AgentError(
                reasons.UNSAFE_FILES,
                "the engine left more than %d files; one too many is %s" % (MAX_FILES, path),
            )
        try:
            status = folder.lstat(name)
        except PermissionError as error:
            raise _unreadable(path, error) from None
        if status is None:
            raise Changed(path)
        if stat.S_ISREG(status.st_mode):
            found.files[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
        elif stat.S_ISDIR(status.st_mode):
            if depth >= MAX_DEPTH:
                raise AgentError(
                    reasons.UNSAFE_FILES, "%s: more than %d folders deep" % (path, MAX_DEPTH)
                )
            found.folders.append(path)
            try:
                below = folder.open_folder(name)
            except PermissionError as error:
                raise _unreadable(path, error) from None
            except (FileNotFoundError, AgentError):
                raise Changed(path) from None
            with below:
                _scan(below, path + "/", depth + 1, found)
        else:
            raise AgentError(
                reasons.UNSAFE_FILES,
                "%s is %s; it was not followed" % (path, _kind(status.st_mode)),
            )


def read(root: Folder, path: str, limit: int) -> bytes:
    """Return a scanned file's bytes, at most limit + 1. Raises as `scan` does."""
    try:
        fd, _ = root.open_file(path)
        return read_and_close(fd, limit)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except FileNotFoundError:
        raise Changed(path) from None
    except AgentError:  # it was a plain file a moment ago
        raise Changed(path) from None


def _unreadable(path: str, error: OSError) -> AgentError:
    return AgentError(
        reasons.UNREADABLE_FILES,
        "%s: %s, though this container has the engine's uid" % (path, error.strerror),
    )


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "no plain file")
