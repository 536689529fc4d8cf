"""Report what is on the claim: every bundle, compared with its manifest.

It runs with any uid and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

from pretune.agent.claim.bundles import Bundle, DamagedBundle, is_bundle_id
from pretune.agent.claim.digests import find_checked_bundle
from pretune.agent.claim.proof_records import has_proof_record
from pretune.agent.claim.store import Store, open_store
from pretune.agent.context import Context
from pretune.agent.errors import AgentError
from pretune.protocol import ANSWER_BYTES, ANSWERS, INSPECTED, Report


def inspect(context: Context) -> Report:
    """Return the report Inspected: the wanted bundles first, then the others, newest first.

    Raises AgentError, and OSError where a wanted bundle cannot be read: it may be there.
    """
    store = open_store(context.claim, context.task.subPath, context.task.cache)
    if store is None:
        return Report("inspect", INSPECTED, "the claim has no folder of %s" % context.task.cache)
    with store:
        answers, broken = _read_bundles(store, context)
    answers.sort(key=lambda answer: answer.at, reverse=True)
    answers.sort(key=lambda answer: answer.id not in context.task.ids)
    message = "%d whole" % len(answers)
    if broken:
        message += ", %d broken: %s" % (len(broken), "; ".join(broken))
    return fit_report(answers, message)


def _read_bundles(store: Store, context: Context) -> Tuple[List[Report], List[str]]:
    """Return an answer for each whole bundle, and what is wrong with each of the others."""
    answers: List[Report] = []
    broken: List[str] = []
    for bundle_id in store.bundles.list_names():
        if not is_bundle_id(bundle_id):
            continue
        try:
            bundle = find_checked_bundle(store.bundles, bundle_id)
            proven = bundle is not None and has_proof_record(store, bundle)
        except (DamagedBundle, AgentError) as error:
            broken.append("%s: %s" % (bundle_id, error))
            context.log("broken: %s" % broken[-1])
            continue
        except OSError as error:
            if bundle_id in context.task.ids:
                raise
            broken.append("%s: %s" % (bundle_id, error.strerror))
            continue
        if bundle is not None:
            answers.append(_answer(bundle, proven))
            suffix = ", proven" if proven else ""
            context.log("whole: %s, %s%s" % (bundle_id, bundle.manifest.message, suffix))
    return answers, broken


def _answer(bundle: Bundle, proven: bool) -> Report:
    report = bundle.report("inspect", proven)
    return replace(report, fingerprint=bundle.manifest.inputs.fingerprint)


def fit_report(answers: List[Report], message: str) -> Report:
    """Return the report with at most ANSWERS answers, within ANSWER_BYTES.

    Messages are cut first, then versions left out. Only when that is not enough, the last answers
    are left out; `more` counts those.
    """
    kept = answers[:ANSWERS]
    while True:
        more = len(answers) - len(kept)
        for max_message, with_versions in ((300, True), (60, True), (0, True), (0, False)):
            short = [
                replace(
                    answer,
                    message=answer.message[:max_message],
                    versions=answer.versions if with_versions else None,
                )
                for answer in kept
            ]
            report = Report("inspect", INSPECTED, message[:200], bundles=short, more=more)
            if len(report.dump().encode()) <= ANSWER_BYTES:
                return report
        kept = kept[:-1]
