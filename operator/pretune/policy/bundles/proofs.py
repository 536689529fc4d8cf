"""spec.verify: a bundle that is on the claim is given to no pod before the engine was started from it once, and was warm.

`Proving` is a bundle's state until then. Its proof is an attempt like those that tune: one Job, at most one live on a target; tuning.start
says when. A verdict about the bundle is final; what is not the bundle's fault is tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, PROOF, PROVE_CONTAINER, PROVING, SEALED
from pretune.api.reasons import Reason, Refused
from pretune.api.spec import Spec
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.manifests.delivery_modes import find_mode
from pretune.manifests.job import build_proof_job
from pretune.podspec.template import count_gpus, engine_of
from pretune.policy.bundles import proof_state
from pretune.policy.bundles.attempt_state import Attempt, has_reported, read, start_seconds
from pretune.policy.bundles.job_runs import count_disruptions, create, pod_of, tidy
from pretune.policy.bundles.proof_state import JUDGED, TWICE
from pretune.policy.cache import agent_configmap
from pretune.policy.plan_builder import (
    DesiredBundle,
    PlanBuilder,
    ended_by_us,
    failure,
    next_try,
    note_failure,
)
from pretune.protocol import PROVEN


def may_be_given(record: Mapping[str, Any], spec: Spec) -> bool:
    """Whether a pod may start with this bundle: sealed, and proven where that is asked for. An empty one has nothing to prove."""
    proven = (
        record.get("proven") or record.get("layout") == "Empty" or spec.verify != "BeforeRelease"
    )
    return record.get("state") == SEALED and bool(proven)


def is_withheld(record: Mapping[str, Any]) -> bool:
    """On the claim, and given to nobody: not proven yet, or by no means."""
    return record["state"] == PROVING or (record["state"] == FAILED and "digest" in record)


def is_judged(record: Mapping[str, Any]) -> bool:
    """A proof has said that this bundle is no good."""
    return failure(record).get("reason") in JUDGED


def note_cold(record: Object, took: int | None) -> None:
    """How long the engine's start took when it tuned, in seconds; None: not known."""
    if took:
        record["coldSeconds"] = took


# --- who is to be proven


