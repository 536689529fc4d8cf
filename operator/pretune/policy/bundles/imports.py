"""The annotation pretune.dev/import: a folder that the engine wrote elsewhere becomes a bundle.

Of the newest source only, and before any GPU is used. One try for a bundle and a value, whose
outcome is in the bundle's `import`; refused, the bundle is tuned as usual. A folder is one
engine's, and the annotation outlives it: what went into one bundle goes into no other of that
target.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import BUNDLE, IMPORT, IMPORT_CONTAINER, IMPORTING, PENDING, ROLE
from pretune.api.reasons import Reason, Refused
from pretune.api.status import BundleStatus, ImportNote
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.import_job import IMPORT_DEADLINE_SECONDS, build_import_job
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import (
    FINISHED,
    Attempt,
    AttemptState,
    Check,
    cannot_create,
    cannot_pull,
    disrupted,
    ended_without_report,
    finished,
    node_lost,
    pod_failed,
    pulling,
    read_attempt,
    read_report,
    reason_of,
    suspended,
    unscheduled,
    without_pod,
)
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.job_runs import create_job
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.objects import annotation, delete, fingerprint_of, label, owner_uid
from pretune.policy.plan_builder import MAX_MESSAGE, PlanBuilder
from pretune.policy.pod_status import container_statuses, is_finished, running_since

NODE_TIMEOUT_SECONDS = 120.0  # that its pod may be without a node
# That its container may not have started, once it has a node: the image is large, and a volume may
# not attach.
START_TIMEOUT_SECONDS = 600.0
TIMEOUT_SECONDS = NODE_TIMEOUT_SECONDS + START_TIMEOUT_SECONDS + IMPORT_DEADLINE_SECONDS
MAX_VALUE = 1024  # characters of the annotation's value
SEALED_REASONS = (reasons.SEALED, reasons.NOTHING_TO_TUNE)

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def source_of(value: str) -> tuple[str, str]:
    """Claim and folder of `<claim>[/<path in it>]`. Raises Refused, with what is wrong with it."""
    claim, _, path = value.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise Refused(
            reasons.IMPORT_REFUSED,
            f"annotation {IMPORT}: {claim!r} is not the name of a claim; write <claim>[/<path in it>]",
        )
    if len(value) >= MAX_VALUE or not path.isprintable():
        raise Refused(
            reasons.IMPORT_REFUSED, f"annotation {IMPORT}: {path[:80]!r}… is no path of a folder"
        )
    if ".." in path.split("/"):
        raise Refused(
            reasons.IMPORT_REFUSED, f"annotation {IMPORT}: {path!r} leads out of the claim"
        )
    return claim, path


def requested_source(plan: PlanBuilder) -> str:
    """Return the annotation's value, stripped; "": there is none.

    Cut where the status could not hold it, which source_of refuses.
    """
    return annotation(plan.cache, IMPORT).strip()[:MAX_VALUE]


# --- what became of it


def process_finished_imports(plan: PlanBuilder) -> None:
    """Read the import Jobs.

    One is deleted once its outcome is in the status, or it is not asked for any more: it reported
    what was true of the claim then.
    """
    for job in _jobs(plan):
        bundle, value = plan.bundles.get(label(job, BUNDLE)), annotation(job, IMPORT)
        if (
            bundle is None
            or bundle.state != PENDING
            or _is_done(bundle, value)
            or value != requested_source(plan)
        ):
            plan.after.append(delete(job))
            continue
        state = read_attempt(_attempt(plan, job), IMPORT_CHECKS)
        plan.requeue_at(state.recheck_at)
        if state.state != FINISHED:
            plan.requeue_at(parse_timestamp(job["metadata"]["creationTimestamp"]) + TIMEOUT_SECONDS)
            message = f"import from {value}: {state.message}"
            plan.set_state(bundle.id, PENDING, reasons.IMPORTING, message)
            continue
        plan.after.append(delete(job))
        report = state.report
        if report is not None and report.reason in SEALED_REASONS:
            adopt(plan, bundle.id, report, fingerprint_of(job))
            _record_image(plan, bundle.id, job)
            _record_outcome(plan, bundle.id, value, reasons.SEALED, report.message)
        else:
            reason = reason_of(report) if report is not None else reasons.IMPORT_REFUSED
            message = (
                state.message
                if state.reason in (reasons.IMPORT_REFUSED, reason)
                else f"{state.reason}: {state.message}"
            )
            _record_refusal(plan, bundle.id, value, reason, message)


def _record_image(plan: PlanBuilder, bundle_id: str, job: Object) -> None:
    """Record the engine's image as it ran here: it is the same container image."""
    pod = _attempt(plan, job).pod
    image = str((container_statuses(pod or {}).get(IMPORT_CONTAINER) or {}).get("imageID", ""))
    if image:
        image = image.removeprefix("docker-pullable://")
        plan.put(replace(plan.bundles[bundle_id], engine_image=image))


