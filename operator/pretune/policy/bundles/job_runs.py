"""What attempts and proofs share: each is a Job of ours with one pod at a time.

It is created once, read at each reconcile, and ended when the bundle's status records its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from pretune.api import reasons
from pretune.api.names import PENDING, PROOF, TUNING
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import (
    LINGER_SECONDS,
    Attempt,
    has_reported,
    reported_at,
)
from pretune.policy.bundles.disruptions import has_lost_pod
from pretune.policy.bundles.failed_pods import find_cause, keep_failed_pod
from pretune.policy.model import Create
from pretune.policy.objects import is_ended_by_us, owner_uid
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    is_finished,
    is_job_finished,
)


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


def was_ended_by_us(job: Object | None, pod: Object | None) -> bool:
    """Return whether we have ended an attempt before it reported: how its pod ends is our doing."""
    has_ended = job is not None and is_ended_by_us(job)
    return has_ended and not (pod is not None and has_reported(pod))


def observe_attempt(
    plan: PlanBuilder,
    bundle_id: str,
    number: int,
    job: Object | None,
    pod: Object | None,
    cold_seconds: float = 0.0,
) -> Attempt:
    """Return the attempt, or proof, of this number, with what its state depends on.

    cold_seconds: as in Attempt.
    """
    bundle = plan.bundles[bundle_id]
    return Attempt(
        number,
        job,
        pod,
        _find_events(plan, job, pod),
        bundle.disruptions or 0,
        plan.now,
        cold_seconds,
        has_lost_pod(bundle),
        plan.observed.claim_nodes,
        find_cause(plan, pod),
    )


def _find_events(plan: PlanBuilder, job: Object | None, pod: Object | None) -> tuple[Object, ...]:
    """Return the events of an attempt's pod and of its Job, as far as they were read."""
    observed = plan.observed
    of_job = observed.job_events.get(job["metadata"]["uid"], ()) if job else ()
    of_pod = observed.pod_events.get(pod["metadata"]["uid"], ()) if pod else ()
    return (*of_job, *of_pod)


def end_jobs(plan: PlanBuilder, bundle_id: str, jobs: Iterable[Object]) -> None:
    """End the Jobs of attempts that the status records as finished.

    After a report the pod has some time to end first. The pod of an attempt that failed stays, with
    its logs, for as long as its Job (FINISHED_TTL_SECONDS).
    """
    for job in jobs:
        if is_job_finished(job):
            continue
        pod = pod_of(plan, bundle_id, job)
        if pod is not None and keep_failed_pod(plan, plan.bundles[bundle_id], pod):
            continue
        reported = reported_at(pod) if pod is not None else None
        if reported is not None and plan.now < reported + LINGER_SECONDS:
            plan.requeue_at(reported + LINGER_SECONDS)
        else:
            plan.end_job(job)


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
