"""Attempts: how those that were started ended, and which one, or which proof, starts now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import (
    BUNDLE,
    PENDING,
    PROOF,
    PROVING,
    REFUSED,
    RETIRED,
    SEAL_CONTAINER,
    SEALED,
    TUNING,
    TUNING_STATE,
)
from pretune.api.reasons import Refused
from pretune.api.status import BundleStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.job import build_tuning_job
from pretune.podspec.template import count_gpus
from pretune.policy.bundles import attempt_state as attempts
from pretune.policy.bundles import imports, proofs, retention
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import Attempt, AttemptState, is_finished
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.job_runs import count_disruptions, create_job, end_jobs, pod_of
from pretune.policy.bundles.retries import next_try, record_failed_attempt
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.model import FOUND
from pretune.policy.objects import delete, fingerprint_of, label, owner_uid
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer

# Seconds that a bundle is kept in the making though no pod asks for it.
UNWANTED_SECONDS = 120.0
# Seconds after a seal in which a rollout may still replace the pods of an older revision.
ROLLOUT_SECONDS = 300.0

# Reasons that a pod template alone tells of.
REFUSED_BY_TEMPLATE = frozenset(
    {
        reasons.MULTI_POD_ENGINE,
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
    for job in plan.elsewhere:
        plan.after.append(delete(job))
        bundle = plan.bundles.get(label(job, BUNDLE))
        if bundle is not None and bundle.state in (PENDING, TUNING_STATE):
            plan.forget(bundle.id, "spec.storage was changed")
    for bundle_id in sorted(plan.tried() | set(plan.bundles)):
        jobs = plan.attempts(bundle_id)
        if bundle_id not in plan.bundles:
            if bundle_id not in ids and not plan.is_live(bundle_id):
                continue  # the finished Job of a bundle that the status has forgotten
            known = jobs or plan.attempts(bundle_id, PROOF)
            plan.ensure(bundle_id, fingerprint_of(known[max(known)]))
        bundle = plan.bundles[bundle_id]
        bundle = plan.put(replace(bundle, attempts=max([bundle.attempts, *jobs])))
        if bundle.has_open_attempt:
            _read_attempt(plan, bundle_id, jobs.get(bundle.attempts))
        else:
            end_jobs(plan, bundle_id, jobs.values())
    imports.process_finished_imports(plan)


def _read_attempt(plan: PlanBuilder, bundle_id: str, job: Object | None) -> None:
    pod = pod_of(plan, bundle_id, job)
    count_disruptions(plan, bundle_id, pod)
    bundle = plan.bundles[bundle_id]
    number = bundle.attempts
    if job is None and plan.is_live(bundle_id):
        plan.set_state(
            bundle_id,
            PENDING,
            reasons.WAITING_FOR_POD,
            f"attempt {number}: its Job is gone; waiting for its pod to end",
        )
        return
    events = plan.observed.job_events.get(job["metadata"]["uid"], ()) if job else ()
    state = attempts.read(Attempt(number, job, pod, events, bundle.disruptions or 0, plan.now))
    plan.requeue_at(state.look)
    if state.state != "Finished":
        message = f"attempt {number} of {plan.spec.max_attempts}: {state.message}"
        plan.set_state(bundle_id, state.state, state.reason, message)
        return
    if state.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    if state.report is not None and state.reason in (reasons.SEALED, reasons.NOTHING_TO_TUNE):
        _record_sealed(plan, bundle_id, state, job, pod)
        return
    record_failed_attempt(plan, bundle_id, state.reason, state.message)
    if job is not None:
        plan.end(job)


def _record_sealed(
    plan: PlanBuilder,
    bundle_id: str,
    state: AttemptState,
    job: Object | None,
    pod: Object | None,
) -> None:
    assert state.report is not None and pod is not None and job is not None
    gpus = count_gpus(attempts.engine_of_pod(pod))
    if state.report.by == "check":  # found on the claim: the engine was never started
        plan.record_end(bundle_id, FOUND, attempts.gpu_seconds(pod, plan.now))
        adopt(plan, bundle_id, state.report, fingerprint_of(job))
        plan.after.append(delete(job))
        return
    seconds = float(state.report.seconds)
    plan.record_end(bundle_id, state.reason, seconds * gpus, seconds)
    adopt(plan, bundle_id, state.report, fingerprint_of(job))
    proofs.record_cold_start(plan, bundle_id, attempts.start_seconds(pod, SEAL_CONTAINER))
    bundle = replace(plan.bundles[bundle_id], gpus=gpus)
    image = (attempts.statuses(pod).get(attempts.engine_name(pod)) or {}).get("imageID", "")
    if image:
        bundle = replace(bundle, engine_image=image.removeprefix("docker-pullable://"))
    plan.put(bundle)
    end_jobs(plan, bundle_id, [job])


# --- starting


def refuse(plan: PlanBuilder, bundles: Iterable[DesiredBundle]) -> None:
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


def start(
    plan: PlanBuilder,
    bundles: tuple[DesiredBundle, ...],
    storage: Storage,
    pods: Sequence[Consumer],
) -> None:
    """At most one attempt per target, and one that occupies a node per cache; what only waits for a node holds up nobody."""
    waited_for = {pod.bundle for pod in pods if pod.is_held}
    for desired in bundles:
        bundle = plan.bundles[desired.id]
        state = bundle.state
        if state not in (PENDING, PROVING) or desired.id in plan.asking:
            continue
        if bundle.has_open_attempt or bundle.has_open_proof:
            continue  # its attempt lives, or only the claim knows what became of it
        if plan.is_live(desired.id):
            _wait_for_end(plan, desired.id)
        elif plan.spec.suspend:
            plan.set_state(desired.id, state, reasons.SUSPENDED, "spec.suspend is true")
        elif not storage.ready:
            plan.set_state(desired.id, state, reasons.WAITING_FOR_CLAIM, storage.message)
        elif state == PENDING and imports.start_import_if_requested(plan, desired, storage):
            continue  # what a person has already
        elif next_try(plan.bundles[desired.id]) > plan.now:
            plan.requeue_at(next_try(plan.bundles[desired.id]))
        elif busy := _busy(plan, desired):
            plan.set_state(desired.id, state, reasons.QUEUED, f"waits for {busy}")
        elif desired.id not in waited_for and (newer := _rollout(plan, desired, bundles)):
            plan.set_state(
                desired.id,
                state,
                reasons.QUEUED,
                f"waits for the rollout to {newer}: the pods that need it may be on their way out",
            )
        elif state == PROVING:
            proofs.begin(plan, desired)
        else:
            _create(plan, desired)


def _wait_for_end(plan: PlanBuilder, bundle_id: str) -> None:
    """Our own last attempt ends by itself. Somebody else's of that bundle is said: no report of it counts."""
    ours = {job["metadata"]["uid"] for job in _jobs(plan, bundle_id)}
    living = [
        pod for pod in plan.pods(bundle_id) if not is_finished(pod) and owner_uid(pod) not in ours
    ]
    if living or not ours:
        names = (
            ", ".join(sorted(f"pod {pod['metadata']['name']}" for pod in living))
            or "its Job is not deleted yet"
        )
        plan.set_state(
            bundle_id,
            plan.bundles[bundle_id].state,
            reasons.NAME_TAKEN,
            f"an attempt that is not this cache's still lives: {names}",
        )
    ends = [
        parse_timestamp(since) + attempts.LOST
        for pod in plan.pods(bundle_id)
        if (since := pod["metadata"].get("deletionTimestamp"))
    ]
    plan.requeue_at(min((when for when in ends if when > plan.now), default=plan.now + 60))


