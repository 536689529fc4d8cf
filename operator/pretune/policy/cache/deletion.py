"""What is left when a cache is gone: removed without any finalizer."""

from __future__ import annotations

from pretune.api.names import CACHE, ROLE, WHEN_DELETED
from pretune.policy.cache import agent_configmap
from pretune.policy.hold.release import LET_GO, release_all
from pretune.policy.model import Action, Observed, Plan
from pretune.policy.plan_builder import delete, owner_uid
from pretune.policy.pods.rescue import take_away
from pretune.policy.pods.start_failures import Pod, judge, next_look

LOOK = 30.0  # seconds between looks at a claim or an agent that a pod still names


def afterlife(observed: Observed, now: float) -> Plan:
    """The cache's Jobs go by their owner references. A claim goes once no pod of any phase names it, since a claim that is
    being deleted blocks pods that were not scheduled yet. Pods that cannot start with what it gave them are made anew, without us."""
    actions: list[Action] = []
    look = None
    claim = observed.claim
    ours = (
        claim is not None
        and claim["metadata"]["name"] == f"pretune-{observed.key.name}"
        and (claim["metadata"].get("labels") or {}).get(CACHE) == observed.key.name
        and (claim["metadata"].get("labels") or {}).get(ROLE) == "claim"
        and (claim["metadata"].get("annotations") or {}).get(WHEN_DELETED) == "Delete"
        and not claim["metadata"].get("deletionTimestamp")
    )
    if ours and claim is not None:
        if observed.claim_users:
            look = LOOK
        else:
            actions.append(delete(claim))
    removed = agent_configmap.unnamed(observed)
    actions += removed
    if not observed.namespace_has_caches and len(removed) < len(observed.agents):
        look = LOOK
    rescued, due = _rescue(observed, now)
    looks = [one for one in (look, due, LET_GO if observed.held else None) if one is not None]
    return Plan(
        tuple(actions),
        after=(*release_all(observed.held), *rescued),
        requeue_after=min(looks, default=None),
    )


def _rescue(observed: Observed, now: float) -> tuple[list[Action], float | None]:
    """Deletions of pods that only we keep from starting and that a controller makes anew; seconds until the next may be one. Nobody
    hears of it but the log: events are the cache's."""
    deleted, looks = [], []
    for one in observed.consumers:
        events = observed.pod_events.get(one["metadata"]["uid"])
        pod = Pod(one, events, observed.claim, (), f"pretune-{observed.key.name}", now)
        trouble = judge(pod)
        due = trouble.due if trouble is not None else next_look(pod)
        if trouble is not None and now >= trouble.due:
            deleted += [take_away(one)] if owner_uid(one) else []
        elif due is not None:
            looks.append(due - now)
    return deleted, min(looks, default=None)
