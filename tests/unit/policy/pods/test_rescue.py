"""What becomes of pods that cannot start because of us, and of their bundles."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from pretune.api.names import REASON
from pretune.api.reasons import Refused
from pretune.api.status import MAX_BUNDLES
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.policy.model import Delete
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import list_consumers
from pretune.policy.pods.rescue import NODE_MARK_SECONDS, SEED_MARK_SECONDS, rescue
from pretune.policy.pods.starting_pod import START_GRACE_SECONDS

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import KEY, NOW
from tests.builders.observed import bundle_of, observed, origin
from tests.builders.pods import Consumer
from tests.builders.stuck_pods import BY_CLAIM, BY_GPU, SANDBOX, SCHEDULED, SEEN, UNMADE, condition

GIVEN = "b-default"


def stuck_pod(number: int = 1, **meta: Any) -> Consumer:
    """One that the kubelet cannot start: no /bin/sh."""
    status = json.loads(
        re.sub(
            r"2026-11-22T[0-9:]*Z",
            format_timestamp(NOW - 200),
            json.dumps(SEEN["no-sh"]["pod"]["status"]),
        )
    )
    return (
        Consumer("web", number, age=300)
        .given(GIVEN)
        .meta(**meta)
        ._but(spec={"nodeName": "node0"}, status=status)
    )


def unscheduled(number: int = 1, message: str = BY_CLAIM, **meta: Any) -> Consumer:
    """One that the scheduler cannot place because of our claim."""
    name = f"pretune-{KEY.name}"
    volumes = [
        {"name": "pretune-claim", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}
    ]
    conditions = [condition(SCHEDULED, "False", 200, message=message, reason="Unschedulable")]
    return (
        Consumer("web", number, age=300)
        .given(GIVEN)
        .meta(**meta)
        ._but(spec={"volumes": volumes}, status={"conditions": conditions})
    )


def run(
    *pods: Consumer, now: float = NOW, record: Object | None = None, **more: Any
) -> PlanBuilder:
    the_cache = cache({"bundles": [record if record is not None else sealed()]})
    plan = PlanBuilder(observed(the_cache, consumers=tuple(pods), **more), now)
    rescue(plan, list_consumers(plan))
    return plan


def sealed(**more: Any) -> Object:
    return bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 3600), **more)


def mark(reason: str = "MountFailed", **more: Any) -> Object:
    return {
        "reason": reason,
        "message": "m",
        "at": format_timestamp(NOW - 60),
        "claimUID": "claim-uid",
        **more,
    }


def status(plan: PlanBuilder) -> Object:
    """The bundle's, as it will be written."""
    return plan.bundles[GIVEN].to_dict()


def deleted(plan: PlanBuilder) -> list[str]:
    assert not plan.actions
    assert all(isinstance(action, Delete) for action in plan.after)
    return [
        f"{action.object['metadata']['name']} {action.object['metadata']['uid']}"
        for action in plan.after
    ]  # type: ignore[attr-defined]


def test_the_bundle_is_marked_and_all_its_stuck_pods_are_deleted_in_one_reconcile() -> None:
    plan = run(stuck_pod(1), stuck_pod(2), Consumer("web", 3).given(GIVEN).runs())
    assert deleted(plan) == ["web-1 uid-web-1", "web-2 uid-web-2"]
    found = status(plan)["undeliverable"]
    assert (found["reason"], found["at"], found["claimUID"]) == (
        "SeedCannotRun",
        format_timestamp(NOW),
        "claim-uid",
    )
    assert "/bin/sh" in found["message"]
    [event] = plan.events
    assert (event.reason, event.warning) == ("Rescued", True)
    assert event.message.startswith(
        f"bundle {GIVEN}: 2 pods (web-1, web-2) could not start: SeedCannotRun: "
    )
    assert event.message.endswith("; deleted: its replacement starts without the bundle")


def test_a_pod_that_gets_stuck_after_the_mark_is_deleted_too_and_the_mark_stays() -> None:
    plan = run(stuck_pod(4), record=sealed(undeliverable=mark()))
    assert deleted(plan) == ["web-4 uid-web-4"]
    assert status(plan)["undeliverable"] == mark()
    assert [event.reason for event in plan.events] == ["Rescued"]


def test_a_pod_that_is_being_deleted_is_not_deleted_again() -> None:
    plan = run(stuck_pod(deletionTimestamp=format_timestamp(NOW - 1)))
    assert (plan.after, plan.events, "undeliverable" in status(plan)) == ([], [], False)


