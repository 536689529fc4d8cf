"""Storage, starting, adoption, retention, what is left behind: each policy by what it decides, on what a cluster shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pretune.api import names
from pretune.api.names import CHECK_CONTAINER, SEAL_CONTAINER
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.intake import EXCESS
from pretune.policy.bundles.desired import find_desired_bundles
from pretune.policy.bundles.retention import RETIREMENT_SECONDS
from pretune.policy.cache.storage import ensure_claim
from pretune.policy.decide import decide
from pretune.policy.model import Action, Apply, Create, Delete, Outcome, Patch, Plan, ReleaseRefusal
from pretune.policy.plan_builder import PlanBuilder
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import AGENT, KEY, NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod, Consumer, sealed_report

KNOWN = {"storage": {"claimUID": "claim-uid"}}


def ids(the_cache: Object) -> list[str]:
    return [
        want.id for want in find_desired_bundles(PlanBuilder(observed(the_cache), NOW), ()).bundles
    ]


def status_of(*records: Object, **more: Any) -> Object:
    return {**KNOWN, "bundles": list(records), **more}


def action_names(actions: tuple[Action, ...], kind: type[Action]) -> list[str]:
    return [one.name for one in actions if isinstance(one, kind)]


def ready(plan: Plan, kind: str = "Ready") -> tuple[str, str]:
    assert plan.status is not None
    [one] = [one for one in plan.status["conditions"] if one["type"] == kind]
    return one["status"], one["reason"]


# --- storage

WAIT_CLASS = {"volumeBindingMode": "WaitForFirstConsumer"}
EVENT = {"message": "no volume plugin", "lastTimestamp": format_timestamp(NOW)}
RWO = ("ReadWriteOnce",)


@pytest.mark.parametrize(
    ("the_claim", "more", "is_ready", "reason", "stalled"),
    [
        (claim(), {}, True, "Bound", False),
        (claim("Pending"), {}, False, "ClaimPending", False),
        (claim("Pending"), {"claim_events": (EVENT,)}, False, "ClaimPending", False),
        (claim("Pending"), {"storage_class": WAIT_CLASS}, True, "WaitForFirstConsumer", False),
        (claim("Lost"), {}, False, "ClaimLost", True),
        (claim(modes=RWO), {}, False, "SingleNode", True),
        (claim(modes=("ReadWriteOncePod",)), {}, False, "SinglePod", True),
        (claim(modes=("ReadOnlyMany",)), {}, False, "ReadOnlyClaim", True),
        (claim(deletionTimestamp=format_timestamp(NOW)), {}, False, "ClaimTerminating", False),
        (claim(labels={}), {}, False, "ClaimNotOurs", True),
        (None, {}, False, "ClaimPending", False),
    ],
    ids=str,
)
def test_a_claim_is_judged(
    the_claim: Any, more: Any, is_ready: bool, reason: str, stalled: bool
) -> None:
    verdict = ensure_claim(PlanBuilder(observed(claim=the_claim, **more), NOW))
    assert (verdict.ready, verdict.reason, verdict.stalled) == (is_ready, reason, stalled)
    assert f"pretune-{KEY.name}" in verdict.message
    assert not more.get("claim_events") or EVENT["message"] in verdict.message


def test_one_node_is_enough_for_who_says_so() -> None:
    assert ensure_claim(
        PlanBuilder(observed(cache(tuning={"allow": ["SingleNode"]}), claim=claim(modes=RWO)), NOW)
    ).ready


def test_a_claim_of_the_users_is_never_made() -> None:
    plan = decide(observed(cache(storage={"existingClaim": {"name": "shared"}}), claim=None), NOW)
    assert ready(plan, "StorageReady") == ("False", "ClaimNotFound")
    assert not action_names(plan.actions, Apply)


def test_a_changed_size_or_end_is_brought_to_our_claim() -> None:
    assert not action_names(decide(observed(), NOW).actions, Apply)
    grown = cache(storage={"claim": {"size": "2Gi"}})
    assert action_names(decide(observed(grown), NOW).actions, Apply) == [
        f"apply PersistentVolumeClaim pretune-{KEY.name}"
    ]


# --- starting


def test_a_new_cache_makes_its_claim_and_waits_for_it() -> None:
    plan = decide(observed(claim=None, agents=()), NOW)
    assert action_names(plan.actions, Apply) == [
        f"apply PersistentVolumeClaim pretune-{KEY.name}",
        f"apply ConfigMap {AGENT}",
    ]
    assert not action_names(plan.actions, Create)
    assert ready(plan) == ("False", "WaitingForClaim")


def test_a_claim_that_was_just_made_needs_no_look() -> None:
    first = decide(observed(claim=None), NOW)
    outcomes = {first.actions[0].name: Outcome(200, "", claim("Pending"))}
    plan = decide(observed(claim=None, outcomes=outcomes), NOW)
    assert plan.status is not None and plan.status["storage"] == {"claimUID": "claim-uid"}


def test_an_unknown_claim_is_asked_before_anything_is_tuned() -> None:
    plan = decide(observed(), NOW)
    assert [name.split()[1] for name in action_names(plan.actions, Create)] == ["Job"]
    [action] = [one for one in plan.actions if isinstance(one, Create)]
    assert action.object["metadata"]["labels"][names.ROLE] == names.INSPECT
    assert ready(plan) == ("False", "Inspecting")


def test_a_known_claim_gets_an_attempt_and_the_agent_before_it() -> None:
    given = {"the_cache": cache(KNOWN), "agents": ()}
    [agent] = decide(observed(**given), NOW).actions
    assert isinstance(agent, Apply)
    made = {"kind": "ConfigMap", "metadata": {"name": AGENT}}
    plan = decide(observed(**given, outcomes={agent.name: Outcome(200, "", made)}), NOW)
    assert [type(one) for one in plan.actions] == [Create] and plan.requeue_after == 0
    assert decide(observed(cache(KNOWN)), NOW).actions == plan.actions
    refused = decide(
        observed(**given, outcomes={agent.name: Outcome(403, "exceeded quota: configmaps")}), NOW
    )
    assert not action_names(refused.actions, Create) and ready(refused) == ("False", "PodRefused")


def test_the_agent_is_there_though_nothing_is_to_be_tuned() -> None:
    """After an upgrade the webhook gives pods the new one's name."""
    kept = bundle_json(ids(cache())[0])
    plan = decide(observed(cache(status_of(kept)), agents=()), NOW)
    assert ready(plan) == ("True", "Sealed")
    assert action_names(plan.actions, Apply) == [f"apply ConfigMap {AGENT}"]
    outcome = Outcome(403, "exceeded quota: configmaps")
    refused = decide(
        observed(cache(status_of(kept)), agents=(), outcomes={plan.actions[0].name: outcome}), NOW
    )
    assert [one.reason for one in refused.events] == [
        "AgentMissing"
    ] and refused.requeue_after == 30


