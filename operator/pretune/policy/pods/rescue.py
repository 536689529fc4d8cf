"""Rescue of pods that only we keep from starting.

Their bundle is marked undeliverable and they are deleted; their controllers recreate them, without
the bundle. start_failures.py says what of ours keeps a pod from starting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.status import BundleStatus, Undeliverable
from pretune.api.types import Object
from pretune.policy.model import Action, Delete
from pretune.policy.objects import owner_uid, reference
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import is_finished
from pretune.policy.pods.consumers import Consumer
from pretune.policy.pods.start_failures import find_start_failure, needs_events, next_check_at
from pretune.policy.pods.starting_pod import StartFailure, StartingPod, seed_cannot_be_created

# A mark expires, since only a pod can try whether its cause is gone. A try costs that pod a minute
# or two.
MARK_SECONDS = 3600.0  # a server that was away may be back
# An image stays as it is. But a runtime is repaired, a tag moves, and the failure may have been one
# node's.
SEED_MARK_SECONDS = 6 * 3600.0
MAX_NAMED_PODS = 5  # that an event names

StuckPod = tuple[Consumer, StartFailure]


def rescue(plan: PlanBuilder, pods: Sequence[Consumer]) -> None:
    """Mark the bundles that pods cannot start with, and delete those pods that are recreated.

    The status is written before the pods are deleted, so the webhook gives nothing to those that
    come after them.
    """
    _expire_marks(plan)
    stuck: dict[str, list[StuckPod]] = {}
    unread: dict[str, list[Consumer]] = {}
    for pod in pods:
        is_gated = bool(pod.pod["spec"].get("schedulingGates"))
        is_deleted = bool(pod.pod["metadata"].get("deletionTimestamp"))
        if is_gated or is_deleted or not pod.given_bundle or pod.is_ready:
            continue
        failure = _find_due_failure(plan, pod)
        if failure is not None:
            stuck.setdefault(pod.given_bundle, []).append((pod, failure))
        elif _is_unread(plan, pod.pod):
            unread.setdefault(pod.given_bundle, []).append(pod)
    for bundle_id in sorted({*stuck, *unread}):
        _rescue_pods(plan, bundle_id, stuck.get(bundle_id, []), unread.get(bundle_id, []))


def _expire_marks(plan: PlanBuilder) -> None:
    """Remove the marks whose cause may be gone; requeue when the next one expires."""
    for bundle in list(plan.bundles.values()):
        if bundle.undeliverable is None:
            continue
        if _may_be_repaired(plan, bundle, bundle.undeliverable):
            plan.put(replace(bundle, undeliverable=None))
        else:
            plan.requeue_at(_expiry(bundle.undeliverable))


def _is_unread(plan: PlanBuilder, pod: Object) -> bool:
    """Return whether a pod waits for volumes, and the events that say for which were not read."""
    return (
        pod["metadata"]["uid"] not in plan.observed.pod_events
        and needs_events(pod, plan.now)
        and not seed_cannot_be_created(pod)
    )


def _find_due_failure(plan: PlanBuilder, consumer: Consumer) -> StartFailure | None:
    """Return a pod's failure, if it counts by now; else requeue for when it may."""
    observed = plan.observed
    events = observed.pod_events.get(consumer.pod["metadata"]["uid"])
    pod = StartingPod(
        consumer.pod, events, observed.claim, observed.claim_events, plan.claim_name, plan.now
    )
    failure = find_start_failure(pod)
    if failure is not None and plan.now >= failure.due:
        return failure
    plan.requeue_at(failure.due if failure is not None else next_check_at(pod))
    return None


