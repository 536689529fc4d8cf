"""From a folder that was judged to a bundle on the claim: staged, read back, and renamed."""

from __future__ import annotations

import os
import time
from typing import Callable, Dict, Sequence

from pretune.agent.claim.fs import Folder, Problem
from pretune.agent.claim.store import (
    BUNDLE,
    MANIFEST,
    Bundle,
    Store,
    Torn,
    fill,
    prove,
    publish,
    staged,
    started,
    sweep,
    take_place,
    write,
)
from pretune.agent.context import Context
from pretune.agent.engine.scan import Scan
from pretune.agent.engine.stable import same
from pretune.agent.engine.versions import image_versions
from pretune.engines.vllm import cli, files, releases
from pretune.protocol import File, Manifest, Part, Versions, Writer

PART = "tactics"


def put(
    store: Store,
    folder: Folder,
    seen: Scan,
    found: files.Tactics,
    digests: Dict[str, str],
    context: Context,
    still: Callable[[], None],
) -> Bundle:
    """The bundle of context.inputs, made of these files of the folder; a valid one that is there already wins.

    `digests` are of the files as they were judged; `still` is asked last, before the rename, since nothing can be taken back after it:
    it raises a Problem where what was read is not what counts any more.
    """
    disk, inputs = context.disk, context.inputs
    with staged(store, context.pod, disk) as staging:
        sweep(store, context.pod, "", disk)
        winner = take_place(store, inputs.bundle_id(), inputs, disk)
        if winner is not None:
            return winner
        disk.mkdir(staging, BUNDLE)
        with staging.folder(BUNDLE) as new:
            files = fill(
                new, PART, found.files, seen.folders, lambda path: same(folder, path, digests), disk
            )
            _read_back(new, files, seen.folders)
            manifest = _manifest(
                context,
                found,
                Part(PART, cli.OVERRIDE, found.layout, found.entries, files, seen.folders),
                staging,
            )
            write(new, MANIFEST, manifest.dump(), disk)
            disk.fsync(new.fd)
        context.say("staged: %d files, read back" % len(files))
        still()
        return publish(store, staging, manifest, disk)


def _manifest(context: Context, found: files.Tactics, part: Part, staging: Folder) -> Manifest:
    task, now, start = context.task, context.now(), started(staging)[0]
    image = image_versions(task.command, context.path, context.pythonpath)
    note = releases.support(image.vllm, 1)[1]
    return Manifest(
        id=context.inputs.bundle_id(),
        cache=task.cache,
        inputs=context.inputs,
        versions=Versions(image.vllm, image.flashinfer or found.flashinfer, found.cuda, found.gpu),
        writer=Writer(os.geteuid(), os.getegid(), sorted(os.getgroups())),
        gpus=task.gpus,
        tunedSeconds=max(0, round(now - start)) if start else 0,
        sealedAt=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        parts=[part],
        message=", ".join(one for one in (found.message(), note) if one),
    )


def _read_back(new: Folder, files: Sequence[File], folders: Sequence[str]) -> None:
    try:
        prove(new, PART, files, folders)
    except Torn as torn:
        raise Problem(
            "SealFailed", "the claim gives back other bytes than were written: %s" % torn
        ) from None
