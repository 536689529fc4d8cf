"""From a folder that was judged to a bundle on the claim: staged, read back, and renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from typing import Callable, List, Optional, Sequence

from pretune.agent.claim.bundles import MANIFEST, Bundle, DamagedBundle
from pretune.agent.claim.digests import check_digests, find_checked_bundle
from pretune.agent.claim.fs import Disk, Folder, remove_tree, write_file
from pretune.agent.claim.staging import (
    gone_name,
    open_staging,
    read_start_mark,
    remove_stale_staging,
)
from pretune.agent.claim.store import Store
from pretune.agent.context import Context
from pretune.agent.engine.stable import PartContent, read_verified
from pretune.agent.engine.versions import image_versions, own_version
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import File, Inputs, Manifest, SealedPart, Versions, Writer, digest

_STAGED_BUNDLE = "bundle"  # the new bundle's name in a staging folder


def publish_bundle(
    store: Store,
    contents: Sequence[PartContent],
    context: Context,
    verify_unchanged: Callable[[], None],
) -> Bundle:
    """Publish the content of the engine's parts as the bundle of context.inputs, and return it.

    A valid bundle that is there already wins, and is returned. `verify_unchanged` is called last,
    before the rename, which cannot be undone: it raises an AgentError where what was read does not
    count any more.

    Raises AgentError (SealFailed, IdCollision, UnsafePath, ReadOnlyClaim), OSError.
    """
    disk, inputs = context.disk, context.inputs
    with open_staging(store, context.pod_uid, disk) as staging:
        remove_stale_staging(store, context.pod_uid, "", disk)
        winner = find_or_make_room(store, inputs.bundle_id(), inputs, disk)
        if winner is not None:
            return winner
        disk.mkdir(staging, _STAGED_BUNDLE)
        with staging.open_folder(_STAGED_BUNDLE) as bundle:
            parts = [_write_content(bundle, content, disk) for content in contents]
            manifest = _manifest(context, contents, parts, staging)
            write_file(bundle, MANIFEST, manifest.dump(), disk)
            disk.fsync(bundle.fd)
        context.log("staged: %d files, read back" % manifest.number_of_files)
        verify_unchanged()
        return _rename_into_place(store, staging, manifest, disk)


def _write_content(bundle: Folder, content: PartContent, disk: Disk) -> SealedPart:
    part, evidence, folders = content.part, content.evidence, content.scan.folders
    written = write_part(
        bundle,
        part.name,
        evidence.files,
        folders,
        lambda path: read_verified(content, path),
        disk,
    )
    sealed = SealedPart(
        part.name, part.variable, evidence.layout, evidence.entries, written, folders
    )
    _read_back(bundle, sealed)
    return sealed


def _manifest(
    context: Context, contents: Sequence[PartContent], parts: List[SealedPart], staging: Folder
) -> Manifest:
    task, now, start = context.task, context.now(), read_start_mark(staging)[0]
    image = image_versions(context)
    note = context.engine.check_release(own_version(context.engine, image), 1)[1]
    return Manifest(
        id=context.inputs.bundle_id(),
        cache=task.cache,
        inputs=context.inputs,
        versions=_merge_versions([image, *(content.evidence.versions for content in contents)]),
        writer=Writer(os.geteuid(), os.getegid(), sorted(os.getgroups())),
        gpus=task.gpus,
        tunedSeconds=max(0, round(now - start)) if start else 0,
        sealedAt=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        parts=parts,
        message=", ".join(text for text in (_describe(contents), note) if text),
    )


def _merge_versions(all_versions: Sequence[Versions]) -> Versions:
    """Return of each field the first that is known."""
    merged = {}
    for field in vars(Versions()):
        values = [getattr(versions, field) for versions in all_versions]
        merged[field] = next(filter(None, values), "")
    return Versions(**merged)


def _describe(contents: Sequence[PartContent]) -> str:
    if len(contents) == 1:
        return contents[0].evidence.message()
    return "; ".join("%s: %s" % (c.part.name, c.evidence.message()) for c in contents)


def write_part(
    parent: Folder,
    name: str,
    files: Sequence[str],
    folders: Sequence[str],
    read: Callable[[str], bytes],
    disk: Disk,
) -> List[File]:
    """Write a new folder with these files and folders, and return size and sha256 of what was read.

    Files have mode 0444, folders 0555. All is synced: files first, then folders from the deepest
    up.
    """
    written: List[File] = []
    disk.mkdir(parent, name)
    with parent.open_folder(name) as top:
        for path in sorted(folders):
            *above, last = path.split("/")
            with top.open_path(above) as folder:
                disk.mkdir(folder, last)
        for path in sorted(files):
            data = read(path)
            *above, last = path.split("/")
            with top.open_path(above) as folder:
                write_file(folder, last, data, disk)
            written.append(File(path, len(data), hashlib.sha256(data).hexdigest()))
        for path in sorted(folders, reverse=True):  # a folder comes before those above it
            with top.open_path(path.split("/")) as folder:
                _seal_folder(folder, disk)
        _seal_folder(top, disk)
    return written


def _seal_folder(folder: Folder, disk: Disk) -> None:
    disk.chmod(folder.fd, 0o555)
    disk.fsync(folder.fd)


def _read_back(bundle: Folder, part: SealedPart) -> None:
    try:
        check_digests(bundle, part.name, part.files, part.folders)
    except DamagedBundle as damage:
        raise AgentError(
            reasons.SEAL_FAILED, "the claim gives back other bytes than were written: %s" % damage
        ) from None


def _rename_into_place(store: Store, staging: Folder, manifest: Manifest, disk: Disk) -> Bundle:
    """Rename the staged bundle to its id, and return it; a valid one that is there wins."""
    bundle_id = manifest.id
    winner = find_or_make_room(store, bundle_id, manifest.inputs, disk)
    if winner is not None:
        return winner
    try:
        disk.rename(staging, _STAGED_BUNDLE, store.bundles, bundle_id)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another pod sealed it between the two calls.
        winner = find_or_make_room(store, bundle_id, manifest.inputs, disk)
        if winner is not None:
            return winner
        disk.rename(staging, _STAGED_BUNDLE, store.bundles, bundle_id)
    disk.fsync(store.bundles.fd)
    disk.fsync(staging.fd)
    make_read_only(store.bundles, bundle_id, disk)
    return Bundle(manifest, digest(manifest.dump()))


def make_read_only(bundles: Folder, bundle_id: str, disk: Disk) -> None:
    """Give a bundle's own folder mode 0555, where this uid owns it.

    It had to be writable for the rename; all below it has its mode already.
    """
    with bundles.open_folder(bundle_id) as folder:
        status = os.fstat(folder.fd)
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != 0o555:
            _seal_folder(folder, disk)


def find_or_make_room(store: Store, bundle_id: str, inputs: Inputs, disk: Disk) -> Optional[Bundle]:
    """Return the valid bundle of this id; where there is none, remove a damaged one, return None.

    Raises AgentError ReadOnlyClaim where the damaged one is another uid's, else as
    find_checked_bundle.
    """
    status = store.bundles.lstat(bundle_id)
    try:
        bundle = find_checked_bundle(store.bundles, bundle_id, inputs)
        if bundle is not None:
            make_read_only(store.bundles, bundle_id, disk)
        return bundle
    except DamagedBundle as damage:
        assert status is not None
        print(
            "pretune: bundle %s on the claim is damaged (%s) and removed" % (bundle_id, damage),
            flush=True,
        )
    gone = gone_name(bundle_id)
    try:
        with store.bundles.open_folder(bundle_id) as folder:
            if not status.st_mode & stat.S_IWUSR:
                disk.chmod(folder.fd, 0o755)
        disk.rename(store.bundles, bundle_id, store.staging, gone)
    except PermissionError as error:
        raise AgentError(
            reasons.READ_ONLY_CLAIM,
            "bundles/%s is damaged and belongs to uid %d, so uid %d may not replace it (%s):"
            " remove it" % (bundle_id, status.st_uid, os.geteuid(), error.strerror),
        ) from None
    except FileNotFoundError:
        return None
    moved = store.staging.lstat(gone)
    if moved is None or (moved.st_dev, moved.st_ino) != (status.st_dev, status.st_ino):
        # Another pod replaced the damaged one between our stat and our rename: what we moved is its
        # bundle. Put it back.
        disk.rename(store.staging, gone, store.bundles, bundle_id)
        return find_checked_bundle(store.bundles, bundle_id, inputs)
    try:
        remove_tree(store.staging, gone, disk)
    except OSError:  # out of the way is enough; remove_stale_staging tries again
        pass
    return None
