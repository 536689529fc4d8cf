"""A bundle made of what vLLM wrote elsewhere: found, judged as seal judges, held against the image and the target, and published."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from pretune.agent.claim.fs import Folder, Problem, open_root
from pretune.agent.claim.proof_records import proven
from pretune.agent.claim.publish import put
from pretune.agent.claim.store import make_store, on_claim
from pretune.agent.context import Context
from pretune.agent.engine.discover import Search, Written, below, may_not_read, shown
from pretune.agent.engine.scan import Changed, Scan
from pretune.agent.engine.stable import judge, same_tactics, short
from pretune.agent.engine.versions import image_versions
from pretune.engines.vllm import files, releases
from pretune.protocol import Report, Versions

PRODUCT = "nvidia.com/gpu.product"  # the label that NVIDIA's GPU feature discovery gives a node
_NAMED = 3  # folders that a message names

# What seal says of an engine's folder is here said of a folder that a person named.
_OF_THE_SOURCE = (
    "CorruptFiles",
    "IncompleteRanks",
    "SharedLayout",
    "UnsafeFiles",
    "UnreadableFiles",
    "EngineNotReady",
)


@dataclass(frozen=True)
class _Fitting:
    """One engine configuration's tactics, judged, of the image's FlashInfer and the target's GPU."""

    at: Written
    seen: Scan
    found: files.Tactics
    digests: Dict[str, str]


