"""What a person should change though everything works: a list of small checks, each about one engine or one workload.

A check says one sentence with the line to change, or nothing. Adding advice is adding a line to ENGINE_CHECKS or WORKLOAD_CHECKS, and
its reason to api/advice.py.
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
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.plan_builder import PlanBuilder

MOST = 16  # warnings of one cache
LONGEST = 1024  # characters of one
START = 300  # seconds that a pod may take to start, where no attempt has shown how long it takes
DEADLINE = 600  # progressDeadlineSeconds of a Deployment that sets none

Said = tuple[Advice, str]  # reason, message


@dataclass(frozen=True)
class Engine:
    """The newest engine, as its author wrote it, and what is known of its bundle."""

    container: Object
    bundle: BundleStatus | None

    @property
    def name(self) -> str:
        return f"container {self.container['name']}"

    @property
    def cold(self) -> int:
        """Seconds that a cold start took; 0: unknown."""
        if self.bundle is None or self.bundle.state != SEALED:
            return 0
        return self.bundle.tuned_seconds or 0


@dataclass(frozen=True)
class Workload:
    """A Deployment, or whatever else the pods are of (without its pod template), and the newest engine's longest cold start."""

    object: Object
    spec: Spec
    cold: int

    @property
    def name(self) -> str:
        return f"{self.object.get('kind', 'workload')} {self.object['metadata']['name']}"

    @property
    def own(self) -> Object:
        return self.object.get("spec") or {}


def collect_warnings(
    plan: PlanBuilder, bundles: tuple[DesiredBundle, ...], stale: int
) -> list[StatusWarning]:
    """Return status.warnings, sorted, and add an event for each that was not there before.

    bundles: those wanted, the newest engine's first. stale: pods that run with a bundle of another
    image.
    """
    engines = list(_engines(plan, bundles))
    cold = max((engine.cold for engine in engines), default=0)
    said = {found for engine in engines for check in ENGINE_CHECKS if (found := check(engine))}
    for obj in _workloads(plan):
        workload = Workload(obj, plan.spec, cold)
        said |= {found for check in WORKLOAD_CHECKS if (found := check(workload))}
    if stale:
        said.add(stale_image(stale))
    warnings = [StatusWarning(reason, _cut(message)) for reason, message in sorted(said)][:MOST]
    known = {_subject(warning) for warning in plan.status.warnings}
    plan.events += [
        Event(Advice(warning.reason), warning.message, warning=True)
        for warning in warnings
        if _subject(warning) not in known
    ]
    return warnings


def _engines(plan: PlanBuilder, bundles: tuple[DesiredBundle, ...]) -> Iterator[Engine]:
    """Of each target. Older engines are about to go: nobody changes them any more."""
    for want in bundles:
        if want.inputs.fingerprint != bundles[0].inputs.fingerprint:
            continue
        try:
            container = engine_of(want.template, plan.spec.engine_container)
        except Refused:
            continue  # said elsewhere
        yield Engine(container, plan.bundles.get(want.id))


def _workloads(plan: PlanBuilder) -> list[Object]:
    """The source's and the consumers', each once."""
    found = [
        plan.observed.source_workload,
        *(one.workload for one in plan.observed.origins.values()),
    ]
    return list({(one.get("kind"), one["metadata"]["name"]): one for one in found if one}.values())


def _subject(warning: StatusWarning) -> tuple[str, str]:
    """By which one warning is told from another: a new count, or a new length of time, is no news."""
    return warning.reason, re.sub(r"[0-9]+", "#", warning.message)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


# --- of an engine


