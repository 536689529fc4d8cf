"""Pods that would start without us, and do not start with us: a list of small checks, asked in their order; the first that answers counts.

A check gets one Pod and says Trouble, or None: it waits for a GPU, an image, somebody else's volume. Adding a rule is adding a line to
CHECKS. Words of scheduler and kubelet were seen on 1.34 (tests/unit/policy/pods/data/stuck.json), older ones read in the releases' source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pretune.api import delivery_reasons, reasons
from pretune.api.names import BUNDLE, REASON, SEED_CONTAINER
from pretune.api.reasons import Reason
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests import delivery_modes
from pretune.manifests.agent_container import CLAIM_VOLUME
from pretune.policy.bundles.attempt_state import condition, is_finished, statuses, terminated

PATIENCE = 60.0  # seconds that a pod may take to start once it could
HANG = 90.0  # seconds that seed may run: by itself it gives up long before
RESTARTS = 2  # of seed after bad ends, before they count: its node may have had a bad moment
BACKOFF = (
    10.0,
    300.0,
)  # seconds that the kubelet waits before a second restart, doubled for each more up to the last; the first is at once
LASTING = 30.0  # seconds after which a volume's failure is no hiccup: it is tried again after 0.5 s, 1 s, 2 s …
RETRIES = (
    150.0  # seconds within which the kubelet tries each volume again (its backoff ends at 122 s)
)
RECENT = 600.0  # seconds that an ended pod bears witness: Jobs keep theirs for ever
LOOKS = 15.0, 300.0  # seconds between looks at events, which nothing wakes for: at first, at last


@dataclass(frozen=True)
class Trouble:
    """What of ours keeps a pod from starting, and from when on (Unix seconds) it counts."""

    reason: Reason
    message: str
    due: float


@dataclass(frozen=True)
class Pod:
    """One pod that was given a bundle, and what bears on it."""

    object: Object
    events: tuple[Object, ...] | None  # None: not read
    claim: Object | None  # the cache's
    claim_events: tuple[Object, ...]
    claim_name: str  # the cache's
    now: float

    @property
    def claims(self) -> list[str]:
        """Names of the claims that it mounts; "" for one that is made for it alone."""
        volumes = (self.object.get("spec") or {}).get("volumes") or ()
        return [
            (one.get("persistentVolumeClaim") or {}).get("claimName", "")
            for one in volumes
            if "persistentVolumeClaim" in one or "ephemeral" in one
        ]

    @property
    def our_claim(self) -> str:
        """The claim that it mounts because of us; "" where it mounts that claim by itself anyway."""
        volumes = (self.object.get("spec") or {}).get("volumes") or ()
        found: Object = next((one for one in volumes if one["name"] == CLAIM_VOLUME), {})
        return str((found.get("persistentVolumeClaim") or {}).get("claimName", ""))

    @property
    def known_claim(self) -> Object | None:
        """That claim as it was read; None where it is gone, or is another than the cache's by now."""
        return self.claim if self.our_claim == self.claim_name else None

    @property
    def phase(self) -> str:
        return str(((self.known_claim or {}).get("status") or {}).get("phase", ""))

    @property
    def volume(self) -> str:
        """The PersistentVolume's name, by which the kubelet speaks of our claim; "" where it is not known."""
        return (
            str(((self.known_claim or {}).get("spec") or {}).get("volumeName", ""))
            if self.our_claim
            else ""
        )

    @property
    def was_held(self) -> bool:
        """The webhook gave it our gate: it says so in the pod's reason."""
        return str((self.object["metadata"].get("annotations") or {}).get(REASON, "")).startswith(
            delivery_reasons.HELD
        )

    @property
    def chosen(self) -> bool:
        """The scheduler has chosen a node, and waits for our claim's volume to be made there."""
        notes = ((self.known_claim or {}).get("metadata") or {}).get("annotations") or {}
        return bool(notes.get("volume.kubernetes.io/selected-node"))

    @property
    def placed(self) -> bool:
        return bool((self.object.get("spec") or {}).get("nodeName"))

    @property
    def engines(self) -> list[Object]:
        """Statuses of its containers, init containers apart."""
        return list((self.object.get("status") or {}).get("containerStatuses") or ())


