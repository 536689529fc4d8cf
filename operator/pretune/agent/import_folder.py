"""Make a bundle of what vLLM wrote elsewhere: find it, judge it as seal does, publish it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from pretune.agent.claim.fs import Folder, open_root
from pretune.agent.claim.proof_records import has_proof_record
from pretune.agent.claim.publish import publish_bundle
from pretune.agent.claim.store import create_store, explain_claim_errors
from pretune.agent.context import Context
from pretune.agent.engine.discover import Search, Written, below, may_not_read, shown
from pretune.agent.engine.scan import Changed, Scan
from pretune.agent.engine.stable import judge, same_tactics, short
from pretune.agent.engine.versions import image_versions
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.vllm import files, releases
from pretune.protocol import Report, Versions

PRODUCT_LABEL = "nvidia.com/gpu.product"  # NVIDIA's GPU feature discovery gives it to a node
MAX_NAMED = 3  # folders that a message names

# Reasons that seal gives for an engine's folder; here they are about a folder that a person named.
_SOURCE_REASONS = (
    reasons.CORRUPT_FILES,
    reasons.INCOMPLETE_RANKS,
    reasons.SHARED_LAYOUT,
    reasons.UNSAFE_FILES,
    reasons.UNREADABLE_FILES,
    reasons.ENGINE_NOT_READY,
)


@dataclass(frozen=True)
class _Candidate:
    """One engine configuration's tactics, judged, which fit the image and the target's GPU."""

    written: Written
    scan: Scan
    tactics: files.Tactics
    digests: Dict[str, str]


def import_folder(context: Context) -> Report:
    """Return the report Sealed; a valid bundle that is there already wins.

    Raises AgentError with nothing published: ImportRefused for whatever is wrong with the source;
    what the image (ReleaseTooOld, SharedLayout) or our claim (NoSpace, ReadOnlyClaim, UnsafePath,
    IdCollision) refuses.
    """
    task = context.task
    image = image_versions(task.command, context.path, context.pythonpath)
    reason, message = releases.support(image.vllm, task.gpus)
    if reason:
        raise AgentError(reason, message)
    with open_root(context.source) as top:
        chosen = _choose(top, _source_names(task.source), image, context)
        written, tactics = chosen.written, chosen.tactics
        context.log("tactics: %s: %s: %s" % (written.path, tactics.layout, tactics.message()))

        def verify_unchanged() -> None:
            if not same_tactics(_scan_or_none(top, written), chosen.scan):
                raise _changes(written)

        with explain_claim_errors("cannot publish to the claim"):
            place = (context.claim, task.subPath, task.cache)
            with top.open_path(written.root) as root, create_store(*place, context.disk) as store:
                try:
                    bundle = publish_bundle(
                        *(store, root, chosen.scan, tactics, chosen.digests),
                        *(context, verify_unchanged),
                    )
                except AgentError as error:
                    if error.reason == reasons.ENGINE_NOT_READY:
                        raise _changes(written) from None
                    raise
                report = bundle.report("import", has_proof_record(store, bundle))
    context.log("bundle: %s is on the claim, %s" % (bundle.manifest.id, bundle.digest))
    return report


def _source_names(source: str) -> Tuple[str, ...]:
    """Return the names that lead to the source folder. Raises AgentError ImportRefused."""
    names = tuple(name for name in source.split("/") if name not in ("", "."))
    if any(name == ".." or "\0" in name for name in names):
        raise AgentError(reasons.IMPORT_REFUSED, "%r leads out of the claim" % source)
    return names


# --- which of the folders


def _choose(top: Folder, at: Tuple[str, ...], image: Versions, context: Context) -> _Candidate:
    """Return the only one that fits, found from the folder `at`.

    Raises AgentError ImportRefused, with what is wrong with each where none fits.
    """
    search = Search(top)
    candidates = search.written(at)
    for written in candidates:
        context.log("found: %s" % written.path)
    fitting: List[_Candidate] = []
    refusals: List[str] = []
    for written in candidates:
        result = _judge_candidate(top, written, image, context)
        if isinstance(result, _Candidate):
            fitting.append(result)
        else:
            refusals.append("%s: %s" % (short(written.path), result))
            context.log("does not fit: %s" % refusals[-1])
    best = _best_layout(fitting, image, context)
    if len(best) == 1:
        return best[0]
    if best:
        raise AgentError(
            reasons.IMPORT_REFUSED,
            "%d folders fit, and only one is this engine's: %s; name it (the engine's log does:"
            " Using FlashInfer autotune cache)"
            % (len(best), _list([short(candidate.written.path) for candidate in best])),
        )
    if refusals:
        raise AgentError(reasons.IMPORT_REFUSED, _list(refusals, "; "))
    raise AgentError(reasons.IMPORT_REFUSED, _explain_nothing_found(at, search))


def _best_layout(
    fitting: Sequence[_Candidate], image: Versions, context: Context
) -> List[_Candidate]:
    """Return those of the layout that the image's vLLM looks for first."""
    for layout in releases.layouts(image.vllm, context.task.gpus, context.task.command):
        best = [candidate for candidate in fitting if candidate.tactics.layout == layout]
        if best:
            return best
    return []


