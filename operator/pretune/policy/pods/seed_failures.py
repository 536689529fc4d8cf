"""Check of a pod's seed container: it cannot be created, or fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pretune.api import reasons
from pretune.api.names import SEED_CONTAINER
from pretune.api.timestamps import parse_timestamp
from pretune.policy.pod_status import (
    container_statuses,
    find_condition,
    find_termination,
    is_finished,
)
from pretune.policy.pods.starting_pod import (
    CREATE_FAILURES,
    START_GRACE_SECONDS,
    StartFailure,
    StartingPod,
    describe_state,
    first_seen_at,
    init_containers_done_at,
    truncate,
)

MIN_SEED_RESTARTS = 2  # after failures, before they count: the node may have had a bad moment
ENDED_POD_SECONDS = 600.0  # for which an ended pod counts: Jobs keep their pods for ever
# The kubelet restarts a container at once, then after this time, doubled for each more restart.
FIRST_BACKOFF_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 300.0
# Reasons of ends, of containerd and of other runtimes: the program never ran.
_NOT_STARTED = ("StartError", "ContainerCannotRun")
# How runtimes say that a program is not in the image.
_NOT_FOUND = ("no such file", "not found")
# Not `Error: ErrImagePull`, an event of the same reason.
_CREATE_ERROR = re.compile(r"Error: (?!ErrImage|ImagePull)\S+ \S")


def seed_cannot_run(pod: StartingPod) -> StartFailure | None:
    """Return the failure of a pod whose seed cannot be created, or ends with an error.

    Seed is written to end well whatever happens, so it is the image that lacks something (/bin/sh,
    say). Not where the image cannot be pulled: it is the engine's own. The time counts from the
    first failure, since a pull takes minutes.
    """
    status = container_statuses(pod.object).get(SEED_CONTAINER) or {}
    waiting = (status.get("state") or {}).get("waiting") or {}
    end = find_termination(status) or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    if is_finished(pod.object):  # never restarted: a Job's
        return _failure_of_ended_pod(pod, end)
    restarts = int(status.get("restartCount") or 0)
    if waiting.get("reason") in CREATE_FAILURES:
        state = waiting
        since = _failing_since(last, restarts) if _is_own_error(last) else _create_error_since(pod)
    elif end or waiting.get("reason") == "CrashLoopBackOff":
        state = end or last
        has_run = state.get("reason") not in _NOT_STARTED
        if not _is_own_error(state) or (has_run and restarts < MIN_SEED_RESTARTS):
            return None
        since = _failing_since(state, restarts)
        if end and _is_own_error(last):
            since = min(since, _failing_since(last, restarts - 1))
    else:
        return None
    due = max(init_containers_done_at(pod), since) + START_GRACE_SECONDS
    return _failure_of(state, due)


def _is_own_error(end: Mapping[str, Any]) -> bool:
    """Return whether a container ended with an error of its own.

    A code above 128 comes from outside: its node went (255), or memory was short (137). The
    container is restarted then.
    """
    return bool(end.get("finishedAt")) and 0 < (end.get("exitCode") or 0) <= 128


def _failing_since(end: Mapping[str, Any], restarts: int) -> float:
    """Return the latest time at which the first failure can have been (Unix seconds).

    The status has only the newest ends. The kubelet waited between the earlier ones.
    """
    waits = (
        min(FIRST_BACKOFF_SECONDS * 2.0**number, MAX_BACKOFF_SECONDS)
        for number in range(restarts - 1)
    )
    return parse_timestamp(end["finishedAt"]) - sum(waits)


def _create_error_since(pod: StartingPod) -> float:
    """Return when the runtime first refused to create seed (Unix seconds).

    Now, where no event was read that reports it: it may be a hiccup.
    """
    errors = [
        event
        for event in pod.events or ()
        if event.get("reason") == "Failed" and _CREATE_ERROR.match(str(event.get("message")))
    ]
    return min((first_seen_at(event) for event in errors), default=pod.now)


def _failure_of_ended_pod(pod: StartingPod, end: Mapping[str, Any]) -> StartFailure | None:
    """Return the failure of a pod that failed by seed alone.

    A pod that was ended from outside (evicted, out of time) says nothing about seed.
    """
    is_disrupted = find_condition(pod.object, "DisruptionTarget")
    if is_disrupted or (pod.object.get("status") or {}).get("reason") or not _is_own_error(end):
        return None
    ended_at = parse_timestamp(end["finishedAt"])
    if pod.now - ended_at > ENDED_POD_SECONDS:
        return None
    return _failure_of(end, ended_at)


def _failure_of(state: Mapping[str, Any], due: float) -> StartFailure:
    """Return the failure for a state of seed. Without a shell it can run on no node."""
    message = str(state.get("message") or "")
    has_no_shell = "/bin/sh" in message and any(text in message for text in _NOT_FOUND)
    text = truncate(f"container {SEED_CONTAINER}: {describe_state(state)}")
    return StartFailure(
        reasons.SEED_CANNOT_RUN, text, due, is_of_node=not has_no_shell, is_of_image=has_no_shell
    )
