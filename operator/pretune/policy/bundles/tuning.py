"""Attempts: how those ended that were started, what starts now, and what nothing wants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import (
    BUNDLE,
    FAILED,
    PENDING,
    PROOF,
    PROVING,
    REFUSED,
    RETIRED,
    SEAL_CONTAINER,
    SEALED,
    TUNING_STATE,
)
from pretune.api.reasons import Refused
from pretune.api.status import BundleStatus
from pretune.api.types import Object
from pretune.manifests.job import build_tuning_job
from pretune.policy.bundles import imports, proofs, retention, retries
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import (
    ATTEMPT_CHECKS,
    FINISHED,
    GIVES_WAY,
    REPEATED,
    AttemptState,
    measure_start,
    read_attempt,
)
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.disruptions import count_disruptions, repeat
from pretune.policy.bundles.engine_volumes import find_nodes
from pretune.policy.bundles.job_runs import (
    create_job,
    end_jobs,
    list_attempt_jobs,
    observe_attempt,
    pod_of,
    was_ended_by_us,
)
from pretune.policy.bundles.start_rules import (
    BY_IMPORT,
    Candidate,
    another_runs,
    find_blocker,
    waits_for_turn,
)
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.model import FOUND
from pretune.policy.objects import delete, fingerprint_of, label
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    container_statuses,
    engine_name,
    gpu_seconds,
    gpus_of_pod,
    is_finished,
    is_suspended,
)
from pretune.policy.pods.consumers import Consumer

# Seconds that a bundle is kept in the making though no pod asks for it.
UNWANTED_SECONDS = 120.0

# Reasons that a pod template alone tells of.
REFUSED_BY_TEMPLATE = frozenset(
    {
        reasons.ENGINE_NOT_FOUND,
        reasons.HOST_NETWORK,
        reasons.MULTI_POD_ENGINE,
        reasons.NODE_GPUS,
        reasons.SELF_REGISTERING,
        reasons.SHARED_GPU,
        reasons.SHARED_RESOURCE_CLAIM,
        reasons.SINGLE_USE_CLAIM,
        reasons.SOURCE_INVALID,
    }
)


def process_finished_attempts(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Read every attempt whose end the status does not record yet, and every import."""
    ids = {desired.id for desired in bundles}
    for job in plan.misplaced_jobs:
        plan.after.append(delete(job))
        bundle = plan.bundles.get(label(job, BUNDLE))
        if bundle is not None and bundle.state in (PENDING, TUNING_STATE):
            plan.forget(bundle.id, "spec.storage was changed")
    for bundle_id in sorted(plan.find_tried_ids() | set(plan.bundles)):
        jobs = plan.find_jobs(bundle_id)
        if bundle_id not in plan.bundles:
            if bundle_id not in ids and not plan.is_live(bundle_id):
                continue  # the finished Job of a bundle that the status has forgotten
            known = jobs or plan.find_jobs(bundle_id, PROOF)
            plan.ensure(bundle_id, fingerprint_of(known[max(known)]))
        bundle = plan.bundles[bundle_id]
        if jobs and max(jobs) > bundle.attempts:
            bundle = plan.put(replace(bundle, attempts=max(jobs)))
        if bundle.has_open_attempt:
            _read_attempt(plan, bundle_id, jobs.get(bundle.attempts))
        else:
            end_jobs(plan, bundle_id, jobs.values())
    imports.process_finished_imports(plan)


def _read_attempt(plan: PlanBuilder, bundle_id: str, job: Object | None) -> None:
    pod = pod_of(plan, bundle_id, job)
    if was_ended_by_us(job, pod):
        _forget_superseded(plan, bundle_id)
        return
    count_disruptions(plan, bundle_id, job, pod)
    number = plan.bundles[bundle_id].attempts
    if job is None and plan.is_live(bundle_id):
        plan.set_state(
            bundle_id,
            PENDING,
            reasons.WAITING_FOR_POD,
            f"attempt {number}: its Job is gone; waiting for its pod to end",
        )
        return
    attempt = observe_attempt(plan, bundle_id, number, job, pod)
    state = read_attempt(attempt, ATTEMPT_CHECKS)
    plan.requeue_at(state.recheck_at)
    if state.state == REPEATED:
        assert job is not None
        repeat(plan, bundle_id, job, state)
        return
    if state.state == GIVES_WAY:
        assert job is not None
        plan.record_superseded(bundle_id)
        plan.end_job(job)
        plan.set_state(bundle_id, PENDING, state.reason, f"attempt {number}: {state.message}")
        return
    if state.state != FINISHED:
        message = f"attempt {number} of {plan.spec.max_attempts}: {state.message}"
        plan.set_state(bundle_id, state.state, state.reason, message)
        return
    if state.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    if state.report is not None and state.reason in (reasons.SEALED, reasons.NOTHING_TO_TUNE):
        _record_sealed(plan, bundle_id, state, job, pod)
        return
    retries.record_failed_attempt(plan, bundle_id, state.reason, state.message)
    end_jobs(plan, bundle_id, [job] if job is not None else [])


