"""Journeys of a bundle's end."""

from __future__ import annotations

from pretune.api.names import BUNDLE, PRUNE, RETIRED, SEALED

from tests.sim.simulation import FAR, Simulation
from tests.sim.steps import SERVING, a_pod, only_record, reason, sealed, started

# --- a bundle's end


def test_bundles_beyond_the_history_are_retired_and_ten_minutes_later_pruned(
    sim: Simulation,
) -> None:
    started(sim, bundleHistoryLimit=1)
    for image in ("vllm:1", "vllm:2", "vllm:3"):
        sim.deploy(image=image)
        sim.settle(200)
    states = [one["state"] for one in sim.records]
    assert states.count(SEALED) == 1 and states.count(RETIRED) >= 1, states
    sim.settle(FAR)
    assert [one["state"] for one in sim.records] == [SEALED]
    assert list(sim.on_claim()) == [sim.records[0]["id"]] and not sim.world.jobs(PRUNE)


def test_a_bundle_that_a_living_pod_names_is_kept(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    a_pod(sim, **{BUNDLE: first})
    sim.deploy(image="vllm:2")
    sim.settle(FAR)
    assert first in sim.on_claim()
    sim.delete(SERVING)
    sim.settle(FAR)
    assert first not in sim.on_claim()


def test_a_retired_bundle_that_is_wanted_again_in_time_comes_back_untouched(
    sim: Simulation,
) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))
    sim.deploy(image="vllm:2")
    sim.settle(200)
    assert {one["id"]: one["state"] for one in sim.records}[first["id"]] == RETIRED
    sim.deploy(image="vllm:1")
    sim.settle(200)
    record = next(one for one in sim.records if one["id"] == first["id"])
    assert (
        record["state"] == SEALED
        and record["digest"] == first["digest"]
        and "retiredAt" not in record
    )
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 2
    sim.settle(FAR)
    assert first["id"] in sim.on_claim()


def test_a_pruned_bundle_that_is_wanted_again_is_tuned_anew(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: first not in sim.on_claim())
    sim.settle(60)
    sim.deploy(image="vllm:1")  # while the Job that made it is still there, with its report
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim() and sim.engine_starts == 3


def test_a_bundle_that_is_wanted_again_while_prune_deletes_it_is_tuned_anew(
    sim: Simulation,
) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: bool(sim.world.jobs(PRUNE)))
    sim.deploy(image="vllm:1")
    sim.settle(FAR)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim()


def test_nothing_is_tuned_into_a_folder_that_is_still_being_deleted(sim: Simulation) -> None:
    first = only_record(sealed(sim, bundleHistoryLimit=0))["id"]
    sim.deploy(image="vllm:2")
    sim.settle(FAR, until=lambda: bool(sim.world.jobs(PRUNE)))
    sim.world.idle_roles = {PRUNE}  # its pod waits for a node
    sim.deploy(image="vllm:1")
    sim.settle(200)
    assert reason(sim) == "Inspecting" and "deleted" in sim.message() and sim.engine_starts == 2
    sim.world.idle_roles = set()
    sim.settle(200)
    assert sim.ready == ("True", "Sealed") and first in sim.on_claim() and sim.engine_starts == 3