def test_an_agent_that_something_else_wrote_is_replaced_before_a_job_names_it() -> None:
    meta = {"name": AGENT, "namespace": KEY.namespace, "uid": "u", "resourceVersion": "7"}
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
    given = {"the_cache": cache(KNOWN), "agents": (foreign,), "foreign_agent": foreign}
    plan = decide(observed(**given), NOW)
    delete, apply = plan.actions
    assert isinstance(delete, Delete) and delete.object["metadata"]["uid"] == "u"
    assert isinstance(apply, Apply) and apply.object["immutable"] is True
    assert [one.reason for one in plan.events] == ["AgentChanged"]
    assert AGENT in plan.events[0].message


def test_a_job_that_the_api_server_refuses_is_said_in_its_words() -> None:
    the_cache = cache(KNOWN)
    [action] = decide(observed(the_cache), NOW).actions
    for code, state, reason in (
        (422, "Refused", "SourceInvalid"),
        (403, "Pending", "PodRefused"),
        (409, "Pending", "NameTaken"),
    ):
        plan = decide(observed(the_cache, outcomes={action.name: Outcome(code, "its words")}), NOW)
        assert plan.status is not None
        [bundle] = plan.status["bundles"]
        assert (bundle["state"], bundle["reason"]) == (state, reason)
        assert code == 409 or bundle["message"] == "its words"
        assert plan.requeue_after is not None


