"""Rescue of pods that only we keep from starting.

Their bundle is marked undeliverable and they are deleted; their controllers recreate them, without
the bundle. No pod is deleted without a mark: its replacement would be given the same. A Job's pods
stay, since the Job counts a deleted one as failed. start_failures.py says what of ours keeps a pod
from starting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import PENDING
from pretune.api.status import MAX_BUNDLES, BundleStatus, Undeliverable
from pretune.api.types import Object
from pretune.podspec.workloads import is_recreated
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
# Where pods of one node only could not start, and others run elsewhere: long enough for a
# StatefulSet to recreate the pod, which takes its grace period.
NODE_MARK_SECONDS = 300.0
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
    nodes = {pod.node for pod in pods if pod.node and pod.is_living}
    for bundle_id in sorted({*stuck, *unread}):
        _rescue_pods(plan, bundle_id, stuck.get(bundle_id, []), unread.get(bundle_id, []), nodes)


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
    plan: PlanBuilder,
    bundle_id: str,
    stuck: Sequence[StuckPod],
    unread: Sequence[Consumer],
    nodes: Collection[str],
) -> None:
    """Mark a bundle, delete the pods that a controller recreates, and add the event.

    unread: pods that wait for volumes like those of the stuck ones. Their events were not read:
    there are many such pods. nodes: of all living consumers.
    """
    bundle = plan.bundles.get(bundle_id)
    before = bundle.undeliverable if bundle is not None else None
    found = _find_failure_of_bundle(plan, bundle, stuck)
    failure = found[1] if found is not None else None
    mark = before
    if found is not None:
        mark = _mark(plan, bundle_id, found, _find_node(before, stuck, nodes))
    is_marked_now = before is None and mark is not None
    # Without a failure of the bundle their claim is not the cache's any more: the next pods are
    # given another one. With a failure and no mark the status has no room for one.
    pods = [pod for pod, _ in stuck] if mark is not None or failure is None else []
    if mark is not None and mark.reason != reasons.SEED_CANNOT_RUN:
        pods += unread
    owned = [pod for pod in pods if is_recreated(pod.pod) and not is_finished(pod.pod)]
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


def _mark(
    plan: PlanBuilder, bundle_id: str, stuck: StuckPod, node: str | None
) -> Undeliverable | None:
    """Mark a bundle for a pod's failure, and return its mark, an earlier one if it has one.

    A bundle that has no record (its source is refused, or it is one too many) gets one for the
    mark. None: the status has no room for it.
    """
    pod, failure = stuck
    if bundle_id not in plan.bundles:
        if len(plan.bundles) >= MAX_BUNDLES:
            return None
        plan.ensure(bundle_id, pod.fingerprint if pod.bundle == bundle_id else "")
        plan.set_state(bundle_id, PENDING, failure.reason, failure.message)
    bundle = plan.bundles[bundle_id]
    mark = bundle.undeliverable
    if mark is None:
        uid = (plan.observed.claim or {"metadata": {}})["metadata"].get("uid")
        image = pod.image if failure.is_of_image else None
        mark = Undeliverable(
            failure.reason, failure.message, plan.timestamp, uid, node=node, image=image or None
        )
    elif mark.node is not None and node is None:
        mark = replace(mark, node=None, at=plan.timestamp)
    plan.put(replace(bundle, undeliverable=mark))
    plan.requeue_at(_expiry(mark))
    return mark


def _find_node(
    mark: Undeliverable | None, stuck: Sequence[StuckPod], nodes: Collection[str]
) -> str | None:
    """Return the node that alone may be to blame; None: pods of two nodes could not start.

    None too for a failure that is of no node, and where the cache has pods on no other node.
    nodes: of all living consumers.
    """
    if not all(failure.is_of_node for _, failure in stuck):
        return None
    failing = {pod.node for pod, _ in stuck} | ({mark.node} if mark and mark.node else set())
    [*names] = failing
    return names[0] if len(names) == 1 and set(nodes) - failing else None


def delete_stuck_pod(pod: Object) -> Action:
    """Return the action that deletes a pod unless it has changed: it may have started since."""
    ref, metadata = reference(pod), pod["metadata"]
    if "resourceVersion" in metadata:
        ref["metadata"]["resourceVersion"] = metadata["resourceVersion"]
    return Delete(f"delete Pod {metadata['name']}", ref)


def _find_failure_of_bundle(
    plan: PlanBuilder, bundle: BundleStatus | None, stuck: Sequence[StuckPod]
) -> StuckPod | None:
    """Return the pod and the failure for which the bundle is marked.

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
        return pod, failure
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
    if mark.node is not None:
        return mark.at + NODE_MARK_SECONDS
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
    kept = [pod for pod in pods if not is_recreated(pod.pod)]
    if not kept:
        return "deleted: its replacement starts without the bundle"
    names = "it" if len(pods) == 1 else ", ".join(pod.name for pod in kept[:MAX_NAMED_PODS])
    if all(owner_uid(pod.pod) for pod in kept):
        return (
            f"its Job counts a deleted pod as failed, so that pretune does not delete {names}:"
            " delete it, and its replacement starts without the bundle"
        )
    return (
        f"no controller owns {names}: delete it and recreate it, and it starts without the bundle"
    )
