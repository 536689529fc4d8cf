"""The cache's consumers: what each needs, what it was given, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pretune.api.names import BUNDLE, DELIVERY, SEED_CONTAINER
from pretune.api.reasons import Refused
from pretune.api.spec import Target
from pretune.api.status import (
    MAX_SERVING_WORKLOADS,
    MAX_WORKLOAD,
    BundleStatus,
    ConsumerCounts,
)
from pretune.api.timestamps import parse_timestamp
from pretune.api.types import Object
from pretune.manifests.delivery_modes import find_mode
from pretune.manifests.gate import is_held
from pretune.podspec import identity
from pretune.podspec.template import engine_of
from pretune.podspec.workloads import origin_key
from pretune.policy.model import Origin
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pod_status import (
    container_statuses,
    find_condition,
    find_termination,
    is_finished,
)
from pretune.protocol import SEEDED, Report

COUNTS_INTERVAL_SECONDS = 10.0  # between two writes of status.consumers


@dataclass(frozen=True)
class Consumer:
    """One pod with the cache's label. `bundle` is what it needs, `given_bundle` what it got."""

    pod: Object
    origin_key: str
    origin: Origin | None
    target: Target | None  # None: unknown
    fingerprint: str  # "": unknown
    bundle: str  # its id; "": fingerprint or target is unknown
    engine: str  # the container's name; "": unknown

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def created_at(self) -> float:
        return parse_timestamp(self.pod["metadata"]["creationTimestamp"])

    @property
    def workload(self) -> str:
        """Return `<kind>/<name>` of the workload that it belongs to; "": unknown."""
        return self.origin.workload_name if self.origin is not None else ""

    @property
    def node(self) -> str:
        """Return the name of its node; "": it has none."""
        return str((self.pod.get("spec") or {}).get("nodeName") or "")

    @property
    def image(self) -> str:
        """Return its engine's image as its template names it; "": unknown."""
        template = self.origin.template if self.origin is not None else {}
        if not template or isinstance(template, Refused):
            return ""
        containers = template["spec"]["containers"]
        return next(
            (str(each.get("image") or "") for each in containers if each["name"] == self.engine), ""
        )

    @property
    def given_bundle(self) -> str:
        """Return the id of the bundle that the webhook gave it; "": none."""
        return str((self.pod["metadata"].get("annotations") or {}).get(BUNDLE, ""))

    @property
    def mode(self) -> str:
        """Return its delivery mode; "": the webhook never saw it."""
        return str((self.pod["metadata"].get("annotations") or {}).get(DELIVERY, ""))

    @property
    def is_living(self) -> bool:
        """Return whether it has neither ended nor is being deleted."""
        return not is_finished(self.pod) and not self.pod["metadata"].get("deletionTimestamp")

    @property
    def is_held(self) -> bool:
        """Return whether it waits behind our scheduling gate."""
        return self.is_living and is_held(self.pod)

    @property
    def is_running(self) -> bool:
        """Return whether it has a node: pods like it that come later need not wait."""
        return self.is_living and not is_held(self.pod) and bool(self.node)

    @property
    def is_ready(self) -> bool:
        """Return whether its condition Ready is true."""
        found = find_condition(self.pod, "Ready")
        return self.is_living and found is not None and found["status"] == "True"

    @property
    def has_started(self) -> bool:
        """Return whether its engine has started, at least once."""
        status = self._engine_status
        state = status.get("state") or {}
        return self.is_living and bool(
            state.get("running") or state.get("terminated") or status.get("restartCount")
        )

    @property
    def started_at(self) -> str:
        """Return when its engine started last (RFC 3339); "": unknown."""
        return str(
            ((self._engine_status.get("state") or {}).get("running") or {}).get("startedAt") or ""
        )

    @property
    def ready_at(self) -> float | None:
        """Return when it became ready last (Unix seconds); None: it is not, or unknown."""
        found = find_condition(self.pod, "Ready") or {}
        return (
            parse_timestamp(found["lastTransitionTime"])
            if self.is_ready and found.get("lastTransitionTime")
            else None
        )

    @property
    def is_seeded(self) -> bool:
        """Return whether it runs with its bundle, mounted or copied.

        Seed reports that it copied the bundle.
        """
        if not self.given_bundle or not self.has_started:
            return False
        return self.is_mounted or (
            self.seed_report is not None and self.seed_report.reason == SEEDED
        )

    @property
    def is_mounted(self) -> bool:
        """Return whether its engine reads the bundle on the claim, not a copy that seed makes."""
        mode = find_mode(self.mode)
        return mode is not None and not mode.makes_a_copy

    @property
    def seed_report(self) -> Report | None:
        """Return what seed reported at its end; None: nothing."""
        end = find_termination(container_statuses(self.pod).get(SEED_CONTAINER)) or {}
        return Report.load(end.get("message") or "")

    @property
    def image_id(self) -> str:
        """Return the engine's image as it runs, `…@sha256:…`; "": unknown."""
        return str(self._engine_status.get("imageID") or "")

    @property
    def _engine_status(self) -> Object:
        found = container_statuses(self.pod)
        return found.get(self.engine) or {}


