"""The folders of one cache on its claim.

    <subPath>/<namespace>.<cache>/bundles/<id>/{manifest.json,<part>/…}     sealed (bundles.py)
    <subPath>/<namespace>.<cache>/proofs/<id>.json                          (proof_records.py)
    <subPath>/<namespace>.<cache>/.staging/<pod uid>/{started,bundle/…}     of a pod (staging.py)
    <subPath>/<namespace>.<cache>/.staging/.gone-…                          being deleted

A bundle appears whole, by one rename. It disappears by one rename, out of bundles/, and is deleted
after that.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Iterator, List, Optional

from pretune.agent.claim.fs import (
    NO_SPACE_ERRNOS,
    NOT_WRITABLE_ERRNOS,
    Disk,
    Folder,
    open_root,
)
from pretune.agent.errors import AgentError
from pretune.api import reasons

SHARED_MODE = 0o1777  # several uids write here, and none removes what is another's


class Store:
    """The open folders of one cache. A context manager."""

    def __init__(self, cache: Folder, bundles: Folder, staging: Optional[Folder]) -> None:
        self.cache, self.bundles, self._staging = cache, bundles, staging

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for folder in (self.cache, self.bundles, self._staging):
            if folder is not None:
                os.close(folder.fd)

    @property
    def staging(self) -> Folder:
        assert self._staging is not None, "opened for reading only"
        return self._staging


def open_store(root: str, sub_path: str, cache: str) -> Optional[Store]:
    """Open a cache's folders for reading; None where the claim has none of this cache.

    root: where the claim is mounted. cache: `<namespace>.<name>`. Raises AgentError UnsafePath,
    OSError.
    """
    with open_root(root) as claim:
        try:
            folder = claim.open_path(_names(sub_path, cache))
        except FileNotFoundError:
            return None
    try:
        return Store(folder, folder.open_folder("bundles"), None)
    except FileNotFoundError:
        os.close(folder.fd)
        return None
    except BaseException:
        os.close(folder.fd)
        raise


def create_store(root: str, sub_path: str, cache: str, disk: Disk) -> Store:
    """Open a cache's folders for writing, and make those that are missing.

    Their mode is 1777, since the engine's uid may change between images. Raises as open_store.
    """
    with open_root(root) as claim:
        folder = Folder(os.dup(claim.fd), "")
    for name in _names(sub_path, cache):
        with folder:
            folder = create_folder(folder, name, disk, ours=name == cache)
    try:
        bundles = create_folder(folder, "bundles", disk)
        return Store(folder, bundles, create_folder(folder, ".staging", disk))
    except BaseException:
        os.close(folder.fd)
        raise


def _names(sub_path: str, cache: str) -> List[str]:
    names = [name for name in sub_path.split("/") if name not in ("", ".")] + [cache]
    for name in names:
        if name == ".." or "\0" in name or "/" in name:
            raise AgentError(reasons.UNSAFE_PATH, "%r is not a folder of the claim" % name)
    return names


def create_folder(parent: Folder, name: str, disk: Disk, ours: bool = True) -> Folder:
    """Open the folder of that name; where it is missing, make it with mode 1777.

    ours: whether it gets that mode too where this uid made it and was killed before the chmod.
    """
    is_new = False
    try:
        folder = parent.open_folder(name)
    except FileNotFoundError:
        try:
            disk.mkdir(parent, name, 0o777)
            is_new = True
        except FileExistsError:  # another attempt's check was faster
            pass
        folder = parent.open_folder(name)
    status = os.fstat(folder.fd)
    lacks_mode = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != SHARED_MODE
    if is_new or (ours and lacks_mode):
        disk.chmod(folder.fd, SHARED_MODE)
    return folder


@contextmanager
def explain_claim_errors(failure: str) -> Iterator[None]:
    """Raise an AgentError that says what to do where the claim has no space or is not writable.

    failure: what cannot be done then, for the message. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE_ERRNOS:
            raise AgentError(
                reasons.NO_SPACE, "%s: %s; enlarge the claim" % (failure, error.strerror)
            ) from None
        if error.errno in NOT_WRITABLE_ERRNOS:
            raise AgentError(
                reasons.READ_ONLY_CLAIM,
                "%s as uid %d, gid %d: %s; the claim has to be writable for the engine's uid"
                " (fsGroup, or its export's rights)"
                % (failure, os.geteuid(), os.getegid(), error.strerror),
            ) from None
        raise
