"""Caches and the controller's lease as the webhook sees them, also while a watch is down."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from pretune.api.types import Object
from pretune.kube.watch import ENDED, LEFT_OUT, LISTED
from pretune.webhook.cache_store import MAX_NAMESPACE_BYTES
from pretune.webhook.informers import CacheInformer, LeaseMonitor, trim_cache

Step = tuple[Any, ...]  # (seconds, change, …)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lease(renewed: int, holder: str | None = "a") -> Object:
    return {
        "metadata": {"name": "lease"},
        "spec": {"holderIdentity": holder, "renewTime": f"12:00:{renewed:02}"},
    }


def is_alive_after(*story: Step) -> bool:
    """Whether the controller is alive after this story: (at, change, lease); the last has only a time."""
    clock = Clock()
    controller = LeaseMonitor(clock)
    for at, *change in story:
        clock.now = 100.0 + at
        if change:
            controller.on_event(change[0], change[1] if len(change) > 1 else {})
    return controller.is_alive()


THERE = [(0, "ADDED", lease(0)), (0, LISTED)]


@pytest.mark.parametrize(
    ("case", "story", "alive"),
    [
        ("nothing was seen", [(0,)], False),
        ("it was listed, renewed at an unknown time", [*THERE, (1,)], False),
        ("a renewal was seen", [*THERE, (2, "MODIFIED", lease(5)), (3,)], True),
        ("14.9 s ago", [*THERE, (2, "MODIFIED", lease(5)), (16.9,)], True),
        ("15 s ago", [*THERE, (2, "MODIFIED", lease(5)), (17,)], False),
        ("and again since", [*THERE, (2, "MODIFIED", lease(5)), (7, "MODIFIED", lease(10)), (21,)], True),
        ("something else in it changed", [*THERE, (2, "MODIFIED", lease(0)), (3,)], False),
        ("another replica acquired it", [*THERE, (2, "MODIFIED", lease(5, "b")), (3,)], True),
        ("it was released", [*THERE, (2, "MODIFIED", lease(5)), (3, "MODIFIED", lease(8, "")), (3,)], False),
        ("released, as the API stores it", [*THERE, (2, "MODIFIED", lease(5)), (3, "MODIFIED", lease(8, None)), (3,)], False),
        ("released and acquired", [*THERE, (3, "MODIFIED", lease(8, "")), (4, "MODIFIED", lease(9, "b")), (5,)], True),
        ("it was deleted", [*THERE, (2, "MODIFIED", lease(5)), (3, "DELETED", lease(5)), (3,)], False),
        ("deleted and recreated", [*THERE, (3, "DELETED", lease(0)), (4, "ADDED", lease(0, "b")), (5,)], True),
        ("it did not exist, and is created", [(0, LISTED), (4, "ADDED", lease(0)), (5,)], True),
        ("the watch ended a moment ago", [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (4,)], True),
        ("the watch has been down for long", [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (18,)], False),
        (
            "renewed at an unknown time while the watch was down",
            [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (60, "ADDED", lease(10)), (60, LISTED), (61,)],
            False,
        ),
        (
            "renewed while the watch was down for a moment",
            [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (5, "ADDED", lease(10)), (5, LISTED), (16,)],
            True,
        ),
        (
            "such a renewal was not seen, and does not count",
            [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (5, "ADDED", lease(10)), (5, LISTED), (17,)],
            False,
        ),
        (
            "released while the watch was down",
            [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (4, "ADDED", lease(8, "")), (4, LISTED), (5,)],
            False,
        ),
        ("deleted while the watch was down", [*THERE, (2, "MODIFIED", lease(5)), (3, ENDED), (4, LISTED), (5,)], False),
        (
            "a renewal is seen again after a long time",
            [*THERE, (3, ENDED), (90, "ADDED", lease(10)), (90, LISTED), (91, "MODIFIED", lease(15)), (92,)],
            True,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_controller_is_alive_while_renewals_of_its_lease_are_seen(
    case: str, story: list[Step], alive: bool
) -> None:
    assert is_alive_after(*story) is alive


def cache(name: str, version: int = 1, namespace: str = "ns") -> Object:
    return {"metadata": {"namespace": namespace, "name": name, "resourceVersion": str(version)}}


def known_to(caches: CacheInformer) -> list[str]:
    names = [(space, name) for space in ("ns", "other") for name in ("a", "b")]
    found = [caches.get(*place) for place in names]
    return [
        f"{cache['metadata']['name']}{cache['metadata']['resourceVersion']}"
        for cache in found
        if cache
    ]


A, B = ("ADDED", cache("a")), ("ADDED", cache("b"))


@pytest.mark.parametrize(
    ("case", "story", "known"),
    [
        ("nothing before all is listed", [A, B], []),
        ("what was listed", [A, B, (LISTED, {})], ["a1", "b1"]),
        ("by namespace", [A, ("ADDED", cache("a", 7, "other")), (LISTED, {})], ["a1", "a7"]),
        ("one is created", [A, (LISTED, {}), B], ["a1", "b1"]),
        ("one changes", [A, (LISTED, {}), ("MODIFIED", cache("a", 2))], ["a2"]),
        ("one is deleted", [A, B, (LISTED, {}), ("DELETED", cache("a", 2))], ["b1"]),
        ("as it was, while the watch is down", [A, (LISTED, {}), (ENDED, {})], ["a1"]),
        ("as it was, until all is listed again", [A, (LISTED, {}), (ENDED, {}), B], ["a1"]),
        ("without one that was deleted meanwhile", [A, (LISTED, {}), (ENDED, {}), B, (LISTED, {})], ["b1"]),
        ("without one that was deleted while all are listed", [A, (LISTED, {}), (ENDED, {}), A, (ENDED, {}), B, (LISTED, {})], ["b1"]),
        ("one changes after that", [A, (LISTED, {}), (ENDED, {}), A, (LISTED, {}), ("MODIFIED", cache("a", 2))], ["a2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_known_caches_are_those_listed_and_changed_since(
    case: str, story: list[tuple[str, Object]], known: list[str]
) -> None:
    caches = CacheInformer(Clock())
    for change, obj in story:
        caches.on_event(change, obj)
    assert known_to(caches) == known
    assert caches.has_synced == any(change == LISTED for change, _ in story)


def test_caches_that_have_not_been_watched_for_15_s_are_not_current() -> None:
    clock = Clock()
    caches = CacheInformer(clock)
    assert not caches.is_current()
    caches.on_event(LISTED, {})
    clock.now += 3600
    assert caches.is_current()
    caches.on_event(ENDED, {})
    clock.now += 10
    caches.on_event(ENDED, {})  # it could not be opened again
    assert caches.is_current()
    clock.now += 5
    assert not caches.is_current()
    caches.on_event(LISTED, {})
    assert caches.is_current()


def test_the_caches_of_a_namespace_that_may_not_be_read_stay_for_five_minutes() -> None:
    clock = Clock()
    caches, left_out = CacheInformer(clock), (LEFT_OUT, {"metadata": {"namespace": "ns"}})
    other = ("ADDED", cache("a", 7, "other"))
    listed, ended = (LISTED, {}), (ENDED, {})
    for change in (A, other, listed, left_out):
        caches.on_event(*change)
    assert caches.is_current("ns")
    for _ in range(4):
        clock.now += 60
        for change in (ended, left_out, other, listed):
            caches.on_event(*change)
        assert known_to(caches) == ["a1", "a7"]
    assert caches.is_current("other") and not caches.is_current("ns"), "then no pod is held there"
    assert not caches.is_outdated("ns")
    clock.now += 60
    assert caches.is_outdated("ns") and not caches.is_outdated("other")
    assert not caches.is_outdated(), "which is no reason to be not ready"
    for change in (ended, ("ADDED", cache("b")), other, listed):
        caches.on_event(*change)
    assert known_to(caches) == ["b1", "a7"] and caches.is_current("ns")
    assert not caches.is_outdated("ns")


def test_caches_that_have_not_been_watched_for_five_minutes_are_outdated() -> None:
    clock = Clock()
    caches = CacheInformer(clock)
    caches.on_event(LISTED, {})
    clock.now += 7200
    assert not caches.is_outdated()
    for _ in range(3):
        caches.on_event(ENDED, {})  # it could not be opened again
        clock.now += 99.9
    assert not caches.is_outdated()
    clock.now += 0.4
    assert caches.is_outdated()
    caches.on_event(*A)
    assert caches.is_outdated()
    caches.on_event(LISTED, {})
    assert not caches.is_outdated()


def test_one_namespaces_caches_take_bounded_memory_and_others_are_known_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caches, size = CacheInformer(Clock()), 200_000
    count = 2 * MAX_NAMESPACE_BYTES // size
    large = {"spec": {"targets": [{"name": "x" * size}]}}
    tracemalloc.start()
    try:
        for number in range(count):
            caches.on_event("ADDED", {**cache(f"c{number}", namespace="evil"), **large})
        assert tracemalloc.get_traced_memory()[0] < 1.2 * MAX_NAMESPACE_BYTES
    finally:
        tracemalloc.stop()
    caches.on_event("ADDED", cache("a"))
    caches.on_event(LISTED, {})
    assert known_to(caches) == ["a1"] and not caches.is_too_large("ns", "a")
    kept = [number for number in range(count) if caches.get("evil", f"c{number}")]
    assert 0.9 * MAX_NAMESPACE_BYTES < len(kept) * size < MAX_NAMESPACE_BYTES
    assert caches.is_too_large("evil", f"c{count - 1}")
    (line,) = caplog.messages
    assert "namespace evil have more than 8 MiB" in line
    for number in range(count):
        caches.on_event("DELETED", cache(f"c{number}", namespace="evil"))
    caches.on_event("ADDED", {**cache("again", namespace="evil"), **large})
    assert caches.get("evil", "again")


def test_the_log_names_a_namespace_that_is_too_large_once_however_often_it_is_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caches = CacheInformer(Clock())
    large = {"spec": {"targets": [{"name": "x" * MAX_NAMESPACE_BYTES}]}}
    for _ in range(3):
        caches.on_event("ADDED", {**cache("a", namespace="evil"), **large})
        caches.on_event(LISTED, {})
        assert caches.is_too_large("evil", "a")
        caches.on_event(ENDED, {})
    assert len(caplog.messages) == 1


def test_a_trimmed_cache_has_what_decisions_need_and_no_template() -> None:
    template = {"spec": {"containers": []}}
    whole = {
        "kind": "AutotuneCache",
        "metadata": {"name": "a", "uid": "u", "managedFields": [{}], "annotations": {"a": "b"}},
        "spec": {
            "source": {"template": template},
            "targets": [],
            "tuning": {"podTemplate": {"metadata": {}}, "allow": ["SingleNode"]},
        },
        "status": {"bundles": []},
    }
    trimmed = {
        "kind": "AutotuneCache",
        "metadata": {"name": "a", "uid": "u"},
        "spec": {"source": {}, "targets": [], "tuning": {"allow": ["SingleNode"]}},
        "status": {"bundles": []},
    }
    assert trim_cache(whole) == trimmed and whole["spec"]["source"] == {"template": template}
    ref = {"metadata": {}, "spec": {"source": {"workloadRef": {"kind": "Deployment"}}}}
    assert trim_cache(ref) == ref
    assert trim_cache({"metadata": {}}) == {"metadata": {}, "spec": {}}
