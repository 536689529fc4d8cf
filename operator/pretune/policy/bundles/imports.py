"""The annotation pretune.dev/import: what vLLM wrote elsewhere becomes the newest source's bundle, before any GPU is used.

One try for a bundle and a value. Whatever comes of it is in the record's `import`; refused, it is tuned as usual. What was made into one
bundle is made into no other of that target: a folder is one engine's, and the annotation outlives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import BUNDLE, IMPORT, IMPORT_CONTAINER, IMPORTING, PENDING, ROLE
from pretune.api.reasons import Refused
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.import_job import DEADLINE, build_import_job
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import (
    Attempt,
    AttemptState,
    Check,
    cannot_be_made,
    cannot_pull,
    disrupted,
    finished,
    is_finished,
    node_lost,
    pod_failed,
    pulling,
    read,
    report_of,
    silent,
    since,
    statuses,
    unscheduled,
    without_pod,
)
from pretune.policy.bundles.job_runs import create
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.plan_builder import (
    DesiredBundle,
    PlanBuilder,
    delete,
    fingerprint_of,
    owner_uid,
)

PATIENCE = 120.0  # seconds that its pod may be without a node
START = 600.0  # seconds from its node that its container may not have started: the image is large, and a volume may not attach
LIMIT = PATIENCE + START + DEADLINE  # seconds for all of it
LONGEST = 1024  # characters of the annotation's value
SEALED_REASONS = (reasons.SEALED, reasons.NOTHING_TO_TUNE)

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def source_of(value: str) -> tuple[str, str]:
    """Claim and folder of `<claim>[/<path in it>]`. Raises Refused, with what is wrong with it."""
    claim, _, path = value.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise Refused(
            reasons.IMPORT_REFUSED,
            f"annotation {IMPORT}: {claim!r} is no claim's name; it is <claim>[/<path in it>]",
        )
    if len(value) >= LONGEST or not path.isprintable():
        raise Refused(
            reasons.IMPORT_REFUSED, f"annotation {IMPORT}: {path[:80]!r}… is no path of a folder"
        )
    if ".." in path.split("/"):
        raise Refused(
            reasons.IMPORT_REFUSED, f"annotation {IMPORT}: {path!r} leads out of the claim"
        )
    return claim, path


def asked(plan: PlanBuilder) -> str:
    """The annotation's value, "" where there is none; cut where the status could not hold it, which source_of refuses."""
    return str((plan.cache["metadata"].get("annotations") or {}).get(IMPORT) or "").strip()[
        :LONGEST
    ]


# --- what became of it


def settle(plan: PlanBuilder) -> None:
    """Read the import Jobs. One is removed once its outcome is in the status, or nobody asks for it any more: what it said is true of
    the claim as it was then."""
    for job in _jobs(plan):
        record = plan.bundles.get(job["metadata"]["labels"][BUNDLE])
        value = _from(job)
        if (
            record is None
            or record["state"] != PENDING
            or _done(record, value)
            or value != asked(plan)
        ):
            plan.after.append(delete(job))
            continue
        standing = read(_attempt(plan, job), CHECKS)
        plan.requeue_at(standing.look)
        if standing.state != "Finished":
            plan.requeue_at(parse_timestamp(job["metadata"]["creationTimestamp"]) + LIMIT)
            plan.say(record, PENDING, reasons.IMPORTING, f"import from {value}: {standing.message}")
            continue
        plan.after.append(delete(job))
        report = standing.report
        if report is not None and report.reason in SEALED_REASONS:
            adopt(plan, record, report, fingerprint_of(job))
            _note_image(plan, record, job)
            _note(record, value, reasons.SEALED, report.message)
        else:
            reason = report.reason if report is not None else reasons.IMPORT_REFUSED
            words = (
                standing.message
                if standing.reason in (reasons.IMPORT_REFUSED, reason)
                else f"{standing.reason}: {standing.message}"
            )
            _refused(plan, record, value, reason, words)


def _note_image(plan: PlanBuilder, record: Object, job: Object) -> None:
    """The engine's, as it ran here: it is the same container image."""
    pod = _attempt(plan, job).pod
    image = str((statuses(pod or {}).get(IMPORT_CONTAINER) or {}).get("imageID", ""))
    if image:
        record["engineImage"] = image.removeprefix("docker-pullable://")


def _attempt(plan: PlanBuilder, job: Object) -> Attempt:
    mine = [pod for pod in plan.observed.pods if owner_uid(pod) == job["metadata"]["uid"]]
    pod = max(
        mine,
        key=lambda one: (
            report_of(statuses(one).get(IMPORT_CONTAINER)) is not None,
            not is_finished(one),
            one["metadata"]["creationTimestamp"],
        ),
        default=None,
    )
    return Attempt(
        1, job, pod, plan.observed.job_events.get(job["metadata"]["uid"], ()), 0, plan.now
    )


def _jobs(plan: PlanBuilder, bundle: str = "") -> list[Object]:
    return [
        job
        for job in plan.jobs
        if job["metadata"]["labels"].get(ROLE) == IMPORTING
        and job not in plan.elsewhere
        and bundle in ("", job["metadata"]["labels"].get(BUNDLE))
    ]


def _from(job: Object) -> str:
    return str((job["metadata"].get("annotations") or {}).get(IMPORT, ""))


def _done(record: Mapping[str, object], value: str) -> bool:
    noted = record.get("import")
    return isinstance(noted, Mapping) and noted.get("from") == value


def _note(record: Object, value: str, reason: str, message: str) -> None:
    record["import"] = {"from": value, "reason": reason, "message": message[:1024]}


