"""Whatever is in a cache's template, there is a plan, and what it costs is bounded."""

from __future__ import annotations

import copy
import json

import pytest
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.controller import project
from pretune.intake import OBJECT, find_excess
from pretune.podspec import canonical, identity
from pretune.podspec.source import template_of
from pretune.policy.decide import decide
from pretune.policy.model import Create

from tests.builders.caches import bundle_json, cache, claim
from tests.builders.constants import NOW
from tests.builders.hostile_templates import HostileCase
from tests.builders.observed import observed
from tests.depth import GENERATED_PODS

PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_is_in_a_template_it_is_refused_or_there_is_a_plan_of_bounded_size(
    part: int,
) -> None:
    taken = 0
    for number in range(part, GENERATED_PODS, PARTS):
        try:
            taken += plan_for(HostileCase(number).template(), number)
        except Exception as error:
            error.add_note(f"template {number}")
            raise
    assert taken > GENERATED_PODS / PARTS / 20


def plan_for(template: Object, number: int) -> bool:
    """Check the plan for a cache with this template; return whether it was taken."""
    if find_excess(json.dumps(template).encode(), OBJECT):
        return False
    the_cache = cache({"storage": {"claimUID": "claim-uid"}}, engineContainer="vllm")
    the_cache["spec"]["source"] = {"template": template}
    try:
        source: Object | Refused = template_of(the_cache)
    except Refused as refused:
        source = refused
        assert len(refused.message) <= Refused.MAX_MESSAGE
    if not isinstance(source, Refused) and number % 2:  # sealed: there may be advice
        record(the_cache, source)
    before = source if isinstance(source, Refused) else copy.deepcopy(source)
    plan = decide(observed(the_cache, source=source, claim=claim()), NOW)
    assert plan.status is not None and source == before
    assert len(json.dumps(plan.status)) < 64 << 10
    jobs = [action.object for action in plan.actions if isinstance(action, Create)]
    assert len(json.dumps(jobs)) < 4 << 20
    assert all(project.job(job)["metadata"] for job in jobs if job["kind"] == "Job")
    if isinstance(source, Refused):
        return False
    for container in source["spec"]["containers"]:
        values = canonical.environment(container.get("env") or ())
        assert sum(map(len, values.values())) < 2 * canonical.MAX_VALUE_CHARACTERS + (1 << 20)
    return True


def record(the_cache: Object, source: Object) -> None:
    """Have the cache's bundle sealed, after a cold start that took long."""
    spec = Spec.from_cache(the_cache)
    try:
        inputs = identity.inputs(source, spec, spec.targets[0])
    except Refused:
        return
    sealed = bundle_json(inputs.bundle_id(), layout="Managed", tunedSeconds=9000)
    the_cache["status"]["bundles"] = [{**sealed, "fingerprint": inputs.fingerprint}]
