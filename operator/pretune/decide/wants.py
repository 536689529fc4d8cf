"""Which bundles should be there: the fingerprints that are wanted, times the targets."""

from __future__ import annotations

from pretune import identity
from pretune.api import Refused
from pretune.decide.draft import Draft, Wanted


def wanted(draft: Draft) -> tuple[Wanted, ...]:
    """In spec.targets' order. Raises Refused when the source, or the engine in it, cannot be told."""
    source = draft.seen.source
    if source is None:
        return ()
    if isinstance(source, Refused):
        raise source
    bundles = []
    for target in draft.spec.targets:
        inputs = identity.inputs(source, draft.spec, target)
        refusal = identity.refusal(source, draft.spec, target, draft.seen.source_claims)
        bundles.append(Wanted(inputs.bundle_id(), inputs, target, source, refusal))
    return tuple(bundles)