def test_targets_go_one_after_another_but_a_waiting_one_holds_up_nobody() -> None:
    targets = [{"name": "a"}, {"name": "b", "nodeSelector": {"gpu": "b"}}]
    the_cache = cache(KNOWN, targets=targets)
    first, second = ids(the_cache)
    for pod, started in (
        (AttemptPod(first, of=job(first)).running("vllm"), False),
        (
            AttemptPod(first, of=job(first))
            .but(nodeName=None)
            .condition("PodScheduled", "False", message="no GPU"),
            True,
        ),
    ):
        plan = decide(observed(the_cache, jobs=(job(first),), pods=(pod,)), NOW)
        assert bool(action_names(plan.actions, Create)) == started
        assert plan.status is not None
        [record_of_second] = [one for one in plan.status["bundles"] if one["id"] == second]
        assert record_of_second["reason"] == ("WaitingForPod" if started else "Queued")


def test_suspend_starts_nothing() -> None:
    plan = decide(observed(cache(KNOWN, suspend=True)), NOW)
    assert not plan.actions
    assert ready(plan) == ("False", "Suspended")


def test_a_source_that_is_gone_stalls_and_ends_no_attempt() -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    gone = Refused("SourceNotFound", "Deployment serving")
    plan = decide(
        observed(
            the_cache,
            source=gone,
            jobs=(job(bundle),),
            pods=(AttemptPod(bundle).running("vllm"),),
        ),
        NOW,
    )
    assert ready(plan, "Stalled") == ("True", "SourceNotFound")
    assert not plan.after


def test_what_nothing_wants_gives_its_gpu_back() -> None:
    the_cache = cache(status_of(bundle_json("0123456789ab-default", "Tuning")))
    old = job("0123456789ab-default")
    plan = decide(
        observed(
            the_cache,
            jobs=(old,),
            pods=(AttemptPod("0123456789ab-default").running("vllm"),),
        ),
        NOW,
    )
    assert action_names(plan.after, Patch) == [f"end Job {old['metadata']['name']}"]
    assert not action_names(
        plan.actions, Create
    )  # one attempt per target: the new one waits for its end


# --- what became of it


def settled(pod: AttemptPod, bundle: str, the_cache: Object, **more: Any) -> Plan:
    return decide(observed(the_cache, jobs=(job(bundle),), pods=(pod,), **more), NOW)


def test_a_report_of_seal_makes_the_bundle_sealed_before_its_job_ends() -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    pod = (
        AttemptPod(bundle)
        .running("vllm", imageID="registry/vllm@sha256:1")
        .ended(SEAL_CONTAINER, report=sealed_report(bundle))
    )
    plan = settled(pod, bundle, the_cache)
    assert ready(plan) == ("True", "Sealed")
    assert plan.status is not None
    [sealed] = plan.status["bundles"]
    assert (sealed["entries"], sealed["engineImage"]) == (20, "registry/vllm@sha256:1")
    assert (
        not plan.after and plan.requeue_after == 25
    )  # the pod may linger for 30 s after its report
    later = observed(cache(plan.status), jobs=(job(bundle),), pods=(pod,))  # type: ignore[arg-type]
    assert action_names(decide(later, NOW + 25).after, Patch)


def test_what_check_finds_on_the_claim_is_adopted_and_its_job_removed() -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    plan = settled(
        AttemptPod(bundle).ended(CHECK_CONTAINER, 1, sealed_report(bundle, "check")),
        bundle,
        the_cache,
    )
    assert ready(plan) == ("True", "Sealed")
    assert action_names(plan.after, Delete)


