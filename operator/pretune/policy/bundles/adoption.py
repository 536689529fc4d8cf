"""The claim is the truth, status only remembers it: what is found there whole and valid is taken over, never tuned again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pretune.api import reasons
from pretune.api.names import (
    AGENT_CONTAINER,
    FAILED,
    INSPECT,
    PENDING,
    PROOF,
    PROVING,
    QUESTION,
    REFUSED,
    RETIRED,
    ROLE,
    SEALED,
    TUNING,
    TUNING_STATE,
)
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.job import inspect_job
from pretune.policy.bundles import proofs
from pretune.policy.bundles.attempt_state import job_over, report_of, statuses
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.plan_builder import (
    ON_CLAIM,
    Draft,
    Wanted,
    delete,
    fail,
    failure,
    owner_uid,
    question,
)
from pretune.protocol import ANSWERS, Report

PATIENCE = 300.0  # seconds that an inspect Job may take; then the attempt's own check looks


def adopt(draft: Draft, record: Object, report: Report, fingerprint: str) -> None:
    """A bundle is on the claim: its record says what the manifest says."""
    record["fingerprint"] = record.get("fingerprint") or fingerprint
    record["layout"], record["entries"], record["digest"] = (
        report.layout,
        report.entries,
        report.digest,
    )
    record["tunedSeconds"], record["sealedAt"] = report.seconds, report.at
    if report.versions is not None:
        record["environment"] = asdict(report.versions)
    if report.writer is not None:
        record["writer"] = asdict(report.writer)
    if report.proven:
        record["proven"] = True
    else:
        record.pop("proven", None)
    if "coldSeconds" not in record:
        proofs.note_cold(record, report.seconds)
    # What a proof that failed left behind counts as long as it is tried again.
    kept = ("lastFailure",) if record["state"] == PROVING and not report.proven else ()
    for forgotten in {"pod", "disruptions", "lastFailure", "retiredAt"} - set(kept):
        record.pop(forgotten, None)
    draft.say(
        record,
        SEALED,
        reasons.NOTHING_TO_TUNE if report.layout == "Empty" else reasons.SEALED,
        report.message,
    )


def ask(draft: Draft, bundles: tuple[Wanted, ...], storage: Storage) -> None:
    """Where only the claim can say: an attempt that ended without a report, and a place of which the status knows nothing.

    status.storage names the place that the status knows: a claim that was made empty for us, or one that was asked.
    """
    here = draft.place
    made = draft.claim_made or (
        draft.seen.claim is None and not draft.spec.claim.existing
    )  # ours, in this very run
    if made or (here and here != draft.known_place and storage.ready and storage.empty):
        _forget(draft, list(draft.bundles), f"claim {draft.claim_name} is made anew")
        draft.known_place = here
    pruned = set(draft.asking)  # still being deleted: an answer would be of no use
    asked = {one["id"] for one in draft.bundles.values() if _lost(draft, one)} - pruned
    lost = set(asked)
    if storage.ready and here != draft.known_place and not draft.spec.suspend:
        if draft.known_place:  # another place than the one that the records speak of
            _try_again(draft)
            asked |= {one["id"] for one in draft.bundles.values() if one["state"] in ON_CLAIM}
        asked |= {want.id for want in bundles if _may_be_there(draft, draft.bundles[want.id])}
        asked -= pruned
    text = question([here, [_tries(draft.bundles[one]) for one in sorted(asked)]])
    jobs = [job for job in draft.jobs if job["metadata"]["labels"].get(ROLE) == INSPECT]
    current = None
    for job in jobs:
        if asked and (job["metadata"].get("annotations") or {}).get(QUESTION) == text:
            current = job
        else:
            draft.after.append(delete(job))
    if not storage.ready:
        for one in lost:
            draft.say(
                draft.bundles[one],
                _waiting(draft.bundles[one]),
                reasons.WAITING_FOR_CLAIM,
                storage.message,
            )
    if not asked or not storage.ready:
        return
    if current is None:
        spec = draft.spec
        job = inspect_job(
            draft.seen.key, draft.cache, spec, sorted(asked), text, draft.seen.settings
        )
        action = Create(f"create Job {job['metadata']['name']}", job)
        draft.actions.append(action)
        refused = draft.outcome(action)
        if refused is not None and refused.code not in (201, 409):
            _wait(draft, asked, f"the claim cannot be read: {refused.message}")
            draft.at(draft.now + 30)
            return
    report, over = _answer(draft, current) if current is not None else (None, False)
    if report is None and not over:
        _wait(draft, asked, "the claim is read for bundles that are there already")
        return
    assert current is not None
    draft.after.append(delete(current))
    _take(draft, asked, report)


def _tries(record: Object) -> list[Any]:
    """What makes a question another one, though it is about the same bundle: an older answer knows nothing of a newer attempt."""
    return [record["id"], record["attempts"], *([record["proofs"]] if "proofs" in record else [])]


def _wait(draft: Draft, asked: set[str], message: str) -> None:
    draft.asking |= asked
    for one in asked:
        if draft.bundles[one]["state"] != SEALED:
            draft.say(draft.bundles[one], _waiting(draft.bundles[one]), reasons.INSPECTING, message)


def _waiting(record: Object) -> str:
    return PROVING if record["state"] == PROVING else PENDING


def _may_be_there(draft: Draft, record: Object) -> bool:
    return record["state"] == PENDING and not draft.live(record["id"], {TUNING})


def _answer(draft: Draft, job: Object) -> tuple[Report | None, bool]:
    """What inspect reported, and whether there is no use in waiting any longer."""
    for pod in draft.seen.pods:
        if owner_uid(pod) == job["metadata"]["uid"] and (
            report := report_of(statuses(pod).get(AGENT_CONTAINER))
        ):
            return report, True
    until = parse_timestamp(job["metadata"]["creationTimestamp"]) + PATIENCE
    draft.at(until)
    return None, job_over(job) or draft.now >= until


def _take(draft: Draft, asked: set[str], report: Report | None) -> None:
    """Found: adopted. Not found: a lost attempt failed, a sealed bundle is gone, a new one is made. No answer: go on, since
    the next attempt's own check looks at the claim before the engine starts."""
    found = {one.id: one for one in (report.bundles if report else ())}
    for bundle, answer in found.items():
        record = draft.record(bundle, answer.fingerprint)
        if (
            record["state"] in (PENDING, TUNING_STATE, *ON_CLAIM)
            and record["fingerprint"] == answer.fingerprint
        ):
            unheard = record["state"] == PROVING and _lost(draft, record)
            adopt(draft, record, answer, answer.fingerprint)
            if unheard and not answer.proven:
                proofs.fail(draft, record, reasons.REPORT_LOST, f"{_GONE} no proof of this bundle")
    missing = asked - set(found)
    if missing and len(asked & set(found)) >= ANSWERS:
        draft.known_place = (
            ""  # there may be more than one report holds: the missing ones are asked for again
        )
        draft.asking |= missing
        draft.at(draft.now)
        return
    fresh = {
        one
        for one in asked
        if draft.bundles[one]["state"] == PENDING and not _lost(draft, draft.bundles[one])
    }
    for bundle in sorted(missing - fresh):
        if draft.bundles[bundle]["state"] not in ON_CLAIM and _lost(draft, draft.bundles[bundle]):
            fail(draft, draft.bundles[bundle], reasons.REPORT_LOST, f"{_GONE} no such bundle")
    sealed = [one for one in sorted(missing) if draft.bundles[one]["state"] in ON_CLAIM]
    _forget(
        draft,
        sealed,
        f"claim {draft.claim_name} does not hold it" if report else "the claim could not be read",
    )
    draft.known_place = draft.place
    if fresh:  # tuned from the next run on, which is at once: the status remembers the place first
        _wait(draft, fresh, "the claim does not hold it")
        draft.at(draft.now)


_GONE = "the pod was gone before its report was read, and the claim has"


def _forget(draft: Draft, bundles: list[str], why: str) -> None:
    """Sealed bundles that are not on the claim any more are wanted anew."""
    for bundle in bundles:
        record = draft.bundles[bundle]
        if record["state"] in ON_CLAIM:
            draft.forget(record, why)
        elif record["state"] == RETIRED:
            draft.drop_jobs(bundle)
            del draft.bundles[bundle]


def _try_again(draft: Draft) -> None:
    """What failed in another place may do well in this one."""
    for record in list(draft.bundles.values()):
        if record["state"] == FAILED or (
            record["state"] == REFUSED and record["reason"] == reasons.UNSAFE_PATH
        ):
            draft.forget(record, "spec.storage was changed")


def _lost(draft: Draft, record: Object) -> bool:
    """Its newest attempt, or proof, has ended, and nobody took note of a report."""
    proof = record["state"] == PROVING
    begun = record.get("proofs", 0) if proof else record["attempts"]
    return (
        record["state"] in (PENDING, TUNING_STATE, PROVING)
        and begun > failure(record).get("attempt", 0)
        and not draft.live(record["id"], {PROOF if proof else TUNING})
    )
