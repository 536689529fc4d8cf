"""Check that the engine, started from a sealed bundle, is warm.

The bundle has to be of this image and this GPU, and the engine's folders have to hold the bundle as
it was sealed, and nothing else. The first is a check of its own, since FlashInfer ignores files
of another environment without touching them (agent/engine/compatibility.py).
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, List, NamedTuple, Sequence, Set, Tuple

from pretune.agent.claim.bundles import Bundle, DamagedBundle
from pretune.agent.claim.digests import find_checked_bundle
from pretune.agent.claim.fs import Folder, open_root
from pretune.agent.claim.proof_records import write_proof_record
from pretune.agent.claim.store import Store, create_store, explain_claim_errors, open_store
from pretune.agent.context import Context
from pretune.agent.engine.compatibility import other_gpu, other_versions
from pretune.agent.engine.scan import Changed, Scan, read
from pretune.agent.engine.stable import (
    ask_engine,
    await_answer,
    scan_or_none,
    short,
    wait_until_stable,
)
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.base import Part
from pretune.engines.evidence import Unsound
from pretune.protocol import PROVEN, File, Report, SealedPart

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
    context = await_answer(context)
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
                _compare_folders(store, bundle, context)
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
    manifest = bundle.manifest
    if context.task.onClaim:
        message = (
            "started: %d entries in %d files on the claim;"
            " whether the engine tuned others is unknown"
        )
    else:
        message = "warm: %d entries in %d files, none new and none changed"
    message %= (manifest.entries, manifest.number_of_files)
    return "%s; GPU not compared: %s" % (message, gpu_unknown) if gpu_unknown else message


def _find_bundle(store: Store, context: Context) -> Bundle:
    """Return the bundle on the claim, every byte of it compared. Raises AgentError ProofFailed."""
    bundle_id = context.inputs.bundle_id()
    try:
        bundle = find_checked_bundle(store.bundles, bundle_id, context.inputs)
    except DamagedBundle as damage:
        raise AgentError(
            reasons.PROOF_FAILED, "bundle %s on the claim is damaged: %s" % (bundle_id, damage)
        ) from None
    if bundle is None:
        raise AgentError(reasons.PROOF_FAILED, "the claim has no bundle %s" % bundle_id)
    return bundle


def _compare_environment(bundle: Bundle, context: Context) -> str:
    """Raise _NotReproducible where versions or GPU differ.

    Returns why the GPU could not be compared; "" if it was.
    """
    versions = other_versions(bundle.manifest, context)
    if versions:
        raise _NotReproducible(
            "%s: its engine does not find or ignores its files, and tunes again" % versions
        )
    gpu, gpu_unknown = other_gpu(bundle.manifest.versions.gpu, context.proc)
    if gpu:
        raise _NotReproducible("GPU differs: %s" % gpu)
    return gpu_unknown


class _Differences:
    """What differs between a bundle and the folders of the engine's parts."""

    def __init__(self) -> None:
        self.new: Set[Tuple[str, str, str]] = set()  # entries: their part, key space and key
        self.operations: Dict[str, int] = {}  # of the new entries
        self.changed: List[str] = []
        self.added: List[str] = []
        self.missing: List[str] = []
        self.folders: List[str] = []  # added

    def raise_any(self) -> None:
        """Raises _NotReproducible where there are any."""
        if not (self.missing or self.added or self.changed or self.folders):
            return
        sentences = [self._count_entries() if self.new else "no new entries"]
        for paths, kind, how in (
            (self.changed, "file", "changed"),
            (self.added, "file", "added"),
            (self.missing, "file", "missing"),
            (self.folders, "folder", "added"),
        ):
            if paths:
                noun = kind if len(paths) == 1 else kind + "s"
                sentences.append("%d %s %s: %s" % (len(paths), noun, how, _names(paths)))
        raise _NotReproducible("; ".join(sentences), len(self.new))

    def _count_entries(self) -> str:
        """Return text like "5 new entries (fused_moe 3, mm_fp4 2)"."""
        ranked = sorted(self.operations.items(), key=lambda item: (-item[1], item[0]))
        named = ["%s %d" % item for item in ranked[:MAX_NAMED]]
        if len(ranked) > MAX_NAMED:
            named.append("%d other operations" % (len(ranked) - MAX_NAMED))
        noun = "entry" if len(self.new) == 1 else "entries"
        return "%d new %s (%s)" % (len(self.new), noun, ", ".join(named))


