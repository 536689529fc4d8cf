"""Whose attempt may start next, over all caches: controller.maxConcurrentAttempts.

A reconcile knows one cache. The ledger knows, in memory, what the last reconcile of each cache
found: its open attempts and proofs, and whether it waits for its turn. After a start of the process
it is loaded from the Jobs of the cluster, so that nothing is started on top of what runs.

Namespaces take turns: next is a cache of the namespace with the fewest open attempts, of
equal ones the namespace whose last turn is longest ago, and in it the cache that has waited
longest. One namespace gets at most half of the turns: else its long attempts would keep all others
waiting. Attempts that do not count (suspended, or without a node for long) take no turn, but a
namespace may have OPEN_PER_TURN open ones for each of its turns only: each is a Job and a pod.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pretune.api.names import ROLE
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.policy.model import Create, Turn
from pretune.policy.objects import label, owner_uid
from pretune.policy.plan_builder import ATTEMPT_ROLES, PlanBuilder
from pretune.policy.pod_status import is_finished, is_job_finished, is_suspended

# An attempt that has no node for so long does not count any more: it uses no GPU, and a cluster
# autoscaler gives up on a node after the same time (its --max-node-provision-time).
WITHOUT_NODE_SECONDS = 900.0

OPEN_PER_TURN = (
    10  # open attempts of one namespace, whether they count or not, for each of its turns
)


def list_open_attempts(plan: PlanBuilder) -> dict[str, bool]:
    """Return the Jobs that tune or prove for this cache, by name: whether each one counts.

    With those that this plan creates. What a queue has suspended does not count: the queue decides.
    """
    found: dict[str, bool] = {}
    for job in plan.jobs:
        if label(job, ROLE) not in ATTEMPT_ROLES or is_job_finished(job):
            continue
        if plan.may_go_on(job):
            until = _counts_until(plan, job)
            plan.requeue_at(until if plan.now < until < float("inf") else None)
            found[job["metadata"]["name"]] = plan.now < until
    for action in plan.actions:
        if not isinstance(action, Create) or plan.outcome(action) is not None:
            continue
        if label(action.object, ROLE) in ATTEMPT_ROLES:
            found[action.object["metadata"]["name"]] = True
    return found


def _counts_until(plan: PlanBuilder, job: Object) -> float:
    """Return until when an open attempt counts (Unix seconds)."""
    if is_suspended(job):
        return 0.0
    pods = [
        pod
        for pod in plan.observed.pods
        if owner_uid(pod) == job["metadata"]["uid"] and not is_finished(pod)
    ]
    if any((pod.get("spec") or {}).get("nodeName") for pod in pods):
        return float("inf")
    newest = max(obj["metadata"]["creationTimestamp"] for obj in (job, *pods))
    return parse_timestamp(newest) + WITHOUT_NODE_SECONDS


@dataclass
class _Namespace:
    """What is known of one namespace."""

    waiting: dict[Key, None]  # the caches that wait, first come first
    counted: int = 0  # open attempts that count
    open: int = 0  # all open attempts
    last_turn: int = 0  # the larger, the later


class AttemptLedger:
    """The open attempts of all caches, and the caches that wait for a turn.

    limit: attempts and proofs at a time; 0: no limit. wake: called with a key whose turn has come;
    its reconcile then starts the attempt, or gives the turn up.
    """

    def __init__(self, limit: int, wake: Callable[[Key], None] = lambda key: None) -> None:
        self._limit, self._wake = limit, wake
        self._share = (limit + 1) // 2  # attempts of one namespace that count
        self._max_open = self._share * OPEN_PER_TURN  # all of one namespace
        self._attempts: dict[Key, dict[str, bool]] = {}
        self._namespaces: dict[str, _Namespace] = {}
        self._called: set[Key] = set()  # woken for their turn, and not reconciled since
        self._turns = 0
        self.running = 0  # open attempts that count

    @property
    def waiting(self) -> int:
        """How many caches wait for a turn."""
        return sum(len(each.waiting) for each in self._namespaces.values())

    def load(self, attempts: Iterable[tuple[Key, str]]) -> None:
        """Take in the open attempts of the cluster, as keys and names of Jobs: all of them count.

        The first reconcile of each key corrects what is known of it.
        """
        for key, name in attempts:
            self._set_attempts(key, {**self._attempts.get(key, {}), name: True})

    def find_turn(self, key: Key) -> Turn | None:
        """Return whether a cache may start an attempt now; None: there is no limit."""
        if not self._limit:
            return None
        own = self._namespaces.get(key.namespace) or _Namespace({})
        index = list(own.waiting).index(key) if key in own.waiting else len(own.waiting)
        level = own.counted + index
        ahead = index
        for name, other in self._namespaces.items():
            if name != key.namespace and other.waiting:
                is_first = (other.last_turn, name) < (own.last_turn, key.namespace)
                before = level - other.counted + is_first
                ahead += max(0, min(before, len(other.waiting), self._find_room(other)))
        return Turn(
            is_free=index < self._find_room(own) and ahead < self._limit - self.running,
            place=ahead + 1,
            waiting=self.waiting + (key not in own.waiting),
            running=self.running,
            limit=self._limit,
            used_up=self._describe_used_up(own),
        )

    def _find_room(self, own: _Namespace) -> int:
        """Return how many attempts more a namespace may start, as far as its share says."""
        return min(self._share - own.counted, self._max_open - own.open)

    def _describe_used_up(self, own: _Namespace) -> str:
        """Return what a namespace has used up, beside the attempts of all caches; "": nothing."""
        if own.counted >= self._share:
            return (
                f"{own.counted} attempts of this namespace run, of {self._share}, half of what"
                " controller.maxConcurrentAttempts allows"
            )
        if own.open >= self._max_open:
            return (
                f"{own.open} Jobs of attempts are open in this namespace, of {self._max_open} at"
                " most: suspended, or without a node"
            )
        return ""

    def update(self, key: Key, attempts: Mapping[str, bool], waits: bool) -> None:
        """Record what a plan says: the cache's open attempts by name, and whether it waits.

        To be called right after the decision: what it starts counts at once.
        """
        own = self._namespaces.setdefault(key.namespace, _Namespace({}))
        if attempts.keys() - self._attempts.get(key, {}).keys():
            self._turns += 1
            own.last_turn = self._turns
        if waits:
            own.waiting.setdefault(key)
        else:
            own.waiting.pop(key, None)
        self._called.discard(key)
        self._set_attempts(key, attempts)
        self._call_next()

    def leave(self, key: Key) -> None:
        """Give up a cache's turn: its reconcile has failed. The next one asks for it again."""
        self._called.discard(key)
        if own := self._namespaces.get(key.namespace):
            own.waiting.pop(key, None)
        self._call_next()

    def end(self, key: Key, name: str) -> None:
        """Record that a Job has ended or is gone, also where its cache cannot be reconciled."""
        attempts = self._attempts.get(key, {})
        if name in attempts:
            rest = {each: counts for each, counts in attempts.items() if each != name}
            self._set_attempts(key, rest)
            self._call_next()

    def _set_attempts(self, key: Key, attempts: Mapping[str, bool]) -> None:
        before = self._attempts.pop(key, {})
        if attempts:
            self._attempts[key] = dict(attempts)
        own = self._namespaces.setdefault(key.namespace, _Namespace({}))
        difference = sum(attempts.values()) - sum(before.values())
        own.counted += difference
        self.running += difference
        own.open += len(attempts) - len(before)
        # Its last turn decides its place: one small entry for each namespace that has ever tuned.
        if not own.open and not own.waiting and not own.last_turn:
            del self._namespaces[key.namespace]

    def _call_next(self) -> None:
        """Wake the keys whose turn has come."""
        for key in list(self._list_next()):
            if key not in self._called:
                self._called.add(key)
                self._wake(key)

    def _list_next(self) -> Iterator[Key]:
        """Yield the waiting keys whose turn has come, in their order."""
        free = self._limit - self.running
        if free <= 0:
            return
        queue = [
            (each.counted, each.last_turn, name, 0)
            for name, each in self._namespaces.items()
            if each.waiting and self._find_room(each) > 0
        ]
        heapq.heapify(queue)
        waiting = {name: list(self._namespaces[name].waiting) for *_, name, _ in queue}
        while queue and free:
            counted, last_turn, name, index = heapq.heappop(queue)
            yield waiting[name][index]
            free -= 1
            index += 1
            room = self._find_room(self._namespaces[name])
            if index < min(room, len(waiting[name])):
                heapq.heappush(queue, (counted + 1, last_turn, name, index))
