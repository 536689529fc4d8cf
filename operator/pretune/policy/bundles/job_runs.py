"""What attempts and proofs share: each is a Job of ours with one pod at a time.

It is created once, read at each reconcile, and ended when the bundle's status records its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import ATTEMPT, BUNDLE, PENDING, PROOF, PROVING, ROLE, TUNING
from pretune.api.status import BundleStatus, CacheStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import (
    LINGER_SECONDS,
    AttemptState,
    has_reported,
    reported_at,
)
from pretune.policy.model import Create, FailedStart, Observed, Patch
from pretune.policy.objects import attempt_number, delete, label, owner_uid, reference
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    container_statuses,
    engine_name,
    find_last_termination,
    find_termination,
    gpu_seconds,
    is_deleted,
    is_disrupted,
    is_ended_by_suspension,
    is_finished,
    is_job_failed,
    is_job_finished,
    is_suspended,
    suspended_or_resumed_at,
)

RESUMED_SECONDS = 30.0  # from a Job's resumption to its first pod, at most
# An engine that failed sooner than this is let fail once more before its pod is ended. The kubelet
# starts it again in any case, within a second, and keeps the log of the last start only: so that
# log is whole.
SECOND_START_SECONDS = 120.0
SECOND_START_SLACK_SECONDS = 30.0
# Before a Job's uid, in place of a pod's in the status: that Job was created again.
_REPEATED = "repeated:"
KEPT_END_SECONDS = 120.0  # that a pod may take to end; then its Job is ended, and the pod deleted


def list_attempt_jobs(plan: PlanBuilder, bundle_id: str) -> list[Object]:
    """Return our Jobs that tune or prove a bundle, where it is to be."""
    return [job for role in (TUNING, PROOF) for job in plan.find_jobs(bundle_id, role).values()]


def pod_of(plan: PlanBuilder, bundle_id: str, job: Object | None) -> Object | None:
    """Return the pod of an attempt's Job; None: it has none, or there is no Job.

    Of several: one that has reported (not one that was killed while it sealed), else the newest
    that lives, else the newest.
    """
    if job is None:
        return None
    pods = [pod for pod in plan.find_pods(bundle_id) if owner_uid(pod) == job["metadata"]["uid"]]
    return max(
        pods,
        key=lambda pod: (
            has_reported(pod),
            not is_finished(pod),
            pod["metadata"]["creationTimestamp"],
            pod["metadata"]["uid"],
        ),
        default=None,
    )


def find_events(plan: PlanBuilder, job: Object | None, pod: Object | None) -> tuple[Object, ...]:
    """Return the events of an attempt's pod and of its Job, as far as they were read."""
    observed = plan.observed
    of_job = observed.job_events.get(job["metadata"]["uid"], ()) if job else ()
    of_pod = observed.pod_events.get(pod["metadata"]["uid"], ()) if pod else ()
    return (*of_job, *of_pod)


def count_disruptions(
    plan: PlanBuilder, bundle_id: str, job: Object | None, pod: Object | None
) -> None:
    """Record the attempt's pod, or that it has lost one: that had a node, or after a repeat any.

    A pod that a suspension of the Job ends does not count: Kueue may preempt an attempt as often
    as it likes.
    """
    bundle = plan.bundles[bundle_id]
    repeated = _repeated(bundle)
    if job is not None and repeated == job["metadata"]["uid"]:
        return  # it has counted, and is being deleted
    if job is not None and _is_stopped(job, pod):
        if pod is not None and bundle.pod == pod["metadata"]["uid"]:
            plan.record_lost(bundle_id, gpu_seconds(pod, plan.now))
        if not repeated:
            plan.put(replace(plan.bundles[bundle_id], pod=None))
        return
    if pod is None and job is not None and repeated and is_job_failed(job):
        plan.put(replace(bundle, disruptions=(bundle.disruptions or 0) + 1))
        return  # its pod was deleted before it had a node
    if pod is None or not pod["spec"].get("nodeName"):
        return
    uid, lost = pod["metadata"]["uid"], bundle.disruptions or 0
    if (
        bundle.pod not in (None, uid)
        and not repeated
        and not (job is not None and _is_first_since(job, pod))
    ):
        lost += 1
    is_lost = is_disrupted(pod)
    if is_lost and bundle.pod is not None:  # else it has counted already
        lost += 1
        plan.record_lost(bundle_id, gpu_seconds(pod, plan.now))
    bundle = plan.bundles[bundle_id]
    plan.put(replace(bundle, pod=None if is_lost else uid, disruptions=lost or None))


def _is_stopped(job: Object, pod: Object | None) -> bool:
    """Whether a Job is suspended, or its pod ends since it was."""
    return is_suspended(job) if pod is None else is_ended_by_suspension(job, pod)


def _is_first_since(job: Object, pod: Object) -> bool:
    """Whether a Job created this pod when it was resumed.

    So that a suspension counts no more where no reconcile has seen it.
    """
    resumed_at = suspended_or_resumed_at(job)
    created = parse_timestamp(pod["metadata"]["creationTimestamp"])
    return resumed_at is not None and 0 <= created - resumed_at < RESUMED_SECONDS


def repeat(plan: PlanBuilder, bundle_id: str, job: Object, state: AttemptState) -> None:
    """Have the Job of an attempt, or of a proof, created again with its number.

    Its pod was deleted: that counts as a disruption (count_disruptions), and as no attempt. The Job
    and its pod have ended, so that no two of them live.
    """
    repeated = f"{_REPEATED}{job['metadata']['uid']}"
    bundle, number = replace(plan.bundles[bundle_id], pod=repeated), attempt_number(job)
    if label(job, ROLE) == PROOF:
        plan.put(replace(bundle, proofs=number - 1))
        plan.set_state(bundle_id, PROVING, state.reason, f"proof {number}: {state.message}")
    else:
        plan.put(replace(bundle, attempts=number - 1))
        plan.set_state(bundle_id, PENDING, state.reason, f"attempt {number}: {state.message}")
    plan.after.append(delete(job))
    plan.awaiting_claim.add(bundle_id)  # created by the next reconcile, when this one is deleted
    plan.requeue_at(plan.now)


