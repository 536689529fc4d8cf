"""Pods that only we keep from starting: their bundle is marked, and what makes such pods makes them anew, without us.

What of ours keeps a pod from starting is told by start_failures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pretune.api import reasons
from pretune.api.status import BundleStatus, Undeliverable
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import is_finished
from pretune.policy.model import Action, Delete
from pretune.policy.plan_builder import PlanBuilder, owner_uid, reference
from pretune.policy.pods.consumers import Consumer
from pretune.policy.pods.start_failures import SEED, Pod, Trouble, judge, next_look, suspect, unmade

__all__ = ["rescue", "suspect", "take_away"]

# Seconds after which a mark is taken back, since only a pod can try whether its cause is gone; a try costs that pod a minute or two.
TRIED_AGAIN = 3600.0  # a server that was away may be there again
# An image stays as it is, but a runtime is mended, a tag moves, and what failed may have been one node.
SEED_TRIED_AGAIN = 6 * 3600.0

Stuck = tuple[Consumer, Trouble]


def rescue(plan: PlanBuilder, pods: Sequence[Consumer]) -> None:
    """Mark the bundles that pods cannot start with, and delete those pods if something makes them anew: the status is written first,
    and the webhook leaves alone what comes after it."""
    for marked in list(plan.bundles.values()):
        if marked.undeliverable is None:
            continue
        if _is_mended(plan, marked, marked.undeliverable):
            plan.put(replace(marked, undeliverable=None))
        else:
            plan.requeue_at(_expiry(marked.undeliverable))
    stuck: dict[str, list[Stuck]] = {}
    unread: dict[str, list[Consumer]] = {}
    for pod in pods:
        waits = pod.pod["spec"].get("schedulingGates") or pod.pod["metadata"].get(
            "deletionTimestamp"
        )
        if waits or not pod.given or pod.ready:
            continue
        trouble = _look(plan, pod)
        if trouble is not None:
            stuck.setdefault(pod.given, []).append((pod, trouble))
        elif _is_unread(plan, pod.pod):
            unread.setdefault(pod.given, []).append(pod)
    for bundle in sorted({*stuck, *unread}):
        _rescue(plan, bundle, stuck.get(bundle, []), unread.get(bundle, []))


def _is_unread(plan: PlanBuilder, pod: Object) -> bool:
    """It waits for volumes like those of others, and only its events, which were not read, tell of what exactly."""
    return (
        pod["metadata"]["uid"] not in plan.observed.pod_events
        and suspect(pod, plan.now)
        and not unmade(pod)
    )


def _look(plan: PlanBuilder, consumer: Consumer) -> Trouble | None:
    """The trouble of one pod, if it counts by now; else when to look again."""
    observed = plan.observed
    events = observed.pod_events.get(consumer.pod["metadata"]["uid"])
    pod = Pod(
        consumer.pod, events, observed.claim, observed.claim_events, plan.claim_name, plan.now
    )
    trouble = judge(pod)
    if trouble is not None and plan.now >= trouble.due:
        return trouble
    plan.requeue_at(trouble.due if trouble is not None else next_look(pod))
    return None


def _rescue(
    plan: PlanBuilder, bundle_id: str, stuck: Sequence[Stuck], unread: Sequence[Consumer]
) -> None:
    """unread: pods that wait for volumes like these, and whose events were not read: there are many."""
    bundle, trouble = plan.bundles.get(bundle_id), _witness(plan, bundle_id, stuck)
    before = bundle.undeliverable if bundle is not None else None
    mark = before
    if bundle is not None and trouble is not None and mark is None:
        uid = (plan.observed.claim or {"metadata": {}})["metadata"].get("uid")
        mark = Undeliverable(trouble.reason, trouble.message, plan.timestamp, uid)
        plan.put(replace(bundle, undeliverable=mark))
    found = [pod for pod, _ in stuck]
    if mark is not None and mark.reason != SEED:
        found += unread
    owned = [pod for pod in found if owner_uid(pod.pod) and not is_finished(pod.pod)]
    plan.after += [take_away(pod.pod) for pod in owned]
    told = found if mark is not None and before is None else owned
    if not told:
        return
    cause = trouble or (stuck[0][1] if stuck else None) or mark
    assert cause is not None
    plan.warn(
        reasons.RESCUED,
        f"bundle {bundle_id}: {_names(told)} could not start: {cause.reason}: {cause.message};"
        f" {_done(told)}",
    )


def take_away(pod: Object) -> Action:
    """Deletes a pod, only as it was seen: by the time that we get to it, it may have started after all."""
    ref = reference(pod)
    ref["metadata"] |= {
        name: one for name, one in pod["metadata"].items() if name == "resourceVersion"
    }
    return Delete(f"delete Pod {pod['metadata']['name']}", ref)


def _witness(plan: PlanBuilder, bundle_id: str, stuck: Sequence[Stuck]) -> Trouble | None:
    """Return the trouble that stands against the bundle.

    Not that of a pod whose claim is not the cache's any more, nor of one that had ended before the
    bundle was sealed.
    """
    bundle = plan.bundles.get(bundle_id)
    sealed_at = bundle.sealed_at if bundle is not None else None
    for pod, trouble in stuck:
        claim = Pod(pod.pod, None, plan.observed.claim, (), plan.claim_name, plan.now).our_claim
        if trouble.reason != SEED and claim not in ("", plan.claim_name):
            continue
        if is_finished(pod.pod) and sealed_at is not None and pod.created < sealed_at:
            continue
        return trouble
    return None


def _is_mended(plan: PlanBuilder, bundle: BundleStatus, mark: Undeliverable) -> bool:
    """Whether the cause of a mark is gone, or may be.

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
    return mark.at + (SEED_TRIED_AGAIN if mark.reason == SEED else TRIED_AGAIN)


def _names(pods: Sequence[Consumer]) -> str:
    names = ", ".join(one.name for one in pods[:5])
    more = f" and {len(pods) - 5} more" if len(pods) > 5 else ""
    return f"pod {names}" if len(pods) == 1 else f"{len(pods)} pods ({names}{more})"


def _done(pods: Sequence[Consumer]) -> str:
    """What became of these pods, or is left to a person."""
    if all(is_finished(one.pod) for one in pods):
        return "the next ones start without us"
    bare = [one for one in pods if not owner_uid(one.pod)]
    if not bare:
        return "deleted: what comes in its place starts without us"
    mine = (
        "no controller owns it"
        if len(pods) == 1
        else f"no controller owns {', '.join(one.name for one in bare[:5])}"
    )
    return f"{mine}: delete it and make it anew, and it starts without us"
