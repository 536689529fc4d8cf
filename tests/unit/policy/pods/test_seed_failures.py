"""When seed's own errors, or its time, keep a pod from starting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.policy.pods import seed_failures
from pretune.policy.pods.start_failures import find_start_failure
from pretune.policy.pods.starting_pod import START_GRACE_SECONDS, StartFailure, StartingPod

from tests.builders.stuck_pods import SEEN, UNMADE, real

PULLED = parse_timestamp("2026-11-22T20:45:00Z")  # seven minutes after its sandbox


def seed(
    state: Object, restarts: int = 0, last: Object | None = None, now: float = 0.0, **more: Any
) -> StartingPod:
    """A pod whose image came at PULLED, and then seed stood like this."""
    pod = real("no-sh", now=PULLED + now, **more)
    [status] = pod.object["status"]["initContainerStatuses"]
    status.update(
        state=state, restartCount=restarts, lastState={"terminated": last} if last else {}
    )
    return pod


def end(code: int, after: float = 0.0, reason: str = "Error") -> Object:
    return {
        "exitCode": code,
        "reason": reason,
        "finishedAt": format_timestamp(PULLED + after),
        "startedAt": format_timestamp(PULLED),
    }


LOOP = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
NO_SHELL = end(128, reason="StartError")


@pytest.mark.parametrize(
    ("case", "pod", "after"),
    [
        ("its first bad end", seed({"terminated": end(3)}), None),
        ("restarted once", seed(LOOP, 1, end(3, 1)), None),
        (
            "restarted twice, ten seconds later",
            seed(LOOP, 2, end(3, 12)),
            2 + START_GRACE_SECONDS,
        ),
        ("three times: it failed for 30 s", seed(LOOP, 3, end(3, 33)), 3 + START_GRACE_SECONDS),
        (
            "it ends badly for the third time",
            seed({"terminated": end(3, 12)}, 2, end(3, 1)),
            1 + START_GRACE_SECONDS,
        ),
        (
            "its restarts took longer",
            seed({"terminated": end(3, 47)}, 3, end(3, 17)),
            7 + START_GRACE_SECONDS,
        ),
        (
            "killed before",
            seed({"terminated": end(3, 12)}, 2, end(137, 1)),
            2 + START_GRACE_SECONDS,
        ),
        ("it runs again", seed({"running": {}}, 3, end(3, 33)), None),
        ("ended by its node", seed({"terminated": end(255, reason="Unknown")}, 2), None),
        ("ended by its node, and waits", seed(LOOP, 4, end(255, reason="Unknown")), None),
        ("killed", seed({"terminated": end(137, reason="OOMKilled")}, 4), None),
        ("killed, and waits", seed(LOOP, 4, end(137)), None),
        ("it ended well, and is recreated with its node", seed(LOOP, 4, end(0)), None),
        ("no program: once is enough", seed({"terminated": NO_SHELL}), START_GRACE_SECONDS),
        (
            "no program, other runtimes' words",
            seed({"terminated": end(127, reason="ContainerCannotRun")}),
            START_GRACE_SECONDS,
        ),
        (
            "no program, and waits",
            seed(LOOP, 3, end(128, 33, "StartError")),
            3 + START_GRACE_SECONDS,
        ),
        ("refused after it could not run", seed(UNMADE, 1, NO_SHELL, now=45), START_GRACE_SECONDS),
        (
            "refused after its node ended",
            seed(UNMADE, 1, end(255), now=45, events=[]),
            45 + START_GRACE_SECONDS,
        ),
        ("refused, no event read", seed(UNMADE, now=5, events=[]), 5 + START_GRACE_SECONDS),
    ],
)
def test_seed_fails_by_its_own_errors_and_their_time(
    case: str, pod: StartingPod, after: float | None
) -> None:
    """Its image may have been pulled for minutes, and the kubelet restarts it."""
    failure = find_start_failure(pod)
    assert (failure.due - PULLED if failure else None) == after, case


def test_seed_that_cannot_be_created_counts_from_the_first_event_that_reports_it() -> None:
    """Its status has no time of it."""

    def at(after: float, message: str) -> Object:
        return {
            "reason": "Failed",
            "message": message,
            "metadata": {"creationTimestamp": format_timestamp(PULLED + after)},
        }

    pulls = [
        at(-300, "Error: ErrImagePull"),
        at(-290, "Error: ImagePullBackOff"),
        at(-300, "Failed to pull image x: no route"),
    ]
    refused = [
        at(2, "Error: context deadline exceeded"),
        at(12, "Error: failed to reserve container name x"),
    ]
    failure = find_start_failure(seed(UNMADE, now=40, events=[*pulls, *refused]))
    assert failure == StartFailure(
        "SeedCannotRun",
        "container pretune-seed: CreateContainerError: context deadline exceeded",
        PULLED + 2 + START_GRACE_SECONDS,
        is_of_node=True,
    )
    unread = find_start_failure(seed(UNMADE, now=40, events=pulls))
    assert unread is not None
    assert unread.due == PULLED + 40 + START_GRACE_SECONDS


def test_seeds_time_counts_from_the_end_of_the_init_containers_before_it() -> None:
    """A model that is fetched for twenty minutes is no fault of seed's."""
    case = copy.deepcopy(SEEN["no-sh"])
    fetch = {
        "name": "fetch",
        "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-22T20:45:00Z"}},
    }
    case["pod"]["status"]["initContainerStatuses"].insert(0, fetch)
    failure = find_start_failure(real("no-sh", **case))
    assert failure is not None
    assert failure.due == parse_timestamp("2026-11-22T20:45:00Z") + START_GRACE_SECONDS


