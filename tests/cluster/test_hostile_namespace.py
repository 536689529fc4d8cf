"""One tenant does all the harm that he can; his neighbour's rollouts go on as always.

`make bench ROWS=hostile` does the same for ten minutes, and compares the rollouts' times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import BUILD, RollOut, StartServing, TuningSignals, create_namespace
from tests.cluster.hostile_namespace import HostileNamespace
from tests.cluster.kube import Kube
from tests.cluster.operator_control import OperatorControl
from tests.cluster.recorder import Recorder, wait_until_held


@pytest.fixture
def evil(kube: Kube, operator: str) -> Iterator[str]:
    namespace = create_namespace(kube, "t-evil")
    yield namespace
    kube.delete("Namespace", "", namespace)


def test_a_hostile_namespace_stops_no_process_and_no_rollout_of_another(
    kube: Kube,
    evil: str,
    operator: str,
    recorder: Recorder,
    start_serving: StartServing,
    roll_out: RollOut,
    signals: TuningSignals,
) -> None:
    operator_control = OperatorControl(kube, operator, BUILD / "bin")
    before = operator_control.count_restarts()
    with HostileNamespace(kube, evil) as hostile:
        start_serving(2, surge="1", down="0")
        for version in ("v2", "v3"):
            began = roll_out(version)
            wait_until_held(recorder, 1, version)
            signals.finish_tuning(version)
            recorder.wait_until(
                lambda s, v=version: s.are_ready(2) and s.are_ready(2, v),
                120,
                f"{version} is ready",
            )
            assert recorder.least_ready(began) == 2
            assert not recorder.describe_cold_pods(version)
        stalled = hostile.read_stalled()
    assert hostile.changes > 100, hostile.refused
    assert operator_control.count_restarts() == before
    assert stalled["many"] == "TooManyFingerprints", stalled
    assert all(stalled[name] for name in ("growing", "deep", "dollars")), stalled