def _refused(plan: PlanBuilder, record: Object, value: str, reason: str, message: str) -> None:
    _note(record, value, reason, message)
    plan.warn(
        reasons.IMPORT_REFUSED,
        f"bundle {record['id']}: nothing was imported from {value}: {message}; it is tuned as usual",
    )
    plan.say(record, PENDING, reasons.QUEUED, f"nothing was imported from {value}: {message}")


# --- its beginning


def comes_first(plan: PlanBuilder, want: DesiredBundle, record: Object, storage: Storage) -> bool:
    """Whether an import has to end before this bundle is tuned; begins it. For a bundle that is Pending, and has no attempt that lives."""
    value = asked(plan)
    if not value or not want.current or _done(record, value):
        return False
    if any(_from(job) == value for job in _jobs(plan, want.id)):
        return True  # settle has said how it stands
    if _taken(plan, want, value):
        return False
    try:
        source = source_of(value)
    except Refused as refused:
        _refused(plan, record, value, refused.reason, refused.message)
        return False
    message = f"import from {value}: the Job is made"
    if not agent_configmap.is_there(plan):  # the next run, at once, makes the Job
        refusal = agent_configmap.refusal(plan)
        plan.say(
            record,
            PENDING,
            reasons.POD_REFUSED if refusal else reasons.IMPORTING,
            refusal or message,
        )
        return True
    observed = plan.observed
    try:
        job = build_import_job(
            *(
                observed.key,
                plan.cache,
                want.template,
                want.target,
                value,
                source,
                observed.settings,
                observed.agent_name,
            ),
            observed.examples.get(want.origin),
            near=storage.empty,
        )
    except Refused as error:
        _refused(plan, record, value, error.reason, error.message)
        return False
    code = create(plan, record, job, message)
    plan.started.discard(want.id)  # it holds up no other bundle's attempt
    if code == 201:
        plan.say(record, PENDING, reasons.IMPORTING, message)
    elif code in (400, 403, 422):
        _refused(plan, record, value, reasons.IMPORT_REFUSED, record["message"])
    return True


def _taken(plan: PlanBuilder, want: DesiredBundle, value: str) -> bool:
    """Whether this folder went into another bundle of the target. What is noted of that stays when the other's record is gone."""
    for record in plan.bundles.values():
        noted = record.get("import") or {}
        mine = record["id"] == want.id or record.get("target") != want.target.name
        if (
            not mine
            and noted.get("from") == value
            and noted.get("reason") in (reasons.SEALED, reasons.ALREADY_IMPORTED)
        ):
            message = (
                f"{value} was imported already, into the bundle of another engine of this target"
            )
            _note(plan.bundles[want.id], value, reasons.ALREADY_IMPORTED, message)
            plan.events.append(
                Event(
                    reasons.ALREADY_IMPORTED, f"bundle {want.id}: {message}; it is tuned as usual"
                )
            )
            return True
    return False


# --- how it stands


def reported(a: Attempt) -> AttemptState | None:
    report = report_of(statuses(a.pod or {}).get(IMPORT_CONTAINER))
    return finished(report.reason, report.message, report) if report is not None else None


def import_silent(a: Attempt) -> AttemptState | None:
    return silent(a, IMPORT_CONTAINER, reasons.IMPORT_REFUSED)


def overlong(a: Attempt) -> AttemptState | None:
    return (
        finished(reasons.IMPORT_REFUSED, f"it did not end within {LIMIT:.0f} s")
        if a.now >= _made(a) + LIMIT
        else None
    )


def late(a: Attempt) -> AttemptState | None:
    """It must not keep the bundle from being tuned for ever: a claim that is not there, a volume that does not attach."""
    waits = unscheduled(a) if a.pod is not None else without_pod(a)
    if waits is not None:
        late_since = _made(a) + PATIENCE
        words = f"its pod has no node after {PATIENCE:.0f} s: {waits.message}"
    elif since(a, IMPORT_CONTAINER) is None:
        assert a.pod is not None
        late_since = _made(a) + PATIENCE + START
        words = (
            f"container {IMPORT_CONTAINER} has not started after {PATIENCE + START:.0f} s;"
            f" the events of pod {a.pod['metadata']['name']} say why"
        )
    else:
        return None
    return finished(reasons.IMPORT_REFUSED, words) if a.now >= late_since else None


def _made(a: Attempt) -> float:
    assert a.job is not None
    return parse_timestamp(a.job["metadata"]["creationTimestamp"])


def waiting(a: Attempt) -> AttemptState | None:
    found = unscheduled(a) if a.pod is not None else without_pod(a)
    if found is None or found.state == "Finished":
        return found
    return replace(found, look=min(found.look or float("inf"), _made(a) + PATIENCE))


def running(a: Attempt) -> AttemptState | None:
    if (begun := since(a, IMPORT_CONTAINER)) is None:
        return None
    return AttemptState("Pending", reasons.IMPORTING, f"the folder is checked since {begun}")


def starting(a: Attempt) -> AttemptState | None:
    found = pulling(a)
    assert found is not None
    return replace(found, look=_made(a) + PATIENCE + START)


CHECKS: tuple[Check, ...] = (
    reported,  # it has said how it ended
    node_lost,
    overlong,  # whatever the matter is
    disrupted,  # evicted, preempted, deleted: another pod comes
    import_silent,
    cannot_pull,
    cannot_be_made,
    pod_failed,
    late,  # no node, or not started
    waiting,
    running,
    starting,
)
