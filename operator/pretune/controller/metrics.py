"""The controller's metrics, each declared once with its unit and labels (docs/metrics.md has all).

What a plan says is counted after its status was written: reconcile may run any number of times, on
any replica, and the end of an attempt counts once. Each process has a registry of its own. Nothing
here does I/O, and the cost of a reconcile does not depend on the number of caches.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import disable_created_metrics

from pretune.api.names import (
    ATTEMPT,
    BUNDLE,
    PROOF,
    RETIRED,
    ROLE,
    SEAL_CONTAINER,
    SEALED,
    STATES,
    TUNING,
)
from pretune.api.status import BundleStatus, CacheStatus
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Key, Object
from pretune.engines.logs import RESULTS, UNKNOWN
from pretune.metrics_base import Metrics
from pretune.podspec.template import count_gpus
from pretune.policy.bundles.attempt_state import (
    has_reported,
    is_finished,
    report_of,
    statuses,
    terminated,
)
from pretune.policy.model import Delete, Observed, Plan

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each

Answer = TypeVar("Answer")

CONSUMER_STATES = ("seeded", "cold", "held", "stale", "ready")  # of status.consumers
CACHE_LABELS = ("namespace", "cache")

# Reasons of an attempt's end that are none of a bundle: see docs/metrics.md.
FOUND, SUPERSEDED, PROVEN = "Found", "Superseded", "Proven"


# Upper limits of histograms' buckets.
_TUNING_SECONDS = (30, 60, 120, 300, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200)
_HOLD_SECONDS = (1, 5, 15, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_RECONCILE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


class ControllerMetrics(Metrics):
    """The controller's registry.

    queue_depth: keys that wait for a worker. stuck_seconds: how long they have waited while no
    reconcile began or ended. is_leader: whether the lease is ours.
    """

    def __init__(
        self,
        queue_depth: Callable[[], float] = lambda: 0,
        stuck_seconds: Callable[[], float] = lambda: 0,
        is_leader: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._bundles = self._add_gauge(
            "pretune_bundles", "Bundles in a cache's status, by state.", (*CACHE_LABELS, "state")
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
            " bundle was on the claim already), Proven, Superseded (nothing wanted it any more), or"
            " the reason of a failure.",
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
        self._hold_seconds = self._add_histogram(
            "pretune_hold_seconds",
            "How long held pods waited, from their creation to their release, in seconds.",
            _HOLD_SECONDS,
            ("cause",),
        )
        self._rescued = self._add_counter(
            "pretune_rescued_pods",
            "Pods that only the claim or the container pretune-seed kept from starting. They were"
            " deleted; their replacements start without both.",
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
            "Logs that were not read, by reason: Forbidden, NotThere (the pod is gone), Rotated (the"
            " log's beginning is gone), NoAnswer, Error.",
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
            "pretune_queue_depth", "Caches that wait for a worker.", queue_depth
        )
        self._add_computed_gauge(
            "pretune_queue_stuck_seconds",
            "How long caches have waited for a worker without any reconcile starting or ending, in"
            " seconds.",
            stuck_seconds,
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

    def count_status(self, observed: Observed, plan: Plan, now: float) -> None:
        """Count what a plan's status says, and attempts that ended, once the status is written.

        now: Unix seconds.
        """
        if observed.cache is None:
            self._remove_cache(observed.key)
        if observed.cache is None or plan.status is None:
            return
        labels = (observed.key.namespace, observed.key.name)
        states = [bundle["state"] for bundle in plan.status.get("bundles") or ()]
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
        for end in ended(observed, plan.status, now):
            self._attempts.labels(end.reason).inc()
            gpu_seconds.inc(end.gpu_seconds)
            if end.tuned is not None:
                self._tuning_seconds.observe(end.tuned)

    def count_releases(self, plan: Plan) -> None:
        """Count the holds that a plan ends, once all of its pods are released."""
        for release in plan.released:
            self._hold_seconds.labels(release.cause).observe(release.waited)

    def count_rescues(self, plan: Plan) -> None:
        """Count the pods that a plan rescues, once all of it is done: a retry does the rest."""
        pods = [
            action
            for action in plan.after
            if isinstance(action, Delete) and action.object["kind"] == "Pod"
        ]
        self._rescued.inc(len(pods))

    def count_start(self, key: Key, result: str) -> None:
        """Count a start whose log was read or is not read any more (engines.vllm.log.RESULTS)."""
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


# --- attempts that ended


@dataclass(frozen=True)
class Ended:
    """One attempt. tuned: seconds that it took, where it sealed a bundle."""

    reason: str
    gpu_seconds: float
    tuned: float | None = None


def ended(seen: Observed, status: Mapping[str, Any], now: float) -> list[Ended]:
    """The attempts whose end this status says, and the one that was read did not. now: Unix seconds."""
    before = {each.id: each for each in CacheStatus.from_cache(seen.cache).bundles}
    after = {each.id: each for each in CacheStatus.from_cache({"status": status}).bundles}
    ends = []
    for bundle_id in {**before, **after}:
        old, new = before.get(bundle_id) or BundleStatus(bundle_id), after.get(bundle_id)
        if old == new:
            continue
        end = (
            _sealed(seen, old, new, now)
            or _failed(seen, old, new, now)
            or _given_up(seen, old, new, now)
        )
        ends += [
            each
            for each in (end, _proven(seen, old, new, now), _superseded_proof(seen, old, new, now))
            if each is not None
        ]
    return ends


def _sealed(
    seen: Observed, old: BundleStatus, new: BundleStatus | None, now: float
) -> Ended | None:
    """Sealed by an attempt, whose pod's report tells it from one that was found on the claim."""
    if new is None or not new.is_on_claim or old.is_on_claim or old.state == RETIRED:
        return None
    pods = [pod for pod in _pods(seen, new.id, TUNING, new.attempts) if has_reported(pod)]
    for pod in pods:
        if report_of(statuses(pod).get(SEAL_CONTAINER)) is not None:
            tuned = float(new.tuned_seconds or 0)
            return Ended(new.reason if new.state == SEALED else SEALED, tuned * _gpus(pod), tuned)
    return Ended(FOUND, _spent(pods, now)) if pods else None


