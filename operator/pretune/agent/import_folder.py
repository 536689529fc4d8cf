"""Make a bundle of what an engine wrote elsewhere: find it, judge it as seal does, publish it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from pretune.agent.claim.fs import Folder, open_root
from pretune.agent.claim.proof_records import has_proof_record
from pretune.agent.claim.publish import publish_bundle
from pretune.agent.claim.store import create_store, explain_claim_errors
from pretune.agent.context import Context
from pretune.agent.engine.discover import ClaimTree, explain_unreadable, find, scan_found, show
from pretune.agent.engine.scan import Changed, Scan
from pretune.agent.engine.stable import PartContent, empty_content, is_same, judge, short
from pretune.agent.engine.versions import image_versions, own_version
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.base import Part
from pretune.engines.evidence import Evidence, Found
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
    """What one engine configuration wrote, of the image's versions and the target's GPU."""

    written: Found
    scan: Scan
    evidence: Evidence
    digests: Dict[str, str]


def import_folder(context: Context) -> Report:
    """Return the report Sealed; a valid bundle that is there already wins.

    What is found becomes the first part of the engine; its other parts are empty in the bundle.

    Raises AgentError with nothing published: ImportRefused for whatever is wrong with the source;
    what the image (ReleaseTooOld, SharedLayout) or our claim (NoSpace, ReadOnlyClaim, UnsafePath,
    IdCollision) refuses.
    """
    task, engine = context.task, context.engine
    image = image_versions(context)
    reason, message = engine.check_release(own_version(engine, image), task.gpus)
    if reason:
        raise AgentError(reason, message)
    part, others = engine.parts[0], engine.parts[1:]
    with open_root(context.source) as top:
        chosen = _choose(part, top, _source_names(task.source), image, context)
        written, evidence = chosen.written, chosen.evidence
        context.log(
            "%s: %s: %s: %s" % (part.name, written.path, evidence.layout, evidence.message())
        )

        def verify_unchanged() -> None:
            if not is_same(part, _scan_or_none(top, written), chosen.scan):
                raise _changes(written)

        with explain_claim_errors("cannot publish to the claim"):
            place = (context.claim, task.subPath, task.cache)
            with top.open_path(written.root) as root, create_store(*place, context.disk) as store:
                content = PartContent(part, root, chosen.scan, evidence, chosen.digests)
                contents = [content, *(empty_content(other, root) for other in others)]
                try:
                    bundle = publish_bundle(store, contents, context, verify_unchanged)
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


def _choose(
    part: Part, top: Folder, at: Tuple[str, ...], image: Versions, context: Context
) -> _Candidate:
    """Return the only one that fits, found from the folder `at`.

    Raises AgentError ImportRefused, with what is wrong with each where none fits.
    """
    tree = ClaimTree(top)
    candidates = find(part, tree, at)
    for written in candidates:
        context.log("found: %s" % written.path)
    fitting: List[_Candidate] = []
    refusals: List[str] = []
    for written in candidates:
        result = _judge_candidate(part, top, written, image, context)
        if isinstance(result, _Candidate):
            fitting.append(result)
        else:
            refusals.append("%s: %s" % (short(written.path), result))
            context.log("does not fit: %s" % refusals[-1])
    best = _of_best_layout(part, fitting, image, context)
    if len(best) == 1:
        return best[0]
    if best:
        raise AgentError(
            reasons.IMPORT_REFUSED,
            "%d folders fit, and only one is this engine's: %s; name it (the engine's log does: %s)"
            % (
                len(best),
                _list([short(candidate.written.path) for candidate in best]),
                part.named_in_log,
            ),
        )
    if refusals:
        raise AgentError(reasons.IMPORT_REFUSED, _list(refusals, "; "))
    raise AgentError(reasons.IMPORT_REFUSED, _explain_nothing_found(part, at, tree, context))


def _of_best_layout(
    part: Part, fitting: Sequence[_Candidate], image: Versions, context: Context
) -> List[_Candidate]:
    """Return those of the layout that the image's engine looks for first."""
    for layout in _layouts(part, image, context):
        best = [candidate for candidate in fitting if candidate.evidence.layout == layout]
        if best:
            return best
    return []


