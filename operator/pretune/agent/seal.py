"""Check what the engine wrote, and publish it as a bundle."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Dict, Optional, Sequence, Tuple

from pretune.agent.context import Context
from pretune.agent.disk import Folder, Problem, open_root
from pretune.agent.probe import ask
from pretune.agent.scan import Changed, Scan, read, scan
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
from pretune.agent.versions import image_versions
from pretune.engines import vllm
from pretune.wire import File, Manifest, Part, Report, Versions, Writer

PART = "tactics"
LOOKS = 150  # at an engine that cannot be asked: until two in a row are equal


def seal(context: Context) -> Report:
    """Sealed, or NothingToTune. Raises Problem, with nothing published: see reasons.REASONS, "attempts that failed".

    The engine is asked before and after its files are read and staged, and its folder is looked at again: an engine that died or still
    writes is found before the rename, since nothing can be taken back after it. The controller takes the report only when the engine
    did not restart.
    """
    task, say = context.task, context.say
    with open_root(context.tactics) as folder:
        _ask(context, "before its files were read")
        seen = _quiet(folder, context)
        say("engine: ready, %d files in %d folders" % (len(seen.files), len(seen.folders)))
        found, digests = _judge(folder, seen, context)
        say("tactics: %s: %s" % (found.layout, found.message()))
        with on_claim("cannot publish to the claim"):
            with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
                bundle = _publish(store, folder, seen, found, digests, context)
    say("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return bundle.report("seal")


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
            files = fill(new, PART, found.files, seen.folders, lambda path: _same(folder, path, digests), disk)
            _read_back(new, files, seen.folders)
            manifest = _manifest(
                context, found, Part(PART, vllm.OVERRIDE, found.layout, found.entries, files, seen.folders), staging
            )
            write(new, MANIFEST, manifest.dump(), disk)
            disk.fsync(new.fd)
        context.say("staged: %d files, read back" % len(files))
        if not _same_tactics(_again(folder), seen):
            raise Problem("EngineNotReady", "the engine is ready and still writes its tactics")
        _ask(context, "after its files were read")
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


def _ask(context: Context, when: str) -> None:
    if context.task.ready is None:
        return
    said = ask(context.task.ready, context.task.headers)
    if said:
        raise Problem("EngineFailed", "the engine did not answer as ready %s: %s" % (when, said))


def _again(folder: Folder) -> Optional[Scan]:
    try:
        return scan(folder)
    except Changed:
        return None


def _same_tactics(one: Optional[Scan], other: Optional[Scan]) -> bool:
    """Whether nothing that belongs into a bundle changed between two looks; what is foreign may (a log, say)."""
    if one is None or other is None:
        return False
    left, right = ({path: seen for path, seen in look.files.items() if vllm.known(path)} for look in (one, other))
    return left == right


def _quiet(folder: Folder, context: Context) -> Scan:
    """The folder's content; of an engine that cannot be asked over HTTP, once two looks are equal."""
    last = _again(folder)
    if context.task.ready is not None and last is not None:
        return last
    for _ in range(LOOKS):
        time.sleep(context.settle)
        look = _again(folder)
        if look is not None and _same_tactics(look, last):
            return look
        last = look
    raise Problem("EngineNotReady", "the engine still writes its tactics after %.0f s" % (LOOKS * context.settle))


def _judge(folder: Folder, seen: Scan, context: Context) -> Tuple[vllm.Tactics, Dict[str, str]]:
    """Layout and entries, and the sha256 of every file as it was judged."""
    digests: Dict[str, str] = {}

    def reader(path: str) -> bytes:
        data = read(folder, path, vllm.LARGEST_FILE)
        digests[path] = hashlib.sha256(data).hexdigest()
        return data

    try:
        return vllm.read_tactics(list(seen.files), reader, context.task.gpus, context.task.command), digests
    except vllm.Unsound as error:
        raise Problem(error.reason, error.message) from None
    except Changed as error:
        raise Problem("EngineNotReady", "the engine is ready and still writes %s" % error) from None
    except OSError as error:
        raise Problem("UnreadableFiles", "%s" % error) from None


def _same(folder: Folder, path: str, digests: Dict[str, str]) -> bytes:
    """The file once more, for the copy: it has to be what was judged."""
    try:
        data = read(folder, path, vllm.LARGEST_FILE)
    except (Changed, OSError) as error:
        raise Problem("EngineNotReady", "%s changed while it was copied: %s" % (path, error)) from None
    if hashlib.sha256(data).hexdigest() != digests[path]:
        raise Problem("EngineNotReady", "%s changed while it was copied" % path)
    return data