def judge(pod: Pod) -> Trouble | None:
    """What of ours keeps a pod from starting, now or from a time to come; None: nothing."""
    for check in CHECKS:
        trouble = check(pod)
        if trouble is not None:
            return trouble
    return None


def suspect(pod: Object, now: float) -> bool:
    """Whether the events of a consumer (cut down by observe) are worth reading at `now`: it was given a bundle, nothing gates it,
    and for PATIENCE its volumes, the scheduler's view of them, or seed that cannot be made have kept it from starting.

    Not where its containers wait for an image, nor where the scheduler speaks of other things: those are never our storage's fault.
    """
    given = (pod["metadata"].get("annotations") or {}).get(BUNDLE)
    return (
        bool(given)
        and _free(pod)
        and (_is_waiting(pod) or unmade(pod))
        and now >= since(pod) + PATIENCE
    )


def since(pod: Object) -> float:
    """When a pod could start, or had to start anew (Unix seconds): created, given to a node, its sandbox lost. The gates' end is not told:
    PodScheduled goes from False to False, and its time stays."""
    times = [pod["metadata"]["creationTimestamp"]]
    for kind in ("PodScheduled", "PodReadyToStartContainers"):
        found = condition(pod, kind)
        if found is not None and found.get("lastTransitionTime"):
            times.append(found["lastTransitionTime"])
    return max(parse_timestamp(one) for one in times)


def next_look(pod: Pod) -> float | None:
    """When to look again at a pod that has no trouble yet, since nothing wakes for events; None: what is watched tells of it."""
    provisioning = not pod.placed and pod.chosen and pod.phase == "Pending"
    if not (_free(pod.object) and (provisioning or _is_waiting(pod.object))):
        return None
    begun = since(pod.object)
    return max(begun + PATIENCE, pod.now + min(max((pod.now - begun) / 4, LOOKS[0]), LOOKS[1]))


# --- what a pod waits for


def _free(pod: Object) -> bool:
    """Nothing holds or ends it."""
    held = (pod.get("spec") or {}).get("schedulingGates")
    return not (held or is_finished(pod) or pod["metadata"].get("deletionTimestamp"))


def _is_waiting(pod: Object) -> bool:
    return _volumes_wait(pod) or _names_volumes(_scheduler_says(pod))


def _volumes_wait(pod: Object) -> bool:
    """On a node, and its volumes are not all mounted: the kubelet makes the sandbox after them, and says so since 1.29."""
    if not (pod.get("spec") or {}).get("nodeName"):
        return False
    sandbox = condition(pod, "PodReadyToStartContainers")
    if sandbox is not None:
        return bool(sandbox["status"] != "True")
    return not any(
        _ever_ran(one) for one in (pod.get("status") or {}).get("containerStatuses") or ()
    )


def unmade(pod: Object) -> bool:
    """The runtime cannot make seed; since when, only events tell."""
    waiting = ((statuses(pod).get(SEED_CONTAINER) or {}).get("state") or {}).get("waiting") or {}
    return waiting.get("reason") in _NOT_MADE


def _ever_ran(status: Object) -> bool:
    waits = "waiting" in (status.get("state") or {"waiting": {}})
    return not waits or bool(status.get("lastState") or status.get("restartCount"))


def _scheduler_says(pod: Object) -> str:
    """Why it has no node, in the scheduler's words; what preemption could do about it is left out."""
    found = condition(pod, "PodScheduled")
    if found is None or found["status"] != "False" or found.get("reason") == "SchedulingGated":
        return ""
    return str(found.get("message") or "").partition(" preemption:")[0]


def _names_volumes(message: str) -> bool:
    return "volume" in message.lower() or "pv" in message.lower()


# --- the checks: no node


