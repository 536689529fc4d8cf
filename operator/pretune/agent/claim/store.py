"""The bundles of one cache on its claim: found, proven, published, removed.

    <subPath>/<namespace>.<cache>/bundles/<id>/{manifest.json,tactics/…}
    <subPath>/<namespace>.<cache>/proofs/<id>.json                          the engine started warm from it once (agent/proofs.py)
    <subPath>/<namespace>.<cache>/.staging/<pod uid>/{started,bundle/…}     an attempt that lives
    <subPath>/<namespace>.<cache>/.staging/.gone-…                          being removed; nobody reads it

A bundle appears by one rename, whole. It disappears by one rename, out of bundles/, and is deleted after that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from pretune.agent.claim.fs import (
    NO_SPACE,
    NOT_WRITABLE,
    Disk,
    Folder,
    Problem,
    open_root,
    read_all,
    remove,
    sane,
    sane_path,
)
from pretune.agent.engine.scan import MOST_BYTES, MOST_FILES, Changed, scan
from pretune.protocol import SCHEMA, File, Inputs, Manifest, Report, WireError, digest

MANIFEST = "manifest.json"
STARTED = "started"
BUNDLE = "bundle"
GONE = ".gone-"
SHARED = 0o1777  # several uids write here, and none removes what is another's
MOST_MANIFEST = 16 * 1024 * 1024  # 10,000 files' worth, in bytes
BLOCK = 1024 * 1024

# An attempt's staging outlives it only when its pod was killed. None lives longer than a day: spec.tuning.deadlineSeconds, from its
# start. Removal starts with a rename, so that even a living one could lose only its attempt and never publish half a bundle.
STALE_SECONDS = 86400.0

_ID = re.compile(r"[0-9a-f]{12}-[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class Torn(Exception):
    """A bundle that is proven not to be whole; the message says what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    manifest: Manifest
    digest: str

    def report(self, by: str, proven: bool = False) -> Report:
        """What a container says of a bundle that is on the claim; `proven`: its proof is there too (agent/proofs.py)."""
        part = self.manifest.parts[0]
        return Report(
            by=by,
            reason="NothingToTune" if part.layout == "Empty" else "Sealed",
            message=self.manifest.message,
            id=self.manifest.id,
            layout=part.layout,
            entries=part.entries,
            digest=self.digest,
            versions=self.manifest.versions,
            writer=self.manifest.writer,
            seconds=self.manifest.tunedSeconds,
            at=self.manifest.sealedAt,
            proven=proven,
        )


@contextmanager
def on_claim(doing: str) -> Iterator[None]:
    """What the claim's file system refuses becomes a Problem that says what to do; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise Problem(
                "NoSpace", "%s: %s; enlarge the claim" % (doing, error.strerror)
            ) from None
        if error.errno in NOT_WRITABLE:
            raise Problem(
                "ReadOnlyClaim",
                "%s as uid %d, gid %d: %s; the claim has to be writable for the engine's uid (fsGroup, or its export's rights)"
                % (doing, os.geteuid(), os.getegid(), error.strerror),
            ) from None
        raise


# --- folders


class Store:
    """One cache's open folders. A context manager."""

    def __init__(self, cache: Folder, bundles: Folder, staging: Optional[Folder]) -> None:
        self.cache, self.bundles, self._staging = cache, bundles, staging

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for folder in (self.cache, self.bundles, self._staging):
            if folder is not None:
                os.close(folder.fd)

    @property
    def staging(self) -> Folder:
        assert self._staging is not None, "opened for reading only"
        return self._staging


def open_store(root: str, sub_path: str, cache: str) -> Optional[Store]:
    """For reading; None when the claim has no folder of this cache. `root` is where the claim is mounted."""
    with open_root(root) as claim:
        try:
            folder = claim.walk(_names(sub_path, cache))
        except FileNotFoundError:
            return None
    try:
        return Store(folder, folder.folder("bundles"), None)
    except FileNotFoundError:
        os.close(folder.fd)
        return None
    except BaseException:
        os.close(folder.fd)
        raise


def make_store(root: str, sub_path: str, cache: str, disk: Disk) -> Store:
    """For writing: makes what is missing, all of it 1777, since the engine's uid may change between images."""
    with open_root(root) as claim:
        folder = Folder(os.dup(claim.fd), "")
    for name in _names(sub_path, cache):
        with folder:
            folder = make_folder(folder, name, disk, ours=name == cache)
    try:
        return Store(
            folder, make_folder(folder, "bundles", disk), make_folder(folder, ".staging", disk)
        )
    except BaseException:
        os.close(folder.fd)
        raise


