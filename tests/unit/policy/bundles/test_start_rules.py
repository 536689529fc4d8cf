"""What blocks the start of an attempt or a proof: each rule, and which of them counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pretune.api import names, reasons
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.desired import DesiredBundles, find_desired_bundles
from pretune.policy.bundles.start_rules import (
    BLOCKERS,
    BY_IMPORT,
    LIVE_RECHECK_SECONDS,
    ROLLOUT_SECONDS,
    TURN_RECHECK_SECONDS,
    Blocked,
    Candidate,
    find_blocker,
)
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Turn
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import NODE_LOST_SECONDS

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod
from tests.builders.templates import serving_template

READY = Storage(True, reasons.BOUND, "claim is bound")
TARGETS = [{"name": name, "nodeSelector": {"gpu": name}} for name in ("a", "b")]


def desired_of(the_cache: Object) -> DesiredBundles:
    return find_desired_bundles(PlanBuilder(observed(the_cache), NOW), ())


FIRST, SECOND = (each.id for each in desired_of(cache(targets=TARGETS)).bundles)  # of a and of b
OTHER = "0123456789ab-a"  # another engine's, of the first target


def candidate(
    *bundles: Object,
    jobs: tuple[Object, ...] = (),
    pods: tuple[Object, ...] = (),
    storage: Storage = READY,
    started: tuple[str, ...] = (),
    has_held_pods: bool = False,
    current: bool = True,
    annotations: Object | None = None,
    turn: Turn | None = None,
    now: float = NOW,
    claim_nodes: Object | None = None,
    **spec: Any,
) -> Candidate:
    """The first target's bundle, Pending and never tried unless it is among `bundles`."""
    own = [] if any(each["id"] == FIRST for each in bundles) else [pending(FIRST)]
    the_cache = cache({"bundles": [*own, *bundles]}, targets=TARGETS, **spec)
    the_cache["metadata"]["annotations"] = annotations or {}
    seen = observed(the_cache, jobs=jobs, pods=pods, claim_nodes=claim_nodes or {}, turn=turn)
    plan = PlanBuilder(seen, now)
    first, second = desired_of(the_cache).bundles
    desired = [replace(first, is_current=current), replace(first, id=OTHER), second]
    for each in desired:
        plan.ensure(each.id)
    return Candidate(plan, desired[0], desired, storage, started, has_held_pods)


def pending(bundle_id: str, reason: str = "Queued", **fields: Any) -> Object:
    return bundle_json(bundle_id, names.PENDING, reason=reason, **{"attempts": 0, **fields})


def failed_at(ago: float, number: int = 1) -> Object:
    return {"attempt": number, "at": format_timestamp(NOW - ago), "reason": "EngineFailed"}


def alive(bundle_id: str) -> dict[str, tuple[Object, ...]]:
    """A Job of ours that tunes a bundle, and its pod."""
    tuning = job(bundle_id)
    return {"jobs": (tuning,), "pods": (AttemptPod(bundle_id, of=tuning),)}


def foreign(bundle_id: str, **meta: Any) -> AttemptPod:
    return AttemptPod(bundle_id, of=job(bundle_id, uid="of-another")).but(**meta)


def queued(bundle_id: str) -> Blocked:
    return Blocked(reasons.QUEUED, f"waits for {bundle_id}")


def with_claims(**nodes: tuple[str, ...]) -> dict[str, Any]:
    """A source whose engine mounts these claims, each used by pods on these nodes."""
    template = serving_template(volumeMounts=[{"name": n, "mountPath": f"/{n}"} for n in nodes])
    template["spec"]["volumes"] = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in nodes
    ]
    return {"source": {"template": template}, "claim_nodes": nodes}


def mounting(**nodes: tuple[str, ...]) -> Candidate:
    given = with_claims(**nodes)
    first = desired_of(cache(targets=TARGETS, source=given["source"])).bundles[0].id
    return candidate(pending(first), **given)