def _failed(
    seen: Observed, old: BundleStatus, new: BundleStatus | None, now: float
) -> Ended | None:
    last = new.last_failure if new is not None else None
    if new is None or last is None or last == old.last_failure:
        return None
    # What is on the claim is tuned no more.
    role = PROOF if new.digest is not None else TUNING
    return Ended(last.reason, _spent(_pods(seen, new.id, role, last.attempt), now))


def _proven(
    seen: Observed, old: BundleStatus, new: BundleStatus | None, now: float
) -> Ended | None:
    """By a proof, whose pod's report tells it from one that was found on the claim."""
    if new is None or not new.proven or old.proven:
        return None
    pods = [pod for pod in _pods(seen, new.id, PROOF, new.proofs or 0) if has_reported(pod)]
    return Ended(PROVEN, _spent(pods, now)) if pods else None


def _given_up(
    seen: Observed, old: BundleStatus, new: BundleStatus | None, now: float
) -> Ended | None:
    """It ran, and nothing waits for it any more: its engine is not wanted, or its place has changed."""
    if not old.has_open_attempt or old.reason == SUPERSEDED:
        return None
    if new is not None and new.reason != SUPERSEDED and new.attempts >= old.attempts:
        return None
    return Ended(SUPERSEDED, _spent(_pods(seen, old.id, TUNING, old.attempts), now))


def _superseded_proof(
    seen: Observed, old: BundleStatus, new: BundleStatus | None, now: float
) -> Ended | None:
    """A proof that the status says to be ended: nothing wants its bundle any more."""
    if not old.has_open_proof or old.reason == SUPERSEDED:
        return None
    if new is None or new.reason != SUPERSEDED:
        return None
    return Ended(SUPERSEDED, _spent(_pods(seen, old.id, PROOF, old.proofs or 0), now))


def _pods(seen: Observed, bundle_id: str, role: str, number: int) -> list[Object]:
    """Return the pods of an attempt, or of a proof."""
    wanted = (role, bundle_id, str(number))
    labels = ((pod, pod["metadata"].get("labels") or {}) for pod in seen.pods)
    return [
        pod for pod, has in labels if (has.get(ROLE), has.get(BUNDLE), has.get(ATTEMPT)) == wanted
    ]


def _spent(pods: list[Object], now: float) -> float:
    """GPU-seconds of these pods: a node gives them the GPUs from the kubelet's start of the pod to its end."""
    total = 0.0
    for pod in pods:
        if begun := (pod.get("status") or {}).get("startTime"):
            stops = [
                one["finishedAt"]
                for one in map(terminated, statuses(pod).values())
                if one and one.get("finishedAt")
            ]
            end = max(map(parse_timestamp, stops)) if is_finished(pod) and stops else now
            total += max(0.0, end - parse_timestamp(begun)) * _gpus(pod)
    return total


def _gpus(pod: Object) -> int:
    """Of the engine, which is the pod's last init container (manifests/job.py)."""
    return sum(count_gpus(one) for one in (pod["spec"].get("initContainers") or [])[-1:])
