"""What is on the claim: every bundle read whole and compared with its manifest. Needs no uid, writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

from pretune.agent.context import Context
from pretune.agent.disk import Problem
from pretune.agent.store import Bundle, Store, Torn, find, is_id, open_store
from pretune.wire import ANSWER_BYTES, ANSWERS, Report


def inspect(context: Context) -> Report:
    """Inspected: the wanted bundles first, then the others, newest first. Raises Problem, and OSError where a wanted bundle cannot be
    read: what cannot be read is not known to be missing."""
    store = open_store(context.claim, context.task.subPath, context.task.cache)
    if store is None:
        return Report("inspect", "Inspected", "the claim has no folder of %s" % context.task.cache)
    with store:
        found, broken = _bundles(store, context)
    found.sort(key=lambda one: one.manifest.sealedAt, reverse=True)
    found.sort(key=lambda one: one.manifest.id not in context.task.ids)
    message = "%d whole" % len(found) + (", %d broken: %s" % (len(broken), "; ".join(broken)) if broken else "")
    return fitting([_answer(one) for one in found], message)


def _bundles(store: Store, context: Context) -> Tuple[List[Bundle], List[str]]:
    found: List[Bundle] = []
    broken: List[str] = []
    for name in store.bundles.names():
        if not is_id(name):
            continue
        try:
            bundle = find(store.bundles, name)
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
            found.append(bundle)
            context.say("whole: %s, %s" % (name, bundle.manifest.message))
    return found, broken


def _answer(bundle: Bundle) -> Report:
    return replace(bundle.report("inspect"), fingerprint=bundle.manifest.inputs.fingerprint)


def fitting(answers: List[Report], message: str) -> Report:
    """At most ANSWERS within ANSWER_BYTES: what a reader can do without goes first, and whole answers only when that is not enough."""
    kept = answers[:ANSWERS]
    while True:
        more = len(answers) - len(kept)
        for prose, versions in ((300, True), (60, True), (0, True), (0, False)):
            told = [
                replace(one, message=one.message[:prose], versions=one.versions if versions else None) for one in kept
            ]
            report = Report("inspect", "Inspected", message[:200], bundles=told, more=more)
            if len(report.dump().encode()) <= ANSWER_BYTES:
                return report
        kept = kept[:-1]