def _layouts(part: Part, image: Versions, context: Context) -> Tuple[str, ...]:
    task, version = context.task, own_version(context.engine, image)
    return part.readable_layouts(version, task.gpus, task.command)


def _explain_nothing_found(
    part: Part, at: Tuple[str, ...], tree: ClaimTree, context: Context
) -> str:
    nothing = "there are no %s of %s at %s" % (part.name, context.engine.title, show(at))
    if tree.obstacles:
        return "%s: %s" % (nothing, _list(tree.obstacles, "; "))
    if tree.is_missing(at):
        return "%s: there is no such folder" % nothing
    places = " and no ".join(part.places)
    return "%s: it is not %s, and there is no %s below" % (nothing, part.folder_kinds, places)


def _list(items: Sequence[str], separator: str = ", ") -> str:
    more = ["and %d more" % (len(items) - MAX_NAMED)] if len(items) > MAX_NAMED else []
    return separator.join([*items[:MAX_NAMED], *more])


# --- whether it fits


def _judge_candidate(
    part: Part, top: Folder, written: Found, image: Versions, context: Context
) -> Union[_Candidate, str]:
    """Return the candidate, judged as seal would, or why it does not fit."""
    try:
        scan = _scan_or_none(top, written)
        if scan is None:
            raise _changes(written)
        with top.open_path(written.root) as root:
            content = judge(part, root, scan, context)
    except AgentError as error:
        if error.reason == reasons.UNREADABLE_FILES:
            return _explain_unreadable(top, written) or error.message
        if error.reason in _SOURCE_REASONS:
            return "%s: %s" % (error.reason, error.message)
        return error.message
    evidence = content.evidence
    if not evidence.entries:
        return "no %s in it" % part.name
    if evidence.unlike:
        return "%s: files of several starts, with which an engine may hang" % evidence.unlike
    versions = evidence.versions
    for field, _, title in context.engine.distributions[1:]:
        here = getattr(image, field)
        there = getattr(versions, field) or getattr(written.versions, field)
        if here and there != here:
            known = there or "of no known version"
            return "of %s %s, and the image has %s" % (title, known, here)
        versions = replace(versions, **{field: there})
    notes = [*evidence.notes, "imported from %s" % short(written.path)]
    gpu = versions.gpu or "unknown"
    products = _products(context.inputs.nodeSelector)
    if not products:
        notes.append("GPU %s, not compared: the target names no %s" % (gpu, PRODUCT_LABEL))
    elif not any(_is_product(versions.gpu, product) for product in products):
        return "of GPU %s, and the target's %s is %s" % (gpu, PRODUCT_LABEL, " or ".join(products))
    layouts = _layouts(part, image, context)
    if evidence.layout not in layouts:
        engine = context.engine
        return "layout %s, which %s %s on %d GPUs does not read; it reads %s" % (
            *(evidence.layout, engine.title, own_version(engine, image), context.task.gpus),
            " or ".join(layouts),
        )
    evidence = replace(evidence, versions=versions, notes=notes)
    return _Candidate(written, scan, evidence, content.digests)


def _scan_or_none(top: Folder, written: Found) -> Optional[Scan]:
    """Return what is in the folder; None while it changes. Raises AgentError."""
    try:
        return scan_found(top, written)
    except (Changed, FileNotFoundError):
        return None


def _changes(written: Found) -> AgentError:
    return AgentError(
        reasons.IMPORT_REFUSED,
        "%s changes while it is read: an engine writes to it; import it once it is ready"
        % short(written.path),
    )


def _explain_unreadable(top: Folder, written: Found) -> str:
    """Return which file or folder this uid may not read and who owns it; "" where it is unknown."""
    places = [written.root + written.inner]
    try:
        scan = scan_found(top, written)
        places = [(*written.root, *path.split("/")) for path in sorted(scan.files)]
    except AgentError:  # a folder in it
        pass
    except (Changed, OSError):
        return ""
    return next(filter(None, (explain_unreadable(top, place) for place in places)), "")


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
