"""What hundreds of templates cost: each is looked at once, whatever the number of targets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pretune.api.types import Object
from pretune.podspec import canonical, identity, preflight
from pretune.policy.bundles import desired
from pretune.policy.decide import decide
from pretune.policy.model import Origin

from tests.builders.caches import cache
from tests.builders.constants import KEY, NOW
from tests.builders.observed import observed
from tests.builders.templates import serving_template

PODS, TARGETS = 500, 16


def single_pods(names: list[str]) -> Any:
    """Pods without owners, each with the variable NAME of this value, for a cache of 16 targets."""
    templates = [serving_template(env=[{"name": "NAME", "value": name}]) for name in names]
    consumers: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": KEY.namespace,
                "name": f"p{number}",
                "uid": f"u{number}",
                "creationTimestamp": "2026-09-21T14:13:20Z",
                "labels": {"pretune.dev/cache": KEY.name},
            },
            "spec": template["spec"],
            "status": {"phase": "Running"},
        }
        for number, template in enumerate(templates)
    ]
    origins = {
        f"Pod/p{number}": Origin("Pod", f"p{number}", t) for number, t in enumerate(templates)
    }
    targets = [{"name": f"t{number}", "nodeSelector": {"gpu": str(number)}} for number in range(16)]
    the_cache = cache({"storage": {"claimUID": "claim-uid"}}, source=None, targets=targets)
    return observed(the_cache, consumers=tuple(consumers), origins=origins)


@pytest.mark.parametrize(("different", "templates"), [(False, 1), (True, PODS)])
def test_each_template_is_looked_at_once_whatever_the_number_of_pods_and_targets(
    different: bool, templates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counting(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **more)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setattr(identity, "_known", {})
    counting(canonical, "program")
    counting(canonical, "environment")
    counting(identity, "placement")
    counting(preflight, "command_words")
    plan = decide(single_pods([f"{n if different else 0}" for n in range(PODS)]), NOW)
    assert plan.status is not None
    kept = min(templates, desired.MAX_FINGERPRINTS) * TARGETS
    assert len(plan.status["bundles"]) == kept
    looked_at = min(templates, desired.MAX_TEMPLATES)
    assert calls["program"] <= templates + desired.MAX_COMPARED
    assert calls["environment"] <= templates + desired.MAX_COMPARED + desired.MAX_FINGERPRINTS + 64
    assert calls["placement"] <= PODS + looked_at * TARGETS + kept
    assert calls["command_words"] <= 8 * desired.MAX_FINGERPRINTS + 8 * TARGETS


def test_of_too_many_templates_the_newest_and_those_whose_pods_wait_are_looked_at() -> None:
    seen = single_pods([str(number) for number in range(PODS)])
    oldest = min(seen.origins)  # the last in its order
    held = next(pod for pod in seen.consumers if f"Pod/{pod['metadata']['name']}" == oldest)
    held["spec"]["schedulingGates"] = [{"name": "pretune.dev/hold"}]
    held["status"]["phase"] = "Pending"
    held["spec"]["nodeSelector"] = {"gpu": "3"}
    plan = decide(seen, NOW)
    assert plan.status is not None
    target = identity.target_of(held, seen.spec)
    assert target is not None
    template = seen.origins[oldest].template
    wanted = identity.inputs(template, seen.spec, target).bundle_id()
    assert wanted in [bundle["id"] for bundle in plan.status["bundles"]]


def test_the_fingerprints_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_known", {})
    monkeypatch.setattr(identity, "MAX_KNOWN", 10)
    found = {identity.fingerprint(serving_template(image=f"vllm:{n}"), "") for n in range(50)}
    assert len(found) == 50 and len(identity._known) <= 10
