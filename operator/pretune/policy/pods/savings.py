"""The GPU-seconds that proven bundles saved.

A start counts once: the status remembers until when starts were counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pretune.api.status import BundleStatus
from pretune.api.timestamps import parse_timestamp
from pretune.engines.logs import PARTIAL, TUNED
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer
from pretune.policy.pods.warm_starts import find_observation

OBSERVATION_DELAY_SECONDS = 10.0  # until what happened is observed


def sum_savings(plan: PlanBuilder, pods: Sequence[Consumer]) -> tuple[int | None, float | None]:
    """Return gpuSecondsSaved and savedUntil (Unix seconds); None: nothing was saved yet.

    A start counts if the engine had a proven bundle and was ready within that bundle's coldSeconds.
    It is counted when that time is over, so a pod that flips between ready and not ready counts
    once. Whether it was counted before is decided by the time of its start: starts up to savedUntil
    were counted, and savedUntil moves only when a start counts. A start that tuned by its log saved
    nothing.
    """
    total, until = plan.status.gpu_seconds_saved or 0, plan.status.saved_until
    savings = {
        bundle.id: value
        for bundle in plan.bundles.values()
        if (value := savings_per_start(bundle)) is not None
    }
    counted_until = until if until is not None else -math.inf
    delay = max((cold for _, cold in savings.values()), default=0.0) + OBSERVATION_DELAY_SECONDS
    horizon = math.floor(plan.now - delay)
    has_counted = False
    for pod in pods:
        if pod.given_bundle not in savings or not pod.is_ready or not pod.is_seeded:
            continue
        if not pod.started_at or not pod.ready_at:
            continue
        saving, cold_seconds = savings[pod.given_bundle]
        started_at = parse_timestamp(pod.started_at)
        took = pod.ready_at - started_at
        if started_at <= counted_until or took > cold_seconds or _has_tuned(plan, pod):
            continue
        if started_at > horizon:
            plan.requeue_at(started_at + delay + 1)
        else:
            has_counted, total = True, total + saving
    if has_counted:
        until = float(horizon)
    return (total, until) if until is not None else (None, None)


def _has_tuned(plan: PlanBuilder, pod: Consumer) -> bool:
    """Return whether a pod's log says that it tuned, all or some, however soon it was ready.

    False also where no log was read.
    """
    observation = find_observation(plan, pod)
    return observation is not None and observation.log_summary.result in (TUNED, PARTIAL)


def savings_per_start(bundle: BundleStatus) -> tuple[int, float] | None:
    """Return the GPU-seconds that a start saves, and coldSeconds, of a proven bundle.

    None where it is not proven, or one of its two times is unknown.
    """
    gpus, cold, warm = bundle.gpus, bundle.cold_seconds, bundle.warm_seconds
    if not bundle.proven or not gpus or not cold or warm is None:
        return None
    return gpus * max(0, cold - warm), float(cold)
