"""The staging folders on the claim: what a pod writes before one rename, and what is deleted.

<cache folder>/.staging/<pod uid>/{started,bundle/…} is a pod's, which removes it at its end. One
that was killed leaves it behind: the next one that may remove it does so.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import contextmanager
from typing import Iterator, Tuple

from pretune.agent.claim.fs import Disk, Folder, is_safe_name, read_and_close, remove_tree
from pretune.agent.claim.store import Store
from pretune.agent.errors import AgentError
from pretune.api import reasons

GONE_PREFIX = ".gone-"  # of the name of what is being deleted
_START_MARK = "started"
_MAX_START_MARK_BYTES = 256

# No attempt lives longer than a day: spec.tuning.deadlineSeconds, from its start. Removal starts
# with a rename, so that even a running one would lose only its attempt and never publish half a
# bundle.
STALE_SECONDS = 86400.0


@contextmanager
def open_staging(store: Store, pod_uid: str, disk: Disk) -> Iterator[Folder]:
    """Make and open this pod's staging folder; remove it afterwards, whatever happened.

    Raises AgentError UnsafePath, OSError.
    """
    if not is_safe_name(pod_uid) or pod_uid.startswith("."):
        raise AgentError(reasons.UNSAFE_PATH, "%r is not a pod's uid" % pod_uid)
    _ensure_folder(store.staging, pod_uid, disk)
    try:
        with store.staging.open_folder(pod_uid) as folder:
            yield folder
    finally:
        try:
            delete_atomically(store, store.staging, pod_uid, disk)
        except OSError as error:  # a later pod removes it; the outcome stands
            print("pretune: .staging/%s is left: %s" % (pod_uid, error), flush=True)


def _ensure_folder(parent: Folder, name: str, disk: Disk) -> None:
    try:
        disk.mkdir(parent, name)
    except FileExistsError:
        pass


def write_start_mark(store: Store, pod_uid: str, bundle_id: str, now: float, disk: Disk) -> None:
    """Write of which bundle this pod's attempt is and when it began (Unix seconds).

    Seal counts the tuning's seconds from there. It is on the claim, since the engine's own folder
    must stay empty.
    """
    _ensure_folder(store.staging, pod_uid, disk)
    with store.staging.open_folder(pod_uid) as folder:
        remove_tree(folder, _START_MARK, disk)
        fd = disk.create(folder, _START_MARK, 0o644)
        try:
            disk.write(fd, ("%.3f %s\n" % (now, bundle_id)).encode())
        finally:
            os.close(fd)


def read_start_mark(staging: Folder) -> Tuple[float, str]:
    """Return when the pod's attempt began (Unix seconds, by its node's clock) and its bundle's id.

    (0, "") where there is no such mark.
    """
    try:
        fd, _ = staging.open_file(_START_MARK)
        seconds, bundle_id = read_and_close(fd, _MAX_START_MARK_BYTES).decode().split()
        return float(seconds), bundle_id
    except (OSError, ValueError, AgentError):
        return 0.0, ""


def delete_atomically(store: Store, parent: Folder, name: str, disk: Disk) -> None:
    """Delete a file or folder: out of sight by one rename, then for good. It may be absent.

    Raises OSError where another uid owns it.
    """
    status = parent.lstat(name)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IWUSR:
        with parent.open_folder(name) as folder:
            disk.chmod(folder.fd, 0o755)  # a 0555 folder cannot be moved to another parent
    gone = gone_name(name)
    disk.rename(parent, name, store.staging, gone)
    remove_tree(store.staging, gone, disk)


def gone_name(name: str) -> str:
    """Return a new name below .staging for what is to be deleted."""
    return "%s%s-%d" % (GONE_PREFIX, name, time.time_ns())


def remove_stale_staging(store: Store, own: str, bundle_id: str, disk: Disk) -> None:
    """Remove what killed pods left below .staging, as far as this uid may.

    That is what was being deleted; other attempts at the bundle `bundle_id`, of which only one
    runs at a time ("" for none); and what is older than a day by the claim's clock, which is that
    of the folder `own`, this pod's own.
    """
    own_status = store.staging.lstat(own)
    now = own_status.st_mtime if own_status else time.time()
    for name in store.staging.list_names():
        status = store.staging.lstat(name)
        if status is None or name == own:
            continue
        try:
            if name.startswith(GONE_PREFIX):
                remove_tree(store.staging, name, disk)
            elif now - status.st_mtime > STALE_SECONDS or (
                bundle_id and _bundle_of(store, name) == bundle_id
            ):
                delete_atomically(store, store.staging, name, disk)
        except (OSError, AgentError):
            continue  # another uid's, or removed by another pod just now


def _bundle_of(store: Store, name: str) -> str:
    with store.staging.open_folder(name) as folder:
        return read_start_mark(folder)[1]
