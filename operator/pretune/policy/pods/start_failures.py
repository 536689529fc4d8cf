"""Pods that only we keep from starting: a list of small checks; the first that answers counts.

A check gets a StartingPod and returns a StartFailure. It returns None for a pod that waits for a
GPU, an image or a volume of its own. To add a rule, add a line to START_FAILURE_CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable

from pretune.api.names import BUNDLE
from pretune.api.types import Object
from pretune.policy.pods.mount_failures import cannot_mount, container_cannot_mount, seed_hangs
from pretune.policy.pods.scheduling_failures import never_provisioned, unschedulable
from pretune.policy.pods.seed_failures import seed_cannot_run
from pretune.policy.pods.starting_pod import (
    START_GRACE_SECONDS,
    StartFailure,
    StartingPod,
    may_start,
    seed_cannot_be_created,
    startable_since,
    waits_for_volumes,
)

# Between two reads of events, which are not watched: a quarter of the time that the pod has waited.
MIN_RECHECK_SECONDS = 15.0
MAX_RECHECK_SECONDS = 300.0

START_FAILURE_CHECKS: tuple[Callable[[StartingPod], StartFailure | None], ...] = (
    unschedulable,
    never_provisioned,
    cannot_mount,
    seed_cannot_run,
    seed_hangs,
    container_cannot_mount,
)


def find_start_failure(pod: StartingPod) -> StartFailure | None:
    """Return what of ours keeps a pod from starting, now or from a later time; None: nothing."""
    for check in START_FAILURE_CHECKS:
        failure = check(pod)
        if failure is not None:
            return failure
    return None


def needs_events(pod: Object, now: float) -> bool:
    """Return whether the events of a consumer are worth reading at `now` (Unix seconds).

    It was given a bundle, nothing gates it, and for START_GRACE_SECONDS it has not started: its
    volumes are not mounted, the scheduler names volumes, or seed cannot be created. A pod that
    waits for an image or for other resources is never our storage's fault. controller/project.py
    may have cut the pod down.
    """
    has_bundle = (pod["metadata"].get("annotations") or {}).get(BUNDLE)
    return (
        bool(has_bundle)
        and may_start(pod)
        and (waits_for_volumes(pod) or seed_cannot_be_created(pod))
        and now >= startable_since(pod) + START_GRACE_SECONDS
    )


def next_check_at(pod: StartingPod) -> float | None:
    """Return when to look again at a pod that has no failure yet (Unix seconds).

    Events are not watched. None: what is watched wakes us.
    """
    is_provisioning = not pod.has_node and pod.has_selected_node and pod.claim_phase == "Pending"
    if not (may_start(pod.object) and (is_provisioning or waits_for_volumes(pod.object))):
        return None
    since = startable_since(pod.object)
    wait = max((pod.now - since) / 4, MIN_RECHECK_SECONDS)
    return max(since + START_GRACE_SECONDS, pod.now + min(wait, MAX_RECHECK_SECONDS))
