"""How an attempt stands, read from its Job and pod: a list of small checks, asked in their order; the first that answers counts.

A check gets one Attempt and says AttemptState or None. Adding a rule is adding a line to CHECKS. A proof is an attempt with a list of its
own (proof_state.py), which shares most checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.names import CHECK_CONTAINER, PROVE_CONTAINER, SEAL_CONTAINER
from pretune.api.reasons import Reason, find_reason
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.podspec.template import count_gpus
from pretune.protocol import PROVEN, Report

POD_GRACE = 5.0  # seconds that a Job may be without a pod before its events are shown
EVENTS = 30.0  # seconds between looks at the events of a Job without a pod: nothing that is watched tells of them
LINGER = 30.0  # seconds that a pod may outlive its report
LOST = 600.0  # seconds that a pod may be Terminating past its grace
DISRUPTIONS = 6  # pods of one attempt that may be evicted or preempted; the last of them ends it

_CANNOT_PULL = (
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
_CANNOT_MAKE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_CANNOT_START = ("StartError", "ContainerCannotRun")


@dataclass(frozen=True)
class Attempt:
    """One attempt of a bundle: its Job (None: gone), its newest pod (None: none yet, or gone), and what it may use up."""

    number: int
    job: Object | None
    pod: Object | None
    events: tuple[Object, ...]  # of the Job, when it has no pod
    disruptions: int  # pods of this attempt that were lost before the present one
    now: float
    cold: float = 0.0  # of a proof: seconds that the engine's cold start took; 0: not known


@dataclass(frozen=True)
class AttemptState:
    """Pending or Tuning: it goes on. Over: it has ended, or is to be ended; a report says how, else the reason does."""

    state: str  # Pending | Tuning | Over
    reason: Reason
    message: str
    report: Report | None = None
    look: float | None = None  # when a check that is silent now would answer, Unix seconds


def read(attempt: Attempt, checks: Sequence[Check] | None = None) -> AttemptState:
    for check in CHECKS if checks is None else checks:
        standing = check(attempt)
        if standing is not None:
            return standing
    raise AssertionError("the last check answers always")


Check = Callable[[Attempt], AttemptState | None]


# --- the pod's parts


def statuses(pod: Object) -> dict[str, Object]:
    """Container statuses by container name, init containers included."""
    status = pod.get("status") or {}
    return {
        one["name"]: one
        for part in ("initContainerStatuses", "containerStatuses")
        for one in status.get(part) or ()
    }


def engine_of_pod(pod: Object) -> Object:
    """Return the engine: the last init container of a tuning or proof pod (manifests/job.py).

    {} for a pod without any, which somebody else made.
    """
    containers: list[Object] = (pod.get("spec") or {}).get("initContainers") or [{}]
    return containers[-1]


def engine_name(pod: Object) -> str:
    return str(engine_of_pod(pod).get("name", ""))


def is_finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_job_finished(job: Object) -> bool:
    """Return whether a Job has completed or failed."""
    return _has_job_condition(job, "Complete", "Failed")


def is_job_complete(job: Object) -> bool:
    return _has_job_condition(job, "Complete")


def _has_job_condition(job: Object, *kinds: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(each["type"] in kinds and each["status"] == "True" for each in conditions)


def gpu_seconds(pod: Object, now: float) -> float:
    """Return for how long a pod has had its node's GPUs, multiplied by the engine's GPUs.

    From the kubelet's start of the pod to its end, or until `now` (Unix seconds).
    """
    started = (pod.get("status") or {}).get("startTime")
    if not started:
        return 0.0
    ends = [
        parse_timestamp(end["finishedAt"])
        for end in map(terminated, statuses(pod).values())
        if end and end.get("finishedAt")
    ]
    until = max(ends) if is_finished(pod) and ends else now
    return max(0.0, until - parse_timestamp(started)) * count_gpus(engine_of_pod(pod))


def condition(pod: Object, kind: str) -> Object | None:
    return next(
        (one for one in (pod.get("status") or {}).get("conditions") or () if one["type"] == kind),
        None,
    )


def terminated(status: Object | None) -> Object | None:
    return ((status or {}).get("state") or {}).get("terminated")


def report_of(status: Object | None, answer: str = "") -> Report | None:
    """Return the report that a container of ours left, once it has ended.

    None also for one whose reason is neither in the catalogue nor this `answer`.
    """
    end = terminated(status)
    report = Report.load(end["message"]) if end and end.get("message") else None
    if report is None or (find_reason(report.reason) is None and report.reason != answer):
        return None
    return report


def reason_of(report: Report) -> Reason:
    """Return why an attempt ended by its report; a proof that went well is reason Sealed."""
    return find_reason(report.reason) or reasons.SEALED


def has_reported(pod: Object) -> bool:
    """Return whether seal or prove has reported, or check that the engine need not start."""
    found = statuses(pod)
    check = report_of(found.get(CHECK_CONTAINER))
    seal, prove = found.get(SEAL_CONTAINER), report_of(found.get(PROVE_CONTAINER), PROVEN)
    return check is not None or report_of(seal) is not None or prove is not None


def ended_at(pod: Object) -> float | None:
    """When seal or prove ended (Unix seconds): what the pod does after that is lingering."""
    found = statuses(pod)
    end = terminated(found.get(SEAL_CONTAINER) or found.get(PROVE_CONTAINER))
    return parse_timestamp(end["finishedAt"]) if end and end.get("finishedAt") else None


def start_seconds(pod: Object, last: str) -> int | None:
    """How long the engine's start took: until the container `last` (seal, prove) was started, which waits for it to be ready."""
    ends = [_began(statuses(pod).get(name)) for name in (engine_name(pod), last)]
    return None if None in ends else max(0, round(ends[1] - ends[0]))  # type: ignore[operator]


