"""Check that the engine, started from a sealed bundle, is warm.

The bundle has to be of this image and this GPU, and the engine's folder has to hold the bundle as
it was sealed, and nothing else. The first is a check of its own, since FlashInfer ignores files
of another environment without touching them (agent/engine/compatibility.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Dict, List, Sequence, Set, Tuple

from pretune.agent.claim.bundles import Bundle, DamagedBundle, find_bundle
from pretune.agent.claim.fs import Folder, open_root
from pretune.agent.claim.proof_records import write_proof_record
from pretune.agent.claim.store import Store, create_store, explain_claim_errors, open_store
from pretune.agent.context import Context
from pretune.agent.engine.compatibility import other_gpu, other_versions
from pretune.agent.engine.scan import Changed, Scan, read
from pretune.agent.engine.stable import ask_engine, look, quiet, short
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.vllm import files
from pretune.protocol import PROVEN, File, Part, Report

MAX_NAMED = 3  # files, and operations, that a message names


class _NotReproducible(Exception):
    """The bundle is of another environment, or the engine's folder differs from it.

    The message says how. new_entries: how many entries the engine tuned although it had the bundle.
    """

    def __init__(self, message: str, new_entries: int = 0) -> None:
        super().__init__(message)
        self.new_entries = new_entries


def prove(context: Context) -> Report:
    """Return the report Proven, with the proof record on the claim; else NotReproducible.

    The engine is asked whether it is ready before and after its files are read. One that cannot
    be asked has to leave them unchanged between two scans. A file written again with the same
    bytes is not a change: vLLM 0.27 to 0.31 do so at each start. Where the engine reads the
    bundle on the claim (task.onClaim) it cannot change it: only image, GPU and the bundle's own
    bytes are compared.

    Raises AgentError with nothing written: ProofFailed for what is not the bundle's fault, and what
    the claim refuses (NoSpace, ReadOnlyClaim).
    """
    task = context.task
    try:
        ask_engine(context, "before its files were read")
        store = open_store(context.claim, task.subPath, task.cache)
        if store is None:
            raise AgentError(reasons.PROOF_FAILED, "the claim has no folder of %s" % task.cache)
        with store:
            bundle = _find_bundle(store, context)
            gpu_unknown = _compare_environment(bundle, context)
            if not task.onClaim:
                _compare_folder(store, bundle, context)
        ask_engine(context, "after its files were read")
    except AgentError as error:
        # An engine that has ended has a restart count, which the controller reads.
        if error.reason in (reasons.ENGINE_FAILED, reasons.ENGINE_NOT_READY):
            raise AgentError(reasons.PROOF_FAILED, error.message) from None
        raise
    except _NotReproducible as difference:
        return Report(
            "prove",
            reasons.NOT_REPRODUCIBLE,
            str(difference),
            context.inputs.bundle_id(),
            newEntries=difference.new_entries,
        )
    with explain_claim_errors("cannot write the proof of %s" % bundle.manifest.id):
        with create_store(context.claim, task.subPath, task.cache, context.disk) as writable:
            write_proof_record(writable, bundle, context.pod_uid, context.now(), context.disk)
    message = _proven_message(bundle, context, gpu_unknown)
    context.log("proof: %s: %s" % (bundle.manifest.id, message))
    report = bundle.report("prove", proven=True)
    return replace(report, reason=PROVEN, message=message, writer=None, seconds=0)


def _proven_message(bundle: Bundle, context: Context, gpu_unknown: str) -> str:
    part = bundle.manifest.parts[0]
    if context.task.onClaim:
        message = (
            "started: %d entries in %d files on the claim;"
            " whether the engine tuned others is unknown"
        )
    else:
        message = "warm: %d entries in %d files, none new and none changed"
    message %= (part.entries, len(part.files))
    return "%s; GPU not compared: %s" % (message, gpu_unknown) if gpu_unknown else message


def _find_bundle(store: Store, context: Context) -> Bundle:
    """Return the bundle on the claim, every byte of it compared. Raises AgentError ProofFailed."""
    bundle_id = context.inputs.bundle_id()
    try:
        bundle = find_bundle(store.bundles, bundle_id, context.inputs)
    except DamagedBundle as damage:
        raise AgentError(
            reasons.PROOF_FAILED, "bundle %s on the claim is damaged: %s" % (bundle_id, damage)
        ) from None
    if bundle is None:
        raise AgentError(reasons.PROOF_FAILED, "the claim has no bundle %s" % bundle_id)
    return bundle


def _compare_environment(bundle: Bundle, context: Context) -> str:
    """Return why the GPU could not be compared, or "". Raises _NotReproducible."""
    versions = other_versions(bundle.manifest, context)
    if versions:
        raise _NotReproducible(
            "%s: its engine does not find or ignores its files, and tunes again" % versions
        )
    gpu, gpu_unknown = other_gpu(bundle.manifest.versions.gpu, context.proc)
    if gpu:
        raise _NotReproducible("GPU differs: %s" % gpu)
    return gpu_unknown


def _compare_folder(store: Store, bundle: Bundle, context: Context) -> None:
    """Compare the engine's folder with the bundle, twice: a ready engine may still tune.

    Raises _NotReproducible, AgentError.
    """
    part = bundle.manifest.parts[0]
    place = [bundle.manifest.id, part.name]
    with open_root(context.tactics) as folder, store.bundles.open_path(place) as sealed:
        try:
            _compare(part, sealed, folder, quiet(folder, context))
            second = look(folder)
            if second is None:
                raise AgentError(
                    reasons.PROOF_FAILED, "the engine is ready and still writes into its folder"
                )
            _compare(part, sealed, folder, second)
        except Changed as path:
            raise AgentError(
                reasons.PROOF_FAILED, "the engine is ready and still writes %s" % path
            ) from None
        except AgentError as error:
            if error.reason == reasons.UNSAFE_FILES:  # there were none when it was sealed
                raise _NotReproducible(error.message) from None
            raise


def _compare(part: Part, sealed: Folder, folder: Folder, scan: Scan) -> None:
    """Raises _NotReproducible where the scanned folder differs from the sealed part."""
    before = {file.path: file for file in part.files}
    missing = sorted(set(before) - set(scan.files))
    added = sorted(path for path in scan.files if path not in before and files.known(path))
    changed: List[str] = []
    new: Set[Tuple[str, str]] = set()  # entries: their place (of several ranks one), and key
    for path in [*sorted(set(before) & set(scan.files)), *added]:
        data = read(folder, path, files.LARGEST_FILE)
        sealed_entries: Dict[str, str] = {}
        if path in before:
            if _is_unchanged(data, before[path]):
                continue
            changed.append(path)
            sealed_entries = files.tuned(path, read(sealed, path, files.LARGEST_FILE))
        for key, tactic in _entries(path, data).items():
            if sealed_entries.get(key) != tactic:
                new.add((files.place_of(path), key))
    folders = _added_folders(part, scan)
    if not (missing or added or changed or folders):
        return
    differences = [_count_entries(new)] if new else ["no new entries"]
    for paths, kind, how in (
        (changed, "file", "changed"),
        (added, "file", "added"),
        (missing, "file", "missing"),
        (folders, "folder", "added"),
    ):
        if paths:
            noun = kind if len(paths) == 1 else kind + "s"
            differences.append("%d %s %s: %s" % (len(paths), noun, how, _names(paths)))
    raise _NotReproducible("; ".join(differences), len(new))


def _is_unchanged(data: bytes, file: File) -> bool:
    return len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256


def _entries(path: str, data: bytes) -> Dict[str, str]:
    try:
        return files.tuned(path, data)
    except files.Unsound:  # it counts as changed; what was tuned is unknown
        return {}


def _added_folders(part: Part, scan: Scan) -> List[str]:
    """Return the folders that the engine made, without those that hold only files of others.

    A new key folder means that the engine did not find the bundle's.
    """
    foreign = [path for path in scan.files if not files.known(path)]
    return [
        path
        for path in scan.folders
        if path not in part.folders and not any(file.startswith(path + "/") for file in foreign)
    ]


def _count_entries(new: Set[Tuple[str, str]]) -> str:
    """Return text like "5 new entries (fused_moe 3, mm_fp4 2)"."""
    operations = Counter(files.operation(key) for _, key in new)
    ranked = sorted(operations.items(), key=lambda item: (-item[1], item[0]))
    named = ["%s %d" % item for item in ranked[:MAX_NAMED]]
    if len(ranked) > MAX_NAMED:
        named.append("%d other operations" % (len(ranked) - MAX_NAMED))
    noun = "entry" if len(new) == 1 else "entries"
    return "%d new %s (%s)" % (len(new), noun, ", ".join(named))


def _names(paths: Sequence[str]) -> str:
    more = ["and %d more" % (len(paths) - MAX_NAMED)] if len(paths) > MAX_NAMED else []
    return ", ".join([short(path) for path in paths[:MAX_NAMED]] + more)