OWN_JOB = {
    "kind": "Job",
    "name": job(FIRST)["metadata"]["name"],
    "uid": "gone",
    "controller": True,
}
NODE_LOST = format_timestamp(NOW - 100)
TABLE: list[tuple[str, Candidate, Blocked | None]] = [
    ("nothing is in the way", candidate(), None),
    ("an attempt is open", candidate(pending(FIRST, attempts=1)), Blocked()),
    ("its end is recorded", candidate(pending(FIRST, attempts=1, lastFailure=failed_at(99))), None),
    (
        "a proof is open",
        candidate(bundle_json(FIRST, names.PROVING, proofs=1)),
        Blocked(),
    ),
    (
        "our last attempt still lives",
        candidate(pending(FIRST, attempts=1, lastFailure=failed_at(99)), **alive(FIRST)),
        Blocked(requeue_at=NOW + LIVE_RECHECK_SECONDS),
    ),
    (
        "a pod of somebody else's has its labels",
        candidate(pods=(foreign(FIRST),)),
        Blocked(
            reasons.NAME_TAKEN,
            "an attempt that is not this cache's still lives: pod pod",
            NOW + LIVE_RECHECK_SECONDS,
        ),
    ),
    (
        "it is being deleted, and its node does not answer",
        candidate(pods=(foreign(FIRST, deletionTimestamp=NODE_LOST),)),
        Blocked(
            reasons.QUEUED,
            "waits until an earlier attempt has ended: pod pod",
            NOW - 100 + NODE_LOST_SECONDS,
        ),
    ),
    (
        "a Job of a cache that had this name",
        candidate(jobs=(job(FIRST).owned_by({"metadata": {"uid": "another"}}),)),
        Blocked(
            reasons.NAME_TAKEN,
            "an attempt that is not this cache's still lives: its Job is not deleted yet",
            NOW + LIVE_RECHECK_SECONDS,
        ),
    ),
    ("a claim is in use on a node", mounting(models=("n1", "n2"), more=("n2",)), None),
    (
        "a ReadWriteOnce claim is in use nowhere",
        mounting(models=("n1",), weights=()),
        Blocked(
            reasons.VOLUME_UNAVAILABLE,
            "claim weights is ReadWriteOnce, and no pod that uses it has a node: an attempt would"
            " keep it from the pod that is to serve; it starts on that pod's node",
            NOW + LIVE_RECHECK_SECONDS,
        ),
    ),
    (
        "two claims are in use on two nodes",
        mounting(models=("n1",), more=("n2",)),
        Blocked(
            reasons.VOLUME_UNAVAILABLE,
            "claims models, more are ReadWriteOnce and in use on different nodes",
            NOW + LIVE_RECHECK_SECONDS,
        ),
    ),
    (
        "a pod of a tenant's has its labels, and no controller",
        candidate(pods=(foreign(FIRST, ownerReferences=[]),)),
        None,
    ),
    (
        "a pod of a tenant's own Job has its labels",
        candidate(pods=(foreign(FIRST, ownerReferences=[{**OWN_JOB, "name": "theirs"}]),)),
        None,
    ),
    (
        "a tenant's own Job has its labels, and a pod",
        candidate(
            jobs=(job(FIRST, uid="theirs").but_owned_by_nothing(),),
            pods=(foreign(FIRST, ownerReferences=[{**OWN_JOB, "uid": "theirs"}]),),
        ),
        None,
    ),
    (
        "its turn has come",
        candidate(turn=Turn(True, place=1, waiting=1, running=19, limit=20)),
        None,
    ),
    (
        "other caches come first",
        candidate(turn=Turn(False, place=3, waiting=7, running=20, limit=20)),
        Blocked(
            reasons.WAITING_FOR_TURN,
            "20 attempts of all caches run, of 20 that controller.maxConcurrentAttempts allows;"
            " place 3 of 7",
            NOW + TURN_RECHECK_SECONDS,
        ),
    ),
    (
        "it is suspended",
        candidate(suspend=True),
        Blocked(reasons.SUSPENDED, "spec.suspend is true"),
    ),
    (
        "the claim is not ready",
        candidate(storage=Storage(False, reasons.CLAIM_PENDING, "not bound")),
        Blocked(reasons.WAITING_FOR_CLAIM, "not bound"),
    ),
    ("an import is asked for", candidate(annotations={names.IMPORT: "claim/a"}), BY_IMPORT),
    (
        "and has ended",
        candidate(
            pending(FIRST, **{"import": {"from": "claim/a", "reason": "Sealed"}}),
            annotations={names.IMPORT: "claim/a"},
        ),
        None,
    ),
    (
        "an import is asked for, of what is on the claim already",
        candidate(bundle_json(FIRST, names.PROVING), annotations={names.IMPORT: "claim/a"}),
        None,
    ),
    (
        "it failed a short time ago",
        candidate(pending(FIRST, attempts=1, lastFailure=failed_at(10))),
        Blocked(requeue_at=NOW + 20),
    ),
    (
        "for the second time",
        candidate(pending(FIRST, attempts=2, lastFailure=failed_at(100, 2))),
        Blocked(requeue_at=NOW + 20),
    ),
    # At most one attempt per target, and one of a cache that occupies a node.
    (
        "another target's attempt runs",
        candidate(bundle_json(SECOND, names.TUNING_STATE), **alive(SECOND)),
        queued(SECOND),
    ),
    (
        "it was started by this plan",
        candidate(pending(SECOND, "WaitingForPod", attempts=1), started=(SECOND,)),
        queued(SECOND),
    ),
    (
        "it has a pod, which pulls its image",
        candidate(pending(SECOND, "WaitingForPod", attempts=1), **alive(SECOND)),
        queued(SECOND),
    ),
    (
        "its pod waits for a node",
        candidate(pending(SECOND, "WaitingForNode", attempts=1), **alive(SECOND)),
        None,
    ),
    (
        "its pod is refused",
        candidate(pending(SECOND, "PodRefused", attempts=1), **alive(SECOND)),
        None,
    ),
    (
        "its Job is queued",
        candidate(pending(SECOND, "Queued", attempts=1), **alive(SECOND)),
        None,
    ),
    (
        "its proof waits for a node",
        candidate(
            bundle_json(SECOND, names.PROVING, reason="WaitingForNode", proofs=1), **alive(SECOND)
        ),
        None,
    ),
    (
        "another attempt of the same target waits for a node",
        candidate(pending(OTHER, "WaitingForNode", attempts=1), **alive(OTHER)),
        queued(OTHER),
    ),
    ("another one of the same target waits for its turn", candidate(pending(OTHER)), None),
    (
        "a bundle was sealed, and its pod lingers",
        candidate(bundle_json(SECOND), **alive(SECOND)),
        queued(SECOND),
    ),
]