def test_a_pod_without_a_controller_is_reported_once_and_not_deleted() -> None:
    bare = stuck_pod(ownerReferences=[])
    first = run(bare)
    assert deleted(first) == []
    assert "undeliverable" in status(first)
    [event] = first.events
    assert event.message.endswith(
        "; no controller owns it: delete it and recreate it, and it starts without the bundle"
    )
    again = run(bare, record=status(first))
    assert (again.after, again.events) == ([], [])


def test_a_jobs_failed_pod_marks_the_bundle_and_stays() -> None:
    pod = stuck_pod()
    pod["status"] = copy.deepcopy(SEEN["no-sh-never"]["pod"]["status"])
    [seed] = pod["status"]["initContainerStatuses"]
    seed["state"]["terminated"]["finishedAt"] = format_timestamp(NOW - 5)
    plan = run(pod, record=bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 3600)))
    assert deleted(plan) == []
    assert status(plan)["undeliverable"]["reason"] == "SeedCannotRun"
    assert plan.events[0].message.endswith("; later pods start without the bundle")
    sealed_since = run(pod, record=bundle_json(GIVEN, sealedAt=format_timestamp(NOW - 1)))
    assert "undeliverable" not in status(sealed_since)


def test_no_pod_is_rescued_before_its_time_and_the_plan_requeues_for_it() -> None:
    pod = stuck_pod()
    [sandbox] = [each for each in pod["status"]["conditions"] if each["type"] == SANDBOX]
    sandbox["lastTransitionTime"] = format_timestamp(NOW - START_GRACE_SECONDS + 7)
    plan = run(pod)
    assert (plan.after, plan.events, plan.requeue_time) == ([], [], NOW + 7)


def test_a_pod_whose_claim_is_not_the_caches_any_more_is_deleted_without_a_mark() -> None:
    """spec.storage was changed: the next one is given the new claim."""
    pod = unscheduled(message=BY_CLAIM.replace("pretune-qwen3", "old"))
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "old"
    plan = run(pod)
    assert deleted(plan) == ["web-1 uid-web-1"]
    assert "undeliverable" not in status(plan)


@pytest.mark.parametrize("more", [{}, {"source": Refused("SourceNotFound", "it is gone")}])
def test_a_bundle_without_a_record_gets_one_for_its_mark(more: Any) -> None:
    """Else the replacement would be given the same, for ever. Its source is refused, say."""
    plan = run(stuck_pod(), record=bundle_json("other-default"), **more)
    assert deleted(plan) == ["web-1 uid-web-1"]
    found = status(plan)
    assert (found["state"], found["target"], found["attempts"]) == ("Pending", "default", 0)
    assert found["undeliverable"]["reason"] == "SeedCannotRun"
    assert plan.bundles[GIVEN].is_only_marked


def test_a_pod_is_not_deleted_where_the_status_has_no_room_for_a_mark() -> None:
    many = [bundle_json(f"{number:012x}-default") for number in range(MAX_BUNDLES)]
    plan = PlanBuilder(observed(cache({"bundles": many}), consumers=(stuck_pod(),)), NOW)
    rescue(plan, list_consumers(plan))
    assert (plan.after, plan.events, GIVEN in plan.bundles) == ([], [], False)


def on(node: str, pod: Consumer) -> Consumer:
    return pod._but(spec={"nodeName": node})


def failing_seed(number: int, node: str) -> Consumer:
    """Its seed ends with an error, of which it is not known whether it is the node's."""
    text = json.dumps(SEEN["seed-fails"]["pod"]["status"])
    text = re.sub(r"2026-11-22T[0-9:]*Z", format_timestamp(NOW - 200), text)
    pod = Consumer("web", number, age=300).given(GIVEN)
    return on(node, pod.but(**json.loads(text)))


