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
    REFUSED,
    REQUEST_KEY,
    RETIRED,
    ROLE,
    SEALED,
    TUNING,
    TUNING_STATE,
)
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.job import build_inspect_job
from pretune.policy.bundles import proofs
from pretune.policy.bundles.attempt_state import is_job_finished, report_of, statuses
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.plan_builder import (
    ON_CLAIM,
    DesiredBundle,
    PlanBuilder,
    delete,
    fail,
    failure,
    owner_uid,
    request_key,
)
from pretune.protocol import ANSWERS, Report

PATIENCE = 300.0  # seconds that an inspect Job may take; then the attempt's own check looks


def adopt(plan: PlanBuilder, record: Object, report: Report, fingerprint: str) -> None:
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
    plan.say(
        record,
        SEALED,
        reasons.NOTHING_TO_TUNE if report.layout == "Empty" else reasons.SEALED,
        report.message,
    )


def ask(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...], storage: Storage) -> None:
    """Where only the claim can say: an attempt that ended without a report, and a place of which the status knows nothing.

    status.storage names the place that the status knows: a claim that was made empty for us, or one that was asked.
    """
    here = plan.place
    made = plan.claim_made or (
        plan.observed.claim is None and not plan.spec.claim.existing
    )  # ours, in this very run
    if made or (here and here != plan.known_place and storage.ready and storage.empty):
        _forget(plan, list(plan.bundles), f"claim {plan.claim_name} is made anew")
        plan.known_place = here
    pruned = set(plan.asking)  # still being deleted: an answer would be of no use
    asked = {one["id"] for one in plan.bundles.values() if _lost(plan, one)} - pruned
    lost = set(asked)
    if storage.ready and here != plan.known_place and not plan.spec.suspend:
        if plan.known_place:  # another place than the one that the records speak of
            _try_again(plan)
            asked |= {one["id"] for one in plan.bundles.values() if one["state"] in ON_CLAIM}
        asked |= {want.id for want in bundles if _may_be_there(plan, plan.bundles[want.id])}
        asked -= pruned
    text = request_key([here, [_tries(plan.bundles[one]) for one in sorted(asked)]])
    jobs = [job for job in plan.jobs if job["metadata"]["labels"].get(ROLE) == INSPECT]
    current = None
    for job in jobs:
        if asked and (job["metadata"].get("annotations") or {}).get(REQUEST_KEY) == text:
            current = job
        else:
            plan.after.append(delete(job))
    if not storage.ready:
        for one in lost:
            plan.say(
                plan.bundles[one],
                _waiting(plan.bundles[one]),
                reasons.WAITING_FOR_CLAIM,
                storage.message,
            )
    if not asked or not storage.ready:
        return
    if current is None:
        spec = plan.spec
        job = build_inspect_job(
            plan.observed.key, plan.cache, spec, sorted(asked), text, plan.observed.settings
        )
        action = Create(f"create Job {job['metadata']['name']}", job)
        plan.actions.append(action)
        refused = plan.outcome(action)
        if refused is not None and refused.code not in (201, 409):
            _wait(plan, asked, f"the claim cannot be read: {refused.message}")
            plan.requeue_at(plan.now + 30)
            return
    report, over = _answer(plan, current) if current is not None else (None, False)
    if report is None and not over:
        _wait(plan, asked, "the claim is read for bundles that are there already")
        return
    assert current is not None
    plan.after.append(delete(current))
    _take(plan, asked, report)


def _tries(record: Object) -> list[Any]:
    """What makes a question another one, though it is about the same bundle: an older answer knows nothing of a newer attempt."""
    return [record["id"], record["attempts"], *([record["proofs"]] if "proofs" in record else [])]


def _wait(plan: PlanBuilder, asked: set[str], message: str) -> None:
    plan.asking |= asked
    for one in asked:
        if plan.bundles[one]["state"] != SEALED:
            plan.say(plan.bundles[one], _waiting(plan.bundles[one]), reasons.INSPECTING, message)


