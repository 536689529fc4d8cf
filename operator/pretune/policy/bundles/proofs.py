"""spec.verify: a bundle on the claim is given to no pod before a proof.

The proof starts the engine from the bundle once, and the engine has to be warm. Until then the
bundle is Proving. A proof is an attempt like those that tune: one Job, at most one live on a
target; start_rules.py decides when. A verdict about the bundle is final; what is not the bundle's
fault is tried again.
"""

from __future__ import annotations

from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, PROOF, PROVE_CONTAINER, PROVING, SEALED
from pretune.api.reasons import Reason, Refused
from pretune.api.status import BundleStatus
from pretune.api.types import Object
from pretune.manifests.delivery_modes import find_mode
from pretune.manifests.job import build_proof_job
from pretune.podspec.devices import count_used_gpus
from pretune.podspec.template import engine_of
from pretune.policy.bundles.attempt_state import (
    FINISHED,
    GIVES_WAY,
    REPEATED,
    measure_start,
    read_attempt,
)
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.disruptions import count_disruptions, repeat
from pretune.policy.bundles.engine_volumes import find_nodes
from pretune.policy.bundles.job_runs import (
    create_job,
    end_jobs,
    observe_attempt,
    pod_of,
    was_ended_by_us,
)
from pretune.policy.bundles.proof_state import JUDGED, PROOF_CHECKS, TWICE
from pretune.policy.bundles.retries import describe_next_try, next_try, record_failure
from pretune.policy.cache import agent_configmap
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import gpu_seconds
from pretune.protocol import PROVEN


def is_judged(bundle: BundleStatus) -> bool:
    """Return whether a proof has found that this bundle must not be used."""
    return bundle.last_failure is not None and bundle.last_failure.reason in JUDGED


def record_cold_start(plan: PlanBuilder, bundle_id: str, seconds: int | None) -> None:
    """Record how long the engine's start took when it tuned; None or 0: unknown."""
    if seconds:
        plan.put(replace(plan.bundles[bundle_id], cold_seconds=seconds))


# --- which bundles are to be proven