ELSEWHERE = on("node9", Consumer("web", 9).ready())
WIDELY: list[tuple[str, tuple[Consumer, ...], Object | None, str | None]] = [
    # case, pods, an earlier mark, the node of the mark
    ("pods of one node, and others run elsewhere", (failing_seed(1, "node0"), failing_seed(2, "node0"), ELSEWHERE), None, "node0"),
    ("pods of two nodes", (failing_seed(1, "node0"), failing_seed(2, "node1"), ELSEWHERE), None, None),
    ("a pod of a second node", (failing_seed(2, "node1"), ELSEWHERE), mark("SeedCannotRun", node="node0"), None),
    ("again one of the first node", (failing_seed(2, "node0"), ELSEWHERE), mark("SeedCannotRun", node="node0"), "node0"),
    ("the cache has pods on no other node", (failing_seed(1, "node0"), failing_seed(2, "node0")), None, None),
    ("the image has no shell", (stuck_pod(), ELSEWHERE), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("case", "pods", "before", "node"), WIDELY, ids=[one[0] for one in WIDELY])
def test_a_bundle_is_withdrawn_for_long_if_pods_of_two_nodes_cannot_start_with_it(
    case: str, pods: tuple[Consumer, ...], before: Object | None, node: str | None
) -> None:
    plan = run(*pods, record=sealed(**({"undeliverable": before} if before else {})))
    found = plan.bundles[GIVEN].undeliverable
    assert found is not None and found.node == node
    assert deleted(plan)
    until = found.at + (NODE_MARK_SECONDS if node else SEED_MARK_SECONDS)
    assert run(record=status(plan), now=until - 1).bundles[GIVEN].undeliverable == found
    assert run(record=status(plan), now=until).bundles[GIVEN].undeliverable is None


def test_a_mark_names_the_image_in_which_seed_cannot_run() -> None:
    bundle = bundle_of("web")
    pod = stuck_pod().given(bundle)
    plan = PlanBuilder(
        observed(cache({}), consumers=(pod,), origins=origin("web"), source=None), NOW
    )
    rescue(plan, list_consumers(plan))
    found = plan.bundles[bundle].undeliverable
    assert found is not None and (found.image, found.node) == ("vllm:web", None)


def test_a_jobs_pod_is_not_deleted_since_the_job_would_count_it() -> None:
    [owner] = stuck_pod()["metadata"]["ownerReferences"]
    job = {**owner, "apiVersion": "batch/v1", "kind": "Job"}
    plan = run(stuck_pod(ownerReferences=[job]))
    assert deleted(plan) == [] and "undeliverable" in status(plan)
    assert "its Job counts a deleted pod as failed" in plan.events[0].message


def test_a_claim_that_is_not_there_marks_without_its_uid() -> None:
    plan = run(unscheduled(), claim=None)
    assert deleted(plan) == ["web-1 uid-web-1"]
    assert "claimUID" not in status(plan)["undeliverable"]


def test_a_pod_that_was_held_until_now_gets_its_minute() -> None:
    """PodScheduled keeps the time of the pod's creation.

    Only the scheduler's first event tells when the pod was released.
    """
    pod = unscheduled().noted(**{REASON: "Held: 4 pods of other bundles serve"})
    event = {"type": "Warning", "reason": "FailedScheduling", "message": BY_CLAIM}
    for ago, expected in (
        (START_GRACE_SECONDS - 1, []),
        (START_GRACE_SECONDS, ["web-1 uid-web-1"]),
    ):
        events = ({**event, "metadata": {"creationTimestamp": format_timestamp(NOW - ago)}},)
        assert deleted(run(pod, claim=None, pod_events={"uid-web-1": events})) == expected
    other = {
        **event,
        "message": BY_GPU,
        "metadata": {"creationTimestamp": format_timestamp(NOW - 299)},
    }
    assert (
        deleted(run(pod, claim=None, pod_events={"uid-web-1": (other,)})) == []
    )  # its words are not written yet


def test_pods_whose_events_were_not_read_are_deleted_with_the_one_whose_were() -> None:
    """observe reads the events of a few: the others of the bundle wait for the same volumes."""
    failing = [_failing(number) for number in (1, 2, 3)]
    events = {"uid-web-2": tuple(SEEN["on-node-absent"]["events"])}
    late = parse_timestamp("2026-11-22T20:50:00Z")
    assert deleted(run(*failing, now=late, pod_events=events)) == [
        f"web-{number} uid-web-{number}" for number in (2, 1, 3)
    ]
    assert deleted(run(*failing, now=late)) == []
    assert deleted(
        run(failing[0], now=late, record=sealed(undeliverable=mark(at=format_timestamp(late - 60))))
    ) == ["web-1 uid-web-1"]
    assert (
        deleted(run(failing[0], now=late, record=sealed(undeliverable=mark("SeedCannotRun")))) == []
    )
    read = {f"uid-web-{number}": () for number in (1, 2, 3)}
    assert (
        deleted(
            run(
                *failing,
                now=late,
                record=sealed(undeliverable=mark(at=format_timestamp(late - 60))),
                pod_events=read,
            )
        )
        == []
    )
    unmade = stuck_pod()
    unmade["status"]["initContainerStatuses"][0].update(state=UNMADE, lastState={})
    assert (
        deleted(run(unmade, record=sealed(undeliverable=mark()))) == []
    )  # its volumes are mounted
    held = [unscheduled(number).noted(**{REASON: "Held: 4 pods"}) for number in (1, 2)]
    assert deleted(run(*held, claim=None)) == []
    assert (
        deleted(
            run(*held, claim=None, record=sealed(undeliverable=mark("ClaimNotFound", claimUID="")))
        )
        != []
    )


def _failing(number: int) -> Consumer:
    """One whose claim the kubelet cannot mount, if its events say so."""
    case = json.loads(
        json.dumps(SEEN["on-node-absent"]["pod"]).replace('"absent"', f'"pretune-{KEY.name}"')
    )
    return Consumer("web", number).given(GIVEN)._but(spec=case["spec"], status=case["status"])


@pytest.mark.parametrize(
    ("case", "the_mark", "found", "sealed_at", "stays"),
    [
        ("nothing changed", mark(), claim(), NOW - 3600, True),
        ("another claim", mark(claimUID="other"), claim(), NOW - 3600, False),
        (
            "there was no claim",
            {**mark("ClaimNotFound"), "claimUID": ""},
            claim(),
            NOW - 3600,
            False,
        ),
        ("no claim now", mark(), None, NOW - 3600, True),
        ("bound at last", mark("ClaimPending"), claim(), NOW - 3600, False),
        ("bound again", mark("ClaimLost"), claim(), NOW - 3600, False),
        ("not bound yet", mark("ClaimPending"), claim("Pending"), NOW - 3600, True),
        (
            "still being deleted",
            mark("ClaimTerminating"),
            claim(deletionTimestamp=format_timestamp(NOW)),
            NOW - 3600,
            True,
        ),
        ("sealed again", mark(), claim(), NOW - 59, False),
        ("not yet an hour", mark(at=format_timestamp(NOW - 3599)), claim(), NOW - 7200, True),
        ("an hour", mark(at=format_timestamp(NOW - 3600)), claim(), NOW - 7200, False),
        (
            "an hour, the same image",
            mark("SeedCannotRun", at=format_timestamp(NOW - 3600)),
            claim(),
            NOW - 7200,
            True,
        ),
        (
            "not yet six",
            mark("SeedCannotRun", at=format_timestamp(NOW - 6 * 3600 + 1)),
            claim(),
            NOW - 86400,
            True,
        ),
        (
            "six hours: a tag may have moved",
            mark("SeedCannotRun", at=format_timestamp(NOW - 6 * 3600)),
            claim(),
            NOW - 86400,
            False,
        ),
    ],
)
def test_a_mark_is_removed_when_its_cause_may_be_gone(
    case: str, the_mark: Object, found: Object | None, sealed_at: float, stays: bool
) -> None:
    plan = run(
        record=bundle_json(GIVEN, sealedAt=format_timestamp(sealed_at), undeliverable=the_mark),
        claim=found,
    )
    assert ("undeliverable" in status(plan)) is stays, case


@pytest.mark.parametrize(("reason", "hours"), [("MountFailed", 1), ("SeedCannotRun", 6)])
def test_the_plan_requeues_for_the_expiry_of_a_mark(reason: str, hours: int) -> None:
    assert run(record=sealed(undeliverable=mark(reason))).requeue_time == NOW - 60 + hours * 3600


def test_a_pod_without_a_failure_yet_is_checked_less_and_less_often() -> None:
    waiting = Consumer("web", 1, age=9000).given(GIVEN)._but(spec={"nodeName": "node0"})
    for ago, expected in ((10, 50), (60, 15), (400, 100), (7200, 300)):
        pod = waiting.but(conditions=[condition(SANDBOX, "False", ago)])
        assert run(pod).requeue_time == NOW + expected
    assert (
        run(waiting.but(conditions=[condition(SANDBOX, "True", 400)])).requeue_time is None
    )  # images and programs


def test_a_long_message_of_the_runtime_is_truncated() -> None:
    pod = stuck_pod()
    pod["status"]["initContainerStatuses"][0]["lastState"]["terminated"]["message"] = "x " * 9000
    assert len(status(run(pod))["undeliverable"]["message"]) <= 1024
