"""Reconcile one cache: observe, decide, act, write the status once, then record events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from pretune.api import reasons
from pretune.api.names import CACHE, KIND, ROLE
from pretune.api.spec import Spec
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.controller import project
from pretune.controller.log_reader import LogReader
from pretune.controller.metrics import ControllerMetrics
from pretune.controller.observe import API_VERSION, list_held_pods, observe
from pretune.controller.release_refusals import ReleaseRefusals
from pretune.kube.types import REFUSAL_CODES, ApiError, Cluster, Event
from pretune.manifests.gate import is_held
from pretune.policy.bundles.failed_pods import list_failed_starts
from pretune.policy.bundles.turns import AttemptLedger
from pretune.policy.decide import decide
from pretune.policy.hold.release import release_all
from pretune.policy.model import Action, Apply, Create, Delete, Observed, Outcome, Patch, Plan

log = logging.getLogger(__name__)

MAX_CONFLICT_RETRIES = 2  # of a cache that others write to at the same time
# The second is for what is done when a reconcile fails or takes longer. Together they are less than
# workqueue.RUN_TIMEOUT_SECONDS, which ends both.
RECONCILE_TIMEOUT_SECONDS = 90.0
RELEASE_TIMEOUT_SECONDS = 20.0
MAX_CONCURRENT_CALLS = 16  # of calls in any order: 500 pods may wait for their release


async def reconcile(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    clock: Callable[[], float],
    metrics: ControllerMetrics | None = None,
    log_reader: LogReader | None = None,
    watch_named: Callable[[Object], None] = lambda cache: None,
    ledger: AttemptLedger | None = None,
    refusals: ReleaseRefusals | None = None,
) -> float | None:
    """Bring one key to what its spec says, as far as that is possible now.

    clock: Unix seconds, by the API server's clock (kube/server_clock.py). watch_named: called with
    the cache before what its spec names is read. refusals: of earlier runs, to be added to.
    Returns the seconds after which to look again, or None.

    Raises ApiError, OSError or TimeoutError: try again later. Everything that was done stays done,
    and the next reconcile observes it. By then the status is written and its events are recorded,
    whatever becomes of `plan.after`, and pods whose hold has expired are released.
    """
    try:
        async with asyncio.timeout(RECONCILE_TIMEOUT_SECONDS):
            return await _reconcile(
                key, cluster, settings, clock, metrics, log_reader, watch_named, ledger, refusals
            )
    except Exception as error:  # OSError too: it may be one source alone that does not answer
        if ledger is not None:
            ledger.leave(key)
        await release_expired_holds(key, cluster, clock(), error)
        raise


async def _reconcile(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    clock: Callable[[], float],
    metrics: ControllerMetrics | None,
    log_reader: LogReader | None,
    watch_named: Callable[[Object], None],
    ledger: AttemptLedger | None,
    refusals: ReleaseRefusals | None,
) -> float | None:
    ledger = ledger if ledger is not None else AttemptLedger(limit=0)
    causes: dict[str, str] = {}  # a log is read once, however often the cache is observed again
    for retries_left in reversed(range(MAX_CONFLICT_RETRIES + 1)):
        observed = await observe(key, cluster, settings, clock(), watch_named)
        if log_reader is not None:
            unread = [start for start in list_failed_starts(observed) if start.uid not in causes]
            causes = {**causes, **await log_reader.read_causes(key, unread)}
            observed = replace(observed, start_logs=log_reader.results(key), causes=causes)
        observed = replace(observed, turn=ledger.find_turn(key))
        if refusals is not None:
            observed = replace(observed, release_refusals=refusals.of(key))
        plan = decide(observed, clock())
        # Without any await in between: what it starts counts before another key asks.
        ledger.update(key, plan.open_attempts, plan.waits_for_turn)
        if outcomes := await apply_actions(key, plan.actions, cluster):
            plan = decide(replace(observed, outcomes=outcomes), clock())
            ledger.update(key, plan.open_attempts, plan.waits_for_turn)
        try:
            await write_status(observed, plan, cluster)
        except ApiError as error:
            conflict = error.code in (404, 409)
            if conflict and retries_left:
                log.debug("%s: the cache has changed meanwhile, looking again", key)
                continue
            errors = await _release_pods(observed, plan, cluster, metrics, refusals, clock)
            if not conflict:
                raise
            if errors:
                raise next(iter(errors.values())) from None
            return 0.0
        if metrics is not None:
            metrics.count_status(observed, plan)
        if log_reader is not None:
            log_reader.set_starts(key, plan.starts)
        errors = await _release_pods(observed, plan, cluster, metrics, refusals, clock)
        others = [action for action in plan.after if not _is_release(action)]
        if any(isinstance(error, OSError) for error in errors.values()):
            # Then nothing else may answer, or only the patches, which a webhook keeps from it.
            others = [action for action in others if _is_after_release(action, plan)]
        errors |= await apply_concurrently(key, others, cluster)
        events = [event for event in plan.events if event.reason != reasons.RELEASED]
        await _record_events(observed, events, cluster)
        if errors:
            raise next(iter(errors.values()))
        if metrics is not None:
            metrics.count_rescues(plan)
        return plan.requeue_after
    raise AssertionError("the last round returns or raises")


async def _release_pods(
    observed: Observed,
    plan: Plan,
    cluster: Cluster,
    metrics: ControllerMetrics | None,
    refusals: ReleaseRefusals | None,
    clock: Callable[[], float],
) -> dict[str, Exception]:
    """Release the pods that the plan releases; return the errors by the action's name.

    The event is recorded and the release counted once all pods are released: a retry would record
    another event, with another text. No status has to remember it, since a pod without a gate is
    not released again: so a cache whose status cannot be written holds no pod.
    """
    releases = [action for action in plan.after if _is_release(action)]
    errors = await apply_concurrently(observed.key, releases, cluster)
    if refusals is not None:
        refusals.record(observed.key, releases, errors, clock())
    if not errors:
        events = [event for event in plan.events if event.reason == reasons.RELEASED]
        await _record_events(observed, events, cluster)
        if metrics is not None:
            metrics.count_releases(plan)
    return errors


def _is_release(action: Action) -> TypeGuard[Patch]:
    return isinstance(action, Patch) and action.strategic


def _is_after_release(action: Action, plan: Plan) -> bool:
    """Return whether an action deletes a pod that the plan tries to release before."""
    return isinstance(action, Delete) and any(
        release.object["metadata"]["uid"] == action.object["metadata"]["uid"]
        for release in filter(_is_release, plan.after)
    )


async def _record_events(observed: Observed, events: Iterable[Event], cluster: Cluster) -> None:
    for event in events:
        assert observed.cache is not None
        await cluster.record_event(observed.cache, event)


# --- pods that are released without a decision


async def release_orphaned_pods(cluster: Cluster, namespaces: Sequence[str]) -> None:
    """Release the held pods of these namespaces that no cache's reconcile finds.

    Such a pod names no cache any more, or it was given the label of a pod of ours. Raises the first
    error of the cluster once every namespace was tried; a pod that is gone, or another one by now,
    is no error. namespaces: ALL_NAMESPACES for those of the whole cluster.
    """
    fields = "spec.nodeName=,status.phase=Pending"
    errors: list[Exception] = []
    for namespace in namespaces:
        try:
            pods = await cluster.list("v1", "Pod", namespace, fields=fields, project=project.gates)
        except (ApiError, OSError, TimeoutError) as error:
            errors.append(error)
            continue
        orphans = [pod for pod in pods if is_held(pod) and _is_orphan(pod)]
        for place in sorted({pod["metadata"]["namespace"] for pod in orphans}):
            here = [pod for pod in orphans if pod["metadata"]["namespace"] == place]
            failed = await apply_concurrently(Key(place, ""), release_all(here), cluster)
            errors += failed.values()
    if errors:
        raise errors[0]


def _is_orphan(pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return not labels.get(CACHE) or ROLE in labels


async def release_expired_holds(key: Key, cluster: Cluster, now: float, cause: Exception) -> None:
    """Release a key's pods whose hold has expired, after a reconcile that failed. Never raises.

    A cache that cannot be reconciled holds no pod for ever: its source's conversion webhook may be
    down, or there is a defect of ours.
    """
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
            await _release_expired_holds(key, cluster, now, cause)
    except Exception as error:
        log.warning(
            "%s: pods whose hold has expired may still be held: %s",
            *(key, str(error) or type(error).__name__),
        )


async def _release_expired_holds(key: Key, cluster: Cluster, now: float, cause: Exception) -> None:
    cache, held = await asyncio.gather(
        cluster.get(API_VERSION, KIND, key.namespace, key.name), list_held_pods(key, cluster)
    )
    hold = Spec.from_cache(cache or {}).hold
    expired = [
        pod
        for pod in held
        if now >= parse_timestamp(pod["metadata"]["creationTimestamp"]) + hold.timeout_seconds
    ]
    if not expired or hold.on_failure == "Keep":
        return
    errors = await apply_concurrently(key, release_all(expired), cluster)
    if cache is not None and not errors:
        message = (
            f"{len(expired)} pods: spec.hold.timeoutSeconds has passed, and the cache cannot be"
            f" reconciled: {str(cause) or type(cause).__name__}"
        )
        await cluster.record_event(cache, Event(reasons.RELEASED, message, warning=True))


# --- actions


async def apply_actions(
    key: Key, actions: Iterable[Action], cluster: Cluster
) -> dict[str, Outcome]:
    """Apply every action in its order.

    Returns what the API server answered about objects that were created or applied, by the action's
    name.
    """
    outcomes = {}
    for action in actions:
        outcome = await _apply_action(key, action, cluster)
        if outcome is not None:
            outcomes[action.name] = outcome
    return outcomes


async def apply_concurrently(
    key: Key, actions: Iterable[Action], cluster: Cluster
) -> dict[str, Exception]:
    """Apply every action, several at a time and in any order.

    Returns the errors by the action's name, the first one first. An action that the API server
    refuses keeps no other one back. When the API server does not answer, no further one is tried.
    """
    waiting, errors = deque(actions), dict[str, Exception]()

    async def work() -> None:
        while waiting:
            action = waiting.popleft()
            try:
                await _apply_action(key, action, cluster)
            except (ApiError, OSError, TimeoutError) as error:
                log.warning("%s: %s: %s", key, action.name, error or type(error).__name__)
                errors[action.name] = error
                if not isinstance(error, ApiError):
                    waiting.clear()

    await asyncio.gather(*(work() for _ in range(min(len(waiting), MAX_CONCURRENT_CALLS))))
    return errors


async def _apply_action(key: Key, action: Action, cluster: Cluster) -> Outcome | None:
    outcome = await _call(action, cluster)
    refused = f": {outcome.code}" if outcome and outcome.code >= 400 else ""
    log.info("%s: %s%s", key, action.name, refused)
    return outcome


async def _call(action: Action, cluster: Cluster) -> Outcome | None:
    """Make the action's call. Returns the answer about an object that it created or applied.

    Raises ApiError, unless the answer is about the object itself.
    """
    try:
        match action:
            case Create():
                return Outcome(201, "", await cluster.create(action.object))
            case Apply():
                return Outcome(200, "", await cluster.apply(action.object))
            case Patch():
                await cluster.patch(action.object, action.patch, strategic=action.strategic)
            case Delete():
                await cluster.delete(action.object)
    except ApiError as error:
        creates = isinstance(action, Create | Apply)
        if creates and error.code in REFUSAL_CODES:
            return Outcome(error.code, error.message)
        if isinstance(action, Create) and error.code == 409:
            return Outcome(409, error.message, await _read_existing(action.object, cluster))
        if isinstance(action, Patch) and action.is_optional and error.code in REFUSAL_CODES:
            return Outcome(error.code, error.message)
        if creates or error.code not in (404, 409):
            raise
        # To patch or delete: it is gone, or another object has its name. Nothing is to be done.
    return None


async def _read_existing(obj: Object, cluster: Cluster) -> Object | None:
    """Return the object that exists under this kind and name."""
    meta = obj["metadata"]
    return await cluster.get(obj["apiVersion"], obj["kind"], meta["namespace"], meta["name"])


# --- status


async def write_status(observed: Observed, plan: Plan, cluster: Cluster) -> None:
    """Write what differs in one merge patch, on the version that was read; else nothing.

    Raises ApiError 409 or 404 when the cache has changed or is gone.
    """
    if plan.status is None or observed.cache is None:
        return
    patch = merge_patch(observed.cache.get("status") or {}, _as_stored(plan.status))
    if not patch:
        return
    meta = observed.cache["metadata"]
    ref = {
        "apiVersion": observed.cache["apiVersion"],
        "kind": observed.cache["kind"],
        "metadata": {name: meta[name] for name in ("namespace", "name", "uid", "resourceVersion")},
    }
    await cluster.patch(ref, {"status": patch}, status=True)
    log.info("%s: %s", observed.key, _summarize(plan.status))


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """Return the JSON merge patch (RFC 7396) that turns `old` into `new`, which has no null."""
    patch: Object = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            patch[name] = merge_patch(before, after)
        else:
            patch[name] = after
    return patch


def _as_stored(value: Any) -> Any:
    """Return the value as the API server stores it: lists instead of tuples, and no nulls.

    Else it would differ from what is read, and be written again and again.
    """
    if isinstance(value, Mapping):
        return {name: _as_stored(item) for name, item in value.items() if item is not None}
    return [_as_stored(item) for item in value] if isinstance(value, list | tuple) else value


def _summarize(status: Mapping[str, Any]) -> str:
    """Return `Ready=False (Tuning), bundles 0/1`.

    Without any message: an engine's last output may be part of it, and hold anything.
    """
    bundles = (status.get("summary") or {}).get("bundles", "-")
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready":
            return f"Ready={condition['status']} ({condition['reason']}), bundles {bundles}"
    return f"status written, bundles {bundles}"
