"""What is left when a cache is gone: removed without any finalizer."""

from __future__ import annotations

from pretune.api import CACHE, ROLE, WHEN_DELETED
from pretune.decide import agents
from pretune.decide.draft import delete
from pretune.decide.holding import release_all
from pretune.model import Action, Observed, Plan

LOOK = 30.0  # seconds between looks at a claim or an agent that a pod still names


def afterlife(seen: Observed) -> Plan:
    """The cache's Jobs go by their owner references. A claim goes once no pod of any phase names it, since a claim that is
    being deleted blocks pods that were not scheduled yet."""
    actions: list[Action] = []
    look = None
    claim = seen.claim
    ours = (
        claim is not None
        and claim["metadata"]["name"] == f"pretune-{seen.key.name}"
        and (claim["metadata"].get("labels") or {}).get(CACHE) == seen.key.name
        and (claim["metadata"].get("labels") or {}).get(ROLE) == "claim"
        and (claim["metadata"].get("annotations") or {}).get(WHEN_DELETED) == "Delete"
        and not claim["metadata"].get("deletionTimestamp")
    )
    if ours and claim is not None:
        if seen.claim_users:
            look = LOOK
        else:
            actions.append(delete(claim))
    removed = agents.unnamed(seen)
    actions += removed
    if not seen.namespace_has_caches and len(removed) < len(seen.agents):
        look = LOOK
    return Plan(actions=tuple(actions), after=tuple(release_all(seen.held)), look_again=look)