def _busy(plan: PlanBuilder, desired: DesiredBundle) -> str | None:
    """The bundle whose attempt goes first."""
    for other, bundle in plan.bundles.items():
        if other == desired.id or not (plan.is_live(other) or other in plan.started):
            continue
        waits = bundle.state in (PENDING, PROVING) and bundle.reason in (
            reasons.WAITING_FOR_NODE,
            reasons.POD_REFUSED,
            reasons.QUEUED,
        )
        if bundle.target == desired.target.name or not waits:
            return other
    return None


def _rollout(
    plan: PlanBuilder, desired: DesiredBundle, bundles: Iterable[DesiredBundle]
) -> str | None:
    """The newest bundle, while pods are on their way to it: from its wish until ROLLOUT_SECONDS after its seal, or its proof."""
    for newest in bundles:
        bundle = plan.bundles[newest.id]
        if desired.current or not newest.current or newest.target.name != desired.target.name:
            continue
        until = 0.0
        if bundle.state == SEALED and bundle.sealed_at is not None:
            until = _given_since(plan, bundle, bundle.sealed_at) + ROLLOUT_SECONDS
        if bundle.state in (PENDING, TUNING_STATE, PROVING) or plan.now < until:
            plan.requeue_at(until or None)
            return newest.id
    return None


