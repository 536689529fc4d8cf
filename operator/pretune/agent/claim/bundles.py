"""Bundles on the claim, found by their manifests; digests.py compares all else with these."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Optional

from pretune.agent.claim.fs import Folder, is_safe_name, is_safe_path, read_and_close
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import (
    EMPTY,
    MAX_BYTES,
    MAX_FILES,
    SCHEMA,
    Inputs,
    Manifest,
    Report,
    WireError,
    digest,
)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # 10,000 files' worth

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
    """Return the bundle of this id, of which only the manifest is read; None where there is none.

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
