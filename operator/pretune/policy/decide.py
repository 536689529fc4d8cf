"""What to do about one cache, given what was observed: all policies, in their order.

Pure: no I/O, and the clock is an argument. The same observation gives the same plan.
"""

from __future__ import annotations

from dataclasses import replace

from pretune.intake import EXCESS
from pretune.manifests.gate import is_held
from pretune.policy.bundles import adoption, proofs, retention, retries, tuning, turns
from pretune.policy.bundles.desired import find_desired_bundles
from pretune.policy.cache import agent_configmap, deletion
from pretune.policy.cache.status import build_parked_status, build_status
from pretune.policy.cache.storage import ensure_claim
from pretune.policy.cache.warnings import collect_warnings
from pretune.policy.hold import release
from pretune.policy.model import Observed, Plan
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods import rescue, warm_starts
from pretune.policy.pods.consumers import (
    count_consumers,
    count_stale,
    list_consumers,
    update_running_flags,
)
from pretune.policy.pods.savings import sum_savings

# After this time a cache is reconciled without an event: a watch may have missed one.
RESYNC_SECONDS = 1800.0


def decide(observed: Observed, now: float) -> Plan:
    """Return the plan for one cache at `now` (Unix seconds).

    observed.outcomes are those of this reconcile's own actions: an object that was created counts
    as observed, and a refusal becomes a message.
    """
    if observed.cache is None:
        return deletion.plan_deletion(observed, now)
    if observed.cache["metadata"].get("deletionTimestamp"):
        return _release_all(PlanBuilder(observed, now), requeue_after=None)
    if excess := observed.cache.get(EXCESS):
        return _park(observed, now, f"AutotuneCache {observed.key.name} {excess}")
    had_no_claim = observed.claim is None
    observed = _with_outcomes(observed)
    plan = PlanBuilder(observed, now, claim_made=had_no_claim and observed.claim is not None)
    storage = ensure_claim(plan)
    pods = list_consumers(plan)
    desired = find_desired_bundles(plan, pods)
    bundles = desired.bundles

    tuning.process_finished_attempts(plan, bundles)  # how attempts ended
    proofs.process_finished_proofs(plan)  # how proofs ended
    tuning.refuse_untunable(plan, bundles)  # what cannot be tuned as a copy
    retries.forget_outdated_failures(plan, bundles)  # what failed under other settings
    retention.process_finished_prunes(plan, bundles)  # folders that were deleted
    adoption.read_claim(plan, bundles, storage)  # bundles that only the claim shows
    proofs.require_proofs(plan, bundles)  # what was not proven yet
    agent_configmap.create_if_missing(plan)  # before a Job names it
    if desired.refused is None:
        tuning.end_unwanted(plan, bundles)  # attempts that nothing wants
        tuning.start_attempts(plan, bundles, storage, pods)  # and proofs, and imports
        retention.retire(plan, bundles)
    retention.prune(plan, storage)
    rescue.rescue(plan, pods)  # pods that only we keep from starting
    release.release_pods(plan, pods, desired, storage)  # held pods that need not wait
    update_running_flags(plan, pods)
    plan.actions += agent_configmap.delete_outdated(plan)

    if any(action.name not in observed.outcomes for action in plan.actions) and observed.outcomes:
        plan.requeue_at(now)  # what was created leads to more, at once
    plan.requeue_at(now + RESYNC_SECONDS)
    counted = count_consumers(plan, pods, warm_starts.count_warm_starts(plan, pods))
    release.emit_held_event(plan, pods, counted)
    warm_starts.emit_retuned_events(plan, pods, counted)
    warnings = collect_warnings(plan, bundles, count_stale(plan, pods))
    gpu_seconds_saved, saved_until = sum_savings(plan, pods)
    status = replace(
        build_status(plan, desired, storage, counted, warnings),
        gpu_seconds_saved=gpu_seconds_saved,
        saved_until=saved_until,
    )
    open_attempts = turns.list_open_attempts(plan)
    return Plan(
        actions=tuple(plan.actions),
        status=status.to_dict(),
        after=tuple(plan.after),
        events=(*plan.events, *plan.change_events()),
        released=tuple(plan.released),
        ended=tuple(plan.ended),
        lost_gpu_seconds=plan.lost_gpu_seconds,
        starts=warm_starts.list_readable_starts(pods) if observed.start_logs is not None else (),
        open_attempts=open_attempts,
        waits_for_turn=plan.waits_for_turn,
        requeue_after=None if plan.requeue_time is None else max(0.0, plan.requeue_time - now),
    )


def _park(observed: Observed, now: float, message: str) -> Plan:
    """Return the plan for a cache that is too large to be read: nothing is held, made or ended."""
    plan = PlanBuilder(observed, now)
    status = build_parked_status(plan, message).to_dict()
    return replace(_release_all(plan, requeue_after=RESYNC_SECONDS), status=status)


def _release_all(plan: PlanBuilder, requeue_after: float | None) -> Plan:
    """Return the plan that releases every held pod. Attempts that still run keep their turns.

    requeue_after: seconds, where nothing asks for an earlier look.
    """
    held = [pod for pod in plan.observed.consumers if is_held(pod)]
    open_attempts = turns.list_open_attempts(plan)
    seconds = release.RELEASE_RECHECK_SECONDS if held else requeue_after
    plan.requeue_at(None if seconds is None else plan.now + seconds)
    return Plan(
        after=tuple(release.release_all(held, plan.observed)),
        open_attempts=open_attempts,
        requeue_after=None if plan.requeue_time is None else plan.requeue_time - plan.now,
    )


def _with_outcomes(observed: Observed) -> Observed:
    """Return the observation with what this reconcile has created, as if it had been read."""
    claim, jobs, agents = observed.claim, list(observed.jobs), list(observed.agents)
    for outcome in observed.outcomes.values():
        obj = outcome.object
        if obj is None or (outcome.code >= 400 and outcome.code != 409):
            continue
        if obj["kind"] == "PersistentVolumeClaim":
            claim = obj
        elif obj["kind"] == "ConfigMap":
            name = obj["metadata"]["name"]
            agents = [agent for agent in agents if agent["metadata"]["name"] != name] + [obj]
        elif obj["kind"] == "Job" and all(
            job["metadata"]["uid"] != obj["metadata"]["uid"] for job in jobs
        ):
            jobs.append(obj)
    return replace(observed, claim=claim, jobs=tuple(jobs), agents=tuple(agents))
