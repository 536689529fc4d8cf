"""Bundles on the claim: found by id, and compared with their manifests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Optional, Sequence

from pretune.agent.claim.fs import Folder, is_safe_name, is_safe_path, read_and_close
from pretune.agent.engine.scan import Changed, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import (
    EMPTY,
    MAX_BYTES,
    MAX_FILES,
    SCHEMA,
    File,
    Inputs,
    Manifest,
    Report,
    WireError,
    digest,
)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # 10,000 files' worth
HASH_BLOCK_BYTES = 1024 * 1024

_ID = re.compile(r"[0-9a-f]{12}-[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class DamagedBundle(Exception):
    """What is on the claim is not what was sealed; the message says what differs."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on the claim."""

    manifest: Manifest
    digest: str  # of the manifest's bytes

    def report(self, by: str, proven: bool = False) -> Report:
        """Return a container's report of this bundle. proven: its proof is on the claim too."""
        layout = self.manifest.layout
        return Report(
            by=by,
            reason=reasons.NOTHING_TO_TUNE if layout == EMPTY else reasons.SEALED,
            message=self.manifest.message,
            id=self.manifest.id,
            layout=layout,
            entries=self.manifest.entries,
            digest=self.digest,
            versions=self.manifest.versions,
            writer=self.manifest.writer,
            seconds=self.manifest.tunedSeconds,
            at=self.manifest.sealedAt,
            proven=proven,
        )


def is_bundle_id(name: str) -> bool:
    """Whether this can be a bundle's id, and so the name of its folder."""
    return _ID.fullmatch(name) is not None


def find_bundle(
    bundles: Folder, bundle_id: str, inputs: Optional[Inputs] = None
) -> Optional[Bundle]:
    """Return the bundle of this id, every byte of it compared; None where there is none.

    Raises as find_manifest; DamagedBundle also for what differs from the manifest.
    """
    bundle = find_manifest(bundles, bundle_id, inputs)
    if bundle is None:
        return None
    with bundles.open_folder(bundle_id) as folder:
        for part in bundle.manifest.parts:
            check_digests(folder, part.name, part.files, part.folders)
    return bundle


def find_manifest(
    bundles: Folder, bundle_id: str, inputs: Optional[Inputs] = None
) -> Optional[Bundle]:
    """Return the bundle of this id by its manifest only; None where there is none.

    Raises DamagedBundle where the manifest is missing or malformed; AgentError where the folder is
    a link (UnsafePath), or the bundle was made of other inputs than these or by another pretune
    release (IdCollision); OSError where it cannot be read, which is not damage.
    """
    if bundles.lstat(bundle_id) is None:
        return None
    with bundles.open_folder(bundle_id) as folder:
        try:
            fd, _ = folder.open_file(MANIFEST)
        except FileNotFoundError:
            raise DamagedBundle("no %s" % MANIFEST) from None
        except AgentError as error:
            raise DamagedBundle(error.message) from None
        raw = read_and_close(fd, MAX_MANIFEST_BYTES)
    try:
        _check_schema(bundle_id, raw)
        manifest = Manifest.load(raw)
        _check_shape(bundle_id, manifest)
    except (WireError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedBundle("%s: %s" % (MANIFEST, error)) from None
    if inputs is not None and manifest.inputs != inputs:
        raise AgentError(
            reasons.ID_COLLISION, "bundle %s on the claim was made of other inputs" % bundle_id
        )
    return Bundle(manifest, digest(raw))


def _check_schema(bundle_id: str, raw: bytes) -> None:
    """Raises AgentError IdCollision for another version of the schema, ValueError."""
    schema = json.loads(raw.decode("utf-8")).get("schema")
    family = SCHEMA.rsplit("/", 1)[0] + "/"
    if isinstance(schema, str) and schema != SCHEMA and schema.startswith(family):
        raise AgentError(
            reasons.ID_COLLISION,
            "bundle %s on the claim is of another pretune release (%s)" % (bundle_id, schema),
        )


def _check_shape(bundle_id: str, manifest: Manifest) -> None:
    """Check what a reader of the bundle relies on. Raises ValueError."""
    if manifest.id != bundle_id or manifest.inputs.bundle_id() != bundle_id:
        raise ValueError("its inputs make another id")
    if not manifest.parts:
        raise ValueError("no parts")
    if len({part.name for part in manifest.parts}) < len(manifest.parts):
        raise ValueError("two parts of one name")
    files = [file for part in manifest.parts for file in part.files]
    if len(files) > MAX_FILES or sum(file.size for file in files) > MAX_BYTES:
        raise ValueError("more than a bundle may hold")
    for part in manifest.parts:
        if not is_safe_name(part.name) or part.name == MANIFEST:
            raise ValueError("not a name of a part: %.80r" % part.name)
        for path in [file.path for file in part.files] + part.folders:
            if not is_safe_path(path):
                raise ValueError("not a path in a bundle: %.80r" % path)


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
