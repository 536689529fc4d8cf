"""How a bundle ends: Retired once it is unwanted, pruned ten minutes later.

Unwanted is what no source asks for, no living pod names, and of which newer ones are kept.
"""

from __future__ import annotations

from dataclasses import replace

from pretune.api import reasons
from pretune.api.names import BUNDLE, FAILED, PRUNE, RETIRED, ROLE, SEALED
from pretune.api.status import Writer
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.manifests.job import build_prune_job
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.bundles.proofs import is_judged, require_proof
from pretune.policy.cache.storage import Storage
from pretune.policy.model import Create
from pretune.policy.objects import annotation, delete, label, pruned_ids
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import is_job_complete, is_job_finished
from pretune.protocol import EMPTY

RETIREMENT_SECONDS = 600.0  # between Retired and the deletion of the folder
RETRY_SECONDS = 30.0  # until a prune Job that the API server refused is created again
DEFAULT_WRITER = Writer(uid=65532, gid=65532)  # of a bundle of which no report names one


def process_finished_prunes(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Read the prune Jobs.

    A folder that was or is being deleted although its bundle is wanted again (or by a controller
    that came too late) is no bundle any more until the claim was read: nothing starts meanwhile.
    """
    ids = {desired.id for desired in bundles}
    for job in plan.jobs:
        if label(job, ROLE) != PRUNE:
            continue
        for bundle_id in pruned_ids(job):
            bundle = plan.bundles.get(bundle_id)
            if bundle is not None and bundle.state == RETIRED and bundle_id not in ids:
                if not is_job_complete(job):
                    continue  # it runs, or its failure waits for its ttl
                plan.delete_jobs(bundle_id)
                plan.remove(bundle_id)
                message = f"bundle {bundle_id}: its folder was deleted"
                plan.events.append(Event(reasons.UNWANTED, message))
            elif bundle is not None and (bundle.state in (SEALED, RETIRED) or bundle.is_withheld):
                plan.forget(bundle_id, f"its folder is deleted by Job {job['metadata']['name']}")
                plan.known_place = ""
            if is_job_finished(job):
                plan.after.append(delete(job))
            elif bundle_id in plan.bundles:
                plan.awaiting_claim.add(bundle_id)


def retire(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> None:
    """Retire unwanted bundles: they are given to no new pod.

    One that is wanted again before its folder is touched is sealed again.
    """
    desired = {each.id: each for each in bundles}
    wanted = desired.keys() | _named_ids(plan)
    newest: dict[str, list[str]] = {}
    for bundle in sorted(
        plan.bundles.values(), key=lambda each: (each.sealed_at or 0.0, each.id), reverse=True
    ):
        if bundle.state == SEALED:
            newest.setdefault(bundle.target, []).append(bundle.id)
    kept = {
        bundle_id for ranked in newest.values() for bundle_id in ranked[: plan.spec.history_limit]
    }
    for bundle in list(plan.bundles.values()):
        if bundle.state == SEALED and bundle.id not in wanted | kept:
            _retire(plan, bundle.id)
        elif bundle.state == RETIRED and bundle.id in wanted and not _prunes(plan, bundle.id):
            plan.put(replace(bundle, retired_at=None))
            failure = bundle.last_failure
            if failure is not None and is_judged(bundle):
                message = f"{failure.message}; no pod is given this bundle"
                plan.set_state(bundle.id, FAILED, failure.reason, message)
            else:
                reason = reasons.NOTHING_TO_TUNE if bundle.layout == EMPTY else reasons.SEALED
                plan.set_state(bundle.id, SEALED, reason, "wanted again")
                if bundle.id in desired:
                    require_proof(plan, desired[bundle.id])


def give_up(plan: PlanBuilder, bundle_id: str) -> None:
    """Retire a bundle that nothing wants and no pod may be given: it is not kept to go back to."""
    if bundle_id not in _named_ids(plan):
        _retire(plan, bundle_id)


def _retire(plan: PlanBuilder, bundle_id: str) -> None:
    plan.put(replace(plan.bundles[bundle_id], retired_at=plan.timestamp))
    due = format_timestamp(plan.now + RETIREMENT_SECONDS)
    message = f"its folder is deleted after {due}"
    plan.set_state(bundle_id, RETIRED, reasons.UNWANTED, message)


def _named_ids(plan: PlanBuilder) -> set[str]:
    """Return the bundles that consumers were given."""
    return {annotation(pod, BUNDLE) for pod in plan.observed.consumers}


def prune(plan: PlanBuilder, storage: Storage) -> None:
    """Delete the folders of retired bundles: one Job a bundle, as the files' own writer."""
    for bundle in list(plan.bundles.values()):
        if bundle.state != RETIRED:
            continue
        jobs, due = _prunes(plan, bundle.id), (bundle.retired_at or 0.0) + RETIREMENT_SECONDS
        if jobs:
            if all(is_job_finished(job) for job in jobs):
                name = jobs[0]["metadata"]["name"]
                message = f"Job {name} could not delete its folder; see its log"
                plan.set_state(bundle.id, RETIRED, reasons.UNWANTED, message)
                plan.requeue_at(plan.now + RETIREMENT_SECONDS)
        elif plan.now < due:
            plan.requeue_at(due)
        elif storage.ready and not plan.spec.suspend:
            writer = (bundle.writer or DEFAULT_WRITER).to_dict()
            job = build_prune_job(
                plan.observed.key,
                plan.cache,
                plan.spec,
                [bundle.id],
                writer,
                plan.observed.settings,
                plan.templates,
            )
            action = Create(f"create Job {job['metadata']['name']}", job)
            plan.actions.append(action)
            refused = plan.outcome(action)
            if refused is not None and refused.code not in (201, 409):
                message = f"its folder cannot be deleted: {refused.message}"
                plan.set_state(bundle.id, RETIRED, reasons.UNWANTED, message)
                plan.requeue_at(plan.now + RETRY_SECONDS)


def _prunes(plan: PlanBuilder, bundle_id: str) -> list[Object]:
    return [job for job in plan.jobs if label(job, ROLE) == PRUNE and bundle_id in pruned_ids(job)]
