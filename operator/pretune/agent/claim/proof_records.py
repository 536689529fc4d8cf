"""Proofs of bundles: <cache folder>/proofs/<id>.json says that the engine started warm from the bundle of this digest.

Beside the sealed folders, since these are never changed. A proof of another digest is of another bundle, and counts as none.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Optional

from pretune.agent.claim.fs import Disk, Folder, Problem, read_all, remove
from pretune.agent.claim.store import Bundle, Store, is_id, make_folder, staged, write

PROOFS = "proofs"
SCHEMA = "pretune.dev/proof/v1"
_ENDING = ".json"
_STAGED = "proof"
_MOST = 4096  # bytes


@dataclass(frozen=True)
class Proof:
    """What stands in the file."""

    id: str
    digest: str  # of the bundle's manifest
    at: str  # RFC 3339, UTC
    schema: str = SCHEMA


def proven(store: Store, bundle: Bundle) -> bool:
    """Whether the proof of exactly this bundle is on the claim. A link, another's file or one that may not be read is none;
    OSError passes: a storage that fails has not said no."""
    found = _read(store, bundle.manifest.id)
    return found is not None and (found.id, found.digest) == (bundle.manifest.id, bundle.digest)


def _read(store: Store, name: str) -> Optional[Proof]:
    try:
        with store.cache.folder(PROOFS) as folder:
            fd, _ = folder.file(name + _ENDING)
        data = json.loads(read_all(fd, _MOST).decode("utf-8"))
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            return None
        return Proof(str(data.get("id")), str(data.get("digest")), str(data.get("at")))
    except (FileNotFoundError, PermissionError, Problem, ValueError, RecursionError):
        return None


def mark(store: Store, bundle: Bundle, pod: str, now: float, disk: Disk) -> None:
    """Says on the claim that this bundle is proven: whole and synced, by one rename, or not at all. One that says so already stays.

    Raises Problem UnsafePath where a link or folder is in its place, OSError.
    """
    if proven(store, bundle):
        return
    name = bundle.manifest.id
    proof = Proof(name, bundle.digest, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)))
    with staged(store, pod, disk) as staging:
        remove(staging, _STAGED, disk)  # of an earlier start of this container
        write(staging, _STAGED, (json.dumps(asdict(proof), sort_keys=True) + "\n").encode(), disk)
        with make_folder(store.cache, PROOFS, disk) as folder:
            try:
                disk.rename(staging, _STAGED, folder, name + _ENDING)
            except OSError as error:
                raise _in_the_way(folder, name + _ENDING, error) from None
            disk.fsync(folder.fd)
        disk.fsync(store.cache.fd)


def _in_the_way(folder: Folder, file: str, error: OSError) -> Exception:
    """What lies where the proof should: a folder, or another uid's proof of an earlier bundle, which the sticky bit protects."""
    there = folder.lstat(file)
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return Problem("UnsafePath", "%s is a folder: remove it" % folder.path(file))
    if (
        error.errno in (errno.EPERM, errno.EACCES)
        and there is not None
        and there.st_uid != os.geteuid()
    ):
        return Problem(
            "ReadOnlyClaim",
            "%s is of an earlier bundle and belongs to uid %d, so uid %d may not replace it: remove it"
            % (folder.path(file), there.st_uid, os.geteuid()),
        )
    return error


def sweep_proofs(store: Store, disk: Disk) -> None:
    """Removes the proofs of bundles that are not there, as far as this uid may: a prune that was killed leaves one."""
    try:
        with store.cache.folder(PROOFS) as folder:
            for file in folder.names():
                name = file[: -len(_ENDING)]
                if file.endswith(_ENDING) and is_id(name) and store.bundles.lstat(name) is None:
                    _unlink(folder, file, disk)
    except (OSError, Problem):  # none yet, or swept by another pod just now
        return


def _unlink(folder: Folder, file: str, disk: Disk) -> None:
    try:
        disk.unlink(folder, file)
    except FileNotFoundError:
        pass
    except OSError as error:  # another uid's: it proves nothing without its bundle
        print(
            "pretune: %s is left: %s" % (folder.path(file), os.strerror(error.errno or 0)),
            flush=True,
        )
