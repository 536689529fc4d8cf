"""Advice: when there is some, when not, and that it names the line to change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.advice import ADVICE
from pretune.api.names import CACHE
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.podspec import identity
from pretune.policy.bundles.desired import DesiredBundle
from pretune.policy.cache.warnings import MAX_MESSAGE, MAX_WARNINGS, collect_warnings
from pretune.policy.model import Origin
from pretune.policy.plan_builder import PlanBuilder

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import NOW
from tests.builders.observed import observed
from tests.builders.templates import serving_template

DIGEST = f"registry/vllm@sha256:{'0' * 64}"


def deployment(name: str = "qwen3", kind: str = "Deployment", **spec: Any) -> Object:
    own = {"selector": {"matchLabels": {"app": "qwen3"}}, "progressDeadlineSeconds": 7200, **spec}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": own}


def plan_of(
    engine: Object | None = None,
    workload: Object | None = None,
    tuned: int | None = None,
    warnings: list[Object] | None = None,
    origins: dict[str, Origin] | None = None,
    more: Object | None = None,
    **spec: Any,
) -> tuple[PlanBuilder, tuple[DesiredBundle, ...]]:
    """Return the plan of a cache with one sealed bundle, and the bundle.

    engine: fields over those of the usual container. tuned: seconds that its tuning took.
    """
    the_template = serving_template(**(engine or {}))
    the_cache = cache({"warnings": warnings or []}, **spec)
    target = Spec.from_cache(the_cache).targets[0]
    inputs = identity.inputs(the_template, Spec.from_cache(the_cache), target)
    want = DesiredBundle(inputs.bundle_id(), inputs, target, the_template, None)
    bundle = bundle_json(
        want.id, **({"tunedSeconds": tuned} if tuned is not None else {}), **(more or {})
    )
    the_cache["status"]["bundles"] = [bundle]
    return PlanBuilder(observed(the_cache, source_workload=workload, origins=origins or {}), NOW), (
        want,
    )


def findings_of(stale: int = 0, **case: Any) -> list[tuple[str, str]]:
    plan, bundles = plan_of(**case)
    return [(warning.reason, warning.message) for warning in collect_warnings(plan, bundles, stale)]


def reasons_of(**case: Any) -> list[str]:
    return [reason for reason, _ in findings_of(**case)]


def test_there_is_no_advice_where_all_is_well() -> None:
    assert (
        findings_of(
            workload=deployment(), tuned=900, engine={"startupProbe": {"failureThreshold": 120}}
        )
        == []
    )


# --- progressDeadlineSeconds


@pytest.mark.parametrize(
    ("case", "workload", "spec", "expected"),
    [
        ("the default of both", deployment(progressDeadlineSeconds=600), {}, True),
        ("it sets none", {**deployment(), "spec": {}}, {}, True),
        ("long enough", deployment(progressDeadlineSeconds=3900), {}, False),
        ("no time left to start in", deployment(progressDeadlineSeconds=3899), {}, True),
        (
            "a short hold",
            deployment(progressDeadlineSeconds=600),
            {"hold": {"timeoutSeconds": 300}},
            False,
        ),
        (
            "no pod is held",
            deployment(progressDeadlineSeconds=600),
            {"hold": {"when": "Never"}},
            False,
        ),
        (
            "nothing is delivered",
            deployment(progressDeadlineSeconds=600),
            {"delivery": {"mode": "None"}},
            False,
        ),
        (
            "nothing serves meanwhile",
            deployment(progressDeadlineSeconds=600, strategy={"type": "Recreate"}),
            {},
            False,
        ),
        (
            "held all the same",
            deployment(progressDeadlineSeconds=600, strategy={"type": "Recreate"}),
            {"hold": {"when": "Always"}},
            True,
        ),
        (
            "a Rollout",
            deployment(kind="Rollout", progressDeadlineSeconds=600, strategy={"canary": {}}),
            {},
            True,
        ),
        ("a Rollout that sets none", {**deployment(kind="Rollout"), "spec": {}}, {}, True),
        ("a kind without it", deployment(kind="StatefulSet", progressDeadlineSeconds=1), {}, False),
        ("no workload", None, {}, False),
    ],
)
def test_a_deadline_shorter_than_a_hold_is_reported(
    case: str, workload: Object | None, spec: Object, expected: bool
) -> None:
    assert reasons_of(workload=workload, **spec) == ["ProgressDeadlineShort"] * expected, case


def test_the_message_names_the_deadline_and_its_sum() -> None:
    [(_, message)] = findings_of(workload=deployment(progressDeadlineSeconds=600))
    assert message == (
        "Deployment qwen3: set spec.progressDeadlineSeconds to at least 3900 (spec.hold.timeoutSeconds 3600 + 300 for its own start;"
        " it is 600 now), or lower spec.hold.timeoutSeconds of the cache"
    )
    [(_, message)] = findings_of(workload=deployment(progressDeadlineSeconds=600), tuned=912)
    assert "at least 4512 (spec.hold.timeoutSeconds 3600 + 912" in message


def test_a_rollout_that_would_be_aborted_is_said_to_be() -> None:
    workload = deployment(kind="Rollout", progressDeadlineSeconds=600, progressDeadlineAbort=True)
    [(_, message)] = findings_of(workload=workload)
    assert message.startswith("Rollout qwen3: set spec.progressDeadlineSeconds to at least 3900")
    assert message.endswith(": spec.progressDeadlineAbort would end the rollout")


def test_workloads_of_consumers_are_checked_once_each() -> None:
    short = deployment("other", progressDeadlineSeconds=600)
    origins = {
        f"ReplicaSet/{name}": Origin("ReplicaSet", name, serving_template(), workload=short)
        for name in ("a", "b")
    }
    [(_, message)] = findings_of(origins=origins, workload=deployment())
    assert message.startswith("Deployment other: ")


# --- probes


@pytest.mark.parametrize(
    ("case", "engine", "tuned", "expected"),
    [
        ("too short", {"startupProbe": {"failureThreshold": 30, "periodSeconds": 10}}, 301, True),
        (
            "just enough",
            {"startupProbe": {"failureThreshold": 30, "periodSeconds": 10}},
            300,
            False,
        ),
        (
            "its delay counts",
            {"startupProbe": {"initialDelaySeconds": 60, "failureThreshold": 30}},
            360,
            False,
        ),
        ("the API's defaults", {"startupProbe": {"httpGet": {}}}, 31, True),
        ("liveness alone", {"livenessProbe": {"failureThreshold": 3}}, 300, True),
        (
            "held back by startup",
            {"livenessProbe": {"failureThreshold": 3}, "startupProbe": {"failureThreshold": 99}},
            300,
            False,
        ),
        ("readiness kills no pod", {"readinessProbe": {"failureThreshold": 3}}, 300, False),
        ("no start was observed yet", {"startupProbe": {"failureThreshold": 1}}, None, False),
        ("no probe", {}, 300, False),
    ],
)
def test_a_probe_that_would_kill_a_cold_start_is_reported(
    case: str, engine: Object, tuned: int | None, expected: bool
) -> None:
    assert reasons_of(engine=engine, tuned=tuned) == ["StartupProbeShort"] * expected, case


def test_the_time_of_a_bundle_that_is_not_sealed_does_not_count() -> None:
    engine = {"startupProbe": {"failureThreshold": 1}}
    assert reasons_of(engine=engine, tuned=900, more={"state": "Tuning"}) == []


@given(
    st.integers(0, 600),
    st.integers(1, 60),
    st.integers(1, 30),
    st.integers(1, 5000),
    st.sampled_from(["startupProbe", "livenessProbe"]),
)
def test_a_probe_that_follows_the_advice_gets_no_advice(
    delay: int, period: int, tries: int, tuned: int, kind: str
) -> None:
    probe = {"initialDelaySeconds": delay, "periodSeconds": period, "failureThreshold": tries}
    found = findings_of(engine={kind: probe}, tuned=tuned)
    if not found:
        assert delay + tries * period >= tuned
        return
    enough = int(found[0][1].replace("to at least ", "").rpartition("failureThreshold ")[2])
    better = {"periodSeconds": period, "failureThreshold": enough}
    assert (
        findings_of(
            engine={
                kind: probe,
                "startupProbe": {**(probe if kind == "startupProbe" else {}), **better},
            },
            tuned=tuned,
        )
        == []
    )


# --- tags


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("vllm/vllm-openai", True),
        ("registry:5000/vllm", True),
        ("vllm/vllm-openai:latest", True),
        ("vllm/vllm-openai:latest-cu130", True),
        ("vllm/vllm-openai:nightly", True),
        ("vllm/vllm-openai:Main", True),
        ("vllm/vllm-openai:nightly-" + "3f9c2a7b" * 5, False),
        ("vllm/vllm-openai:nightly-20261122", False),
        ("vllm/vllm-openai:v0.33.0", False),
        ("vllm/vllm-openai:v0.33.0-latest", False),
        ("registry:5000/vllm:1", False),
        (DIGEST, False),
        (f"vllm/vllm-openai:latest@sha256:{'0' * 64}", False),
    ],
)
def test_a_tag_that_moves_is_reported(image: str, expected: bool) -> None:
    assert reasons_of(engine={"image": image}) == ["MovingTag"] * expected


def test_the_image_as_it_ran_is_the_line_to_write() -> None:
    [(_, message)] = findings_of(engine={"image": "vllm"}, more={"engineImage": DIGEST})
    assert f"`image: {DIGEST}`" in message
    assert "has no tag, which means latest" in message
    [(_, message)] = findings_of(engine={"image": "vllm:latest"})
    assert "`image: <name>:<version>`" in message


def test_advice_is_about_the_newest_engine_only() -> None:
    plan, newest = plan_of(engine={"image": "vllm:2"})
    _, older = plan_of(engine={"image": "vllm:latest"})
    assert collect_warnings(plan, (*newest, *older), 0) == []
    assert collect_warnings(plan, (*older, *newest), 0) != []


def test_an_ambiguous_engine_gets_no_advice() -> None:
    plan, (want,) = plan_of()
    two = {
        "metadata": {},
        "spec": {
            "containers": [
                *serving_template()["spec"]["containers"],
                {**serving_template()["spec"]["containers"][0], "name": "b"},
            ]
        },
    }
    assert (
        collect_warnings(
            plan,
            (
                DesiredBundle(
                    want.id, want.inputs, want.target, two, Refused("EngineAmbiguous", "")
                ),
            ),
            0,
        )
        == []
    )


# --- selectors


@pytest.mark.parametrize(
    ("selector", "field"),
    [
        ({"matchLabels": {CACHE: "qwen3"}}, "matchLabels"),
        ({"matchExpressions": [{"key": CACHE, "operator": "Exists"}]}, "matchExpressions"),
        (
            {
                "matchLabels": {"app": "qwen3"},
                "matchExpressions": [{"key": "a", "operator": "Exists"}],
            },
            "",
        ),
        ({}, ""),
    ],
)
def test_our_label_in_a_selector_is_reported_with_its_field(selector: Object, field: str) -> None:
    found = findings_of(workload=deployment(selector=selector, kind="StatefulSet"))
    assert [reason for reason, _ in found] == ["LabelInSelector"] * bool(field)
    assert all(
        f"StatefulSet qwen3: spec.selector.{field} has {CACHE}" in message for _, message in found
    )


# --- images


def test_pods_of_another_image_are_counted() -> None:
    [(reason, message)] = findings_of(stale=3)
    assert reason == "StaleImage"
    assert message.startswith("3 pods run another image")
    assert "change spec.revision" in message


# --- all together


def test_a_warning_is_an_event_when_it_is_new_and_not_when_its_numbers_change() -> None:
    case: Any = {"engine": {"image": "vllm", "startupProbe": {"failureThreshold": 1}}}
    plan, bundles = plan_of(**case, tuned=900)
    first = collect_warnings(plan, bundles, 2)
    assert [(event.reason, event.message, event.warning) for event in plan.events] == [
        (warning.reason, warning.message, True) for warning in first
    ]
    assert [warning.reason for warning in first] == ["MovingTag", "StaleImage", "StartupProbeShort"]
    plan, bundles = plan_of(**case, tuned=912, warnings=[warning.to_dict() for warning in first])
    second = collect_warnings(plan, bundles, 3)
    assert second != first
    assert plan.events == []


def test_number_and_length_of_warnings_are_limited() -> None:
    origins = {
        f"ReplicaSet/{number}": Origin(
            "ReplicaSet",
            "a",
            serving_template(),
            workload=deployment(f"d{number:02}", progressDeadlineSeconds=1),
        )
        for number in range(40)
    }
    plan, bundles = plan_of(engine={"image": "x" * 5000 + ":latest"}, origins=origins)
    found = collect_warnings(plan, bundles, 1)
    assert len(found) == MAX_WARNINGS
    assert max(len(warning.message) for warning in found) == MAX_MESSAGE
    assert found == sorted(found, key=lambda warning: (warning.reason, warning.message))
    assert {warning.reason for warning in found} <= set(ADVICE)
