"""What is left when a cache is gone: it is removed without a finalizer."""

from __future__ import annotations

from pretune.api.names import CACHE, ROLE, WHEN_DELETED
from pretune.api.types import Object
from pretune.podspec.workloads import is_recreated
from pretune.policy.cache import agent_configmap
from pretune.policy.hold.release import RELEASE_RECHECK_SECONDS, release_all
from pretune.policy.model import Action, Observed, Plan
from pretune.policy.objects import annotation, delete, label
from pretune.policy.pods.rescue import delete_stuck_pod
from pretune.policy.pods.start_failures import find_start_failure, next_check_at
from pretune.policy.pods.starting_pod import StartingPod

RECHECK_SECONDS = 30.0  # until a claim or an agent that a pod still names is looked at again
NAMED_RECHECK_SECONDS = 600.0  # until a claim that another cache names is looked at again


def plan_deletion(observed: Observed, now: float) -> Plan:
    """Return the plan for what a cache that is gone left behind. now: Unix seconds.

    The cache's Jobs go by their owner references. Its claim goes once no pod of any phase names it:
    a claim that is being deleted blocks pods that were not scheduled yet. It stays while another
    cache names it in spec.storage.existingClaim. Pods that cannot start with the claim are deleted,
    and recreated without it.
    """
    actions: list[Action] = []
    waits = []  # seconds
    claim = observed.claim
    if claim is not None and _is_ours_to_delete(claim, observed.key.name):
        if observed.claim_caches:
            waits.append(NAMED_RECHECK_SECONDS)
        elif observed.claim_users:
            waits.append(RECHECK_SECONDS)
        else:
            actions.append(delete(claim))
    removed = agent_configmap.delete_unreferenced(observed)
    actions += removed
    if not observed.namespace_has_caches and len(removed) < len(observed.agents):
        waits.append(RECHECK_SECONDS)
    if observed.held:
        waits.append(RELEASE_RECHECK_SECONDS)
    deletions, failure_waits = _delete_stuck_pods(observed, now)
    return Plan(
        tuple(actions),
        after=(*release_all(observed.held, observed), *deletions),
        requeue_after=min([*waits, *failure_waits], default=None),
    )


def _is_ours_to_delete(claim: Object, cache_name: str) -> bool:
    """Return whether a claim was created for the cache, and spec.storage says to delete it."""
    return (
        claim["metadata"]["name"] == f"pretune-{cache_name}"
        and label(claim, CACHE) == cache_name
        and label(claim, ROLE) == "claim"
        and annotation(claim, WHEN_DELETED) == "Delete"
        and not claim["metadata"].get("deletionTimestamp")
    )


def _delete_stuck_pods(observed: Observed, now: float) -> tuple[list[Action], list[float]]:
    """Return deletions of pods that only we keep from starting, and seconds until others may count.

    Only pods that a controller recreates are deleted. There is no event: the cache is gone.
    """
    deletions: list[Action] = []
    waits = []
    for pod in observed.consumers:
        events = observed.pod_events.get(pod["metadata"]["uid"])
        starting = StartingPod(pod, events, observed.claim, (), f"pretune-{observed.key.name}", now)
        failure = find_start_failure(starting)
        due = failure.due if failure is not None else next_check_at(starting)
        if failure is not None and now >= failure.due:
            if is_recreated(pod):
                deletions.append(delete_stuck_pod(pod))
        elif due is not None:
            waits.append(due - now)
    return deletions, waits
