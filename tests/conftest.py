"""For all tests: how many examples hypothesis tries, and the order in which tests begin.

`make test` hands the next test to the worker that is free (--dist loadgroup). The order mixes tests
that compute with tests that wait for a pod; what takes a minute begins before what is short. Some
tests stay together on one worker, as a group: those that disturb the operator, since each of them
waits for all others, and those that share what takes long to set up.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.depth import examples

CLUSTER = Path(__file__).parent / "cluster"
DISTURBING = "disturbs"
SHARED = ("render", "faulty")  # fixtures: renderings of the chart; caches whose proofs fail

settings.register_profile(
    "pretune",
    deadline=None,  # the machine may be busy
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("pretune")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
        if (group := _group(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items[:] = _ordered(items)


def _group(item: pytest.Item) -> str | None:
    fixtures = getattr(item, "fixturenames", ())
    if item.get_closest_marker("disturbs"):
        return DISTURBING
    if "rehearsals" in fixtures:  # to load a release's own code takes half a minute
        return f"vLLM {item.callspec.params['release']}" if hasattr(item, "callspec") else "vLLM"
    return next((fixture for fixture in SHARED if fixture in fixtures), None)


def _ordered(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests in the order in which they begin; within a kind, in that of the files."""
    kinds: dict[str, list[pytest.Item]] = {
        kind: [] for kind in ("disturbs", "releases", "long", "computes", "waits long", "waits")
    }
    for item in items:
        is_long, waits = item.get_closest_marker("long"), item.get_closest_marker("cluster")
        if item.get_closest_marker("disturbs"):
            kind = "disturbs"
        elif "rehearsals" in getattr(item, "fixturenames", ()):
            kind = "releases"
        elif waits:
            kind = "waits long" if is_long else "waits"
        else:
            kind = "long" if is_long else "computes"
        kinds[kind].append(item)
    computing = [*kinds["releases"], *kinds["long"], *kinds["computes"]]
    waiting = [*kinds["waits long"], *kinds["waits"]]
    # What waits could not begin before the last one that disturbs: until then, others compute.
    beside = len(computing) * 2 // 3
    return [*kinds["disturbs"], *computing[:beside], *_mixed(waiting, computing[beside:])]


def _mixed(some: list[pytest.Item], others: list[pytest.Item]) -> list[pytest.Item]:
    """Return both, each in its order, spread evenly over each other."""
    places = [
        ((number + 0.5) / len(items), item)
        for items in (some, others)
        for number, item in enumerate(items)
    ]
    return [item for _, item in sorted(places, key=lambda place: place[0])]
