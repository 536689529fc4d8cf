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
from pretune.manifests.job import tuning_job
from pretune.podspec.template import gpus
from pretune.policy.bundles import attempt_state as attempts
from pretune.policy.bundles import imports, proofs, retention
from pretune.policy.bundles.adoption import adopt
from pretune.policy.bundles.attempt_state import Attempt, Standing, finished
from pretune.policy.bundles.job_runs import count_disruptions, create, pod_of, tidy
from pretune.policy.cache import agent_configmap
from pretune.policy.cache.storage import Storage
from pretune.policy.plan_builder import (
    Draft,
    Wanted,
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


def settle(draft: Draft, bundles: tuple[Wanted, ...]) -> None:
    """Read every attempt that the record has not taken note of yet."""
    ids = {want.id for want in bundles}
    for job in draft.elsewhere:
        draft.after.append(delete(job))
        record = draft.bundles.get(job["metadata"]["labels"][BUNDLE])
        if record is not None and record["state"] in (PENDING, TUNING_STATE):
            draft.forget(record, "spec.storage was changed")
    for bundle in sorted(draft.tried() | set(draft.bundles)):
        jobs = draft.attempts(bundle)
        record = draft.bundles.get(bundle)
        if record is None:
            if bundle not in ids and not draft.live(bundle):
                continue  # the finished Job of a bundle that nobody remembers or wants
            known = jobs or draft.attempts(bundle, PROOF)
            record = draft.record(bundle, fingerprint_of(known[max(known)]))
        record["attempts"] = max([record.get("attempts", 0), *jobs])
        if record["state"] in (PENDING, TUNING_STATE) and record["attempts"] > failure(record).get(
            "attempt", 0
        ):
            _read(draft, record, jobs.get(record["attempts"]))
        else:
            tidy(draft, bundle, jobs.values())
    imports.settle(draft)


def _read(draft: Draft, record: Object, job: Object | None) -> None:
    number, pod = record["attempts"], pod_of(draft, record, job)
    count_disruptions(record, pod)
    if job is None and draft.live(record["id"]):
        draft.say(
            record,
            PENDING,
            reasons.WAITING_FOR_POD,
            f"attempt {number}: its Job is gone; waiting for its pod to end",
        )
        return
    events = draft.seen.job_events.get(job["metadata"]["uid"], ()) if job else ()
    standing = attempts.read(
        Attempt(number, job, pod, events, record.get("disruptions", 0), draft.now)
    )
    draft.at(standing.look)
    if standing.state != "Over":
        message = f"attempt {number} of {draft.spec.max_attempts}: {standing.message}"
        draft.say(record, standing.state, standing.reason, message)
        return
    if standing.reason == reasons.REPORT_LOST:
        return  # only the claim knows: adoption asks it
    if standing.report is not None and standing.reason in (reasons.SEALED, reasons.NOTHING_TO_TUNE):
        _sealed(draft, record, standing, job, pod)
        return
    fail(draft, record, standing.reason, standing.message)
    if job is not None:
        draft.end(job)


def _sealed(
    draft: Draft, record: Object, standing: Standing, job: Object | None, pod: Object | None
) -> None:
    assert standing.report is not None and pod is not None and job is not None
    adopt(draft, record, standing.report, fingerprint_of(job))
    if standing.report.by == "check":
        draft.after.append(delete(job))  # found on the claim: the engine was never started
        return
    proofs.note_cold(record, attempts.start_seconds(pod, SEAL_CONTAINER))
    record["gpus"] = gpus(pod["spec"]["initContainers"][-1])
    image = (attempts.statuses(pod).get(attempts.engine_name(pod)) or {}).get("imageID", "")
    if image:
        record["engineImage"] = image.removeprefix("docker-pullable://")
    tidy(draft, record["id"], [job])


# --- starting


def refuse(draft: Draft, bundles: Iterable[Wanted]) -> None:
    """What cannot be tuned as a copy is said before any Job; a template or `allow` that changed takes it back."""
    for want in bundles:
        record = draft.record(want.id, want.inputs.fingerprint, want.target.name)
        if (
            want.refusal is not None
            and record["state"] in (PENDING, PROVING, REFUSED)
            and not draft.live(want.id)
        ):
            if record["state"] == PROVING:
                proofs.forget(draft, record)
            draft.say(record, REFUSED, want.refusal.reason, want.refusal.message)
            record.pop("digest", None)  # allowed again, an attempt's check finds it on the claim
        elif (
            want.refusal is None
            and record["state"] == REFUSED
            and record["reason"] in TOLD_BY_TEMPLATE
        ):
            draft.say(record, PENDING, reasons.QUEUED, "")


def start(
    draft: Draft, bundles: tuple[Wanted, ...], storage: Storage, pods: Sequence[Consumer]
) -> None:
    """At most one attempt per target, and one that occupies a node per cache; what only waits for a node holds up nobody."""
    waited_for = {one.bundle for one in pods if one.held}
    for want in bundles:
        record = draft.bundles[want.id]
        state = record["state"]
        if state not in (PENDING, PROVING) or want.id in draft.asking:
            continue
        begun = record["attempts"] if state == PENDING else record.get("proofs", 0)
        if begun > failure(record).get("attempt", 0):
            continue  # its attempt lives, or only the claim knows what became of it
        if draft.live(want.id):
            _wait_for_end(draft, record)
        elif draft.spec.suspend:
            draft.say(record, state, reasons.SUSPENDED, "spec.suspend is true")
        elif not storage.ready:
            draft.say(record, state, reasons.WAITING_FOR_CLAIM, storage.message)
        elif state == PENDING and imports.comes_first(draft, want, record, storage):
            continue  # what a person has already
        elif next_try(record) > draft.now:
            draft.at(next_try(record))
        elif busy := _busy(draft, want):
            draft.say(record, state, reasons.QUEUED, f"waits for {busy}")
        elif want.id not in waited_for and (newer := _rollout(draft, want, bundles)):
            draft.say(
                record,
                state,
                reasons.QUEUED,
                f"waits for the rollout to {newer}: the pods that need it may be on their way out",
            )
        elif state == PROVING:
            proofs.begin(draft, want, record)
        else:
            _create(draft, want, record)


def _wait_for_end(draft: Draft, record: Object) -> None:
    """Our own last attempt ends by itself. Somebody else's of that bundle is said: no report of it counts."""
    ours = {job["metadata"]["uid"] for job in _jobs(draft, record["id"])}
    living = [
        pod for pod in draft.pods(record["id"]) if not finished(pod) and owner_uid(pod) not in ours
    ]
    if living or not ours:
        names = (
            ", ".join(sorted(f"pod {pod['metadata']['name']}" for pod in living))
            or "its Job is not deleted yet"
        )
        draft.say(
            record,
            record["state"],
            reasons.NAME_TAKEN,
            f"an attempt that is not this cache's still lives: {names}",
        )
    ends = [
        parse_timestamp(since) + attempts.LOST
        for pod in draft.pods(record["id"])
        if (since := pod["metadata"].get("deletionTimestamp"))
    ]
    draft.at(min((when for when in ends if when > draft.now), default=draft.now + 60))


def _busy(draft: Draft, want: Wanted) -> str | None:
    """The bundle whose attempt goes first."""
    for other, record in draft.bundles.items():
        if other == want.id or not (draft.live(other) or other in draft.started):
            continue
        waits = record["state"] in (PENDING, PROVING) and record["reason"] in (
            reasons.WAITING_FOR_NODE,
            reasons.POD_REFUSED,
            reasons.QUEUED,
        )
        if record.get("target") == want.target.name or not waits:
            return other
    return None


def _rollout(draft: Draft, want: Wanted, bundles: Iterable[Wanted]) -> str | None:
    """The newest bundle, while pods are on their way to it: from its wish until SETTLE seconds after its seal, or its proof."""
    for newest in bundles:
        record = draft.bundles[newest.id]
        if want.current or not newest.current or newest.target.name != want.target.name:
            continue
        until = (
            _given_since(draft, record) + SETTLE
            if record["state"] == SEALED and record.get("sealedAt")
            else 0.0
        )
        if record["state"] in (PENDING, TUNING_STATE, PROVING) or draft.now < until:
            draft.at(until or None)
            return newest.id
    return None


def _given_since(draft: Draft, record: Object) -> float:
    """Since when pods are given a bundle (Unix seconds): its seal; if it was to be proven first, about the time that Ready became True."""
    sealed = parse_timestamp(record["sealedAt"])
    if not record.get("proven"):
        return sealed
    if draft.known.get(record["id"], ("", ""))[0] != SEALED:
        return draft.now
    told = (draft.cache.get("status") or {}).get("conditions") or ()
    ready = next((one for one in told if one["type"] == "Ready" and one["status"] == "True"), None)
    return max(sealed, parse_timestamp(ready["lastTransitionTime"])) if ready else sealed


def _create(draft: Draft, want: Wanted, record: Object) -> None:
    seen, number = draft.seen, record["attempts"] + 1
    if not agent_configmap.is_there(draft):  # the next run, at once, makes the Job
        message = agent_configmap.refusal(draft)
        draft.say(
            record,
            PENDING,
            reasons.POD_REFUSED if message else reasons.WAITING_FOR_POD,
            message or _made(draft, number),
        )
        return
    try:
        example = seen.examples.get(want.origin)
        job = tuning_job(
            seen.key,
            draft.cache,
            want.template,
            want.target,
            number,
            seen.settings,
            seen.agent_name,
            example,
        )
    except Refused as refused:
        draft.say(record, REFUSED, refused.reason, refused.message)
        return
    code = create(draft, record, job, _made(draft, number))
    if code in (400, 422):
        draft.say(record, REFUSED, reasons.SOURCE_INVALID, record["message"])


def _made(draft: Draft, number: int) -> str:
    return f"attempt {number} of {draft.spec.max_attempts}: the Job is made"


def supersede(draft: Draft, bundles: tuple[Wanted, ...]) -> None:
    """An attempt of what nothing wants any more gives its GPUs back; its record goes once it is over."""
    ids = {want.id for want in bundles}
    for bundle in list(draft.bundles):
        record = draft.bundles[bundle]
        if bundle in ids or record["state"] in (SEALED, RETIRED):
            record.pop("unwantedSince", None)
            if bundle not in ids:
                tidy(draft, bundle, draft.attempts(bundle, PROOF).values())
            continue
        if _may_be_wanted_again(draft, record, bundles):
            continue
        for job in _jobs(draft, bundle):
            draft.end(job)
        if proofs.is_withheld(record):
            _give_up(draft, record)
        elif draft.live(bundle):
            draft.say(
                record,
                PENDING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its attempt ends",
            )
        elif (
            "undeliverable" not in record
        ):  # else its pods, which come back without us, would be given it again
            draft.drop_jobs(bundle)  # wanted again it is no attempt that failed
            del draft.bundles[bundle]


def _give_up(draft: Draft, record: Object) -> None:
    """A bundle that is on the claim, and was never given to a pod that named it here: its folder goes like any other's."""
    if draft.live(record["id"]):
        if record["state"] == PROVING:
            draft.say(
                record,
                PROVING,
                reasons.SUPERSEDED,
                "nothing wants this bundle any more; its proof ends",
            )
        return
    proofs.forget(draft, record)
    retention.give_up(draft, record)


def _jobs(draft: Draft, bundle: str) -> list[Object]:
    return [job for role in (TUNING, PROOF) for job in draft.attempts(bundle, role).values()]


def _may_be_wanted_again(draft: Draft, record: Object, bundles: tuple[Wanted, ...]) -> bool:
    """Where pods are the source: one that is evicted or restarted is missing for a while, and what it needs is not to be tuned anew.
    A newer revision, and a source that was changed, are clear words."""
    if draft.seen.source is not None:
        return False
    started = max(
        (job["metadata"]["creationTimestamp"] for job in _jobs(draft, record["id"])), default=""
    )
    if any(
        want.current and want.target.name == record["target"] and want.made > started > ""
        for want in bundles
    ):
        return False
    until = (
        parse_timestamp(record.setdefault("unwantedSince", format_timestamp(draft.now))) + MISSED
    )
    draft.at(until if until > draft.now else None)
    return draft.now < until
