"""How a proof stands: the engine was started once more, from the sealed bundle. A list of small checks, many of them attempt_state.py's.

A verdict is about the bundle (JUDGED) only where nothing else can be: a pod that was evicted or deleted, a node that was lost, a seed that
gave nothing say nothing about it.
"""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.names import PROVE_CONTAINER, SEED_CONTAINER
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.policy.bundles.attempt_state import (
    Attempt,
    AttemptState,
    Check,
    cannot_be_made,
    cannot_pull,
    crashes,
    disrupted,
    engine_name,
    finished,
    init_failed,
    is_finished,
    last_words,
    node_lost,
    overdue,
    pod_failed,
    pulling,
    reason_of,
    report_of,
    silent,
    since,
    statuses,
    terminated,
    unscheduled,
    without_pod,
)
from pretune.protocol import PROVEN, SEEDED, Report

JUDGED = frozenset(
    {reasons.NOT_REPRODUCIBLE, reasons.WARM_HANG, reasons.WARM_CRASH}
)  # a second proof of the same files would say the same
TWICE = frozenset(
    {reasons.WARM_HANG, reasons.WARM_CRASH}
)  # a node's bad moment looks the same: they judge when they repeat
MORE = 60.0  # seconds that a warm start may take longer than the cold one did


def unseeded(a: Attempt) -> AttemptState | None:
    """The engine has nothing to be warm from. Seed ends well whatever happens, and says what it did."""
    end = terminated(statuses(a.pod or {}).get(SEED_CONTAINER))
    if end is None or not end.get("message"):
        return None
    report = Report.load(end["message"])
    if report is not None and report.reason == SEEDED:
        return None
    said = (
        f"{report.reason}: {report.message}"
        if report is not None
        else end["message"].strip()[-400:]
    )
    return finished(
        reasons.PROOF_FAILED, f"container {SEED_CONTAINER} could not hand out the bundle: {said}"
    )


def reported(a: Attempt) -> AttemptState | None:
    """Prove has said how it ended. What an engine that had to be started twice left behind is no proof."""
    if a.pod is None:
        return None
    report = report_of(statuses(a.pod).get(PROVE_CONTAINER), PROVEN)
    if report is None:
        return None
    if _restarts(a):
        return crashed(a)
    return finished(reason_of(report), report.message, report)


def deleted(a: Attempt) -> AttemptState | None:
    """By a person, or with its Job: what its containers say then is only that they were killed."""
    if a.pod is None or not is_finished(a.pod) or not a.pod["metadata"].get("deletionTimestamp"):
        return None
    return finished(
        reasons.PROOF_FAILED, f"pod {a.pod['metadata']['name']} was deleted before it had reported"
    )


def hung(a: Attempt) -> AttemptState | None:
    """Not ready within its cold start's time and MORE, also where the pod's own deadline ended it while nobody looked. Where the cold
    start's time is not known (a bundle that was imported), that deadline is its time."""
    if a.pod is None or _restarts(a):
        return None
    status = statuses(a.pod).get(engine_name(a.pod)) or {}
    overtime = (a.pod.get("status") or {}).get("reason") == "DeadlineExceeded"
    end = terminated(status) or {}
    begun = since(a, engine_name(a.pod)) or (end.get("startedAt") if overtime else None)
    if not begun or status.get("started") or since(a, PROVE_CONTAINER) is not None:
        return None
    took = (
        parse_timestamp(end["finishedAt"]) if end.get("finishedAt") else a.now
    ) - parse_timestamp(begun)
    if not a.cold:
        return (
            finished(
                reasons.WARM_HANG,
                f"the engine was not ready {took:.0f} s after its start from the bundle",
            )
            if overtime
            else None
        )
    if took < a.cold + MORE:
        return None
    return finished(
        reasons.WARM_HANG,
        f"the engine was not ready {took:.0f} s after its start from the bundle; its cold start took {a.cold:.0f} s",
    )


def prove_silent(a: Attempt) -> AttemptState | None:
    return silent(a, PROVE_CONTAINER, reasons.PROOF_FAILED)


def crashed(a: Attempt) -> AttemptState | None:
    if a.pod is None or not crashes(a.pod):
        return None
    engine = engine_name(a.pod)
    status = statuses(a.pod)[engine]
    end = terminated(status) or (status.get("lastState") or {}).get("terminated") or {}
    if end.get("reason") == "ContainerStatusUnknown":  # its node was started anew
        return finished(reasons.PROOF_FAILED, f"container {engine}: {last_words(status)}")
    return finished(
        reasons.WARM_CRASH, f"container {engine}, started from the bundle: {last_words(status)}"
    )


def comparing(a: Attempt) -> AttemptState | None:
    if (running := since(a, PROVE_CONTAINER)) is None:
        return None
    return AttemptState(
        "Tuning",
        reasons.PROVING,
        f"the engine is ready; its folder is compared with the bundle since {running}",
    )


def starting(a: Attempt) -> AttemptState | None:
    if a.pod is None or (begun := since(a, engine_name(a.pod))) is None:
        return None
    if not a.cold or (statuses(a.pod)[engine_name(a.pod)]).get("started"):
        return AttemptState(
            "Tuning", reasons.PROVING, f"the engine starts from the bundle since {begun}"
        )
    until = parse_timestamp(begun) + a.cold + MORE
    words = f"the engine starts from the bundle since {begun}; it has until {format_timestamp(until)} (its cold start took {a.cold:.0f} s)"
    return AttemptState("Tuning", reasons.PROVING, words, look=until)


def _restarts(a: Attempt) -> int:
    engine = statuses(a.pod or {}).get(engine_name(a.pod or {})) or {}
    return int(engine.get("restartCount", 0))


CHECKS: tuple[Check, ...] = (
    unseeded,  # its folder is empty
    reported,  # prove has said how it ended
    node_lost,  # Terminating for ten minutes
    disrupted,  # evicted, preempted, deleted: another pod comes
    deleted,  # and it has ended
    hung,  # not ready in time
    overdue,  # the pod's deadline ended before that time
    cannot_pull,  # an image
    cannot_be_made,  # a container
    prove_silent,  # prove ended without a word, and the kubelet the engine after it
    crashed,  # the engine exited or restarted
    init_failed,  # an init container of the author's, or seed
    pod_failed,  # the kubelet ended the pod
    unscheduled,  # waits for a node, or for its queue
    comparing,
    starting,
    pulling,
    without_pod,
)
