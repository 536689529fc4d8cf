"""What a failed attempt or proof leaves in its bundle's status, and when the next one may start."""

from __future__ import annotations

from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, REFUSED, TUNING
from pretune.api.reasons import REASONS, Reason
from pretune.api.status import BundleStatus, Failure
from pretune.api.timestamps import format_timestamp
from pretune.policy.plan_builder import MAX_MESSAGE, PlanBuilder

BACKOFF_SECONDS = 30.0  # the n-th retry waits 30 s × 4ⁿ⁻¹
MAX_EXPONENT = 10  # beyond any spec.tuning.maxAttempts: a status may say any number

# Found by an attempt in the image or its release: final for the bundle, and the user's to change.
REFUSED_BY_CHECK = frozenset(
    {
        reasons.RELEASE_TOO_OLD,
        reasons.SHARED_LAYOUT,
        reasons.NO_PYTHON,
        reasons.UNSAFE_PATH,
        reasons.ID_COLLISION,
    }
)


def record_failed_attempt(plan: PlanBuilder, bundle_id: str, reason: Reason, message: str) -> None:
    """Record that the newest attempt failed: another one follows, or that was the last."""
    bundle, limit = plan.bundles[bundle_id], plan.spec.max_attempts
    number = bundle.attempts
    before = bundle.last_failure.reason if bundle.last_failure is not None else None
    bundle = record_failure(plan, bundle_id, TUNING, number, reason, message)
    if reason in REFUSED_BY_CHECK:
        plan.set_state(bundle_id, REFUSED, reason, message)
    elif (
        not REASONS[reason].is_retried
        or number >= limit
        or (reason == reasons.INCOMPLETE_RANKS == before)
    ):
        plan.set_state(bundle_id, FAILED, reason, f"attempt {number} of {limit}: {message}")
    else:
        text = f"attempt {number} of {limit}: {reason}: {message}"
        plan.warn(reason, f"bundle {bundle_id}: {text}")
        plan.set_state(bundle_id, PENDING, reasons.RETRYING, f"{text}; {describe_next_try(bundle)}")


def record_failure(
    plan: PlanBuilder, bundle_id: str, role: str, number: int, reason: Reason, message: str
) -> BundleStatus:
    """Record a failed attempt (TUNING), or proof (PROOF), of this number; return the bundle."""
    plan.record_end(bundle_id, reason, plan.gpu_seconds_of(bundle_id, role, number))
    failure = Failure(reason, number, plan.timestamp, message[:MAX_MESSAGE])
    bundle = plan.bundles[bundle_id]
    return plan.put(replace(bundle, last_failure=failure, pod=None, disruptions=None))


def next_try(bundle: BundleStatus) -> float:
    """Return when a bundle may be tuned or proven again (Unix seconds)."""
    last = bundle.last_failure
    if last is None:
        return 0.0
    return last.at + BACKOFF_SECONDS * 4.0 ** min(last.attempt - 1, MAX_EXPONENT)


def describe_next_try(bundle: BundleStatus) -> str:
    return f"the next one starts at {format_timestamp(next_try(bundle))}"