def _began(status: Object | None) -> float | None:
    """When a container that runs, or has ended, was started (Unix seconds)."""
    state = (status or {}).get("state") or {}
    at = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return parse_timestamp(at) if at else None


def crashes(pod: Object) -> int:
    """How often the engine ended: a native sidecar restarts in place, and in CrashLoopBackOff shows `terminated`."""
    engine = statuses(pod).get(engine_name(pod)) or {}
    return int(engine.get("restartCount", 0)) + (terminated(engine) is not None)


def last_words(status: Object) -> str:
    """`exit code 1 (Error): …the end of its termination message`."""
    end = terminated(status) or (status.get("lastState") or {}).get("terminated") or {}
    code, reason, words = (
        end.get("exitCode"),
        end.get("reason", ""),
        (end.get("message") or "").strip(),
    )
    text = f"exit code {code}" if code is not None else "ended"
    if reason and reason != "Error":
        text += f" ({reason})"
    return f"{text}: {words[-400:]}" if words else text


def finished(reason: Reason, message: str, report: Report | None = None) -> AttemptState:
    return AttemptState("Finished", reason, message, report)


# --- the checks


def reported(a: Attempt) -> AttemptState | None:
    """Seal or check has said how it ended. A report counts only if the engine started once."""
    if a.pod is None:
        return None
    found = statuses(a.pod)
    report = report_of(found.get(SEAL_CONTAINER))
    if report is not None:
        restarts = int((found.get(engine_name(a.pod)) or {}).get("restartCount", 0))
        if restarts:
            return finished(
                reasons.ENGINE_FAILED,
                f"the engine restarted {restarts} times before its files were sealed",
            )
        return finished(reason_of(report), report.message, report)
    report = report_of(found.get(CHECK_CONTAINER))
    return finished(reason_of(report), report.message, report) if report is not None else None


def node_lost(a: Attempt) -> AttemptState | None:
    if (
        a.pod is None
        or is_finished(a.pod)
        or not (ends := a.pod["metadata"].get("deletionTimestamp"))
    ):
        return None
    # deletionTimestamp already includes the grace period
    if a.now - parse_timestamp(ends) >= LOST:
        node = (a.pod.get("spec") or {}).get("nodeName", "its node")
        return finished(
            reasons.NODE_LOST,
            f"{node} has not ended the pod {a.pod['metadata']['name']} for {LOST / 60:.0f} minutes",
        )
    return None


def disrupted(a: Attempt) -> AttemptState | None:
    """Evicted or preempted: the Job makes another pod once this one is gone, and that is no failed attempt."""
    if a.pod is None:
        return None
    target = condition(a.pod, "DisruptionTarget")
    evicted = target is not None and target["status"] == "True"
    if not evicted and not (a.pod["metadata"].get("deletionTimestamp") and not is_finished(a.pod)):
        return None
    lost = a.disruptions + 1
    why = (target or {}).get("message") or "the pod is being deleted"
    if lost >= DISRUPTIONS:
        return finished(
            reasons.DISRUPTED, f"{lost} pods were evicted, preempted or deleted; the last: {why}"
        )
    look = None
    if gone := a.pod["metadata"].get("deletionTimestamp"):
        look = parse_timestamp(gone) + LOST
    return AttemptState(
        "Pending",
        reasons.WAITING_FOR_POD,
        f"pod {lost} was disrupted ({why}); the next one is made when it is gone",
        look=look,
    )


