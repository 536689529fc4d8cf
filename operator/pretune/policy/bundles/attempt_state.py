"""How an attempt stands, read from its Job and pod.

ATTEMPT_CHECKS are asked in their order; the first that answers counts. A check gets one Attempt,
and returns its state or None. A proof is an attempt with a list of its own (proof_state.py), and
so is an import (imports.py): they share most checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pretune.api import reasons
from pretune.api.names import (
    CHECK_CONTAINER,
    PENDING,
    PROVE_CONTAINER,
    SEAL_CONTAINER,
    TUNING_STATE,
)
from pretune.api.reasons import Reason, find_reason
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.podspec.template import engine_type
from pretune.policy.pod_status import (
    NODE_LOST_SECONDS,
    appended_names,
    container_statuses,
    describe_end,
    engine_name,
    engine_of_pod,
    find_condition,
    find_last_termination,
    find_termination,
    is_deleted,
    is_disrupted,
    is_ended_by_suspension,
    is_finished,
    is_job_failed,
    is_job_finished,
    is_suspended,
    node_lost_at,
    running_since,
    started_at,
    suspended_or_resumed_at,
)
from pretune.policy.pods.starting_pod import first_seen_at, last_seen_at, waits_for_mounts
from pretune.protocol import PROVEN, Report

POD_GRACE_SECONDS = 5.0  # that a Job may be without a pod before its events are shown
EVENTS_RECHECK_SECONDS = 30.0  # between reads of a Job's events, which are not watched
VOLUME_GRACE_SECONDS = 15.0  # that a pod may be without its volumes before its events are read
MOUNT_TIMEOUT_SECONDS = 600.0  # from the first such event until the attempt counts as failed
LINGER_SECONDS = 30.0  # that a pod may outlive its report
MAX_DISRUPTIONS = 6  # pods of one attempt that are evicted or preempted; the last of them ends it

# An attempt's states, beside Pending and Tuning.
FINISHED = "Finished"
REPEATED = "Repeated"  # its Job has failed through no fault of its own; it is created again
GIVES_WAY = "GivesWay"  # it is ended for a pod that serves; it begins again with its number

# What the kubelet gives as a container's reason.
_CANNOT_PULL = (
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
_CANNOT_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# Events of the kubelet and of the controller that attaches volumes.
_CANNOT_MOUNT = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_CANNOT_START = ("StartError", "ContainerCannotRun")

_STOPPED = "Stopped"  # Kueue's event of a Job that it has evicted; its message says why


@dataclass(frozen=True)
class Attempt:
    """One attempt: its Job (None: gone), its pod (None: none yet, or gone), and what it used up."""

    number: int
    job: Object | None
    pod: Object | None
    # Of the Job, when it has no pod or is suspended; of the pod, while its volumes are not mounted.
    events: tuple[Object, ...]
    disruptions: int  # pods of this attempt that were lost, as far as that was seen
    now: float  # Unix seconds
    cold_seconds: float = 0.0  # of a proof: how long the engine's cold start took; 0: unknown
    has_lost_pod: bool = False  # the last pod that was seen was evicted, preempted or deleted
    # Nodes of the pods that use a ReadWriteOnce claim of the engine, by its name.
    claim_nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cause: str = ""  # why the engine failed, as its log says; "": unknown

    @cached_property
    def containers(self) -> dict[str, Object]:
        """The statuses of the pod's containers, by name."""
        return container_statuses(self.pod or {})

    @property
    def engine_name(self) -> str:
        return engine_name(self.pod or {})

    @property
    def engine(self) -> Object:
        """The status of the engine's container; {}: there is none yet."""
        return self.containers.get(self.engine_name) or {}

    @property
    def engine_restarts(self) -> int:
        return int(self.engine.get("restartCount") or 0)

    @property
    def engine_crashes(self) -> int:
        """How often the engine has ended.

        A native sidecar restarts in place, and in CrashLoopBackOff its state is `terminated`.
        """
        return self.engine_restarts + (find_termination(self.engine) is not None)


@dataclass(frozen=True)
class AttemptState:
    """How an attempt stands. Finished: it has ended, or is to be ended, as its report says.

    Without a report, as the reason says. Repeated: its Job is created again with the same number.
    GivesWay: it is to be ended, and has not failed.
    """

    state: str  # Pending | Tuning | Finished | Repeated | GivesWay
    reason: Reason
    message: str
    report: Report | None = None
    recheck_at: float | None = None  # when a check may apply that nothing wakes for (Unix seconds)


