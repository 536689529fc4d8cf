"""A pod that was given a bundle and has not started: what is observed of it, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretune.api import delivery_reasons
from pretune.api.names import REASON, SEED_CONTAINER
from pretune.api.reasons import Reason
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.policy.pod_status import (
    container_statuses,
    find_condition,
    find_termination,
    is_finished,
)

START_GRACE_SECONDS = 60.0  # that a pod may need to start once it could
CREATE_FAILURES = ("CreateContainerError", "RunContainerError")  # reasons of a container's status
MAX_MESSAGE = 700  # characters of a failure's message


@dataclass(frozen=True)
class StartFailure:
    """What of ours keeps a pod from starting, and from when on (Unix seconds) it counts."""

    reason: Reason
    message: str
    due: float
    is_of_node: bool = False  # on another node it may start
    is_of_image: bool = False  # no pod with this image would start


@dataclass(frozen=True)
class StartingPod:
    """A pod that was given a bundle, its events, and the cache's claim."""

    object: Object
    events: tuple[Object, ...] | None  # None: not read
    claim: Object | None  # the cache's
    claim_events: tuple[Object, ...]
    claim_name: str  # the cache's
    now: float  # Unix seconds

    @property
    def claims(self) -> list[str]:
        """Return the names of the claims that it mounts; "" for one that is made for it alone."""
        return [
            (volume.get("persistentVolumeClaim") or {}).get("claimName", "")
            for volume in self._volumes
            if "persistentVolumeClaim" in volume or "ephemeral" in volume
        ]

    @property
    def our_claim(self) -> str:
        """Return the claim that it mounts because of us; "": its own template mounts it."""
        ours: Object = next(
            (volume for volume in self._volumes if volume["name"] == CLAIM_VOLUME), {}
        )
        return str((ours.get("persistentVolumeClaim") or {}).get("claimName", ""))

    @property
    def known_claim(self) -> Object | None:
        """Return that claim as it was read; None: it is gone, or the cache has another one now."""
        return self.claim if self.our_claim == self.claim_name else None

    @property
    def claim_phase(self) -> str:
        """Return that claim's phase; "": unknown."""
        return str(((self.known_claim or {}).get("status") or {}).get("phase", ""))

    @property
    def claim_words(self) -> str:
        """Return how a message names what we mount."""
        return f"claim {self.our_claim}" if self.our_claim else "volumes of pretune"

    @property
    def volume_name(self) -> str:
        """Return the PersistentVolume's name, as kubelet uses it for our claim; "": unknown."""
        if not self.our_claim:
            return ""
        return str(((self.known_claim or {}).get("spec") or {}).get("volumeName", ""))

    @property
    def was_held(self) -> bool:
        """Return whether the webhook gave it our gate: the pod's reason records it."""
        annotations = self.object["metadata"].get("annotations") or {}
        return str(annotations.get(REASON, "")).startswith(delivery_reasons.HELD)

    @property
    def has_selected_node(self) -> bool:
        """Return whether the scheduler chose a node, and waits for our claim's volume there."""
        annotations = ((self.known_claim or {}).get("metadata") or {}).get("annotations") or {}
        return bool(annotations.get("volume.kubernetes.io/selected-node"))

    @property
    def has_node(self) -> bool:
        """Return whether it is bound to a node."""
        return bool((self.object.get("spec") or {}).get("nodeName"))

    @property
    def container_statuses(self) -> list[Object]:
        """Return the statuses of its containers, init containers apart."""
        return list((self.object.get("status") or {}).get("containerStatuses") or ())

    @property
    def _volumes(self) -> list[Object]:
        return list((self.object.get("spec") or {}).get("volumes") or ())


# --- since when it could start