def test_a_failed_attempt_is_remembered_before_it_is_ended_and_tried_again_in_its_time() -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    plan = settled(AttemptPod(bundle).ended("vllm", 1, message="out of memory"), bundle, the_cache)
    assert plan.status is not None
    [failed] = plan.status["bundles"]
    assert (failed["state"], failed["reason"], failed["lastFailure"]["reason"]) == (
        "Pending",
        "Retrying",
        "EngineFailed",
    )
    assert "out of memory" in failed["message"] and action_names(plan.after, Patch)
    again = cache(plan.status)  # type: ignore[arg-type]
    over = (job(bundle).failed(),)
    assert not decide(observed(again, jobs=over), NOW + 29).actions
    [create] = decide(observed(again, jobs=over), NOW + 30).actions
    assert isinstance(create, Create) and create.object["metadata"]["labels"][names.ATTEMPT] == "2"


@pytest.mark.parametrize(
    ("reason", "attempt", "before", "state"),
    [
        ("EngineFailed", 1, None, "Pending"),
        ("EngineFailed", 3, None, "Failed"),
        ("UnsafeFiles", 1, None, "Failed"),
        ("ReadinessUnknown", 1, None, "Failed"),
        ("IncompleteRanks", 1, None, "Pending"),
        ("IncompleteRanks", 2, "IncompleteRanks", "Failed"),
        ("IncompleteRanks", 2, "EngineFailed", "Pending"),
        ("ReleaseTooOld", 1, None, "Refused"),
    ],
)
def test_which_failures_are_tried_again(
    reason: str, attempt: int, before: str | None, state: str
) -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    last = {
        "attempt": attempt - 1,
        "at": format_timestamp(NOW - 999),
        "reason": before,
        "message": "",
    }
    old = bundle_json(
        bundle, "Tuning", attempts=attempt, **({"lastFailure": last} if before else {})
    )
    this = job(bundle, attempt)
    pod = AttemptPod(bundle, attempt, this).ended(
        SEAL_CONTAINER, 1, Report(by="seal", reason=reason, message="so it is")
    )
    plan = decide(observed(cache(status_of(old)), jobs=(this,), pods=(pod,)), NOW)
    assert plan.status is not None
    assert plan.status["bundles"][0]["state"] == state


def test_a_foreign_pod_of_the_same_bundle_is_waited_for_and_its_report_not_read() -> None:
    the_cache = cache(KNOWN)
    [bundle] = ids(the_cache)
    pod = AttemptPod(bundle, of=job(bundle, uid="of-a-deleted-cache")).running("vllm")
    plan = decide(observed(the_cache, pods=(pod,)), NOW)
    assert not plan.actions
    assert ready(plan) == ("False", "NameTaken")


# --- the claim is the truth


def asked(the_cache: Object) -> tuple[Object, Object]:
    """The inspect Job that is made for this cache, as stored, and a pod of it."""
    [create] = [one for one in decide(observed(the_cache), NOW).actions if isinstance(one, Create)]
    stored = {
        **create.object,
        "metadata": {
            **create.object["metadata"],
            "uid": "inspect",
            "creationTimestamp": format_timestamp(NOW),
        },
    }
    pod = AttemptPod(of=stored)
    pod["metadata"]["labels"] = {names.CACHE: KEY.name, names.ROLE: names.INSPECT}
    return stored, pod


def answered(the_cache: Object, *found: Report) -> Plan:
    stored, pod = asked(the_cache)
    report = Report(by="inspect", reason="Inspected", bundles=list(found))
    end = {
        "terminated": {"exitCode": 0, "message": report.dump(), "finishedAt": format_timestamp(NOW)}
    }
    pod["status"] = {
        "phase": "Succeeded",
        "containerStatuses": [{"name": names.AGENT_CONTAINER, "state": end}],
    }
    return decide(observed(the_cache, jobs=(stored,), pods=(pod,)), NOW)