def withhold(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Sealed, or on its way to be. Before anybody looks at what is sealed: a bundle that was sealed or adopted in this very run too."""
    for want in bundles:
        record = plan.bundles[want.id]
        if record["state"] == SEALED:
            record["gpus"] = count_gpus(engine_of(want.template, plan.spec.engine_container))
            if "coldSeconds" not in record:  # of an older release
                note_cold(record, record.get("tunedSeconds"))
            if not may_be_given(record, plan.spec):
                plan.say(record, PROVING, reasons.PROVING, f"{_entries(record)}; {_WHY}")
    if plan.spec.verify == "BeforeRelease":
        return
    for record in plan.bundles.values():
        if is_withheld(record) and not is_judged(record):
            record.pop("lastFailure", None)
            plan.say(
                record,
                SEALED,
                reasons.SEALED,
                f"{_entries(record)}, not proven (spec.verify is Never)",
            )


_WHY = "the engine is started from the bundle once more before any pod gets it (spec.verify)"


def _entries(record: Object) -> str:
    number = record.get("entries", 0)
    return "1 entry" if number == 1 else f"{number} entries"


# --- what became of the proofs


def settle(plan: PlanBuilder) -> None:
    """Read every proof that the record has not taken note of yet, and end those that nobody asks for."""
    for bundle, record in plan.bundles.items():
        jobs = plan.attempts(bundle, PROOF)
        if jobs or "proofs" in record:
            record["proofs"] = max([record.get("proofs", 0), *jobs])
        open_ = record.get("proofs", 0) > failure(record).get("attempt", 0) and not record.get(
            "proven"
        )
        if record["state"] == PROVING and open_:
            _read(plan, record, jobs.get(record["proofs"]))
            continue
        to_be_withheld = record["state"] == SEALED and not may_be_given(record, plan.spec)
        if (
            record["state"] != PENDING and not to_be_withheld
        ):  # else a status that was lost comes back to it
            tidy(plan, bundle, jobs.values())
        if record["state"] == SEALED and not to_be_withheld and open_ and not plan.live(bundle):
            forget(
                plan, record
            )  # it was ended in its middle: asked for again, the next one is the first


def forget(plan: PlanBuilder, record: Object) -> None:
    """As if it had never been tried to prove it. Its proof is not live any more."""
    plan.drop_jobs(record["id"])
    for name in ("proofs", "pod", "disruptions"):
        record.pop(name, None)
    if not is_judged(record):
        record.pop("lastFailure", None)


def _read(plan: PlanBuilder, record: Object, job: Object | None) -> None:
    number, pod = record["proofs"], pod_of(plan, record, job)
    if job is not None and ended_by_us(job) and not (pod is not None and has_reported(pod)):
        if plan.live(record["id"]):  # what its pod says now is our doing
            plan.say(
                record,
                PROVING,
                reasons.QUEUED,
                f"proof {number} was ended; waits for its pod to be gone",
            )
        else:
            forget(plan, record)
            plan.requeue_at(plan.now)
        return
    count_disruptions(record, pod)
    if job is None and plan.live(record["id"]):
        plan.say(
            record,
            PROVING,
            reasons.WAITING_FOR_POD,
            f"proof {number}: its Job is gone; waiting for its pod to end",
        )
        return
    events = plan.observed.job_events.get(job["metadata"]["uid"], ()) if job else ()
    cold = float(record.get("coldSeconds") or 0)
    standing = read(
        Attempt(number, job, pod, events, record.get("disruptions", 0), plan.now, cold),
        proof_state.CHECKS,
    )
    plan.requeue_at(standing.look)
    if standing.state != "Finished":
        reason = standing.reason if standing.state == "Pending" else reasons.PROVING
        plan.say(
            record,
            PROVING,
            reason,
            f"proof {number} of {plan.spec.max_attempts}: {standing.message}",
        )
        return
    if standing.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    report = standing.report
    if report is not None and report.digest not in ("", record.get("digest")):
        fail(
            plan,
            record,
            reasons.PROOF_FAILED,
            f"the proof was of another bundle on the claim, {report.digest}",
        )
    elif report is not None and report.reason == PROVEN:
        assert pod is not None
        _proven(plan, record, start_seconds(pod, PROVE_CONTAINER))
        tidy(plan, record["id"], [job] if job else [])
        return
    else:
        if report is not None and report.reason == reasons.NOT_REPRODUCIBLE:
            record["newEntries"] = report.newEntries
        fail(plan, record, standing.reason, standing.message)
    if job is not None:
        plan.end(job)


def _proven(plan: PlanBuilder, record: Object, warm: int | None) -> None:
    record["proven"], record["newEntries"] = True, 0
    if warm is not None:
        record["warmSeconds"] = warm
    for name in ("pod", "disruptions", "lastFailure"):
        record.pop(name, None)
    cold = f" instead of {record['coldSeconds']} s" if record.get("coldSeconds") else ""
    took = f" in {warm} s{cold}" if warm is not None else ""
    plan.say(
        record,
        SEALED,
        reasons.SEALED,
        f"{_entries(record)}, proven: the engine started from them{took} and tuned nothing new",
    )


def fail(plan: PlanBuilder, record: Object, reason: str, message: str) -> None:
    """Take note of a proof that failed: the verdict, another one, or the end. A crash or a hang may be its node's, once."""
    number, limit = record["proofs"], plan.spec.max_attempts
    if (
        reason in TWICE
        and number < limit
        and not str(failure(record).get("message", "")).startswith(f"{reason}: ")
    ):
        reason, message = reasons.PROOF_FAILED, f"{reason}: {message}"
    note_failure(plan, record, number, reason, message)
    if reason in JUDGED:
        plan.say(record, FAILED, reason, f"proof {number}: {message}; no pod is given this bundle")
    elif number >= limit:
        plan.say(
            record,
            FAILED,
            reason,
            f"proof {number} of {limit}: {message}; no pod is given this bundle",
        )
    else:
        text = f"proof {number} of {limit}: {reason}: {message}"
        plan.warn(Reason(reason), f"bundle {record['id']}: {text}")
        plan.say(
            record,
            PROVING,
            reasons.RETRYING,
            f"{text}; the next one starts at {format_timestamp(next_try(record))}",
        )
        plan.requeue_at(next_try(record))


# --- starting


def begin(plan: PlanBuilder, want: DesiredBundle, record: Object) -> None:
    """The next proof. Not in the run that withholds the bundle: a pod of its consumers, to make the proof's from, is read for the next."""
    if plan.known.get(want.id, ("", ""))[0] != PROVING:
        plan.started.add(want.id)
        plan.requeue_at(plan.now)
        return
    observed, number = plan.observed, record.get("proofs", 0) + 1
    made = f"proof {number} of {plan.spec.max_attempts}: the Job is made"
    if not agent_configmap.is_there(plan):  # the next run, at once, makes the Job
        message = agent_configmap.refusal(plan)
        plan.say(
            record,
            PROVING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or made,
        )
        return
    try:
        example = observed.examples.get(want.origin)
        mode = find_mode(plan.spec.delivery)
        on_claim = mode is not None and record.get("layout") in mode.proven_on_claim
        job = build_proof_job(
            observed.key,
            plan.cache,
            want.template,
            want.target,
            number,
            observed.settings,
            observed.agent_name,
            example,
            on_claim,
        )
    except Refused as refused:
        plan.say(record, PROVING, reasons.POD_REFUSED, f"{refused.reason}: {refused.message}")
        return
    if create(plan, record, job, made, PROVING) in (400, 422):  # as it is, it will never be taken
        record["proofs"] = number
        fail(
            plan,
            record,
            reasons.PROOF_FAILED,
            f"the API server refuses its Job: {record['message']}",
        )
