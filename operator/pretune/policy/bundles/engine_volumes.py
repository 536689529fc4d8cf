"""Volumes of the engine that an attempt needs too: on which nodes it may run.

A ReadWriteOnce claim is attached to one node. An attempt on another node would wait for it without
end, or take it from the pod that is to serve. So it runs on the node of the pods that use the
claim, starts when there is one, and ends when such a pod is placed elsewhere
(attempt_state.needed_elsewhere).
"""

from __future__ import annotations

from collections.abc import Sequence

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.podspec.preflight import list_mounted_claims
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.plan_builder import PlanBuilder


def is_for_one_node(modes: Sequence[str]) -> bool:
    """Return whether a claim of these access modes is for the pods of one node."""
    return "ReadWriteOnce" in modes and not {"ReadWriteMany", "ReadOnlyMany"} & set(modes)


def find_nodes(plan: PlanBuilder, desired: DesiredBundle) -> tuple[str, ...] | None:
    """Return the nodes that an attempt has to run on, one of them; None: on any.

    Raises Refused VolumeUnavailable where there is none now.
    """
    observed = plan.observed
    nodes: set[str] | None = None
    claims = [
        name
        for name in list_mounted_claims(desired.template, plan.spec, desired.target)
        if name in observed.claim_nodes
    ]
    for name in claims:
        here = set(observed.claim_nodes[name])
        if not here:
            raise Refused(
                reasons.VOLUME_UNAVAILABLE,
                f"claim {name} is ReadWriteOnce, and no pod that uses it has a node: an attempt would"
                " keep it from the pod that is to serve; it starts on that pod's node",
            )
        nodes = here if nodes is None else nodes & here
    if nodes is None:
        return None
    if not nodes:
        raise Refused(
            reasons.VOLUME_UNAVAILABLE,
            f"claims {', '.join(claims)} are ReadWriteOnce and in use on different nodes",
        )
    return tuple(sorted(nodes))