def _rescue_pods(
    plan: PlanBuilder, bundle_id: str, stuck: Sequence[StuckPod], unread: Sequence[Consumer]
) -> None:
    """Mark a bundle, delete the pods that a controller recreates, and add the event.

    unread: pods that wait for volumes like those of the stuck ones. Their events were not read:
    there are many such pods.
    """
    bundle = plan.bundles.get(bundle_id)
    failure = _find_failure_of_bundle(plan, bundle, stuck)
    mark = bundle.undeliverable if bundle is not None else None
    is_marked_now = False
    if bundle is not None and failure is not None and mark is None:
        uid = (plan.observed.claim or {"metadata": {}})["metadata"].get("uid")
        mark = Undeliverable(failure.reason, failure.message, plan.timestamp, uid)
        plan.put(replace(bundle, undeliverable=mark))
        is_marked_now = True
    pods = [pod for pod, _ in stuck]
    if mark is not None and mark.reason != reasons.SEED_CANNOT_RUN:
        pods += unread
    owned = [pod for pod in pods if owner_uid(pod.pod) and not is_finished(pod.pod)]
    plan.after += [delete_stuck_pod(pod.pod) for pod in owned]
    reported = pods if is_marked_now else owned
    if not reported:
        return
    cause = failure or (stuck[0][1] if stuck else None) or mark
    assert cause is not None
    plan.warn(
        reasons.RESCUED,
        f"bundle {bundle_id}: {_list_names(reported)} could not start:"
        f" {cause.reason}: {cause.message}; {_describe_remedy(reported)}",
    )


def delete_stuck_pod(pod: Object) -> Action:
    """Return the action that deletes a pod unless it has changed: it may have started since."""
    ref, metadata = reference(pod), pod["metadata"]
    if "resourceVersion" in metadata:
        ref["metadata"]["resourceVersion"] = metadata["resourceVersion"]
    return Delete(f"delete Pod {metadata['name']}", ref)


def _find_failure_of_bundle(
    plan: PlanBuilder, bundle: BundleStatus | None, stuck: Sequence[StuckPod]
) -> StartFailure | None:
    """Return the failure for which the bundle is marked.

    Not that of a pod whose claim is not the cache's any more, nor of one that had ended before the
    bundle was sealed.
    """
    sealed_at = bundle.sealed_at if bundle is not None else None
    for pod, failure in stuck:
        claim = StartingPod(
            pod.pod, None, plan.observed.claim, (), plan.claim_name, plan.now
        ).our_claim
        if failure.reason != reasons.SEED_CANNOT_RUN and claim not in ("", plan.claim_name):
            continue
        if is_finished(pod.pod) and sealed_at is not None and pod.created_at < sealed_at:
            continue
        return failure
    return None


def _may_be_repaired(plan: PlanBuilder, bundle: BundleStatus, mark: Undeliverable) -> bool:
    """Return whether the cause of a mark is gone, or may be.

    There is another claim, it is bound, the bundle was sealed again, or the mark has expired.
    """
    claim = plan.observed.claim
    if plan.now >= _expiry(mark):
        return True
    if claim is None:
        return False
    is_bound = (claim.get("status") or {}).get("phase") == "Bound" and not claim["metadata"].get(
        "deletionTimestamp"
    )
    return (
        mark.claim_uid != claim["metadata"]["uid"]
        or (is_bound and mark.reason in (reasons.CLAIM_PENDING, reasons.CLAIM_LOST))
        or (bundle.sealed_at is not None and bundle.sealed_at > mark.at)
    )


def _expiry(mark: Undeliverable) -> float:
    is_seed = mark.reason == reasons.SEED_CANNOT_RUN
    return mark.at + (SEED_MARK_SECONDS if is_seed else MARK_SECONDS)


def _list_names(pods: Sequence[Consumer]) -> str:
    names = ", ".join(pod.name for pod in pods[:MAX_NAMED_PODS])
    if len(pods) == 1:
        return f"pod {names}"
    more = f" and {len(pods) - MAX_NAMED_PODS} more" if len(pods) > MAX_NAMED_PODS else ""
    return f"{len(pods)} pods ({names}{more})"


def _describe_remedy(pods: Sequence[Consumer]) -> str:
    """Return what was done with these pods, or what a person has to do."""
    if all(is_finished(pod.pod) for pod in pods):
        return "later pods start without the bundle"
    bare = [pod for pod in pods if not owner_uid(pod.pod)]
    if not bare:
        return "deleted: its replacement starts without the bundle"
    names = "it" if len(pods) == 1 else ", ".join(pod.name for pod in bare[:MAX_NAMED_PODS])
    return (
        f"no controller owns {names}: delete it and recreate it, and it starts without the bundle"
    )
