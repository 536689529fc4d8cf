"""Steps that many journeys take, and the questions that they ask: of a cache, and of consumers."""

from __future__ import annotations

from typing import Any

from pretune.api.names import CACHE, TUNING
from pretune.api.types import Object

from tests.builders.constants import KEY
from tests.sim.fleet import Fleet
from tests.sim.simulation import CLAIM, FAR, Simulation

TWO = [
    {"name": "b200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}},
    {"name": "h200", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
]
CLAIM_PLACE = ("v1", "PersistentVolumeClaim", KEY.namespace, CLAIM)


def started(sim: Simulation, **spec: Any) -> Simulation:
    sim.deploy()
    sim.apply(**spec)
    return sim


def sealed(sim: Simulation, **spec: Any) -> Simulation:
    started(sim, **spec).settle()
    assert sim.ready == ("True", "Sealed"), sim.message()
    return sim


def reason(sim: Simulation) -> str:
    return sim.ready[1]


def until(sim: Simulation, word: str) -> None:
    """Settle until Ready's reason is this word."""
    sim.settle(FAR, until=lambda: bool(sim.status) and reason(sim) == word)
    assert reason(sim) == word, (sim.ready, sim.message())


def tuning_pod(sim: Simulation) -> Object:
    """The newest."""
    return max(sim.world.pods(TUNING), key=lambda pod: pod["metadata"]["uid"])


def only_record(sim: Simulation) -> Object:
    assert len(sim.records) == 1, sim.records
    return sim.records[0]


def a_claim(sim: Simulation, name: str, mode: str = "ReadWriteMany", **meta: Any) -> None:
    """Somebody's own."""
    meta, spec = (
        {"namespace": KEY.namespace, "name": name, **meta},
        {"accessModes": [mode]},
    )
    sim.server.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
    )


def a_pod(
    sim: Simulation, volume: Object | None = None, labels: Object | None = None, **notes: str
) -> None:
    """A pod named `serving` that does nothing but be there, with a volume."""
    meta = {
        "namespace": KEY.namespace,
        "name": "serving",
        "labels": labels or {CACHE: KEY.name},
        "annotations": notes,
    }
    spec: Object = {
        "containers": [],
        **({"volumes": [{"name": "one", **volume}]} if volume else {}),
    }
    sim.server.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


SERVING = ("v1", "Pod", KEY.namespace, "serving")


# --- consumers


def rolled_out(
    fleet: Fleet, image: str = "vllm:1", spec: Object | None = None, **workload: Any
) -> Fleet:
    """A Deployment serves, and its bundle is sealed."""
    fleet.serve(image, **workload)
    fleet.apply(**(spec or {}))
    fleet.settle()
    assert fleet.ready == ("True", "Sealed"), (fleet.ready, fleet.message())
    assert fleet.serving(image) == len(fleet.consumers())
    return fleet


def held(fleet: Fleet, image: str = "vllm:2", spec: Object | None = None, **workload: Any) -> Fleet:
    """It is given a new image, whose first pods wait."""
    rolled_out(fleet, spec=spec, **workload)
    fleet.serve(image)
    fleet.settle(until=lambda: bool(fleet.held()))
    assert fleet.held(image) and fleet.reasons(image) == {"Held"}
    return fleet


def lowest(fleet: Fleet, within: float = 300.0) -> int:
    """Let it all come to rest: how many pods were ready at the worst moment."""
    least = [fleet.serving()]

    def look() -> bool:
        least.append(fleet.serving())
        return False

    fleet.settle(within, until=look)
    return min(least)


def replaced(fleet: Fleet, image: str, replicas: int = 3) -> None:
    """All serve this image, none waits, and what is promised holds."""
    assert fleet.serving(image) == replicas == len(fleet.consumers()), [
        (one["metadata"]["name"], one["status"]) for one in fleet.consumers()
    ]
    fleet.promises.at_rest()


def scaled_to_zero_and_back(fleet: Fleet, replicas: int = 3) -> None:
    """Long enough that nothing wants the bundle any more."""
    fleet.serve(replicas=0)
    fleet.settle(900)
    assert not fleet.consumers()
    fleet.serve(replicas=replicas)
    fleet.settle(FAR)
