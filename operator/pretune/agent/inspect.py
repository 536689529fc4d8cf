"""What is on the claim: every bundle read whole and compared with its manifest. Needs no uid, writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

from pretune.agent.claim.fs import Problem
from pretune.agent.claim.proof_records import proven
from pretune.agent.claim.store import Bundle, Store, Torn, find, is_id, open_store
from pretune.agent.context import Context
from pretune.protocol import ANSWER_BYTES, ANSWERS, Report


def inspect(context: Context) -> Report:
    """Inspected: the wanted bundles first, then the others, newest first. Raises Problem, and OSError where a wanted bundle cannot be
    read: what cannot be read is not known to be missing."""
    store = open_store(context.claim, context.task.subPath, context.task.cache)
    if store is None:
        return Report("inspect", "Inspected", "the claim has no folder of %s" % context.task.cache)
    with store:
        found, broken = _bundles(store, context)
    found.sort(key=lambda one: one[0].manifest.sealedAt, reverse=True)
    found.sort(key=lambda one: one[0].manifest.id not in context.task.ids)
    message = "%d whole" % len(found) + (
        ", %d broken: %s" % (len(broken), "; ".join(broken)) if broken else ""
    )
    return fitting([_answer(one, is_proven) for one, is_proven in found], message)


def _bundles(store: Store, context: Context) -> Tuple[List[Tuple[Bundle, bool]], List[str]]:
    """Each whole bundle, and whether it is proven; then words on the others."""
    found: List[Tuple[Bundle, bool]] = []
    broken: List[str] = []
    for name in store.bundles.names():
        if not is_id(name):
            continue
        try:
            bundle = find(store.bundles, name)
            is_proven = bundle is not None and proven(store, bundle)
        except (Torn, Problem) as problem:
            broken.append("%s: %s" % (name, problem))
            context.say("broken: %s" % broken[-1])
            continue
        except OSError as error:
            if name in context.task.ids:
                raise
            broken.append("%s: %s" % (name, error.strerror))
            continue
        if bundle is not None:
            found.append((bundle, is_proven))
            context.say(
                "whole: %s, %s%s" % (name, bundle.manifest.message, ", proven" if is_proven else "")
            )
    return found, broken


def _answer(bundle: Bundle, is_proven: bool) -> Report:
    return replace(
        bundle.report("inspect", is_proven), fingerprint=bundle.manifest.inputs.fingerprint
    )


def fitting(answers: List[Report], message: str) -> Report:
    """At most ANSWERS within ANSWER_BYTES: what a reader can do without goes first, and whole answers only when that is not enough."""
    kept = answers[:ANSWERS]
    while True:
        more = len(answers) - len(kept)
        for prose, versions in ((300, True), (60, True), (0, True), (0, False)):
            told = [
                replace(
                    one, message=one.message[:prose], versions=one.versions if versions else None
                )
                for one in kept
            ]
            report = Report("inspect", "Inspected", message[:200], bundles=told, more=more)
            if len(report.dump().encode()) <= ANSWER_BYTES:
                return report
        kept = kept[:-1]
