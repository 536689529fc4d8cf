"""Copy a bundle into the folders of a starting pod's engine, checked against its manifest.

It fails open: whatever is wrong, the folders are left empty and the engine tunes for itself.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from pretune.agent.claim.bundles import DamagedBundle, find_bundle
from pretune.agent.claim.fs import NO_SPACE_ERRNOS, Disk, Folder, open_root, remove_tree
from pretune.agent.claim.store import open_store
from pretune.agent.context import Context
from pretune.agent.engine.compatibility import other_versions
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.protocol import (
    CLAIM_TOO_SLOW,
    CORRUPT_BUNDLE,
    INPUTS_DIFFER,
    NO_BUNDLE,
    NOT_PROVEN,
    SEED_FAILED,
    SEEDED,
    VERSIONS_DIFFER,
    File,
    Report,
    SealedPart,
)

COPY_THREADS = 4  # a network claim answers several at a time; and while one waits, another hashes
BLOCK_BYTES = 128 * 1024  # read, hashed and written together: they stay in a core's cache
FILES_PER_BATCH = 8  # of one folder, which a thread opens once for them
STOP_SECONDS = 2.0  # in which the copy notices that its time is over, unless one call hangs


def seed(context: Context) -> Report:
    """Return the report Seeded, or why the folders were left empty.

    After context.limit_seconds that is TooSlow: the engine must not wait for a claim that does not
    answer. The work runs in a thread, which can be left behind in a call that never returns (a dead
    NFS server). The caller then ends the process; only after that nothing more is written
    (manifests/agent_container.py). Raises nothing that a storage, an image or a bundle can cause.
    """
    work = _SeedThread(context)
    work.start()
    work.join(context.limit_seconds)
    if work.is_alive():
        work.cancelled.set()
        work.join(STOP_SECONDS)
    if work.error is not None:
        raise work.error
    return work.report or Report(
        "seed", CLAIM_TOO_SLOW, "the claim did not answer within %.0f s" % context.limit_seconds
    )


class _SeedThread(threading.Thread):
    def __init__(self, context: Context) -> None:
        super().__init__(daemon=True)
        self.context, self.cancelled = context, threading.Event()
        self.report: Optional[Report] = None
        self.error: Optional[BaseException] = None

    def run(self) -> None:
        try:
            self.report = _seed_or_explain(self.context, self.cancelled)
        except BaseException as error:
            self.error = error


def _seed_or_explain(context: Context, cancelled: threading.Event) -> Report:
    """Return the report Seeded, or why the folders were left empty."""
    try:
        with ExitStack() as stack:
            targets = {
                part.name: stack.enter_context(open_root(context.folder(part)))
                for part in context.engine.parts
            }
            _empty(targets, context.disk)  # of an earlier start of this container
            try:
                return _seed(targets, context, cancelled)
            except BaseException:
                _empty(targets, context.disk)
                raise
    except AgentError as error:
        return Report("seed", error.reason, error.message)
    except DamagedBundle as damage:
        return Report("seed", CORRUPT_BUNDLE, str(damage))
    except OSError as error:
        reason = reasons.NO_SPACE if error.errno in NO_SPACE_ERRNOS else SEED_FAILED
        return Report("seed", reason, str(error))
    except ValueError as error:
        return Report("seed", SEED_FAILED, str(error))


def _seed(targets: Dict[str, Folder], context: Context, cancelled: threading.Event) -> Report:
    """Return the report Seeded. Raises AgentError, DamagedBundle, OSError, ValueError.

    targets: the open folders of the engine's parts, by their names. A part that the bundle has not
    stays empty; one that this release does not know is left out.
    """
    task, bundle_id = context.task, context.inputs.bundle_id()
    store = open_store(context.claim, task.subPath, task.cache)
    if store is None:
        raise AgentError(NO_BUNDLE, "the claim has no folder of %s" % task.cache)
    with store:
        try:
            bundle = find_bundle(store.bundles, bundle_id, context.inputs)
        except AgentError as error:
            reason = INPUTS_DIFFER if error.reason == reasons.ID_COLLISION else error.reason
            raise AgentError(reason, error.message) from None
        if bundle is None:
            raise AgentError(NO_BUNDLE, "the claim has no bundle %s" % bundle_id)
        if task.proven:
            # Loaded only where it is needed: this runs in every pod.
            from pretune.agent.claim.proof_records import has_proof_record

            if not has_proof_record(store, bundle):
                raise AgentError(
                    NOT_PROVEN,
                    "bundle %s has no proof yet, and spec.verify asks for one" % bundle_id,
                )
        difference = other_versions(bundle.manifest, context)
        if difference:
            raise AgentError(VERSIONS_DIFFER, difference)
        for part in bundle.manifest.parts:
            if part.name in targets:
                target = targets[part.name]
                with store.bundles.open_path([bundle_id, part.name]) as source:
                    _PartCopy(part, source, target, context.disk, cancelled).run()
    context.log("seeded: %s" % bundle.manifest.message)
    return replace(bundle.report("seed"), reason=SEEDED, writer=None, seconds=0)


class _PartCopy:
    """Copies one part of a bundle into an empty folder, with several threads.

    Each file is read once, and hashed and written block by block. Folders get mode 0777 and files
    0666: the engine, with any uid, has to be able to write there.
    """

    def __init__(
        self,
        part: SealedPart,
        source: Folder,
        target: Folder,
        disk: Disk,
        cancelled: threading.Event,
    ) -> None:
        self.part, self.source, self.target = part, source, target
        self.disk, self.cancelled = disk, cancelled
        self.lock = threading.Lock()
        self.batches = _batches(part.files)
        self.errors: List[BaseException] = []

    def run(self) -> None:
        """Copy all files; at the return no thread writes any more.

        Raises the first error of any thread: DamagedBundle, AgentError TooSlow, OSError.
        """
        for path in sorted(self.part.folders):
            *above, last = path.split("/")
            with self.target.open_path(above) as parent:
                self.disk.mkdir(parent, last)
                with parent.open_folder(last) as folder:
                    self.disk.chmod(folder.fd, 0o777)
        threads: List[threading.Thread] = []
        try:
            for _ in range(COPY_THREADS - 1):
                thread = threading.Thread(target=self._copy_batches, daemon=True)
                thread.start()
                threads.append(thread)
        except RuntimeError:  # no more threads here (a limit on pids): fewer do it too
            pass
        self._copy_batches()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _copy_batches(self) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        while not self.errors:
            with self.lock:
                batch = next(self.batches, None)
            if batch is None:
                return
            try:
                self._copy_batch(*batch, block)
            except BaseException as error:  # raised by run()
                self.errors.append(error)

    def _copy_batch(self, above: List[str], files: Sequence[File], block: memoryview) -> None:
        """Copy some files of one folder; `above` are the names that lead there."""
        with self.target.open_path(above) as target, self._open_source(above) as source:
            for file in files:
                self._copy_file(source, target, file, block)

    def _open_source(self, above: List[str]) -> Folder:
        try:
            return self.source.open_path(above)
        except FileNotFoundError:
            raise DamagedBundle("%s is missing" % "/".join(above)) from None
        except AgentError as error:
            raise DamagedBundle(error.message) from None

    def _copy_file(self, source: Folder, target: Folder, file: File, block: memoryview) -> None:
        name = file.path.rsplit("/", 1)[-1]
        try:
            source_fd, _ = source.open_file(name)
        except FileNotFoundError:
            raise DamagedBundle("%s is missing" % file.path) from None
        except AgentError as error:
            raise DamagedBundle(error.message) from None
        try:
            target_fd = self.disk.create(target, name)
            try:
                size, digest = 0, hashlib.sha256()
                while True:
                    count = os.readv(source_fd, [block])
                    size += count
                    self._check_time()
                    if count == 0 or size > file.size:
                        break
                    digest.update(block[:count])
                    self.disk.write(target_fd, block[:count])
                if size != file.size or digest.hexdigest() != file.sha256:
                    raise DamagedBundle("%s is not what was sealed" % file.path)
                self.disk.chmod(target_fd, 0o666)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)

    def _check_time(self) -> None:
        """Raises AgentError TooSlow; called between reading the claim and writing."""
        if self.cancelled.is_set():
            raise AgentError(
                CLAIM_TOO_SLOW,
                "the claim was too slow: the bundle's %d files were not read in time"
                % len(self.part.files),
            )


def _batches(files: Iterable[File]) -> Iterator[Tuple[List[str], List[File]]]:
    """Yield some files of a folder at a time, with the names that lead there."""
    for above, group in itertools.groupby(files, lambda file: file.path.split("/")[:-1]):
        in_folder = list(group)
        for start in range(0, len(in_folder), FILES_PER_BATCH):
            yield above, in_folder[start : start + FILES_PER_BATCH]


def _empty(targets: Dict[str, Folder], disk: Disk) -> None:
    for target in targets.values():
        for name in target.list_names():
            remove_tree(target, name, disk)
