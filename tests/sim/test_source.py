"""Journeys of sources that are missing, wrong or cannot be tuned as a copy."""

from __future__ import annotations

import pytest
from pretune.api.names import REFUSED, SEALED
from pretune.api.types import Object
from pretune.kube.types import ApiError

from tests.builders.constants import KEY
from tests.builders.templates import serving_template
from tests.sim.simulation import DEPLOYMENT, FAR, Simulation, named
from tests.sim.steps import only_record, reason, sealed

# --- the source


def test_a_source_that_is_not_there_is_named_and_recovers_when_it_appears(sim: Simulation) -> None:
    sim.apply()
    sim.settle()
    assert sim.ready == ("False", "SourceNotFound") and KEY.name in sim.message()
    assert sim.condition("Stalled") == ("True", "SourceNotFound")
    sim.deploy()
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_a_deployment_deleted_after_sealing_keeps_the_bundle(sim: Simulation) -> None:
    sealed(sim)
    sim.delete(DEPLOYMENT)
    sim.settle(FAR)
    assert (
        sim.ready == ("False", "SourceNotFound")
        and only_record(sim)["state"] == SEALED
        and sim.on_claim()
    )
    sim.deploy()
    sim.settle()
    assert sim.ready == ("True", "Sealed") and sim.engine_starts == 1


def test_no_source_is_unknown(sim: Simulation) -> None:
    sim.apply(source=None)
    sim.settle()
    assert sim.ready == ("Unknown", "NoSource") and not sim.world.jobs()


def test_a_template_that_the_api_server_refuses_is_said_in_its_words_and_recovers(
    sim: Simulation,
) -> None:
    def refuse(verb: str, obj: Object) -> None:
        if (
            obj["kind"] == "Job"
            and obj["spec"]["template"]["spec"]["initContainers"][-1]["image"] == "bad"
        ):
            raise ApiError(
                422, "Invalid", "spec.template.spec.initContainers[1].image: Invalid value"
            )

    sim.server.admission.append(refuse)
    sim.deploy(image="bad")
    sim.apply()
    sim.settle(3000)
    assert sim.ready == ("False", "SourceInvalid") and "initContainers[1].image" in sim.message()
    assert (
        sim.condition("Stalled") == ("True", "SourceInvalid")
        and only_record(sim)["state"] == REFUSED
    )
    assert sim.laws.status_writes <= 4
    said = [one for one in sim.server.events if one.reason == "SourceInvalid"]
    assert len(said) == 1, "what was said is not said again"
    sim.deploy(image="good")
    sim.settle()
    assert sim.ready == ("True", "Sealed")


@pytest.mark.parametrize(
    ("engine", "word", "named"),
    [
        ({"args": ["serve", "qwen3", "--nnodes", "2"]}, "MultiPodEngine", "--nnodes"),
        ({"env": [{"name": "DYN_NAMESPACE", "value": "x"}]}, "SelfRegistering", "DYN_NAMESPACE"),
    ],
)
def test_engines_that_cannot_be_copied_are_refused_before_any_job(
    sim: Simulation, engine: Object, word: str, named: str
) -> None:
    sim.deploy(**engine)
    sim.apply()
    sim.settle()
    assert (
        sim.ready == ("False", word)
        and named in sim.message()
        and only_record(sim)["state"] == REFUSED
    )
    assert not sim.world.jobs()


def test_an_allowed_risk_is_taken(sim: Simulation) -> None:
    sim.deploy(env=[{"name": "DYN_NAMESPACE", "value": "x"}])
    sim.apply()
    sim.settle()
    assert reason(sim) == "SelfRegistering"
    sim.apply(tuning={"allow": ["SelfRegistering"]})
    sim.settle()
    assert sim.ready == ("True", "Sealed")


def test_several_gpu_containers_are_listed(sim: Simulation) -> None:
    sim.apply()
    spec = serving_template()
    spec["spec"]["containers"].append({**spec["spec"]["containers"][0], "name": "draft"})
    sim.server.create({**named(DEPLOYMENT), "spec": {"template": spec}})
    sim.settle()
    assert (
        sim.ready == ("False", "EngineAmbiguous")
        and "vllm" in sim.message()
        and "draft" in sim.message()
    )
    sim.apply(engineContainer="vllm")
    sim.settle()
    assert sim.ready == ("True", "Sealed")
