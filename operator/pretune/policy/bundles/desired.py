"""Which bundles should be there: for each target, of the source and of living consumers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pretune.api import reasons
from pretune.api.reasons import Refused
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.podspec import canonical, identity
from pretune.podspec.preflight import find_refusals
from pretune.podspec.template import engine_of
from pretune.policy.model import Origin
from pretune.policy.plan_builder import PlanBuilder
from pretune.policy.pods.consumers import Consumer
from pretune.protocol import Inputs

# Engines of one target that get a bundle: more are a sign that something in env or args is another
# one in each pod.
MAX_FINGERPRINTS = 4
# Different templates that are looked at: those whose pods wait, and the newest.
MAX_TEMPLATES = 64
MAX_COMPARED = 16  # engines that a message compares


@dataclass(frozen=True)
class DesiredBundle:
    """A bundle that should be there: of one fingerprint and target."""

    id: str
    inputs: Inputs
    target: Target
    template: Object
    refusal: Refused | None = None  # why this engine cannot be tuned as a copy
    is_current: bool = True  # of the newest source: Ready is about it
    created_at: str = ""  # its source's revision (RFC 3339); "": of spec.source, or unknown
    origin_key: str = ""  # of the consumers that need it; "": none does yet


@dataclass(frozen=True)
class DesiredBundles:
    """What should be there, the newest source's first."""

    bundles: tuple[DesiredBundle, ...] = ()
    # Why the source, or the engine in it, is unknown: nothing is started or ended.
    refused: Refused | None = None
    # The message of TooManyFingerprints: there are more than MAX_FINGERPRINTS for one target.
    churn: str = ""


@dataclass(frozen=True)
class _Source:
    """One pod template that needs bundles."""

    template: Object
    fingerprint: str | Refused
    origin_key: str = ""  # "": of spec.source
    created_at: str = ""

    def fits(self, target: Target) -> bool:
        """Whether pods of the template may run on the target's nodes.

        The template of spec.source is for every target: its own terms give way.
        """
        return not self.origin_key or identity.may_run_on(self.template["spec"], target)


def find_desired_bundles(plan: PlanBuilder, pods: Sequence[Consumer]) -> DesiredBundles:
    """Return which bundles should be there, or why that is unknown."""
    source = plan.observed.source
    if isinstance(source, Refused):
        return DesiredBundles(refused=source)
    origins, refused = _rank_origins(pods)
    waiting = [pod for pod in pods if pod.is_held]
    sources = [_Source(source, _find_fingerprint(plan, source))] if source is not None else []
    sources += _list_distinct(plan, origins, {pod.origin_key for pod in waiting})
    if not sources:
        return DesiredBundles(refused=refused)
    found: dict[str, DesiredBundle] = {}
    origin_keys = {pod.bundle: pod.origin_key for pod in pods if pod.is_living}
    for target in plan.spec.targets:
        fitting = [each for each in sources if each.fits(target)]
        for each in fitting:
            is_current = each is fitting[0]
            try:
                desired = _find_desired(plan, each, target, origin_keys, is_current)
            except Refused as error:
                if is_current:
                    return DesiredBundles(refused=error)
                continue  # an older revision's engine does not matter to the newest
            found.setdefault(desired.id, desired)
    if not found:
        names = ", ".join(target.name for target in plan.spec.targets)
        return DesiredBundles(
            refused=Refused(
                reasons.SOURCE_INVALID,
                "the pods' nodeSelector and node affinity exclude the nodes of every target"
                f" ({names}): correct spec.targets[].nodeSelector",
            )
        )
    waited_for = {pod.given_bundle or pod.bundle for pod in waiting}
    desired_bundles = _limit(plan, list(found.values()), waited_for)
    return replace(desired_bundles, bundles=tuple(_check(plan, desired_bundles.bundles)))


def _rank_origins(
    pods: Sequence[Consumer],
) -> tuple[list[tuple[str, Origin, Object]], Refused | None]:
    """Return the living consumers' origins by key, with their templates, the newest first.

    And why a template could not be read, where one could not.
    """
    found, refused = {}, None
    for pod in pods:
        if not pod.is_living or pod.origin is None:
            continue
        if isinstance(pod.origin.template, Refused):
            refused = pod.origin.template
        else:
            found[pod.origin_key] = pod.origin
    newest: dict[str, str] = {}  # of each workload, when its newest revision was created
    for origin in found.values():
        name = origin.workload_name
        newest[name] = max(newest.get(name, ""), origin.order[1])
    # Revision numbers are one workload's own; a rollback makes an old revision the newest.
    ranked = sorted(
        found.items(),
        key=lambda item: (newest[item[1].workload_name], item[1].order, item[0]),
        reverse=True,
    )
    return [
        (key, origin, origin.template)
        for key, origin in ranked
        if not isinstance(origin.template, Refused)
    ], refused


