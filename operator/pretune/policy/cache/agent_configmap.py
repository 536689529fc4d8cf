"""The agent's ConfigMap: created before a Job or pod names it, deleted when none does."""

from __future__ import annotations

from pretune.api import reasons
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.agent_archive import build_agent_config_map
from pretune.policy.model import Action, Apply, Observed
from pretune.policy.objects import delete
from pretune.policy.plan_builder import PlanBuilder

UPGRADE_SECONDS = 600.0  # in which an upgrade replaces pods; a later look removes what is left
RETRY_SECONDS = 30.0  # until a ConfigMap that the API server refused is applied again


def exists(plan: PlanBuilder) -> bool:
    """Return whether the ConfigMap of this release is there, and holds its agent."""
    return _find_current(plan) is not None and plan.observed.foreign_agent is None


def _find_current(plan: PlanBuilder) -> Object | None:
    names_current = (
        agent
        for agent in plan.observed.agents
        if agent["metadata"]["name"] == plan.observed.agent_name
    )
    return next(names_current, None)


def create_if_missing(plan: PlanBuilder) -> None:
    """Create the ConfigMap of this release, also where all bundles are sealed.

    The webhook gives its name to pods as soon as it is upgraded.
    """
    if exists(plan):
        return
    if foreign := plan.observed.foreign_agent:
        # Deleted, since nobody can change one that is immutable.
        plan.actions.append(delete(foreign))
        message = (
            f"ConfigMap {plan.observed.agent_name} does not hold pretune's agent: something else"
            " wrote it. It is deleted and written again: find out who may write ConfigMaps here"
        )
        plan.warn(reasons.AGENT_CHANGED, message)
    plan.actions.append(_build_apply(plan))
    if message := find_refusal(plan):
        name = plan.observed.agent_name
        plan.warn(reasons.AGENT_MISSING, f"ConfigMap {name} cannot be created: {message}")
        plan.requeue_at(plan.now + RETRY_SECONDS)


def find_refusal(plan: PlanBuilder) -> str:
    """Return why the API server refuses the ConfigMap; "": it does not, or was not asked yet."""
    outcome = plan.outcome(_build_apply(plan))
    return outcome.message if outcome is not None and outcome.code >= 400 else ""


def _build_apply(plan: PlanBuilder) -> Apply:
    return Apply(
        f"apply ConfigMap {plan.observed.agent_name}",
        build_agent_config_map(plan.observed.key.namespace),
    )


def delete_unreferenced(observed: Observed) -> list[Action]:
    """Return deletions of the ConfigMaps that no pod of the namespace names.

    The current one stays as long as the namespace has caches.
    """
    return [
        delete(agent)
        for agent in observed.agents
        if agent["metadata"]["name"] not in observed.agents_named
        and not (observed.namespace_has_caches and agent["metadata"]["name"] == observed.agent_name)
    ]


def delete_outdated(plan: PlanBuilder) -> list[Action]:
    """Return deletions of unreferenced ConfigMaps, once an upgrade is over.

    During an upgrade a webhook of the earlier release still gives its own ConfigMap to pods.
    """
    current = _find_current(plan) or {"metadata": {}}
    created_at = current["metadata"].get("creationTimestamp")
    if not created_at or plan.now < parse_timestamp(created_at) + UPGRADE_SECONDS:
        return []
    return delete_unreferenced(plan.observed)
