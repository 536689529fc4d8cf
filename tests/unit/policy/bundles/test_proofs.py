"""spec.verify: how a proof stands, one line a situation; and what follows from it for a bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import PROOF, PROVE_CONTAINER, PROVING, SEED_CONTAINER
from pretune.api.reasons import REASONS
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.attempt_state import Attempt, read_attempt
from pretune.policy.bundles.desired import find_desired_bundles
from pretune.policy.bundles.proof_state import EXTRA_SECONDS, PROOF_CHECKS
from pretune.policy.bundles.retries import REMEMBERED_SECONDS
from pretune.policy.decide import decide
from pretune.policy.model import Action, Create, Delete, Outcome, Patch, Plan
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import NODE_LOST_SECONDS
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import ENGINE, NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod, Consumer, sealed_report
from tests.unit.policy.bundles.test_attempt_state import MULTI_ATTACH, cannot_mount, mounting

COLD = 300.0
SEEDED = Report("seed", "Seeded", "20 entries")
PROVEN = Report(
    "prove",
    "Proven",
    "warm: 20 entries in 1 files, none new and none changed",
    digest="sha256:1",
    proven=True,
)
DIFFERS = Report(
    "prove", "NotReproducible", "2 new entries (fused_moe 2); 1 file changed: a", newEntries=2
)
WORDS = "ValueError: invalid tactic 7"


def proof_pod(bundle: str = "b-default", number: int = 1, of: Object | None = None) -> AttemptPod:
    pod = AttemptPod(bundle, number, of or job(bundle, number, role=PROOF))
    pod["metadata"]["labels"][names.ROLE] = PROOF
    pod["spec"]["initContainers"] = [
        {"name": "download"},
        {"name": SEED_CONTAINER},
        {"name": ENGINE},
    ]
    pod["spec"]["containers"] = [{"name": PROVE_CONTAINER}]
    return pod


def since(pod: AttemptPod, ago: float, **more: Any) -> AttemptPod:
    """Its engine runs for so long."""
    return pod.container(ENGINE, {"running": {"startedAt": format_timestamp(NOW - ago)}}, **more)


POD = proof_pod()
WARM = POD.ended(SEED_CONTAINER, report=SEEDED)
RUNS = since(WARM, 30)
READY = since(WARM, 30, started=True)
LATE = COLD + EXTRA_SECONDS
EVICTED = {"kind": "DisruptionTarget", "reason": "PreemptionByScheduler", "message": "preempted"}
OVERTIME = {"phase": "Failed", "reason": "DeadlineExceeded"}
KILLED = {
    "exitCode": 137,
    "reason": "Error",
    "startedAt": format_timestamp(NOW - 5000),
    "finishedAt": format_timestamp(NOW),
}
SOON_KILLED = {**KILLED, "startedAt": format_timestamp(NOW - 100)}
BEFORE = {"lastState": {"terminated": {"exitCode": 139, "message": WORDS}}}
RESTARTED = {
    "exitCode": 137,
    "reason": "ContainerStatusUnknown",
    "message": "The container could not be located",
}


# name, pod, what else, state, reason, a part of the message
TABLE: list[tuple[str, AttemptPod | None, dict[str, Any], str, str, str]] = [
    ("no pod yet", None, {}, "Pending", "WaitingForPod", "the Job is created"),
    ("no Job any more", None, {"job": None}, "Finished", "ReportLost", "gone"),
    ("on its node", POD, {}, "Tuning", "Pulling", "node0"),
    (
        "a volume is attached elsewhere",
        POD,
        {"events": (cannot_mount("FailedAttachVolume", MULTI_ATTACH),)},
        "Tuning",
        "VolumeUnavailable",
        "Multi-Attach",
    ),
    (
        "a pod that serves needs its claim on another node",
        mounting(POD),
        {"claim_nodes": {"models": ("node7",)}},
        "GivesWay",
        "Superseded",
        "node7",
    ),
    (
        "no node fits",
        POD.but(nodeName=None).condition("PodScheduled", "False", message="0/3 nodes: 3 Insufficient nvidia.com/gpu"),
        {},
        "Pending",
        "WaitingForNode",
        "Insufficient nvidia.com/gpu",
    ),
    ("pulls keep failing", POD.waiting(ENGINE, "ImagePullBackOff", "no"), {}, "Finished", "ImagePullFailed", "no"),
    ("a Secret is missing", POD.waiting("download", "CreateContainerConfigError", "hf"), {}, "Finished", "ContainerConfigError", "hf"),
    ("an init container fails", POD.ended("download", 3, message="no disk"), {}, "Finished", "InitContainerFailed", "no disk"),
    (
        "seed had nothing to give",
        since(POD.ended(SEED_CONTAINER, report=Report("seed", "VersionsDiffer", "vLLM 0.34.0 in the image")), 1),
        {},
        "Finished",
        "ProofFailed",
        "pretune-seed could not copy the bundle: VersionsDiffer: vLLM 0.34.0",
    ),
    (
        "what an engine without its bundle did is no verdict",
        since(POD.ended(SEED_CONTAINER, report=Report("seed", "TooSlow", "45 s")), 30).ended(PROVE_CONTAINER, 1, DIFFERS),
        {},
        "Finished",
        "ProofFailed",
        "TooSlow",
    ),
    ("seed's words are no report", POD.ended(SEED_CONTAINER, message="Killed"), {}, "Finished", "ProofFailed", "Killed"),
    ("the engine starts", RUNS, {}, "Tuning", "Proving", f"it has until {format_timestamp(NOW - 30 + LATE)} (its cold start took 300 s)"),
    ("it starts, and nobody knows how long it may", RUNS, {"cold_seconds": 0}, "Tuning", "Proving", f"since {format_timestamp(NOW - 30)}"),
    ("it is about to be late", since(WARM, LATE - 1), {}, "Tuning", "Proving", "it has until"),
    (
        "it is late",
        since(WARM, LATE),
        {},
        "Finished",
        "WarmHang",
        "not ready 360 s after its start from the bundle; its cold start took 300 s",
    ),
    ("it was ready in time", since(WARM, LATE, started=True), {}, "Tuning", "Proving", "the engine starts"),
    (
        "it was ready in time, and prove takes its time",
        since(WARM, LATE).running(PROVE_CONTAINER),
        {},
        "Tuning",
        "Proving",
        "is compared",
    ),
    (
        "late, and nobody looked until the pod's deadline",
        WARM.container(ENGINE, {"terminated": KILLED}).but(status=OVERTIME),
        {},
        "Finished",
        "WarmHang",
        "5000 s",
    ),
    (
        "the deadline, where the cold start's time is not known",
        WARM.container(ENGINE, {"terminated": SOON_KILLED}).but(status=OVERTIME),
        {"cold_seconds": 0},
        "Finished",
        "WarmHang",
        "100 s",
    ),
    (
        "the deadline, before it was late",
        WARM.container(ENGINE, {"terminated": SOON_KILLED}).but(status=OVERTIME),
        {},
        "Finished",
        "EngineNotReady",
        "5400 s",
    ),
    ("prove looks", READY.running(PROVE_CONTAINER), {}, "Tuning", "Proving", f"since {format_timestamp(NOW - 30)}"),
    ("prove is content", READY.ended(PROVE_CONTAINER, report=PROVEN), {}, "Finished", "Sealed", "none new"),
    (
        "prove is content, and the kubelet ended the engine after it",
        READY.container(ENGINE, {"terminated": KILLED}).ended(PROVE_CONTAINER, report=PROVEN),
        {},
        "Finished",
        "Sealed",
        "none new",
    ),
    ("prove is not", READY.ended(PROVE_CONTAINER, 1, DIFFERS), {}, "Finished", "NotReproducible", "fused_moe 2"),
    (
        "prove is content with an engine that crashed first",
        since(WARM, 30, restartCount=1, **BEFORE).ended(PROVE_CONTAINER, report=PROVEN),
        {},
        "Finished",
        "WarmCrash",
        WORDS,
    ),
    (
        "prove dies, and the kubelet ended the engine after it",
        WARM.container(ENGINE, {"terminated": KILLED}).ended(PROVE_CONTAINER, 137, message="killed"),
        {},
        "Finished",
        "ProofFailed",
        "container pretune-prove left no report: exit code 137: killed",
    ),
    ("the engine exits", WARM.ended(ENGINE, 1, message=WORDS), {}, "Finished", "WarmCrash",
     f"started from the bundle: exit code 1: {WORDS}"),
    ("the engine is started again", since(WARM, 1, restartCount=1, **BEFORE), {}, "Finished", "WarmCrash", WORDS),
    (
        "it crashed long ago, and what was started again is not late",
        since(WARM, 2 * LATE, restartCount=1, **BEFORE),
        {},
        "Finished",
        "WarmCrash",
        WORDS,
    ),
    ("its node was started anew", WARM.container(ENGINE, {"terminated": RESTARTED}), {}, "Finished", "ProofFailed", "could not be located"),
    ("evicted", RUNS.condition(**EVICTED), {}, "Pending", "WaitingForPod", "preempted"),
    (
        "evicted, and the engine was killed by it",
        WARM.ended(ENGINE, 137).condition(**EVICTED).but(status={"phase": "Failed"}),
        {},
        "Pending",
        "WaitingForPod",
        "preempted",
    ),
    ("its node is gone", RUNS.but(deletionTimestamp=format_timestamp(NOW - NODE_LOST_SECONDS)), {}, "Finished", "NodeLost", "node0"),
    (
        "deleted by hand",
        WARM.ended(ENGINE, 0).but(deletionTimestamp=format_timestamp(NOW), status={"phase": "Failed"}),
        {},
        "Pending",
        "WaitingForPod",
        "being deleted",
    ),
    (
        "deleted by hand, and gone with its Job's failure",
        None,
        {"job": job("b", role=PROOF).failed("BackoffLimitExceeded"), "has_lost_pod": True},
        "Repeated",
        "WaitingForPod",
        "deleted",
    ),
    (
        "suspended, and the engine was ended by it",
        WARM.ended(ENGINE, 0).but(deletionTimestamp=format_timestamp(NOW), status={"phase": "Failed"}),
        {"job": job("b", role=PROOF, suspend=True)},
        "Pending",
        "Queued",
        "suspended",
    ),
    (
        "the kubelet refuses the pod",
        POD.but(status={"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no devices"}),
        {},
        "Finished",
        "JobFailed",
        "no devices",
    ),
]  # fmt: skip


def attempt(pod: AttemptPod | None, more: dict[str, Any]) -> Attempt:
    given: dict[str, Any] = {
        "job": job("b", role=PROOF),
        "events": (),
        "disruptions": 0,
        "cold_seconds": COLD,
        **more,
    }
    return Attempt(number=1, pod=pod if pod else None, now=NOW, **given)


@pytest.mark.parametrize(
    ("pod", "more", "state", "reason", "words"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_a_proof_is_read(
    pod: AttemptPod | None, more: dict[str, Any], state: str, reason: str, words: str
) -> None:
    attempt_state = read_attempt(attempt(pod, more), PROOF_CHECKS)
    assert (attempt_state.state, attempt_state.reason) == (state, reason)
    assert words in attempt_state.message
    assert attempt_state.reason in REASONS
    assert attempt_state.recheck_at is None or attempt_state.recheck_at > NOW, (
        "a look in the past is one without end"
    )


def test_every_check_answers_some_row_of_the_table() -> None:
    """A check that no row needs is no check."""
    for check in PROOF_CHECKS:
        rest = [one for one in PROOF_CHECKS if one is not check]
        answers = []
        for _, pod, more, _, reason, words in TABLE:
            attempt_state = next(
                (said for one in rest if (said := one(attempt(pod, more))) is not None), None
            )
            answers.append(
                attempt_state is not None
                and attempt_state.reason == reason
                and words in attempt_state.message
            )
        assert not all(answers), check.__name__


def test_who_is_late_is_looked_at_when_it_is() -> None:
    assert read_attempt(attempt(RUNS, {}), PROOF_CHECKS).recheck_at == NOW - 30 + LATE


# --- what follows

ASKED = {"verify": "BeforeRelease"}
KNOWN = {"storage": {"claimUID": "claim-uid"}}


def the_id(the_cache: Object) -> str:
    [want] = find_desired_bundles(PlanBuilder(observed(the_cache), NOW), ()).bundles
    return want.id


BUNDLE = the_id(cache())
FIGURES = {
    "layout": "PerRank",
    "entries": 20,
    "digest": "sha256:1",
    "sealedAt": format_timestamp(NOW - 400),
    "coldSeconds": 300,
}


def bundle(state: str = PROVING, **more: Any) -> Object:
    reason = {"Sealed": "Sealed", PROVING: "Proving"}.get(state, "NotReproducible")
    return bundle_json(BUNDLE, state, **{"reason": reason, **FIGURES, **more})


def looked(*records: Object, spec: Object = ASKED, now: float = NOW, **more: Any) -> Plan:
    return decide(observed(cache({**KNOWN, "bundles": list(records)}, **spec), **more), now)


def told(plan: Plan, which: str = BUNDLE) -> Object:
    assert plan.status is not None
    return next(one for one in plan.status["bundles"] if one["id"] == which)


def action_names(actions: tuple[Action, ...], kind: type[Action]) -> list[str]:
    return [one.name for one in actions if isinstance(one, kind)]


def proofs(plan: Plan) -> list[Object]:
    made = [one.object for one in plan.actions if isinstance(one, Create)]
    return [one for one in made if one["metadata"]["labels"][names.ROLE] == PROOF]


def settled(
    pod: AttemptPod | None,
    the_record: Object | None = None,
    spec: Object = ASKED,
    number: int = 1,
    job_failed: bool = False,
    **of_job: Any,
) -> Plan:
    this = job(BUNDLE, number, role=PROOF, **of_job)
    this = this.failed() if job_failed else this
    pods = () if pod is None else (pod,)
    return looked(the_record or bundle(), spec=spec, jobs=(this,), pods=pods)


def of(pod: AttemptPod, number: int = 1) -> AttemptPod:
    """The same, of our bundle."""
    other = pod.but(
        ownerReferences=[
            {"uid": job(BUNDLE, number, role=PROOF)["metadata"]["uid"], "controller": True}
        ]
    )
    other["metadata"]["labels"] |= {names.BUNDLE: BUNDLE, names.ATTEMPT: str(number)}
    return other


def test_what_is_sealed_and_not_proven_is_withheld_and_its_proof_begins_in_the_next_look() -> None:
    first = looked(bundle("Sealed"))
    assert (told(first)["state"], told(first)["reason"]) == (PROVING, "Proving") and told(first)[
        "gpus"
    ] == 1
    assert told(first)["message"].startswith(
        "20 entries; the engine is started from the bundle once more"
    )
    assert not proofs(first) and first.requeue_after == 0
    assert [(one.reason, one.warning) for one in first.events] == [("Proving", False)]
    [made] = proofs(looked(told(first)))
    assert (
        made["metadata"]["name"] == f"qwen3-{BUNDLE}-p1"
        and made["metadata"]["labels"][names.ATTEMPT] == "1"
    )


@pytest.mark.parametrize(
    ("more", "spec"),
    [({"proven": True}, ASKED), ({"layout": "Empty"}, ASKED), ({}, {}), ({}, {"verify": "Never"})],
    ids=["it is proven", "there is nothing to prove", "by default", "nobody asks"],
)
def test_what_needs_no_proof_is_sealed(more: Object, spec: Object) -> None:
    plan = looked(bundle("Sealed", **more), spec=spec)
    assert told(plan)["state"] == "Sealed" and not plan.actions


def test_a_proof_that_succeeds_says_what_it_is_worth() -> None:
    pod = of(since(WARM, 30, started=True))
    end = {
        "exitCode": 0,
        "startedAt": format_timestamp(NOW - 9),
        "finishedAt": format_timestamp(NOW - 5),
        "message": PROVEN.dump(),
    }
    plan = settled(
        pod.container(PROVE_CONTAINER, {"terminated": end}),
        bundle(lastFailure={"attempt": 0, "reason": "ProofFailed"}),
    )
    found = told(plan)
    figures = ("state", "reason", "proven", "proofs", "newEntries", "warmSeconds", "coldSeconds")
    assert tuple(found[one] for one in figures) == ("Sealed", "Sealed", True, 1, 0, 21, 300)
    assert (
        found["message"]
        == "20 entries, proven: the engine started from them in 21 s instead of 300 s and tuned nothing new"
    )
    assert not plan.after and "lastFailure" not in found and "pod" not in found


def test_a_report_about_another_bundle_proves_nothing() -> None:
    other = Report("prove", "Proven", "", digest="sha256:2", proven=True)
    found = told(settled(of(READY.ended(PROVE_CONTAINER, report=other))))
    assert (
        "proven" not in found
        and found["lastFailure"]["reason"] == "ProofFailed"
        and "sha256:2" in found["message"]
    )


@pytest.mark.parametrize(
    ("pod", "reason", "new"),
    [
        (READY.ended(PROVE_CONTAINER, 1, DIFFERS), "NotReproducible", 2),
        (since(WARM, LATE), "WarmHang", None),
        (WARM.ended(ENGINE, 1, message=WORDS), "WarmCrash", None),
    ],
)
def test_a_verdict_is_final_and_its_gpu_is_given_back(
    pod: AttemptPod, reason: str, new: int | None
) -> None:
    plan = settled(of(pod), spec={**ASKED, "tuning": {"maxAttempts": 1}})
    found = told(plan)
    assert (found["state"], found["reason"], found.get("newEntries")) == ("Failed", reason, new)
    assert found["message"].endswith("; no pod is given this bundle") and action_names(
        plan.after, Patch
    )
    assert [(one.reason, one.warning) for one in plan.events] == [(reason, True)]
    later = looked(found, now=NOW + 9999)
    assert told(later)["state"] == "Failed" and not later.actions
    assert told(looked(found, spec={"verify": "Never"}))["state"] == "Failed", (
        "nor is it good where nobody asks"
    )


@pytest.mark.parametrize(
    ("pod", "reason"),
    [(since(WARM, LATE), "WarmHang"), (WARM.ended(ENGINE, 1, message=WORDS), "WarmCrash")],
)
def test_a_hang_or_a_crash_may_be_its_nodes_and_judges_when_it_repeats(
    pod: AttemptPod, reason: str
) -> None:
    plan = settled(of(pod))
    first = told(plan)
    assert (first["state"], first["reason"], first["lastFailure"]["reason"]) == (
        PROVING,
        "Retrying",
        "ProofFailed",
    )
    assert f"ProofFailed: {reason}: " in first["message"] and action_names(plan.after, Patch)
    assert told(looked(first, spec={"verify": "Never"}))["state"] == "Sealed", "no verdict yet"
    again = told(settled(of(pod, 2), {**first, "proofs": 2}, number=2))
    assert (again["state"], again["reason"]) == ("Failed", reason)
    other = {
        **first,
        "proofs": 2,
        "lastFailure": {**first["lastFailure"], "message": "ProofFailed: another matter"},
    }
    assert told(settled(of(pod, 2), other, number=2))["state"] == PROVING


def test_a_bundle_of_a_release_without_a_cold_time_has_that_of_its_tuning() -> None:
    old = {
        name: value
        for name, value in bundle("Sealed").items()
        if name not in ("coldSeconds", "proofs")
    }
    assert told(looked({**old, "tunedSeconds": 321}))["coldSeconds"] == 321


def test_what_is_not_the_bundles_fault_is_tried_again_in_its_time_as_often_as_attempts_are() -> (
    None
):
    lost = of(POD.waiting(ENGINE, "ImagePullBackOff", "no such"))
    plan = settled(lost)
    first = told(plan)
    assert (first["state"], first["reason"], first["lastFailure"]["attempt"]) == (
        PROVING,
        "Retrying",
        1,
    )
    assert first["message"].startswith(
        "proof 1 of 3: ImagePullFailed: container vllm"
    ) and action_names(plan.after, Patch)
    over = (job(BUNDLE, role=PROOF).failed(),)
    assert not proofs(looked(first, jobs=over, now=NOW + 29)) and proofs(
        looked(first, jobs=over, now=NOW + 30)
    )
    third = told(
        settled(
            of(POD.waiting(ENGINE, "ImagePullBackOff", "no such"), 3),
            {**first, "proofs": 3},
            number=3,
        )
    )
    assert (third["state"], third["reason"]) == (
        "Failed",
        "ImagePullFailed",
    ) and "proof 3 of 3" in third["message"]
    free = told(looked(third, spec={"verify": "Never"}))
    assert free["state"] == "Sealed" and "lastFailure" not in free, "it was never judged"
    assert free["gpus"] and free["coldSeconds"], "what savings are counted with, in the same status"


def test_what_we_ended_ourselves_is_no_verdict() -> None:
    killed = of(WARM.ended(ENGINE, 137)).but(status={"phase": "Failed"})
    gone = settled(killed, activeDeadlineSeconds=1, job_failed=True)
    assert (
        told(gone)["state"] == PROVING
        and "proofs" not in told(gone)
        and action_names(gone.actions, Delete)
    )
    going = settled(of(RUNS), activeDeadlineSeconds=1)
    assert told(going)["reason"] == "Queued" and not going.actions
    reported = settled(of(READY.ended(PROVE_CONTAINER, report=PROVEN)), activeDeadlineSeconds=1)
    assert told(reported)["proven"], "but what had reported before has"


def test_a_proof_that_gives_way_to_a_pod_that_serves_has_not_failed() -> None:
    this, pod = job(BUNDLE, 2, role=PROOF), of(mounting(RUNS), 2)
    begun = bundle(proofs=2)
    plan = looked(begun, jobs=(this,), pods=(pod,), claim_nodes={"models": ("node7",)})
    found = told(plan)
    assert action_names(plan.after, Patch) == [f"end Job {this['metadata']['name']}"]
    assert (found["state"], found["reason"]) == (PROVING, "Queued") and "node7" in found["message"]
    assert "lastFailure" not in found and not plan.ended
    again = looked(found, jobs=(job(BUNDLE, 2, role=PROOF, activeDeadlineSeconds=1).failed(),))
    assert "lastFailure" not in told(again) and "proofs" not in told(again)
    assert [end.reason for end in again.ended] == ["Superseded"]


def test_verify_switched_off_frees_the_bundle_at_once_and_ends_its_proof() -> None:
    plan = settled(of(RUNS), spec={})
    assert told(plan)["state"] == "Sealed" and "not proven" in told(plan)["message"]
    later = settled(of(RUNS), told(plan), spec={})
    assert action_names(later.after, Patch) == [
        f"end Job {job(BUNDLE, role=PROOF)['metadata']['name']}"
    ]
    over = looked(told(later), spec={}, jobs=(job(BUNDLE, role=PROOF).failed(),))
    assert action_names(over.actions, Delete) and "proofs" not in told(over), (
        "asked for again, it begins anew"
    )


def test_nothing_is_begun_where_it_must_wait() -> None:
    for more, spec, reason in (
        ({}, {"suspend": True}, "Suspended"),
        ({"claim": claim("Pending")}, {}, "WaitingForClaim"),
        (
            {"jobs": (job(BUNDLE),), "pods": (AttemptPod(BUNDLE).running("vllm"),)},
            {},
            "Proving",
        ),
    ):
        plan = looked(bundle(), spec={**ASKED, **spec}, **more)
        assert not proofs(plan) and told(plan)["reason"] == reason
        assert told(plan)["state"] == PROVING


def test_a_proof_occupies_its_target_as_an_attempt_does() -> None:
    targets = [{"name": "a"}, {"name": "b", "nodeSelector": {"gpu": "b"}}]
    both = [
        want.id
        for want in find_desired_bundles(
            PlanBuilder(observed(cache(targets=targets)), NOW), ()
        ).bundles
    ]
    fields = {**FIGURES, "reason": "Proving"}
    records = [
        bundle_json(both[0], PROVING, **fields),
        bundle_json(both[1], "Pending", attempts=0, reason="Queued"),
    ]
    this = job(both[0], role=PROOF)
    running = of(RUNS)
    running["metadata"]["labels"][names.BUNDLE] = both[0]
    running["metadata"]["ownerReferences"][0]["uid"] = this["metadata"]["uid"]
    plan = looked(*records, spec={**ASKED, "targets": targets}, jobs=(this,), pods=(running,))
    assert not plan.actions and told(plan, both[1])["message"] == f"waits for {both[0]}"
    first = looked(*records, spec={**ASKED, "targets": targets})
    assert len(action_names(first.actions, Create)) == 1 and proofs(first), (
        "the proof goes first: pods wait for it"
    )


@pytest.mark.parametrize(
    ("code", "reason", "again"),
    [(403, "PodRefused", 30), (409, "NameTaken", 10), (422, "Retrying", 30)],
)
def test_a_job_that_is_refused_is_said_and_the_bundle_stays_withheld(
    code: int, reason: str, again: float
) -> None:
    [action] = looked(bundle()).actions
    plan = looked(bundle(), outcomes={action.name: Outcome(code, "its words")})
    assert (told(plan)["state"], told(plan)["reason"]) == (PROVING, reason)
    assert plan.requeue_after is not None and plan.requeue_after <= again
    if code == 422:  # it will never be taken as it is: tried as often as attempts are
        limit = {
            **told(plan),
            "proofs": 2,
            "lastFailure": {**told(plan)["lastFailure"], "attempt": 2},
        }
        due = NOW + 9999
        [action] = looked(limit, now=due).actions
        over = told(looked(limit, now=due, outcomes={action.name: Outcome(code, "its words")}))
        assert (over["state"], over["reason"]) == ("Failed", "ProofFailed") and "its words" in over[
            "message"
        ]


def test_a_lost_report_is_asked_of_the_claim() -> None:
    """The pod is gone: whether there is a proof only the claim can say."""
    over = job(BUNDLE, role=PROOF).complete()
    plan = looked(bundle(), jobs=(over,))
    [create] = [one for one in plan.actions if isinstance(one, Create)]
    assert create.object["metadata"]["labels"][names.ROLE] == names.INSPECT and not proofs(plan)
    asked = {
        **create.object,
        "metadata": {
            **create.object["metadata"],
            "uid": "i",
            "creationTimestamp": format_timestamp(NOW),
        },
    }
    [want] = find_desired_bundles(PlanBuilder(observed(cache()), NOW), ()).bundles
    for proven, state, reason in ((True, "Sealed", "Sealed"), (False, PROVING, "Retrying")):
        base = {
            **vars(sealed_report(BUNDLE, "inspect")),
            "fingerprint": want.inputs.fingerprint,
            "bundles": [],
        }
        report = Report("inspect", "Inspected", bundles=[Report(**{**base, "proven": proven})])
        pod = AttemptPod(of=asked)
        pod["metadata"]["labels"] = {names.CACHE: "qwen3", names.ROLE: names.INSPECT}
        end = {"terminated": {"exitCode": 0, "message": report.dump()}}
        pod["status"] = {
            "phase": "Succeeded",
            "containerStatuses": [{"name": names.AGENT_CONTAINER, "state": end}],
        }
        known = bundle(fingerprint=want.inputs.fingerprint)
        after = looked(known, jobs=(over, asked), pods=(pod,))
        assert [end.reason for end in after.ended] == ([] if proven else ["ReportLost"])
        answered = told(after)
        assert (answered["state"], answered["reason"]) == (state, reason)
        assert answered.get("proven", False) == proven and answered["coldSeconds"] == 300


def test_what_nothing_wants_is_given_up_once_its_proof_is_over_and_no_pod_names_it() -> None:
    old = "0123456789ab-default"
    for state, more in (
        (PROVING, {}),
        ("Failed", {"lastFailure": {"attempt": 1, "reason": "WarmHang"}, "proofs": 1}),
    ):
        kept = {**bundle(state, **more), "id": old, "target": "default"}
        running = of(RUNS)
        running["metadata"]["labels"][names.BUNDLE] = old
        this = job(old, role=PROOF)
        running["metadata"]["ownerReferences"][0]["uid"] = this["metadata"]["uid"]
        going = looked(kept, jobs=(this,), pods=(running,))
        assert told(going, old)["state"] == state and action_names(going.after, Patch), (
            "its proof is ended first"
        )
        named = looked(kept, consumers=(Consumer().given(old),))
        assert told(named, old)["state"] == state
        plan = looked(kept)
        if state == "Failed":  # it is remembered, or it would be tuned and proven again
            assert (told(plan, old)["state"], told(plan, old)["unwantedSince"]) == (
                "Failed",
                format_timestamp(NOW),
            )
            plan = looked(told(plan, old), now=NOW + REMEMBERED_SECONDS)
        assert told(plan, old)["state"] == "Retired" and "retiredAt" in told(plan, old)


def test_a_bad_bundle_that_comes_back_is_as_bad_as_it_was() -> None:
    last = {"attempt": 1, "at": format_timestamp(NOW), "reason": "WarmHang", "message": "not ready"}
    bad = told(
        looked(
            bundle(
                "Retired",
                reason="Unwanted",
                retiredAt=format_timestamp(NOW),
                proofs=1,
                lastFailure=last,
            )
        )
    )
    assert (bad["state"], bad["reason"]) == ("Failed", "WarmHang")
    good = told(looked(bundle("Retired", reason="Unwanted", retiredAt=format_timestamp(NOW))))
    assert good["state"] == PROVING


def test_the_condition_says_where_it_is() -> None:
    plan = settled(of(RUNS))
    assert plan.status is not None
    found = {one["type"]: one for one in plan.status["conditions"]}
    assert [
        (found[one]["status"], found[one]["reason"]) for one in ("Ready", "Reconciling", "Stalled")
    ] == [
        ("False", "Proving"),
        ("True", "Proving"),
        ("False", "Proving"),
    ]
    assert found["Ready"]["message"].startswith(
        "proof 1 of 3: the engine starts from the bundle since"
    )
    assert plan.status["summary"] == {"bundles": "0/1", "entries": 0}


# --- the cold start's time


def sealing(**engine: Any) -> Plan:
    seal = {
        "exitCode": 0,
        "startedAt": format_timestamp(NOW - 100),
        "finishedAt": format_timestamp(NOW),
        "message": sealed_report(BUNDLE).dump(),
    }
    pod = AttemptPod(BUNDLE).container("pretune-seal", {"terminated": seal})
    pod = pod.container(ENGINE, {"running": {"startedAt": format_timestamp(NOW - 400)}}, **engine)
    return looked(bundle_json(BUNDLE, "Tuning"), jobs=(job(BUNDLE),), pods=(pod,))


def test_the_cold_start_is_timed_from_the_engines_start_to_seals() -> None:
    assert told(sealing())["coldSeconds"] == 300 and told(sealing())["state"] == PROVING


def test_of_a_bundle_that_was_found_the_tuning_time_is_taken_if_there_is_one() -> None:
    for took, cold in ((77, 77), (0, None)):
        report = Report(**{**vars(sealed_report(BUNDLE, "check")), "seconds": took})
        pod = AttemptPod(BUNDLE).ended(names.CHECK_CONTAINER, 1, report)
        found = told(looked(bundle_json(BUNDLE, "Tuning"), jobs=(job(BUNDLE),), pods=(pod,)))
        assert found.get("coldSeconds") == cold


def test_a_proof_that_check_finds_counts() -> None:
    report = Report(**{**vars(sealed_report(BUNDLE, "check")), "proven": True})
    pod = AttemptPod(BUNDLE).ended(names.CHECK_CONTAINER, 1, report)
    found = told(looked(bundle_json(BUNDLE, "Tuning"), jobs=(job(BUNDLE),), pods=(pod,)))
    assert found["state"] == "Sealed" and found["proven"]


# --- what is counted


def counted(before: Object, *pods: AttemptPod, spec: Object = ASKED, **more: Any) -> list[Any]:
    """(reason, GPU-seconds) of what ends in a plan; each pod has four GPUs for 100 s.

    It ends once: the plan for the status that this one wrote counts nothing.
    """
    for pod in pods:
        pod["spec"]["initContainers"][-1]["resources"] = {"limits": {"nvidia.com/gpu": "4"}}
        pod["status"]["startTime"] = format_timestamp(NOW - 100)
    more["pods"] = tuple(pods)
    plan = looked(before, spec=spec, **more)
    assert plan.status is not None
    after = looked(*plan.status["bundles"], spec=spec, **more)
    assert after.ended == ()
    return [(end.reason, end.gpu_seconds) for end in plan.ended]


PROOF_JOB, SEAL_JOB = job(BUNDLE, role=PROOF), job(BUNDLE)
PROOFS: dict[str, Any] = {"tunedSeconds": 50, "attempts": 1, "proofs": 1}
REPORTED = of(READY.ended(PROVE_CONTAINER, report=PROVEN))
SEALED_POD = AttemptPod(BUNDLE).ended(
    "pretune-seal", report=replace(sealed_report(BUNDLE), seconds=50)
)
LAST = {"attempt": 1, "at": format_timestamp(NOW), "reason": "WarmHang", "message": ""}
SUPERSEDED = bundle(**{**PROOFS, "reason": "Superseded"})
ONCE = {**ASKED, "tuning": {"maxAttempts": 1}}
UNWANTED = {**ASKED, "revision": "2"}  # by which another bundle is wanted


@pytest.mark.parametrize(
    ("case", "before", "jobs", "pods", "spec", "expected"),
    [
        ("sealed, and proven later", bundle_json(BUNDLE, "Tuning"), [SEAL_JOB], [SEALED_POD], ASKED, [("Sealed", 200)]),
        ("proven", bundle(**PROOFS), [PROOF_JOB, SEAL_JOB], [REPORTED, SEALED_POD], ASKED, [("Proven", 400)]),
        ("a verdict", bundle(**PROOFS), [PROOF_JOB, SEAL_JOB], [of(since(WARM, LATE)), SEALED_POD], ONCE, [("WarmHang", 400)]),
        ("it is tried again", bundle(**PROOFS), [PROOF_JOB], [of(WARM.ended(ENGINE, 1))], ASKED, [("ProofFailed", 400)]),
        ("nothing new", bundle("Failed", **PROOFS, lastFailure=LAST), [PROOF_JOB], [of(RUNS)], ASKED, []),
        ("it goes on", bundle(**PROOFS), [PROOF_JOB], [of(RUNS)], ASKED, []),
        ("superseded", bundle(**PROOFS), [PROOF_JOB], [of(RUNS)], UNWANTED, [("Superseded", 400)]),
        ("superseded before", SUPERSEDED, [PROOF_JOB], [of(RUNS)], UNWANTED, []),
        ("superseded before, and it is gone", SUPERSEDED, [], [], UNWANTED, []),
        ("verify was switched on", bundle("Sealed", **{**PROOFS, "proofs": 0}), [SEAL_JOB], [SEALED_POD], ASKED, []),
        ("verify was switched off", bundle(**PROOFS), [PROOF_JOB], [of(RUNS)], {"verify": "Never"}, []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_end_is_counted_once_with_its_own_pods_time(
    case: str,
    before: Object,
    jobs: list[Object],
    pods: list[AttemptPod],
    spec: Object,
    expected: list[Any],
) -> None:
    assert counted(before, *pods, spec=spec, jobs=tuple(jobs)) == expected