def overdue(a: Attempt) -> AttemptState | None:
    status = (a.pod or {}).get("status") or {}
    if status.get("reason") != "DeadlineExceeded":
        return None
    assert a.pod is not None
    limit = (a.pod["spec"] or {}).get("activeDeadlineSeconds")
    engine = statuses(a.pod).get(engine_name(a.pod)) or {}
    began = (
        "the engine was not ready"
        if engine.get("restartCount", 0) or terminated(engine)
        else "the engine had not started"
    )
    return finished(
        reasons.ENGINE_NOT_READY,
        f"{began} when spec.tuning.deadlineSeconds ({limit} s from the pod's start) ended",
    )


def cannot_pull(a: Attempt) -> AttemptState | None:
    return _waiting(a, _CANNOT_PULL, reasons.IMAGE_PULL_FAILED)


def cannot_be_made(a: Attempt) -> AttemptState | None:
    found = _waiting(a, _CANNOT_MAKE, reasons.CONTAINER_CONFIG_ERROR)
    if found is None and a.pod is not None:
        for name, status in statuses(a.pod).items():
            end = terminated(status) or (status.get("lastState") or {}).get("terminated") or {}
            if end.get("reason") in _CANNOT_START:
                return finished(
                    reasons.CONTAINER_CONFIG_ERROR, f"container {name}: {last_words(status)}"
                )
    return found


def _waiting(a: Attempt, words: tuple[str, ...], reason: Reason) -> AttemptState | None:
    for name, status in statuses(a.pod or {}).items():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in words:
            return finished(
                reason,
                f"container {name}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": "),
            )
    return None


def engine_failed(a: Attempt) -> AttemptState | None:
    """One start only: a restart over half-written files can itself be the warm hang."""
    if a.pod is None or not crashes(a.pod):
        return None
    engine = engine_name(a.pod)
    return finished(
        reasons.ENGINE_FAILED, f"container {engine}: {last_words(statuses(a.pod)[engine])}"
    )


def check_silent(a: Attempt) -> AttemptState | None:
    status = statuses(a.pod or {}).get(CHECK_CONTAINER)
    end = terminated(status)
    if status is None or end is None or end.get("exitCode") == 0:
        return None
    return finished(
        reasons.SEAL_FAILED, f"container {CHECK_CONTAINER} left no report: {last_words(status)}"
    )


def init_failed(a: Attempt) -> AttemptState | None:
    if a.pod is None:
        return None
    for status in (a.pod.get("status") or {}).get("initContainerStatuses") or ():
        end = terminated(status) or (status.get("lastState") or {}).get("terminated")
        if end and end.get("exitCode") != 0 and status["name"] != engine_name(a.pod):
            return finished(
                reasons.INIT_CONTAINER_FAILED,
                f"init container {status['name']}: {last_words(status)}",
            )
    return None


def seal_silent(a: Attempt) -> AttemptState | None:
    return silent(a, SEAL_CONTAINER, reasons.SEAL_FAILED)


def silent(a: Attempt, name: str, reason: Reason) -> AttemptState | None:
    """A container of ours has ended without a word."""
    status = statuses(a.pod or {}).get(name)
    if status is None or terminated(status) is None:
        return None
    return finished(reason, f"container {name} left no report: {last_words(status)}")


def pod_failed(a: Attempt) -> AttemptState | None:
    """The kubelet refused or ended the pod before any container could say why (UnexpectedAdmissionError, say)."""
    if a.pod is None or not is_finished(a.pod):
        return None
    status = a.pod["status"]
    return finished(
        reasons.JOB_FAILED,
        f"pod {a.pod['metadata']['name']}: {status.get('reason', status['phase'])}: {status.get('message', '')}".rstrip(
            ": "
        ),
    )


