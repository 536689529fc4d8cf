"""How consumers' engines started, from their logs: whose log is read, how many were warm.

Level-triggered: a log is worth reading as long as its result is unknown, and a result is counted as
long as its engine runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.status import ConsumerCounts
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, WARM
from pretune.manifests.delivery_modes import find_mode
from pretune.podspec.template import engine_of
from pretune.policy.model import EngineStart, StartObservation
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer
from pretune.policy.pods.retune_causes import find_retune_cause
from pretune.protocol import NO_BUNDLE, NOT_PROVEN

MAX_NAMED_PODS = 3  # that an event names
NOT_PROMISED = (NO_BUNDLE, NOT_PROVEN)  # seed found no bundle to give

# --- whose log is read


def list_readable_starts(pods: Sequence[Consumer]) -> tuple[EngineStart, ...]:
    """Return the engine starts whose logs may be read: of ready consumers that got a bundle."""
    return tuple(_start_of(pod) for pod in pods if _has_readable_log(pod))


def find_observation(plan: PlanBuilder, pod: Consumer) -> StartObservation | None:
    """Return what is known of the start of a consumer's engine; None: nothing yet."""
    return (plan.observed.start_logs or {}).get(_start_of(pod).key)


def _has_readable_log(pod: Consumer) -> bool:
    return (
        pod.is_ready
        and bool(pod.given_bundle and pod.started_at and pod.ready_at)
        and find_mode(pod.mode) is not None
    )


def _start_of(pod: Consumer) -> EngineStart:
    engine = _find_engine(pod)
    return EngineStart(
        pod=pod.name,
        uid=str(pod.pod["metadata"]["uid"]),
        container=pod.engine,
        since=pod.started_at,
        ready=pod.ready_at or 0.0,
        probed=engine is None or "readinessProbe" in engine or "startupProbe" in engine,
        engine=engine,
    )


def _find_engine(pod: Consumer) -> Object | None:
    """Return the engine's container as the pod's author wrote it; None: unknown."""
    if pod.origin is None or isinstance(pod.origin.template, Refused) or not pod.engine:
        return None
    try:
        return engine_of(pod.origin.template, pod.engine)
    except Refused:
        return None


# --- how many were warm


def count_warm_starts(plan: PlanBuilder, pods: Sequence[Consumer]) -> ConsumerCounts:
    """Return how many started warm, in part, or tuned; nothing where no logs are read.

    The counts stay while a result is still to come: else each start of the controller, and each new
    pod, would take back what was reported.
    """
    if plan.observed.start_logs is None:
        return ConsumerCounts()
    found = [find_observation(plan, pod) for pod in pods if _has_readable_log(pod)]
    if None in found:
        before = plan.status.consumers or ConsumerCounts()
        return ConsumerCounts(warm=before.warm, partial=before.partial, tuned=before.tuned)
    results = [each.log_summary.result for each in found if each is not None]
    return ConsumerCounts(
        warm=results.count(WARM), partial=results.count(PARTIAL), tuned=results.count(TUNED)
    )


def emit_retuned_events(
    plan: PlanBuilder, pods: Sequence[Consumer], counts: ConsumerCounts
) -> None:
    """Add a TunedAgain event for each bundle and cause, where the status counts more such pods.

    counts: status.consumers, as it will be written.
    """
    before = plan.status.consumers or ConsumerCounts()
    has_more_tuned = (counts.tuned or 0) > (before.tuned or 0)
    has_more_partial = (counts.partial or 0) > (before.partial or 0)
    if not has_more_tuned and not has_more_partial:
        return
    observations = [
        (pod, observation)
        for pod in pods
        if _has_readable_log(pod) and (observation := find_observation(plan, pod)) is not None
    ]
    warm_folders: dict[str, set[str]] = {}  # by bundle: where warm engines found it
    for pod, observation in observations:
        if observation.log_summary.result == WARM:
            folders = warm_folders.setdefault(pod.given_bundle, set())
            folders.update(observation.log_summary.folders)
    groups: dict[tuple[str, str, str], list[Consumer]] = {}
    for pod, observation in observations:
        result = observation.log_summary.result
        if result in (TUNED, PARTIAL) and _was_promised_bundle(pod):
            bundle = plan.bundles.get(pod.given_bundle)
            folders = warm_folders.get(pod.given_bundle, set())
            cause = find_retune_cause(pod, _find_engine(pod), observation, bundle, folders)
            groups.setdefault((pod.given_bundle, result, cause), []).append(pod)
    for (bundle_id, result, cause), group in sorted(groups.items()):
        extent = "all" if result == TUNED else "some"
        message = (
            f"bundle {bundle_id}: {_list_names(group)} had it and tuned {extent} of it again,"
            f" by the engine's log: {cause}"
        )
        plan.warn(reasons.TUNED_AGAIN, message)


def _was_promised_bundle(pod: Consumer) -> bool:
    """Return whether a pod had its bundle, or would have, if seed had not refused it."""
    return pod.is_mounted or (
        pod.seed_report is not None and pod.seed_report.reason not in NOT_PROMISED
    )


def _list_names(pods: Sequence[Consumer]) -> str:
    names = ", ".join(pod.name for pod in pods[:MAX_NAMED_PODS])
    rest = len(pods) - MAX_NAMED_PODS
    kind = "pod" if len(pods) == 1 else "pods"
    return f"{kind} {names}" + (f" and {rest} more" if rest > 0 else "")
