"""Check what the engine wrote, and publish it as a bundle."""

from __future__ import annotations

import os
import time
from typing import Dict, Sequence

from pretune.agent.context import Context
from pretune.agent.disk import Folder, Problem, open_root
from pretune.agent.proofs import proven
from pretune.agent.scan import Scan
from pretune.agent.store import (
    BUNDLE,
    MANIFEST,
    Bundle,
    Store,
    Torn,
    fill,
    make_store,
    on_claim,
    prove,
    publish,
    staged,
    started,
    sweep,
    take_place,
    write,
)
from pretune.agent.tactics import ask_engine, judge, look, quiet, same, same_tactics
from pretune.agent.versions import image_versions
from pretune.engines import vllm
from pretune.wire import File, Manifest, Part, Report, Versions, Writer

PART = "tactics"


def seal(context: Context) -> Report:
    """Sealed, or NothingToTune. Raises Problem, with nothing published: see reasons.REASONS, "attempts that failed".

    The engine is asked before and after its files are read and staged, and its folder is looked at again: an engine that died or still
    writes is found before the rename, since nothing can be taken back after it. The controller takes the report only when the engine
    did not restart.
    """
    task, say = context.task, context.say
    with open_root(context.tactics) as folder:
        ask_engine(context, "before its files were read")
        seen = quiet(folder, context)
        say("engine: ready, %d files in %d folders" % (len(seen.files), len(seen.folders)))
        found, digests = judge(folder, seen, context)
        say("tactics: %s: %s" % (found.layout, found.message()))
        with on_claim("cannot publish to the claim"):
            with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
                bundle = _publish(store, folder, seen, found, digests, context)
                report = bundle.report("seal", proven(store, bundle))  # the one that was there already may be
    say("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report


def _publish(
    store: Store, folder: Folder, seen: Scan, found: vllm.Tactics, digests: Dict[str, str], context: Context
) -> Bundle:
    disk, inputs = context.disk, context.inputs
    with staged(store, context.pod, disk) as staging:
        sweep(store, context.pod, "", disk)
        winner = take_place(store, inputs.bundle_id(), inputs, disk)
        if winner is not None:
            return winner
        disk.mkdir(staging, BUNDLE)
        with staging.folder(BUNDLE) as new:
            files = fill(new, PART, found.files, seen.folders, lambda path: same(folder, path, digests), disk)
            _read_back(new, files, seen.folders)
            manifest = _manifest(
                context, found, Part(PART, vllm.OVERRIDE, found.layout, found.entries, files, seen.folders), staging
            )
            write(new, MANIFEST, manifest.dump(), disk)
            disk.fsync(new.fd)
        context.say("staged: %d files, read back" % len(files))
        if not same_tactics(look(folder), seen):
            raise Problem("EngineNotReady", "the engine is ready and still writes its tactics")
        ask_engine(context, "after its files were read")
        return publish(store, staging, manifest, disk)


def _manifest(context: Context, found: vllm.Tactics, part: Part, staging: Folder) -> Manifest:
    task, now, start = context.task, context.now(), started(staging)[0]
    image = image_versions(task.command, context.path, context.pythonpath)
    note = vllm.support(image.vllm, 1)[1]
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
        raise Problem("SealFailed", "the claim gives back other bytes than were written: %s" % torn) from None