def found(the_cache: Object) -> Report:
    [want] = find_desired_bundles(PlanBuilder(observed(the_cache), NOW), ()).bundles
    return Report(
        **{
            **vars(sealed_report(want.id, "inspect")),
            "fingerprint": want.inputs.fingerprint,
            "bundles": [],
        }
    )


def test_a_bundle_that_is_on_the_claim_is_adopted_and_never_tuned_again() -> None:
    plan = answered(cache(), found(cache()))
    assert ready(plan) == ("True", "Sealed")
    assert not action_names(plan.actions, Create) and action_names(plan.after, Delete)


def test_a_bundle_of_the_same_id_but_another_fingerprint_is_not_ours() -> None:
    [bundle] = ids(cache())
    other = replace(sealed_report(bundle, "inspect"), fingerprint="0" * 64)
    plan = answered(cache(), other)
    assert ready(plan) == ("False", "Inspecting") and plan.requeue_after == 0


def test_an_empty_answer_is_remembered_before_an_attempt_starts() -> None:
    """In one run the attempt would live by the time that the status is made, and the place would be unknown for ever."""
    plan = answered(cache())
    assert not action_names(plan.actions, Create) and plan.requeue_after == 0
    assert plan.status is not None and plan.status["storage"] == {"claimUID": "claim-uid"}
    assert len(action_names(decide(observed(cache(dict(plan.status))), NOW).actions, Create)) == 1


def test_another_claim_than_the_one_remembered_is_asked_even_for_sealed_bundles() -> None:
    [bundle] = ids(cache())
    sealed = cache(
        {
            "storage": {"claimUID": "another"},
            "bundles": [bundle_json(bundle, layout="Managed", sealedAt=format_timestamp(NOW))],
        }
    )
    plan = answered(sealed)
    assert ready(plan) == ("False", "Inspecting") and plan.requeue_after == 0
    assert not action_names(plan.actions, Create), "only once the status has forgotten the bundle"


def test_a_bundle_whose_status_is_malformed_is_read_from_the_claim_again() -> None:
    [bundle] = ids(cache())
    other = bundle_json("0123456789ab-other", layout="Managed")
    malformed = cache(status_of(bundle_json(bundle, attempts="two"), other))
    plan = decide(observed(malformed), NOW)
    assert plan.status is not None
    assert [(one["id"], one["state"]) for one in plan.status["bundles"]] == [
        (bundle, "Pending"),
        (other["id"], "Sealed"),
    ]
    assert [(event.reason, event.warning) for event in plan.events] == [("Malformed", True)]
    assert "status.bundles[0]: attempts is not a number" in plan.events[0].message
    [create] = [one for one in plan.actions if isinstance(one, Create)]
    assert create.object["metadata"]["labels"][names.ROLE] == names.INSPECT


def test_a_malformed_part_does_not_hide_a_change_of_the_claim() -> None:
    [bundle] = ids(cache())
    sealed = bundle_json(bundle, layout="Managed", sealedAt=format_timestamp(NOW))
    before = decide(observed(cache(status_of(sealed, bundle_json("x", attempts=-1)))), NOW)
    assert before.status is not None and before.status["storage"] == {"claimUID": "claim-uid"}
    other = claim()
    other["metadata"]["uid"] = "another"
    plan = decide(observed(cache(dict(before.status)), claim=other), NOW)
    assert ready(plan) == ("False", "Inspecting")


def test_a_place_whose_record_was_malformed_is_recorded_again() -> None:
    [bundle] = ids(cache())
    sealed = bundle_json(bundle, layout="Managed", sealedAt=format_timestamp(NOW))
    plan = decide(observed(cache({"storage": "claim", "bundles": [sealed]})), NOW)
    assert plan.status is not None and plan.status["storage"] == {"claimUID": "claim-uid"}


# --- a bundle's end


def old(number: int, state: str = "Sealed", **more: Any) -> Object:
    more.setdefault("sealedAt", format_timestamp(NOW - 1000 + number))
    return bundle_json(f"{number:012x}-default", state, layout="Managed", **more)