def _names(sub_path: str, cache: str) -> List[str]:
    names = [name for name in sub_path.split("/") if name not in ("", ".")]
    for name in (*names, cache):
        if name == ".." or "\0" in name or "/" in name:
            raise Problem("UnsafePath", "%r is no folder of the claim" % name)
    return [*names, cache]


def make_folder(parent: Folder, name: str, disk: Disk, ours: bool = True) -> Folder:
    """The folder below; made 1777 when it is missing, and given that mode where it is `ours` and was left half made."""
    made = False
    try:
        folder = parent.folder(name)
    except FileNotFoundError:
        try:
            disk.mkdir(parent, name, 0o777)
            made = True
        except FileExistsError:  # another attempt's check was faster
            pass
        folder = parent.folder(name)
    seen = os.fstat(folder.fd)
    half_made = ours and seen.st_uid == os.geteuid() and stat.S_IMODE(seen.st_mode) != SHARED
    if made or half_made:
        disk.chmod(folder.fd, SHARED)
    return folder


# --- finding and proving


def find(bundles: Folder, name: str, inputs: Optional[Inputs] = None) -> Optional[Bundle]:
    """The bundle of this id, every byte of it proven; None when there is none.

    Raises Torn when it is not whole; Problem when it is another's: a link (UnsafePath), made of other inputs than these, or written by
    a newer pretune (IdCollision). OSError passes: what cannot be read is not proven torn.
    """
    found = head(bundles, name, inputs)
    if found is None:
        return None
    with bundles.folder(name) as folder:
        for part in found.manifest.parts:
            prove(folder, part.name, part.files, part.folders)
    return found


