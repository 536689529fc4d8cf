"""Folders by descriptor, so that no link below a mount is ever followed; and every change, one method an operation.

All paths of ours are walked name by name with openat and O_NOFOLLOW: a writer who swaps a folder for a link in between gets
an error, not our files. `Disk` is handed in wherever something is changed: a test ends the process after any of its operations.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import List, Optional, Tuple, Union

# What may stand in a path of ours: no separators, no control or non-ASCII characters, no leading "..".
_SANE = re.compile(r"(?!\.\.|\.$)[A-Za-z0-9._+=@,-]{1,200}")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# Some network and FUSE file systems have fixed modes, or no fsync of folders.
_NOT_HAD = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Problem(Exception):
    """Why the agent's work ends here. `reason` is one of those that wire.Report names."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason, self.message = reason, message


def sane(name: str) -> bool:
    """Whether a file or folder may have this name."""
    return _SANE.fullmatch(name) is not None


def sane_path(path: str) -> bool:
    """Whether a relative path of ours may look like this: "a/b.json"."""
    return isinstance(path, str) and all(sane(name) for name in path.split("/"))


class Folder:
    """An open folder: `fd`, and `where` for messages. A context manager."""

    def __init__(self, fd: int, where: str) -> None:
        self.fd, self.where = fd, where

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def path(self, name: str) -> str:
        return "%s/%s" % (self.where, name) if self.where else name

    def folder(self, name: str) -> "Folder":
        """The folder of that name below. Problem UnsafePath for a link or a file; FileNotFoundError and others pass."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return Folder(os.open(name, flags, dir_fd=self.fd), self.path(name))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Problem(
                    "UnsafePath", "%s is a link or no folder; it was not followed" % self.path(name)
                ) from None
            raise

    def walk(self, names: List[str]) -> "Folder":
        """The folder at the end of these names; this one stays open."""
        found = Folder(os.dup(self.fd), self.where)
        for name in names:
            with found:
                found = found.folder(name)
        return found

    def file(self, path: str) -> Tuple[int, os.stat_result]:
        """A regular file below, by relative path: descriptor for reading, and its stat. Problem UnsafePath otherwise."""
        *folders, name = path.split("/")
        with self.walk(folders) as parent:
            try:
                # O_NONBLOCK: the open of a FIFO would wait for its writer
                fd = os.open(
                    name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    dir_fd=parent.fd,
                )
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Problem(
                        "UnsafePath", "%s is a link or a socket" % parent.path(name)
                    ) from None
                raise
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            os.close(fd)
            raise Problem("UnsafePath", "%s is no regular file" % self.path(path))
        return fd, seen

    def names(self) -> List[str]:
        return sorted(os.listdir(self.fd))

    def lstat(self, name: str) -> Optional[os.stat_result]:
        """None when there is nothing of that name."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


def open_root(path: str) -> Folder:
    """A mount point, by its path in this container, which is our own pod's doing."""
    return Folder(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "")


def read_all(fd: int, limit: int) -> bytes:
    """The file's bytes, at most limit + 1 of them; closes the descriptor."""
    with os.fdopen(fd, "rb") as file:
        return file.read(limit + 1)


class Disk:
    """Every change to a file system."""

    def mkdir(self, parent: Folder, name: str, mode: int = 0o755) -> None:
        os.mkdir(name, mode, dir_fd=parent.fd)

    def create(self, parent: Folder, name: str, mode: int = 0o600) -> int:
        """A new file, for writing; FileExistsError when anything of that name is there."""
        return os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            mode,
            dir_fd=parent.fd,
        )

    def write(self, fd: int, data: Union[bytes, memoryview]) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def chmod(self, fd: int, mode: int) -> None:
        """By descriptor; a file system of fixed modes is taken as it is."""
        try:
            os.fchmod(fd, mode)
        except OSError as error:
            if error.errno not in _NOT_HAD:
                raise

    def fsync(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise

    def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
        os.rename(name, new, src_dir_fd=source.fd, dst_dir_fd=to.fd)

    def unlink(self, parent: Folder, name: str) -> None:
        os.unlink(name, dir_fd=parent.fd)

    def rmdir(self, parent: Folder, name: str) -> None:
        os.rmdir(name, dir_fd=parent.fd)


def remove(parent: Folder, name: str, disk: Disk) -> None:
    """Remove a file, a link itself, or a whole folder, 0555 ones too; what is not there is fine."""
    seen = parent.lstat(name)
    if seen is None:
        return
    if not stat.S_ISDIR(seen.st_mode):
        disk.unlink(parent, name)
        return
    with parent.folder(name) as folder:
        if not seen.st_mode & stat.S_IWUSR:
            disk.chmod(folder.fd, 0o755)
        for below in folder.names():
            remove(folder, below, disk)
    disk.rmdir(parent, name)