def _attempt(plan: PlanBuilder, job: Object) -> Attempt:
    uid = job["metadata"]["uid"]
    pod = max(
        (pod for pod in plan.observed.pods if owner_uid(pod) == uid),
        key=lambda pod: (
            read_report(container_statuses(pod).get(IMPORT_CONTAINER)) is not None,
            not is_finished(pod),
            pod["metadata"]["creationTimestamp"],
        ),
        default=None,
    )
    return Attempt(1, job, pod, plan.observed.job_events.get(uid, ()), 0, plan.now)


def _jobs(plan: PlanBuilder, bundle_id: str = "") -> list[Object]:
    """Return our import Jobs, of one bundle or of all, that write to where bundles are to be."""
    return [
        job
        for job in plan.jobs
        if label(job, ROLE) == IMPORTING
        and job not in plan.misplaced_jobs
        and bundle_id in ("", label(job, BUNDLE))
    ]


def _is_done(bundle: BundleStatus, value: str) -> bool:
    return bundle.import_ is not None and bundle.import_.from_ == value


def _record_outcome(
    plan: PlanBuilder, bundle_id: str, value: str, reason: Reason, message: str
) -> None:
    note = ImportNote(value, reason, message[:MAX_MESSAGE])
    plan.put(replace(plan.bundles[bundle_id], import_=note))


def _record_refusal(
    plan: PlanBuilder, bundle_id: str, value: str, reason: Reason, message: str
) -> None:
    _record_outcome(plan, bundle_id, value, reason, message)
    text = f"nothing was imported from {value}: {message}"
    plan.warn(reasons.IMPORT_REFUSED, f"bundle {bundle_id}: {text}; it is tuned as usual")
    plan.set_state(bundle_id, PENDING, reasons.QUEUED, text)


# --- its beginning


def is_import_requested(plan: PlanBuilder, desired: DesiredBundle) -> bool:
    """Return whether the annotation asks for an import into this bundle that has not ended yet."""
    value = requested_source(plan)
    return bool(value) and desired.is_current and not _is_done(plan.bundles[desired.id], value)


def start_import(plan: PlanBuilder, desired: DesiredBundle, storage: Storage) -> bool:
    """Start the requested import, where it does not run already.

    Returns False, and records why, where nothing can be imported from what the annotation names.
    """
    value = requested_source(plan)
    if any(annotation(job, IMPORT) == value for job in _jobs(plan, desired.id)):
        return True  # process_finished_imports has recorded how it stands
    if _is_taken(plan, desired, value):
        return False
    try:
        source = source_of(value)
    except Refused as refused:
        _record_refusal(plan, desired.id, value, refused.reason, refused.message)
        return False
    created = f"import from {value}: the Job is created"
    if not agent_configmap.exists(plan):  # the next run, at once, makes the Job
        message = agent_configmap.find_refusal(plan)
        plan.set_state(
            desired.id,
            PENDING,
            reasons.POD_REFUSED if message else reasons.IMPORTING,
            message or created,
        )
        return True
    observed = plan.observed
    try:
        job = build_import_job(
            *(
                observed.key,
                plan.cache,
                desired.template,
                desired.target,
                value,
                source,
                observed.settings,
                observed.agent_name,
            ),
            observed.examples.get(desired.origin_key),
            near=storage.empty,
            device_claims=observed.device_claims,
        )
    except Refused as error:
        _record_refusal(plan, desired.id, value, error.reason, error.message)
        return False
    code = create_job(plan, desired.id, job, created)
    if code == 201:
        plan.set_state(desired.id, PENDING, reasons.IMPORTING, created)
    elif code in (400, 403, 422):
        message = plan.bundles[desired.id].message
        _record_refusal(plan, desired.id, value, reasons.IMPORT_REFUSED, message)
    return True