def _compare_folders(store: Store, bundle: Bundle, context: Context) -> None:
    """Compare the engine's folders with the bundle, twice: a ready engine may still tune.

    Raises _NotReproducible, AgentError.
    """
    sealed = {part.name: part for part in bundle.manifest.parts}
    with ExitStack() as stack:
        parts: List[_PartFolders] = []
        for part in context.engine.parts:
            if part.name not in sealed:
                raise AgentError(
                    reasons.PROOF_FAILED,
                    "bundle %s has no %s: another release of pretune sealed it"
                    % (bundle.manifest.id, part.name),
                )
            folder = stack.enter_context(open_root(context.folder(part)))
            place = [bundle.manifest.id, part.name]
            source = stack.enter_context(store.bundles.open_path(place))
            parts.append(_PartFolders(part, sealed[part.name], source, folder))
        try:
            _compare(parts, [wait_until_stable(p.part, p.folder, context) for p in parts])
            _compare(parts, [_scan_again(p.folder) for p in parts])
        except Changed as path:
            raise AgentError(
                reasons.PROOF_FAILED, "the engine is ready and still writes %s" % path
            ) from None
        except AgentError as error:
            if error.reason == reasons.UNSAFE_FILES:  # there were none when it was sealed
                raise _NotReproducible(error.message) from None
            raise


class _PartFolders(NamedTuple):
    """A part of the engine, what was sealed of it, and both folders, open."""

    part: Part
    sealed: SealedPart
    source: Folder  # in the bundle
    folder: Folder  # the engine's


def _scan_again(folder: Folder) -> Scan:
    scan = scan_or_none(folder)
    if scan is None:
        raise AgentError(
            reasons.PROOF_FAILED, "the engine is ready and still writes into its folder"
        )
    return scan


def _compare(parts: Sequence[_PartFolders], scans: Sequence[Scan]) -> None:
    """Raises _NotReproducible where a scanned folder differs from the sealed part."""
    differences = _Differences()
    for part, scan in zip(parts, scans):
        _compare_part(part, scan, differences)
    differences.raise_any()


def _compare_part(folders: _PartFolders, scan: Scan, differences: _Differences) -> None:
    part, limit = folders.part, folders.part.max_file_bytes
    before = {file.path: file for file in folders.sealed.files}
    added = sorted(path for path in scan.files if path not in before and part.is_known(path))
    for path in [*sorted(set(before) & set(scan.files)), *added]:
        data = read(folders.folder, path, limit)
        sealed_entries: Dict[str, str] = {}
        if path in before:
            if _is_unchanged(data, before[path]):
                continue
            differences.changed.append(path)
            sealed_entries = part.read_entries(path, read(folders.source, path, limit))
        for key, value in _entries(part, path, data).items():
            entry = (part.name, part.key_space_of(path), key)
            if sealed_entries.get(key) != value and entry not in differences.new:
                differences.new.add(entry)
                operation = part.operation_of(key)
                count = differences.operations.get(operation, 0)
                differences.operations[operation] = count + 1
    differences.added += added
    differences.missing += sorted(set(before) - set(scan.files))
    differences.folders += _added_folders(folders, scan)


def _is_unchanged(data: bytes, file: File) -> bool:
    return len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256


def _entries(part: Part, path: str, data: bytes) -> Dict[str, str]:
    try:
        return part.read_entries(path, data)
    except Unsound:  # it counts as changed; what was tuned is unknown
        return {}


def _added_folders(folders: _PartFolders, scan: Scan) -> List[str]:
    """Return the folders that the engine made, without those that hold only files of others.

    A new key folder means that the engine did not find the bundle's.
    """
    foreign = [path for path in scan.files if not folders.part.is_known(path)]
    return [
        path
        for path in scan.folders
        if path not in folders.sealed.folders
        and not any(file.startswith(path + "/") for file in foreign)
    ]


def _names(paths: Sequence[str]) -> str:
    more = ["and %d more" % (len(paths) - MAX_NAMED)] if len(paths) > MAX_NAMED else []
    return ", ".join([short(path) for path in paths[:MAX_NAMED]] + more)