@pytest.mark.parametrize(("case", "given", "expected"), TABLE, ids=[case for case, *_ in TABLE])
def test_what_blocks_a_start(case: str, given: Candidate, expected: Blocked | None) -> None:
    found = find_blocker(given)
    assert found == expected
    assert (found is BY_IMPORT) == (expected is BY_IMPORT), case


def test_a_bundle_that_only_the_claim_can_show_is_waited_for() -> None:
    given = candidate()
    given.plan.awaiting_claim.add(FIRST)
    assert find_blocker(given) == Blocked()


ROLLOUT = "waits for the rollout to 0123456789ab-a: the pods that need it may be on their way out"


@pytest.mark.parametrize(
    ("newest", "until"),
    [
        (pending(OTHER), None),
        (bundle_json(OTHER, names.TUNING_STATE), None),
        (bundle_json(OTHER, names.PROVING), None),
        (bundle_json(OTHER, sealedAt=format_timestamp(NOW - 100)), NOW - 100 + ROLLOUT_SECONDS),
    ],
    ids=["waits", "tunes", "is proven", "was sealed a short time ago"],
)
def test_an_older_revision_waits_for_the_rollout_unless_pods_wait_for_it(
    newest: Object, until: float | None
) -> None:
    expected = Blocked(reasons.QUEUED, ROLLOUT, until)
    assert find_blocker(candidate(newest, current=False)) == expected
    assert find_blocker(candidate(newest, current=False, has_held_pods=True)) is None
    assert find_blocker(candidate(newest)) is None, "it is the newest itself"


@pytest.mark.parametrize(
    "newest",
    [
        bundle_json(OTHER, sealedAt=format_timestamp(NOW - ROLLOUT_SECONDS)),
        bundle_json(OTHER, names.FAILED),
        bundle_json(OTHER, names.REFUSED),
    ],
    ids=["was sealed long ago", "failed", "is refused"],
)
def test_a_rollout_that_is_over_or_of_another_target_blocks_nothing(newest: Object) -> None:
    """The second target's bundle is Pending."""
    assert find_blocker(candidate(newest, current=False)) is None


def test_the_first_rule_that_answers_counts() -> None:
    """In this order: what the status says already stays, and a switch counts before a wait."""
    assert [rule.__name__ for rule in BLOCKERS] == [
        "claim_is_read",
        "attempt_is_open",
        "attempt_still_lives",
        "suspended",
        "claim_not_ready",
        "import_comes_first",
        "waits_for_retry",
        "another_runs",
        "rollout_is_under_way",
        "volume_unavailable",
        "waits_for_turn",
    ]
    given = candidate(
        pending(FIRST, attempts=1, lastFailure=failed_at(10)),
        bundle_json(SECOND, names.TUNING_STATE),
        suspend=True,
        storage=Storage(False, reasons.CLAIM_PENDING, "not bound"),
        **alive(SECOND),
    )
    assert find_blocker(given) == Blocked(reasons.SUSPENDED, "spec.suspend is true")


@pytest.mark.parametrize(("case", "given", "expected"), TABLE, ids=[case for case, *_ in TABLE])
def test_no_rule_changes_the_plan(case: str, given: Candidate, expected: Blocked | None) -> None:
    plan = given.plan
    before = (dict(plan.bundles), list(plan.actions), list(plan.after), list(plan.events))
    for rule in BLOCKERS:
        rule(given)
    assert before == (dict(plan.bundles), plan.actions, plan.after, plan.events), case
    assert plan.requeue_time is None