def list_consumers(plan: PlanBuilder) -> tuple[Consumer, ...]:
    """Return every observed consumer, in the order of the names."""
    needs: dict[tuple[str, str], tuple[str, str, str]] = {}  # by origin and target
    consumers = []
    for pod in sorted(plan.observed.consumers, key=lambda pod: str(pod["metadata"]["name"])):
        key = origin_key(pod)
        origin, target = plan.observed.origins.get(key), identity.target_of(pod, plan.spec)
        group = (key, target.name if target else "")
        if group not in needs:
            needs[group] = _find_needs(plan, origin, target)
        consumers.append(Consumer(pod, key, origin, target, *needs[group]))
    return tuple(consumers)


def _find_needs(
    plan: PlanBuilder, origin: Origin | None, target: Target | None
) -> tuple[str, str, str]:
    """Return fingerprint, bundle id and engine's name of an origin's pods; "": unknown."""
    if origin is None or isinstance(origin.template, Refused):
        return "", "", ""
    try:
        engine = str(engine_of(origin.template, plan.spec.engine_container)["name"])
        if target is None:
            return identity.fingerprint(origin.template, plan.spec.engine_container), "", engine
        inputs = identity.inputs(origin.template, plan.spec, target)
    except Refused:
        return "", "", ""
    return inputs.fingerprint, inputs.bundle_id(), engine


def update_running_flags(plan: PlanBuilder, pods: Sequence[Consumer]) -> None:
    """Set of each bundle what runs and serves with it, from which the webhook decides holds."""
    running = {pod.bundle for pod in pods if pod.is_running}
    serving: dict[str, set[str]] = {}
    for pod in pods:
        if pod.is_running and pod.is_ready:
            serving.setdefault(pod.bundle, set()).add(pod.workload)
    for bundle in list(plan.bundles.values()):
        # The name is an owner reference's, which the API server does not bound.
        workloads = sorted(
            name for name in serving.get(bundle.id, ()) if 0 < len(name) <= MAX_WORKLOAD
        )
        plan.put(
            replace(
                bundle,
                running=bundle.id in running,
                serving=bundle.id in serving,
                serving_workloads=tuple(workloads[:MAX_SERVING_WORKLOADS]) or None,
            )
        )


def count_consumers(
    plan: PlanBuilder, pods: Sequence[Consumer], starts: ConsumerCounts
) -> ConsumerCounts:
    """Return status.consumers; as it was, while it is younger than COUNTS_INTERVAL_SECONDS.

    starts: the counts that start logs give; the others are counted here.
    """
    now = replace(
        starts,
        seeded=sum(pod.is_seeded for pod in pods),
        cold=sum(
            pod.has_started and not pod.is_seeded and not _is_empty(plan, pod) for pod in pods
        ),
        held=sum(pod.is_held for pod in pods),
        stale=count_stale(plan, pods),
        ready=sum(pod.is_ready for pod in pods),
    )
    before = plan.status.consumers
    if before is None:
        return replace(now, observed_at=plan.timestamp)
    if replace(before, observed_at=None) == now:
        return before
    due = before.observed_at + COUNTS_INTERVAL_SECONDS if before.observed_at is not None else 0.0
    if plan.now < due:
        plan.requeue_at(due)
        return before
    return replace(now, observed_at=plan.timestamp)


def _is_empty(plan: PlanBuilder, pod: Consumer) -> bool:
    bundle = plan.bundles.get(pod.bundle)
    return bundle is not None and bundle.is_empty


def count_stale(plan: PlanBuilder, pods: Sequence[Consumer]) -> int:
    """Return how many pods run with a bundle that was tuned in another image of the same name.

    The tag of that image has moved.
    """
    return sum(_is_stale(plan.bundles.get(pod.given_bundle), pod) for pod in pods)


def _is_stale(bundle: BundleStatus | None, pod: Consumer) -> bool:
    """Whether the pod runs another image than its bundle was tuned in; False if unknown."""
    if bundle is None or not bundle.engine_image or not pod.is_seeded:
        return False
    return digest_of(pod.image_id) not in ("", digest_of(bundle.engine_image))


def digest_of(image: str) -> str:
    """Return the digest in an image's ID, in any runtime's form; "": it has none."""
    return image.rpartition("sha256:")[2]