Check = Callable[[Attempt], AttemptState | None]


def read_attempt(attempt: Attempt, checks: Sequence[Check]) -> AttemptState:
    """Return what the first check says that answers; the last one always does."""
    return next(state for check in checks if (state := check(attempt)) is not None)


def finished(reason: Reason, message: str, report: Report | None = None) -> AttemptState:
    return AttemptState(FINISHED, reason, message, report)


# --- reports


def read_report(status: Object | None, answer: str = "") -> Report | None:
    """Return the report that a container of ours left, once it has ended.

    None also for one whose reason is neither in the catalogue nor this `answer`.
    """
    end = find_termination(status)
    report = Report.load(end["message"]) if end and end.get("message") else None
    if report is None or (find_reason(report.reason) is None and report.reason != answer):
        return None
    return report


def reason_of(report: Report) -> Reason:
    """Return why an attempt ended by its report; a proof that went well is reason Sealed."""
    return find_reason(report.reason) or reasons.SEALED


def has_reported(pod: Object) -> bool:
    """Return whether seal or prove has reported, or check that the engine need not start."""
    containers = container_statuses(pod)
    return (
        read_report(containers.get(CHECK_CONTAINER)) is not None
        or read_report(containers.get(SEAL_CONTAINER)) is not None
        or read_report(containers.get(PROVE_CONTAINER), PROVEN) is not None
    )


def reported_at(pod: Object) -> float | None:
    """Return when seal or prove has ended (Unix seconds): after that the pod only lingers."""
    containers = container_statuses(pod)
    end = find_termination(containers.get(SEAL_CONTAINER) or containers.get(PROVE_CONTAINER))
    return parse_timestamp(end["finishedAt"]) if end and end.get("finishedAt") else None


def measure_start(pod: Object, last: str) -> int | None:
    """Return how many seconds the engine took to be ready; None: unknown.

    Until the start of the container `last` (seal or prove), which waits for the engine.
    """
    containers = container_statuses(pod)
    begin, end = (started_at(containers.get(name)) for name in (engine_name(pod), last))
    return None if begin is None or end is None else max(0, round(end - begin))


# --- the checks


def reported(a: Attempt) -> AttemptState | None:
    """Seal or check has reported. A report counts only if the engine was started once."""
    report = read_report(a.containers.get(SEAL_CONTAINER))
    if report is not None and a.engine_restarts:
        message = f"the engine restarted {a.engine_restarts} times before its files were sealed"
        return finished(reasons.ENGINE_FAILED, message)
    report = report or read_report(a.containers.get(CHECK_CONTAINER))
    return finished(reason_of(report), report.message, report) if report is not None else None


def node_lost(a: Attempt) -> AttemptState | None:
    """The pod is Terminating for ten minutes."""
    if a.pod is None or is_finished(a.pod):
        return None
    lost_at = node_lost_at(a.pod)
    if lost_at is None or a.now < lost_at:
        return None
    node, name = (a.pod.get("spec") or {}).get("nodeName", "its node"), a.pod["metadata"]["name"]
    minutes = NODE_LOST_SECONDS / 60
    message = f"{node} has not ended the pod {name} for {minutes:.0f} minutes"
    return finished(reasons.NODE_LOST, message)


def suspended(a: Attempt) -> AttemptState | None:
    """The Job is suspended, or was: it creates another pod when it is resumed.

    Kueue does that to preempt it. It says nothing about the engine, and is no disruption.
    """
    if a.job is None or a.pod is None or is_job_finished(a.job):
        return None
    if not is_ended_by_suspension(a.job, a.pod):
        return None
    message = f"the Job is suspended{_describe_stop(a)}; its pod ends, and a later one begins again"
    return AttemptState(PENDING, reasons.QUEUED, message, recheck_at=node_lost_at(a.pod))


def deleted(a: Attempt) -> AttemptState | None:
    """The pod was deleted, and the Job has failed with it. That says nothing about the engine."""
    if a.job is None or not is_job_failed(a.job):
        return None
    is_gone = a.pod is None and a.has_lost_pod
    ends = a.pod is not None and is_finished(a.pod) and is_deleted(a.pod)
    return _describe_loss(a, REPEATED, "the pod was deleted") if is_gone or ends else None


def disrupted(a: Attempt) -> AttemptState | None:
    """The pod is evicted, preempted or deleted: how its containers end says nothing.

    The Job creates another one once this one is gone, and that is no failed attempt.
    """
    if a.pod is None or not is_disrupted(a.pod):
        return None
    target = find_condition(a.pod, "DisruptionTarget") or {}
    return _describe_loss(a, PENDING, target.get("message") or "the pod is being deleted")


