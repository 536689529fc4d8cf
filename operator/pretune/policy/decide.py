"""What to do about one cache, given what is seen: the whole of pretune's judgement, as one list of policies in their order.

Pure: no I/O, and the clock is an argument. Run on the same sight it says the same.
"""

from __future__ import annotations

from dataclasses import replace

from pretune.manifests.gate import is_held
from pretune.policy.bundles import adoption, proofs, retention, tuning
from pretune.policy.bundles.desired import wants
from pretune.policy.cache import agent_configmap, deletion, storage
from pretune.policy.cache.status import status
from pretune.policy.cache.warnings import collect_warnings
from pretune.policy.hold import release
from pretune.policy.model import Observed, Plan
from pretune.policy.plan_builder import Draft
from pretune.policy.pods import rescue, warm_starts
from pretune.policy.pods.consumers import consumers, count, note, stale

RESYNC = 1800.0  # seconds after which a key is looked at though nothing woke it: a watch may have missed what happened


def decide(seen: Observed, now: float) -> Plan:
    """The plan for one key at `now` (Unix seconds). `seen.outcomes` are those of this run's own actions: what they made is
    seen as there, what they were refused becomes words."""
    if seen.cache is None:
        return deletion.afterlife(seen, now)
    if seen.cache["metadata"].get("deletionTimestamp"):
        held = [one for one in seen.consumers if is_held(one)]
        return Plan(
            after=tuple(release.release_all(held)), look_again=release.LET_GO if held else None
        )
    made = seen.claim is None
    seen = _with_outcomes(seen)
    draft = Draft(seen, now, claim_made=made and seen.claim is not None)
    claim = storage.judge(draft)
    pods = consumers(draft)
    wanted = wants(draft, pods)
    bundles = wanted.bundles

    tuning.settle(draft, bundles)  # what became of the attempts
    proofs.settle(draft)  # and of the proofs
    tuning.refuse(draft, bundles)  # what cannot be tuned as a copy
    retention.pruned(draft, bundles)  # what became of folders that were deleted
    adoption.ask(draft, bundles, claim)  # what only the claim can say
    proofs.withhold(draft, bundles)  # what was not proven yet
    agent_configmap.provide(draft)  # before whoever names it
    if wanted.refused is None:
        tuning.supersede(draft, bundles)  # attempts that nothing wants
        tuning.start(draft, bundles, claim, pods)  # the next attempt, or proof
        retention.retire(draft, bundles)
        proofs.withhold(draft, bundles)  # what is wanted again
    retention.prune(draft, claim)
    rescue.rescue(draft, pods)  # pods that only we keep from starting
    release.hold(draft, pods, wanted, claim)  # pods that need not wait any longer
    note(draft, pods)
    draft.actions += agent_configmap.replaced(draft)

    if any(action.name not in seen.outcomes for action in draft.actions) and seen.outcomes:
        draft.at(now)  # what was made asks for more at once
    draft.at(now + RESYNC)
    counted = count(draft, pods, warm_starts.told(draft, pods))
    release.tell(draft, pods, counted)
    warm_starts.tell(draft, pods, counted)  # pods that tuned although they had their bundle
    warnings = collect_warnings(draft, bundles, stale(draft, pods))
    said = {**status(draft, wanted, claim, counted, warnings), **warm_starts.saved(draft, pods)}
    return Plan(
        actions=tuple(draft.actions),
        status=said,
        after=tuple(draft.after),
        events=(*draft.events, *draft.changes()),
        released=tuple(draft.released),
        starts=warm_starts.worth_reading(draft, pods) if seen.starts is not None else (),
        look_again=None if draft.look is None else max(0.0, draft.look - now),
    )


def _with_outcomes(seen: Observed) -> Observed:
    """What this run has made, as if it had been read."""
    claim, jobs, agents = seen.claim, list(seen.jobs), list(seen.agents)
    for outcome in seen.outcomes.values():
        made = outcome.object
        if made is None or (outcome.code >= 400 and outcome.code != 409):
            continue
        if made["kind"] == "PersistentVolumeClaim":
            claim = made
        elif made["kind"] == "ConfigMap":
            agents = [
                one for one in agents if one["metadata"]["name"] != made["metadata"]["name"]
            ] + [made]
        elif made["kind"] == "Job" and all(
            one["metadata"]["uid"] != made["metadata"]["uid"] for one in jobs
        ):
            jobs.append(made)
    return replace(seen, claim=claim, jobs=tuple(jobs), agents=tuple(agents))
