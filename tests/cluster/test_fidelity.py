"""The matrix of docs/compatibility.md for the two newest releases: their own code, fed by the operator, does what is expected of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.fidelity.matrix.cells import IN_CI
from tests.fidelity.matrix.judge import differences
from tests.fidelity.matrix.outcome import RESULTS, Played
from tests.fidelity.matrix.play import play
from tests.fidelity.matrix.stage import stage

pytestmark = pytest.mark.rehearsal


@pytest.mark.parametrize(("release", "other"), [("0.33.0", "0.32.0"), ("0.32.0", "0.33.0")])
def test_a_release_s_own_code_does_what_is_expected_in_every_situation(
    kube: Kube, operator: str, release: str, other: str
) -> None:
    if not Path("/run/pretune-cluster").exists():
        pytest.skip("the nodes of PRETUNE_TEST_KUBECONFIG are not on this machine")
    with stage(kube, release, other) as made:
        played = play(made, IN_CI, say=print)
    assert not played.missing and set(played.cells) == set(IN_CI)
    assert differences(played) == {}
    written = Played.read(RESULTS / f"{release}.json").cells
    for name, seen in played.cells.items():  # what the document says of it holds
        told = written[name]
        assert (seen.started, seen.profiled, seen.changed) == (
            told.started,
            told.profiled,
            told.changed,
        ), name