def _is_taken(plan: PlanBuilder, desired: DesiredBundle, value: str) -> bool:
    """Return whether this folder went into another bundle of the target, and record that it did.

    The record stays when the other bundle's status is gone.
    """
    for bundle in list(plan.bundles.values()):
        note = bundle.import_
        if (
            bundle.id != desired.id
            and bundle.target == desired.target.name
            and note is not None
            and note.from_ == value
            and note.reason in (reasons.SEALED, reasons.ALREADY_IMPORTED)
        ):
            message = (
                f"{value} was imported already, into the bundle of another engine of this target"
            )
            _record_outcome(plan, desired.id, value, reasons.ALREADY_IMPORTED, message)
            plan.events.append(
                Event(
                    reasons.ALREADY_IMPORTED,
                    f"bundle {desired.id}: {message}; it is tuned as usual",
                )
            )
            return True
    return False


# --- how it stands


def reported(a: Attempt) -> AttemptState | None:
    """It has reported how it ended."""
    report = read_report(a.containers.get(IMPORT_CONTAINER))
    return finished(reason_of(report), report.message, report) if report is not None else None


def import_ended(a: Attempt) -> AttemptState | None:
    """It has ended without a report."""
    return ended_without_report(a, IMPORT_CONTAINER, reasons.IMPORT_REFUSED)


def overlong(a: Attempt) -> AttemptState | None:
    """It takes too long, for any cause."""
    if a.now < _created_at(a) + TIMEOUT_SECONDS:
        return None
    return finished(reasons.IMPORT_REFUSED, f"it did not end within {TIMEOUT_SECONDS:.0f} s")


def late(a: Attempt) -> AttemptState | None:
    """It has no node, or has not started, after its time for that.

    A claim that does not exist or a volume that does not attach must not keep the bundle from being
    tuned for ever.
    """
    waits = _without_node(a)
    if waits is not None:
        late_at = _created_at(a) + NODE_TIMEOUT_SECONDS
        message = f"its pod has no node after {NODE_TIMEOUT_SECONDS:.0f} s: {waits.message}"
    elif running_since(a.containers.get(IMPORT_CONTAINER)) is None:
        assert a.pod is not None
        seconds = NODE_TIMEOUT_SECONDS + START_TIMEOUT_SECONDS
        late_at = _created_at(a) + seconds
        message = (
            f"container {IMPORT_CONTAINER} has not started after {seconds:.0f} s; the events of"
            f" pod {a.pod['metadata']['name']} say why"
        )
    else:
        return None
    return finished(reasons.IMPORT_REFUSED, message) if a.now >= late_at else None


def waiting(a: Attempt) -> AttemptState | None:
    """It waits for its pod, or for a node."""
    found = _without_node(a)
    if found is None or found.state == FINISHED:
        return found
    late_at = _created_at(a) + NODE_TIMEOUT_SECONDS
    return replace(found, recheck_at=min(found.recheck_at or late_at, late_at))


def running(a: Attempt) -> AttemptState | None:
    """Its container runs."""
    since = running_since(a.containers.get(IMPORT_CONTAINER))
    if since is None:
        return None
    return AttemptState(PENDING, reasons.IMPORTING, f"the folder is checked since {since}")


def starting(a: Attempt) -> AttemptState | None:
    """The pod has a node."""
    found = pulling(a)
    assert found is not None
    late_at = _created_at(a) + NODE_TIMEOUT_SECONDS + START_TIMEOUT_SECONDS
    return replace(found, recheck_at=late_at)


def _without_node(a: Attempt) -> AttemptState | None:
    return unscheduled(a) if a.pod is not None else without_pod(a)


def _created_at(a: Attempt) -> float:
    assert a.job is not None
    return parse_timestamp(a.job["metadata"]["creationTimestamp"])


IMPORT_CHECKS: tuple[Check, ...] = (
    reported,
    node_lost,
    overlong,
    suspended,
    disrupted,
    import_ended,
    cannot_pull,
    cannot_create,
    pod_failed,
    late,
    waiting,
    running,
    starting,
)
