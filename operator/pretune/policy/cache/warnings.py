"""Advice: what a person should change although everything works.

Two lists of small checks, each about one engine or one workload. A check returns one sentence with
the line to change, or None. To add advice, add a line to ENGINE_ADVICE_CHECKS or
WORKLOAD_ADVICE_CHECKS, and its reason to api/advice.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pretune.api import advice
from pretune.api.advice import Advice
from pretune.api.names import CACHE, SEALED
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.status import BundleStatus, StatusWarning
from pretune.api.types import Object
from pretune.kube.types import Event
from pretune.podspec import template
from pretune.podspec.template import engine_of
from pretune.podspec.workloads import has_progress_deadline
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.plan_builder import PlanBuilder

MAX_WARNINGS = 16  # of one cache
MAX_MESSAGE = 1024  # characters of a warning's message
DEFAULT_START_SECONDS = 300  # of a pod's start, where no attempt has shown how long it takes
DEFAULT_PROGRESS_DEADLINE_SECONDS = 600  # of a Deployment or a Rollout that sets none

Finding = tuple[Advice, str]  # reason, message


@dataclass(frozen=True)
class AdvisedEngine:
    """The newest engine, as its author wrote it, and its bundle's status."""

    container: Object
    bundle: BundleStatus | None

    @property
    def title(self) -> str:
        """Return how a message names it."""
        return f"container {self.container['name']}"

    @property
    def cold_seconds(self) -> int:
        """Return how long a cold start took; 0: unknown."""
        if self.bundle is None or self.bundle.state != SEALED:
            return 0
        return self.bundle.tuned_seconds or 0


@dataclass(frozen=True)
class AdvisedWorkload:
    """A Deployment, or what else owns the pods, without its pod template."""

    object: Object
    cache_spec: Spec
    cold_seconds: int  # the longest cold start of the newest engines; 0: unknown

    @property
    def title(self) -> str:
        """Return how a message names it."""
        return f"{self.object.get('kind', 'workload')} {self.object['metadata']['name']}"

    @property
    def spec(self) -> Object:
        return self.object.get("spec") or {}


def collect_warnings(
    plan: PlanBuilder, bundles: tuple[DesiredBundle, ...], stale: int
) -> list[StatusWarning]:
    """Return status.warnings, sorted, and add an event for each that was not there before.

    bundles: the desired ones, the newest engine's first. stale: how many pods run with a bundle of
    another image.
    """
    engines = list(_newest_engines(plan, bundles))
    findings = {
        finding
        for engine in engines
        for check in ENGINE_ADVICE_CHECKS
        if (finding := check(engine)) is not None
    }
    cold_seconds = max((engine.cold_seconds for engine in engines), default=0)
    for obj in _workloads(plan):
        workload = AdvisedWorkload(obj, plan.spec, cold_seconds)
        findings |= {
            finding for check in WORKLOAD_ADVICE_CHECKS if (finding := check(workload)) is not None
        }
    if stale:
        findings.add(_stale_image(stale))
    if plan.release_refused is not None:
        findings.add((advice.RELEASE_REFUSED, plan.release_refused.message))
    warnings = [
        StatusWarning(reason, _truncate(message))
        for reason, message in sorted(findings)[:MAX_WARNINGS]
    ]
    known = {_subject(warning) for warning in plan.status.warnings}
    plan.events += [
        Event(Advice(warning.reason), warning.message, warning=True)
        for warning in warnings
        if _subject(warning) not in known
    ]
    return warnings


def _newest_engines(
    plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]
) -> Iterator[AdvisedEngine]:
    """Yield the newest engine for each target. Older ones are about to go."""
    for desired in bundles:
        if desired.inputs.fingerprint != bundles[0].inputs.fingerprint:
            continue
        try:
            container = engine_of(desired.template, plan.spec.engine_container)
        except Refused:
            continue  # reported elsewhere
        yield AdvisedEngine(container, plan.bundles.get(desired.id))


def _workloads(plan: PlanBuilder) -> list[Object]:
    """Return the workloads of the source and of the consumers, each once."""
    workloads = [origin.workload for origin in plan.observed.origins.values()]
    found = [obj for obj in (plan.observed.source_workload, *workloads) if obj]
    return list({(obj.get("kind"), obj["metadata"]["name"]): obj for obj in found}.values())


def _subject(warning: StatusWarning) -> tuple[str, str]:
    """Return what identifies a warning: a new count, or a new time, does not make another one."""
    return warning.reason, re.sub(r"[0-9]+", "#", warning.message)


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


# --- of an engine


