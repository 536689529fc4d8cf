"""Pods that would start without us, and do not start with us: told apart from those that wait for anything else."""

from __future__ import annotations

from pretune.api import BUNDLE, Object
from pretune.decide.attempt import condition, finished, terminated
from pretune.model import seconds

PATIENCE = 60.0  # seconds that a pod may take to start once it could


def suspect(pod: Object, now: float) -> bool:
    """Whether the events of a consumer (cut down by observe.py) are worth reading at `now`: it was given a bundle, nothing gates it,
    and for PATIENCE its volumes, or the scheduler's view of them, have kept it from starting.

    Not where its containers wait for an image, nor where the scheduler speaks of other things: those are never our storage's fault.
    """
    return _given(pod) and now >= since(pod) + PATIENCE and (_volumes_wait(pod) or _volume_unschedulable(pod))


def since(pod: Object) -> float:
    """When a pod could start, or had to start anew (Unix seconds): created, given to a node, its sandbox lost."""
    times = [pod["metadata"]["creationTimestamp"]]
    for kind in ("PodScheduled", "PodReadyToStartContainers"):
        found = condition(pod, kind)
        if found is not None and found.get("lastTransitionTime"):
            times.append(found["lastTransitionTime"])
    return max(seconds(one) for one in times)


def _given(pod: Object) -> bool:
    """It has parts of ours, and nothing holds or ends it."""
    meta = pod["metadata"]
    return bool(
        (meta.get("annotations") or {}).get(BUNDLE)
        and not meta.get("deletionTimestamp")
        and not (pod.get("spec") or {}).get("schedulingGates")
        and not finished(pod)
    )


def _volumes_wait(pod: Object) -> bool:
    """On a node, and its volumes are not all mounted: the kubelet makes the sandbox after them, and says so since 1.29."""
    if not (pod.get("spec") or {}).get("nodeName"):
        return False
    sandbox = condition(pod, "PodReadyToStartContainers")
    if sandbox is not None:
        return bool(sandbox["status"] != "True")
    return not any(_ever_ran(one) for one in (pod.get("status") or {}).get("containerStatuses") or ())


def _ever_ran(status: Object) -> bool:
    state, last = status.get("state") or {}, status.get("lastState") or {}
    return bool(state.get("running") or terminated(status) or last or status.get("restartCount"))


def _volume_unschedulable(pod: Object) -> bool:
    """The scheduler could not place it, and names claims or volumes as a reason."""
    found = condition(pod, "PodScheduled")
    message = str((found or {}).get("message") or "").lower()
    return found is not None and found["status"] == "False" and ("volume" in message or "pvc" in message)
