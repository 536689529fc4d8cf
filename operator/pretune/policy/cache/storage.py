"""Whether the claim can be used: the condition StorageReady, and what is created for it."""

from __future__ import annotations

from dataclasses import dataclass

from pretune.api import reasons
from pretune.api.names import CACHE, SIZE, WHEN_DELETED
from pretune.api.reasons import Reason
from pretune.api.types import Object
from pretune.manifests.claim import build_claim
from pretune.policy.model import Apply
from pretune.policy.objects import annotation, delete, label
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import is_job_finished

EVENTS_RECHECK_SECONDS = 10.0  # between reads of a pending claim's events, which are not watched
CREATE_RETRY_SECONDS = 60.0  # until a claim that the API server refused is applied again
UPDATE_RETRY_SECONDS = 300.0  # until a refused change of a claim is applied again


@dataclass(frozen=True)
class Storage:
    """The verdict about the claim."""

    ready: bool  # attempts may start
    reason: Reason
    message: str
    stalled: bool = False  # only a person can change it
    empty: bool = False  # never bound, so nothing can be on it


def ensure_claim(plan: PlanBuilder) -> Storage:
    """Create our claim, or bring it to the spec; return whether the claim can be used."""
    observed, spec = plan.observed, plan.spec
    name, claim = plan.claim_name, observed.claim
    if claim is not None and claim["metadata"].get("deletionTimestamp"):
        # Until their ttl, the pods of finished Jobs would keep the claim.
        plan.after += [delete(job) for job in plan.jobs if is_job_finished(job)]
        message = f"claim {name} is being deleted; it goes once no pod uses it any more"
        return Storage(False, reasons.CLAIM_TERMINATING, message)
    if spec.claim.existing:
        if claim is None:
            message = f"spec.storage.existingClaim.name: no claim {name} in this namespace"
            return Storage(False, reasons.CLAIM_NOT_FOUND, message, stalled=True)
        return _check_claim(plan, claim)
    if claim is None:
        return _create_claim(plan, name)
    if label(claim, CACHE) != observed.key.name:
        message = f"claim {name} exists without the label {CACHE}={observed.key.name}"
        return Storage(False, reasons.CLAIM_NOT_OURS, message, stalled=True)
    _update_claim(plan, claim)
    return _check_claim(plan, claim)


def _create_claim(plan: PlanBuilder, name: str) -> Storage:
    refusal = _apply_claim(plan, name, build_claim(plan.observed.key, plan.spec))
    if refusal is not None:
        plan.requeue_at(plan.now + CREATE_RETRY_SECONDS)
        return Storage(False, reasons.CLAIM_REFUSED, refusal, stalled=True)
    return Storage(False, reasons.CLAIM_PENDING, f"claim {name} is being created")


def _update_claim(plan: PlanBuilder, claim: Object) -> None:
    """Bring our claim to the spec: what happens to it at the end, and its size (only upwards)."""
    desired = build_claim(plan.observed.key, plan.spec)
    if all(annotation(claim, name) == annotation(desired, name) for name in (WHEN_DELETED, SIZE)):
        return
    refusal = _apply_claim(plan, claim["metadata"]["name"], desired)
    if refusal is not None:
        plan.warn(reasons.CLAIM_REFUSED, refusal)
        plan.requeue_at(plan.now + UPDATE_RETRY_SECONDS)


def _apply_claim(plan: PlanBuilder, name: str, desired: Object) -> str | None:
    """Apply our claim; return the API server's message if it has refused that in this reconcile."""
    action = Apply(f"apply PersistentVolumeClaim {name}", desired)
    plan.actions.append(action)
    outcome = plan.outcome(action)
    return outcome.message if outcome is not None and outcome.code >= 400 else None


def _check_claim(plan: PlanBuilder, claim: Object) -> Storage:
    """Return whether a claim that exists can be used: first its access modes, then its phase."""
    name = claim["metadata"]["name"]
    modes = set((claim.get("spec") or {}).get("accessModes") or ())
    if modes == {"ReadWriteOncePod"}:
        message = (
            f"claim {name} is ReadWriteOncePod: serving pods could not mount it beside the tuning"
            " pod"
        )
        return Storage(False, reasons.SINGLE_POD, message, stalled=True)
    if not modes & {"ReadWriteMany", "ReadWriteOnce"}:
        message = f"claim {name} has access modes {sorted(modes)}: bundles cannot be written to it"
        return Storage(False, reasons.READ_ONLY_CLAIM, message, stalled=True)
    if "ReadWriteMany" not in modes and "SingleNode" not in plan.spec.allow:
        message = (
            f"claim {name} is ReadWriteOnce, which keeps all serving pods on one node;"
            " use ReadWriteMany, or accept it with spec.tuning.allow: [SingleNode]"
        )
        return Storage(False, reasons.SINGLE_NODE, message, stalled=True)
    phase = (claim.get("status") or {}).get("phase")
    if phase == "Lost":
        message = f"claim {name} has lost its volume"
        return Storage(False, reasons.CLAIM_LOST, message, stalled=True)
    if phase == "Bound":
        return Storage(True, reasons.BOUND, f"claim {name} is bound")
    if (plan.observed.storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer":
        message = f"claim {name} binds when the tuning pod is scheduled"
        return Storage(True, reasons.WAIT_FOR_FIRST_CONSUMER, message, empty=True)
    plan.requeue_at(plan.now + EVENTS_RECHECK_SECONDS)
    cause = _newest_message(plan.observed.claim_events)
    message = f"claim {name} is not bound" + (f": {cause}" if cause else "")
    return Storage(False, reasons.CLAIM_PENDING, message)


def _newest_message(events: tuple[Object, ...]) -> str:
    """Return the message of the newest event that has one; "": there is none."""
    newest: Object = max(
        (event for event in events if event.get("message")),
        key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""),
        default={},
    )
    return str(newest.get("message", ""))
