"""One look at one cache: observe, decide, act, write the status once, then say it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pretune.api import KIND, Object, Spec
from pretune.cluster import ApiError, Cluster
from pretune.decide import decide
from pretune.decide.holding import release_all
from pretune.metrics import ControllerMetrics
from pretune.model import Action, Apply, Create, Delete, Event, Key, Observed, Outcome, Patch, Plan, Settings, seconds
from pretune.observe import API, held, observe

log = logging.getLogger(__name__)

# What the API server says of the object: words for a condition, and no error of ours. 500 is how it says that a webhook failed.
ANSWERS = (400, 403, 422, 500)
LOOKS = 3  # at a cache that others write to at the same time
TOGETHER = 16  # calls at a time, of those whose order does not matter: 500 pods may wait for their release


async def reconcile(
    key: Key, cluster: Cluster, settings: Settings, clock: Callable[[], float], metrics: ControllerMetrics | None = None
) -> float | None:
    """Bring one key to what its spec says, as far as is possible now; when to look again, in seconds from now, or None.

    Raises ApiError, OSError or TimeoutError: try again later, everything that was done stays done and is seen the next time. What
    the status says is written by then, and told in events, whatever becomes of `after`; and pods whose hold has timed out are let go.
    """
    try:
        return await _look(key, cluster, settings, clock, metrics)
    except OSError:  # nobody answers
        raise
    except Exception as error:
        await _let_go_overdue(key, cluster, clock(), error)
        raise


async def _look(
    key: Key, cluster: Cluster, settings: Settings, clock: Callable[[], float], metrics: ControllerMetrics | None
) -> float | None:
    for _ in range(LOOKS):
        seen = await observe(key, cluster, settings, clock())
        plan = decide(seen, clock())
        if outcomes := await carry_out(key, plan.actions, cluster):
            plan = decide(replace(seen, outcomes=outcomes), clock())
        try:
            await write_status(seen, plan, cluster)
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            log.debug("%s: the cache has changed meanwhile, looking again", key)
            continue
        if metrics is not None:
            metrics.written(seen, plan, clock())
        failed = await carry_out_together(key, plan.after, cluster)
        for event in plan.events:
            assert seen.cache is not None
            await cluster.event(seen.cache, event)
        if failed:
            raise failed[0]
        if metrics is not None:
            metrics.carried_out(plan)
        return plan.look_again
    return 0.0


async def _let_go_overdue(key: Key, cluster: Cluster, now: float, why: Exception) -> None:
    """No pod is held for ever because of a cache that cannot be looked at: its source's conversion webhook is down, say, or a fault
    of ours. Never raises."""
    try:
        cache, waiting = await asyncio.gather(cluster.get(API, KIND, key.namespace, key.name), held(key, cluster))
        hold = Spec.of(cache or {}).hold
        overdue = [one for one in waiting if now >= seconds(one["metadata"]["creationTimestamp"]) + hold.timeout]
        if not overdue or hold.on_failure == "Keep":
            return
        await carry_out_together(key, release_all(overdue), cluster)
        if cache is not None:
            words = f"{len(overdue)} pods: spec.hold.timeoutSeconds is over, and the cache cannot be looked at: {why}"
            await cluster.event(cache, Event("Released", words, warning=True))
    except (ApiError, OSError) as error:
        log.warning("%s: pods whose hold is over may still be held: %s", key, error)


async def carry_out(key: Key, actions: Iterable[Action], cluster: Cluster) -> dict[str, Outcome]:
    """Every action in its order. What the API server said of what was made, by the action's name."""
    outcomes = {}
    for action in actions:
        outcome = await _act(key, action, cluster)
        if outcome is not None:
            outcomes[action.name] = outcome
    return outcomes


async def carry_out_together(key: Key, actions: Iterable[Action], cluster: Cluster) -> list[Exception]:
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
    log.info("%s: %s%s", key, action.name, f": {outcome.code}" if outcome and outcome.code >= 400 else "")
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
        if made or error.code not in (404, 409):  # else it is gone, or is another object by now: nothing to do
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
    meta = {name: seen.cache["metadata"][name] for name in ("namespace", "name", "uid", "resourceVersion")}
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