def _waiting(record: Object) -> str:
    return PROVING if record["state"] == PROVING else PENDING


def _may_be_there(plan: PlanBuilder, record: Object) -> bool:
    return record["state"] == PENDING and not plan.live(record["id"], {TUNING})


def _answer(plan: PlanBuilder, job: Object) -> tuple[Report | None, bool]:
    """What inspect reported, and whether there is no use in waiting any longer."""
    for pod in plan.observed.pods:
        if owner_uid(pod) == job["metadata"]["uid"] and (
            report := report_of(statuses(pod).get(AGENT_CONTAINER))
        ):
            return report, True
    until = parse_timestamp(job["metadata"]["creationTimestamp"]) + PATIENCE
    plan.requeue_at(until)
    return None, is_job_finished(job) or plan.now >= until


def _take(plan: PlanBuilder, asked: set[str], report: Report | None) -> None:
    """Found: adopted. Not found: a lost attempt failed, a sealed bundle is gone, a new one is made. No answer: go on, since
    the next attempt's own check looks at the claim before the engine starts."""
    found = {one.id: one for one in (report.bundles if report else ())}
    for bundle, answer in found.items():
        record = plan.record(bundle, answer.fingerprint)
        if (
            record["state"] in (PENDING, TUNING_STATE, *ON_CLAIM)
            and record["fingerprint"] == answer.fingerprint
        ):
            unheard = record["state"] == PROVING and _lost(plan, record)
            adopt(plan, record, answer, answer.fingerprint)
            if unheard and not answer.proven:
                proofs.fail(plan, record, reasons.REPORT_LOST, f"{_GONE} no proof of this bundle")
    missing = asked - set(found)
    if missing and len(asked & set(found)) >= ANSWERS:
        plan.known_place = (
            ""  # there may be more than one report holds: the missing ones are asked for again
        )
        plan.asking |= missing
        plan.requeue_at(plan.now)
        return
    fresh = {
        one
        for one in asked
        if plan.bundles[one]["state"] == PENDING and not _lost(plan, plan.bundles[one])
    }
    for bundle in sorted(missing - fresh):
        if plan.bundles[bundle]["state"] not in ON_CLAIM and _lost(plan, plan.bundles[bundle]):
            fail(plan, plan.bundles[bundle], reasons.REPORT_LOST, f"{_GONE} no such bundle")
    sealed = [one for one in sorted(missing) if plan.bundles[one]["state"] in ON_CLAIM]
    _forget(
        plan,
        sealed,
        f"claim {plan.claim_name} does not hold it" if report else "the claim could not be read",
    )
    plan.known_place = plan.place
    if fresh:  # tuned from the next run on, which is at once: the status remembers the place first
        _wait(plan, fresh, "the claim does not hold it")
        plan.requeue_at(plan.now)


_GONE = "the pod was gone before its report was read, and the claim has"


def _forget(plan: PlanBuilder, bundles: list[str], why: str) -> None:
    """Sealed bundles that are not on the claim any more are wanted anew."""
    for bundle in bundles:
        record = plan.bundles[bundle]
        if record["state"] in ON_CLAIM:
            plan.forget(record, why)
        elif record["state"] == RETIRED:
            plan.drop_jobs(bundle)
            del plan.bundles[bundle]


def _try_again(plan: PlanBuilder) -> None:
    """What failed in another place may do well in this one."""
    for record in list(plan.bundles.values()):
        if record["state"] == FAILED or (
            record["state"] == REFUSED and record["reason"] == reasons.UNSAFE_PATH
        ):
            plan.forget(record, "spec.storage was changed")


def _lost(plan: PlanBuilder, record: Object) -> bool:
    """Its newest attempt, or proof, has ended, and nobody took note of a report."""
    proof = record["state"] == PROVING
    begun = record.get("proofs", 0) if proof else record["attempts"]
    return (
        record["state"] in (PENDING, TUNING_STATE, PROVING)
        and begun > failure(record).get("attempt", 0)
        and not plan.live(record["id"], {PROOF if proof else TUNING})
    )
