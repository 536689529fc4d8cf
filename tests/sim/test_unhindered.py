"""Journeys in which something of ours fails: a pod that would start without us starts with us, in time, with a reason that a person
finds (docs/dev/invariants.md, 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pretune.api.names import RETIRED, SEALED, SEED_CONTAINER
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.kube.types import ApiError
from pretune.manifests.agent_archive import agent_name, build_agent_config_map, is_agent
from pretune.protocol import Report, Versions

from tests.builders.constants import KEY
from tests.builders.templates import serving_template
from tests.sim.fleet import Fleet
from tests.sim.reading import end_of
from tests.sim.simulation import CACHE as THE_CACHE
from tests.sim.simulation import CLAIM, FAR
from tests.sim.steps import CLAIM_PLACE, held, lowest, replaced, rolled_out

Fault = Callable[[Fleet], object]


def seeds(fleet: Fleet) -> set[str]:
    """What the seeds of living pods reported."""
    ends = [end_of(pod, SEED_CONTAINER) for pod in fleet.consumers()]
    reports = [Report.load(end["message"]) for end in ends if end and "message" in end]
    return {one.reason for one in reports if one}


# --- a seed that finds nothing to give


def lose_the_folder(fleet: Fleet) -> None:
    fleet.world.volumes[fleet.world.claim_uid(KEY.namespace, CLAIM)].bundles.clear()


def flip_a_byte(fleet: Fleet) -> None:
    volume = fleet.world.volumes[fleet.world.claim_uid(KEY.namespace, CLAIM)]
    volume.torn |= set(volume.bundles)


def other_versions(fleet: Fleet) -> None:
    fleet.world.versions["vllm:1"] = Versions(vllm="0.34.0")


def lose_the_agent(fleet: Fleet) -> None:
    """While nobody is there to make it anew."""
    fleet.down()
    fleet.delete(("v1", "ConfigMap", KEY.namespace, agent_name()))


def change_the_agent(fleet: Fleet) -> None:
    """As a person who may write ConfigMaps, and not pods."""
    lose_the_agent(fleet)
    foreign = build_agent_config_map(KEY.namespace)
    foreign["binaryData"] = {"agent.py": "ZXZpbA=="}
    fleet.server.create(foreign)


SEED_FINDS: dict[str, tuple[Fault, str]] = {
    "bundle folder removed": (lose_the_folder, "NoBundle"),
    "one byte flipped": (flip_a_byte, "CorruptBundle"),
    "other versions in the image": (other_versions, "VersionsDiffer"),
    "agent ConfigMap deleted": (lose_the_agent, "AgentMissing"),
    "agent ConfigMap changed": (change_the_agent, "AgentChanged"),
    "image without python3": (lambda fleet: fleet.world.without_python.add("vllm:1"), "NoPython"),
    "no space": (lambda fleet: setattr(fleet.world, "seed_says", "NoSpace"), "NoSpace"),
}


@pytest.mark.parametrize("name", SEED_FINDS)
def test_a_seed_that_cannot_give_says_why_and_the_pod_starts_cold(fleet: Fleet, name: str) -> None:
    fault, word = SEED_FINDS[name]
    rolled_out(fleet)
    fault(fleet)
    fleet.serve(replicas=5)
    fleet.settle()
    assert fleet.serving() == 5 and fleet.warm()[3:] == [False] * 2 and word in seeds(fleet)
    fleet.come_up()
    fleet.settle(FAR)
    assert fleet.counted["cold"] >= 2 and fleet.serving() == 5
    stored = fleet.server.stored("v1", "ConfigMap", KEY.namespace, agent_name())
    assert stored is not None and is_agent(stored), "it is written again"
    fleet.promises.at_rest()


@pytest.mark.parametrize("fault", [lose_the_folder, flip_a_byte, other_versions])
def test_an_engine_that_reads_the_bundle_itself_starts_cold_without_it(
    fleet: Fleet, fault: Fault
) -> None:
    fleet.world.layout = "Managed"
    rolled_out(fleet)
    fault(fleet)
    fleet.serve(replicas=5)
    fleet.settle()
    assert "ReadOnly" in fleet.modes() and fleet.warm()[3:] == [False] * 2
    fleet.promises.at_rest()


def test_an_agent_that_was_deleted_is_made_again_before_the_next_pods_need_it(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.delete(("v1", "ConfigMap", KEY.namespace, agent_name()))
    fleet.settle()
    fleet.serve(replicas=5)
    fleet.settle()
    assert fleet.warm()[3:] == [True] * 2


# --- what keeps a pod from starting is taken away


def unmountable(fleet: Fleet) -> None:
    fleet.world.unmountable.add(CLAIM)


RESCUED: dict[str, tuple[Fault, str, float]] = {
    "mount fails": (unmountable, "MountFailed", 110),
    "image without a shell": (
        lambda fleet: fleet.world.without_shell.update({"vllm:1", "vllm:2"}),
        "SeedCannotRun",
        80,
    ),
    "storage that does not answer": (
        lambda fleet: setattr(fleet.world, "seed_hangs", True),
        "MountFailed",
        105,
    ),
}


@pytest.mark.parametrize("name", RESCUED)
@pytest.mark.parametrize("made_by", ["Deployment", "StatefulSet"])
def test_a_pod_that_only_we_keep_from_starting_is_replaced_once_by_one_without_us(
    fleet: Fleet, name: str, made_by: str
) -> None:
    fault, word, within = RESCUED[name]
    rolled_out(fleet)
    fault(fleet)
    make: dict[str, Callable[[], None]] = {
        "Deployment": lambda: fleet.serve(replicas=5),
        "StatefulSet": lambda: fleet.stateful(),
    }
    make[made_by]()
    fleet.settle(1000)
    assert word == fleet.record["undeliverable"]["reason"] and word in fleet.said("Rescued")[0]
    assert len(fleet.promises.deleted) == {"Deployment": 2, "StatefulSet": 1}[made_by]
    assert fleet.promises.stuck_for <= within
    assert fleet.warm()[3:] == [False] * 2
    assert fleet.ready == ("True", "Sealed"), "the bundle itself is well"
    fleet.promises.at_rest()


@pytest.mark.parametrize(
    ("layout", "word"), [("PerRank", "SeedCannotRun"), ("Managed", "MountFailed")]
)
def test_a_pod_whose_mounted_claim_has_gone_stale_is_rescued_from_its_seed_or_its_engine(
    fleet: Fleet, layout: str, word: str
) -> None:
    fleet.world.layout = layout
    rolled_out(fleet)
    fleet.world.stale.add(CLAIM)
    fleet.serve(replicas=5)
    fleet.settle(1000)
    assert fleet.record["undeliverable"]["reason"] == word and fleet.promises.stuck_for <= 75
    assert len(fleet.promises.deleted) == 2
    replaced(fleet, "vllm:1", 5)


@pytest.mark.parametrize("name", RESCUED)
def test_a_released_pod_that_only_we_keep_from_starting_is_rescued_too_while_the_old_ones_serve(
    fleet: Fleet, name: str
) -> None:
    fault, word, _ = RESCUED[name]
    held(fleet)
    fault(fleet)
    assert lowest(fleet, FAR) == 3
    assert word in fleet.said("Rescued")[0] and len(fleet.promises.deleted) == 1
    replaced(fleet, "vllm:2")


def test_a_jobs_pod_is_not_deleted_since_its_job_would_count_that(fleet: Fleet) -> None:
    rolled_out(fleet)
    unmountable(fleet)
    fleet.batch()
    fleet.settle(1000)
    assert "counts a deleted pod" in fleet.said("Rescued")[0] and not fleet.promises.deleted
    [pod] = [one for one in fleet.consumers() if one["metadata"]["labels"]["app"] == "batch"]
    fleet.delete(("v1", "Pod", KEY.namespace, pod["metadata"]["name"]))
    fleet.settle(60)
    assert fleet.warm()[-1:] == [False], "its replacement starts without the bundle"
    fleet.promises.at_rest()


def test_a_bare_pod_is_not_deleted_and_a_person_reads_what_to_do(fleet: Fleet) -> None:
    rolled_out(fleet)
    unmountable(fleet)
    fleet.bare()
    fleet.settle(FAR)
    assert (
        "no controller owns it: delete it" in fleet.said("Rescued")[0]
        and not fleet.promises.deleted
    )
    fleet.delete(("v1", "Pod", KEY.namespace, "bare"))
    fleet.settle(60)
    fleet.bare()
    fleet.settle(60)
    assert fleet.serving() == 4 and fleet.warm()[-1:] == [False]


@pytest.mark.parametrize("mended", [True, False])
def test_a_mount_that_failed_is_tried_again_after_an_hour_by_pods_that_are_made_then(
    fleet: Fleet, mended: bool
) -> None:
    rolled_out(fleet)
    unmountable(fleet)
    fleet.serve(replicas=4)
    fleet.settle(1000)
    if mended:
        fleet.world.unmountable.clear()
    fleet.serve(replicas=5)
    fleet.settle(60)
    assert fleet.warm()[-1:] == [False] and len(fleet.promises.deleted) == 1
    fleet.clock.advance(3700)
    fleet.serve(replicas=6)
    fleet.settle(1000)
    assert fleet.warm()[-1:] == [mended] and len(fleet.promises.deleted) == (1 if mended else 2)
    fleet.promises.at_rest()


def test_a_mended_mount_is_believed_with_the_next_bundle(fleet: Fleet) -> None:
    rolled_out(fleet)
    unmountable(fleet)
    fleet.serve(replicas=4)
    fleet.settle(1000)
    fleet.world.unmountable.clear()
    fleet.apply(revision="mended")
    fleet.settle(1000)
    fleet.serve(replicas=5)
    fleet.settle()
    assert fleet.warm()[-1:] == [True]
    fleet.promises.at_rest()


# --- the claim


def test_pods_are_left_alone_while_the_claim_cannot_be_used(fleet: Fleet) -> None:
    fleet.world.provisioner = False
    fleet.apply()
    fleet.settle()
    fleet.serve()
    fleet.settle(60)
    assert fleet.reasons() == {"StorageNotReady"} and fleet.serving() == 3
    fleet.world.provisioner = True
    fleet.settle(FAR)
    assert fleet.ready == ("True", "Sealed")
    fleet.promises.at_rest()


def test_a_claim_that_waits_for_its_first_pod_and_is_never_made_is_got_out_of_the_way(
    fleet: Fleet,
) -> None:
    meta = {"name": "wait"}
    fleet.server.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": meta,
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    )
    fleet.world.provisioner = False
    fleet.apply(storage={"claim": {"storageClassName": "wait"}})
    fleet.settle()
    fleet.serve()
    fleet.settle(FAR)
    assert fleet.serving() == 3 and fleet.promises.stuck_for <= 75
    assert fleet.promises.deleted or fleet.reasons() == {"StorageNotReady"}
    fleet.promises.at_rest()


def test_a_claim_deleted_between_admission_and_start_does_not_stop_a_pod(fleet: Fleet) -> None:
    """The webhook has not seen it yet."""
    rolled_out(fleet)
    fleet.serve(replicas=0)
    fleet.settle(60)
    fleet.world.webhook.lag = 30.0
    fleet.clock.advance(60)
    fleet.delete(CLAIM_PLACE)
    fleet.serve(replicas=3)
    fleet.settle(FAR)
    replaced(fleet, "vllm:1")


def test_pods_that_cannot_mount_start_also_when_a_person_deletes_the_cache_to_be_rid_of_it(
    fleet: Fleet,
) -> None:
    rolled_out(fleet)
    unmountable(fleet)
    fleet.serve(replicas=5)
    fleet.settle(20)
    fleet.delete(THE_CACHE)
    fleet.settle(FAR)
    assert fleet.serving() == 5


def test_pods_of_a_webhook_that_does_not_know_that_cache_and_claim_are_gone_start_all_the_same(
    fleet: Fleet,
) -> None:
    rolled_out(fleet, replicas=1)
    fleet.serve(replicas=0)
    fleet.settle(60)
    fleet.world.webhook.lose_sight()
    fleet.delete(THE_CACHE)
    fleet.settle(FAR)
    assert fleet.server.get(*CLAIM_PLACE) is None
    fleet.serve(replicas=2)
    fleet.settle(60)
    fleet.world.webhook.regain_sight()
    fleet.settle(FAR)
    assert fleet.serving() == 2, [one["status"] for one in fleet.consumers()]


# --- the webhook and others


def test_pods_that_the_webhook_never_saw_just_start(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.world.webhook.up = False
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.modes("vllm:2") == {""} and fleet.warm("vllm:2") == [False] * 3
    replaced(fleet, "vllm:2")


def mirror(pod: Object) -> None:
    for one in pod["spec"]["containers"]:
        if not one["image"].startswith("mirror/"):
            one["image"] = f"mirror/{one['image']}"


def add_proxy(pod: Object) -> None:
    if all(one["name"] != "proxy" for one in pod["spec"]["containers"]):
        pod["spec"]["containers"].append({"name": "proxy", "image": "proxy:1"})
        pod["metadata"].setdefault("annotations", {})["mesh"] = "injected"


def add_identity(pod: Object) -> None:
    container = pod["spec"]["containers"][0]
    if all(one["name"] != "POD_TOKEN" for one in container.get("env") or ()):
        container.setdefault("env", []).append(
            {"name": "POD_TOKEN", "value": pod["metadata"].get("name", "")}
        )


@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_what_other_webhooks_make_of_a_pod_makes_no_other_bundle_and_it_is_injected_once(
    fleet: Fleet, order: str
) -> None:
    webhook, others = fleet.world.webhook, [mirror, add_proxy, add_identity]
    if order in ("before", "both"):
        webhook.before = list(others)
    if order in ("after", "both"):
        webhook.after = list(others)
    fleet.serve("vllm:1")
    fleet.apply()
    fleet.settle()
    fleet.serve("vllm:2")
    fleet.settle()
    assert (
        fleet.warm("mirror/vllm:2") == [True] * 3
        and len({one.bundle for one in fleet.world.starts}) == 2
    )
    for pod in fleet.consumers():
        names = [one["name"] for one in pod["spec"]["initContainers"]]
        assert names.count(SEED_CONTAINER) == 1 and [
            one["name"] for one in pod["spec"]["containers"]
        ] == [
            "vllm",
            "proxy",
        ]
    replaced(fleet, "mirror/vllm:2")


def take_names(fleet: Fleet) -> None:
    volume = {"name": "pretune-claim", "emptyDir": {}}
    fleet.serve("vllm:2", pod={"volumes": [volume]})


def set_the_variable(fleet: Fleet) -> None:
    fleet.serve("vllm:2", env=[{"name": OVERRIDE, "value": "/models/tactics"}])


def cannot_read_owners(fleet: Fleet) -> None:
    fleet.world.webhook.client.broken = ApiError(403, "Forbidden", "replicasets is forbidden")
    fleet.serve("vllm:2")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (take_names, "NamesCollide"),
        (set_the_variable, "OverrideSet"),
        (cannot_read_owners, "OwnerUnreadable"),
    ],
)
def test_what_cannot_be_given_to_a_pod_leaves_it_as_it_came_and_it_starts(
    fleet: Fleet, change: Fault, word: str
) -> None:
    rolled_out(fleet)
    change(fleet)
    fleet.settle()
    assert fleet.reasons("vllm:2") == {word} and fleet.warm("vllm:2") == [False] * 3
    assert not any("initContainers" in one["spec"] for one in fleet.consumers("vllm:2"))
    replaced(fleet, "vllm:2")


def test_a_rollback_to_a_bundle_that_was_to_be_deleted_finds_it(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"bundleHistoryLimit": 0})
    first = fleet.record["id"]
    fleet.serve("vllm:2")
    fleet.settle(FAR, until=lambda: any(one["state"] == RETIRED for one in fleet.records))
    fleet.settle(60)
    fleet.serve("vllm:1")
    fleet.settle(FAR)
    assert (
        fleet.warm("vllm:1")[3:] == [True] * 3
        and first in fleet.on_claim()
        and fleet.engine_starts == 2
    )
    replaced(fleet, "vllm:1")


# --- everything at once


def test_a_rollout_of_twenty_pods_ends_whatever_fails_on_the_way(fleet: Fleet) -> None:
    rolled_out(fleet, replicas=20, strategy={"rollingUpdate": {"maxSurge": 5, "maxUnavailable": 5}})
    fleet.serve("vllm:2")
    fleet.settle(until=lambda: bool(fleet.held()))
    fleet.world.webhook.lag = 10.0
    fleet.settle(until=lambda: fleet.record["state"] == SEALED)
    fleet.down()
    unmountable(fleet)
    fleet.settle(60)
    fleet.world.webhook.up = False
    fleet.come_up()
    fleet.settle(60)
    fleet.world.webhook.up = True
    flip_a_byte(fleet)
    fleet.settle(FAR)
    replaced(fleet, "vllm:2", 20)


def test_a_cache_that_is_deleted_under_serving_pods_keeps_its_claim_for_them(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.serve(replicas=5)
    fleet.settle()
    fleet.delete(THE_CACHE)
    fleet.settle(FAR)
    assert fleet.serving() == 5 and fleet.server.get(*CLAIM_PLACE) is not None
    fleet.serve("vllm:2", replicas=2)
    fleet.settle(FAR)
    assert fleet.serving("vllm:2") == 2 and fleet.reasons("vllm:2") == {"NoCache"}
    assert fleet.server.get(*CLAIM_PLACE) is None, "no pod names it any more"


# --- what is given, and when no more


def test_a_bundle_that_living_pods_name_is_kept_whatever_the_history(fleet: Fleet) -> None:
    rolled_out(fleet, spec={"bundleHistoryLimit": 0})
    first = fleet.record["id"]
    fleet.serve("vllm:2")
    fleet.settle(60, until=lambda: fleet.serving("vllm:2") == 1)
    assert first in fleet.on_claim()
    fleet.settle(FAR)
    assert first not in fleet.on_claim() and fleet.serving("vllm:2") == 3


def spoil(fleet: Fleet) -> None:
    fleet.world.engine_crashes = 6  # three attempts, each started twice


def refuse(fleet: Fleet) -> None:
    fleet.world.check_says = [("ReleaseTooOld", "vllm 0.24 in the image")]


def suspend(fleet: Fleet) -> None:
    fleet.apply(suspend=True)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (spoil, "TuningFailed"),
        (refuse, "NotTunable"),
        (suspend, "Suspended"),
        (lambda _: None, "Given"),
    ],
)
def test_pods_of_an_engine_about_which_all_is_known_do_not_wait(
    fleet: Fleet, fault: Fault, word: str
) -> None:
    rolled_out(fleet, spec={"source": {"template": serving_template(image="vllm:1")}})
    fault(fleet)
    fleet.apply(source={"template": serving_template(image="vllm:2")})
    fleet.settle(FAR)
    fleet.serve("vllm:2")
    fleet.settle()
    assert fleet.reasons("vllm:2") == {word} and not fleet.said("Held")
    assert fleet.warm("vllm:2") == [word == "Given"] * 3
    replaced(fleet, "vllm:2")


def test_pods_are_counted_as_stale_when_their_tag_has_moved(fleet: Fleet) -> None:
    rolled_out(fleet)
    fleet.world.content["vllm:1"] = "vllm:1 of today"
    fleet.serve(replicas=4)
    fleet.settle()
    assert fleet.counted["stale"] == 1 and fleet.counted["seeded"] == 1
    fleet.promises.at_rest()


@pytest.mark.parametrize("mode", ["ReadOnly", "Overlay", "None"])
@pytest.mark.parametrize("layout", ["Managed", "PerRank", "Shared", "Empty"])
def test_each_layout_is_delivered_as_asked_where_that_is_safe(
    fleet: Fleet, mode: str, layout: str
) -> None:
    fleet.world.layout = layout
    fleet.apply(delivery={"mode": mode})
    fleet.serve(replicas=0)
    fleet.settle()
    fleet.serve(replicas=2)
    fleet.settle()
    given = (
        "None" if "None" in mode or layout == "Empty" else "Overlay" if layout == "Shared" else mode
    )
    assert fleet.modes() == {given} and fleet.warm() == [given != "None"] * 2
    fleet.promises.at_rest()