def startup_probe_short(engine: AdvisedEngine) -> Finding | None:
    """Return the advice for a probe that kills a cold start.

    The startup probe, or the liveness probe where there is no startup probe to delay it.
    """
    kinds = ("startupProbe", "livenessProbe")
    kind = next((kind for kind in kinds if engine.container.get(kind)), "")
    probe = engine.container.get(kind) or {}
    delay, period = probe.get("initialDelaySeconds") or 0, probe.get("periodSeconds") or 10
    tries = probe.get("failureThreshold") or 3
    allowed, cold = delay + tries * period, engine.cold_seconds
    if not kind or not cold or allowed >= cold:
        return None
    enough = math.ceil((cold * 1.2 - delay) / period)
    remedy = f"set startupProbe.failureThreshold to at least {enough}"
    if kind == "livenessProbe":
        enough = math.ceil(cold * 1.2 / period)
        remedy = f"add a startupProbe with periodSeconds {period} and failureThreshold {enough}"
    return (
        advice.STARTUP_PROBE_SHORT,
        f"{engine.title}: its {kind} allows {allowed} s (initialDelaySeconds {delay} +"
        f" failureThreshold {tries} × periodSeconds {period}), and a cold start took {cold} s:"
        f" {remedy}",
    )


def moving_tag(engine: AdvisedEngine) -> Finding | None:
    """Return the advice for an image whose tag may move.

    The fingerprint knows the image's name only, so new content would get the old bundle.
    """
    image = str(engine.container.get("image") or "")
    tag = template.moving_tag(image)
    if tag is None:
        return None
    what = f"the tag {tag}, which moves" if tag else "no tag, which means latest"
    tuned_image = (engine.bundle.engine_image if engine.bundle is not None else None) or ""
    line = f"image: {tuned_image}" if "@" in tuned_image else "image: <name>:<version>"
    return (
        advice.MOVING_TAG,
        f"{engine.title}: its image {image} has {what}: new content under that name would get the"
        f" old bundle; name one version, as in `{line}`, or change spec.revision whenever the tag"
        " has moved",
    )


# --- of a workload


def progress_deadline_short(workload: AdvisedWorkload) -> Finding | None:
    """Return the advice for a workload whose deadline is shorter than a hold may be.

    Its rollout would be reported as failed until the pods are released. An Argo Rollout may even
    abort it.
    """
    hold, kind = workload.cache_spec.hold, str(workload.object.get("kind"))
    if not has_progress_deadline(kind) or not _may_be_held(workload):
        return None
    start = max(DEFAULT_START_SECONDS, workload.cold_seconds)
    deadline = workload.spec.get("progressDeadlineSeconds", DEFAULT_PROGRESS_DEADLINE_SECONDS)
    enough = hold.timeout_seconds + start
    if deadline >= enough:
        return None
    return (
        advice.PROGRESS_DEADLINE_SHORT,
        f"{workload.title}: set spec.progressDeadlineSeconds to at least {enough}"
        f" (spec.hold.timeoutSeconds {hold.timeout_seconds} + {start} for its own start; it is"
        f" {deadline} now), or lower spec.hold.timeoutSeconds of the cache{_abort(workload)}",
    )


def _abort(workload: AdvisedWorkload) -> str:
    is_aborted = workload.spec.get("progressDeadlineAbort") is True
    return ": spec.progressDeadlineAbort would end the rollout" if is_aborted else ""


def _may_be_held(workload: AdvisedWorkload) -> bool:
    """Return whether its pods may be held.

    WhenServing holds only while older pods serve, and Recreate leaves none.
    """
    spec, strategy = workload.cache_spec, (workload.spec.get("strategy") or {}).get("type")
    if spec.delivery == "None" or spec.hold.when == "Never":
        return False
    return spec.hold.when == "Always" or strategy != "Recreate"


def label_in_selector(workload: AdvisedWorkload) -> Finding | None:
    """Return the advice for our label in a selector, from which it can never be removed."""
    selector = workload.spec.get("selector") or {}
    expressions = selector.get("matchExpressions") or ()
    if CACHE in (selector.get("matchLabels") or {}):
        field = "matchLabels"
    elif any(expression.get("key") == CACHE for expression in expressions):
        field = "matchExpressions"
    else:
        return None
    return (
        advice.LABEL_IN_SELECTOR,
        f"{workload.title}: spec.selector.{field} has {CACHE}, and can never be changed:"
        " recreate it with the label in spec.template.metadata.labels only, so that its pods can be"
        " moved to another cache, or to none",
    )


def _stale_image(stale: int) -> Finding:
    pods = "1 pod runs" if stale == 1 else f"{stale} pods run"
    return (
        advice.STALE_IMAGE,
        f"{pods} another image than the bundle was tuned with, under the same name: change"
        " spec.revision, so that it is tuned again",
    )


ENGINE_ADVICE_CHECKS: tuple[Callable[[AdvisedEngine], Finding | None], ...] = (
    startup_probe_short,
    moving_tag,
)
WORKLOAD_ADVICE_CHECKS: tuple[Callable[[AdvisedWorkload], Finding | None], ...] = (
    progress_deadline_short,
    label_in_selector,
)