def _explain_nothing_found(at: Tuple[str, ...], search: Search) -> str:
    nothing = "there are no tactics of vLLM at %s" % shown(at)
    if search.odd:
        return "%s: %s" % (nothing, _list(search.odd, "; "))
    if search.missing(at):
        return "%s: there is no such folder" % nothing
    return (
        "%s: it is not an override folder or a key folder, and there is no %s and no %s below"
        % (
            nothing,
            "/".join(files.DEFAULT_ROOT),
            "/".join(files.DEFAULT_STORE),
        )
    )


def _list(items: Sequence[str], separator: str = ", ") -> str:
    more = ["and %d more" % (len(items) - MAX_NAMED)] if len(items) > MAX_NAMED else []
    return separator.join([*items[:MAX_NAMED], *more])


# --- whether it fits


def _judge_candidate(
    top: Folder, written: Written, image: Versions, context: Context
) -> Union[_Candidate, str]:
    """Return the candidate, judged as seal would, or why it does not fit."""
    try:
        scan = _scan_or_none(top, written)
        if scan is None:
            raise _changes(written)
        with top.open_path(written.root) as root:
            tactics, digests = judge(root, scan, context)
    except AgentError as error:
        if error.reason == reasons.UNREADABLE_FILES:
            return _explain_unreadable(top, written) or error.message
        if error.reason in _SOURCE_REASONS:
            return "%s: %s" % (error.reason, error.message)
        return error.message
    if not tactics.entries:
        return "no tactics in it"
    if tactics.unlike:
        return "%s: files of several starts, with which an engine may hang" % tactics.unlike
    flashinfer = tactics.flashinfer or written.flashinfer
    if image.flashinfer and flashinfer != image.flashinfer:
        return "of FlashInfer %s, and the image has %s" % (
            flashinfer or "of no known version",
            image.flashinfer,
        )
    notes = [*tactics.notes, "imported from %s" % short(written.path)]
    gpu = tactics.gpu or "unknown"
    products = _products(context.inputs.nodeSelector)
    if not products:
        notes.append("GPU %s, not compared: the target names no %s" % (gpu, PRODUCT_LABEL))
    elif not any(_is_product(tactics.gpu, product) for product in products):
        return "of GPU %s, and the target's %s is %s" % (gpu, PRODUCT_LABEL, " or ".join(products))
    layouts = releases.layouts(image.vllm, context.task.gpus, context.task.command)
    if tactics.layout not in layouts:
        return "layout %s, which vLLM %s on %d GPUs does not read; it reads %s" % (
            *(tactics.layout, image.vllm, context.task.gpus),
            " or ".join(layouts),
        )
    tactics = replace(tactics, flashinfer=flashinfer, notes=notes)
    return _Candidate(written, scan, tactics, digests)


def _scan_or_none(top: Folder, written: Written) -> Optional[Scan]:
    """Return what is in the folder; None while it changes. Raises AgentError."""
    try:
        return below(top, written)
    except (Changed, FileNotFoundError):
        return None


def _changes(written: Written) -> AgentError:
    return AgentError(
        reasons.IMPORT_REFUSED,
        "%s changes while it is read: an engine writes to it; import it once it is ready"
        % short(written.path),
    )


def _explain_unreadable(top: Folder, written: Written) -> str:
    """Return which file or folder this uid may not read and who owns it; "" where it is unknown."""
    places = [written.root + written.inner]
    try:
        scan = below(top, written)
        places = [(*written.root, *path.split("/")) for path in sorted(scan.files)]
    except AgentError:  # a folder in it
        pass
    except (Changed, OSError):
        return ""
    return next(filter(None, (may_not_read(top, place) for place in places)), "")


# --- the target's GPU


def _products(placement: Mapping[str, Any]) -> List[str]:
    """Return the GPU products that the target's nodes may have, by their label; [] for any.

    They come from the node selector, else from the required node terms, where each term names some.
    """
    named = (placement.get("nodeSelector") or {}).get(PRODUCT_LABEL)
    if named:
        return [str(named)]
    products: Set[str] = set()
    for term in placement.get("nodeAffinity") or ():
        allowed = [
            requirement.get("values") or ()
            for requirement in term.get("matchExpressions") or ()
            if requirement.get("key") == PRODUCT_LABEL and requirement.get("operator") == "In"
        ]
        if not allowed:
            return []
        products.update(str(value) for values in allowed for value in values)
    return sorted(products)


def _is_product(gpu: str, label: str) -> bool:
    """Whether the label's value is this GPU's.

    "NVIDIA H200" has "NVIDIA-H200"; where it is shared "NVIDIA-H200-SHARED" or "…-MIG-1g.18gb".
    """
    return bool(gpu) and _normalize(gpu) == _normalize(re.sub(r"-(SHARED|MIG-.*)$", "", label))


def _normalize(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