# Reasons of single nodes, each of which names the first plugin that refuses. Volumes are asked for after taints, node affinity and
# resources: what other nodes say of those (3 Insufficient nvidia.com/gpu) does not matter, for a node with one of these words has them.
_UNREACHABLE = (
    "didn't match PersistentVolume's node affinity",  # from 1.34
    "volume node affinity conflict",  # until 1.33
    "had no available volume zone",
    "bound to non-existent pv",
    "exceed max volume count",
    "didn't find available persistent volumes to bind",
    "did not have enough free storage",
)
# In the scheduler's default order (pkg/scheduler/apis/config/v1/default_plugins.go) these are asked after the volumes: a node that says so
# takes the volume and may be the one that the pod waits for, while nodes that would never do speak of the volume.
_LATER = (
    "topology spread",
    "pod affinity",
    "anti-affinity",
    "cannot allocate all claims",
    "resourceclaim",
    "resource driver",
)
_UNBOUND = ("unbound immediate PersistentVolumeClaims", "binding volumes")


def unschedulable(pod: Pod) -> Trouble | None:
    """The scheduler names our claim. Since when, its events tell of a pod that was held: its gate may have gone a moment ago."""
    message = "" if pod.placed or is_finished(pod.object) else _scheduler_says(pod.object)
    reason = _blames(pod, message)
    if not reason:
        return None
    begun = since(pod.object)
    if pod.events:
        begun = max(
            begun,
            min(
                (_first(one) for one in pod.events if _blames(pod, str(one.get("message")))),
                default=pod.now,
            ),
        )
    elif pod.events is None and pod.was_held:
        begun = pod.now  # not read: there are many
    due = begun + PATIENCE
    return Trouble(reason, _cut(f"{_claim(pod)}: the scheduler says: {message}"), due)


def _blames(pod: Pod, message: str) -> Reason | None:
    """The reason, if the scheduler's words are about our claim and what is known of the claim agrees; else None."""
    if not message or not pod.our_claim:
        return None
    message, claim = message.partition(" preemption:")[0], pod.known_claim
    mine = pod.our_claim == pod.claim_name
    if f'persistentvolumeclaim "{pod.our_claim}"' in message:
        if "not found" in message.partition(f'"{pod.our_claim}"')[2][:12]:
            return reasons.CLAIM_NOT_FOUND if claim is None else None
        if "is being deleted" in message:
            return (
                reasons.CLAIM_TERMINATING
                if not mine or (claim and claim["metadata"].get("deletionTimestamp"))
                else None
            )
        return (
            reasons.CLAIM_LOST
            if "bound to non-existent" in message and (not mine or pod.phase == "Lost")
            else None
        )
    if pod.phase == "Pending" and any(words in message for words in _UNBOUND):
        return reasons.CLAIM_PENDING
    if (
        len(pod.claims) == 1
        and any(words in message for words in _UNREACHABLE)
        and not _waits_for_more(pod, message)
    ):
        return reasons.CLAIM_PENDING if pod.phase == "Pending" else reasons.VOLUME_UNREACHABLE
    return None


def _waits_for_more(pod: Pod, message: str) -> bool:
    """A node may be missing for what the scheduler asks after volumes, devices above all (spec.resourceClaims)."""
    return bool((pod.object.get("spec") or {}).get("resourceClaims")) or any(
        words in message for words in _LATER
    )


def never_provisioned(pod: Pod) -> Trouble | None:
    """A node is chosen, and the scheduler waits, up to ten minutes without a word, for a volume that its provisioner refuses to make."""
    if (
        pod.placed
        or is_finished(pod.object)
        or pod.phase != "Pending"
        or not pod.chosen
        or _scheduler_says(pod.object)
    ):
        return None
    failures = [one for one in pod.claim_events if one.get("reason") == "ProvisioningFailed"]
    if not failures or _last(max(failures, key=_last)) < pod.now - RECENT:
        return None
    due = max(since(pod.object), min(_first(one) for one in failures)) + PATIENCE
    said = max(failures, key=_last).get("message", "")
    return Trouble(reasons.CLAIM_PENDING, _cut(f"{_claim(pod)} gets no volume: {said}"), due)


# --- the checks: on a node


MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_FOR_VOLUME = re.compile(r'for volume "([^"]+)"')
_UNMOUNTED = re.compile(r"unmounted volumes=\[([^\]]*)\]")


