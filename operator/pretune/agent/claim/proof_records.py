"""Proof records: <cache folder>/proofs/<id>.json says that the engine started warm from a bundle.

They lie beside the sealed folders, which are never changed. A record names its bundle's digest:
with another digest it is of another bundle, and does not count.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Optional

from pretune.agent.claim.bundles import Bundle, is_bundle_id
from pretune.agent.claim.fs import Disk, Folder, read_and_close, remove_tree, write_file
from pretune.agent.claim.staging import open_staging
from pretune.agent.claim.store import Store, create_folder
from pretune.agent.errors import AgentError
from pretune.api import reasons

PROOFS = "proofs"
SCHEMA = "pretune.dev/proof/v1"
_SUFFIX = ".json"
_STAGED_RECORD = "proof"  # the new record's name in a staging folder
_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True)
class ProofRecord:
    """What the file holds."""

    id: str  # of the bundle
    digest: str  # of the bundle's manifest
    at: str  # RFC 3339, UTC
    schema: str = SCHEMA


def has_proof_record(store: Store, bundle: Bundle) -> bool:
    """Whether the proof record of exactly this bundle is on the claim.

    A link, another bundle's record or one that may not be read does not count. Raises other
    OSErrors: a storage that fails has not answered no.
    """
    record = _read(store, bundle.manifest.id)
    return record is not None and (record.id, record.digest) == (bundle.manifest.id, bundle.digest)


def _read(store: Store, bundle_id: str) -> Optional[ProofRecord]:
    try:
        with store.cache.open_folder(PROOFS) as folder:
            fd, _ = folder.open_file(bundle_id + _SUFFIX)
        data = json.loads(read_and_close(fd, _MAX_RECORD_BYTES).decode("utf-8"))
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            return None
        return ProofRecord(str(data.get("id")), str(data.get("digest")), str(data.get("at")))
    except (FileNotFoundError, PermissionError, AgentError, ValueError, RecursionError):
        return None


def write_proof_record(store: Store, bundle: Bundle, pod_uid: str, now: float, disk: Disk) -> None:
    """Write the proof record of this bundle, unless it is there: whole and synced, by one rename.

    now: Unix seconds. Raises AgentError (UnsafePath where a folder is in its place, ReadOnlyClaim
    where another uid's record is), OSError.
    """
    if has_proof_record(store, bundle):
        return
    bundle_id = bundle.manifest.id
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    record = ProofRecord(bundle_id, bundle.digest, at)
    with open_staging(store, pod_uid, disk) as staging:
        remove_tree(staging, _STAGED_RECORD, disk)  # of an earlier start of this container
        content = (json.dumps(asdict(record), sort_keys=True) + "\n").encode()
        write_file(staging, _STAGED_RECORD, content, disk)
        with create_folder(store.cache, PROOFS, disk) as folder:
            try:
                disk.rename(staging, _STAGED_RECORD, folder, bundle_id + _SUFFIX)
            except OSError as error:
                raise _explain_obstacle(folder, bundle_id + _SUFFIX, error) from None
            disk.fsync(folder.fd)
        disk.fsync(store.cache.fd)


def _explain_obstacle(folder: Folder, file: str, error: OSError) -> Exception:
    """Return the error to raise: what lies in the record's place, and that it has to be removed.

    That is a folder, or another uid's record of an earlier bundle, which the sticky bit protects.
    """
    status = folder.lstat(file)
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return AgentError(reasons.UNSAFE_PATH, "%s is a folder: remove it" % folder.path_of(file))
    is_refused = error.errno in (errno.EPERM, errno.EACCES)
    if is_refused and status is not None and status.st_uid != os.geteuid():
        return AgentError(
            reasons.READ_ONLY_CLAIM,
            "%s is of an earlier bundle and belongs to uid %d, so uid %d may not replace it:"
            " remove it" % (folder.path_of(file), status.st_uid, os.geteuid()),
        )
    return error


def remove_orphaned_proof_records(store: Store, disk: Disk) -> None:
    """Remove the records of bundles that are not there, as far as this uid may.

    A prune that was killed leaves one.
    """
    try:
        with store.cache.open_folder(PROOFS) as folder:
            for file in folder.list_names():
                bundle_id = file[: -len(_SUFFIX)]
                if not file.endswith(_SUFFIX) or not is_bundle_id(bundle_id):
                    continue
                if store.bundles.lstat(bundle_id) is None:
                    _unlink(folder, file, disk)
    except (OSError, AgentError):  # no records yet, or removed by another pod just now
        return


def _unlink(folder: Folder, file: str, disk: Disk) -> None:
    try:
        disk.unlink(folder, file)
    except FileNotFoundError:
        pass
    except OSError as error:  # another uid's: without its bundle it has no effect
        print(
            "pretune: %s is left: %s" % (folder.path_of(file), os.strerror(error.errno or 0)),
            flush=True,
        )