def _describe_loss(a: Attempt, state: str, cause: str) -> AttemptState:
    """Return this state, or Finished where the attempt has lost too many pods."""
    number = max(1, a.disruptions)
    if number >= MAX_DISRUPTIONS:
        message = f"{number} pods were evicted, preempted or deleted; the last: {cause}"
        return finished(reasons.DISRUPTED, message)
    message = f"pod {number} was disrupted ({cause}); the next one is created when it is gone"
    recheck_at = node_lost_at(a.pod) if a.pod is not None else None
    return AttemptState(state, reasons.WAITING_FOR_POD, message, recheck_at=recheck_at)


def overdue(a: Attempt) -> AttemptState | None:
    """The pod's deadline has ended."""
    if a.pod is None or (a.pod.get("status") or {}).get("reason") != "DeadlineExceeded":
        return None
    limit = (a.pod.get("spec") or {}).get("activeDeadlineSeconds")
    has_started = a.engine_restarts or find_termination(a.engine)
    return finished(
        reasons.ENGINE_NOT_READY,
        f"{'the engine was not ready' if has_started else 'the engine had not started'} when"
        f" spec.tuning.deadlineSeconds ({limit} s from the pod's start) ended"
        f"{describe_log(a, a.engine_name) if has_started else ''}",
    )


def cannot_pull(a: Attempt) -> AttemptState | None:
    """An image cannot be pulled."""
    return _waiting(a, _CANNOT_PULL, reasons.IMAGE_PULL_FAILED)


def cannot_create(a: Attempt) -> AttemptState | None:
    """A container cannot be created, or its program cannot be started."""
    found = _waiting(a, _CANNOT_CREATE, reasons.CONTAINER_CONFIG_ERROR)
    if found is not None:
        return found
    for name, status in a.containers.items():
        if (find_last_termination(status) or {}).get("reason") in _CANNOT_START:
            message = f"container {name}: {describe_end(status)}"
            return finished(reasons.CONTAINER_CONFIG_ERROR, message)
    return None


def _waiting(a: Attempt, words: tuple[str, ...], reason: Reason) -> AttemptState | None:
    """Finished for this reason where a container waits for one of these words."""
    for name, status in a.containers.items():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in words:
            message = f"container {name}: {waiting['reason']}: {waiting.get('message', '')}"
            return finished(reason, message.rstrip(": "))
    return None


def engine_failed(a: Attempt) -> AttemptState | None:
    """The engine has exited, or was restarted.

    One start only: a restart over files that are half written can itself hang.
    """
    if not a.engine_crashes:
        return None
    return finished(reasons.ENGINE_FAILED, f"container {a.engine_name}: {describe_engine_end(a)}")


def describe_engine_end(a: Attempt) -> str:
    """Return how the engine has ended, why, and the command that shows its log.

    Why is what its log names as the cause, else the end of its termination message: of an engine
    of several processes that is another one's sentence.
    """
    end = find_last_termination(a.engine) or {}
    parser = engine_type(engine_of_pod(a.pod or {})).create_failure_parser()
    cause = a.cause or (parser.find_cause(end.get("message") or "") if parser is not None else "")
    return f"{describe_end(a.engine, cause)}{describe_log(a, a.engine_name)}"


def describe_log(a: Attempt, container: str) -> str:
    """Return `; its log: kubectl logs …`, for the pod of a failed attempt stays."""
    if a.pod is None:
        return ""
    meta = a.pod["metadata"]
    return f"; its log: kubectl logs -n {meta['namespace']} {meta['name']} -c {container}"


def check_failed(a: Attempt) -> AttemptState | None:
    """Check has failed without a report."""
    status = a.containers.get(CHECK_CONTAINER)
    end = find_termination(status)
    if status is None or end is None or end.get("exitCode") == 0:
        return None
    message = f"container {CHECK_CONTAINER} left no report: {describe_end(status)}"
    return finished(reasons.SEAL_FAILED, message)


def init_failed(a: Attempt) -> AttemptState | None:
    """An init container before the engine has failed: one of the template's author."""
    for status in ((a.pod or {}).get("status") or {}).get("initContainerStatuses") or ():
        end = find_last_termination(status)
        if end and end.get("exitCode") != 0 and status["name"] != a.engine_name:
            end_of_log = describe_log(a, status["name"])
            message = f"init container {status['name']}: {describe_end(status)}{end_of_log}"
            return finished(reasons.INIT_CONTAINER_FAILED, message)
    return None