def startup_probe_short(engine: Engine) -> Said | None:
    """The kubelet would kill a cold start: by the startup probe, or by the liveness probe where nothing holds it back."""
    kind = next((one for one in ("startupProbe", "livenessProbe") if engine.container.get(one)), "")
    probe = engine.container.get(kind) or {}
    delay, period = probe.get("initialDelaySeconds") or 0, probe.get("periodSeconds") or 10
    tries = probe.get("failureThreshold") or 3
    budget = delay + tries * period
    if not kind or not engine.cold or budget >= engine.cold:
        return None
    enough = math.ceil((engine.cold * 1.2 - delay) / period)
    remedy = f"set startupProbe.failureThreshold to at least {enough}"
    if kind == "livenessProbe":
        remedy = f"add a startupProbe with periodSeconds {period} and failureThreshold {math.ceil(engine.cold * 1.2 / period)}"
    return (
        advice.STARTUP_PROBE_SHORT,
        f"{engine.name}: its {kind} allows {budget} s (initialDelaySeconds {delay} + failureThreshold {tries} × periodSeconds"
        f" {period}), and a cold start took {engine.cold} s: {remedy}",
    )


def moving_tag(engine: Engine) -> Said | None:
    """Another content under the same name would get this one's bundle: the name is all that the fingerprint knows."""
    image = str(engine.container.get("image") or "")
    tag = template.moving_tag(image)
    if tag is None:
        return None
    what = f"the tag {tag}, which moves" if tag else "no tag, which means latest"
    ran = (engine.bundle.engine_image if engine.bundle is not None else None) or ""
    remedy = f"image: {ran}" if "@" in ran else "image: <name>:<version>"
    return (
        advice.MOVING_TAG,
        f"{engine.name}: its image {image} has {what}: other content of that name would get the old bundle; name one version, as in"
        f" `{remedy}`, or change spec.revision whenever the tag has moved",
    )


# --- of a workload


def progress_deadline_short(workload: Workload) -> Said | None:
    """A rollout that waits for its bundle longer than the Deployment has patience is told as failed, until it goes on."""
    spec = workload.spec
    if workload.object.get("kind") != "Deployment" or not _may_be_held(workload):
        return None
    start = max(START, workload.cold)
    deadline, enough = (
        workload.own.get("progressDeadlineSeconds", DEADLINE),
        spec.hold.timeout_seconds + start,
    )
    if deadline >= enough:
        return None
    return (
        advice.PROGRESS_DEADLINE_SHORT,
        f"{workload.name}: set spec.progressDeadlineSeconds to at least {enough} (spec.hold.timeoutSeconds {spec.hold.timeout_seconds} +"
        f" {start} for its own start; it is {deadline} now), or lower spec.hold.timeoutSeconds of the cache",
    )


def _may_be_held(workload: Workload) -> bool:
    """WhenServing waits only beside pods that serve, of which Recreate leaves none."""
    spec, strategy = workload.spec, (workload.own.get("strategy") or {}).get("type")
    if spec.delivery == "None" or spec.hold.when == "Never":
        return False
    return spec.hold.when == "Always" or strategy != "Recreate"


def label_in_selector(workload: Workload) -> Said | None:
    """A selector cannot be changed: the label could never be taken off again."""
    selector = workload.own.get("selector") or {}
    field = "matchLabels" if CACHE in (selector.get("matchLabels") or {}) else ""
    if any(one.get("key") == CACHE for one in selector.get("matchExpressions") or ()):
        field = field or "matchExpressions"
    if not field:
        return None
    return (
        advice.LABEL_IN_SELECTOR,
        f"{workload.name}: spec.selector.{field} has {CACHE}, and can never be changed: make it anew with the label in"
        " spec.template.metadata.labels only, so that the pods can be given to another cache, or to none",
    )


def stale_image(stale: int) -> Said:
    pods = "1 pod runs" if stale == 1 else f"{stale} pods run"
    return (
        advice.STALE_IMAGE,
        f"{pods} another image than the bundle was tuned with, under the same name: change spec.revision, so that it is tuned again",
    )


ENGINE_CHECKS: tuple[Callable[[Engine], Said | None], ...] = (startup_probe_short, moving_tag)
WORKLOAD_CHECKS: tuple[Callable[[Workload], Said | None], ...] = (
    progress_deadline_short,
    label_in_selector,
)
