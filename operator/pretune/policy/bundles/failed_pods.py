"""The pod of a failed attempt: it stays to be read, and its engine's log names the cause."""

from __future__ import annotations

from pretune.api.names import ATTEMPT, BUNDLE, PROOF, ROLE, TUNING
from pretune.api.status import BundleStatus, CacheStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import has_reported
from pretune.policy.model import FailedStart, Observed, Patch
from pretune.policy.objects import label, reference
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    container_statuses,
    engine_name,
    find_last_termination,
    find_termination,
    is_deleted,
    is_finished,
)

# An engine that failed sooner than this is let fail once more before its pod is ended. The kubelet
# starts it again in any case, within a second, and keeps the log of the last start only: so that
# log is whole.
SECOND_START_SECONDS = 120.0
SECOND_START_SLACK_SECONDS = 30.0
KEPT_END_SECONDS = 120.0  # that a pod may take to end; then its Job is ended, and the pod deleted


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


def keep_failed_pod(plan: PlanBuilder, bundle: BundleStatus, pod: Object) -> bool:
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
