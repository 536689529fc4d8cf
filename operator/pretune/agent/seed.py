"""Copy a bundle into a starting pod's override folder, checked. Fails open: whatever is wrong, the engine tunes for itself."""

from __future__ import annotations

import hashlib
import os

from pretune.agent.context import Context
from pretune.agent.disk import NO_SPACE, Disk, Folder, Problem, open_root, read_all, remove
from pretune.agent.store import Bundle, Torn, head, open_store
from pretune.agent.versions import image_versions
from pretune.wire import File, Part, Report, WireError


def seed(context: Context) -> Report:
    """Seeded, or why not, with the folder left empty. Raises nothing that a storage, an image or a bundle can cause."""
    try:
        with open_root(context.tactics) as target:
            _clear(target, context.disk)  # of an earlier start of this container
            try:
                return _seed(target, context)
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


def _seed(target: Folder, context: Context) -> Report:
    task, name = context.task, context.inputs.bundle_id()
    store = open_store(context.claim, task.subPath, task.cache)
    if store is None:
        raise Problem("NoBundle", "the claim has no folder of %s" % task.cache)
    with store:
        try:
            found = head(store.bundles, name, context.inputs)
        except Problem as problem:
            raise Problem(
                "InputsDiffer" if problem.reason == "IdCollision" else problem.reason, problem.message
            ) from None
        if found is None:
            raise Problem("NoBundle", "the claim has no bundle %s" % name)
        _same_versions(found, context)
        part = found.manifest.parts[0]
        with store.bundles.folder(name) as bundle, bundle.folder(part.name) as source:
            _copy(part, source, target, context.disk)
    context.say("seeded: %s into the override folder" % found.manifest.message)
    told = found.report("seed")
    return Report(
        "seed", "Seeded", told.message, told.id, told.layout, told.entries, told.digest, told.versions, at=told.at
    )


def _same_versions(found: Bundle, context: Context) -> None:
    """A version that cannot be told, here or when it was sealed, passes: FlashInfer compares its own in each file."""
    image, sealed = image_versions(context.task.command, context.path, context.pythonpath), found.manifest.versions
    for what, here, there in (("vLLM", image.vllm, sealed.vllm), ("FlashInfer", image.flashinfer, sealed.flashinfer)):
        if here and there and here != there:
            raise Problem(
                "VersionsDiffer", "%s %s in the image, %s in bundle %s" % (what, here, there, found.manifest.id)
            )


def _copy(part: Part, source: Folder, target: Folder, disk: Disk) -> None:
    """Folders 0777 and files 0666: the engine, whatever its uid, has to be able to write there."""
    for path in sorted(part.folders):
        *above, last = path.split("/")
        with target.walk(above) as parent:
            disk.mkdir(parent, last)
            with parent.folder(last) as made:
                disk.chmod(made.fd, 0o777)
    for file in part.files:
        *above, last = file.path.split("/")
        data = _read(source, file)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise Torn("%s is not what was sealed" % file.path)
        with target.walk(above) as parent:
            fd = disk.create(parent, last)
            try:
                disk.write(fd, data)
                disk.chmod(fd, 0o666)
            finally:
                os.close(fd)


def _read(source: Folder, wanted: File) -> bytes:
    try:
        fd, _ = source.file(wanted.path)
    except FileNotFoundError:
        raise Torn("%s is missing" % wanted.path) from None
    except Problem as problem:
        raise Torn(problem.message) from None
    return read_all(fd, wanted.size)


def _clear(target: Folder, disk: Disk) -> None:
    for name in target.names():
        remove(target, name, disk)