def _repeated(bundle: BundleStatus) -> str:
    """Return the uid of the Job that was created again, if no pod had a node since; ""."""
    pod = bundle.pod or ""
    return pod[len(_REPEATED) :] if pod.startswith(_REPEATED) else ""


def has_lost_pod(bundle: BundleStatus) -> bool:
    """Return whether the last pod of an open attempt was lost, as count_disruptions has seen."""
    return (bundle.pod is None or bool(_repeated(bundle))) and bool(bundle.disruptions)


def find_cause(plan: PlanBuilder, pod: Object | None) -> str:
    """Return why the engine of a pod failed, as its log says; "": unknown."""
    return plan.observed.causes.get(pod["metadata"]["uid"], "") if pod is not None else ""


def list_failed_starts(observed: Observed) -> tuple[FailedStart, ...]:
    """Return the engine starts that have failed, and whose end the status does not record yet."""
    failed = []
    for pod in observed.pods:
        engine = container_statuses(pod).get(engine_name(pod)) or {}
        is_attempt = label(pod, ROLE) in (TUNING, PROOF)
        if is_attempt and find_last_termination(engine) and not has_reported(pod):
            failed.append((pod, engine))
    if not failed or observed.cache is None:
        return ()
    numbers = {
        each.id: each.failed_number for each in CacheStatus.from_cache(observed.cache).bundles
    }
    return tuple(
        FailedStart(
            pod=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            container=engine["name"],
            is_previous=find_termination(engine) is None,
        )
        for pod, engine in failed
        if label(pod, ATTEMPT) != str(numbers.get(label(pod, BUNDLE), 0))
    )


def end_jobs(plan: PlanBuilder, bundle_id: str, jobs: Iterable[Object]) -> None:
    """End the Jobs of attempts that the status records as finished.

    After a report the pod has some time to end first. The pod of an attempt that failed stays, with
    its logs, for as long as its Job (FINISHED_TTL_SECONDS).
    """
    for job in jobs:
        if is_job_finished(job):
            continue
        pod = pod_of(plan, bundle_id, job)
        if pod is not None and _keep_pod(plan, plan.bundles[bundle_id], pod):
            continue
        reported = reported_at(pod) if pod is not None else None
        if reported is not None and plan.now < reported + LINGER_SECONDS:
            plan.requeue_at(reported + LINGER_SECONDS)
        else:
            plan.end_job(job)


def _keep_pod(plan: PlanBuilder, bundle: BundleStatus, pod: Object) -> bool:
    """End the pod of a failed attempt so that it stays to be read; return whether that goes on.

    By its own deadline: that of the Job would delete it. Its containers end, so that it holds no
    GPU, and with it the Job ends by itself.
    """
    failure = bundle.last_failure
    number = str(bundle.failed_number)
    if failure is None or label(pod, ATTEMPT) != number or is_deleted(pod):
        return False
    if not (pod.get("spec") or {}).get("nodeName"):
        return False  # nothing has run in it
    begin = _second_start_ends_at(pod, failure.at)
    until = begin + KEPT_END_SECONDS
    if plan.now >= until:
        return False
    if plan.now < begin:
        plan.requeue_at(begin)
        return True
    plan.requeue_at(until)
    if not is_finished(pod) and (pod.get("spec") or {}).get("activeDeadlineSeconds") != 1:
        patch = {"spec": {"activeDeadlineSeconds": 1}}
        name = f"end Pod {pod['metadata']['name']}"
        plan.after.append(Patch(name, reference(pod), patch, is_optional=True))
    return True


def _second_start_ends_at(pod: Object, failed_at: float) -> float:
    """Return until when an engine may fail once more (Unix seconds); failed_at: it need not.

    Nor may it once its second start is ready: seal would publish what two starts have written.
    """
    engine = container_statuses(pod).get(engine_name(pod)) or {}
    end = find_last_termination(engine) or {}
    is_second = (engine.get("restartCount") or 0) + (find_termination(engine) is not None) > 1
    if is_finished(pod) or is_second or engine.get("started"):
        return failed_at
    if not (end.get("startedAt") and end.get("finishedAt")):
        return failed_at
    took = parse_timestamp(end["finishedAt"]) - parse_timestamp(end["startedAt"])
    if took > SECOND_START_SECONDS:
        return failed_at
    return failed_at + took + SECOND_START_SLACK_SECONDS


def create_job(
    plan: PlanBuilder, bundle_id: str, job: Object, message: str, state: str = PENDING
) -> int:
    """Create an attempt's Job, and put its bundle into `state` with how that went.

    message: where it went well. Returns the API server's code; 201 before it was asked.
    """
    name = job["metadata"]["name"]
    action = Create(f"create Job {name}", job)
    plan.actions.append(action)
    outcome = plan.outcome(action)
    if outcome is None or outcome.code == 201:
        plan.set_state(bundle_id, state, reasons.WAITING_FOR_POD, message)
        return 201
    if outcome.code == 409:
        plan.set_state(
            bundle_id,
            state,
            reasons.NAME_TAKEN,
            f"Job {name} belongs to another object; the attempt starts when that Job is gone",
        )
        plan.requeue_at(plan.now + 10)
    else:
        plan.set_state(bundle_id, state, reasons.POD_REFUSED, outcome.message)
        plan.requeue_at(plan.now + (60 if outcome.code in (400, 422) else 30))
    return outcome.code
