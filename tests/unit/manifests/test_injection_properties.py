"""docs/dev/invariants.md, 5, over many generated pods (tests/depth.py says how many).

A failure names the pod's number.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pretune.api.names import HOLD
from pretune.api.types import Object
from pretune.manifests.delivery_modes import NONE, Delivery
from pretune.manifests.gate import is_held
from pretune.manifests.injection import find_collision, inject, is_injected, strip
from pretune.podspec import identity
from pretune.podspec.template import required_terms

from tests.builders.patches import patched
from tests.builders.random_pods import RandomCase, add_as_other_webhooks
from tests.builders.strategies import law, templates
from tests.depth import GENERATED_PODS
from tests.unit.manifests.test_injection import DELIVERIES, engine_in, lean, qos, released

PARTS = 20  # tests, so that several processes share the work


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_given_can_be_taken_out_again_and_changes_nothing_else(part: int) -> None:
    for number in range(part, GENERATED_PODS, PARTS):
        pod, delivery, others = random_case(number)
        try:
            check_laws(pod, delivery, others)
        except Exception as error:
            raise AssertionError(f"pod {number}: {error!r}") from error


def random_case(number: int) -> tuple[Object, Delivery, int]:
    """Return a pod, what the webhook decides about it, and a number for other webhooks.

    A pod that ours would collide with is left alone.
    """
    case = RandomCase(number)
    pod, delivery, others = case.pod(), case.delivery(), case.others()
    left_alone = delivery.mode != NONE and find_collision(pod, engine_in(pod)) is not None
    return pod, DELIVERIES[-1] if left_alone else delivery, others


@law(templates())
def test_the_same_of_pods_that_can_be_made_smaller(pod: Object) -> None:
    for delivery in DELIVERIES:
        check_laws(json.loads(json.dumps(pod)), delivery, others=len(pod["spec"]))


def check_laws(pod: Object, delivery: Delivery, others: int) -> None:
    """Check all laws for one pod."""
    text = json.dumps(pod)
    plain = lean(pod)
    patch = inject(pod, delivery)
    assert json.dumps(pod) == text, "the pod was changed"
    check_adds_only(pod, patch)
    injected = patched(pod, json.loads(json.dumps(patch)))

    stripped = strip(injected)
    if pod == plain:
        assert stripped == pod, (
            "strip is the inverse, to the letter where the API server sent the pod"
        )
    assert lean(stripped) == plain, "strip is the inverse"
    assert strip(pod) == pod, "strip of what is not ours"
    assert is_injected(injected) and not is_injected(pod)
    assert (
        inject(injected, delivery) == inject(injected, DELIVERIES[others % len(DELIVERIES)]) == []
    ), "idempotent"

    assert identity.fingerprint(injected, "vllm") == identity.fingerprint(pod, "vllm")
    assert required_terms(injected["spec"]) == required_terms(pod["spec"])
    assert qos(injected) == qos(pod)
    check_unique(pod, injected)

    assert is_held(injected) == (delivery.held and "nodeName" not in pod["spec"])
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]
    released_pod = released(injected)
    assert [gate["name"] for gate in released_pod["spec"].get("schedulingGates") or ()] == gates, (
        "the gates of others stay"
    )
    if delivery.held:
        assert lean(released_pod) == lean(
            patched(pod, [operation for operation in patch if HOLD not in json.dumps(operation)])
        ), "release is all"

    add_as_other_webhooks(injected, others)
    add_as_other_webhooks(pod, others)
    assert lean(strip(injected)) == lean(pod), "what others added stays"


def check_adds_only(pod: Object, patch: list[dict[str, Any]]) -> None:
    """No operation but `add`, and none onto something that is there."""
    for operation in patch:
        assert operation["op"] == "add"
        *above, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"][1:].split("/")
        ]
        holder: Any = pod
        for word in above:
            holder = holder[int(word)] if isinstance(holder, list) else holder[word]
        assert last == "-" if isinstance(holder, list) else holder.get(last) is None, operation[
            "path"
        ]


def check_unique(pod: Object, injected: Object) -> None:
    """What the API server refuses twice is there twice only where it was before."""
    for what in (_volumes, _containers, _mounts):
        before, after = what(pod), what(injected)
        assert len(after) - len(set(after)) == len(before) - len(set(before)), after


def _volumes(pod: Object) -> list[Any]:
    return [volume["name"] for volume in pod["spec"].get("volumes") or ()]


def _containers(pod: Object) -> list[Any]:
    return [
        container["name"]
        for place in ("initContainers", "containers")
        for container in pod["spec"].get(place) or ()
    ]


def _mounts(pod: Object) -> list[Any]:
    return [
        (container["name"], mount["mountPath"])
        for container in pod["spec"]["containers"]
        for mount in container.get("volumeMounts") or ()
    ]


def test_the_laws_are_asked_of_every_kind_of_pod() -> None:
    """The generator's own test: each thing that could be missed is in one of 1,000 pods."""
    pods, deliveries, _ = zip(*(random_case(number) for number in range(1000)), strict=True)
    text = [json.dumps(pod) for pod in pods]
    for thing in (
        "nodeName",
        "schedulingGates",
        "a~b/c",
        "null",
        "valueFrom",
        "restartPolicy",
        "fieldOfTomorrow",
        "shared",
    ):
        assert any(thing in pod_text for pod_text in text), thing
    assert {(delivery.mode, delivery.held) for delivery in deliveries} == {
        ("Overlay", True),
        ("Overlay", False),
        ("ReadOnly", True),
        ("ReadOnly", False),
        ("None", False),
    }
    assert any(lean(pod) != pod for pod in pods), "nulls and empty lists"
    assert any(find_collision(pod, engine_in(pod)) for pod in pods)
    assert any(pod["spec"]["containers"][0]["name"] != "vllm" for pod in pods)
    names = [[variable["name"] for variable in engine_in(pod).get("env") or ()] for pod in pods]
    assert any(len(some) > len(set(some)) for some in names), "a variable twice"
