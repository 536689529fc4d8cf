"""Which bundles should be there: the fingerprints of the source and of living consumers, times the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretune import canonical, identity
from pretune.api import Object, Refused, Target
from pretune.decide.consumers import Consumer
from pretune.decide.draft import Draft, Wanted
from pretune.template import engine_of

FINGERPRINTS = 4  # of one target: more are a sign that something in the engine's env or args is new in each pod


@dataclass(frozen=True)
class Wants:
    """What should be there. The newest source's come first: Ready speaks of those."""

    bundles: tuple[Wanted, ...] = ()
    refused: Refused | None = None  # the source, or the engine in it, cannot be told: nothing is started or ended
    churn: str = ""  # TooManyFingerprints' words: more than FINGERPRINTS of one target are asked for


@dataclass(frozen=True)
class _Source:
    """One pod template that asks for bundles."""

    template: Object
    key: str  # of the origin; "" for spec.source
    current: bool


def wants(draft: Draft, pods: Sequence[Consumer]) -> Wants:
    source = draft.seen.source
    if isinstance(source, Refused):
        return Wants(refused=source)
    origins, refused = _origins(pods)
    sources = [_Source(source, "", True)] if source is not None else []
    sources += [_Source(one, key, not sources and index == 0) for index, (key, one) in enumerate(origins)]
    if not sources:
        return Wants(refused=refused)
    bundles: list[Wanted] = []
    for target in draft.spec.targets:
        for one in sources:
            try:
                want = _want(draft, one, target, {pod.bundle: pod.key for pod in pods if pod.living})
            except Refused as error:
                if one.current:
                    return Wants(refused=error)
                continue  # what an older revision's engine is does not matter to the newest
            if all(want.id != other.id for other in bundles):
                bundles.append(want)
    return _capped(draft, bundles)


def _origins(pods: Sequence[Consumer]) -> tuple[list[tuple[str, Object]], Refused | None]:
    """The living consumers' templates by their keys, the newest first; and why one could not be had."""
    found, refused = {}, None
    for one in pods:
        if not one.living or one.origin is None:
            continue
        if isinstance(one.origin.template, Refused):
            refused = one.origin.template
        else:
            found[one.key] = one.origin
    ranked = sorted(found.items(), key=lambda item: (item[1].order, item[0]), reverse=True)
    return [(key, origin.template) for key, origin in ranked if not isinstance(origin.template, Refused)], refused


def _want(draft: Draft, source: _Source, target: Target, keys: dict[str, str]) -> Wanted:
    inputs = identity.inputs(source.template, draft.spec, target)
    refusal = identity.refusal(source.template, draft.spec, target, draft.seen.source_claims)
    bundle = inputs.bundle_id()
    return Wanted(bundle, inputs, target, source.template, refusal, source.current, source.key or keys.get(bundle, ""))


def _capped(draft: Draft, bundles: list[Wanted]) -> Wants:
    """Of each target the current one, then those that have a bundle already, then the newest: FINGERPRINTS of them."""
    kept: list[Wanted] = []
    churn = ""
    for target in draft.spec.targets:
        mine = [one for one in bundles if one.target.name == target.name]
        ranked = sorted(mine, key=lambda one: (not one.current, one.id not in draft.bundles))
        kept += [one for one in mine if one in ranked[:FINGERPRINTS]]
        if len(mine) > FINGERPRINTS:
            churn = churn or (
                f"target {target.name}: {len(mine)} different engines ask for tactics, {FINGERPRINTS} get them;"
                f" what differs: {differences([one.template for one in mine], draft.spec.engine_container)}"
            )
    return Wants(tuple(kept), churn=churn)


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
        if len({canonical.text(one[name]) for one in programs}) > 1
    ]
    return ", ".join(parts) or "GPUs, node terms or init containers"
