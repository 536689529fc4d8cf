"""Check, before a GPU is used, whether an attempt can succeed.

Does the image's release keep the files of its parts? May this uid write to the claim, and is there
space? Is the bundle on the claim already?
"""

from __future__ import annotations

import os
from typing import Optional, Tuple

from pretune.agent.claim.bundles import Bundle, DamagedBundle
from pretune.agent.claim.digests import find_checked_bundle
from pretune.agent.claim.fs import Folder
from pretune.agent.claim.proof_records import has_proof_record, remove_orphaned_proof_records
from pretune.agent.claim.publish import make_read_only
from pretune.agent.claim.staging import GONE_PREFIX, remove_stale_staging, write_start_mark
from pretune.agent.claim.store import Store, create_store, explain_claim_errors
from pretune.agent.context import Context
from pretune.agent.engine.versions import describe_versions, image_versions, own_version
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import CHECKED, Report

# A bundle has some 10 kB to 10 MB. Seal reports NoSpace where this was not enough.
MIN_FREE_BYTES = 4 * 1024 * 1024
MIN_FREE_INODES = 32
PROBE_BYTES = 4096


def check(context: Context) -> Report:
    """Return the report Checked, or that of the bundle that is there already.

    Raises AgentError: ReleaseTooOld, SharedLayout, UnsafePath, IdCollision, ReadOnlyClaim, NoSpace.
    """
    task, log, bundle_id = context.task, context.log, context.inputs.bundle_id()
    versions, engine = image_versions(context), context.engine
    reason, message = engine.check_release(own_version(engine, versions), task.gpus)
    if reason:
        raise AgentError(reason, message)
    log("image: %s" % describe_versions(engine, versions))
    with explain_claim_errors("cannot prepare %s on the claim" % task.cache):
        with create_store(context.claim, task.subPath, task.cache, context.disk) as store:
            _check_space(store.staging)
            _check_writable(store.staging, context)
            uid, gid = os.geteuid(), os.getegid()
            log("claim: %s is writable as uid %d, gid %d" % (task.cache, uid, gid))
            bundle, damage = _find_bundle(store, context)
            remove_orphaned_proof_records(store, context.disk)
            if bundle is not None:
                log("bundle: %s is on the claim, whole: %s" % (bundle_id, bundle.manifest.message))
                remove_stale_staging(store, context.pod_uid, bundle_id, context.disk)
                return bundle.report("check", has_proof_record(store, bundle))
            write_start_mark(store, context.pod_uid, bundle_id, context.now(), context.disk)
            remove_stale_staging(store, context.pod_uid, bundle_id, context.disk)
    notes = [note for note in (message, damage) if note]
    return Report(
        by="check",
        reason=CHECKED,
        message=", ".join(notes),
        id=bundle_id,
        versions=versions,
    )


def _check_space(staging: Folder) -> None:
    """Raises AgentError NoSpace. Some network file systems do not report their space."""
    space = os.fstatvfs(staging.fd)
    free_bytes = space.f_bavail * space.f_frsize
    if space.f_blocks and free_bytes < MIN_FREE_BYTES:
        raise AgentError(
            reasons.NO_SPACE,
            "the claim has %d KiB free, at least %d MiB are needed"
            % (free_bytes >> 10, MIN_FREE_BYTES >> 20),
        )
    if space.f_files and space.f_favail < MIN_FREE_INODES:
        raise AgentError(
            reasons.NO_SPACE,
            "the claim has %d inodes free, at least %d are needed"
            % (space.f_favail, MIN_FREE_INODES),
        )


def _check_writable(staging: Folder, context: Context) -> None:
    """Write a file and delete it. Raises OSError."""
    disk = context.disk
    # With this prefix a later pod removes it, should this one be killed here.
    name = GONE_PREFIX + "probe-" + context.pod_uid
    if staging.lstat(name) is not None:
        disk.unlink(staging, name)
    fd = disk.create(staging, name)
    try:
        disk.write(fd, b"x" * PROBE_BYTES)
        disk.fsync(fd)
    finally:
        os.close(fd)
        disk.unlink(staging, name)


def _find_bundle(store: Store, context: Context) -> Tuple[Optional[Bundle], str]:
    """Return the bundle, if it is there, and a note where it is damaged: seal will replace it."""
    bundle_id = context.inputs.bundle_id()
    try:
        bundle = find_checked_bundle(store.bundles, bundle_id, context.inputs)
    except DamagedBundle as damage:
        return None, "a damaged bundle lies there (%s); it will be replaced" % damage
    if bundle is not None:
        # A seal may have been killed just after its rename.
        make_read_only(store.bundles, bundle_id, context.disk)
    return bundle, ""
