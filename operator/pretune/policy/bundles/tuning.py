"""Attempts: what became of those that were started, and which one, or which proof, is started now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pretune.api import reasons
from pretune.api.names import (
    BUNDLE,
    PENDING,
    PROOF,
    PROVING,
    REFUSED,
    RETIRED,
    SEAL_CONTAINER,
    SEALED,
    TUNING,
    TUNING_STATE,
)
from pretune.api.reasons import Refused
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.manifests.job import build_tuning_job
from pretune.podspec.template import count_gpus
from pretune.policy.bundles import attempt_state as attempts
from pretune.policy.bundles import imports, proofs, retention
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import Attempt, AttemptState, is_finished
from pretune.policy.bundles.job_runs import count_disruptions, create, pod_of, tidy
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.plan_builder import (
    DesiredBundle,
    PlanBuilder,
    delete,
    fail,
    failure,
    fingerprint_of,
    next_try,
    owner_uid,
)
from pretune.policy.pods.consumers import Consumer

MISSED = 120.0  # seconds that a bundle is kept in the making though no pod asks for it
SETTLE = (
    300.0  # seconds after a seal in which a rollout may still replace the pods of an older revision
)

TOLD_BY_TEMPLATE = frozenset(
    {
        reasons.MULTI_POD_ENGINE,
        reasons.SELF_REGISTERING,
        reasons.SHARED_GPU,
        reasons.SHARED_RESOURCE_CLAIM,
        reasons.SINGLE_USE_CLAIM,
        reasons.SOURCE_INVALID,
    }
)


def settle(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Read every attempt that the record has not taken note of yet."""
    ids = {want.id for want in bundles}
    for job in plan.elsewhere:
        plan.after.append(delete(job))
        record = plan.bundles.get(job["metadata"]["labels"][BUNDLE])
        if record is not None and record["state"] in (PENDING, TUNING_STATE):
            plan.forget(record, "spec.storage was changed")
    for bundle in sorted(plan.tried() | set(plan.bundles)):
        jobs = plan.attempts(bundle)
        record = plan.bundles.get(bundle)
        if record is None:
            if bundle not in ids and not plan.live(bundle):
                continue  # the finished Job of a bundle that nobody remembers or wants
            known = jobs or plan.attempts(bundle, PROOF)
            record = plan.record(bundle, fingerprint_of(known[max(known)]))
        record["attempts"] = max([record.get("attempts", 0), *jobs])
        if record["state"] in (PENDING, TUNING_STATE) and record["attempts"] > failure(record).get(
            "attempt", 0
        ):
            _read(plan, record, jobs.get(record["attempts"]))
        else:
            tidy(plan, bundle, jobs.values())
    imports.settle(plan)


def _read(plan: PlanBuilder, record: Object, job: Object | None) -> None:
    number, pod = record["attempts"], pod_of(plan, record, job)
    count_disruptions(record, pod)
    if job is None and plan.live(record["id"]):
        plan.say(
            record,
            PENDING,
            reasons.WAITING_FOR_POD,
            f"attempt {number}: its Job is gone; waiting for its pod to end",
        )
        return
    events = plan.observed.job_events.get(job["metadata"]["uid"], ()) if job else ()
    standing = attempts.read(
        Attempt(number, job, pod, events, record.get("disruptions", 0), plan.now)
    )
    plan.requeue_at(standing.look)
    if standing.state != "Finished":
        message = f"attempt {number} of {plan.spec.max_attempts}: {standing.message}"
        plan.say(record, standing.state, standing.reason, message)
        return
    if standing.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    if standing.report is not None and standing.reason in (reasons.SEALED, reasons.NOTHING_TO_TUNE):
        _sealed(plan, record, standing, job, pod)
        return
    fail(plan, record, standing.reason, standing.message)
    if job is not None:
        plan.end(job)


def _sealed(
    plan: PlanBuilder,
    record: Object,
    standing: AttemptState,
    job: Object | None,
    pod: Object | None,
) -> None:
    assert standing.report is not None and pod is not None and job is not None
    adopt(plan, record, standing.report, fingerprint_of(job))
    if standing.report.by == "check":
        plan.after.append(delete(job))  # found on the claim: the engine was never started
        return
    proofs.note_cold(record, attempts.start_seconds(pod, SEAL_CONTAINER))
    record["gpus"] = count_gpus(pod["spec"]["initContainers"][-1])
    image = (attempts.statuses(pod).get(attempts.engine_name(pod)) or {}).get("imageID", "")
    if image:
        record["engineImage"] = image.removeprefix("docker-pullable://")
    tidy(plan, record["id"], [job])


