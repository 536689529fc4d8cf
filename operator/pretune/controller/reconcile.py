"""One look at one cache: observe, decide, act, write the status once, then say it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pretune.api import reasons
from pretune.api.names import CACHE, KIND, ROLE
from pretune.api.spec import Spec
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.config import Settings
from pretune.controller.log_reader import Starts
from pretune.controller.metrics import ControllerMetrics
from pretune.controller.observe import API, held, observe
from pretune.kube.types import ApiError, Cluster, Event
from pretune.manifests.gate import is_held
from pretune.policy.decide import decide
from pretune.policy.hold.release import release_all
from pretune.policy.model import Action, Apply, Create, Delete, Observed, Outcome, Patch, Plan

log = logging.getLogger(__name__)

# What the API server says of the object: words for a condition, and no error of ours. 500 is how it says that a webhook failed.
ANSWERS = (400, 403, 422, 500)
RELEASED = reasons.RELEASED  # the event's reason
LOOKS = 3  # at a cache that others write to at the same time
# Seconds for a look, and for what is done when it fails or takes longer: together less than workqueue.LIMIT, which ends both.
LOOK, LET_GO = 90.0, 20.0
TOGETHER = (
    16  # calls at a time, of those whose order does not matter: 500 pods may wait for their release
)


async def reconcile(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    clock: Callable[[], float],
    metrics: ControllerMetrics | None = None,
    starts: Starts | None = None,
) -> float | None:
    """Bring one key to what its spec says, as far as is possible now; when to look again, in seconds from now, or None.

    Raises ApiError, OSError or TimeoutError: try again later, everything that was done stays done and is seen the next time. What
    the status says is written by then, and told in events, whatever becomes of `after`; and pods whose hold has timed out are let go.
    """
    try:
        async with asyncio.timeout(LOOK):
            return await _look(key, cluster, settings, clock, metrics, starts)
    except (
        Exception
    ) as error:  # OSError too: one source that nobody answers for says nothing of the pods
        await _let_go_overdue(key, cluster, clock(), error)
        raise


async def _look(
    key: Key,
    cluster: Cluster,
    settings: Settings,
    clock: Callable[[], float],
    metrics: ControllerMetrics | None,
    starts: Starts | None,
) -> float | None:
    for look in range(1, LOOKS + 1):
        seen = await observe(key, cluster, settings, clock())
        if starts is not None:
            seen = replace(seen, starts=starts.known(key))
        plan = decide(seen, clock())
        if outcomes := await carry_out(key, plan.actions, cluster):
            plan = decide(replace(seen, outcomes=outcomes), clock())
        try:
            await write_status(seen, plan, cluster)
        except ApiError as error:
            changed = error.code in (404, 409)
            if changed and look < LOOKS:
                log.debug("%s: the cache has changed meanwhile, looking again", key)
                continue
            failed = await _release(seen, plan, cluster, metrics)
            if not changed:
                raise
            if failed:
                raise failed[0] from None
            return 0.0
        if metrics is not None:
            metrics.written(seen, plan, clock())
        if starts is not None:
            starts.follow(key, plan.starts)
        failed = await _release(seen, plan, cluster, metrics)
        if not any(isinstance(one, OSError) for one in failed):  # else nobody answers
            failed += await carry_out_together(
                key, (one for one in plan.after if not _is_release(one)), cluster
            )
        await _tell(seen, (one for one in plan.events if one.reason != RELEASED), cluster)
        if failed:
            raise failed[0]
        if metrics is not None:
            metrics.carried_out(replace(plan, released=()))
        return plan.look_again
    raise AssertionError("the last look returns or raises")


async def _release(
    seen: Observed, plan: Plan, cluster: Cluster, metrics: ControllerMetrics | None
) -> list[Exception]:
    """Let go whom the plan lets go; the errors. It is told and counted once all of them went: a retry would tell it again, in other
    words. Needs no status that remembers it: a pod without a gate is not let go again, so a cache whose status cannot be written
    holds nobody."""
    failed = await carry_out_together(seen.key, filter(_is_release, plan.after), cluster)
    if not failed:
        await _tell(seen, (one for one in plan.events if one.reason == RELEASED), cluster)
        if metrics is not None:
            metrics.carried_out(replace(plan, after=()))
    return failed


def _is_release(action: Action) -> bool:
    return isinstance(action, Patch) and action.strategic


async def _tell(seen: Observed, events: Iterable[Event], cluster: Cluster) -> None:
    for event in events:
        assert seen.cache is not None
        await cluster.record_event(seen.cache, event)


async def free(cluster: Cluster, namespace: str = "", name: str = "") -> None:
    """Take our gate from a pod that names no cache any more, or was made a part of ours: no look at any cache finds it. Without a name:
    from every such pod of the cluster. Raises as the cluster does; a pod that is gone, or another by now, is no error."""
    fields = "spec.nodeName=,status.phase=Pending" + (f",metadata.name={name}" if name else "")
    pods = await cluster.list("v1", "Pod", namespace, fields=fields, project=_gates)
    stray = [one for one in pods if is_held(one) and _is_stray(one)]
    for place in sorted({one["metadata"]["namespace"] for one in stray}):
        ours = [one for one in stray if one["metadata"]["namespace"] == place]
        if failed := await carry_out_together(Key(place, ""), release_all(ours), cluster):
            raise failed[0]


def _is_stray(pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return not labels.get(CACHE) or ROLE in labels


def _gates(pod: Object) -> Object:
    meta = {
        name: one
        for name, one in pod["metadata"].items()
        if name in ("namespace", "name", "uid", "labels")
    }
    gates = pod["spec"].get("schedulingGates") or []
    return {
        **{name: pod[name] for name in ("apiVersion", "kind")},
        "metadata": meta,
        "spec": {"schedulingGates": gates},
    }


async def _let_go_overdue(key: Key, cluster: Cluster, now: float, why: Exception) -> None:
    """No pod is held for ever because of a cache that cannot be looked at: its source's conversion webhook is down, say, or a fault
    of ours. Never raises."""
    try:
        async with asyncio.timeout(LET_GO):
            await _let_go(key, cluster, now, why)
    except Exception as error:
        log.warning(
            "%s: pods whose hold is over may still be held: %s",
            key,
            str(error) or type(error).__name__,
        )


async def _let_go(key: Key, cluster: Cluster, now: float, why: Exception) -> None:
    cache, waiting = await asyncio.gather(
        cluster.get(API, KIND, key.namespace, key.name), held(key, cluster)
    )
    hold = Spec.from_cache(cache or {}).hold
    overdue = [
        one
        for one in waiting
        if now >= parse_timestamp(one["metadata"]["creationTimestamp"]) + hold.timeout
    ]
    if not overdue or hold.on_failure == "Keep":
        return
    failed = await carry_out_together(key, release_all(overdue), cluster)
    if cache is not None and not failed:
        said = str(why) or type(why).__name__
        words = f"{len(overdue)} pods: spec.hold.timeoutSeconds is over, and the cache cannot be looked at: {said}"
        await cluster.record_event(cache, Event(RELEASED, words, warning=True))


async def carry_out(key: Key, actions: Iterable[Action], cluster: Cluster) -> dict[str, Outcome]:
    """Every action in its order. What the API server said of what was made, by the action's name."""
    outcomes = {}
    for action in actions:
        outcome = await _act(key, action, cluster)
        if outcome is not None:
            outcomes[action.name] = outcome
    return outcomes