def seal_ended(a: Attempt) -> AttemptState | None:
    """Seal has ended without a report."""
    return ended_without_report(a, SEAL_CONTAINER, reasons.SEAL_FAILED)


def ended_without_report(a: Attempt, name: str, reason: Reason) -> AttemptState | None:
    """Return Finished for this reason where this container of ours has ended.

    After a check that reads its report.
    """
    status = a.containers.get(name)
    if status is None or find_termination(status) is None:
        return None
    return finished(reason, f"container {name} left no report: {describe_end(status)}")


def pod_failed(a: Attempt) -> AttemptState | None:
    """The kubelet refused or ended the pod (UnexpectedAdmissionError, for example)."""
    if a.pod is None or not is_finished(a.pod):
        return None
    status, name = a.pod["status"], a.pod["metadata"]["name"]
    cause = status.get("reason", status["phase"])
    message = f"pod {name}: {cause}: {status.get('message', '')}"
    return finished(reasons.JOB_FAILED, message.rstrip(": "))


def unscheduled(a: Attempt) -> AttemptState | None:
    """The pod waits for a node, or for its queue."""
    if a.pod is None:
        return None
    scheduled = find_condition(a.pod, "PodScheduled")
    if (a.pod.get("spec") or {}).get("nodeName") or (scheduled and scheduled["status"] == "True"):
        return None
    if scheduled is None:  # without_pod's message: no status write for an instant
        return AttemptState(PENDING, reasons.WAITING_FOR_POD, _CREATED)
    if scheduled.get("reason") == "SchedulingGated":
        message = "the pod has a scheduling gate: its queue has not admitted it yet"
        return AttemptState(PENDING, reasons.QUEUED, message)
    message = scheduled.get("message") or "the scheduler has not placed the pod yet"
    return AttemptState(PENDING, reasons.WAITING_FOR_NODE, message)


_CREATED = "the Job is created"


def sealing(a: Attempt) -> AttemptState | None:
    """Seal runs."""
    since = running_since(a.containers.get(SEAL_CONTAINER))
    if since is None:
        return None
    message = f"the engine is ready; its files are checked and published since {since}"
    return AttemptState(TUNING_STATE, reasons.SEALING, message)


def tuning(a: Attempt) -> AttemptState | None:
    """The engine runs."""
    since = running_since(a.engine)
    if since is None:
        return None
    message = f"the engine starts and tunes since {since}"
    if appended := appended_names(a.pod or {}):
        names = ", ".join(appended)
        message += f"; init container {names}, which admission appended, runs after it"
    return AttemptState(TUNING_STATE, reasons.TUNING, message)


def checking(a: Attempt) -> AttemptState | None:
    """Check runs, or has ended and the engine comes next."""
    is_checking = running_since(a.containers.get(CHECK_CONTAINER)) is not None
    if not is_checking and not _engine_comes_next(a):
        return None
    message = "the claim and the image's versions are checked"
    return AttemptState(TUNING_STATE, reasons.CHECKING, message)


def _engine_comes_next(a: Attempt) -> bool:
    """Whether all init containers before the engine have ended."""
    statuses = ((a.pod or {}).get("status") or {}).get("initContainerStatuses") or ()
    not_before = {a.engine_name, *appended_names(a.pod or {})}
    before = [status for status in statuses if status["name"] not in not_before]
    return bool(before) and all(map(find_termination, before))


def needed_elsewhere(a: Attempt) -> AttemptState | None:
    """A pod that serves, on another node, needs a ReadWriteOnce claim that this pod mounts."""
    spec = (a.pod or {}).get("spec") or {}
    node = spec.get("nodeName")
    if a.pod is None or not node or is_finished(a.pod):
        return None
    for volume in spec.get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName", "")
        nodes = a.claim_nodes.get(name) or ()
        if nodes and node not in nodes:
            message = (
                f"claim {name} is ReadWriteOnce, and a pod on {', '.join(nodes)} needs it: the"
                f" attempt on {node} was ended"
            )
            return AttemptState(GIVES_WAY, reasons.SUPERSEDED, message)
    return None