def unmounted(pod: Pod) -> Trouble | None:
    """The kubelet cannot mount volumes of ours, and goes on failing; all of the others it can."""
    if is_finished(pod.object) or not pod.events or not _volumes_wait(pod.object):
        return None
    begun, newest = since(pod.object), {}
    for event in sorted(
        (one for one in pod.events if one.get("reason") in MOUNT_EVENTS), key=_last
    ):
        if _last(event) >= begun + LASTING:
            newest.update(dict.fromkeys(_volumes(str(event.get("message"))), event))
    ours = _ours(pod)
    failing = [newest[one] for one in ours if one in newest]
    if not failing:
        return None
    last = max(failing, key=_last)
    if any(
        _last(event) >= _last(last) - RETRIES for name, event in newest.items() if name not in ours
    ):
        return None
    return Trouble(
        reasons.MOUNT_FAILED,
        _cut(f"{_claim(pod)}: the kubelet says: {last.get('message')}"),
        begun + PATIENCE,
    )


def _ours(pod: Pod) -> set[str]:
    """Names by which the kubelet speaks of our volumes."""
    names = set(delivery_modes.forms().volume_names)
    if not pod.our_claim:
        names.discard(CLAIM_VOLUME)
    return names | ({pod.volume} if pod.volume else set())


def _volumes(message: str) -> set[str]:
    """The volumes that an event is about: one by its name, or those that are not mounted yet."""
    several = _UNMOUNTED.search(message)
    return (
        set(several[1].replace(",", " ").split()) if several else set(_FOR_VOLUME.findall(message))
    )


_NOT_MADE = ("CreateContainerError", "RunContainerError")
_NOT_STARTED = (
    "StartError",
    "ContainerCannotRun",
)  # of ends, by containerd and by others: its program never ran
_REFUSED = re.compile(
    r"Error: (?!ErrImage|ImagePull)\S+ \S"
)  # not `Error: ErrImagePull`, an event of the same reason
SEED = reasons.SEED_CANNOT_RUN


def seed_fails(pod: Pod) -> Trouble | None:
    """Our init container cannot be made, or ends badly, though it is written to end well whatever happens (an image without /bin/sh, say).
    Not where its image cannot be pulled: it is the engine's own. Its time counts from its own failure: the pull takes minutes.
    """
    status = statuses(pod.object).get(SEED_CONTAINER) or {}
    waiting, end = (status.get("state") or {}).get("waiting") or {}, terminated(status) or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    if is_finished(pod.object):  # never restarted: a Job's
        return _ended(pod, end)
    restarts = int(status.get("restartCount") or 0)
    if waiting.get("reason") in _NOT_MADE:
        words, begun = (
            waiting,
            _failing_since(last, restarts) if _is_own(last) else _unmade_since(pod),
        )
    elif end or waiting.get("reason") == "CrashLoopBackOff":
        words = end or last
        if not _is_own(words) or (restarts < RESTARTS and words.get("reason") not in _NOT_STARTED):
            return None
        begun = _failing_since(words, restarts)
        if end and _is_own(last):
            begun = min(begun, _failing_since(last, restarts - 1))
    else:
        return None
    return Trouble(
        SEED, _cut(f"container {SEED_CONTAINER}: {_end(words)}"), max(_turn(pod), begun) + PATIENCE
    )


def _is_own(end: Mapping[str, Any]) -> bool:
    """A bad end by itself. More than 128: killed from outside, by its node's end (255) or for want of memory (137), and started anew."""
    return bool(end.get("finishedAt")) and 0 < (end.get("exitCode") or 0) <= 128


def _failing_since(end: Mapping[str, Any], restarts: int) -> float:
    """When it ended first, at the latest: its status tells of the newest ends alone, and the kubelet waited between them."""
    first, last = BACKOFF
    return parse_timestamp(end["finishedAt"]) - sum(
        min(first * 2.0**one, last) for one in range(restarts - 1)
    )