def test_bundles_beyond_the_newest_ones_retire_unless_somebody_wants_or_names_them() -> None:
    [bundle] = ids(cache())
    kept = bundle_json(bundle, sealedAt=format_timestamp(NOW - 5000), layout="Managed")
    consumer = Consumer().given(old(1)["id"])
    the_cache = cache(status_of(kept, *(old(n) for n in range(1, 6))), bundleHistoryLimit=2)
    plan = decide(observed(the_cache, consumers=(consumer,)), NOW)
    assert plan.status is not None
    states = {one["id"]: one["state"] for one in plan.status["bundles"]}
    retired = [one for one in states if states[one] == "Retired"]
    assert retired == [
        old(2)["id"],
        old(3)["id"],
    ]  # 4 and 5 are the newest, 1 has a pod, `kept` is wanted


def test_a_retired_bundle_is_pruned_by_its_writer_ten_minutes_later() -> None:
    gone = old(
        1,
        "Retired",
        retiredAt=format_timestamp(NOW - RETIREMENT_SECONDS + 1),
        writer={"uid": 1234, "gid": 5, "groups": [6]},
    )
    [bundle] = ids(cache())
    the_cache = cache(
        status_of(bundle_json(bundle, layout="Managed", sealedAt=format_timestamp(NOW)), gone)
    )
    assert not decide(observed(the_cache), NOW).actions
    [create] = decide(observed(the_cache), NOW + 1).actions
    assert isinstance(create, Create)
    context = create.object["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (1234, 5)
    done = {**create.object, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    done["metadata"] = {
        **done["metadata"],
        "uid": "prune",
        "creationTimestamp": format_timestamp(NOW),
    }
    plan = decide(observed(the_cache, jobs=(done,)), NOW + 9)
    assert plan.status is not None
    assert [one["id"] for one in plan.status["bundles"]] == [bundle]
    assert action_names(plan.after, Delete)


def test_a_retired_bundle_that_is_wanted_again_comes_back() -> None:
    [bundle] = ids(cache())
    retired = bundle_json(
        bundle,
        "Retired",
        retiredAt=format_timestamp(NOW),
        layout="Managed",
        sealedAt=format_timestamp(NOW),
        entries=3,
    )
    assert ready(decide(observed(cache(status_of(retired))), NOW)) == ("True", "Sealed")


def test_a_retired_bundle_that_is_wanted_again_after_its_claim_is_gone_is_pending() -> None:
    [bundle] = ids(cache())
    retired = bundle_json(
        bundle, "Retired", retiredAt=format_timestamp(NOW), sealedAt=format_timestamp(NOW)
    )
    plan = decide(observed(cache(status_of(retired)), claim=None), NOW)
    assert plan.status is not None
    assert [(each["id"], each["state"]) for each in plan.status["bundles"]] == [(bundle, "Pending")]


# --- what is left behind


def test_a_claim_goes_with_its_cache_once_no_pod_names_it() -> None:
    gone = {"cache": None, "namespace_has_caches": True}
    assert action_names(decide(observed(**gone), NOW).actions, Delete) == [
        f"delete PersistentVolumeClaim pretune-{KEY.name}"
    ]
    in_use = decide(observed(**gone, claim_users=frozenset({"serving-0"})), NOW)
    assert not in_use.actions and in_use.requeue_after
    named = decide(observed(**gone, claim_caches=frozenset({"other"})), NOW)
    assert not named.actions and named.requeue_after
    kept = claim(annotations={names.WHEN_DELETED: "Retain"})
    assert not decide(observed(**{**gone, "claim": kept}), NOW).actions
    assert not decide(observed(**{**gone, "claim": claim(labels={})}), NOW).actions


# --- what a person reads


def test_conditions_keep_their_time_until_they_flip() -> None:
    the_cache = cache(KNOWN)
    first = decide(observed(the_cache), NOW).status
    again = decide(observed(cache(first)), NOW + 100).status  # type: ignore[arg-type]
    assert first is not None and again is not None
    times = [
        [one["lastTransitionTime"] for one in status["conditions"]] for status in (first, again)
    ]
    assert times[0] == times[1]


def test_the_same_sight_gives_the_same_status() -> None:
    [bundle] = ids(cache())
    sealed = cache(
        status_of(bundle_json(bundle, layout="Managed", sealedAt=format_timestamp(NOW), entries=1))
    )
    plan = decide(observed(sealed), NOW)
    assert decide(observed(cache(plan.status)), NOW).status == plan.status  # type: ignore[arg-type]
    assert not plan.actions and not plan.after and not plan.events


def test_without_a_source_ready_is_unknown() -> None:
    assert ready(decide(observed(cache(source={})), NOW)) == ("Unknown", "NoSource")


def test_a_message_names_the_target_where_there_are_several() -> None:
    the_cache = cache(KNOWN, targets=[{"name": "a"}, {"name": "b", "nodeSelector": {"gpu": "b"}}])
    plan = decide(observed(the_cache), NOW)
    assert plan.status is not None
    message = plan.status["conditions"][0]["message"]
    assert "a: attempt 1 of 3" in message and "b: waits for" in message


# --- a cache that is too large


def test_a_cache_that_is_too_large_to_be_read_holds_and_ends_nothing_and_says_so() -> None:
    seen = cache(status_of(bundle_json("0123456789ab-default", names.TUNING_STATE)))
    parked = {**seen, "spec": {}, EXCESS: "is nested more than 64 levels deep"}
    pods = (Consumer("a").held(), Consumer("old").ready())
    look = observed(parked, consumers=pods, jobs=(job("0123456789ab-default"),))
    plan = decide(look, NOW)
    assert plan.status is not None and not plan.actions
    assert plan.status["bundles"] == seen["status"]["bundles"]
    conditions = {each["type"]: each for each in plan.status["conditions"]}
    assert {(each["status"], each["reason"]) for each in conditions.values()} == {
        ("False", "TooLarge"),
        ("True", "TooLarge"),
    }
    words = "AutotuneCache qwen3 is nested more than 64 levels deep"
    assert conditions["Stalled"]["message"] == words and conditions["Stalled"]["status"] == "True"
    assert [action.object["metadata"]["name"] for action in plan.after] == ["a-1"]  # type: ignore[attr-defined]
    again = decide(replace(look, cache={**parked, "status": plan.status}), NOW + 5)
    assert again.status == plan.status
    refusals = {pods[0]["metadata"]["uid"]: ReleaseRefusal(9, "denied", NOW - 99, NOW)}
    refused = decide(replace(look, release_refusals=refusals), NOW)
    assert [action.name for action in refused.after] == ["release Pod a-1", "delete Pod a-1"]


@pytest.mark.parametrize("is_deleted", [False, True], ids=["too large", "being deleted"])
def test_attempts_that_nobody_ends_keep_their_turns(is_deleted: bool) -> None:
    seen = cache(KNOWN)
    if is_deleted:
        seen["metadata"]["deletionTimestamp"] = format_timestamp(NOW)
    else:
        seen = {**seen, "spec": {}, EXCESS: "is nested more than 64 levels deep"}
    runs, ended = job("0123456789ab-a"), job("0123456789ab-b").complete()
    for each in (runs, ended):  # the place that a spec of a cache that is too large does not name
        each["metadata"]["annotations"][names.STORAGE] = "shared/folder"
    pod = AttemptPod(of=runs)
    plan = decide(observed(seen, jobs=(runs, ended), pods=(pod,)), NOW)
    assert plan.open_attempts == {runs["metadata"]["name"]: True}
    assert not plan.actions and not plan.after
    assert plan.requeue_after == (None if is_deleted else 1800)
    unplaced = decide(observed(seen, jobs=(runs,), pods=(pod.but(nodeName=""),)), NOW)
    assert unplaced.open_attempts == plan.open_attempts
    assert unplaced.requeue_after is not None and unplaced.requeue_after <= 900
