"""The claim is the truth, the status only records it.

What is found there whole and valid is adopted, never tuned again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

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
from pretune.api.status import BundleStatus, Environment, Writer
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.job import build_inspect_job
from pretune.policy.bundles import proofs
from pretune.policy.bundles.attempt_state import read_report
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.retries import record_failed_attempt
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.objects import annotation, delete, is_bundle_id, label, owner_uid
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import container_statuses, is_job_finished
from pretune.protocol import ANSWERS, EMPTY, INSPECTED, Report

# Seconds that an inspect Job may take; then the attempt's own check looks at the claim.
INSPECT_TIMEOUT_SECONDS = 300.0
INSPECT_RETRY_SECONDS = 30.0  # until an inspect Job that the API server refused is created again


def adopt(plan: PlanBuilder, bundle_id: str, report: Report, fingerprint: str) -> None:
    """Record what a report says of a bundle on the claim, and call it Sealed.

    fingerprint: of the bundle, where its status does not know it.
    """
    bundle = plan.bundles[bundle_id]
    # What a proof that failed left behind counts as long as it is tried again.
    keeps_failure = bundle.state == PROVING and not report.proven
    bundle = replace(
        bundle,
        fingerprint=bundle.fingerprint or fingerprint,
        layout=report.layout or None,
        entries=report.entries,
        digest=report.digest,
        tuned_seconds=report.seconds,
        sealed_at=parse_timestamp(report.at) if report.at else None,
        retired_at=None,
        proven=report.proven,
        pod=None,
        disruptions=None,
        last_failure=bundle.last_failure if keeps_failure else None,
    )
    if report.versions is not None:
        bundle = replace(bundle, environment=Environment(**asdict(report.versions)))
    if report.writer is not None:
        writer = report.writer
        bundle = replace(bundle, writer=Writer(writer.uid, writer.gid, tuple(writer.groups)))
    if bundle.cold_seconds is None and report.seconds:
        bundle = replace(bundle, cold_seconds=report.seconds)
    plan.put(bundle)
    reason = reasons.NOTHING_TO_TUNE if report.layout == EMPTY else reasons.SEALED
    plan.set_state(bundle_id, SEALED, reason, report.message)


def read_claim(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...], storage: Storage) -> None:
    """Ask the claim what only it shows, by an inspect Job, and take over its answer.

    That is an attempt that ended without a report, and a place of which the status knows nothing:
    status.storage names the one that it knows, a claim that was created empty or one that was read.
    After a part of the status was malformed the claim is read for what that part may have said.
    """
    _forget_what_an_empty_claim_lacks(plan, bundles, storage)
    is_read = storage.ready and not plan.spec.suspend
    lost = {bundle.id for bundle in plan.bundles.values() if _is_lost(plan, bundle)}
    # Folders that are still being deleted: an answer would be of no use.
    lost, unanswerable = lost - plan.awaiting_claim, set(plan.awaiting_claim)
    asked = set(lost)
    if is_read and plan.place != plan.known_place:
        asked |= _list_unknown(plan, bundles) - unanswerable
        if not asked and any(bundle.is_on_claim for bundle in plan.bundles.values()):
            plan.known_place = plan.place  # only the record of the place was lost
    elif is_read and plan.status.skipped:
        asked |= _list_pending(plan, bundles) - unanswerable
        if asked:
            plan.known_place = ""  # until the claim has answered
    key = build_request_key(plan.place, [plan.bundles[each] for each in sorted(asked)])
    job = _find_inspect_job(plan, key if asked else "")
    if not storage.ready:
        for bundle_id in lost:
            state = _waiting_state(plan.bundles[bundle_id])
            plan.set_state(bundle_id, state, reasons.WAITING_FOR_CLAIM, storage.message)
        return
    if not asked:
        return
    refusal = _create_inspect_job(plan, asked, key) if job is None else ""
    report, has_ended = _read_answer(plan, job) if job is not None else (None, False)
    if report is None and not has_ended:
        waits = "the claim is read for bundles that are there already"
        _wait(plan, asked, f"the claim cannot be read: {refusal}" if refusal else waits)
        return
    assert job is not None
    plan.after.append(delete(job))
    _take_over(plan, asked, report)


def _forget_what_an_empty_claim_lacks(
    plan: PlanBuilder, bundles: tuple[DesiredBundle, ...], storage: Storage
) -> None:
    """Forget bundles on a claim that was created by this reconcile, or was never bound."""
    is_new = plan.claim_made or (plan.observed.claim is None and not plan.spec.claim.existing)
    is_unbound = plan.place not in ("", plan.known_place) and storage.ready and storage.empty
    if not is_new and not is_unbound:
        return
    for bundle in list(plan.bundles.values()):
        if bundle.is_on_claim:
            plan.forget(bundle.id, f"claim {plan.claim_name} is created again")
        elif bundle.state == RETIRED:
            plan.delete_jobs(bundle.id)
            plan.remove(bundle.id)
    for desired in bundles:  # one that was retired may be desired again
        plan.ensure(desired.id, desired.inputs.fingerprint, desired.target.name)
    plan.known_place = plan.place


def _list_unknown(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> set[str]:
    """Return the bundles that may be, or may not be, in a place that the status does not know.

    What failed in another place is forgotten: it may do well in this one.
    """
    unknown = set()
    if plan.known_place:
        for bundle in list(plan.bundles.values()):
            is_unsafe = bundle.state == REFUSED and bundle.reason == reasons.UNSAFE_PATH
            if bundle.state == FAILED or is_unsafe:
                plan.forget(bundle.id, "spec.storage was changed")
        unknown |= {bundle.id for bundle in plan.bundles.values() if bundle.is_on_claim}
    return unknown | _list_pending(plan, bundles)


def _list_pending(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> set[str]:
    """Return the desired bundles that are pending, and that no attempt tunes at the moment."""
    return {
        desired.id
        for desired in bundles
        if plan.bundles[desired.id].state == PENDING and not plan.is_live(desired.id, {TUNING})
    }


def build_request_key(place: str, bundles: list[BundleStatus]) -> str:
    """Return what an inspect Job is asked, by which a stale answer is recognised.

    After another attempt of the same bundle it is another key: an older answer does not know it.
    """
    tries = [
        [bundle.id, bundle.attempts, *([bundle.proofs] if bundle.proofs is not None else [])]
        for bundle in bundles
    ]
    return json.dumps([place, tries], sort_keys=True, separators=(",", ":"))


def _find_inspect_job(plan: PlanBuilder, key: str) -> Object | None:
    """Return the inspect Job that was asked this, and delete all others."""
    found = None
    for job in plan.jobs:
        if label(job, ROLE) != INSPECT:
            continue
        if key and annotation(job, REQUEST_KEY) == key:
            found = job
        else:
            plan.after.append(delete(job))
    return found


def _create_inspect_job(plan: PlanBuilder, asked: set[str], key: str) -> str:
    """Create an inspect Job; return why the API server refuses it, "" where it does not."""
    observed = plan.observed
    job = build_inspect_job(
        observed.key,
        plan.cache,
        plan.spec,
        sorted(asked),
        key,
        observed.settings,
        plan.templates,
    )
    action = Create(f"create Job {job['metadata']['name']}", job)
    plan.actions.append(action)
    outcome = plan.outcome(action)
    if outcome is None or outcome.code in (201, 409):
        return ""
    plan.requeue_at(plan.now + INSPECT_RETRY_SECONDS)
    return outcome.message or f"HTTP {outcome.code}"


def _wait(plan: PlanBuilder, asked: set[str], message: str) -> None:
    plan.awaiting_claim |= asked
    for bundle_id in asked:
        bundle = plan.bundles[bundle_id]
        if bundle.state != SEALED:
            plan.set_state(bundle_id, _waiting_state(bundle), reasons.INSPECTING, message)


def _waiting_state(bundle: BundleStatus) -> str:
    return PROVING if bundle.state == PROVING else PENDING


def _read_answer(plan: PlanBuilder, job: Object) -> tuple[Report | None, bool]:
    """Return what inspect reported, and whether there is no use in waiting any longer."""
    for pod in plan.observed.pods:
        status = container_statuses(pod).get(AGENT_CONTAINER)
        if owner_uid(pod) == job["metadata"]["uid"] and (report := read_report(status, INSPECTED)):
            return report, True
    until = parse_timestamp(job["metadata"]["creationTimestamp"]) + INSPECT_TIMEOUT_SECONDS
    plan.requeue_at(until)
    return None, is_job_finished(job) or plan.now >= until


def _take_over(plan: PlanBuilder, asked: set[str], report: Report | None) -> None:
    """Adopt the bundles that were found. Of the others, a lost attempt failed, a sealed bundle is
    gone, and a new one is tuned.

    Without an answer all count as not found: the next attempt's own check looks at the claim before
    the engine starts.
    """
    answers = report.bundles if report is not None else []
    found = {answer.id: answer for answer in answers if is_bundle_id(answer.id)}
    for bundle_id, answer in found.items():
        bundle = plan.ensure(bundle_id, answer.fingerprint)
        if (
            bundle.state in (PENDING, TUNING_STATE, PROVING, SEALED)
            and bundle.fingerprint == answer.fingerprint
        ):
            has_lost_proof = bundle.state == PROVING and _is_lost(plan, bundle)
            adopt(plan, bundle_id, answer, answer.fingerprint)
            if has_lost_proof and not answer.proven:
                message = f"{_REPORT_LOST} no proof of this bundle"
                proofs.record_failed_proof(plan, bundle_id, reasons.REPORT_LOST, message)
    missing = asked - set(found)
    if missing and len(asked & set(found)) >= ANSWERS:
        # There may be more than one report holds: the missing ones are asked for again.
        plan.known_place = ""
        plan.awaiting_claim |= missing
        plan.requeue_at(plan.now)
        return
    new = {
        bundle_id
        for bundle_id in asked
        if plan.bundles[bundle_id].state == PENDING and not _is_lost(plan, plan.bundles[bundle_id])
    }
    gone = f"claim {plan.claim_name} does not hold it"
    for bundle_id in sorted(missing - new):
        bundle = plan.bundles[bundle_id]
        if bundle.is_on_claim:
            plan.forget(bundle_id, gone if report is not None else "the claim could not be read")
        elif _is_lost(plan, bundle):
            message = f"{_REPORT_LOST} no such bundle"
            record_failed_attempt(plan, bundle_id, reasons.REPORT_LOST, message)
    plan.known_place = plan.place
    if new:  # tuned from the next reconcile on, at once: the status records the place first
        _wait(plan, new, "the claim does not hold it")
        plan.requeue_at(plan.now)


_REPORT_LOST = "the pod was gone before its report was read, and the claim has"


def _is_lost(plan: PlanBuilder, bundle: BundleStatus) -> bool:
    """Whether its open attempt, or proof, has ended without a report that could be read."""
    is_open = bundle.has_open_attempt or bundle.has_open_proof
    role = PROOF if bundle.state == PROVING else TUNING
    return is_open and not plan.is_live(bundle.id, {role})
