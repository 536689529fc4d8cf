"""One bad object is skipped and reported: it never stops a cache.

Anyone who may write Pods and Jobs in the namespace may give them the cache's label, and any labels,
annotations, owners and termination messages beside it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import strategies as st
from pretune.api import names
from pretune.api.reasons import REASONS
from pretune.api.schema import fields_of
from pretune.api.status import BundleStatus
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Object
from pretune.podspec.workloads import controller_of, origin_key
from pretune.policy.decide import decide
from pretune.policy.model import Origin
from pretune.protocol import LAYOUTS, Report

from tests.builders.caches import bundle_json, cache
from tests.builders.constants import ENGINE, KEY, NOW
from tests.builders.jobs import job
from tests.builders.observed import observed
from tests.builders.pods import AttemptPod, Consumer
from tests.builders.strategies import law
from tests.builders.templates import serving_template
from tests.unit.policy.test_decide import KNOWN, ids, status_of
from tools import crd

[BUNDLE] = ids(cache())
STRICT = crd.strict()
JOB = job(BUNDLE)

TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "1",
        "2",
        "0",
        "-1",
        "1.5",
        "²",
        "١",
        "9" * 40,
        "[",
        "[]",
        "[1]",
        '["a-b"]',
        "{}",
        "x" * 63,
        "a-" + "x" * 61,
        BUNDLE,
        "0123456789ab-other",
        "default",
        "None",
        "Overlay",
        "ReadOnly",
    ]
)
TIMES = st.sampled_from([format_timestamp(NOW - ago) for ago in (0, 5, 90, 5000)])
BUNDLES = st.sampled_from([BUNDLE, "0123456789ab-other"]) | TEXTS


def mostly(value: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """So that what is read of a good object meets what is bad in another place."""
    return st.integers(0, 9).flatmap(lambda number: others if number == 0 else st.just(value))


NOTED = st.dictionaries(
    st.sampled_from(
        [
            names.BUNDLE,
            names.DELIVERY,
            names.REASON,
            names.TARGET,
            names.FINGERPRINT,
            names.STORAGE,
            names.REQUEST_KEY,
            names.IMPORT,
        ]
    ),
    TEXTS,
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
# A report that is good but for some of its fields.
REPORTS = st.builds(
    lambda reason, layout, id, broken: json.dumps(
        {
            **json.loads(
                Report(
                    "seal",
                    reason,
                    "m",
                    id=id,
                    layout=layout,
                    entries=1,
                    digest="sha256:1",
                    seconds=9,
                    at=format_timestamp(NOW - 9),
                ).dump()
            ),
            **broken,
        }
    ),
    st.sampled_from(["Sealed", "Sealed", "Proven", "Inspected"]) | st.sampled_from(list(REASONS)),
    st.sampled_from(LAYOUTS),
    BUNDLES,
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Report)]),
        JSON,
        max_size=2,
    ),
)
STATES = st.one_of(
    st.builds(lambda time: {"running": {"startedAt": time}}, TIMES),
    st.builds(
        lambda code, time, message: {
            "terminated": {"exitCode": code, "finishedAt": time, "message": message}
        },
        st.sampled_from([0, 1, 137]),
        TIMES,
        TEXTS | REPORTS | REPORTS,
    ),
    st.builds(
        lambda reason: {"waiting": {"reason": reason}},
        st.sampled_from(["ImagePullBackOff", "CreateContainerError", "CrashLoopBackOff", "x"]),
    ),
)
CONTAINERS = (
    ENGINE,
    names.CHECK_CONTAINER,
    names.SEAL_CONTAINER,
    names.PROVE_CONTAINER,
    names.IMPORT_CONTAINER,
    names.AGENT_CONTAINER,
    names.SEED_CONTAINER,
)
ROLES = (names.TUNING, names.PROOF, names.IMPORTING, names.INSPECT, names.PRUNE, "claim", "x")


@st.composite
def pods(draw: st.DrawFn) -> Object:
    """A pod with the cache's label: with any role, or none, and of any Job, or none."""
    pod = AttemptPod(of=JOB)
    role = draw(mostly(names.TUNING, st.sampled_from([*ROLES, None])))
    owner = draw(mostly("ours", st.sampled_from(["", "x"])))
    number = draw(st.integers(0, 10**6))
    labels = {names.BUNDLE: draw(mostly(BUNDLE, BUNDLES)), names.ATTEMPT: draw(TEXTS)}
    meta = pod["metadata"]
    meta |= {"name": f"pod-{number}", "uid": f"uid-{number}", "annotations": draw(NOTED)}
    meta["labels"] = {names.CACHE: KEY.name, **labels, **({names.ROLE: role} if role else {})}
    if owner != "ours":
        meta["ownerReferences"] = [{"uid": owner, "controller": True}] if owner else []
        for reference in meta["ownerReferences"]:
            reference |= {"apiVersion": "batch/v1", "kind": "Job", "name": "a"}
    else:
        meta["ownerReferences"][0] |= {"apiVersion": "batch/v1", "kind": "Job", "name": "a"}
    for field in ("initContainers", "nodeName"):
        if draw(mostly(False, st.just(True))):
            del pod["spec"][field]
    statuses = [
        {"name": name, "state": draw(STATES), "restartCount": draw(mostly(0, st.just(1)))}
        for name in draw(st.lists(st.sampled_from(CONTAINERS), unique=True))
    ]
    half = len(statuses) // 2
    pod["status"] |= {
        "phase": draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed"])),
        "initContainerStatuses": statuses[:half],
        "containerStatuses": statuses[half:],
    }
    return pod


def _own(pod: Object, kind: str, name: str) -> Object:
    [reference] = pod["metadata"]["ownerReferences"]
    reference |= {"kind": kind, "name": name}
    return pod