# --- starting


def refuse(plan: PlanBuilder, bundles: Iterable[DesiredBundle]) -> None:
    """What cannot be tuned as a copy is said before any Job; a template or `allow` that changed takes it back."""
    for want in bundles:
        record = plan.record(want.id, want.inputs.fingerprint, want.target.name)
        if (
            want.refusal is not None
            and record["state"] in (PENDING, PROVING, REFUSED)
            and not plan.live(want.id)
        ):
            if record["state"] == PROVING:
                proofs.forget(plan, record)
            plan.say(record, REFUSED, want.refusal.reason, want.refusal.message)
            record.pop("digest", None)  # allowed again, an attempt's check finds it on the claim
        elif (
            want.refusal is None
            and record["state"] == REFUSED
            and record["reason"] in TOLD_BY_TEMPLATE
        ):
            plan.say(record, PENDING, reasons.QUEUED, "")


def start(
    plan: PlanBuilder,
    bundles: tuple[DesiredBundle, ...],
    storage: Storage,
    pods: Sequence[Consumer],
) -> None:
    """At most one attempt per target, and one that occupies a node per cache; what only waits for a node holds up nobody."""
    waited_for = {one.bundle for one in pods if one.held}
    for want in bundles:
        record = plan.bundles[want.id]
        state = record["state"]
        if state not in (PENDING, PROVING) or want.id in plan.asking:
            continue
        begun = record["attempts"] if state == PENDING else record.get("proofs", 0)
        if begun > failure(record).get("attempt", 0):
            continue  # its attempt lives, or only the claim knows what became of it
        if plan.live(want.id):
            _wait_for_end(plan, record)
        elif plan.spec.suspend:
            plan.say(record, state, reasons.SUSPENDED, "spec.suspend is true")
        elif not storage.ready:
            plan.say(record, state, reasons.WAITING_FOR_CLAIM, storage.message)
        elif state == PENDING and imports.comes_first(plan, want, record, storage):
            continue  # what a person has already
        elif next_try(record) > plan.now:
            plan.requeue_at(next_try(record))
        elif busy := _busy(plan, want):
            plan.say(record, state, reasons.QUEUED, f"waits for {busy}")
        elif want.id not in waited_for and (newer := _rollout(plan, want, bundles)):
            plan.say(
                record,
                state,
                reasons.QUEUED,
                f"waits for the rollout to {newer}: the pods that need it may be on their way out",
            )
        elif state == PROVING:
            proofs.begin(plan, want, record)
        else:
            _create(plan, want, record)


def _wait_for_end(plan: PlanBuilder, record: Object) -> None:
    """Our own last attempt ends by itself. Somebody else's of that bundle is said: no report of it counts."""
    ours = {job["metadata"]["uid"] for job in _jobs(plan, record["id"])}
    living = [
        pod
        for pod in plan.pods(record["id"])
        if not is_finished(pod) and owner_uid(pod) not in ours
    ]
    if living or not ours:
        names = (
            ", ".join(sorted(f"pod {pod['metadata']['name']}" for pod in living))
            or "its Job is not deleted yet"
        )
        plan.say(
            record,
            record["state"],
            reasons.NAME_TAKEN,
            f"an attempt that is not this cache's still lives: {names}",
        )
    ends = [
        parse_timestamp(since) + attempts.LOST
        for pod in plan.pods(record["id"])
        if (since := pod["metadata"].get("deletionTimestamp"))
    ]
    plan.requeue_at(min((when for when in ends if when > plan.now), default=plan.now + 60))


def _busy(plan: PlanBuilder, want: DesiredBundle) -> str | None:
    """The bundle whose attempt goes first."""
    for other, record in plan.bundles.items():
        if other == want.id or not (plan.live(other) or other in plan.started):
            continue
        waits = record["state"] in (PENDING, PROVING) and record["reason"] in (
            reasons.WAITING_FOR_NODE,
            reasons.POD_REFUSED,
            reasons.QUEUED,
        )
        if record.get("target") == want.target.name or not waits:
            return other
    return None


