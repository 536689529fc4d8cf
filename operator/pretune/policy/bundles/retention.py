"""A bundle's end: nothing wants it, no living pod names it, newer ones are there → Retired → ten minutes later pruned."""

from __future__ import annotations

import json

from pretune.api import reasons
from pretune.api.names import BUNDLE, FAILED, PRUNE, QUESTION, RETIRED, ROLE, SEALED
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.job import prune_job
from pretune.policy.bundles.attempt_state import job_over
from pretune.policy.bundles.proofs import is_judged, is_withheld
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.plan_builder import Draft, Wanted, delete, failure

RETIREMENT = 600.0  # seconds between Retired and the deletion of the folder


def pruned(draft: Draft, bundles: tuple[Wanted, ...]) -> None:
    """What became of the prune Jobs. A folder that was or is being deleted although its bundle is wanted again (or by a
    controller that came too late) is no bundle any more until the claim has said so: nothing is started meanwhile."""
    ids = {want.id for want in bundles}
    for job in draft.jobs:
        if job["metadata"]["labels"].get(ROLE) != PRUNE:
            continue
        for bundle in _asked(job):
            record, over = draft.bundles.get(bundle), job_over(job)
            if record is not None and record["state"] == RETIRED and bundle not in ids:
                if not _complete(job):
                    continue  # it runs, or its failure waits for its ttl
                draft.drop_jobs(bundle)
                del draft.bundles[bundle]
                draft.events.append(
                    Event(reasons.UNWANTED, f"bundle {bundle}: its folder was deleted")
                )
            elif record is not None and (
                record["state"] in (SEALED, RETIRED) or is_withheld(record)
            ):
                draft.forget(record, f"its folder is deleted by Job {job['metadata']['name']}")
                draft.known_place = ""
            if over:
                draft.after.append(delete(job))
            elif bundle in draft.bundles:
                draft.asking.add(bundle)


def retire(draft: Draft, bundles: tuple[Wanted, ...]) -> None:
    """Retired bundles are given to no new pod; one that is wanted again before its folder is touched comes back."""
    ids = {want.id for want in bundles}
    named = _named(draft)
    newest: dict[str, list[str]] = {}
    for record in sorted(
        draft.bundles.values(), key=lambda one: (one.get("sealedAt", ""), one["id"]), reverse=True
    ):
        if record["state"] == SEALED:
            newest.setdefault(record["target"], []).append(record["id"])
    kept = {one for ranked in newest.values() for one in ranked[: draft.spec.history_limit]}
    for record in draft.bundles.values():
        if record["state"] == SEALED and record["id"] not in ids | named | kept:
            _retire(draft, record)
        elif (
            record["state"] == RETIRED
            and record["id"] in ids | named
            and not _prunes(draft, record["id"])
        ):
            record.pop("retiredAt")
            if is_judged(record):
                last = failure(record)
                draft.say(
                    record,
                    FAILED,
                    last["reason"],
                    f"{last['message']}; no pod is given this bundle",
                )
            else:
                draft.say(
                    record,
                    SEALED,
                    reasons.NOTHING_TO_TUNE if record.get("layout") == "Empty" else reasons.SEALED,
                    "wanted again",
                )


def give_up(draft: Draft, record: Object) -> None:
    """A bundle that nothing wants, and that no pod may be given: none is kept for going back to it."""
    if record["id"] not in _named(draft):
        _retire(draft, record)


def _retire(draft: Draft, record: Object) -> None:
    record["retiredAt"] = format_timestamp(draft.now)
    draft.say(
        record,
        RETIRED,
        reasons.UNWANTED,
        f"its folder is deleted after {format_timestamp(draft.now + RETIREMENT)}",
    )


def _named(draft: Draft) -> set[str | None]:
    return {(pod["metadata"].get("annotations") or {}).get(BUNDLE) for pod in draft.seen.consumers}


def prune(draft: Draft, storage: Storage) -> None:
    """One Job a bundle, as the files' own writer."""
    for record in draft.bundles.values():
        if record["state"] != RETIRED:
            continue
        jobs, due = _prunes(draft, record["id"]), parse_timestamp(record["retiredAt"]) + RETIREMENT
        if jobs:
            if all(job_over(job) for job in jobs):
                name = jobs[0]["metadata"]["name"]
                draft.say(
                    record,
                    RETIRED,
                    reasons.UNWANTED,
                    f"Job {name} could not delete its folder; see its log",
                )
                draft.at(draft.now + RETIREMENT)
        elif draft.now < due:
            draft.at(due)
        elif storage.ready and not draft.spec.suspend:
            writer = record.get("writer") or {"uid": 65532, "gid": 65532, "groups": []}
            job = prune_job(
                draft.seen.key, draft.cache, draft.spec, [record["id"]], writer, draft.seen.settings
            )
            action = Create(f"create Job {job['metadata']['name']}", job)
            draft.actions.append(action)
            refused = draft.outcome(action)
            if refused is not None and refused.code not in (201, 409):
                draft.say(
                    record,
                    RETIRED,
                    reasons.UNWANTED,
                    f"its folder cannot be deleted: {refused.message}",
                )
                draft.at(draft.now + 30)


def _asked(job: Object) -> list[str]:
    return [
        str(one)
        for one in json.loads((job["metadata"].get("annotations") or {}).get(QUESTION) or "[]")
    ]


def _prunes(draft: Draft, bundle: str) -> list[Object]:
    return [
        job
        for job in draft.jobs
        if job["metadata"]["labels"].get(ROLE) == PRUNE and bundle in _asked(job)
    ]


def _complete(job: Object) -> bool:
    return any(
        one["type"] == "Complete" and one["status"] == "True"
        for one in (job.get("status") or {}).get("conditions") or ()
    )
