"""A part and an engine that the tests add, each by one object: tuned, proven, given in every mode."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.names import PROOF, TUNING
from pretune.api.types import Object
from pretune.engines.vllm.engine import VLLM

from tests.seams.added import KERNELS, TOY
from tests.seams.fixtures import added
from tests.sim.fleet import Fleet
from tests.sim.reading import every_container
from tests.sim.steps import held, only_record, replaced, rolled_out

__all__ = ["added"]

PROVEN = {"verify": "BeforeRelease"}
TOY_SERVER: dict[str, Any] = {"command": ["/opt/toy-server"], "args": ["--model", "m"]}


def variables(pod: Object, container: str = "vllm") -> dict[str, str]:
    found = next(one for one in every_container(pod) if one["name"] == container)
    return {one["name"]: one.get("value", "") for one in found.get("env") or ()}


def volumes(pod: Object) -> set[str]:
    return {one["name"] for one in pod["spec"].get("volumes") or ()}


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("mode", ["Overlay", "ReadOnly"])
def test_a_second_part_is_tuned_proven_and_given_with_the_first(fleet: Fleet, mode: str) -> None:
    fleet.world.layout = "Managed"
    spec = {**PROVEN, "delivery": {"mode": mode}}
    held(fleet, spec=spec)
    fleet.settle()
    replaced(fleet, "vllm:2")
    assert fleet.warm("vllm:2") == [True] * 3 and len(fleet.world.proofs) == 2
    for pod in fleet.consumers("vllm:2"):
        env = variables(pod)
        assert env[KERNELS.variable].rpartition("/")[2] == "kernels"
        assert env[VLLM.parts[0].variable].rpartition("/")[2] == "tactics"
    assert fleet.ready == ("True", "Sealed")


@pytest.mark.usefixtures("added")
def test_its_attempts_and_proofs_have_a_folder_for_each_part(fleet: Fleet) -> None:
    fleet.serve("vllm:1")
    fleet.apply(**PROVEN)
    seen: dict[str, set[str]] = {}

    def look() -> bool:
        for role in (TUNING, PROOF):
            for pod in fleet.world.pods(role):
                seen[role] = volumes(pod)
        return len(seen) == 2

    fleet.settle(until=look)
    for names in seen.values():
        assert {"pretune-tactics", "pretune-kernels"} <= names


def test_a_second_part_makes_other_bundles(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealed bundle without the part's folder is never given to an engine that has the part."""
    rolled_out(fleet)
    before = only_record(fleet)["id"]
    monkeypatch.setattr(VLLM, "parts", (*VLLM.parts, KERNELS))
    fleet.serve("vllm:1", replicas=4)
    fleet.settle()
    assert {before} < {record["id"] for record in fleet.records}


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("mode", ["Overlay", "ReadOnly"])
def test_another_engine_is_tuned_proven_and_given_its_bundle(fleet: Fleet, mode: str) -> None:
    fleet.world.layout = "Managed"
    spec = {**PROVEN, "delivery": {"mode": mode}}
    fleet.serve("toy:1", **TOY_SERVER)
    fleet.apply(**spec)
    fleet.settle()
    fleet.serve("toy:2", **TOY_SERVER)
    fleet.settle()
    replaced(fleet, "toy:2")
    assert fleet.warm("toy:2") == [True] * 3 and len(fleet.world.proofs) == 2
    plans = TOY.parts[0]
    for pod in fleet.consumers("toy:2"):
        env = variables(pod)
        assert env[plans.variable].rpartition("/")[2] == "plans"
        assert VLLM.parts[0].variable not in env
        assert "pretune-tactics" not in volumes(pod)


@pytest.mark.usefixtures("added")
def test_what_another_engine_cannot_be_tuned_as_is_refused_by_its_own_flag(fleet: Fleet) -> None:
    fleet.serve("toy:1", command=["/opt/toy-server"], args=["--shard"])
    fleet.apply()
    fleet.settle()
    assert fleet.ready[1] == "MultiPodEngine" and "--shard" in fleet.message()
