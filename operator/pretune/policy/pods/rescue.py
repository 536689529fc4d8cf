"""Pods that only we keep from starting: their bundle is marked, and what makes such pods makes them anew, without us.

What of ours keeps a pod from starting is told by start_failures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretune.api import reasons
from pretune.api.timestamps import format_timestamp, parse_timestamp
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
    for record in plan.bundles.values():
        if mark := record.get("undeliverable"):
            if _mended(plan, record, mark):
                del record["undeliverable"]
            else:
                plan.requeue_at(_expiry(mark))
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
    plan: PlanBuilder, bundle: str, stuck: Sequence[Stuck], unread: Sequence[Consumer]
) -> None:
    """unread: pods that wait for volumes like these, and whose events were not read, since there are many."""
    record, trouble = plan.bundles.get(bundle), _witness(plan, bundle, stuck)
    before = (record or {}).get("undeliverable")
    if record is not None and trouble is not None and before is None:
        uid = str((plan.observed.claim or {"metadata": {}})["metadata"].get("uid", ""))
        record["undeliverable"] = {
            "reason": trouble.reason,
            "message": trouble.message,
            "at": format_timestamp(plan.now),
            **({"claimUID": uid} if uid else {}),
        }
    mark = (record or {}).get("undeliverable") or {}
    found = [pod for pod, _ in stuck] + (list(unread) if mark and mark["reason"] != SEED else [])
    owned = [pod for pod in found if owner_uid(pod.pod) and not is_finished(pod.pod)]
    plan.after += [take_away(pod.pod) for pod in owned]
    told = found if mark and before is None else owned
    if told:
        why = trouble or (stuck[0][1] if stuck else None)
        words = f"{why.reason}: {why.message}" if why else f"{mark['reason']}: {mark['message']}"
        plan.warn(
            reasons.RESCUED,
            f"bundle {bundle}: {_names(told)} could not start: {words}; {_done(told)}",
        )


def take_away(pod: Object) -> Action:
    """Deletes a pod, only as it was seen: by the time that we get to it, it may have started after all."""
    ref = reference(pod)
    ref["metadata"] |= {
        name: one for name, one in pod["metadata"].items() if name == "resourceVersion"
    }
    return Delete(f"delete Pod {pod['metadata']['name']}", ref)


def _witness(plan: PlanBuilder, bundle: str, stuck: Sequence[Stuck]) -> Trouble | None:
    """Whose trouble stands against the bundle: not that of a pod whose claim is not the cache's any more, nor one that had ended
    before the bundle was sealed."""
    sealed = str((plan.bundles.get(bundle) or {}).get("sealedAt") or "")
    for pod, trouble in stuck:
        claim = Pod(pod.pod, None, plan.observed.claim, (), plan.claim_name, plan.now).our_claim
        if trouble.reason != SEED and claim not in ("", plan.claim_name):
            continue
        if is_finished(pod.pod) and sealed and pod.created < parse_timestamp(sealed):
            continue
        return trouble
    return None


def _mended(plan: PlanBuilder, record: Object, mark: Mapping[str, Any]) -> bool:
    """The cause of a mark is gone, or may be: another claim, the claim is bound, the bundle was sealed anew, or its time is over."""
    claim = plan.observed.claim
    if plan.now >= _expiry(mark):
        return True
    if claim is None:
        return False
    bound = (claim.get("status") or {}).get("phase") == "Bound" and not claim["metadata"].get(
        "deletionTimestamp"
    )
    return (
        mark.get("claimUID", "") != claim["metadata"]["uid"]
        or (bound and mark["reason"] in (reasons.CLAIM_PENDING, reasons.CLAIM_LOST))
        or bool(
            record.get("sealedAt")
            and parse_timestamp(record["sealedAt"]) > parse_timestamp(mark["at"])
        )
    )


def _expiry(mark: Mapping[str, Any]) -> float:
    return parse_timestamp(mark["at"]) + (
        SEED_TRIED_AGAIN if mark["reason"] == SEED else TRIED_AGAIN
    )


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
