"""Can the claim be used? One verdict: the condition StorageReady, and what has to be made for it."""

from __future__ import annotations

from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.names import CACHE, SIZE, WHEN_DELETED
from pretune.api.reasons import Reason
from pretune.api.types import Object
from pretune.manifests.claim import build_claim
from pretune.policy.bundles.attempt_state import is_job_finished
from pretune.policy.model import Apply
from pretune.policy.plan_builder import PlanBuilder, delete

PATIENCE = 10.0  # seconds between looks at the events of a claim that does not bind: nothing else tells of them


@dataclass(frozen=True)
class Storage:
    """ready: attempts may start. stalled: only a person can change it."""

    ready: bool
    reason: Reason
    message: str
    stalled: bool = False
    empty: bool = False  # never bound, so nothing can be on it


def judge(plan: PlanBuilder) -> Storage:
    observed, spec = plan.observed, plan.spec
    name, found = plan.claim_name, observed.claim
    if found is not None and found["metadata"].get("deletionTimestamp"):
        plan.after += [
            delete(job) for job in plan.jobs if is_job_finished(job)
        ]  # their pods would hold it until their ttl
        return Storage(
            False,
            reasons.CLAIM_TERMINATING,
            f"claim {name} is being deleted; it goes when no pod uses it any more",
        )
    if spec.claim.existing:
        if found is None:
            return Storage(
                False,
                reasons.CLAIM_NOT_FOUND,
                f"spec.storage.existingClaim.name: no claim {name} in this namespace",
                True,
            )
        return _usable(plan, found)
    if found is None:
        return _make(plan, name)
    if (found["metadata"].get("labels") or {}).get(CACHE) != observed.key.name:
        return Storage(
            False,
            reasons.CLAIM_NOT_OURS,
            f"claim {name} is there without the label {CACHE}={observed.key.name}",
            True,
        )
    _follow(plan, found)
    return _usable(plan, found)


def _make(plan: PlanBuilder, name: str) -> Storage:
    action = Apply(f"apply PersistentVolumeClaim {name}", build_claim(plan.observed.key, plan.spec))
    plan.actions.append(action)
    refused = plan.outcome(action)
    if refused is not None and refused.code >= 400:
        plan.requeue_at(plan.now + 60)
        return Storage(False, reasons.CLAIM_REFUSED, refused.message, True)
    return Storage(False, reasons.CLAIM_PENDING, f"claim {name} is being made")


def _follow(plan: PlanBuilder, found: Object) -> None:
    """Bring our claim to what the spec says now: its end, and its size (a larger one only)."""
    wanted = build_claim(plan.observed.key, plan.spec)
    noted, asked = (one["metadata"].get("annotations") or {} for one in (found, wanted))
    if any(noted.get(name) != asked[name] for name in (WHEN_DELETED, SIZE)):
        action = Apply(f"apply PersistentVolumeClaim {found['metadata']['name']}", wanted)
        plan.actions.append(action)
        refused = plan.outcome(action)
        if refused is not None and refused.code >= 400:
            plan.warn(reasons.CLAIM_REFUSED, refused.message)
            plan.requeue_at(plan.now + 300)


def _usable(plan: PlanBuilder, found: Object) -> Storage:
    name, spec, status = (
        found["metadata"]["name"],
        found.get("spec") or {},
        found.get("status") or {},
    )
    modes = set(spec.get("accessModes") or ())
    if modes == {"ReadWriteOncePod"}:
        return Storage(
            False,
            reasons.SINGLE_POD,
            f"claim {name} is ReadWriteOncePod: serving pods could not mount it beside the tuning pod",
            True,
        )
    if not modes & {"ReadWriteMany", "ReadWriteOnce"}:
        return Storage(
            False,
            reasons.READ_ONLY_CLAIM,
            f"claim {name} has access modes {sorted(modes)}: bundles cannot be written to it",
            True,
        )
    if "ReadWriteMany" not in modes and "SingleNode" not in plan.spec.allow:
        return Storage(
            False,
            reasons.SINGLE_NODE,
            f"claim {name} is ReadWriteOnce, which holds all serving pods to one node;"
            " use ReadWriteMany, or accept it with spec.tuning.allow: [SingleNode]",
            True,
        )
    phase = status.get("phase")
    if phase == "Lost":
        return Storage(False, reasons.CLAIM_LOST, f"claim {name} has lost its volume", True)
    if phase == "Bound":
        return Storage(True, reasons.BOUND, f"claim {name} is bound")
    if (plan.observed.storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer":
        return Storage(
            True,
            reasons.WAIT_FOR_FIRST_CONSUMER,
            f"claim {name} binds when the tuning pod is scheduled",
            empty=True,
        )
    newest = max(
        (one for one in plan.observed.claim_events if one.get("message")),
        key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""),
        default=None,
    )
    said = f": {newest['message']}" if newest else ""
    plan.requeue_at(plan.now + PATIENCE)
    return Storage(False, reasons.CLAIM_PENDING, f"claim {name} is not bound{said}")
