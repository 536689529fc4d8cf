"""What a failed attempt or proof leaves in its bundle's status, and when the next one may start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import FAILED, PENDING, REFUSED, RETRY, SEALED, TUNING
from pretune.api.reasons import REASONS, Reason
from pretune.api.spec import Spec
from pretune.api.status import BundleStatus, Failure
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.proof_state import JUDGED
from pretune.policy.objects import annotation
from pretune.policy.plan_builder import MAX_MESSAGE, PlanBuilder

BACKOFF_SECONDS = 30.0  # the n-th retry waits 30 s × 4ⁿ⁻¹
MAX_EXPONENT = 10  # beyond any spec.tuning.maxAttempts: a status may say any number
# How long a failure is remembered after its bundle was last wanted. Longer than a weekend: else
# a workload that is scaled to zero each Friday burns its attempts again each Monday.
REMEMBERED_SECONDS = 7 * 86400.0
MAX_REMEMBERED = 64  # unwanted bundles of a cache whose failures are remembered, the newest

# Fields of spec.tuning, as Spec has them, with which a failed attempt could end otherwise. Not the
# number of attempts, nor how long pods are held: an edit of those would cost all attempts again.
DECISIVE = (
    "deadline_seconds",
    "job_labels",
    "job_annotations",
    "priority_class",
    "tolerations",
    "keep_containers",
    "allow",
)

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
    spent = plan.gpu_seconds_of(bundle_id, role, number)
    plan.record_end(bundle_id, reason, spent, role=role)
    bundle = plan.bundles[bundle_id]
    settings = hash_settings(plan, bundle.target)
    failure = Failure(reason, number, plan.timestamp, message[:MAX_MESSAGE], settings)
    return plan.put(replace(bundle, last_failure=failure, pod=None, disruptions=None))


def next_try(bundle: BundleStatus) -> float:
    """Return when a bundle may be tuned or proven again (Unix seconds)."""
    last = bundle.last_failure
    if last is None:
        return 0.0
    return last.at + BACKOFF_SECONDS * 4.0 ** min(last.attempt - 1, MAX_EXPONENT)


def describe_next_try(bundle: BundleStatus) -> str:
    return f"the next one starts at {format_timestamp(next_try(bundle))}"


# --- failures that outlive their pods


def find_remembered(plan: PlanBuilder, desired: Iterable[DesiredBundle]) -> set[str]:
    """Return the bundles that nothing wants, and whose failures the status keeps nevertheless.

    Without them each scale from zero would begin with attempt 1, and end where the last one did.
    A bundle whose proof was not the last one is not among them: its folder is given up.
    """
    wanted = {each.id for each in desired}
    found = [
        bundle
        for bundle in plan.bundles.values()
        if bundle.id not in wanted
        and bundle.state in (FAILED, REFUSED, PENDING)
        and bundle.last_failure is not None
        and plan.now < (bundle.unwanted_since or plan.now) + REMEMBERED_SECONDS
    ]
    found.sort(key=lambda bundle: (-_failed_at(bundle), bundle.id))
    return {bundle.id for bundle in found[:MAX_REMEMBERED]}


def _failed_at(bundle: BundleStatus) -> float:
    return bundle.last_failure.at if bundle.last_failure is not None else 0.0


def remember(plan: PlanBuilder, bundle_id: str) -> None:
    """Keep what failed of a bundle that nothing wants. No attempt of it is open afterwards."""
    bundle = plan.bundles[bundle_id]
    failure = bundle.last_failure
    assert failure is not None
    if bundle.unwanted_since is None:
        bundle = plan.put(replace(bundle, unwanted_since=plan.timestamp))
    if bundle.state != PENDING:
        return
    plan.record_superseded(bundle_id)
    plan.delete_jobs(bundle_id, above=failure.attempt)  # the next one gets that number again
    plan.put(replace(bundle, attempts=failure.attempt, pod=None, disruptions=None))
    plan.set_state(
        bundle_id,
        PENDING,
        reasons.RETRYING,
        f"attempt {failure.attempt} of {plan.spec.max_attempts}: {failure.reason}:"
        f" {failure.message}; nothing wants this bundle at the moment",
    )


def forget_outdated_failures(plan: PlanBuilder, bundles: Iterable[DesiredBundle]) -> None:
    """Begin anew with bundles that failed under other settings than those of now.

    The settings are those of hash_settings. Another engine, revision or target is another bundle.
    A verdict about a bundle (JUDGED) stays: the same files would get the same one. Of a failure that
    an older release recorded the settings are unknown: those of now count as its own, unless the
    annotation RETRY asks for another attempt.
    """
    for desired in bundles:
        bundle = plan.bundles[desired.id]
        failure = bundle.last_failure
        if failure is None or failure.reason in JUDGED:
            continue
        settings = hash_settings(plan, bundle.target)
        if failure.settings is None and not annotation(plan.cache, RETRY):
            plan.put(replace(bundle, last_failure=replace(failure, settings=settings)))
            continue
        if failure.settings == settings:
            continue
        if bundle.has_open_attempt or bundle.has_open_proof or plan.is_live(bundle.id):
            continue
        if bundle.is_withheld:
            plan.delete_jobs(bundle.id)
            plan.put(replace(bundle, proofs=None, last_failure=None, pod=None, disruptions=None))
            plan.set_state(bundle.id, SEALED, reasons.SEALED, "")  # to be proven again
        else:
            plan.forget(bundle.id, f"spec.tuning, the tolerations or {RETRY} were changed")


def hash_settings(plan: PlanBuilder, target_name: str) -> str:
    """Return a hash of what decides, beside the bundle's id, how an attempt of a target ends.

    That is DECISIVE, the target's tolerations and the annotation RETRY. A field with its default
    counts as one that is not set: a field that a release adds changes nothing.
    """
    spec, default = plan.spec, Spec.from_cache({})
    settings: Object = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name in DECISIVE
        if (value := getattr(spec, name)) != getattr(default, name)
    }
    for target in spec.targets:
        if target.name == target_name and target.tolerations:
            settings["target"] = target.tolerations
    if retry := annotation(plan.cache, RETRY):
        settings["retry"] = retry
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