def head(bundles: Folder, name: str, inputs: Optional[Inputs] = None) -> Optional[Bundle]:
    """Like `find`, but reads the manifest only."""
    if bundles.lstat(name) is None:
        return None
    with bundles.folder(name) as folder:
        try:
            fd, _ = folder.file(MANIFEST)
        except FileNotFoundError:
            raise Torn("no %s" % MANIFEST) from None
        except Problem as problem:
            raise Torn(problem.message) from None
        raw = read_all(fd, MOST_MANIFEST)
    try:
        _known_schema(name, raw)
        manifest = Manifest.load(raw)
        _check_shape(name, manifest)
    except (WireError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Torn("%s: %s" % (MANIFEST, error)) from None
    if inputs is not None and manifest.inputs != inputs:
        raise Problem("IdCollision", "bundle %s on the claim was made of other inputs" % name)
    return Bundle(manifest, digest(raw))


def _known_schema(name: str, raw: bytes) -> None:
    data = json.loads(raw.decode("utf-8"))
    schema = data.get("schema")
    if (
        isinstance(schema, str)
        and schema != SCHEMA
        and schema.startswith(SCHEMA.rsplit("/", 1)[0] + "/")
    ):
        raise Problem(
            "IdCollision",
            "bundle %s on the claim is of another pretune release (%s)" % (name, schema),
        )


def _check_shape(name: str, manifest: Manifest) -> None:
    """What a reader relies on: ValueError otherwise."""
    if manifest.id != name or manifest.inputs.bundle_id() != name:
        raise ValueError("its inputs make another id")
    if not manifest.parts:
        raise ValueError("no parts")
    files = [file for part in manifest.parts for file in part.files]
    if len(files) > MOST_FILES or sum(file.size for file in files) > MOST_BYTES:
        raise ValueError("more than a bundle may hold")
    for part in manifest.parts:
        if not sane(part.name) or part.name == MANIFEST:
            raise ValueError("no name of a part: %.80r" % part.name)
        for path in [file.path for file in part.files] + part.folders:
            if not sane_path(path):
                raise ValueError("no path in a bundle: %.80r" % path)


def prove(bundle: Folder, part: str, files: Sequence[File], folders: Sequence[str]) -> None:
    """Reads a part back and compares every file's size and sha256; nothing else may lie there. Raises Torn, OSError."""
    try:
        with bundle.folder(part) as folder:
            there = scan(folder)
            if sorted(there.folders) != sorted(folders) or sorted(there.files) != sorted(
                file.path for file in files
            ):
                odd = sorted(
                    set(there.folders + list(there.files))
                    ^ set([file.path for file in files] + list(folders))
                )
                raise Torn("%s/%s is missing or not of this bundle" % (part, odd[0] if odd else ""))
            for file in files:
                if (
                    there.files[file.path][0] != file.size
                    or sha256(folder, file.path) != file.sha256
                ):
                    raise Torn("%s/%s is not what was sealed" % (part, file.path))
    except FileNotFoundError as error:
        raise Torn("%s: %s" % (part, error.strerror)) from None
    except Changed as error:
        raise Torn("%s/%s changes" % (part, error)) from None
    except Problem as problem:
        if problem.reason == "UnreadableFiles":
            raise PermissionError(errno.EACCES, problem.message) from None
        raise Torn(problem.message) from None


def sha256(folder: Folder, path: str) -> str:
    fd, _ = folder.file(path)
    with os.fdopen(fd, "rb") as file:
        # Read what the storage has, not what was just written; where there is no such advice, read what there is.
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
        total = hashlib.sha256()
        for block in iter(lambda: file.read(BLOCK), b""):
            total.update(block)
    return total.hexdigest()


def is_id(name: str) -> bool:
    """Whether this can be a bundle's id, and so the name of its folder."""
    return _ID.fullmatch(name) is not None


# --- staging


@contextmanager
def staged(store: Store, pod: str, disk: Disk) -> Iterator[Folder]:
    """This pod's staging folder; it is gone afterwards, however the work ended."""
    if not sane(pod) or pod.startswith("."):
        raise Problem("UnsafePath", "%r is no pod's uid" % pod)
    _made_or_there(store.staging, pod, disk)
    try:
        with store.staging.folder(pod) as folder:
            yield folder
    finally:
        try:
            discard(store, store.staging, pod, disk)
        except OSError as error:  # the next attempt's check sweeps it; the outcome stands
            print("pretune: .staging/%s is left: %s" % (pod, error), flush=True)


def _made_or_there(parent: Folder, name: str, disk: Disk) -> None:
    try:
        disk.mkdir(parent, name)
    except FileExistsError:
        pass


def mark_start(store: Store, pod: str, name: str, now: float, disk: Disk) -> None:
    """Check's last word: of which bundle this attempt is, and when it began (Unix seconds): seal counts the tuning's seconds from here.

    On the claim, since the engine's own folder must stay clean.
    """
    _made_or_there(store.staging, pod, disk)
    with store.staging.folder(pod) as folder:
        remove(folder, STARTED, disk)
        fd = disk.create(folder, STARTED, 0o644)
        try:
            disk.write(fd, ("%.3f %s\n" % (now, name)).encode())
        finally:
            os.close(fd)


def started(staging: Folder) -> Tuple[float, str]:
    """What `mark_start` left: seconds on the clock of the node that check and seal run on, and a bundle's id; (0, "") without it."""
    try:
        fd, _ = staging.file(STARTED)
        seconds, name = read_all(fd, 256).decode().split()
        return float(seconds), name
    except (OSError, ValueError, Problem):
        return 0.0, ""


def discard(store: Store, parent: Folder, name: str, disk: Disk) -> None:
    """Out of sight by a rename, then deleted; what is not there is fine. OSError where it is another uid's."""
    seen = parent.lstat(name)
    if seen is None:
        return
    if stat.S_ISDIR(seen.st_mode) and not seen.st_mode & stat.S_IWUSR:
        with parent.folder(name) as folder:
            disk.chmod(folder.fd, 0o755)  # a 0555 folder cannot be moved to another parent
    gone = "%s%s-%d" % (GONE, name, time.time_ns())
    disk.rename(parent, name, store.staging, gone)
    remove(store.staging, gone, disk)


def sweep(store: Store, mine: str, bundle: str, disk: Disk) -> None:
    """Removes what killed pods left in staging, as far as this uid may: what was being removed; other attempts at this `bundle`, of
    which only one lives at a time; and what is older than a day by the claim's own clock, that of the folder `mine`."""
    own = store.staging.lstat(mine)
    now = own.st_mtime if own else time.time()
    for name in store.staging.names():
        seen = store.staging.lstat(name)
        if seen is None or name == mine:
            continue
        try:
            if name.startswith(GONE):
                remove(store.staging, name, disk)
            elif now - seen.st_mtime > STALE_SECONDS or (
                bundle and _attempts(store, name) == bundle
            ):
                discard(store, store.staging, name, disk)
        except (OSError, Problem):
            continue  # another uid's, or swept by another pod just now


def _attempts(store: Store, name: str) -> str:
    """The bundle that this staging folder's attempt is at, or ""."""
    with store.staging.folder(name) as folder:
        return started(folder)[1]


# --- publishing


def fill(
    parent: Folder,
    name: str,
    files: Sequence[str],
    folders: Sequence[str],
    read: Callable[[str], bytes],
    disk: Disk,
) -> List[File]:
    """A new folder with these files and folders, written and synced: files first, then folders from the deepest up.

    Gives size and sha256 of what was read. Modes: files 0444, folders below 0555; the folder itself stays writable.
    """
    out: List[File] = []
    disk.mkdir(parent, name)
    with parent.folder(name) as top:
        for path in sorted(folders):
            *above, last = path.split("/")
            with top.walk(above) as folder:
                disk.mkdir(folder, last)
        for path in sorted(files):
            data = read(path)
            *above, last = path.split("/")
            with top.walk(above) as folder:
                write(folder, last, data, disk)
            out.append(File(path, len(data), hashlib.sha256(data).hexdigest()))
        for path in sorted(folders, reverse=True):  # a folder comes before those above it
            with top.walk(path.split("/")) as folder:
                disk.chmod(folder.fd, 0o555)
                disk.fsync(folder.fd)
        disk.chmod(top.fd, 0o555)
        disk.fsync(top.fd)
    return out


def write(folder: Folder, name: str, data: bytes, disk: Disk) -> None:
    """A new 0444 file, synced."""
    fd = disk.create(folder, name)
    try:
        disk.write(fd, data)
        disk.chmod(fd, 0o444)
        disk.fsync(fd)
    finally:
        os.close(fd)


def publish(store: Store, staging: Folder, manifest: Manifest, disk: Disk) -> Bundle:
    """Makes the staged folder `bundle`, already read back, the bundle of this id. A valid one that is there wins, and is returned.

    Raises Problem (IdCollision, UnsafePath), OSError.
    """
    name = manifest.id
    winner = take_place(store, name, manifest.inputs, disk)
    if winner is not None:
        return winner
    try:
        disk.rename(staging, BUNDLE, store.bundles, name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        winner = take_place(store, name, manifest.inputs, disk)  # sealed between the two calls
        if winner is not None:
            return winner
        disk.rename(staging, BUNDLE, store.bundles, name)
    disk.fsync(store.bundles.fd)
    disk.fsync(staging.fd)
    harden(store.bundles, name, disk)
    return Bundle(manifest, digest(manifest.dump()))


def harden(bundles: Folder, name: str, disk: Disk) -> None:
    """0555 for the bundle's own folder, which had to be writable for the rename; all below it has its mode already."""
    with bundles.folder(name) as folder:
        seen = os.fstat(folder.fd)
        if seen.st_uid == os.geteuid() and stat.S_IMODE(seen.st_mode) != 0o555:
            disk.chmod(folder.fd, 0o555)
            disk.fsync(folder.fd)


def take_place(store: Store, name: str, inputs: Inputs, disk: Disk) -> Optional[Bundle]:
    """The valid bundle that is there already; None once the place is free. What is proven torn is removed.

    Raises Problem ReadOnlyClaim where a torn one is another uid's.
    """
    judged = store.bundles.lstat(name)
    try:
        found = find(store.bundles, name, inputs)
        if found is not None:
            harden(store.bundles, name, disk)
        return found
    except Torn as torn:
        assert judged is not None
        print("pretune: bundle %s on the claim is torn (%s) and removed" % (name, torn), flush=True)
    gone = "%s%s-%d" % (GONE, name, time.time_ns())
    try:
        with store.bundles.folder(name) as folder:
            if not judged.st_mode & stat.S_IWUSR:
                disk.chmod(folder.fd, 0o755)
        disk.rename(store.bundles, name, store.staging, gone)
    except PermissionError as error:
        raise Problem(
            "ReadOnlyClaim",
            "bundles/%s is torn and belongs to uid %d, so uid %d may not replace it (%s): remove it"
            % (name, judged.st_uid, os.geteuid(), error.strerror),
        ) from None
    except FileNotFoundError:
        return None
    moved = store.staging.lstat(gone)
    if moved is None or (moved.st_dev, moved.st_ino) != (judged.st_dev, judged.st_ino):
        # Another seal replaced the torn one between our look and our rename: what we moved is its bundle. Put it back.
        disk.rename(store.staging, gone, store.bundles, name)
        return find(store.bundles, name, inputs)
    try:
        remove(store.staging, gone, disk)
    except OSError:  # out of the way is enough; sweep tries again
        pass
    return None
