"""Pods of an attempt or a proof that are lost through no fault of its own, and what is counted."""

from __future__ import annotations

from dataclasses import replace

from pretune.api.names import PENDING, PROOF, PROVING, ROLE
from pretune.api.status import BundleStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import AttemptState
from pretune.policy.objects import attempt_number, delete, label
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    gpu_seconds,
    is_disrupted,
    is_ended_by_suspension,
    is_job_failed,
    is_suspended,
    suspended_or_resumed_at,
)

RESUMED_SECONDS = 30.0  # from a Job's resumption to its first pod, at most
# Before a Job's uid, in place of a pod's in the status: that Job was created again.
_REPEATED = "repeated:"


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
