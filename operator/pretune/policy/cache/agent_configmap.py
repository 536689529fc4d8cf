"""The agent's ConfigMap: there before any Job or pod names it, and gone when nobody does."""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.timestamps import parse_timestamp
from pretune.manifests.agent_archive import build_agent_config_map
from pretune.policy.model import Action, Apply, Observed
from pretune.policy.plan_builder import PlanBuilder, delete

UPGRADE = 600.0  # seconds in which an upgrade's pods replace each other; a later look removes what is left
AGAIN = 30.0  # seconds until the API server is asked again that refused it


def is_there(plan: PlanBuilder) -> bool:
    return any(one["metadata"]["name"] == plan.observed.agent_name for one in plan.observed.agents)


def provide(plan: PlanBuilder) -> None:
    """Of this release, also where all is sealed: the webhook gives its name to pods from the moment that it is upgraded."""
    if is_there(plan):
        return
    plan.actions.append(_apply(plan))
    if message := refusal(plan):
        plan.warn(
            reasons.AGENT_MISSING, f"ConfigMap {plan.observed.agent_name} cannot be made: {message}"
        )
        plan.requeue_at(plan.now + AGAIN)


def refusal(plan: PlanBuilder) -> str:
    """Why the API server refuses the ConfigMap; "" where it does not, or was not asked yet."""
    outcome = plan.outcome(_apply(plan))
    return outcome.message if outcome is not None and outcome.code >= 400 else ""


def _apply(plan: PlanBuilder) -> Apply:
    return Apply(
        f"apply ConfigMap {plan.observed.agent_name}",
        build_agent_config_map(plan.observed.key.namespace),
    )


def unnamed(observed: Observed) -> list[Action]:
    """To delete: those that no pod of the namespace names; the current one stays as long as there are caches."""
    return [
        delete(one)
        for one in observed.agents
        if one["metadata"]["name"] not in observed.agents_named
        and not (observed.namespace_has_caches and one["metadata"]["name"] == observed.agent_name)
    ]


def replaced(plan: PlanBuilder) -> list[Action]:
    """unnamed(), once the current one has been there for a while: during an upgrade a webhook of the release before still gives
    pods its own."""
    current = next(
        (
            one
            for one in plan.observed.agents
            if one["metadata"]["name"] == plan.observed.agent_name
        ),
        None,
    )
    made = (current or {"metadata": {}})["metadata"].get("creationTimestamp")
    return unnamed(plan.observed) if made and plan.now >= parse_timestamp(made) + UPGRADE else []
