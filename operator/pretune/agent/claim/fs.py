"""Folders by descriptor, so that no link below a mount is ever followed; and every change to them.

A path of ours is opened name by name with openat and O_NOFOLLOW: who replaces a folder by a link at
that moment gets an error, not our files. Whatever changes files is given a `Disk`: the tests' own
kill the process after any one of its operations.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import List, Optional, Sequence, Tuple, Union

from pretune.agent.errors import AgentError
from pretune.api import reasons

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM)
# Some network and FUSE file systems have fixed modes, or no fsync of folders.
_NO_CHMOD_ERRNOS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NO_FSYNC_ERRNOS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

# No separators, no control or non-ASCII characters, no leading "..".
_SAFE_NAME = re.compile(r"(?!\.\.|\.$)[A-Za-z0-9._+=@,-]{1,200}")


def is_safe_name(name: str) -> bool:
    """Whether a file or folder in a bundle may have this name."""
    return _SAFE_NAME.fullmatch(name) is not None


def is_safe_path(path: str) -> bool:
    """Whether a relative path in a bundle, like "a/b.json", has safe names only."""
    return isinstance(path, str) and all(is_safe_name(name) for name in path.split("/"))


class Folder:
    """An open folder: its descriptor, and its path below the mount point. A context manager."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd, self.path = fd, path

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def path_of(self, name: str) -> str:
        """Return the path, for a message, of what has this name here."""
        return "%s/%s" % (self.path, name) if self.path else name

    def open_folder(self, name: str) -> "Folder":
        """Open a folder by its name. Raises AgentError UnsafePath for a link or file, OSError."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return Folder(os.open(name, flags, dir_fd=self.fd), self.path_of(name))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise AgentError(
                    reasons.UNSAFE_PATH,
                    "%s is a link or not a folder; it was not followed" % self.path_of(name),
                ) from None
            raise

    def open_path(self, names: Sequence[str]) -> "Folder":
        """Open the folder at the end of these names; this one stays open. Raises as open_folder."""
        folder = Folder(os.dup(self.fd), self.path)
        for name in names:
            with folder:
                folder = folder.open_folder(name)
        return folder

    def open_file(self, path: str) -> Tuple[int, os.stat_result]:
        """Open a regular file below, by relative path: its descriptor for reading, and its stat.

        Raises AgentError UnsafePath for anything else, OSError.
        """
        *folders, name = path.split("/")
        # O_NONBLOCK: the open of a FIFO would wait for its writer
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self.open_path(folders) as parent:
            try:
                fd = os.open(name, flags, dir_fd=parent.fd)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise AgentError(
                        reasons.UNSAFE_PATH, "%s is a link or a socket" % parent.path_of(name)
                    ) from None
                raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise AgentError(reasons.UNSAFE_PATH, "%s is not a regular file" % self.path_of(path))
        return fd, status

    def list_names(self) -> List[str]:
        """Return the names of all that is in the folder, sorted."""
        return sorted(os.listdir(self.fd))

    def lstat(self, name: str) -> Optional[os.stat_result]:
        """Return the stat of what has this name, of a link its own; None where there is nothing."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


def open_root(path: str) -> Folder:
    """Open a mount point by its path in this container; links in that path are the pod's own."""
    return Folder(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "")


def read_and_close(fd: int, limit: int) -> bytes:
    """Return the file's bytes, at most limit + 1 of them, and close the descriptor."""
    with os.fdopen(fd, "rb") as file:
        return file.read(limit + 1)


class Disk:
    """Every change to a file system, one method an operation. All raise OSError."""

    def mkdir(self, parent: Folder, name: str, mode: int = 0o755) -> None:
        os.mkdir(name, mode, dir_fd=parent.fd)

    def create(self, parent: Folder, name: str, mode: int = 0o600) -> int:
        """Return the descriptor of a new file; FileExistsError where anything has that name."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=parent.fd)

    def write(self, fd: int, data: Union[bytes, memoryview]) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def chmod(self, fd: int, mode: int) -> None:
        """Change the mode, where the file system has modes."""
        try:
            os.fchmod(fd, mode)
        except OSError as error:
            if error.errno not in _NO_CHMOD_ERRNOS:
                raise

    def fsync(self, fd: int) -> None:
        """Sync a file or folder, where the file system can."""
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_FSYNC_ERRNOS:
                raise

    def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
        os.rename(name, new, src_dir_fd=source.fd, dst_dir_fd=to.fd)

    def unlink(self, parent: Folder, name: str) -> None:
        os.unlink(name, dir_fd=parent.fd)

    def rmdir(self, parent: Folder, name: str) -> None:
        os.rmdir(name, dir_fd=parent.fd)


def write_file(folder: Folder, name: str, data: bytes, disk: Disk) -> None:
    """Write a new file of mode 0444 and sync it."""
    fd = disk.create(folder, name)
    try:
        disk.write(fd, data)
        disk.chmod(fd, 0o444)
        disk.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(parent: Folder, name: str, disk: Disk) -> None:
    """Remove a file, a link itself, or a whole folder, also of mode 0555; it may be absent."""
    status = parent.lstat(name)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        disk.unlink(parent, name)
        return
    with parent.open_folder(name) as folder:
        if not status.st_mode & stat.S_IWUSR:
            disk.chmod(folder.fd, 0o755)
        for child in folder.list_names():
            remove_tree(folder, child, disk)
    disk.rmdir(parent, name)
