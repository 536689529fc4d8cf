"""docs/compatibility.md for the two newest releases: their own code does what is expected."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.fidelity.matrix.cells import CI_CELLS
from tests.fidelity.matrix.judge import differences
from tests.fidelity.matrix.outcome import RESULTS, Played
from tests.fidelity.matrix.play import play
from tests.fidelity.matrix.stage import stage
from tests.fidelity.releases import CI_RELEASES

pytestmark = [pytest.mark.rehearsal, pytest.mark.long]


@pytest.mark.parametrize(("release", "other"), list(itertools.permutations(CI_RELEASES)))
def test_a_releases_own_code_behaves_as_expected_in_every_situation(
    kube: Kube, operator: str, release: str, other: str
) -> None:
    if not Path("/run/pretune-cluster").exists():
        pytest.skip("the nodes of PRETUNE_TEST_KUBECONFIG are not on this machine")
    with stage(kube, release, other) as prepared:
        played = play(prepared, CI_CELLS, say=print)
    assert not played.missing and set(played.cells) == set(CI_CELLS)
    assert differences(played) == {}
    written = Played.read(RESULTS / f"{release}.json").cells
    for name, cell in played.cells.items():  # what the document says is true
        documented = written[name]
        assert (cell.started, cell.profiled, cell.changed) == (
            documented.started,
            documented.profiled,
            documented.changed,
        ), name