# What serves with the bundle. The API server bounds neither an owner's kind nor its name.
OWNER_WORDS = TEXTS | st.sampled_from(["x" * 319, "x" * 320, "x" * 400])
SERVING = st.builds(_own, st.builds(lambda: Consumer("serving").ready()), OWNER_WORDS, OWNER_WORDS)


def origins_of(*pods: Object) -> dict[str, Origin]:
    """Return the origins of pods that are their own templates: their owners have no row."""
    found = {}
    for pod in pods:
        owner = controller_of(pod) or {}
        workload = f"{owner['kind']}/{owner['name']}"
        found[origin_key(pod)] = Origin(
            "Pod", pod["metadata"]["name"], serving_template(), workload_name=workload
        )
    return found


@st.composite
def jobs(draw: st.DrawFn) -> Object:
    """A Job of the cache, which somebody has edited."""
    number, found = draw(st.integers(0, 10**6)), job(BUNDLE)
    found = draw(st.sampled_from([found, found.complete(), found.failed()]))
    found["metadata"] = {**found["metadata"], "uid": f"uid-job-{number}"}
    found["metadata"]["name"] = f"job-{number}"
    found["metadata"]["annotations"] = draw(NOTED)
    found["metadata"]["labels"] = {
        names.CACHE: KEY.name,
        names.ROLE: draw(st.sampled_from(ROLES)),
        names.BUNDLE: draw(BUNDLES),
        names.ATTEMPT: draw(TEXTS),
    }
    return found


RECORDS = st.builds(
    lambda state, more: bundle_json(BUNDLE, state, **more),
    mostly(names.TUNING_STATE, st.sampled_from(names.STATES)),
    st.dictionaries(
        st.sampled_from(sorted(fields_of(BundleStatus).keys() - {"id", "state"})),
        JSON,
        max_size=3,
    ),
)


@law(
    st.lists(pods(), min_size=1, max_size=3, unique_by=lambda pod: pod["metadata"]["name"]),
    st.lists(jobs(), max_size=3, unique_by=lambda job: job["metadata"]["name"]),
    st.lists(RECORDS, max_size=1),
    st.sampled_from(["Never", "BeforeRelease"]),
    mostly(True, st.just(False)),
    SERVING,
)
def test_whatever_bears_the_caches_label_there_is_a_plan_whose_status_the_api_server_takes(
    some_pods: list[Object],
    some_jobs: list[Object],
    records: list[Object],
    verify: str,
    own: bool,
    serving: Object,
) -> None:
    the_cache = cache(status_of(*records), verify=verify)
    roles = [pod for pod in some_pods if names.ROLE in pod["metadata"]["labels"]]
    consumers = [pod for pod in some_pods if names.ROLE not in pod["metadata"]["labels"]]
    plan = decide(
        observed(
            the_cache,
            pods=tuple(roles),
            consumers=(*consumers, serving),
            origins=origins_of(serving),
            jobs=(*([JOB] if own else []), *some_jobs),
        ),
        NOW,
    )
    assert plan.status is not None
    del the_cache["metadata"]["resourceVersion"]
    jsonschema.validate({**the_cache, "status": plan.status}, STRICT)


def test_the_name_of_a_workload_that_the_status_has_no_room_for_is_left_out() -> None:
    long, fits = _own(Consumer("a").ready(), "X" * 80, "x" * 240), Consumer("b").ready()
    _own(fits, "X" * 79, "x" * 240)
    pods = (long, fits)
    plan = decide(observed(cache(KNOWN), consumers=pods, origins=origins_of(*pods)), NOW)
    assert plan.status is not None
    [bundle] = plan.status["bundles"]
    assert bundle["serving"] and bundle["servingWorkloads"] == [f"{'X' * 79}/{'x' * 240}"]


@pytest.mark.parametrize(
    ("role", "labels", "annotations", "words"),
    [
        ("tuning", {names.ATTEMPT: "one"}, {}, f"label {names.ATTEMPT} is not a number from 1"),
        ("tuning", {names.ATTEMPT: "0"}, {}, f"label {names.ATTEMPT} is not a number from 1"),
        ("tuning", {names.ATTEMPT: "١"}, {}, f"label {names.ATTEMPT} is not a number from 1"),
        ("proof", {names.BUNDLE: ""}, {}, f"label {names.BUNDLE} is not"),
        ("import", {names.BUNDLE: "a-" + "x" * 21}, {}, f"label {names.BUNDLE} is not"),
        ("tuning", {}, {names.FINGERPRINT: "f" * 65}, f"annotation {names.FINGERPRINT} has"),
        ("prune", {}, {names.REQUEST_KEY: "["}, f"annotation {names.REQUEST_KEY} is not"),
        (
            "prune",
            {},
            {names.REQUEST_KEY: "[" * 999 + "]" * 999},
            f"annotation {names.REQUEST_KEY}",
        ),
        ("prune", {}, {names.REQUEST_KEY: '{"a": 1}'}, f"annotation {names.REQUEST_KEY} is not"),
    ],
)
def test_a_job_that_is_not_as_we_write_it_is_ignored_and_named(
    role: str, labels: Object, annotations: Object, words: str
) -> None:
    bad = job(BUNDLE, 7, role=role)
    bad["metadata"]["labels"] |= labels
    bad["metadata"]["annotations"] |= annotations
    plan = decide(observed(cache(KNOWN), jobs=(bad,)), NOW)
    [event] = [event for event in plan.events if event.reason == "Malformed"]
    assert event.warning and f"Job {bad['metadata']['name']}: {words}" in event.message
    assert plan.status is not None and [one["id"] for one in plan.status["bundles"]] == [BUNDLE]
