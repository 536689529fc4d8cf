"""Before the GPU is used: is the image's release one that keeps tactics, can this uid write the claim, is the bundle there already."""

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

# What is asked for in advance; a bundle is some 10 kB to 10 MB, and seal says NoSpace where this was not enough.
LEAST_BYTES = 4 * 1024 * 1024
LEAST_INODES = 32


def check(context: Context) -> Report:
    """Checked, or the bundle that is there already. Raises AgentError: ReleaseTooOld, SharedLayout, UnsafePath, IdCollision,
    ReadOnlyClaim, NoSpace."""
    task, log = context.task, context.log
    versions, engine = image_versions(context), context.engine
    reason, message = engine.check_release(own_version(engine, versions), task.gpus)
    if reason:
        raise AgentError(reason, message)
    log("image: %s" % describe_versions(engine, versions))
    with explain_claim_errors("cannot prepare %s on the claim" % task.cache):
        with create_store(context.claim, task.subPath, task.cache, context.disk) as store:
            _try_to_write(store.staging, context)
            log(
                "claim: %s is writable as uid %d, gid %d" % (task.cache, os.geteuid(), os.getegid())
            )
            found, damaged = _there(store, context)
            remove_orphaned_proof_records(store, context.disk)
            if found is not None:
                log(
                    "bundle: %s is on the claim, whole: %s"
                    % (found.manifest.id, found.manifest.message)
                )
                remove_stale_staging(store, context.pod_uid, found.manifest.id, context.disk)
                return found.report("check", has_proof_record(store, found))
            write_start_mark(
                store, context.pod_uid, context.inputs.bundle_id(), context.now(), context.disk
            )
            remove_stale_staging(store, context.pod_uid, context.inputs.bundle_id(), context.disk)
    notes = [note for note in (message, damaged) if note]
    return Report(
        by="check",
        reason=CHECKED,
        message=", ".join(notes),
        id=context.inputs.bundle_id(),
        versions=versions,
    )


def _try_to_write(staging: Folder, context: Context) -> None:
    room = os.fstatvfs(staging.fd)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < LEAST_BYTES:  # some network file systems tell nothing
        raise AgentError(
            reasons.NO_SPACE,
            "the claim has %d KiB free, at least %d MiB are needed"
            % (free >> 10, LEAST_BYTES >> 20),
        )
    if room.f_files and room.f_favail < LEAST_INODES:
        raise AgentError(
            reasons.NO_SPACE,
            "the claim has %d inodes free, at least %d are needed" % (room.f_favail, LEAST_INODES),
        )
    name, disk = (
        GONE_PREFIX + "probe-" + context.pod_uid,
        context.disk,
    )  # a name that sweep removes, should we be killed here
    if staging.lstat(name) is not None:
        disk.unlink(staging, name)
    fd = disk.create(staging, name)
    try:
        disk.write(fd, b"x" * 4096)
        disk.fsync(fd)
    finally:
        os.close(fd)
        disk.unlink(staging, name)


def _there(store: Store, context: Context) -> Tuple[Optional[Bundle], str]:
    """The bundle, or a note that a damaged one lies there: seal removes it."""
    name = context.inputs.bundle_id()
    try:
        found = find_checked_bundle(store.bundles, name, context.inputs)
    except DamagedBundle as damage:
        return None, "a damaged bundle lies there (%s); it will be replaced" % damage
    if found is not None:
        make_read_only(
            store.bundles, name, context.disk
        )  # where a seal was killed just after its rename
    return found, ""
