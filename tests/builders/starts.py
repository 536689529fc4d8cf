"""Builders of consumers whose engines started, and of what their logs report."""

from __future__ import annotations

from typing import Any

from pretune.api import names
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL, TUNED, WARM, LogSummary
from pretune.policy.decide import decide
from pretune.policy.model import Plan, StartObservation
from pretune.protocol import Report

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.observed import bundle_of, fingerprint_of, observed, origin
from tests.builders.pods import Consumer

BUNDLE = bundle_of("a")
READY_POD = Consumer("a").ready().given(BUNDLE).seeded()


def numbered_pod(number: int, of: Consumer = READY_POD) -> Consumer:
    return of.meta(name=f"a-{number}", uid=f"uid-{number}")


def cache_with_bundle(status: Object | None = None, **more: Any) -> Object:
    known = bundle_json(
        BUNDLE,
        fingerprint=fingerprint_of("a"),
        sealedAt=format_timestamp(NOW - 3600),
        layout="PerRank",
        entries=21,
        **more,
    )
    return cache(
        {"storage": {"claimUID": "claim-uid"}, "bundles": [known], **(status or {})}, source=None
    )


def decide_on(
    *pods: Consumer,
    starts: dict[str, StartObservation] | None = None,
    the_cache: Object | None = None,
    now: float = NOW,
    of: dict[str, Any] | None = None,
) -> Plan:
    """Return the plan for consumers of a cache whose bundle is sealed, with these start logs."""
    observation = observed(
        the_cache or cache_with_bundle(),
        consumers=tuple(pods),
        origins=of or origin("a"),
        start_logs=starts,
    )
    return decide(observation, now)


def start_key(pod: Consumer) -> str:
    return f"{pod['metadata']['uid']}/{format_timestamp(NOW - 30)}"


def start_logs_of(
    *pods: tuple[Consumer, LogSummary | str], differs: tuple[str, ...] = ()
) -> dict[str, StartObservation]:
    return {
        start_key(pod): StartObservation(
            summary if isinstance(summary, LogSummary) else LogSummary(summary), differs
        )
        for pod, summary in pods
    }


def start_counts(plan: Plan) -> dict[str, int]:
    """Return the counts of status.consumers that start logs give."""
    assert plan.status is not None
    return {
        name: count
        for name, count in plan.status["consumers"].items()
        if name in (WARM, PARTIAL, TUNED)
    }


def retuned_messages(plan: Plan) -> list[str]:
    return [event.message for event in plan.events if event.reason == "TunedAgain"]


FOUR_PODS = [numbered_pod(number) for number in range(4)]
ALL_TUNED = LogSummary(TUNED, new=21, operations=("toy_gemm",), folders=("c" * 64,))


def with_counts(**numbers: int) -> Object:
    return {
        "consumers": {
            "seeded": 4,
            "cold": 0,
            "held": 0,
            "stale": 0,
            "ready": 4,
            "observedAt": format_timestamp(NOW - 60),
            **numbers,
        }
    }


def pod_with_report(reason: str, message: str = "") -> Consumer:
    end = {"exitCode": 0, "message": Report("seed", reason, message).dump()}
    return READY_POD.but(
        initContainerStatuses=[{"name": names.SEED_CONTAINER, "state": {"terminated": end}}]
    )
