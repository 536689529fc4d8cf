"""Hypothesis for all tests: no time limit for an example, since the machine may be busy; how many is for depth to say."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.depth import examples

settings.register_profile(
    "pretune",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("pretune")
