"""How a proof stands: the engine was started again, from the sealed bundle.

PROOF_CHECKS are asked like ATTEMPT_CHECKS, and many of them are the same. A verdict is about the
bundle (JUDGED) only where nothing else can be at fault: a pod that was evicted or deleted, a node
that was lost, a seed that gave nothing say nothing about it.
"""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.names import PROVE_CONTAINER, SEED_CONTAINER, TUNING_STATE
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.policy.bundles.attempt_state import (
    Attempt,
    AttemptState,
    Check,
    cannot_create,
    cannot_pull,
    deleted,
    describe_engine_end,
    disrupted,
    ended_without_report,
    finished,
    init_failed,
    needed_elsewhere,
    node_lost,
    not_mounted,
    overdue,
    pod_failed,
    pulling,
    read_report,
    reason_of,
    suspended,
    unscheduled,
    without_pod,
)
from pretune.policy.pod_status import (
    MAX_END_MESSAGE,
    find_last_termination,
    find_termination,
    running_since,
)
from pretune.protocol import PROVEN, SEEDED, Report

# Final: a second proof of the same files would have the same result.
JUDGED = frozenset({reasons.NOT_REPRODUCIBLE, reasons.WARM_HANG, reasons.WARM_CRASH})
# Judged only when they repeat: a node's bad moment looks the same.
TWICE = frozenset({reasons.WARM_HANG, reasons.WARM_CRASH})
EXTRA_SECONDS = 60.0  # that a warm start may take longer than the cold one did


def unseeded(a: Attempt) -> AttemptState | None:
    """Seed has copied nothing, so that the engine has nothing to be warm from.

    Seed ends well in any case, and reports what it did.
    """
    end = find_termination(a.containers.get(SEED_CONTAINER))
    if end is None or not end.get("message"):
        return None
    report = Report.load(end["message"])
    if report is not None and report.reason == SEEDED:
        return None
    cause = (
        f"{report.reason}: {report.message}"
        if report is not None
        else end["message"].strip()[-MAX_END_MESSAGE:]
    )
    message = f"container {SEED_CONTAINER} could not copy the bundle: {cause}"
    return finished(reasons.PROOF_FAILED, message)


def reported(a: Attempt) -> AttemptState | None:
    """Prove has reported. What an engine left behind that was started twice is no proof."""
    report = read_report(a.containers.get(PROVE_CONTAINER), PROVEN)
    if report is None:
        return None
    if a.engine_restarts:
        return crashed(a)
    return finished(reason_of(report), report.message, report)


def hung(a: Attempt) -> AttemptState | None:
    """The engine was not ready within its cold start's time and EXTRA_SECONDS.

    Also where the pod's own deadline ended it before this was seen. Where the cold start's time is
    unknown (of an imported bundle), that deadline is the engine's time.
    """
    if a.pod is None or a.engine_restarts:
        return None
    is_overdue = (a.pod.get("status") or {}).get("reason") == "DeadlineExceeded"
    end = find_termination(a.engine) or {}
    since = running_since(a.engine) or (end.get("startedAt") if is_overdue else None)
    is_comparing = running_since(a.containers.get(PROVE_CONTAINER)) is not None
    if not since or is_comparing or a.engine.get("started"):
        return None
    until = parse_timestamp(end["finishedAt"]) if end.get("finishedAt") else a.now
    took = until - parse_timestamp(since)
    message = f"the engine was not ready {took:.0f} s after its start from the bundle"
    if not a.cold_seconds:
        return finished(reasons.WARM_HANG, message) if is_overdue else None
    if took < a.cold_seconds + EXTRA_SECONDS:
        return None
    message = f"{message}; its cold start took {a.cold_seconds:.0f} s"
    return finished(reasons.WARM_HANG, message)


def prove_ended(a: Attempt) -> AttemptState | None:
    """Prove has ended without a report, and the kubelet has ended the engine after it."""
    return ended_without_report(a, PROVE_CONTAINER, reasons.PROOF_FAILED)


def crashed(a: Attempt) -> AttemptState | None:
    """The engine has exited, or was restarted."""
    if not a.engine_crashes:
        return None
    description = describe_engine_end(a)
    end = find_last_termination(a.engine) or {}
    if end.get("reason") == "ContainerStatusUnknown":  # its node was restarted
        return finished(reasons.PROOF_FAILED, f"container {a.engine_name}: {description}")
    message = f"container {a.engine_name}, started from the bundle: {description}"
    return finished(reasons.WARM_CRASH, message)


def comparing(a: Attempt) -> AttemptState | None:
    """Prove runs."""
    since = running_since(a.containers.get(PROVE_CONTAINER))
    if since is None:
        return None
    message = f"the engine is ready; its folder is compared with the bundle since {since}"
    return AttemptState(TUNING_STATE, reasons.PROVING, message)


def starting(a: Attempt) -> AttemptState | None:
    """The engine runs."""
    since = running_since(a.engine)
    if since is None:
        return None
    message = f"the engine starts from the bundle since {since}"
    if not since or not a.cold_seconds or a.engine.get("started"):
        return AttemptState(TUNING_STATE, reasons.PROVING, message)
    until = parse_timestamp(since) + a.cold_seconds + EXTRA_SECONDS
    message = (
        f"{message}; it has until {format_timestamp(until)} (its cold start took"
        f" {a.cold_seconds:.0f} s)"
    )
    return AttemptState(TUNING_STATE, reasons.PROVING, message, recheck_at=until)


PROOF_CHECKS: tuple[Check, ...] = (
    unseeded,
    reported,
    node_lost,
    suspended,
    deleted,
    disrupted,
    hung,
    overdue,
    needed_elsewhere,
    cannot_pull,
    cannot_create,
    prove_ended,
    crashed,
    init_failed,
    pod_failed,
    unscheduled,
    comparing,
    starting,
    not_mounted,
    pulling,
    without_pod,
)