def _given_since(plan: PlanBuilder, bundle: BundleStatus, sealed_at: float) -> float:
    """Since when pods are given a bundle (Unix seconds): its seal; if it was to be proven first, about the time that Ready became True."""
    if not bundle.proven:
        return sealed_at
    if plan.state_before(bundle.id) != SEALED:
        return plan.now
    ready = plan.status.condition("Ready")
    if ready is None or ready.status != "True":
        return sealed_at
    return max(sealed_at, ready.last_transition_time)


def _create(plan: PlanBuilder, desired: DesiredBundle) -> None:
    observed, number = plan.observed, plan.bundles[desired.id].attempts + 1
    created = f"attempt {number} of {plan.spec.max_attempts}: the Job is made"
    if not agent_configmap.exists(plan):  # the next run, at once, makes the Job
        message = agent_configmap.find_refusal(plan)
        plan.set_state(
            desired.id,
            PENDING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or created,
        )
        return
    try:
        example = observed.examples.get(desired.origin)
        job = build_tuning_job(
            observed.key,
            plan.cache,
            desired.template,
            desired.target,
            number,
            observed.settings,
            observed.agent_name,
            example,
        )
    except Refused as refused:
        plan.set_state(desired.id, REFUSED, refused.reason, refused.message)
        return
    code = create_job(plan, desired.id, job, created)
    if code in (400, 422):
        message = plan.bundles[desired.id].message
        plan.set_state(desired.id, REFUSED, reasons.SOURCE_INVALID, message)


def supersede(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """End attempts of what nothing wants any more, which gives their GPUs back.

    Such a bundle leaves the status once its attempt has ended.
    """
    ids = {desired.id for desired in bundles}
    for bundle in list(plan.bundles.values()):
        if bundle.id in ids or bundle.state in (SEALED, RETIRED):
            plan.put(replace(bundle, unwanted_since=None))
            if bundle.id not in ids:
                end_jobs(plan, bundle.id, plan.attempts(bundle.id, PROOF).values())
            continue
        if _may_be_wanted_again(plan, bundle, bundles):
            continue
        for job in _jobs(plan, bundle.id):
            plan.end(job)
        if bundle.is_withheld:
            _give_up(plan, bundle)
        elif plan.is_live(bundle.id):
            plan.record_superseded(bundle.id)
            plan.set_state(
                bundle.id,
                PENDING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its attempt ends",
            )
        elif (
            bundle.undeliverable is None
        ):  # else its pods, which come back without us, would be given it again
            plan.record_superseded(bundle.id)
            plan.delete_jobs(bundle.id)  # wanted again it is no attempt that failed
            plan.remove(bundle.id)


def _give_up(plan: PlanBuilder, bundle: BundleStatus) -> None:
    """Give up a bundle that is on the claim and was given to no pod: its folder goes like any other's."""
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


def _jobs(plan: PlanBuilder, bundle_id: str) -> list[Object]:
    return [job for role in (TUNING, PROOF) for job in plan.attempts(bundle_id, role).values()]


def _may_be_wanted_again(
    plan: PlanBuilder, bundle: BundleStatus, bundles: tuple[DesiredBundle, ...]
) -> bool:
    """Where pods are the source: one that is evicted or restarted is missing for a while, and what it needs is not to be tuned anew.
    A newer revision, and a source that was changed, are clear words."""
    if plan.observed.source is not None:
        return False
    started = max(
        (job["metadata"]["creationTimestamp"] for job in _jobs(plan, bundle.id)), default=""
    )
    if any(
        desired.current and desired.target.name == bundle.target and desired.made > started > ""
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