def _unmade_since(pod: Pod) -> float:
    """When the runtime refused to make it first; now, where no event tells of it (or none was read): it may be a hiccup."""
    refused = [
        one
        for one in pod.events or ()
        if one.get("reason") == "Failed" and _REFUSED.match(str(one.get("message")))
    ]
    return min((_first(one) for one in refused), default=pod.now)


def _ended(pod: Pod, end: Mapping[str, Any]) -> Trouble | None:
    """A pod that failed by seed alone. Killed from outside (evicted, out of time), it says nothing of seed."""
    disrupted = condition(pod.object, "DisruptionTarget") or (pod.object.get("status") or {}).get(
        "reason"
    )
    if disrupted or not _is_own(end):
        return None
    when = parse_timestamp(end["finishedAt"])
    if pod.now - when > RECENT:
        return None
    return Trouble(SEED, _cut(f"container {SEED_CONTAINER}: {_end(end)}"), when)


def seed_hangs(pod: Pod) -> Trouble | None:
    """Seed runs and runs: it sleeps in the kernel, on storage that does not answer. The storage's fault, which ends, not the image's."""
    running = ((statuses(pod.object).get(SEED_CONTAINER) or {}).get("state") or {}).get(
        "running"
    ) or {}
    if is_finished(pod.object) or not running.get("startedAt"):
        return None
    begun = parse_timestamp(running["startedAt"])
    message = (
        f"container {SEED_CONTAINER} runs for more than {HANG:.0f} s: the claim does not answer"
    )
    return Trouble(reasons.MOUNT_FAILED, message, begun + HANG)


def engine_cannot_mount(pod: Pod) -> Trouble | None:
    """The volume is mounted on the node, and no container can be made with it (a stale handle, say)."""
    marks = [
        one
        for one in (pod.volume and f"/{pod.volume}", f"/{CLAIM_VOLUME}/", "/pretune/claim")
        if one
    ]
    for status in [] if is_finished(pod.object) else pod.engines:
        waiting = (status.get("state") or {}).get("waiting") or {}
        message = str(waiting.get("message") or "")
        if waiting.get("reason") in _NOT_MADE and any(mark in message for mark in marks):
            ends = (status.get("lastState") or {}).get("terminated") or {}
            due = (
                max(
                    _turn(pod),
                    parse_timestamp(ends["finishedAt"]) if ends.get("finishedAt") else 0.0,
                )
                + PATIENCE
            )
            return Trouble(
                reasons.MOUNT_FAILED, _cut(f"container {status['name']}: {_end(waiting)}"), due
            )
    return None


def _turn(pod: Pod) -> float:
    """When the containers before the last of ours were done: each init container's end, or a sidecar's start."""
    times = [since(pod.object)]
    for status in (pod.object.get("status") or {}).get("initContainerStatuses") or ():
        if status["name"] == SEED_CONTAINER and (terminated(status) or {}).get("exitCode", 1) != 0:
            break
        state = status.get("state") or {}
        when = (state.get("terminated") or {}).get("finishedAt") or (
            state.get("running") or {}
        ).get("startedAt")
        if when:
            times.append(parse_timestamp(when))
    return max(times)


CHECKS: tuple[Callable[[Pod], Trouble | None], ...] = (
    unschedulable,
    never_provisioned,
    unmounted,
    seed_fails,
    seed_hangs,
    engine_cannot_mount,
)


# --- words and times


def _claim(pod: Pod) -> str:
    return f"claim {pod.our_claim}" if pod.our_claim else "volumes of pretune"


def _end(state: Mapping[str, Any]) -> str:
    """`StartError, exit code 128: stat /bin/sh: no such file`."""
    code, words = state.get("exitCode"), (state.get("message") or "").strip()
    text = str(state.get("reason") or "ended") + (f", exit code {code}" if code is not None else "")
    return f"{text}: {words}" if words else text


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 700 else f"{text[:699]}…"


def _first(event: Object) -> float:
    """When what an event tells of happened first: the API server's time of it, which both of its versions have."""
    return parse_timestamp(event["metadata"]["creationTimestamp"])


def _last(event: Object) -> float:
    when = event.get("lastTimestamp") or event.get("eventTime")
    return parse_timestamp(when) if when else _first(event)
