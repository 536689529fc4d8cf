"""Copy a bundle into a starting pod's override folder, checked. Fails open: whatever is wrong, the engine tunes for itself."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

from pretune.agent.claim.fs import NO_SPACE, Disk, Folder, Problem, open_root, remove
from pretune.agent.claim.store import Torn, head, open_store
from pretune.agent.context import Context
from pretune.agent.engine.compatibility import other_versions
from pretune.protocol import File, Part, Report, WireError

WORKERS = 4  # a claim on the network answers several at a time; and while one waits, another hashes
BLOCK = 128 * 1024  # bytes that are read, hashed and written together: they stay in a core's cache
_AT_ONCE = 8  # files that a worker takes on at a time, of one folder: it opens that once
_STUCK = 2.0  # seconds that the work has to notice that its time is over, unless one call does not return


def seed(context: Context) -> Report:
    """Seeded, or why not, with the folder left empty. Raises nothing that a storage, an image or a bundle can cause.

    After context.limit seconds it is TooSlow: the engine must not wait for a claim that does not answer. The work is a thread's, so
    that it can be left where a call does not return at all (a dead NFS server); who called then ends the process, and only after that
    it is sure that nothing more is written (manifests/agent_container.py).
    """
    work = _Work(context)
    work.start()
    work.join(context.limit)
    if work.is_alive():
        work.over.set()
        work.join(_STUCK)
    if work.error is not None:
        raise work.error
    return work.report or Report(
        "seed", "TooSlow", "the claim did not answer within %.0f s" % context.limit
    )


class _Work(threading.Thread):
    def __init__(self, context: Context) -> None:
        super().__init__(daemon=True)
        self.context, self.over = context, threading.Event()
        self.report: Optional[Report] = None
        self.error: Optional[BaseException] = None

    def run(self) -> None:
        try:
            self.report = _outcome(self.context, self.over)
        except BaseException as error:
            self.error = error


def _outcome(context: Context, over: threading.Event) -> Report:
    try:
        with open_root(context.tactics) as target:
            _clear(target, context.disk)  # of an earlier start of this container
            try:
                return _seed(target, context, over)
            except BaseException:
                _clear(target, context.disk)
                raise
    except Problem as problem:
        return Report("seed", problem.reason, problem.message)
    except Torn as torn:
        return Report("seed", "CorruptBundle", str(torn))
    except OSError as error:
        return Report("seed", "NoSpace" if error.errno in NO_SPACE else "SeedFailed", str(error))
    except (ValueError, WireError) as error:
        return Report("seed", "SeedFailed", str(error))


def _seed(target: Folder, context: Context, over: threading.Event) -> Report:
    task, name = context.task, context.inputs.bundle_id()
    store = open_store(context.claim, task.subPath, task.cache)
    if store is None:
        raise Problem("NoBundle", "the claim has no folder of %s" % task.cache)
    with store:
        try:
            found = head(store.bundles, name, context.inputs)
        except Problem as problem:
            raise Problem(
                "InputsDiffer" if problem.reason == "IdCollision" else problem.reason,
                problem.message,
            ) from None
        if found is None:
            raise Problem("NoBundle", "the claim has no bundle %s" % name)
        if task.proven:
            from pretune.agent.claim.proof_records import (
                proven,
            )  # only where it is asked for: this runs in every pod

            if not proven(store, found):
                raise Problem(
                    "NotProven", "bundle %s was not proven yet, and spec.verify asks for it" % name
                )
        differs = other_versions(found.manifest, context)
        if differs:
            raise Problem("VersionsDiffer", differs)
        part = found.manifest.parts[0]
        with store.bundles.folder(name) as bundle, bundle.folder(part.name) as source:
            _Copy(part, source, target, context.disk, over).all()
    context.say("seeded: %s into the override folder" % found.manifest.message)
    told = found.report("seed")
    return Report(
        "seed",
        "Seeded",
        told.message,
        told.id,
        told.layout,
        told.entries,
        told.digest,
        told.versions,
        at=told.at,
    )


class _Copy:
    """One part of a bundle into an empty folder, by several threads; each file is read once, hashed and written block by block.

    Folders 0777 and files 0666: the engine, whatever its uid, has to be able to write there.
    """

    def __init__(
        self, part: Part, source: Folder, target: Folder, disk: Disk, over: threading.Event
    ) -> None:
        self.part, self.source, self.target, self.disk, self.over = part, source, target, disk, over
        self.lock = threading.Lock()
        self.left = _groups(part.files)
        self.errors: List[BaseException] = []

    def all(self) -> None:
        """Raises Torn, Problem (TooSlow), OSError: the first that any of the threads met, once none of them writes any more."""
        for path in sorted(self.part.folders):
            *above, last = path.split("/")
            with self.target.walk(above) as parent:
                self.disk.mkdir(parent, last)
                with parent.folder(last) as made:
                    self.disk.chmod(made.fd, 0o777)
        others: List[threading.Thread] = []
        try:
            for _ in range(WORKERS - 1):
                one = threading.Thread(target=self.work, daemon=True)
                one.start()
                others.append(one)
        except RuntimeError:  # no more threads here (a limit on pids): fewer do it too
            pass
        self.work()
        for one in others:
            one.join()
        if self.errors:
            raise self.errors[0]

    def work(self) -> None:
        block = memoryview(bytearray(BLOCK))
        while not self.errors:
            with self.lock:
                group = next(self.left, None)
            if group is None:
                return
            try:
                self.copy(*group, block)
            except BaseException as error:  # raised by all()
                self.errors.append(error)

    def copy(self, above: List[str], files: Sequence[File], block: memoryview) -> None:
        """Files of one folder."""
        with self.target.walk(above) as to, self.under(above) as of:
            for file in files:
                self.file(of, to, file, block)

    def under(self, above: List[str]) -> Folder:
        try:
            return self.source.walk(above)
        except FileNotFoundError:
            raise Torn("%s is missing" % "/".join(above)) from None
        except Problem as problem:
            raise Torn(problem.message) from None

    def file(self, of: Folder, to: Folder, file: File, block: memoryview) -> None:
        name = file.path.rsplit("/", 1)[-1]
        try:
            source, _ = of.file(name)
        except FileNotFoundError:
            raise Torn("%s is missing" % file.path) from None
        except Problem as problem:
            raise Torn(problem.message) from None
        try:
            made = self.disk.create(to, name)
            try:
                size, total = 0, hashlib.sha256()
                while True:
                    count = os.readv(source, [block])
                    size += count
                    self.in_time()
                    if count == 0 or size > file.size:
                        break
                    total.update(block[:count])
                    self.disk.write(made, block[:count])
                if size != file.size or total.hexdigest() != file.sha256:
                    raise Torn("%s is not what was sealed" % file.path)
                self.disk.chmod(made, 0o666)
            finally:
                os.close(made)
        finally:
            os.close(source)

    def in_time(self) -> None:
        """Asked between reading the claim and writing."""
        if self.over.is_set():
            raise Problem(
                "TooSlow",
                "the claim was too slow: the bundle's %d files were not read in time"
                % len(self.part.files),
            )


def _groups(files: Iterable[File]) -> Iterator[Tuple[List[str], List[File]]]:
    """The files of a folder, some at a time, with the names that lead there."""
    for above, all_of_it in itertools.groupby(files, lambda file: file.path.split("/")[:-1]):
        some = list(all_of_it)
        for start in range(0, len(some), _AT_ONCE):
            yield above, some[start : start + _AT_ONCE]


def _clear(target: Folder, disk: Disk) -> None:
    for name in target.names():
        remove(target, name, disk)