def _find_desired(
    plan: PlanBuilder,
    source: _Source,
    target: Target,
    origin_keys: Mapping[str, str],
    is_current: bool,
) -> DesiredBundle:
    """Return the bundle of a source and a target. Raises Refused where the engine is unknown."""
    if isinstance(source.fingerprint, Refused):
        raise source.fingerprint
    inputs = identity.inputs_of(source.fingerprint, source.template, plan.spec, target)
    bundle_id = inputs.bundle_id()
    return DesiredBundle(
        id=bundle_id,
        inputs=inputs,
        target=target,
        template=source.template,
        is_current=is_current,
        created_at=source.created_at,
        origin_key=source.origin_key or origin_keys.get(bundle_id, ""),
    )


def _find_fingerprint(plan: PlanBuilder, template: Object) -> str | Refused:
    try:
        return identity.fingerprint(template, plan.spec.engine_container)
    except Refused as refused:
        return refused


def _list_distinct(
    plan: PlanBuilder, origins: Sequence[tuple[str, Origin, Object]], waiting: Collection[str]
) -> list[_Source]:
    """Return the origins' templates, each once: with the same bundles, only the newest.

    Of many, MAX_TEMPLATES: hundreds of single pods may all be different. waiting: the keys of the
    origins whose pods are held.
    """
    distinct: dict[str, _Source] = {}
    preferred: set[str] = set()
    for key, origin, template in origins:
        found = _find_fingerprint(plan, template)
        name = found if isinstance(found, str) else f"{found.reason}: {found.message}"
        same = canonical.to_json([name, identity.placement(template, _ANYWHERE)])
        distinct.setdefault(same, _Source(template, found, key, origin.order[1]))
        if key in waiting:
            preferred.add(same)
    ranked = sorted(distinct, key=lambda same: same not in preferred)[:MAX_TEMPLATES]
    kept = {next(iter(distinct), ""), *ranked}
    return [source for same, source in distinct.items() if same in kept]


_ANYWHERE = Target()


def _check(plan: PlanBuilder, bundles: Sequence[DesiredBundle]) -> Iterator[DesiredBundle]:
    """Yield the bundles with the reason why their engines cannot be tuned as a copy."""
    by_template: dict[int, list[DesiredBundle]] = {}
    for each in bundles:
        by_template.setdefault(id(each.template), []).append(each)
    refusals: dict[str, Refused | None] = {}
    for same in by_template.values():
        targets = [each.target for each in same]
        found = find_refusals(
            same[0].template,
            plan.spec,
            targets,
            plan.observed.source_claims,
            plan.observed.device_claims,
        )
        refusals |= {each.id: refusal for each, refusal in zip(same, found, strict=True)}
    for each in bundles:
        yield replace(each, refusal=refusals[each.id])


def _limit(
    plan: PlanBuilder, bundles: list[DesiredBundle], waited_for: Collection[str]
) -> DesiredBundles:
    """Return at most MAX_FINGERPRINTS bundles of each target.

    First the current one, then those that pods wait for, those that have a status already, and the
    newest.
    """
    kept: list[DesiredBundle] = []
    churn = ""
    known = {each.id for each in plan.bundles.values() if not each.is_only_marked}
    for target in plan.spec.targets:
        of_target = [each for each in bundles if each.target.name == target.name]
        ranked = sorted(
            of_target,
            key=lambda each: (
                not each.is_current,
                each.id not in waited_for,
                each.id not in known,
            ),
        )
        given = {each.id for each in ranked[:MAX_FINGERPRINTS]}
        kept += [each for each in of_target if each.id in given]
        if len(of_target) > MAX_FINGERPRINTS and not churn:
            templates = [each.template for each in of_target[:MAX_COMPARED]]
            churn = (
                f"target {target.name}: {len(of_target)} different engines ask for tactics,"
                f" {MAX_FINGERPRINTS} get them; what differs:"
                f" {describe_differences(templates, plan.spec.engine_container)}"
            )
    return DesiredBundles(tuple(kept), churn=churn)


def describe_differences(templates: Sequence[Object], engine_container: str) -> str:
    """Return where several engines differ, `env POD_ID, args`: names only, never a value."""
    engines = [engine_of(template, engine_container) for template in templates]
    programs = [canonical.program(engine) for engine in engines]
    names = sorted({name for program in programs for name in program["env"]})
    parts = [
        f"env {name}"
        for name in names
        if len({program["env"].get(name) for program in programs}) > 1
    ]
    parts += [
        field
        for field in ("image", "command", "args", "envFrom")
        if len({canonical.to_json(program[field]) for program in programs}) > 1
    ]
    return ", ".join(parts) or "GPUs, node terms or init containers"
