"""Checks of a pod on a node: a volume of ours cannot be mounted, or does not answer.

The kubelet's messages are those of 1.34 (tests/unit/policy/pods/data/stuck.json); older ones were
read in the releases' source.
"""

from __future__ import annotations

import re

from pretune.api import reasons
from pretune.api.names import SEED_CONTAINER
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests import delivery_modes
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.policy.pod_status import container_statuses, is_finished
from pretune.policy.pods.starting_pod import (
    CREATE_FAILURES,
    START_GRACE_SECONDS,
    StartFailure,
    StartingPod,
    describe_state,
    init_containers_done_at,
    last_seen_at,
    startable_since,
    truncate,
    waits_for_mounts,
)

SEED_TIMEOUT_SECONDS = 90.0  # that seed may run; its own limits end it long before
# A mount that fails is tried again after 0.5 s, 1 s, 2 s …: a later failure is no hiccup.
MOUNT_GRACE_SECONDS = 30.0
# The kubelet tries each volume again within this time (its backoff ends at 122 s).
MOUNT_RETRY_SECONDS = 150.0
_MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_FOR_VOLUME = re.compile(r'for volume "([^"]+)"')
_UNMOUNTED = re.compile(r"unmounted volumes=\[([^\]]*)\]")


def cannot_mount(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod of which the kubelet mounts all volumes but ours."""
    if is_finished(pod.object) or not pod.events or not waits_for_mounts(pod.object):
        return None
    since = startable_since(pod.object)
    newest: dict[str, Object] = {}  # by volume: its newest failure
    failures = (event for event in pod.events if event.get("reason") in _MOUNT_EVENTS)
    for event in sorted(failures, key=last_seen_at):
        if last_seen_at(event) >= since + MOUNT_GRACE_SECONDS:
            newest.update(dict.fromkeys(_volumes_of(str(event.get("message"))), event))
    ours = _our_volumes(pod)
    our_failures = [newest[volume] for volume in ours if volume in newest]
    if not our_failures:
        return None
    last = max(our_failures, key=last_seen_at)
    if any(
        last_seen_at(event) >= last_seen_at(last) - MOUNT_RETRY_SECONDS
        for volume, event in newest.items()
        if volume not in ours
    ):
        return None
    text = truncate(f"{pod.claim_words}: the kubelet reports: {last.get('message')}")
    due = since + START_GRACE_SECONDS
    return StartFailure(reasons.MOUNT_FAILED, text, due, is_of_node=True)


def _our_volumes(pod: StartingPod) -> set[str]:
    """Return the names that the kubelet uses for our volumes."""
    names = set(delivery_modes.forms().volume_names)
    if not pod.our_claim:
        names.discard(CLAIM_VOLUME)
    return names | ({pod.volume_name} if pod.volume_name else set())


def _volumes_of(message: str) -> set[str]:
    """Return the volumes of an event: one by its name, or those that are not mounted yet."""
    several = _UNMOUNTED.search(message)
    if several:
        return set(several[1].replace(",", " ").split())
    return set(_FOR_VOLUME.findall(message))


def seed_hangs(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod whose seed sleeps in the kernel: the storage does not answer.

    The reason is the storage's, which may recover, and not the image's.
    """
    state = (container_statuses(pod.object).get(SEED_CONTAINER) or {}).get("state") or {}
    started_at = (state.get("running") or {}).get("startedAt")
    if is_finished(pod.object) or not started_at:
        return None
    limit = f"{SEED_TIMEOUT_SECONDS:.0f} s"
    message = f"container {SEED_CONTAINER} runs for more than {limit}: the claim does not answer"
    due = parse_timestamp(started_at) + SEED_TIMEOUT_SECONDS
    return StartFailure(reasons.MOUNT_FAILED, message, due, is_of_node=True)


def container_cannot_mount(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod whose volume is on the node, and in no container.

    A stale NFS handle, for example: the runtime cannot create a container with it.
    """
    if is_finished(pod.object):
        return None
    paths = [f"/{CLAIM_VOLUME}/", "/pretune/claim"]
    if pod.volume_name:
        paths.append(f"/{pod.volume_name}")
    for status in pod.container_statuses:
        waiting = (status.get("state") or {}).get("waiting") or {}
        message = str(waiting.get("message") or "")
        if waiting.get("reason") in CREATE_FAILURES and any(path in message for path in paths):
            last = (status.get("lastState") or {}).get("terminated") or {}
            ended_at = parse_timestamp(last["finishedAt"]) if last.get("finishedAt") else 0.0
            due = max(init_containers_done_at(pod), ended_at) + START_GRACE_SECONDS
            text = truncate(f"container {status['name']}: {describe_state(waiting)}")
            return StartFailure(reasons.MOUNT_FAILED, text, due, is_of_node=True)
    return None
