"""The agent's ConfigMap: there before any Job or pod names it, and gone when nobody does."""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.timestamps import parse_timestamp
from pretune.manifests.agent_archive import config_map
from pretune.policy.model import Action, Apply, Observed
from pretune.policy.plan_builder import Draft, delete

UPGRADE = 600.0  # seconds in which an upgrade's pods replace each other; a later look removes what is left
AGAIN = 30.0  # seconds until the API server is asked again that refused it


def is_there(draft: Draft) -> bool:
    return any(one["metadata"]["name"] == draft.seen.agent_name for one in draft.seen.agents)


def provide(draft: Draft) -> None:
    """Of this release, also where all is sealed: the webhook gives its name to pods from the moment that it is upgraded."""
    if is_there(draft):
        return
    draft.actions.append(_apply(draft))
    if message := refusal(draft):
        draft.warn(
            reasons.AGENT_MISSING, f"ConfigMap {draft.seen.agent_name} cannot be made: {message}"
        )
        draft.at(draft.now + AGAIN)


def refusal(draft: Draft) -> str:
    """Why the API server refuses the ConfigMap; "" where it does not, or was not asked yet."""
    outcome = draft.outcome(_apply(draft))
    return outcome.message if outcome is not None and outcome.code >= 400 else ""


def _apply(draft: Draft) -> Apply:
    return Apply(f"apply ConfigMap {draft.seen.agent_name}", config_map(draft.seen.key.namespace))


def unnamed(seen: Observed) -> list[Action]:
    """To delete: those that no pod of the namespace names; the current one stays as long as there are caches."""
    return [
        delete(one)
        for one in seen.agents
        if one["metadata"]["name"] not in seen.agents_named
        and not (seen.namespace_has_caches and one["metadata"]["name"] == seen.agent_name)
    ]


def replaced(draft: Draft) -> list[Action]:
    """unnamed(), once the current one has been there for a while: during an upgrade a webhook of the release before still gives
    pods its own."""
    current = next(
        (one for one in draft.seen.agents if one["metadata"]["name"] == draft.seen.agent_name), None
    )
    made = (current or {"metadata": {}})["metadata"].get("creationTimestamp")
    return unnamed(draft.seen) if made and draft.now >= parse_timestamp(made) + UPGRADE else []
