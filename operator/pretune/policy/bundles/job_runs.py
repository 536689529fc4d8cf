"""What attempts and proofs share: each is a Job of ours with one pod at a time, made once, read, and ended when it is over."""

from __future__ import annotations

from collections.abc import Iterable

from pretune.api import reasons
from pretune.api.names import PENDING
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import (
    LINGER,
    ended_at,
    has_reported,
    is_finished,
    is_job_finished,
)
from pretune.policy.model import Create
from pretune.policy.plan_builder import PlanBuilder, owner_uid


def pod_of(plan: PlanBuilder, record: Object, job: Object | None) -> Object | None:
    """The Job's pod: one that has reported (not one that was killed while it sealed), else the newest that lives, else the newest."""
    if job is None:
        return None
    mine = [pod for pod in plan.pods(record["id"]) if owner_uid(pod) == job["metadata"]["uid"]]
    return max(
        mine,
        key=lambda pod: (
            has_reported(pod),
            not is_finished(pod),
            pod["metadata"]["creationTimestamp"],
            pod["metadata"]["uid"],
        ),
        default=None,
    )


def count_disruptions(record: Object, pod: Object | None) -> None:
    """Pods of one attempt that were lost; one that never had a node lost nothing."""
    if pod is None or not pod["spec"].get("nodeName"):
        return
    uid = pod["metadata"]["uid"]
    if record.get("pod") not in (None, uid):
        record["disruptions"] = record.get("disruptions", 0) + 1
    record["pod"] = uid


def tidy(plan: PlanBuilder, bundle: str, jobs: Iterable[Object]) -> None:
    """End a Job whose attempt is over for the record; after a report its pod may end by itself first."""
    for job in jobs:
        if is_job_finished(job):
            continue
        ends = [
            when
            for pod in plan.pods(bundle)
            if owner_uid(pod) == job["metadata"]["uid"] and (when := ended_at(pod)) is not None
        ]
        if ends and plan.now < max(ends) + LINGER:
            plan.requeue_at(max(ends) + LINGER)
        else:
            plan.end(job)


def create(plan: PlanBuilder, record: Object, job: Object, made: str, state: str = PENDING) -> int:
    """Make it, and say how that went in the record, which is put into `state`. The API server's code; 201 before it was asked."""
    name = job["metadata"]["name"]
    action = Create(f"create Job {name}", job)
    plan.actions.append(action)
    plan.started.add(record["id"])
    outcome = plan.outcome(action)
    if outcome is None or outcome.code == 201:
        plan.say(record, state, reasons.WAITING_FOR_POD, made)
        return 201
    if outcome.code == 409:
        plan.say(
            record,
            state,
            reasons.NAME_TAKEN,
            f"Job {name} belongs to another object; it is waited for",
        )
        plan.requeue_at(plan.now + 10)
    else:
        plan.say(record, state, reasons.POD_REFUSED, outcome.message)
        plan.requeue_at(plan.now + (60 if outcome.code in (400, 422) else 30))
    return outcome.code