def not_mounted(a: Attempt) -> AttemptState | None:
    """The kubelet cannot attach or mount a volume."""
    if a.pod is None or not lacks_volumes(a.pod):
        return None
    failures = [event for event in a.events if event.get("reason") in _CANNOT_MOUNT]
    if not failures:
        return None
    newest = max(failures, key=last_seen_at)
    message = f"{newest['reason']}: {newest.get('message', '')}"
    if a.now >= min(map(first_seen_at, failures)) + MOUNT_TIMEOUT_SECONDS:
        return finished(reasons.VOLUME_UNAVAILABLE, message)
    recheck_at = a.now + EVENTS_RECHECK_SECONDS
    return AttemptState(TUNING_STATE, reasons.VOLUME_UNAVAILABLE, message, recheck_at=recheck_at)


def lacks_volumes(pod: Object) -> bool:
    """Return whether a pod of ours has a node, and not all of its volumes yet."""
    has_run = any(
        running_since(status) is not None or find_termination(status)
        for status in container_statuses(pod).values()
    )
    return not is_finished(pod) and not has_run and waits_for_mounts(pod)


def pulling(a: Attempt) -> AttemptState | None:
    """The pod has a node."""
    if a.pod is None:
        return None
    node = (a.pod.get("spec") or {}).get("nodeName") or "a node"
    message = f"{node} pulls images, mounts volumes and runs init containers"
    recheck_at = a.now + EVENTS_RECHECK_SECONDS if lacks_volumes(a.pod) else None
    return AttemptState(TUNING_STATE, reasons.PULLING, message, recheck_at=recheck_at)


def without_pod(a: Attempt) -> AttemptState:
    """There is the Job only, or nothing."""
    if a.job is None or is_job_finished(a.job):
        return finished(reasons.REPORT_LOST, "the pod was gone before its report could be read")
    if is_suspended(a.job):
        return _queued(a)
    shown_at = parse_timestamp(a.job["metadata"]["creationTimestamp"]) + POD_GRACE_SECONDS
    recheck_at = shown_at if a.now < shown_at else a.now + EVENTS_RECHECK_SECONDS
    refusals = [
        event
        for event in a.events
        if event.get("reason") == "FailedCreate" and event.get("message")
    ]
    if not refusals or a.now < shown_at:
        return AttemptState(PENDING, reasons.WAITING_FOR_POD, _CREATED, recheck_at=recheck_at)
    newest = max(refusals, key=_event_time)
    message = _without_pod_name(newest["message"])
    return AttemptState(PENDING, reasons.POD_REFUSED, message, recheck_at=recheck_at)


def _queued(a: Attempt) -> AttemptState:
    """Pending, for what Kueue's event says where it has taken the Job's place for another."""
    assert a.job is not None
    stop = _describe_stop(a)
    message = f"the Job is suspended{stop or ': its queue has not admitted it yet'}"
    # The event comes after the suspension, and nothing wakes for it.
    shown_at = (suspended_or_resumed_at(a.job) or 0.0) + POD_GRACE_SECONDS
    recheck_at = shown_at if a.now < shown_at else None
    return AttemptState(PENDING, reasons.QUEUED, message, recheck_at=recheck_at)


def _describe_stop(a: Attempt) -> str:
    """Return ` (why)`, as the newest event of Kueue says it; "": there is none."""
    events = [event for event in a.events if event.get("reason") == _STOPPED]
    newest = max(events, key=_event_time, default={})
    return f" ({newest['message']}{_advise(newest['message'])})" if newest.get("message") else ""


def _advise(why: str) -> str:
    """Return what to do where Kueue has evicted an attempt since its pod was not Ready.

    A tuning pod is Ready only once its engine has tuned.
    """
    if "PodsReady" not in why:
        return ""
    return "; set waitForPodsReady.timeout of Kueue above the time that tuning takes"


def _event_time(event: Object) -> str:
    series = event.get("series") or {}
    times = series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime")
    return str(next(filter(None, times), ""))


def _without_pod_name(message: str) -> str:
    """Return the API server's sentence without the pod's name.

    That is another one at each try, and a message shall only change when its matter does.
    """
    head, mark, rest = message.partition(' "')
    _, end, tail = rest.partition('"')
    return f"{head}{tail}" if mark and end and "pods" in head else message


ATTEMPT_CHECKS: tuple[Check, ...] = (
    reported,
    node_lost,
    suspended,
    deleted,
    disrupted,
    overdue,
    needed_elsewhere,
    cannot_pull,
    cannot_create,
    engine_failed,
    check_failed,
    init_failed,
    seal_ended,
    pod_failed,
    unscheduled,
    sealing,
    tuning,
    checking,
    not_mounted,
    pulling,
    without_pod,
)