def import_folder(context: Context) -> Report:
    """Sealed; a valid bundle that is there already wins. Raises Problem with nothing published: ImportRefused for whatever is wrong with
    the source; what the image (ReleaseTooOld, SharedLayout) or our claim (NoSpace, ReadOnlyClaim, UnsafePath, IdCollision) refuses."""
    task = context.task
    image = image_versions(task.command, context.path, context.pythonpath)
    reason, message = releases.support(image.vllm, task.gpus)
    if reason:
        raise Problem(reason, message)
    with open_root(context.source) as top:
        one = _choose(top, _names(task.source), image, context)
        context.say("tactics: %s: %s: %s" % (one.at.path, one.found.layout, one.found.message()))

        def still() -> None:
            if not same_tactics(_look(top, one.at), one.seen):
                raise _changes(one.at)

        with on_claim("cannot publish to the claim"), top.walk(list(one.at.root)) as root:
            with make_store(context.claim, task.subPath, task.cache, context.disk) as store:
                try:
                    bundle = put(store, root, one.seen, one.found, one.digests, context, still)
                except Problem as problem:
                    if problem.reason == "EngineNotReady":
                        raise _changes(one.at) from None
                    raise
                report = bundle.report("import", proven(store, bundle))
    context.say("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report


def _names(source: str) -> Tuple[str, ...]:
    names = tuple(name for name in source.split("/") if name not in ("", "."))
    if any(name == ".." or "\0" in name for name in names):
        raise Problem("ImportRefused", "%r leads out of the claim" % source)
    return names


def _choose(top: Folder, at: Tuple[str, ...], image: Versions, context: Context) -> _Fitting:
    """The one that fits. Raises ImportRefused, with what is wrong with each where none does."""
    search = Search(top)
    candidates = search.written(at)
    for one in candidates:
        context.say("found: %s" % one.path)
    fitting: List[_Fitting] = []
    refusals: List[str] = []
    for one in candidates:
        judged = _judged(top, one, image, context)
        if isinstance(judged, _Fitting):
            fitting.append(judged)
        else:
            refusals.append("%s: %s" % (short(one.path), judged))
            context.say("does not fit: %s" % refusals[-1])
    order = releases.layouts(image.vllm, context.task.gpus, context.task.command)
    best = [one for layout in order for one in fitting if one.found.layout == layout]
    best = [one for one in best if one.found.layout == best[0].found.layout]
    if len(best) == 1:
        return best[0]
    if best:
        names = [short(one.at.path) for one in best]
        raise Problem(
            "ImportRefused",
            "%d folders fit, and only one is this engine's: %s; name it (the engine's log does: Using FlashInfer autotune cache)"
            % (len(best), _some(names)),
        )
    if refusals:
        raise Problem("ImportRefused", _some(refusals, "; "))
    raise Problem("ImportRefused", _nothing(at, search))


def _nothing(at: Tuple[str, ...], search: Search) -> str:
    where = "there are no tactics of vLLM at %s" % shown(at)
    if search.odd:
        return "%s: %s" % (where, _some(search.odd, "; "))
    if search.missing(at):
        return "%s: there is no such folder" % where
    return (
        "%s: neither is it an override folder or a key folder, nor is there %s or %s below"
        % (where, "/".join(files.DEFAULT_ROOT), "/".join(files.DEFAULT_STORE))
    )  # fmt: skip


def _some(what: Sequence[str], between: str = ", ") -> str:
    more = ["and %d more" % (len(what) - _NAMED)] if len(what) > _NAMED else []
    return between.join([*what[:_NAMED], *more])


def _judged(top: Folder, one: Written, image: Versions, context: Context) -> Union[_Fitting, str]:
    """As seal would judge it, or why it does not fit."""
    try:
        seen = _look(top, one)
        if seen is None:
            raise _changes(one)
        with top.walk(list(one.root)) as root:
            found, digests = judge(root, seen, context)
    except Problem as problem:
        if problem.reason == "UnreadableFiles":
            return _unreadable(top, one) or problem.message
        if problem.reason in _OF_THE_SOURCE:
            return "%s: %s" % (problem.reason, problem.message)
        return problem.message
    if not found.entries:
        return "no tactics in it"
    if found.unlike:
        return "%s: files of several starts, with which an engine may hang" % found.unlike
    flashinfer = found.flashinfer or one.flashinfer
    found = replace(
        found, flashinfer=flashinfer, notes=[*found.notes, "imported from %s" % short(one.path)]
    )
    if image.flashinfer and flashinfer != image.flashinfer:
        return "of FlashInfer %s, and the image has %s" % (
            flashinfer or "of no known version",
            image.flashinfer,
        )
    products = _products(context.inputs.nodeSelector)
    if products and not any(_is_product(found.gpu, product) for product in products):
        return "of GPU %s, and the target's %s is %s" % (
            found.gpu or "unknown",
            PRODUCT,
            " or ".join(products),
        )
    if not products:
        found.notes.append(
            "GPU %s, not compared: the target names no %s" % (found.gpu or "unknown", PRODUCT)
        )
    order = releases.layouts(image.vllm, context.task.gpus, context.task.command)
    if found.layout not in order:
        return "layout %s, which vLLM %s on %d GPUs does not read; it reads %s" % (
            *(found.layout, image.vllm, context.task.gpus),
            " or ".join(order),
        )
    return _Fitting(one, seen, found, digests)


def _look(top: Folder, one: Written) -> Optional[Scan]:
    """None while it changes. Raises Problem."""
    try:
        return below(top, one)
    except (Changed, FileNotFoundError):
        return None


def _changes(one: Written) -> Problem:
    return Problem(
        "ImportRefused",
        "%s changes while it is read: an engine writes to it; import it once it is ready"
        % short(one.path),
    )


def _unreadable(top: Folder, one: Written) -> str:
    """Whose the file or folder is that this uid may not read."""
    places = [one.root + one.inner]
    try:
        seen = below(top, one)
        places = [(*one.root, *path.split("/")) for path in sorted(seen.files)]
    except Problem:  # a folder in it
        pass
    except (Changed, OSError):
        return ""
    for place in places:
        whose = may_not_read(top, place)
        if whose:
            return whose
    return ""


# --- the target's GPU


def _products(placement: Mapping[str, Any]) -> List[str]:
    """The GPU products that the target's nodes may have, by their label: of the node selector, else of the required node terms, where
    each of these names some. [] is any."""
    named = (placement.get("nodeSelector") or {}).get(PRODUCT)
    if named:
        return [str(named)]
    products: Set[str] = set()
    for term in placement.get("nodeAffinity") or ():
        here = [
            one.get("values") or ()
            for one in term.get("matchExpressions") or ()
            if one.get("key") == PRODUCT and one.get("operator") == "In"
        ]
        if not here:
            return []
        products.update(str(value) for values in here for value in values)
    return sorted(products)


def _is_product(gpu: str, label: str) -> bool:
    """Whether a label is this GPU's: "NVIDIA H200" has "NVIDIA-H200", and where it is shared "NVIDIA-H200-SHARED", "…-MIG-1g.18gb"."""
    return bool(gpu) and _plain(gpu) == _plain(re.sub(r"-(SHARED|MIG-.*)$", "", label))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
