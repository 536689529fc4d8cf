"""Journeys of pre-warmed rollouts: who waits, who does not, and that others serve meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from pretune.api.names import SEALED, TARGET, TUNING
from pretune.api.types import Object

from tests.sim.fleet import Fleet
from tests.sim.reading import note
from tests.sim.simulation import FAR
from tests.sim.steps import TWO, held, lowest, only_record, replaced, rolled_out

SURGE = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
NO_SURGE = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
RECREATE = {"type": "Recreate"}


@pytest.mark.parametrize(
    ("replicas", "strategy", "least"),
    [
        pytest.param(3, SURGE, 3, id="surge"),
        pytest.param(3, NO_SURGE, 2, id="no surge"),
        pytest.param(
            4, {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}, 3, id="a quarter each"
        ),
        pytest.param(1, SURGE, 1, id="one replica"),
    ],
)
def test_a_rollout_waits_for_one_tuning_while_the_older_pods_serve_and_all_of_it_starts_warm(
    fleet: Fleet, replicas: int, strategy: Object, least: int
) -> None:
    rolled_out(fleet, replicas=replicas, strategy=strategy)
    fleet.serve("vllm:2")
    assert lowest(fleet) == least
    assert fleet.engine_starts == 2 and fleet.warm("vllm:2") == [True] * replicas
    assert fleet.said("Held") and "sealed" in fleet.said("Released")[-1]
    assert fleet.counted == {
        "seeded": replicas,
        "cold": 0,
        "held": 0,
        "stale": 0,
        "ready": replicas,
    }
    replaced(fleet, "vllm:2", replicas)


def test_a_held_pod_is_let_go_by_the_look_that_sees_the_seal(fleet: Fleet) -> None:
    held(fleet)
    fleet.settle(until=lambda: fleet.record["state"] == SEALED)
    assert not fleet.held()


def test_a_rollout_without_surge_gives_its_gpu_to_the_tuning(fleet: Fleet) -> None:
    rolled_out(fleet, strategy=NO_SURGE)
    fleet.world.gpus = 3
    fleet.serve("vllm:2")
    assert lowest(fleet) == 2
    assert fleet.warm("vllm:2") == [True] * 3
    replaced(fleet, "vllm:2")


def test_the_first_deployment_is_not_held_and_starts_cold_beside_its_tuning(fleet: Fleet) -> None:
    fleet.apply()
    fleet.settle()
    fleet.serve("vllm:1")
    fleet.settle(until=lambda: fleet.serving() == 3)
    assert fleet.reasons() <= {"NotSealedYet", "StorageNotReady"} and fleet.warm() == [False] * 3
    fleet.settle()
    assert fleet.ready == ("True", "Sealed") and fleet.counted["cold"] == 3
    replaced(fleet, "vllm:1")


def test_a_scale_up_of_a_sealed_revision_is_never_held_and_starts_warm(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.serve("vllm:1", replicas=6)
    fleet.settle()
    assert fleet.warm()[3:] == [True] * 3 and "Given" in fleet.reasons() and not fleet.said("Held")
    replaced(fleet, "vllm:1", 6)


def test_a_scale_up_of_a_revision_that_runs_is_not_held_before_it_is_sealed(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"hold": {"timeoutSeconds": 20}})
    fleet.world.engine_hangs = True
    fleet.serve("vllm:2")
    fleet.settle(200, until=lambda: fleet.serving("vllm:2") == 3)
    fleet.serve("vllm:2", replicas=5)
    fleet.settle(200, until=lambda: len(fleet.consumers("vllm:2")) == 5)
    assert not fleet.held() and "NotSealedYet" in fleet.reasons("vllm:2")


def test_scale_from_zero_of_a_sealed_revision_is_warm_and_of_a_new_one_not_held(
    fleet: Fleet,
) -> None:
    rolled_out(fleet)
    fleet.serve("vllm:1", replicas=0)
    fleet.settle(60)
    assert not fleet.consumers()
    fleet.serve("vllm:1", replicas=2)
    fleet.settle()
    assert fleet.warm()[3:] == [True, True]
    fleet.serve("vllm:1", replicas=0)
    fleet.settle(60)
    fleet.serve("vllm:2", replicas=2)
    fleet.settle()
    assert len(fleet.starts("vllm:2")) == 2 and not fleet.said("Held")
    replaced(fleet, "vllm:2", 2)


def test_a_rollback_is_never_held_and_finds_its_bundle(fleet: Fleet) -> None:
    held(fleet)
    fleet.settle()
    before = len(fleet.said("Held"))
    fleet.serve("vllm:1")
    fleet.settle(60)
    assert (
        fleet.warm("vllm:1")[3:] == [True] * 3
        and len(fleet.said("Held")) == before
        and fleet.engine_starts == 2
    )
    replaced(fleet, "vllm:1")


def test_a_rollback_while_the_new_pods_wait_ends_the_tuning_and_the_wait(fleet: Fleet) -> None:
    held(fleet)
    fleet.serve("vllm:1")
    assert lowest(fleet) == 3
    assert not fleet.starts("vllm:2")
    assert [
        pod for pod in fleet.world.pods(TUNING) if pod["status"]["phase"] in ("Pending", "Running")
    ] == []
    replaced(fleet, "vllm:1")


def test_recreate_is_not_held_since_nothing_serves_meanwhile(fleet: Fleet) -> None:
    rolled_out(fleet, strategy=RECREATE)
    fleet.serve("vllm:2")
    fleet.settle()
    assert not fleet.said("Held") and len(fleet.starts("vllm:2")) == 3
    replaced(fleet, "vllm:2")


def test_pods_that_a_late_webhook_holds_though_nothing_serves_any_more_are_let_go_at_once(
    fleet: Fleet,
) -> None:
    rolled_out(fleet, strategy=RECREATE)
    fleet.clock.advance(60)
    fleet.world.webhook.lag = 20.0
    fleet.serve("vllm:2")
    fleet.settle()
    assert (
        "no older pod serves" in fleet.said("Released")[0]
        and "waited 1 s" in fleet.said("Released")[0]
    )
    replaced(fleet, "vllm:2")


def test_nobody_waits_longer_than_half_a_minute_for_older_pods_that_serve_no_more(
    fleet: Fleet,
) -> None:
    held(fleet)
    at = fleet.clock.now
    for pod in fleet.consumers("vllm:1"):
        fleet.world.crash_engine(pod)
    fleet.settle(until=lambda: not fleet.held())
    assert 29 <= fleet.clock.now - at <= 32 and "no older pod serves" in fleet.said("Released")[0]
    fleet.settle()
    replaced(fleet, "vllm:2")


@pytest.mark.parametrize("when", ["WhenServing", "Always"])
def test_a_statefulsets_pods_are_held_only_when_they_are_to_be(fleet: Fleet, when: str) -> None:
    fleet.stateful("vllm:1")
    fleet.apply(source=None, hold={"when": when})
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed") and fleet.serving() == 2
    fleet.stateful("vllm:2")
    least = lowest(fleet, FAR)
    assert least == 1 and fleet.serving("vllm:2") == 2
    assert bool(fleet.said("Held")) == (when == "Always")
    assert fleet.warm("vllm:2")[-1] and fleet.warm("vllm:2")[0] == (when == "Always")
    assert len({one.bundle for one in fleet.world.starts}) == 2 == fleet.engine_starts
    fleet.promises.at_rest()


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "bare pod", "Job"])
def test_labelled_pods_are_the_source_where_the_cache_names_none(fleet: Fleet, kind: str) -> None:
    make: Any = {
        "Deployment": fleet.serve,
        "StatefulSet": fleet.stateful,
        "bare pod": fleet.bare,
        "Job": fleet.batch,
    }[kind]
    fleet.apply(source=None)
    fleet.settle()
    assert fleet.ready == ("Unknown", "NoSource")
    make("vllm:1")
    fleet.settle()
    record = only_record(fleet)
    assert record["state"] == SEALED and fleet.engine_starts == 1
    assert not fleet.said("Held") and not fleet.warm()[0]


def test_a_bare_pod_and_a_job_start_warm_once_their_bundle_is_sealed(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.bare("vllm:1")
    fleet.batch("vllm:1")
    fleet.settle()
    assert fleet.warm()[3:] == [True, True] and fleet.engine_starts == 1
    assert fleet.server.list("batch/v1", "Job", "", labels="")[0] is not None


# --- several targets


def test_each_pod_gets_its_targets_bundle(fleet: Fleet) -> None:
    fleet.apply(targets=TWO, source=None)
    for name, product in (("b", "NVIDIA-B200"), ("h", "NVIDIA-H200")):
        fleet.serve(
            name=name, replicas=2, pod={"nodeSelector": {"nvidia.com/gpu.product": product}}
        )
    fleet.settle()
    assert fleet.ready == ("True", "Sealed"), fleet.message()
    for name in ("b", "h"):
        fleet.serve(name=name, replicas=3)
    fleet.settle()
    by_target = {note(one, "pretune.dev/bundle").partition("-")[2] for one in fleet.consumers()}
    assert by_target == {"b200", "h200"} and sum(fleet.warm()) == 2
    fleet.promises.at_rest()


def test_a_pod_whose_target_cannot_be_told_is_left_alone_until_its_annotation_says(
    fleet: Fleet,
) -> None:
    fleet.apply(targets=TWO)
    fleet.serve()
    fleet.settle(FAR)
    assert fleet.reasons() == {"TargetUnknown"} and fleet.serving() == 3 and not fleet.said("Held")
    fleet.serve(notes={TARGET: "h200"})
    fleet.settle(FAR)
    assert {one.bundle.partition("-")[2] for one in fleet.starts()[3:]} == {
        "h200"
    } and fleet.serving() == 3
    fleet.promises.at_rest()


# --- churn


def test_an_engine_that_is_new_in_each_revision_is_named_and_nobody_stays_held(
    fleet: Fleet,
) -> None:
    fleet.apply(source=None)
    fleet.world.engine_hangs = True
    for index in range(6):
        fleet.serve(name=f"each-{index}", replicas=1, env=[{"name": "POD_ID", "value": str(index)}])
    fleet.settle(60)
    assert fleet.condition("Stalled") == (
        "True",
        "TooManyFingerprints",
    ) and "POD_ID" in fleet.message("Stalled")
    fleet.world.engine_hangs = False
    fleet.settle(FAR)
    assert fleet.serving() == 6 and not fleet.held()
    fleet.promises.at_rest()
