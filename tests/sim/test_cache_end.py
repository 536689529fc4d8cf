"""Journeys of a cache's end."""

from __future__ import annotations

import pytest
from pretune.manifests.agent_archive import agent_name

from tests.builders.constants import KEY
from tests.sim.simulation import CACHE as THE_CACHE
from tests.sim.simulation import CLAIM, FAR, Simulation
from tests.sim.steps import CLAIM_PLACE, SERVING, a_pod, sealed, started, until

# --- the cache's end


@pytest.mark.parametrize(
    "step", ["WaitingForPod", "Pulling", "Checking", "Tuning", "Sealing", "Sealed"]
)
@pytest.mark.parametrize("kept", [False, True])
def test_a_cache_deleted_at_any_step_leaves_nothing_but_a_claim_that_is_to_be_kept(
    sim: Simulation, step: str, kept: bool
) -> None:
    started(sim, storage={"claim": {"whenDeleted": "Retain" if kept else "Delete"}})
    until(sim, step)
    sim.delete()
    assert sim.server.get(*THE_CACHE) is None, "no finalizer holds it"
    sim.settle(FAR)
    assert not sim.world.jobs() and not sim.world.pods()
    assert (sim.server.get(*CLAIM_PLACE) is not None) == kept
    assert not sim.server.list("v1", "ConfigMap", KEY.namespace)


def test_a_claim_is_not_deleted_while_a_pod_of_any_phase_names_it(sim: Simulation) -> None:
    sealed(sim)
    a_pod(sim, {"persistentVolumeClaim": {"claimName": CLAIM}})
    sim.delete()
    sim.settle(FAR)
    found = sim.server.get(*CLAIM_PLACE)
    assert found is not None and "deletionTimestamp" not in found["metadata"]
    sim.delete(SERVING)
    sim.settle(FAR)
    assert sim.server.get(*CLAIM_PLACE) is None


def test_when_deleted_follows_the_spec_until_the_end(sim: Simulation) -> None:
    sealed(sim)
    sim.apply(storage={"claim": {"whenDeleted": "Retain"}})
    sim.settle()
    sim.delete()
    sim.settle(FAR)
    assert sim.server.get(*CLAIM_PLACE) is not None


def test_an_older_agent_goes_when_no_pod_names_it_and_no_webhook_of_an_older_release_gives_it(
    sim: Simulation,
) -> None:
    labels = {"pretune.dev/role": "agent"}
    for name in ("pretune-agent-000000000000", "pretune-agent-111111111111"):
        meta = {"namespace": KEY.namespace, "name": name, "labels": labels}
        sim.server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    a_pod(
        sim,
        {"configMap": {"name": "pretune-agent-111111111111", "optional": True}},
        {"app": "other"},
    )
    sealed(sim)
    assert len(sim.server.list("v1", "ConfigMap", KEY.namespace)) == 3
    sim.settle(FAR)
    names = [one["metadata"]["name"] for one in sim.server.list("v1", "ConfigMap", KEY.namespace)]
    assert names == sorted(["pretune-agent-111111111111", agent_name()])


def test_the_agent_stays_for_another_cache_of_the_namespace(sim: Simulation) -> None:
    sealed(sim)
    other = {"namespace": KEY.namespace, "name": "other"}
    sim.server.create(
        {
            "apiVersion": THE_CACHE[0],
            "kind": THE_CACHE[1],
            "metadata": other,
            "spec": {"storage": {}},
        }
    )
    sim.delete()
    sim.settle(FAR)
    assert sim.server.list("v1", "ConfigMap", KEY.namespace)
