"""How pods and Jobs stand, as their status says. Pods of attempts and consumers alike.

Everything here takes an object as the API server sends it: a field may be missing, or null.
"""

from __future__ import annotations

from pretune.api.names import ENGINE, GPUS
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.podspec.template import count_gpus

# After this time in Terminating, past its grace period, a pod's node counts as lost.
NODE_LOST_SECONDS = 600.0
MAX_END_MESSAGE = 400  # characters of a container's termination message: its end


# --- Jobs


def is_job_finished(job: Object) -> bool:
    """Return whether a Job has completed or failed."""
    return _has_job_condition(job, "Complete", "Failed")


def is_job_complete(job: Object) -> bool:
    return _has_job_condition(job, "Complete")


def is_job_failed(job: Object) -> bool:
    return _has_job_condition(job, "Failed")


def is_suspended(job: Object) -> bool:
    """Return whether a Job is suspended: it has no pod, or its pod is about to be deleted."""
    return bool((job.get("spec") or {}).get("suspend"))


def suspended_or_resumed_at(job: Object) -> float | None:
    """Return when a Job was last suspended or resumed (Unix seconds); None: it never was."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    times = [each.get("lastTransitionTime") for each in conditions if each["type"] == "Suspended"]
    return parse_timestamp(times[0]) if times and times[0] else None


def is_ended_by_suspension(job: Object, pod: Object) -> bool:
    """Return whether a Job's pod ends since its Job is suspended, or was and is resumed already.

    The Job controller removes its finalizer from such a pod and deletes it, without the condition
    DisruptionTarget, and does not count it.
    """
    if is_suspended(job):
        return True
    changed_at, created = suspended_or_resumed_at(job), pod["metadata"]["creationTimestamp"]
    is_older = changed_at is not None and parse_timestamp(created) < changed_at
    return is_older and is_deleted(pod)


def _has_job_condition(job: Object, *kinds: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(each["type"] in kinds and each["status"] == "True" for each in conditions)


# --- pods


def is_finished(pod: Object) -> bool:
    """Return whether a pod has succeeded or failed."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_deleted(pod: Object) -> bool:
    """Return whether a pod's deletion was requested: what ends then in its containers was ended."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_disrupted(pod: Object) -> bool:
    """Return whether a pod is evicted, preempted or deleted."""
    target = find_condition(pod, "DisruptionTarget")
    return is_deleted(pod) or (target is not None and bool(target["status"] == "True"))


def find_condition(pod: Object, kind: str) -> Object | None:
    """Return the pod's condition of this type."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), None)


def node_lost_at(pod: Object) -> float | None:
    """Return when the node of a pod that is being deleted counts as lost (Unix seconds)."""
    # It includes the grace period already.
    deletion = pod["metadata"].get("deletionTimestamp")
    return parse_timestamp(deletion) + NODE_LOST_SECONDS if deletion else None


def engine_of_pod(pod: Object) -> Object:
    """Return the engine of a tuning or proof pod (manifests/job.py).

    It is the init container that the pod's annotation names, since admission may append others;
    without that annotation (of an older release) the last. {} for a pod without init containers,
    which is not of our making.
    """
    name = (pod["metadata"].get("annotations") or {}).get(ENGINE) if pod else None
    containers: list[Object] = (pod.get("spec") or {}).get("initContainers") or [{}]
    return next((each for each in containers if each.get("name") == name), containers[-1])


def gpus_of_pod(pod: Object) -> int:
    """Return how many GPUs the engine of a tuning or proof pod may use.

    As its annotation says; without it (of an older release), as many as the container asks for.
    """
    text = ((pod["metadata"].get("annotations") or {}) if pod else {}).get(GPUS, "")
    if text.isascii() and text.isdigit() and len(text) < 5:
        return int(text)
    return count_gpus(engine_of_pod(pod))


def appended_names(pod: Object) -> list[str]:
    """Return the init containers after the engine of a tuning or proof pod: admission's."""
    names = [each["name"] for each in (pod.get("spec") or {}).get("initContainers") or ()]
    engine = engine_name(pod)
    return names[names.index(engine) + 1 :] if engine in names else []


def engine_name(pod: Object) -> str:
    """Return the name of the engine's container; "": the pod has none."""
    return str(engine_of_pod(pod).get("name", ""))


def gpu_seconds(pod: Object, now: float) -> float:
    """Return for how long a pod has had its node's GPUs, multiplied by the engine's GPUs.

    From the kubelet's start of the pod to its end, or until `now` (Unix seconds).
    """
    started = (pod.get("status") or {}).get("startTime")
    if not started:
        return 0.0
    ends = [
        parse_timestamp(end["finishedAt"])
        for end in map(find_termination, container_statuses(pod).values())
        if end and end.get("finishedAt")
    ]
    until = max(ends) if is_finished(pod) and ends else now
    return max(0.0, until - parse_timestamp(started)) * gpus_of_pod(pod)


# --- containers


def container_statuses(pod: Object) -> dict[str, Object]:
    """Return the statuses of all containers by name, init containers included."""
    status = pod.get("status") or {}
    return {
        each["name"]: each
        for field in ("initContainerStatuses", "containerStatuses")
        for each in status.get(field) or ()
    }


def find_termination(status: Object | None) -> Object | None:
    """Return how a container has ended; None: it has not."""
    return ((status or {}).get("state") or {}).get("terminated")


def find_last_termination(status: Object | None) -> Object | None:
    """Return how a container has ended, or its last run where it was started again."""
    previous: Object | None = ((status or {}).get("lastState") or {}).get("terminated")
    return find_termination(status) or previous


def running_since(status: Object | None) -> str | None:
    """Return since when a container runs (RFC 3339, "" where it is unknown); None: it does not."""
    state = ((status or {}).get("state") or {}).get("running")
    return (state.get("startedAt") or "") if state else None


def started_at(status: Object | None) -> float | None:
    """Return when a container that runs, or has ended, was started (Unix seconds)."""
    state = (status or {}).get("state") or {}
    started = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return parse_timestamp(started) if started else None


def describe_end(status: Object, cause: str = "") -> str:
    """Return `exit code 1 (Error): …`, with the cause.

    Where none is given, with the end of the container's termination message.
    """
    end = find_last_termination(status) or {}
    code, reason = end.get("exitCode"), end.get("reason", "")
    message = (end.get("message") or "").strip()
    text = f"exit code {code}" if code is not None else "ended"
    if reason and reason != "Error":
        text += f" ({reason})"
    cause = cause or message[-MAX_END_MESSAGE:]
    return f"{text}: {cause}" if cause else text
