"""A bundle's end: nothing wants it, no living pod names it, newer ones are there → Retired → ten minutes later pruned."""

from __future__ import annotations

import json

from pretune.api import reasons
from pretune.api.names import BUNDLE, FAILED, PRUNE, REQUEST_KEY, RETIRED, ROLE, SEALED
from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.job import build_prune_job
from pretune.policy.bundles.attempt_state import is_job_finished
from pretune.policy.bundles.proofs import is_judged, is_withheld
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.plan_builder import DesiredBundle, PlanBuilder, delete, failure

RETIREMENT = 600.0  # seconds between Retired and the deletion of the folder


def pruned(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """What became of the prune Jobs. A folder that was or is being deleted although its bundle is wanted again (or by a
    controller that came too late) is no bundle any more until the claim has said so: nothing is started meanwhile."""
    ids = {want.id for want in bundles}
    for job in plan.jobs:
        if job["metadata"]["labels"].get(ROLE) != PRUNE:
            continue
        for bundle in _asked(job):
            record, over = plan.bundles.get(bundle), is_job_finished(job)
            if record is not None and record["state"] == RETIRED and bundle not in ids:
                if not _complete(job):
                    continue  # it runs, or its failure waits for its ttl
                plan.drop_jobs(bundle)
                del plan.bundles[bundle]
                plan.events.append(
                    Event(reasons.UNWANTED, f"bundle {bundle}: its folder was deleted")
                )
            elif record is not None and (
                record["state"] in (SEALED, RETIRED) or is_withheld(record)
            ):
                plan.forget(record, f"its folder is deleted by Job {job['metadata']['name']}")
                plan.known_place = ""
            if over:
                plan.after.append(delete(job))
            elif bundle in plan.bundles:
                plan.asking.add(bundle)


def retire(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Retired bundles are given to no new pod; one that is wanted again before its folder is touched comes back."""
    ids = {want.id for want in bundles}
    named = _named(plan)
    newest: dict[str, list[str]] = {}
    for record in sorted(
        plan.bundles.values(), key=lambda one: (one.get("sealedAt", ""), one["id"]), reverse=True
    ):
        if record["state"] == SEALED:
            newest.setdefault(record["target"], []).append(record["id"])
    kept = {one for ranked in newest.values() for one in ranked[: plan.spec.history_limit]}
    for record in plan.bundles.values():
        if record["state"] == SEALED and record["id"] not in ids | named | kept:
            _retire(plan, record)
        elif (
            record["state"] == RETIRED
            and record["id"] in ids | named
            and not _prunes(plan, record["id"])
        ):
            record.pop("retiredAt")
            if is_judged(record):
                last = failure(record)
                plan.say(
                    record,
                    FAILED,
                    last["reason"],
                    f"{last['message']}; no pod is given this bundle",
                )
            else:
                plan.say(
                    record,
                    SEALED,
                    reasons.NOTHING_TO_TUNE if record.get("layout") == "Empty" else reasons.SEALED,
                    "wanted again",
                )


def give_up(plan: PlanBuilder, record: Object) -> None:
    """A bundle that nothing wants, and that no pod may be given: none is kept for going back to it."""
    if record["id"] not in _named(plan):
        _retire(plan, record)


def _retire(plan: PlanBuilder, record: Object) -> None:
    record["retiredAt"] = format_timestamp(plan.now)
    plan.say(
        record,
        RETIRED,
        reasons.UNWANTED,
        f"its folder is deleted after {format_timestamp(plan.now + RETIREMENT)}",
    )


def _named(plan: PlanBuilder) -> set[str | None]:
    return {
        (pod["metadata"].get("annotations") or {}).get(BUNDLE) for pod in plan.observed.consumers
    }


def prune(plan: PlanBuilder, storage: Storage) -> None:
    """One Job a bundle, as the files' own writer."""
    for record in plan.bundles.values():
        if record["state"] != RETIRED:
            continue
        jobs, due = _prunes(plan, record["id"]), parse_timestamp(record["retiredAt"]) + RETIREMENT
        if jobs:
            if all(is_job_finished(job) for job in jobs):
                name = jobs[0]["metadata"]["name"]
                plan.say(
                    record,
                    RETIRED,
                    reasons.UNWANTED,
                    f"Job {name} could not delete its folder; see its log",
                )
                plan.requeue_at(plan.now + RETIREMENT)
        elif plan.now < due:
            plan.requeue_at(due)
        elif storage.ready and not plan.spec.suspend:
            writer = record.get("writer") or {"uid": 65532, "gid": 65532, "groups": []}
            job = build_prune_job(
                plan.observed.key,
                plan.cache,
                plan.spec,
                [record["id"]],
                writer,
                plan.observed.settings,
            )
            action = Create(f"create Job {job['metadata']['name']}", job)
            plan.actions.append(action)
            refused = plan.outcome(action)
            if refused is not None and refused.code not in (201, 409):
                plan.say(
                    record,
                    RETIRED,
                    reasons.UNWANTED,
                    f"its folder cannot be deleted: {refused.message}",
                )
                plan.requeue_at(plan.now + 30)


def _asked(job: Object) -> list[str]:
    return [
        str(one)
        for one in json.loads((job["metadata"].get("annotations") or {}).get(REQUEST_KEY) or "[]")
    ]


def _prunes(plan: PlanBuilder, bundle: str) -> list[Object]:
    return [
        job
        for job in plan.jobs
        if job["metadata"]["labels"].get(ROLE) == PRUNE and bundle in _asked(job)
    ]


def _complete(job: Object) -> bool:
    return any(
        one["type"] == "Complete" and one["status"] == "True"
        for one in (job.get("status") or {}).get("conditions") or ()
    )
