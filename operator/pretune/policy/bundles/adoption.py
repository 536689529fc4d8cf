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
from pretune.policy.objects import annotation, delete, label, owner_uid
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import container_statuses, is_job_finished
from pretune.protocol import ANSWERS, EMPTY, INSPECTED, Report

# Seconds that an inspect Job may take; then the attempt's own check looks at the claim.
INSPECT_TIMEOUT_SECONDS = 300.0


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
    pruned = set(plan.awaiting_claim)  # still being deleted: an answer would be of no use
    asked = {bundle.id for bundle in plan.bundles.values() if _is_lost(plan, bundle)} - pruned
    lost = set(asked)
    if storage.ready and here != plan.known_place and not plan.spec.suspend:
        if plan.known_place:  # another place than the one that the status speaks of
            _try_again(plan)
            asked |= {bundle.id for bundle in plan.bundles.values() if bundle.is_on_claim}
        asked |= {each.id for each in bundles if _may_be_there(plan, plan.bundles[each.id])}
        asked -= pruned
    key = request_key(here, [plan.bundles[bundle_id] for bundle_id in sorted(asked)])
    current = None
    for job in plan.jobs:
        if label(job, ROLE) != INSPECT:
            continue
        if asked and annotation(job, REQUEST_KEY) == key:
            current = job
        else:
            plan.after.append(delete(job))
    if not storage.ready:
        for bundle_id in lost:
            state = _waiting_state(plan.bundles[bundle_id])
            plan.set_state(bundle_id, state, reasons.WAITING_FOR_CLAIM, storage.message)
    if not asked or not storage.ready:
        return
    if current is None:
        job = build_inspect_job(
            plan.observed.key, plan.cache, plan.spec, sorted(asked), key, plan.observed.settings
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


def request_key(place: str, bundles: list[BundleStatus]) -> str:
    """Return what an inspect Job is asked, by which a stale answer is recognised.

    About the same bundle it is another one after another attempt: an older answer does not know it.
    """
    tries = [
        [bundle.id, bundle.attempts, *([bundle.proofs] if bundle.proofs is not None else [])]
        for bundle in bundles
    ]
    return json.dumps([place, tries], sort_keys=True, separators=(",", ":"))


def _wait(plan: PlanBuilder, asked: set[str], message: str) -> None:
    plan.awaiting_claim |= asked
    for bundle_id in asked:
        bundle = plan.bundles[bundle_id]
        if bundle.state != SEALED:
            plan.set_state(bundle_id, _waiting_state(bundle), reasons.INSPECTING, message)


def _waiting_state(bundle: BundleStatus) -> str:
    return PROVING if bundle.state == PROVING else PENDING


def _may_be_there(plan: PlanBuilder, bundle: BundleStatus) -> bool:
    return bundle.state == PENDING and not plan.is_live(bundle.id, {TUNING})


def _answer(plan: PlanBuilder, job: Object) -> tuple[Report | None, bool]:
    """What inspect reported, and whether there is no use in waiting any longer."""
    for pod in plan.observed.pods:
        if owner_uid(pod) == job["metadata"]["uid"] and (
            report := read_report(container_statuses(pod).get(AGENT_CONTAINER), INSPECTED)
        ):
            return report, True
    until = parse_timestamp(job["metadata"]["creationTimestamp"]) + INSPECT_TIMEOUT_SECONDS
    plan.requeue_at(until)
    return None, is_job_finished(job) or plan.now >= until


def _take(plan: PlanBuilder, asked: set[str], report: Report | None) -> None:
    """Found: adopted. Not found: a lost attempt failed, a sealed bundle is gone, a new one is made. No answer: go on, since
    the next attempt's own check looks at the claim before the engine starts."""
    found = {answer.id: answer for answer in (report.bundles if report else ())}
    for bundle_id, answer in found.items():
        bundle = plan.ensure(bundle_id, answer.fingerprint)
        if (
            bundle.state in (PENDING, TUNING_STATE, PROVING, SEALED)
            and bundle.fingerprint == answer.fingerprint
        ):
            is_unheard = bundle.state == PROVING and _is_lost(plan, bundle)
            adopt(plan, bundle_id, answer, answer.fingerprint)
            if is_unheard and not answer.proven:
                message = f"{_GONE} no proof of this bundle"
                proofs.record_failed_proof(plan, bundle_id, reasons.REPORT_LOST, message)
    missing = asked - set(found)
    if missing and len(asked & set(found)) >= ANSWERS:
        # There may be more than one report holds: the missing ones are asked for again.
        plan.known_place = ""
        plan.awaiting_claim |= missing
        plan.requeue_at(plan.now)
        return
    fresh = {
        bundle_id
        for bundle_id in asked
        if plan.bundles[bundle_id].state == PENDING and not _is_lost(plan, plan.bundles[bundle_id])
    }
    for bundle_id in sorted(missing - fresh):
        bundle = plan.bundles[bundle_id]
        if not bundle.is_on_claim and _is_lost(plan, bundle):
            message = f"{_GONE} no such bundle"
            record_failed_attempt(plan, bundle_id, reasons.REPORT_LOST, message)
    sealed = [bundle_id for bundle_id in sorted(missing) if plan.bundles[bundle_id].is_on_claim]
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


def _forget(plan: PlanBuilder, bundle_ids: list[str], why: str) -> None:
    """Sealed bundles that are not on the claim any more are wanted anew."""
    for bundle_id in bundle_ids:
        bundle = plan.bundles[bundle_id]
        if bundle.is_on_claim:
            plan.forget(bundle_id, why)
        elif bundle.state == RETIRED:
            plan.delete_jobs(bundle_id)
            plan.remove(bundle_id)


def _try_again(plan: PlanBuilder) -> None:
    """What failed in another place may do well in this one."""
    for bundle in list(plan.bundles.values()):
        if bundle.state == FAILED or (
            bundle.state == REFUSED and bundle.reason == reasons.UNSAFE_PATH
        ):
            plan.forget(bundle.id, "spec.storage was changed")


def _is_lost(plan: PlanBuilder, bundle: BundleStatus) -> bool:
    """Its newest attempt, or proof, has ended, and no report of it was read."""
    is_open = bundle.has_open_attempt or bundle.has_open_proof
    role = PROOF if bundle.state == PROVING else TUNING
    return is_open and not plan.is_live(bundle.id, {role})
