"""Which bundles should be there: the fingerprints of the source and of living consumers, times the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretune.api.reasons import Refused
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.podspec import canonical, identity
from pretune.podspec.preflight import find_refusal
from pretune.podspec.template import engine_of
from pretune.podspec.workloads import find_kind
from pretune.policy.model import Origin
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer
from pretune.protocol import Inputs

FINGERPRINTS = 4  # of one target: more are a sign that something in the engine's env or args is new in each pod


@dataclass(frozen=True)
class DesiredBundle:
    """A bundle that should be there: of one fingerprint and target."""

    id: str
    inputs: Inputs
    target: Target
    template: Object
    refusal: Refused | None  # why this engine cannot be tuned as a copy
    current: bool = True  # of the newest source: Ready speaks of it
    made: str = ""  # when its source's revision was made (RFC 3339); "": spec.source, or unknown
    origin: str = ""  # workloads.origin_key of the consumers that need it; "": none does yet


@dataclass(frozen=True)
class DesiredBundles:
    """What should be there. The newest source's come first: Ready speaks of those."""

    bundles: tuple[DesiredBundle, ...] = ()
    refused: Refused | None = (
        None  # the source, or the engine in it, cannot be told: nothing is started or ended
    )
    churn: str = (
        ""  # TooManyFingerprints' words: more than FINGERPRINTS of one target are asked for
    )


@dataclass(frozen=True)
class _Source:
    """One pod template that asks for bundles."""

    template: Object
    key: str = ""  # of the origin; "" for spec.source
    made: str = ""
    current: bool = False


def desired_bundles(plan: PlanBuilder, pods: Sequence[Consumer]) -> DesiredBundles:
    source = plan.observed.source
    if isinstance(source, Refused):
        return DesiredBundles(refused=source)
    origins, refused = _origins(pods)
    sources = [_Source(source, current=True)] if source is not None else []
    sources += [
        _Source(template, key, origin.order[1], current=not sources and index == 0)
        for index, (key, origin, template) in enumerate(origins)
    ]
    if not sources:
        return DesiredBundles(refused=refused)
    bundles: list[DesiredBundle] = []
    keys = {pod.bundle: pod.origin_key for pod in pods if pod.is_living}
    for target in plan.spec.targets:
        for one in sources:
            try:
                want = _want(plan, one, target, keys)
            except Refused as error:
                if one.current:
                    return DesiredBundles(refused=error)
                continue  # what an older revision's engine is does not matter to the newest
            if all(want.id != other.id for other in bundles):
                bundles.append(want)
    return _capped(plan, bundles, {pod.given_bundle or pod.bundle for pod in pods if pod.is_held})


def _origins(pods: Sequence[Consumer]) -> tuple[list[tuple[str, Origin, Object]], Refused | None]:
    """The living consumers' templates by their keys, the newest first; and why one could not be had."""
    found, refused = {}, None
    for one in pods:
        if not one.is_living or one.origin is None:
            continue
        if isinstance(one.origin.template, Refused):
            refused = one.origin.template
        else:
            found[one.origin_key] = one.origin
    made: dict[str, str] = {}  # of each workload, when its newest revision was made
    for origin in found.values():
        made[_workload(origin)] = max(made.get(_workload(origin), ""), origin.order[1])
    # Revision numbers are one workload's own; a rollback makes an old revision the newest.
    ranked = sorted(
        found.items(),
        key=lambda item: (made[_workload(item[1])], item[1].order, item[0]),
        reverse=True,
    )
    return [
        (key, one, one.template) for key, one in ranked if not isinstance(one.template, Refused)
    ], refused


def _workload(origin: Origin) -> str:
    """Return what workload an origin is a revision of.

    Where the workload above could not be read, all origins of the kind count as one workload's.
    """
    if origin.workload is None:
        row = find_kind(origin.kind)
        return origin.kind if row and row.above else f"{origin.kind}/{origin.name}"
    return f"{origin.workload['kind']}/{origin.workload['metadata']['name']}"


def _want(
    plan: PlanBuilder, source: _Source, target: Target, keys: dict[str, str]
) -> DesiredBundle:
    inputs = identity.inputs(source.template, plan.spec, target)
    refusal = find_refusal(source.template, plan.spec, target, plan.observed.source_claims)
    bundle = inputs.bundle_id()
    key = source.key or keys.get(bundle, "")
    return DesiredBundle(
        bundle, inputs, target, source.template, refusal, source.current, source.made, key
    )


def _capped(
    plan: PlanBuilder, bundles: list[DesiredBundle], waited_for: set[str]
) -> DesiredBundles:
    """Of each target the current one, then what pods wait for, what has a record already, the newest: FINGERPRINTS of them."""
    kept: list[DesiredBundle] = []
    churn = ""
    for target in plan.spec.targets:
        mine = [one for one in bundles if one.target.name == target.name]
        ranked = sorted(
            mine,
            key=lambda one: (
                not one.current,
                one.id not in waited_for,
                one.id not in plan.bundles,
            ),
        )
        kept += [one for one in mine if one in ranked[:FINGERPRINTS]]
        if len(mine) > FINGERPRINTS:
            churn = churn or (
                f"target {target.name}: {len(mine)} different engines ask for tactics, {FINGERPRINTS} get them;"
                f" what differs: {differences([one.template for one in mine], plan.spec.engine_container)}"
            )
    return DesiredBundles(tuple(kept), churn=churn)


def differences(templates: Sequence[Object], engine_container: str) -> str:
    """Where several engines differ: `env POD_ID, args`. Names only, never a value."""
    programs = [canonical.program(engine_of(one, engine_container)) for one in templates]
    parts = [
        f"env {name}"
        for name in sorted({name for one in programs for name in one["env"]})
        if len({one["env"].get(name) for one in programs}) > 1
    ]
    parts += [
        name
        for name in ("image", "command", "args", "envFrom")
        if len({canonical.to_json(one[name]) for one in programs}) > 1
    ]
    return ", ".join(parts) or "GPUs, node terms or init containers"
