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
from tests.builders.random_pods import Chance, touched
from tests.builders.strategies import law, templates
from tests.depth import GENERATED_PODS
from tests.unit.manifests.test_injection import DELIVERIES, engine_in, lean, qos, released

PARTS = 20  # tests, so that several processes share the work


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_given_can_be_taken_out_again_and_changes_nothing_else(part: int) -> None:
    for number in range(part, GENERATED_PODS, PARTS):
        pod, delivery, others = arrival(number)
        try:
            holds(pod, delivery, others)
        except Exception as error:
            raise AssertionError(f"pod {number}: {error!r}") from error


def arrival(number: int) -> tuple[Object, Delivery, int]:
    """A pod and what the webhook decides about it: one that ours would collide with is left alone."""
    chance = Chance(number)
    pod, delivery, others = chance.pod(), chance.delivery(), chance.others()
    left_alone = delivery.mode != NONE and find_collision(pod, engine_in(pod)) is not None
    return pod, DELIVERIES[-1] if left_alone else delivery, others


@law(templates())
def test_the_same_of_pods_that_can_be_made_smaller(pod: Object) -> None:
    for delivery in DELIVERIES:
        holds(json.loads(json.dumps(pod)), delivery, others=len(pod["spec"]))


def holds(pod: Object, delivery: Delivery, others: int) -> None:
    """All laws of one pod."""
    text = json.dumps(pod)
    plain = lean(pod)
    patch = inject(pod, delivery)
    assert json.dumps(pod) == text, "the pod was changed"
    adds_only(pod, patch)
    whole = patched(pod, json.loads(json.dumps(patch)))

    stripped = strip(whole)
    if pod == plain:
        assert stripped == pod, (
            "strip is the inverse, to the letter where the API server sent the pod"
        )
    assert lean(stripped) == plain, "strip is the inverse"
    assert strip(pod) == pod, "strip of what is not ours"
    assert is_injected(whole) and not is_injected(pod)
    assert inject(whole, delivery) == inject(whole, DELIVERIES[others % len(DELIVERIES)]) == [], (
        "idempotent"
    )

    assert identity.fingerprint(whole, "vllm") == identity.fingerprint(pod, "vllm")
    assert required_terms(whole["spec"]) == required_terms(pod["spec"])
    assert qos(whole) == qos(pod)
    unique(pod, whole)

    assert is_held(whole) == (delivery.held and "nodeName" not in pod["spec"])
    gates = [one["name"] for one in pod["spec"].get("schedulingGates") or ()]
    let_go = released(whole)
    assert [one["name"] for one in let_go["spec"].get("schedulingGates") or ()] == gates, (
        "the gates of others stay"
    )
    if delivery.held:
        assert lean(let_go) == lean(
            patched(pod, [one for one in patch if HOLD not in json.dumps(one)])
        ), "release is all"

    touched(whole, others)
    touched(pod, others)
    assert lean(strip(whole)) == lean(pod), "what others added stays"


def adds_only(pod: Object, patch: list[dict[str, Any]]) -> None:
    """No operation but `add`, and none onto something that is there."""
    for operation in patch:
        assert operation["op"] == "add"
        *above, last = [
            one.replace("~1", "/").replace("~0", "~") for one in operation["path"][1:].split("/")
        ]
        holder: Any = pod
        for word in above:
            holder = holder[int(word)] if isinstance(holder, list) else holder[word]
        assert last == "-" if isinstance(holder, list) else holder.get(last) is None, operation[
            "path"
        ]


def unique(pod: Object, whole: Object) -> None:
    """What the API server refuses twice is there twice only where it was before."""
    for what in (_volumes, _containers, _mounts):
        before, after = what(pod), what(whole)
        assert len(after) - len(set(after)) == len(before) - len(set(before)), after


def _volumes(pod: Object) -> list[Any]:
    return [one["name"] for one in pod["spec"].get("volumes") or ()]


def _containers(pod: Object) -> list[Any]:
    return [
        one["name"]
        for place in ("initContainers", "containers")
        for one in pod["spec"].get(place) or ()
    ]


def _mounts(pod: Object) -> list[Any]:
    return [
        (one["name"], mount["mountPath"])
        for one in pod["spec"]["containers"]
        for mount in one.get("volumeMounts") or ()
    ]


def test_the_laws_are_asked_of_every_kind_of_pod() -> None:
    """The generator's own test: each thing that could be overlooked is in some of the first thousand pods."""
    pods, deliveries, _ = zip(*(arrival(number) for number in range(1000)), strict=True)
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
        assert any(thing in one for one in text), thing
    assert {(one.mode, one.held) for one in deliveries} == {
        ("Overlay", True),
        ("Overlay", False),
        ("ReadOnly", True),
        ("ReadOnly", False),
        ("None", False),
    }
    assert any(lean(pod) != pod for pod in pods), "nulls and empty lists"
    assert any(find_collision(pod, engine_in(pod)) for pod in pods)
    assert any(pod["spec"]["containers"][0]["name"] != "vllm" for pod in pods)
    names = [[one["name"] for one in engine_in(pod).get("env") or ()] for pod in pods]
    assert any(len(some) > len(set(some)) for some in names), "a variable twice"