def startable_since(pod: Object) -> float:
    """Return when a pod could start, or had to start again (Unix seconds).

    The latest of: it was created, it was bound to a node, its sandbox was lost. When it was
    released is unknown: PodScheduled goes from False to False, and its time stays.
    """
    times = [pod["metadata"]["creationTimestamp"]]
    for kind in ("PodScheduled", "PodReadyToStartContainers"):
        found = find_condition(pod, kind)
        if found is not None and found.get("lastTransitionTime"):
            times.append(found["lastTransitionTime"])
    return max(parse_timestamp(time) for time in times)


def init_containers_done_at(pod: StartingPod) -> float:
    """Return when the containers before the last of ours were done (Unix seconds).

    An init container is done when it ends, a sidecar when it starts.
    """
    times = [startable_since(pod.object)]
    for status in (pod.object.get("status") or {}).get("initContainerStatuses") or ():
        if (
            status["name"] == SEED_CONTAINER
            and (find_termination(status) or {}).get("exitCode", 1) != 0
        ):
            break
        state = status.get("state") or {}
        time = (state.get("terminated") or {}).get("finishedAt")
        time = time or (state.get("running") or {}).get("startedAt")
        if time:
            times.append(parse_timestamp(time))
    return max(times)


# --- what it waits for


def may_start(pod: Object) -> bool:
    """Return whether no gate, deletion or end keeps a pod from starting."""
    gates = (pod.get("spec") or {}).get("schedulingGates")
    return not (gates or is_finished(pod) or pod["metadata"].get("deletionTimestamp"))


def waits_for_volumes(pod: Object) -> bool:
    """Return whether a pod waits for volumes on its node, or for a node because of volumes."""
    message = scheduler_message(pod).lower()
    return waits_for_mounts(pod) or "volume" in message or "pv" in message


def waits_for_mounts(pod: Object) -> bool:
    """Return whether a pod is on a node, and its volumes are not all mounted.

    The kubelet creates the sandbox after it mounted them, and reports the sandbox since 1.29.
    """
    if not (pod.get("spec") or {}).get("nodeName"):
        return False
    sandbox = find_condition(pod, "PodReadyToStartContainers")
    if sandbox is not None:
        return bool(sandbox["status"] != "True")
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    return not any(_has_ever_run(status) for status in containers)


def _has_ever_run(status: Object) -> bool:
    is_waiting = "waiting" in (status.get("state") or {"waiting": {}})
    return not is_waiting or bool(status.get("lastState") or status.get("restartCount"))


def seed_cannot_be_created(pod: Object) -> bool:
    """Return whether the runtime cannot create seed. Only events tell since when."""
    waiting = ((container_statuses(pod).get(SEED_CONTAINER) or {}).get("state") or {}).get(
        "waiting"
    ) or {}
    return waiting.get("reason") in CREATE_FAILURES


def scheduler_message(pod: Object) -> str:
    """Return the scheduler's message why a pod has no node, without its part about preemption."""
    found = find_condition(pod, "PodScheduled")
    if found is None or found["status"] != "False" or found.get("reason") == "SchedulingGated":
        return ""
    return str(found.get("message") or "").partition(" preemption:")[0]


# --- times of events, and words


def first_seen_at(event: Object) -> float:
    """Return when what an event reports happened first (Unix seconds).

    It is the API server's time of the event, which both versions of events have.
    """
    return parse_timestamp(event["metadata"]["creationTimestamp"])


def last_seen_at(event: Object) -> float:
    """Return when what an event reports happened last (Unix seconds)."""
    time = event.get("lastTimestamp") or event.get("eventTime")
    return parse_timestamp(time) if time else first_seen_at(event)


def describe_state(state: Mapping[str, Any]) -> str:
    """Return `StartError, exit code 128: stat /bin/sh: no such file` of a container's state."""
    code, message = state.get("exitCode"), (state.get("message") or "").strip()
    text = str(state.get("reason") or "ended") + (f", exit code {code}" if code is not None else "")
    return f"{text}: {message}" if message else text


def truncate(text: str) -> str:
    """Return a text on one line, of at most MAX_MESSAGE characters."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
