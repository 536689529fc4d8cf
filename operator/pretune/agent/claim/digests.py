"""Bundles on the claim, compared with their manifests byte by byte.

Apart from bundles.py, since seed runs in every pod and compares the bytes while it copies them.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import Optional, Sequence

from pretune.agent.claim.bundles import Bundle, DamagedBundle, find_bundle
from pretune.agent.claim.fs import Folder
from pretune.agent.engine.scan import Changed, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import File, Inputs

HASH_BLOCK_BYTES = 1024 * 1024


def find_checked_bundle(
    bundles: Folder, bundle_id: str, inputs: Optional[Inputs] = None
) -> Optional[Bundle]:
    """Return the bundle of this id, every byte of it compared; None where there is none.

    Raises as find_bundle; DamagedBundle also for what differs from the manifest.
    """
    bundle = find_bundle(bundles, bundle_id, inputs)
    if bundle is None:
        return None
    with bundles.open_folder(bundle_id) as folder:
        for part in bundle.manifest.parts:
            check_digests(folder, part.name, part.files, part.folders)
    return bundle


def check_digests(bundle: Folder, part: str, files: Sequence[File], folders: Sequence[str]) -> None:
    """Read a part's folder and compare it: these folders and files, with their size and sha256.

    Raises DamagedBundle where something is missing, differs or should not be there; OSError.
    """
    try:
        with bundle.open_folder(part) as folder:
            present = scan(folder)
            paths = [file.path for file in files]
            if sorted(present.folders) != sorted(folders) or sorted(present.files) != sorted(paths):
                odd = {*present.folders, *present.files}.symmetric_difference([*paths, *folders])
                raise DamagedBundle(
                    "%s/%s is missing or not of this bundle" % (part, min(odd, default=""))
                )
            for file in files:
                if (
                    present.files[file.path][0] != file.size
                    or _sha256(folder, file.path) != file.sha256
                ):
                    raise DamagedBundle("%s/%s is not what was sealed" % (part, file.path))
    except FileNotFoundError as error:
        raise DamagedBundle("%s: %s" % (part, error.strerror)) from None
    except Changed as error:
        raise DamagedBundle("%s/%s changes" % (part, error)) from None
    except AgentError as error:
        if error.reason == reasons.UNREADABLE_FILES:
            raise PermissionError(errno.EACCES, error.message) from None
        raise DamagedBundle(error.message) from None


def _sha256(folder: Folder, path: str) -> str:
    fd, _ = folder.open_file(path)
    with os.fdopen(fd, "rb") as file:
        # Read what the storage has, not what was just written; without such advice, what there is.
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
        total = hashlib.sha256()
        for block in iter(lambda: file.read(HASH_BLOCK_BYTES), b""):
            total.update(block)
    return total.hexdigest()
