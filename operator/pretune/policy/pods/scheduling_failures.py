"""Checks of a pod without a node: our claim keeps the scheduler from choosing one.

The scheduler's messages are those of 1.34 (tests/unit/policy/pods/data/stuck.json); older ones were
read in the releases' source.
"""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.reasons import Reason
from pretune.policy.pod_status import is_finished
from pretune.policy.pods.starting_pod import (
    START_GRACE_SECONDS,
    StartFailure,
    StartingPod,
    first_seen_at,
    last_seen_at,
    scheduler_message,
    startable_since,
    truncate,
)

PROVISIONING_WINDOW_SECONDS = 600.0  # an older event of the provisioner does not count

# Messages about single nodes. Each names the first plugin that refuses the node. Volumes come
# after taints, node affinity and resources, so a node with one of these messages has those. What
# other nodes lack (3 Insufficient nvidia.com/gpu) does not matter.
_UNREACHABLE = (
    "didn't match PersistentVolume's node affinity",  # from 1.34
    "volume node affinity conflict",  # until 1.33
    "had no available volume zone",
    "bound to non-existent pv",
    "exceed max volume count",
    "didn't find available persistent volumes to bind",
    "did not have enough free storage",
)
# Plugins that come after volumes in the scheduler's default order
# (pkg/scheduler/apis/config/v1/default_plugins.go). A node with one of these messages takes the
# volume, and may be the one that the pod waits for.
_CHECKED_AFTER_VOLUMES = (
    "topology spread",
    "pod affinity",
    "anti-affinity",
    "cannot allocate all claims",
    "resourceclaim",
    "resource driver",
)
_UNBOUND = ("unbound immediate PersistentVolumeClaims", "binding volumes")


def unschedulable(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod for which the scheduler names our claim.

    Of a pod that was held, only the scheduler's events tell since when: it may have been released
    a moment ago.
    """
    has_ended = pod.has_node or is_finished(pod.object)
    message = "" if has_ended else scheduler_message(pod.object)
    reason = _find_blame(pod, message)
    if not reason:
        return None
    since = startable_since(pod.object)
    if pod.events:
        blames = (
            first_seen_at(event)
            for event in pod.events
            if _find_blame(pod, str(event.get("message")))
        )
        since = max(since, min(blames, default=pod.now))
    elif pod.events is None and pod.was_held:
        since = pod.now  # not read: there are many
    text = truncate(f"{pod.claim_words}: the scheduler reports: {message}")
    return StartFailure(reason, text, since + START_GRACE_SECONDS)


def _find_blame(pod: StartingPod, message: str) -> Reason | None:
    """Return the reason, if the scheduler's message is about our claim, and the claim agrees."""
    if not message or not pod.our_claim:
        return None
    message = message.partition(" preemption:")[0]
    if f'persistentvolumeclaim "{pod.our_claim}"' in message:
        return _find_blame_by_name(pod, message)
    if pod.claim_phase == "Pending" and any(text in message for text in _UNBOUND):
        return reasons.CLAIM_PENDING
    if (
        len(pod.claims) == 1
        and any(text in message for text in _UNREACHABLE)
        and not _may_wait_for_more(pod, message)
    ):
        is_pending = pod.claim_phase == "Pending"
        return reasons.CLAIM_PENDING if is_pending else reasons.VOLUME_UNREACHABLE
    return None


def _find_blame_by_name(pod: StartingPod, message: str) -> Reason | None:
    """Return the reason, if what a message says of our claim by its name is still so."""
    claim, is_current = pod.known_claim, pod.our_claim == pod.claim_name
    if "not found" in message.partition(f'"{pod.our_claim}"')[2][:12]:
        return reasons.CLAIM_NOT_FOUND if claim is None else None
    if "is being deleted" in message:
        is_deleted = claim is not None and claim["metadata"].get("deletionTimestamp")
        return reasons.CLAIM_TERMINATING if not is_current or is_deleted else None
    is_lost = not is_current or pod.claim_phase == "Lost"
    return reasons.CLAIM_LOST if "bound to non-existent" in message and is_lost else None


def _may_wait_for_more(pod: StartingPod, message: str) -> bool:
    """Return whether a node may be missing for what is checked after volumes, such as devices."""
    return bool((pod.object.get("spec") or {}).get("resourceClaims")) or any(
        text in message for text in _CHECKED_AFTER_VOLUMES
    )


def never_provisioned(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod whose volume the provisioner refuses to create.

    A node is chosen, and the scheduler waits for the volume. It reports nothing for up to ten
    minutes.
    """
    if (
        pod.has_node
        or is_finished(pod.object)
        or pod.claim_phase != "Pending"
        or not pod.has_selected_node
        or scheduler_message(pod.object)
    ):
        return None
    failures = [event for event in pod.claim_events if event.get("reason") == "ProvisioningFailed"]
    newest = max(failures, key=last_seen_at, default=None)
    if newest is None or last_seen_at(newest) < pod.now - PROVISIONING_WINDOW_SECONDS:
        return None
    since = max(startable_since(pod.object), min(first_seen_at(event) for event in failures))
    text = truncate(f"{pod.claim_words} gets no volume: {newest.get('message', '')}")
    return StartFailure(reasons.CLAIM_PENDING, text, since + START_GRACE_SECONDS)