async def carry_out_together(
    key: Key, actions: Iterable[Action], cluster: Cluster
) -> list[Exception]:
    """Every action, some at a time and in any order; the errors. One that the API server refuses holds up no other; where nobody
    answers, no further one is tried."""
    left, failed = deque(actions), list[Exception]()

    async def work() -> None:
        while left:
            action = left.popleft()
            try:
                await _act(key, action, cluster)
            except (ApiError, OSError, TimeoutError) as error:
                log.warning("%s: %s: %s", key, action.name, error or type(error).__name__)
                failed.append(error)
                if not isinstance(error, ApiError):
                    left.clear()

    await asyncio.gather(*(work() for _ in range(min(len(left), TOGETHER))))
    return failed


async def _act(key: Key, action: Action, cluster: Cluster) -> Outcome | None:
    outcome = await _call(action, cluster)
    log.info(
        "%s: %s%s", key, action.name, f": {outcome.code}" if outcome and outcome.code >= 400 else ""
    )
    return outcome


async def _call(action: Action, cluster: Cluster) -> Outcome | None:
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
        made = isinstance(action, Create | Apply)
        if made and error.code in ANSWERS:
            return Outcome(error.code, error.message)
        if isinstance(action, Create) and error.code == 409:
            return Outcome(409, error.message, await _there(action.object, cluster))
        if made or error.code not in (
            404,
            409,
        ):  # else it is gone, or is another object by now: nothing to do
            raise
    return None


async def _there(obj: Object, cluster: Cluster) -> Object | None:
    meta = obj["metadata"]
    return await cluster.get(obj["apiVersion"], obj["kind"], meta["namespace"], meta["name"])


async def write_status(seen: Observed, plan: Plan, cluster: Cluster) -> None:
    """One merge patch with what differs, on the version that was read; none where nothing does. Raises ApiError 409 or 404."""
    if plan.status is None or seen.cache is None:
        return
    patch = difference(seen.cache.get("status") or {}, _stored(plan.status))
    if not patch:
        return
    meta = {
        name: seen.cache["metadata"][name]
        for name in ("namespace", "name", "uid", "resourceVersion")
    }
    ref = {"apiVersion": seen.cache["apiVersion"], "kind": seen.cache["kind"], "metadata": meta}
    await cluster.patch(ref, {"status": patch}, status=True)
    log.info("%s: %s", seen.key, _headline(plan.status))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch (RFC 7396) that makes `new`, which holds no null, out of `old`."""
    patch: Object = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            patch[name] = difference(before, after)
        else:
            patch[name] = after
    return patch


def _stored(value: Any) -> Any:
    """As the API server will store it: lists for tuples, and no nulls. Else it would differ from what is read, for ever."""
    if isinstance(value, Mapping):
        return {name: _stored(one) for name, one in value.items() if one is not None}
    return [_stored(one) for one in value] if isinstance(value, list | tuple) else value


def _headline(status: Mapping[str, Any]) -> str:
    """`Ready=False (Tuning), bundles 0/1`: no message, since an engine's last words may hold anything."""
    ready = next((one for one in status.get("conditions") or () if one["type"] == "Ready"), None)
    said = f"Ready={ready['status']} ({ready['reason']})" if ready else "status written"
    return f"{said}, bundles {(status.get('summary') or {}).get('bundles', '-')}"