def test_a_handle_that_went_stale_keeps_the_engine_from_its_next_start() -> None:
    """Seed and the engine ran, and the runtime cannot stat what the kubelet has mounted."""
    pod = real("mount-a-file")
    [engine] = pod.object["status"]["containerStatuses"]
    path = "/var/lib/kubelet/pods/0/volumes/kubernetes.io~nfs/rescue-lab-file"
    engine["state"] = {
        "waiting": {
            "reason": "CreateContainerError",
            "message": f'failed to generate container spec: failed to stat "{path}": stale NFS file handle',
        }
    }
    engine["lastState"] = {"terminated": {"exitCode": 1, "finishedAt": "2026-11-22T20:48:00Z"}}
    failure = find_start_failure(pod)
    assert failure is not None
    assert failure.reason == "MountFailed"
    assert "stale NFS file handle" in failure.message
    assert failure.due == parse_timestamp("2026-11-22T20:48:00Z") + START_GRACE_SECONDS
    engine["state"]["waiting"]["message"] = "failed to reserve container name"
    assert find_start_failure(pod) is None


@pytest.mark.parametrize(
    ("case", "exit_code", "conditions", "ago", "expected"),
    [
        ("no /bin/sh", 128, [], 0, True),
        ("it failed by itself", 3, [], 0, True),
        ("evicted", 3, [{"type": "DisruptionTarget", "status": "True"}], 0, False),
        ("killed from outside", 137, [], 0, False),
        ("ended by its node", 255, [], 0, False),
        ("it did well: the engine failed", 0, [], 0, False),
        ("long over", 128, [], seed_failures.ENDED_POD_SECONDS + 1, False),
    ],
)
def test_a_jobs_pod_that_failed_by_seed_counts_at_once(
    case: str, exit_code: int, conditions: list[Object], ago: float, expected: bool
) -> None:
    """restartPolicy Never: it is over at the first failure, and its Job makes the next one."""
    pod = real("no-sh-never", now=parse_timestamp("2026-11-22T20:37:37Z") + ago)
    pod.object["status"]["conditions"] += conditions
    [status] = pod.object["status"]["initContainerStatuses"]
    status["state"]["terminated"]["exitCode"] = exit_code
    failure = find_start_failure(pod)
    assert (failure is not None) is expected, case
    assert failure is None or failure.due <= pod.now