def _forget_superseded(plan: PlanBuilder, bundle_id: str) -> None:
    """Go on as if an attempt that we have ended had not begun: its pod reports our own doing.

    Nothing wanted the bundle for a while, or a pod that serves needed the attempt's claim. Once the
    pod is gone, the next attempt has its number.
    """
    bundle = plan.bundles[bundle_id]
    message = f"attempt {bundle.attempts} was ended by pretune, and does not count"
    if plan.is_live(bundle_id):
        message += "; waiting for its pod to end"
        plan.set_state(bundle_id, PENDING, reasons.SUPERSEDED, message)
        return
    plan.record_superseded(bundle_id)
    plan.delete_jobs(bundle_id, above=bundle.failed_number)
    plan.put(replace(bundle, attempts=bundle.failed_number, pod=None, disruptions=None))
    plan.set_state(bundle_id, PENDING, reasons.QUEUED, message)
    plan.awaiting_claim.add(bundle_id)  # until its Job is deleted
    plan.requeue_at(plan.now)


def _record_sealed(
    plan: PlanBuilder,
    bundle_id: str,
    state: AttemptState,
    job: Object | None,
    pod: Object | None,
) -> None:
    assert state.report is not None and pod is not None and job is not None
    gpus = gpus_of_pod(pod)
    if state.report.by == "check":  # found on the claim: the engine was never started
        plan.record_end(bundle_id, FOUND, gpu_seconds(pod, plan.now))
        adopt(plan, bundle_id, state.report, fingerprint_of(job))
        plan.after.append(delete(job))
        return
    seconds = float(state.report.seconds)
    plan.record_end(bundle_id, state.reason, seconds * gpus, seconds)
    adopt(plan, bundle_id, state.report, fingerprint_of(job))
    proofs.record_cold_start(plan, bundle_id, measure_start(pod, SEAL_CONTAINER))
    bundle = replace(plan.bundles[bundle_id], gpus=gpus)
    image = (container_statuses(pod).get(engine_name(pod)) or {}).get("imageID", "")
    if image:
        bundle = replace(bundle, engine_image=image.removeprefix("docker-pullable://"))
    plan.put(bundle)
    end_jobs(plan, bundle_id, [job])


# --- starting


def refuse_untunable(plan: PlanBuilder, bundles: Iterable[DesiredBundle]) -> None:
    """Refuse what cannot be tuned as a copy, before any Job.

    A template, or spec.tuning.allow, that was changed takes it back.
    """
    for desired in bundles:
        bundle = plan.ensure(desired.id, desired.inputs.fingerprint, desired.target.name)
        refusal = desired.refusal
        if (
            refusal is not None
            and bundle.state in (PENDING, PROVING, REFUSED)
            and not plan.is_live(desired.id)
        ):
            if bundle.state == PROVING:
                proofs.forget_proofs(plan, desired.id)
            bundle = plan.set_state(desired.id, REFUSED, refusal.reason, refusal.message)
            # Allowed again, an attempt's check finds it on the claim.
            plan.put(replace(bundle, digest=None))
        elif refusal is None and bundle.state == REFUSED and bundle.reason in REFUSED_BY_TEMPLATE:
            plan.set_state(desired.id, PENDING, reasons.QUEUED, "")


def start_attempts(
    plan: PlanBuilder,
    bundles: tuple[DesiredBundle, ...],
    storage: Storage,
    pods: Sequence[Consumer],
) -> None:
    """Start an attempt, a proof or an import of each bundle for which nothing blocks it.

    Bundles that pods wait for come first: one attempt of a target runs at a time.
    A bundle for which something does gets that as its reason and message (start_rules.py).
    """
    waited_for = {pod.bundle for pod in pods if pod.is_held}
    started: set[str] = set()
    candidates = [
        Candidate(plan, desired, bundles, storage, started, desired.id in waited_for)
        for desired in bundles
    ]
    _withdraw_suspended(plan, candidates)
    for candidate in _rank(candidates):
        desired, state = candidate.desired, candidate.bundle.state
        if state not in (PENDING, PROVING):
            continue
        blocked = find_blocker(candidate)
        if blocked is BY_IMPORT and not imports.start_import(plan, desired, storage):
            blocked = find_blocker(candidate)  # nothing can be imported: it is tuned
        if blocked is not None:
            plan.requeue_at(blocked.requeue_at)
            if blocked.reason is not None:
                plan.set_state(desired.id, state, blocked.reason, blocked.message)
            if blocked.reason == reasons.WAITING_FOR_TURN:
                plan.waits_for_turn = True
        else:
            start = proofs.start_proof if state == PROVING else _start_attempt
            if start(plan, desired):
                started.add(desired.id)


