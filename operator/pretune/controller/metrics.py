"""The controller's metrics, each declared once with its unit and labels (docs/metrics.md has all).

What a plan says is counted after its status was written: reconcile may run any number of times, on
any replica, and the end of an attempt counts once. Each process has a registry of its own. Nothing
here does I/O, and the cost of a reconcile does not depend on the number of caches.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from prometheus_client import disable_created_metrics

from pretune.api.names import STATES
from pretune.api.types import Key
from pretune.engines.logs import RESULTS, UNKNOWN
from pretune.metrics_base import Metrics
from pretune.policy.model import Delete, Observed, Plan

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each

Answer = TypeVar("Answer")

CONSUMER_STATES = ("seeded", "cold", "held", "stale", "ready")  # of status.consumers
CACHE_LABELS = ("namespace", "cache")
MAX_WAITING_NAMESPACES = 10  # that have a series: those that wait longest

# Upper limits of histograms' buckets.
_TUNING_SECONDS = (30, 60, 120, 300, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200)
_HOLD_SECONDS = (1, 5, 15, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_RECONCILE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


class ControllerMetrics(Metrics):
    """The controller's registry.

    queue_depth: keys that wait for a worker. stuck_seconds: how long they have waited while no
    reconcile began or ended. is_leader: whether the lease is ours. waits: by namespace, for how many
    seconds its oldest key has waited for its turn. open_attempts, waiting_caches:
    of all caches, as controller.maxConcurrentAttempts counts them.
    """

    def __init__(
        self,
        queue_depth: Callable[[], float] = lambda: 0,
        stuck_seconds: Callable[[], float] = lambda: 0,
        is_leader: Callable[[], bool] = lambda: False,
        waits: Callable[[], Mapping[str, float]] = dict,
        open_attempts: Callable[[], float] = lambda: 0,
        waiting_caches: Callable[[], float] = lambda: 0,
    ) -> None:
        super().__init__()
        self._bundles = self._add_gauge(
            "pretune_bundles",
            "Bundles in a cache's status, by state. Not those that failed and that nothing wants any"
            " more (unwantedSince): they are only remembered.",
            (*CACHE_LABELS, "state"),
        )
        self._consumers = self._add_gauge(
            "pretune_consumers",
            "Serving pods as the cache's status counts them, every 10 s at most: seeded (started"
            " with the bundle), cold (started without it), held (wait for it), stale (run another"
            " image of the same name than the bundle was tuned in), ready; with proof.readLogs also"
            " warm, partial and tuned, as their logs say.",
            (*CACHE_LABELS, "state"),
        )
        self._held = self._add_gauge(
            "pretune_held_pods",
            "Serving pods that wait for their bundle behind the scheduling gate pretune.dev/hold.",
            CACHE_LABELS,
        )
        self._attempts = self._add_counter(
            "pretune_attempts",
            "Tuning attempts and proofs that ended, by reason: Sealed, NothingToTune, Found (the"
            " bundle was on the claim already), Proven, Superseded (nothing wanted it any more,"
            " or a pod that serves needed its claim), or the reason of a failure.",
            ("reason",),
        )
        self._tuning_seconds = self._add_histogram(
            "pretune_tuning_seconds",
            "Time from the engine's start to the sealed bundle, in seconds, of attempts that sealed"
            " one.",
            _TUNING_SECONDS,
        )
        self._gpu_seconds = self._add_counter(
            "pretune_tuning_gpu_seconds",
            "GPU-seconds of attempts and proofs that ended: their time multiplied by the engine's"
            " GPUs. For one that failed the time is its pod's, as far as the pod could be read.",
            CACHE_LABELS,
        )
        self._spent = self._add_counter(
            "pretune_spent_gpu_seconds",
            "GPU-seconds of attempts and proofs of all caches, by what became of them: sealed,"
            " failed, lost (the pod was evicted, preempted, suspended or deleted), superseded,"
            " proof.",
            ("result",),
        )
        self._hold_seconds = self._add_histogram(
            "pretune_hold_seconds",
            "How long held pods waited, from their creation to their release, in seconds.",
            _HOLD_SECONDS,
            ("cause",),
        )
        self._rescued = self._add_counter(
            "pretune_rescued_pods",
            "Pods that only the claim, the container pretune-seed or a gate that could not be"
            " removed kept from starting. They were deleted; their replacements start without.",
        )
        self._starts = self._add_counter(
            "pretune_starts",
            "Engine starts in pods that were given a bundle, by what their logs say"
            " (proof.readLogs): warm (loaded, nothing tuned), partial (some tuned), tuned (all"
            " tuned), unknown. Each once, of pods that became ready while this process ran.",
            (*CACHE_LABELS, "result"),
        )
        self._read_failures = self._add_counter(
            "pretune_start_read_failures",
            "Logs that were not read, by reason: Forbidden, NotThere (the pod is gone), Rotated"
            " (the log's beginning is gone), NoAnswer, Error.",
            ("reason",),
        )
        self._saved = self._add_gauge(
            "pretune_gpu_seconds_saved",
            "GPU-seconds that proven bundles saved (status.gpuSecondsSaved): the sum, over the"
            " starts of serving pods that had one, of GPUs x max(0, coldSeconds - warmSeconds) of"
            " that bundle. It only grows. The cost of tuning and proving is not subtracted: see"
            " pretune_tuning_gpu_seconds_total.",
            CACHE_LABELS,
        )
        self._reconcile_seconds = self._add_histogram(
            "pretune_reconcile_seconds",
            "Time of one reconcile of one cache, with all of its API calls, in seconds.",
            _RECONCILE_SECONDS,
        )
        self._reconcile_errors = self._add_counter(
            "pretune_reconcile_errors", "Reconciles that raised an error. They are tried again."
        )
        self._add_computed_gauge(
            "pretune_open_attempts",
            "Attempts and proofs of all caches that count for controller.maxConcurrentAttempts.",
            open_attempts,
        )
        self._add_computed_gauge(
            "pretune_waiting_caches",
            "Caches that wait for their turn (WaitingForTurn).",
            waiting_caches,
        )
        self._add_computed_gauge(
            "pretune_queue_depth", "Caches that wait for a worker.", queue_depth
        )
        self._add_computed_gauge(
            "pretune_queue_stuck_seconds",
            "How long caches have waited for a worker without any reconcile starting or ending, in"
            " seconds.",
            stuck_seconds,
        )
        self._add_computed_series(
            "pretune_queue_oldest_wait_seconds",
            "How long the cache of a namespace that has waited longest for its turn has waited since"
            " it was due, in seconds: of the ten namespaces that wait longest, and of none while no"
            " cache waits.",
            "namespace",
            lambda: _largest(waits(), MAX_WAITING_NAMESPACES),
        )
        self._add_computed_gauge(
            "pretune_leader", "1 in the replica that holds the lease and works, else 0.", is_leader
        )

    async def time_reconcile(self, reconcile: Awaitable[Answer]) -> Answer:
        """Return what a reconcile returns, and count its time and its error."""
        began = time.perf_counter()
        try:
            return await reconcile
        except Exception:
            self._reconcile_errors.inc()
            raise
        finally:
            self._reconcile_seconds.observe(time.perf_counter() - began)

    def count_status(self, observed: Observed, plan: Plan) -> None:
        """Count what a plan's status says, and attempts that ended, once the status is written."""
        if observed.cache is None:
            self._remove_cache(observed.key)
        if observed.cache is None or plan.status is None:
            return
        labels = (observed.key.namespace, observed.key.name)
        states = [
            bundle["state"]
            for bundle in plan.status.get("bundles") or ()
            if "lastFailure" not in bundle or "unwantedSince" not in bundle
        ]
        for state in STATES:
            self._bundles.labels(*labels, state).set(states.count(state))
        consumers = plan.status.get("consumers") or {}
        for state in CONSUMER_STATES:
            self._consumers.labels(*labels, state).set(consumers.get(state, 0))
        for result in RESULTS:
            if result in consumers:
                self._consumers.labels(*labels, result).set(consumers[result])
        if "gpuSecondsSaved" in plan.status:
            self._saved.labels(*labels).set(plan.status["gpuSecondsSaved"])
        self._held.labels(*labels).set(consumers.get("held", 0))
        gpu_seconds = self._gpu_seconds.labels(*labels)
        for end in plan.ended:
            self._attempts.labels(end.reason).inc()
            gpu_seconds.inc(end.gpu_seconds)
            self._spent.labels(end.result).inc(end.gpu_seconds)
            if end.tuning_seconds is not None:
                self._tuning_seconds.observe(end.tuning_seconds)

        gpu_seconds.inc(plan.lost_gpu_seconds)
        self._spent.labels("lost").inc(plan.lost_gpu_seconds)

    def count_releases(self, plan: Plan) -> None:
        """Count the holds that a plan ends, once all of its pods are released."""
        for release in plan.released:
            self._hold_seconds.labels(release.cause).observe(release.waited)

    def count_rescues(self, plan: Plan) -> None:
        """Count the pods that a plan rescues, once all of it is done: a retry does the rest.

        Also those that are deleted since their gate could not be removed.
        """
        pods = [
            action
            for action in plan.after
            if isinstance(action, Delete) and action.object["kind"] == "Pod"
        ]
        self._rescued.inc(len(pods))

    def count_start(self, key: Key, result: str) -> None:
        """Count a start whose log was read or is not read any more (engines.logs.RESULTS)."""
        self._starts.labels(key.namespace, key.name, result).inc()

    def count_read_failure(self, reason: str) -> None:
        """Count a log that was not read."""
        self._read_failures.labels(reason).inc()

    def _remove_cache(self, key: Key) -> None:
        """Remove every series of a deleted cache."""
        labels = (key.namespace, key.name)
        for result in (*RESULTS, UNKNOWN):
            self._starts.remove(*labels, result)
            self._consumers.remove(*labels, result)
        self._saved.remove(*labels)
        for state in STATES:
            self._bundles.remove(*labels, state)
        for state in CONSUMER_STATES:
            self._consumers.remove(*labels, state)
        self._held.remove(*labels)
        self._gpu_seconds.remove(*labels)


def _largest(values: Mapping[str, float], count: int) -> dict[str, float]:
    return dict(heapq.nlargest(count, values.items(), key=lambda item: item[1]))