def unscheduled(a: Attempt) -> AttemptState | None:
    if a.pod is None:
        return None
    scheduled = condition(a.pod, "PodScheduled")
    if (a.pod.get("spec") or {}).get("nodeName") or (scheduled and scheduled["status"] == "True"):
        return None
    if scheduled and scheduled.get("reason") == "SchedulingGated":
        return AttemptState(
            "Pending",
            reasons.QUEUED,
            "the pod has a scheduling gate: its queue has not admitted it yet",
        )
    if scheduled is None:
        return AttemptState(
            "Pending", reasons.WAITING_FOR_POD, "the Job is made"
        )  # without_pod's words: no status write for an instant
    return AttemptState(
        "Pending",
        reasons.WAITING_FOR_NODE,
        scheduled.get("message") or "the scheduler has not placed the pod yet",
    )


def sealing(a: Attempt) -> AttemptState | None:
    if (running := since(a, SEAL_CONTAINER)) is None:
        return None
    return AttemptState(
        "Tuning",
        reasons.SEALING,
        f"the engine is ready; its files are checked and published since {running}",
    )


def tuning(a: Attempt) -> AttemptState | None:
    if a.pod is None or (running := since(a, engine_name(a.pod))) is None:
        return None
    return AttemptState("Tuning", reasons.TUNING, f"the engine starts and tunes since {running}")


def since(a: Attempt, name: str) -> str | None:
    """Since when a container runs, as the API says it; None: it does not."""
    state = ((statuses(a.pod or {}).get(name) or {}).get("state") or {}).get("running")
    return (state.get("startedAt") or "") if state else None


def checking(a: Attempt) -> AttemptState | None:
    """From check's start until the engine's, where no init container of the author's comes between."""
    if a.pod is None or (since(a, CHECK_CONTAINER) is None and not _all_but_engine_ended(a.pod)):
        return None
    return AttemptState(
        "Tuning", reasons.CHECKING, "the claim and the image's versions are checked"
    )


def _all_but_engine_ended(pod: Object) -> bool:
    found = (pod.get("status") or {}).get("initContainerStatuses") or ()
    before = [one for one in found if one["name"] != engine_name(pod)]
    return bool(before) and all(terminated(one) for one in before)


def pulling(a: Attempt) -> AttemptState | None:
    if a.pod is None:
        return None
    node = (a.pod.get("spec") or {}).get("nodeName") or "a node"
    return AttemptState(
        "Tuning", reasons.PULLING, f"{node} pulls images, mounts volumes and runs init containers"
    )


def without_pod(a: Attempt) -> AttemptState:
    """The Job is all that there is."""
    if a.job is None or is_job_finished(a.job):
        return finished(reasons.REPORT_LOST, "the pod was gone before its report could be read")
    if (a.job.get("spec") or {}).get("suspend"):
        return AttemptState(
            "Pending", reasons.QUEUED, "the Job is suspended: its queue has not admitted it yet"
        )
    shown = parse_timestamp(a.job["metadata"]["creationTimestamp"]) + POD_GRACE
    refusals = [
        one for one in a.events if one.get("reason") == "FailedCreate" and one.get("message")
    ]
    if refusals and a.now >= shown:
        newest = max(
            refusals, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or "")
        )
        return AttemptState(
            "Pending",
            reasons.POD_REFUSED,
            _without_pod_name(newest["message"]),
            look=a.now + EVENTS,
        )
    look = shown if a.now < shown else a.now + EVENTS
    return AttemptState("Pending", reasons.WAITING_FOR_POD, "the Job is made", look=look)


def _without_pod_name(message: str) -> str:
    """The sentence without the pod's name, which is new at each try: the message shall only change when the matter does."""
    head, mark, rest = message.partition(' "')
    _, end, tail = rest.partition('"')
    return f"{head}{tail}" if mark and end and "pods" in head else message


CHECKS: tuple[Check, ...] = (
    reported,  # seal or check has said how it ended
    node_lost,  # Terminating for ten minutes
    disrupted,  # evicted, preempted, deleted: another pod comes
    overdue,  # the pod's deadline ended
    cannot_pull,  # an image
    cannot_be_made,  # a container
    engine_failed,  # exited or restarted
    check_silent,  # check failed without a word
    init_failed,  # an init container of the author's
    seal_silent,  # seal ended without a word
    pod_failed,  # the kubelet ended the pod
    unscheduled,  # waits for a node, or for its queue
    sealing,
    tuning,
    checking,
    pulling,
    without_pod,
)