def _rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates, first those whose bundles pods wait for."""
    return sorted(candidates, key=lambda candidate: not candidate.has_held_pods)


def _withdraw_suspended(plan: PlanBuilder, candidates: Iterable[Candidate]) -> None:
    """Delete suspended attempts that no pod waits for, where pods wait for another of the target.

    Such a Job holds no GPU, and would go first only because it is older. It begins again later, as
    the same attempt. Not where something else keeps the other one from starting: it would begin
    again at once, and be deleted again.
    """
    waiting = [candidate for candidate in candidates if candidate.has_held_pods]
    waited_for = {candidate.bundle.id for candidate in waiting}
    targets = {
        candidate.desired.target.name
        for candidate in waiting
        if candidate.bundle.state == PENDING
        and find_blocker(candidate, but=(another_runs, waits_for_turn)) is None
    }
    for bundle in list(plan.bundles.values()):
        if bundle.target not in targets or bundle.id in waited_for:
            continue
        job = plan.find_jobs(bundle.id).get(bundle.attempts)
        if (
            not bundle.has_open_attempt
            or job is None
            or not is_suspended(job)
            or any(not is_finished(pod) for pod in plan.find_pods(bundle.id))
        ):
            continue
        plan.after.append(delete(job))
        plan.put(replace(bundle, attempts=bundle.failed_number))
        message = f"attempt {bundle.attempts} was suspended; pods wait for another bundle"
        plan.set_state(bundle.id, PENDING, reasons.QUEUED, message)
        plan.requeue_at(plan.now)


def _start_attempt(plan: PlanBuilder, desired: DesiredBundle) -> bool:
    """Create the next attempt's Job; return False where that was not tried."""
    observed, number = plan.observed, plan.bundles[desired.id].attempts + 1
    created = f"attempt {number} of {plan.spec.max_attempts}: the Job is created"
    if not agent_configmap.exists(plan):  # the next run, at once, makes the Job
        message = agent_configmap.find_refusal(plan)
        plan.set_state(
            desired.id,
            PENDING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or created,
        )
        return False
    try:
        example = observed.examples.get(desired.origin_key)
        job = build_tuning_job(
            observed.key,
            plan.cache,
            desired.template,
            desired.target,
            number,
            observed.settings,
            observed.agent_name,
            example,
            find_nodes(plan, desired),
            observed.device_claims,
        )
    except Refused as refused:
        plan.set_state(desired.id, REFUSED, refused.reason, refused.message)
        return False
    code = create_job(plan, desired.id, job, created)
    if code in (400, 422):
        message = plan.bundles[desired.id].message
        plan.set_state(desired.id, REFUSED, reasons.SOURCE_INVALID, message)
    return True


def end_unwanted(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """End attempts of what nothing wants any more, which gives their GPUs back.

    Such a bundle leaves the status once its attempt has ended, unless its failure is remembered.
    """
    ids = {desired.id for desired in bundles}
    remembered = retries.find_remembered(plan, bundles)
    for bundle in list(plan.bundles.values()):
        if bundle.id in ids or bundle.state in (SEALED, RETIRED):
            if bundle.unwanted_since is not None:
                plan.put(replace(bundle, unwanted_since=None))
            if bundle.id not in ids:
                end_jobs(plan, bundle.id, plan.find_jobs(bundle.id, PROOF).values())
            continue
        if _may_be_wanted_again(plan, bundle, bundles):
            continue
        for job in list_attempt_jobs(plan, bundle.id):
            plan.end_job(job)
        is_final = bundle.state in (FAILED, REFUSED)
        if bundle.id in remembered and (is_final or not plan.is_live(bundle.id)):
            retries.remember(plan, bundle.id)
        elif bundle.is_withheld:
            _give_up(plan, bundle)
        elif plan.is_live(bundle.id):
            plan.record_superseded(bundle.id)
            plan.set_state(
                bundle.id,
                PENDING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its attempt ends",
            )
        elif bundle.undeliverable is None:
            # With that mark it stays: its pods were recreated without it, and would get it again.
            plan.record_superseded(bundle.id)
            plan.delete_jobs(bundle.id)  # desired again, it has no failed attempt
            plan.remove(bundle.id)


def _give_up(plan: PlanBuilder, bundle: BundleStatus) -> None:
    """Give up a bundle on the claim that was given to no pod: its folder is deleted like any."""
    if plan.is_live(bundle.id):
        if bundle.state == PROVING:
            plan.record_superseded(bundle.id)
            plan.set_state(
                bundle.id,
                PROVING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its proof ends",
            )
        return
    proofs.forget_proofs(plan, bundle.id)
    retention.give_up(plan, bundle.id)


def _may_be_wanted_again(
    plan: PlanBuilder, bundle: BundleStatus, bundles: tuple[DesiredBundle, ...]
) -> bool:
    """Return whether to wait, since pods may need the bundle again soon.

    Where pods are the source, a pod that is evicted or restarted is missing for a while, and its
    attempt shall not begin again. Not where there is a newer revision, or the cache names a source.
    """
    if plan.observed.source is not None:
        return False
    started = max(
        (job["metadata"]["creationTimestamp"] for job in list_attempt_jobs(plan, bundle.id)),
        default="",
    )
    if any(
        desired.is_current
        and desired.target.name == bundle.target
        and desired.created_at > started > ""
        for desired in bundles
    ):
        return False
    since = bundle.unwanted_since
    if since is None:
        since = plan.timestamp
        plan.put(replace(bundle, unwanted_since=since))
    until = since + UNWANTED_SECONDS
    plan.requeue_at(until if until > plan.now else None)
    return plan.now < until
