"""Before the GPU is used: is the image's release one that keeps tactics, can this uid write the claim, is the bundle there already."""

from __future__ import annotations

import os
from typing import Optional, Tuple

from pretune.agent.claim.fs import Folder, Problem
from pretune.agent.claim.proof_records import proven, sweep_proofs
from pretune.agent.claim.store import (
    Bundle,
    Store,
    Torn,
    find,
    harden,
    make_store,
    mark_start,
    on_claim,
    sweep,
)
from pretune.agent.context import Context
from pretune.agent.engine.versions import image_versions
from pretune.engines.vllm import releases
from pretune.protocol import Report

# What is asked for in advance; a bundle is some 10 kB to 10 MB, and seal says NoSpace where this was not enough.
LEAST_BYTES = 4 * 1024 * 1024
LEAST_INODES = 32


def check(context: Context) -> Report:
    """Checked, or the bundle that is there already. Raises Problem: ReleaseTooOld, SharedLayout, UnsafePath, IdCollision,
    ReadOnlyClaim, NoSpace."""
    task, say = context.task, context.say
    versions = image_versions(task.command, context.path, context.pythonpath)
    reason, message = releases.support(versions.vllm, task.gpus)
    if reason:
        raise Problem(reason, message)
    say(
        "image: vLLM %s, FlashInfer %s"
        % (versions.vllm or "unknown", versions.flashinfer or "unknown")
    )
    with on_claim("cannot prepare %s on the claim" % task.cache):
        with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
            _try_to_write(store.staging, context)
            say(
                "claim: %s is writable as uid %d, gid %d" % (task.cache, os.geteuid(), os.getegid())
            )
            found, torn = _there(store, context)
            sweep_proofs(store, context.disk)
            if found is not None:
                say(
                    "bundle: %s is on the claim, whole: %s"
                    % (found.manifest.id, found.manifest.message)
                )
                sweep(store, context.pod, found.manifest.id, context.disk)
                return found.report("check", proven(store, found))
            mark_start(store, context.pod, context.inputs.bundle_id(), context.now(), context.disk)
            sweep(store, context.pod, context.inputs.bundle_id(), context.disk)
    notes = [note for note in (message, torn) if note]
    return Report(
        by="check",
        reason="Checked",
        message=", ".join(notes),
        id=context.inputs.bundle_id(),
        versions=versions,
    )


def _try_to_write(staging: Folder, context: Context) -> None:
    room = os.fstatvfs(staging.fd)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < LEAST_BYTES:  # some network file systems tell nothing
        raise Problem(
            "NoSpace",
            "the claim has %d KiB free, at least %d MiB are needed"
            % (free >> 10, LEAST_BYTES >> 20),
        )
    if room.f_files and room.f_favail < LEAST_INODES:
        raise Problem(
            "NoSpace",
            "the claim has %d inodes free, at least %d are needed" % (room.f_favail, LEAST_INODES),
        )
    name, disk = (
        ".gone-probe-" + context.pod,
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
    """The bundle, or a note that a torn one lies there: seal removes it."""
    name = context.inputs.bundle_id()
    try:
        found = find(store.bundles, name, context.inputs)
    except Torn as torn:
        return None, "a torn bundle lies there (%s), it will be replaced" % torn
    if found is not None:
        harden(store.bundles, name, context.disk)  # where a seal was killed just after its rename
    return found, ""