def require_proofs(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Withhold sealed bundles that are not proven, where spec.verify asks for it; else seal them.

    Before any policy looks at what is sealed: also what this very reconcile has sealed or adopted.
    """
    if plan.spec.verify != "BeforeRelease":
        for bundle in list(plan.bundles.values()):
            if bundle.is_withheld and not is_judged(bundle):
                plan.put(replace(bundle, last_failure=None))
                message = f"{_entries(bundle)}, not proven (spec.verify is Never)"
                plan.set_state(bundle.id, SEALED, reasons.SEALED, message)
    for desired in bundles:
        require_proof(plan, desired)


def require_proof(plan: PlanBuilder, desired: DesiredBundle) -> None:
    """Withhold a bundle if it is sealed, and not proven although spec.verify asks for it."""
    bundle = plan.bundles[desired.id]
    if bundle.state != SEALED:
        return
    if bundle.gpus is None:  # found on the claim, or imported
        engine = engine_of(desired.template, plan.spec.engine_container)
        gpus = count_used_gpus(desired.template, engine, plan.observed.device_claims)
        bundle = plan.put(replace(bundle, gpus=gpus))
    if bundle.cold_seconds is None:  # of an older release
        record_cold_start(plan, desired.id, bundle.tuned_seconds)
    if not bundle.may_be_given(plan.spec):
        plan.set_state(desired.id, PROVING, reasons.PROVING, f"{_entries(bundle)}; {_WHY}")


_WHY = "the engine is started from the bundle once more before any pod gets it (spec.verify)"


def _entries(bundle: BundleStatus) -> str:
    number = bundle.entries or 0
    return "1 entry" if number == 1 else f"{number} entries"


# --- what became of the proofs


def process_finished_proofs(plan: PlanBuilder) -> None:
    """Read every proof whose end the status does not record yet, and end those not asked for."""
    for bundle_id in list(plan.bundles):
        jobs, bundle = plan.find_jobs(bundle_id, PROOF), plan.bundles[bundle_id]
        if jobs and max(jobs) > (bundle.proofs or 0):
            bundle = plan.put(replace(bundle, proofs=max(jobs)))
        if bundle.has_open_proof:
            _read_proof(plan, bundle_id, jobs.get(bundle.proofs or 0))
            continue
        to_be_withheld = bundle.state == SEALED and not bundle.may_be_given(plan.spec)
        # A status that was lost comes back to it.
        if bundle.state != PENDING and not to_be_withheld:
            end_jobs(plan, bundle_id, jobs.values())
        if bundle.has_interrupted_proof and not to_be_withheld and not plan.is_live(bundle_id):
            forget_proofs(plan, bundle_id)  # asked for again, the next one is the first


def forget_proofs(plan: PlanBuilder, bundle_id: str) -> None:
    """Go on as if there had never been a proof. Its proof is not live any more."""
    plan.record_superseded(bundle_id)
    plan.delete_jobs(bundle_id)
    bundle = replace(plan.bundles[bundle_id], proofs=None, pod=None, disruptions=None)
    if not is_judged(bundle):
        bundle = replace(bundle, last_failure=None)
    plan.put(bundle)


def _read_proof(plan: PlanBuilder, bundle_id: str, job: Object | None) -> None:
    pod = pod_of(plan, bundle_id, job)
    number = plan.bundles[bundle_id].proofs or 0
    if was_ended_by_us(job, pod):
        if plan.is_live(bundle_id):  # what its pod reports now is our doing
            message = f"proof {number} was ended; waits for its pod to be gone"
            plan.set_state(bundle_id, PROVING, reasons.QUEUED, message)
        else:
            forget_proofs(plan, bundle_id)
            plan.requeue_at(plan.now)
        return
    count_disruptions(plan, bundle_id, job, pod)
    bundle = plan.bundles[bundle_id]
    if job is None and plan.is_live(bundle_id):
        message = f"proof {number}: its Job is gone; waiting for its pod to end"
        plan.set_state(bundle_id, PROVING, reasons.WAITING_FOR_POD, message)
        return
    cold_seconds = float(bundle.cold_seconds or 0)
    attempt = observe_attempt(plan, bundle_id, number, job, pod, cold_seconds)
    state = read_attempt(attempt, PROOF_CHECKS)
    plan.requeue_at(state.recheck_at)
    if state.state == REPEATED:
        assert job is not None
        repeat(plan, bundle_id, job, state)
        return
    if state.state == GIVES_WAY:
        assert job is not None
        plan.end_job(job)
        plan.set_state(bundle_id, PROVING, reasons.QUEUED, f"proof {number}: {state.message}")
        return
    if state.state != FINISHED:
        reason = state.reason if state.state == PENDING else reasons.PROVING
        message = f"proof {number} of {plan.spec.max_attempts}: {state.message}"
        plan.set_state(bundle_id, PROVING, reason, message)
        return
    if state.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    report = state.report
    if report is not None and report.digest not in ("", bundle.digest):
        record_failed_proof(
            plan,
            bundle_id,
            reasons.PROOF_FAILED,
            f"the proof was of another bundle on the claim, {report.digest}",
        )
    elif report is not None and report.reason == PROVEN:
        assert pod is not None
        plan.record_end(bundle_id, PROVEN, gpu_seconds(pod, plan.now), role=PROOF)
        _record_proven(plan, bundle_id, measure_start(pod, PROVE_CONTAINER))
        end_jobs(plan, bundle_id, [job] if job else [])
        return
    else:
        if report is not None and report.reason == reasons.NOT_REPRODUCIBLE:
            plan.put(replace(bundle, new_entries=report.newEntries))
        record_failed_proof(plan, bundle_id, state.reason, state.message)
    end_jobs(plan, bundle_id, [job] if job is not None else [])


def _record_proven(plan: PlanBuilder, bundle_id: str, warm: int | None) -> None:
    bundle = replace(
        plan.bundles[bundle_id],
        proven=True,
        new_entries=0,
        pod=None,
        disruptions=None,
        last_failure=None,
    )
    if warm is not None:
        bundle = replace(bundle, warm_seconds=warm)
    plan.put(bundle)
    cold = f" instead of {bundle.cold_seconds} s" if bundle.cold_seconds else ""
    took = f" in {warm} s{cold}" if warm is not None else ""
    plan.set_state(
        bundle_id,
        SEALED,
        reasons.SEALED,
        f"{_entries(bundle)}, proven: the engine started from them{took} and tuned nothing new",
    )


def record_failed_proof(plan: PlanBuilder, bundle_id: str, reason: Reason, message: str) -> None:
    """Record that the newest proof failed: a verdict, another one follows, or that was the last.

    A crash or a hang may be its node's fault, once.
    """
    bundle, limit = plan.bundles[bundle_id], plan.spec.max_attempts
    number = bundle.proofs or 0
    before = bundle.last_failure.message if bundle.last_failure is not None else ""
    if reason in TWICE and number < limit and not before.startswith(f"{reason}: "):
        reason, message = reasons.PROOF_FAILED, f"{reason}: {message}"
    bundle = record_failure(plan, bundle_id, PROOF, number, reason, message)
    if reason in JUDGED:
        text = f"proof {number}: {message}; no pod is given this bundle"
        plan.set_state(bundle_id, FAILED, reason, text)
    elif number >= limit:
        text = f"proof {number} of {limit}: {message}; no pod is given this bundle"
        plan.set_state(bundle_id, FAILED, reason, text)
    else:
        text = f"proof {number} of {limit}: {reason}: {message}"
        plan.warn(reason, f"bundle {bundle_id}: {text}")
        text = f"{text}; {describe_next_try(bundle)}"
        plan.set_state(bundle_id, PROVING, reasons.RETRYING, text)
        plan.requeue_at(next_try(bundle))


# --- starting


def start_proof(plan: PlanBuilder, desired: DesiredBundle) -> bool:
    """Create the next proof's Job; return False where that was not tried.

    Not in the reconcile that withholds the bundle, but in the next, which follows at once and reads
    a pod of its consumers, from which the proof's pod is built.
    """
    if plan.state_before(desired.id) != PROVING:
        plan.requeue_at(plan.now)
        return True
    observed, bundle = plan.observed, plan.bundles[desired.id]
    number = (bundle.proofs or 0) + 1
    created = f"proof {number} of {plan.spec.max_attempts}: the Job is created"
    if not agent_configmap.exists(plan):  # the next run, at once, makes the Job
        message = agent_configmap.find_refusal(plan)
        plan.set_state(
            desired.id,
            PROVING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or created,
        )
        return False
    mode = find_mode(plan.spec.delivery)
    try:
        job = build_proof_job(
            observed.key,
            plan.cache,
            desired.template,
            desired.target,
            number,
            observed.settings,
            observed.agent_name,
            observed.examples.get(desired.origin_key),
            mode is not None and bundle.layout in mode.proven_on_claim,
            find_nodes(plan, desired),
            observed.device_claims,
        )
    except Refused as refused:
        message = f"{refused.reason}: {refused.message}"
        plan.set_state(desired.id, PROVING, reasons.POD_REFUSED, message)
        return False
    if create_job(plan, desired.id, job, created, PROVING) in (400, 422):  # it will never be taken
        bundle = plan.put(replace(plan.bundles[desired.id], proofs=number))
        message = f"the API server refuses its Job: {bundle.message}"
        record_failed_proof(plan, desired.id, reasons.PROOF_FAILED, message)
    return True
