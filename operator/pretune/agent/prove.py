"""Whether the engine, started from a sealed bundle, is warm: the bundle is of this image and this GPU, and the engine's folder holds it
as it was sealed, and nothing else.

The first has to be asked by itself: files of another environment FlashInfer refuses without touching them (agent/engine/compatibility.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Dict, List, Sequence, Set, Tuple

from pretune.agent.claim.fs import Folder, Problem, open_root
from pretune.agent.claim.proof_records import mark
from pretune.agent.claim.store import Bundle, Store, Torn, find, make_store, on_claim, open_store
from pretune.agent.context import Context
from pretune.agent.engine.compatibility import other_gpu, other_versions
from pretune.agent.engine.scan import Changed, Scan, read
from pretune.agent.engine.stable import ask_engine, look, quiet, short
from pretune.engines.vllm import files
from pretune.protocol import File, Part, Report

_NAMED = 3  # files, and operations, that a message names


def prove(context: Context) -> Report:
    """Proven, with the proof on the claim; else NotReproducible with newEntries. Raises Problem with nothing written: ProofFailed (what is
    not the bundle's fault), and what the claim refuses (NoSpace, ReadOnlyClaim).

    The engine is asked before and after its files are read; one that cannot be asked has to leave them alone between two looks. A file
    that it writes anew with the same bytes is not changed: vLLM 0.27 to 0.31 do so at each start. Where it reads the bundle on the claim
    itself (task.onClaim) there is nothing that it could have changed: image, GPU and the bundle's own bytes are all that is compared.
    """
    try:
        ask_engine(context, "before its files were read")
        store = open_store(context.claim, context.task.subPath, context.task.cache)
        if store is None:
            raise Problem("ProofFailed", "the claim has no folder of %s" % context.task.cache)
        with store:
            bundle = _bundle(store, context)
            untold = _of_here(bundle, context)
            if not context.task.onClaim:
                _compared(store, bundle, context)
        ask_engine(context, "after its files were read")
    except Problem as problem:
        if problem.reason in (
            "EngineFailed",
            "EngineNotReady",
        ):  # had it ended, its restart count would say so
            raise Problem("ProofFailed", problem.message) from None
        raise
    except _Differs as differs:
        return Report(
            "prove",
            "NotReproducible",
            str(differs),
            context.inputs.bundle_id(),
            newEntries=differs.entries,
        )
    with on_claim("cannot write the proof of %s" % bundle.manifest.id):
        with make_store(
            context.claim, context.task.subPath, context.task.cache, context.disk
        ) as writable:
            mark(writable, bundle, context.pod, context.now(), context.disk)
    part = bundle.manifest.parts[0]
    message = "warm: %d entries in %d files, none new and none changed" % (
        part.entries,
        len(part.files),
    )
    if context.task.onClaim:
        message = (
            "started: %d entries in %d files on the claim; what was tuned beside them cannot be seen there"
            % (
                part.entries,
                len(part.files),
            )
        )
    if untold:
        message += "; GPU not compared: %s" % untold
    context.say("proof: %s: %s" % (bundle.manifest.id, message))
    told = bundle.report("prove", proven=True)
    return Report(
        "prove",
        "Proven",
        message,
        told.id,
        told.layout,
        told.entries,
        told.digest,
        told.versions,
        at=told.at,
        proven=True,
    )


def _bundle(store: Store, context: Context) -> Bundle:
    """The bundle on the claim, every byte of it read."""
    name = context.inputs.bundle_id()
    try:
        found = find(store.bundles, name, context.inputs)
    except Torn as torn:
        raise Problem("ProofFailed", "bundle %s on the claim is torn: %s" % (name, torn)) from None
    if found is None:
        raise Problem("ProofFailed", "the claim has no bundle %s" % name)
    return found


class _Differs(Exception):
    """The bundle is of another environment, or the folder is not the bundle any more: the message says how; `entries` are those that are
    seen to be tuned."""

    def __init__(self, message: str, entries: int) -> None:
        super().__init__(message)
        self.entries = entries


def _of_here(bundle: Bundle, context: Context) -> str:
    """Why the GPU could not be compared, or "". Raises _Differs."""
    versions = other_versions(bundle.manifest, context)
    if versions:
        raise _Differs(
            "%s: its engine does not find or refuses its files, and tunes anew" % versions, 0
        )
    gpu, untold = other_gpu(bundle.manifest.versions.gpu, context.proc)
    if gpu:
        raise _Differs("GPU differs: %s" % gpu, 0)
    return untold


def _compared(store: Store, bundle: Bundle, context: Context) -> None:
    """Raises _Differs, Problem. Twice, since an engine that says it is ready may tune on."""
    part = bundle.manifest.parts[0]
    place = [bundle.manifest.id, part.name]
    with open_root(context.tactics) as folder, store.bundles.walk(place) as sealed:
        try:
            _compare(part, sealed, folder, quiet(folder, context))
            again = look(folder)
            if again is None:
                raise Problem("ProofFailed", "the engine is ready and still writes into its folder")
            _compare(part, sealed, folder, again)
        except Changed as path:
            raise Problem("ProofFailed", "the engine is ready and still writes %s" % path) from None
        except Problem as problem:
            if problem.reason == "UnsafeFiles":  # there were none when it was sealed
                raise _Differs(problem.message, 0) from None
            raise


def _compare(part: Part, sealed: Folder, folder: Folder, seen: Scan) -> None:
    before = {file.path: file for file in part.files}
    missing = sorted(set(before) - set(seen.files))
    made = sorted(path for path in seen.files if path not in before and files.known(path))
    changed: List[str] = []
    new: Set[Tuple[str, str]] = set()  # where, and key
    for path in [*sorted(set(before) & set(seen.files)), *made]:
        data = read(folder, path, files.LARGEST_FILE)
        if path in before and _unchanged(data, before[path]):
            continue
        if path in before:
            changed.append(path)
        had = files.tuned(path, read(sealed, path, files.LARGEST_FILE)) if path in before else {}
        new |= {
            (files.place_of(path), key)
            for key, tactic in _tuned(path, data).items()
            if had.get(key) != tactic
        }
    folders = _new_folders(part, seen)
    if not (missing or made or changed or folders):
        return
    said = [_entries(new)] if new else ["no new entries"]
    said += [
        "%d %s %s: %s" % (len(paths), what if len(paths) == 1 else what + "s", how, _names(paths))
        for paths, what, how in (
            (changed, "file", "changed"),
            (made, "file", "made"),
            (missing, "file", "missing"),
            (folders, "folder", "made"),
        )
        if paths
    ]
    raise _Differs("; ".join(said), len(new))


def _unchanged(data: bytes, file: File) -> bool:
    return len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256


def _tuned(path: str, data: bytes) -> Dict[str, str]:
    try:
        return files.tuned(path, data)
    except files.Unsound:  # changed it is, and what was tuned cannot be told
        return {}


def _new_folders(part: Part, seen: Scan) -> List[str]:
    """Folders that the engine made, but for those that hold only what is foreign: a new key folder says that it did not find its own."""
    foreign = [path for path in seen.files if not files.known(path)]
    return [
        path
        for path in seen.folders
        if path not in part.folders and not any(file.startswith(path + "/") for file in foreign)
    ]


def _entries(new: Set[Tuple[str, str]]) -> str:
    """`5 new entries (fused_moe 3, mm_fp4 2)`"""
    operations = Counter(files.operation(key) for _, key in new)
    named = ["%s %d" % one for one in sorted(operations.items(), key=lambda one: (-one[1], one[0]))]
    more = [] if len(named) <= _NAMED else ["%d other operations" % (len(named) - _NAMED)]
    return "%d new %s (%s)" % (
        len(new),
        "entry" if len(new) == 1 else "entries",
        ", ".join(named[:_NAMED] + more),
    )


def _names(paths: Sequence[str]) -> str:
    more = ["and %d more" % (len(paths) - _NAMED)] if len(paths) > _NAMED else []
    return ", ".join([short(path) for path in paths[:_NAMED]] + more)
