"""When an attempt or a proof starts: BLOCKERS lists what keeps it from starting.

The rules are asked in their order; the first that answers counts. A rule gets one Candidate, and
returns why nothing starts for its bundle now, or None. No rule changes the plan.

At most one attempt or proof runs per target, and at most one of a cache occupies a node: what waits
for a node does not block the other targets. Over all caches controller.maxConcurrentAttempts limits
how many run (turns.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.names import PENDING, PROVING, SEALED, TUNING_STATE
from pretune.api.reasons import Reason, Refused
from pretune.api.status import BundleStatus
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.engine_volumes import find_nodes
from pretune.policy.bundles.imports import is_import_requested
from pretune.policy.bundles.job_runs import list_attempt_jobs
from pretune.policy.bundles.retries import next_try
from pretune.policy.cache.storage import Storage
from pretune.policy.objects import owner_uid
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import is_deleted, is_finished, node_lost_at

# After a seal a rollout may still replace the pods of an older revision for so long.
ROLLOUT_SECONDS = 300.0
LIVE_RECHECK_SECONDS = 60.0  # until an attempt that still lives is looked at again
TURN_RECHECK_SECONDS = 300.0  # until the place of a bundle that waits for its turn is said anew

# Reasons of a bundle whose attempt has no node.
WITHOUT_NODE = (reasons.WAITING_FOR_NODE, reasons.POD_REFUSED, reasons.QUEUED)


@dataclass(frozen=True)
class Candidate:
    """A desired bundle that is Pending or Proving, and what its start depends on."""

    plan: PlanBuilder
    desired: DesiredBundle
    bundles: Sequence[DesiredBundle]  # all that are desired
    storage: Storage
    started: Collection[str]  # bundles whose attempt or proof this plan starts
    has_held_pods: bool  # pods wait for this bundle behind our gate

    @property
    def bundle(self) -> BundleStatus:
        """Its status, as the plan has it now."""
        return self.plan.bundles[self.desired.id]


@dataclass(frozen=True)
class Blocked:
    """Why nothing starts for a bundle now; without a reason its status already says so."""

    reason: Reason | None = None
    message: str = ""
    requeue_at: float | None = (
        None  # when that may have changed (Unix seconds); None: it is watched
    )


Blocker = Callable[[Candidate], Blocked | None]

BY_IMPORT = Blocked()  # an import is started first, if none runs


def find_blocker(candidate: Candidate, but: Collection[Blocker] = ()) -> Blocked | None:
    """Return what the first rule that answers says; None: an attempt, or a proof, starts.

    but: rules that are not asked.
    """
    rules = (rule for rule in BLOCKERS if rule not in but)
    return next((found for rule in rules if (found := rule(candidate)) is not None), None)


def claim_is_read(c: Candidate) -> Blocked | None:
    """Only the claim shows whether the bundle exists already."""
    return Blocked() if c.desired.id in c.plan.awaiting_claim else None


def attempt_is_open(c: Candidate) -> Blocked | None:
    """An attempt or a proof goes on, or only the claim shows how it ended."""
    return Blocked() if c.bundle.has_open_attempt or c.bundle.has_open_proof else None


def attempt_still_lives(c: Candidate) -> Blocked | None:
    """The last attempt has not ended, or one of a deleted cache with this name."""
    plan, bundle_id = c.plan, c.desired.id
    if not plan.is_live(bundle_id):
        return None
    ours = {job["metadata"]["uid"] for job in list_attempt_jobs(plan, bundle_id)}
    pods = plan.find_pods(bundle_id)
    foreign = [pod for pod in pods if not is_finished(pod) and owner_uid(pod) not in ours]
    lost_at = [time for pod in pods if (time := node_lost_at(pod)) is not None]
    requeue_at = min(
        (time for time in lost_at if time > plan.now), default=plan.now + LIVE_RECHECK_SECONDS
    )
    if ours and not foreign:
        return Blocked(requeue_at=requeue_at)
    names = ", ".join(sorted(f"pod {pod['metadata']['name']}" for pod in foreign))
    if foreign and all(map(is_deleted, foreign)):  # that of our own Job too, if that was deleted
        message = f"waits until an earlier attempt has ended: {names}"
        return Blocked(reasons.QUEUED, message, requeue_at)
    names = names or "its Job is not deleted yet"
    message = f"an attempt that is not this cache's still lives: {names}"
    return Blocked(reasons.NAME_TAKEN, message, requeue_at)


def suspended(c: Candidate) -> Blocked | None:
    return Blocked(reasons.SUSPENDED, "spec.suspend is true") if c.plan.spec.suspend else None


def claim_not_ready(c: Candidate) -> Blocked | None:
    return None if c.storage.ready else Blocked(reasons.WAITING_FOR_CLAIM, c.storage.message)


def import_comes_first(c: Candidate) -> Blocked | None:
    """A person has the files already, and asked for them to be imported."""
    is_requested = c.bundle.state == PENDING and is_import_requested(c.plan, c.desired)
    return BY_IMPORT if is_requested else None


def waits_for_retry(c: Candidate) -> Blocked | None:
    """The last attempt failed a short time ago."""
    time = next_try(c.bundle)
    return Blocked(requeue_at=time) if time > c.plan.now else None


def another_runs(c: Candidate) -> Blocked | None:
    """Another attempt of this cache is for the same target, or occupies a node."""
    for other in c.plan.bundles.values():
        if other.id == c.desired.id:
            continue
        if not (other.id in c.started or c.plan.is_live(other.id)):
            continue
        has_no_node = other.reason in WITHOUT_NODE
        if other.target == c.desired.target.name or not has_no_node:
            return Blocked(reasons.QUEUED, f"waits for {other.id}")
    return None


def rollout_is_under_way(c: Candidate) -> Blocked | None:
    """Pods of this bundle are being replaced by pods of the newest one, and none waits for it.

    From the newest bundle's begin until ROLLOUT_SECONDS after pods can be given it.
    """
    if c.desired.is_current or c.has_held_pods:
        return None
    for newest in c.bundles:
        if not newest.is_current or newest.target.name != c.desired.target.name:
            continue
        bundle, until = c.plan.bundles[newest.id], 0.0
        if bundle.state == SEALED and bundle.sealed_at is not None:
            until = _given_since(c.plan, bundle, bundle.sealed_at) + ROLLOUT_SECONDS
        if bundle.state in (PENDING, TUNING_STATE, PROVING) or c.plan.now < until:
            message = (
                f"waits for the rollout to {newest.id}: the pods that need it may be on their way"
                " out"
            )
            return Blocked(reasons.QUEUED, message, until or None)
    return None


def _given_since(plan: PlanBuilder, bundle: BundleStatus, sealed_at: float) -> float:
    """Return since when pods are given a sealed bundle (Unix seconds).

    From its seal on. If it was proven first, from about the time that Ready became True.
    """
    if not bundle.proven:
        return sealed_at
    if plan.state_before(bundle.id) != SEALED:
        return plan.now
    ready = plan.status.condition("Ready")
    if ready is None or ready.status != "True":
        return sealed_at
    return max(sealed_at, ready.last_transition_time)


def volume_unavailable(c: Candidate) -> Blocked | None:
    """A claim of the engine is for the pods of one node, and which one that is is not known yet."""
    try:
        find_nodes(c.plan, c.desired)
    except Refused as refused:
        return Blocked(refused.reason, refused.message, c.plan.now + LIVE_RECHECK_SECONDS)
    return None


def waits_for_turn(c: Candidate) -> Blocked | None:
    """As many attempts of all caches run as controller.maxConcurrentAttempts allows.

    A turn is for one attempt. The controller wakes the cache when its turn has come.
    """
    turn = c.plan.observed.turn
    if turn is None or (turn.is_free and not c.started):
        return None
    return Blocked(reasons.WAITING_FOR_TURN, turn.message, c.plan.now + TURN_RECHECK_SECONDS)


BLOCKERS: tuple[Blocker, ...] = (
    claim_is_read,
    attempt_is_open,
    attempt_still_lives,
    suspended,
    claim_not_ready,
    import_comes_first,
    waits_for_retry,
    another_runs,
    rollout_is_under_way,
    volume_unavailable,
    waits_for_turn,
)