def _rollout(
    plan: PlanBuilder, want: DesiredBundle, bundles: Iterable[DesiredBundle]
) -> str | None:
    """The newest bundle, while pods are on their way to it: from its wish until SETTLE seconds after its seal, or its proof."""
    for newest in bundles:
        record = plan.bundles[newest.id]
        if want.current or not newest.current or newest.target.name != want.target.name:
            continue
        until = (
            _given_since(plan, record) + SETTLE
            if record["state"] == SEALED and record.get("sealedAt")
            else 0.0
        )
        if record["state"] in (PENDING, TUNING_STATE, PROVING) or plan.now < until:
            plan.requeue_at(until or None)
            return newest.id
    return None


def _given_since(plan: PlanBuilder, record: Object) -> float:
    """Since when pods are given a bundle (Unix seconds): its seal; if it was to be proven first, about the time that Ready became True."""
    sealed = parse_timestamp(record["sealedAt"])
    if not record.get("proven"):
        return sealed
    if plan.known.get(record["id"], ("", ""))[0] != SEALED:
        return plan.now
    told = (plan.cache.get("status") or {}).get("conditions") or ()
    ready = next((one for one in told if one["type"] == "Ready" and one["status"] == "True"), None)
    return max(sealed, parse_timestamp(ready["lastTransitionTime"])) if ready else sealed


def _create(plan: PlanBuilder, want: DesiredBundle, record: Object) -> None:
    observed, number = plan.observed, record["attempts"] + 1
    if not agent_configmap.is_there(plan):  # the next run, at once, makes the Job
        message = agent_configmap.refusal(plan)
        plan.say(
            record,
            PENDING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or _made(plan, number),
        )
        return
    try:
        example = observed.examples.get(want.origin)
        job = build_tuning_job(
            observed.key,
            plan.cache,
            want.template,
            want.target,
            number,
            observed.settings,
            observed.agent_name,
            example,
        )
    except Refused as refused:
        plan.say(record, REFUSED, refused.reason, refused.message)
        return
    code = create(plan, record, job, _made(plan, number))
    if code in (400, 422):
        plan.say(record, REFUSED, reasons.SOURCE_INVALID, record["message"])


def _made(plan: PlanBuilder, number: int) -> str:
    return f"attempt {number} of {plan.spec.max_attempts}: the Job is made"


def supersede(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """An attempt of what nothing wants any more gives its GPUs back; its record goes once it is over."""
    ids = {want.id for want in bundles}
    for bundle in list(plan.bundles):
        record = plan.bundles[bundle]
        if bundle in ids or record["state"] in (SEALED, RETIRED):
            record.pop("unwantedSince", None)
            if bundle not in ids:
                tidy(plan, bundle, plan.attempts(bundle, PROOF).values())
            continue
        if _may_be_wanted_again(plan, record, bundles):
            continue
        for job in _jobs(plan, bundle):
            plan.end(job)
        if proofs.is_withheld(record):
            _give_up(plan, record)
        elif plan.live(bundle):
            plan.say(
                record,
                PENDING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its attempt ends",
            )
        elif (
            "undeliverable" not in record
        ):  # else its pods, which come back without us, would be given it again
            plan.drop_jobs(bundle)  # wanted again it is no attempt that failed
            del plan.bundles[bundle]


def _give_up(plan: PlanBuilder, record: Object) -> None:
    """A bundle that is on the claim, and was never given to a pod that named it here: its folder goes like any other's."""
    if plan.live(record["id"]):
        if record["state"] == PROVING:
            plan.say(
                record,
                PROVING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its proof ends",
            )
        return
    proofs.forget(plan, record)
    retention.give_up(plan, record)


def _jobs(plan: PlanBuilder, bundle: str) -> list[Object]:
    return [job for role in (TUNING, PROOF) for job in plan.attempts(bundle, role).values()]


def _may_be_wanted_again(
    plan: PlanBuilder, record: Object, bundles: tuple[DesiredBundle, ...]
) -> bool:
    """Where pods are the source: one that is evicted or restarted is missing for a while, and what it needs is not to be tuned anew.
    A newer revision, and a source that was changed, are clear words."""
    if plan.observed.source is not None:
        return False
    started = max(
        (job["metadata"]["creationTimestamp"] for job in _jobs(plan, record["id"])), default=""
    )
    if any(
        want.current and want.target.name == record["target"] and want.made > started > ""
        for want in bundles
    ):
        return False
    until = parse_timestamp(record.setdefault("unwantedSince", format_timestamp(plan.now))) + MISSED
    plan.requeue_at(until if until > plan.now else None)
    return plan.now < until
