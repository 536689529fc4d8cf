"""One look at one cache, on the simulator's API server: what is sent, and what becomes of each answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pretune.reconcile
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api import Object
from pretune.cluster import ApiError
from pretune.model import Action, Apply, Create, Delete, Event, Observed, Outcome, Patch, Plan
from pretune.reconcile import carry_out, difference, reconcile

from tests.sim.cluster import Client, Clock, Server, _merge
from tests.unit.objects import KEY, NOW, SETTINGS, cache, claim, job

Decide = Callable[[Observed, float], Plan]
JOB = {**job("b-default"), "spec": {"template": {}}}


@pytest.fixture
def world() -> Server:
    server = Server(Clock(NOW))
    server.create(cache())
    server.create(claim())
    return server


def refuse(world: Server, kind: str, code: int) -> None:
    def admit(verb: str, obj: Object) -> None:
        if obj["kind"] == kind:
            raise ApiError(code, "", "exceeded quota: gpus")

    world.admission.append(admit)


def act(world: Server, *actions: Action) -> dict[str, Outcome]:
    return asyncio.run(carry_out(KEY, actions, Client(world)))


def play(world: Server, decide: Decide, monkeypatch: pytest.MonkeyPatch, client: Client | None = None) -> Any:
    monkeypatch.setattr(pretune.reconcile, "decide", decide)
    return asyncio.run(reconcile(KEY, client or Client(world), SETTINGS, world.clock))


def status_of(world: Server) -> Object:
    return world.objects["pretune.dev/v1alpha1", "AutotuneCache", KEY.namespace, KEY.name].get("status") or {}


# --- actions


def test_what_was_made_is_the_outcome(world: Server) -> None:
    made = act(world, Create("create", JOB))["create"]
    assert made.code == 201 and made.object is not None and made.object["metadata"]["uid"]


def test_what_is_there_already_is_the_outcome_whoever_it_belongs_to(world: Server) -> None:
    theirs = copy.deepcopy(JOB)
    theirs["metadata"]["ownerReferences"] = [{"uid": "somebody", "controller": True}]
    world.create(theirs)
    there = act(world, Create("create", JOB))["create"]
    assert there.code == 409 and there.object is not None
    assert there.object["metadata"]["ownerReferences"][0]["uid"] == "somebody"


@pytest.mark.parametrize("code", [400, 403, 422])
def test_what_the_api_server_says_of_an_object_is_an_answer_and_the_next_action_goes_on(
    world: Server, code: int
) -> None:
    refuse(world, "Job", code)
    outcomes = act(world, Create("create", JOB), Apply("apply", claim()))
    assert (outcomes["create"].code, outcomes["create"].message) == (code, "exceeded quota: gpus")
    assert outcomes["apply"].code == 200


@pytest.mark.parametrize("code", [401, 404, 429, 503])
def test_any_other_answer_is_an_error(world: Server, code: int) -> None:
    refuse(world, "Job", code)
    with pytest.raises(ApiError):
        act(world, Create("create", JOB))


def reference(obj: Object, uid: str) -> Object:
    return {**{name: obj[name] for name in ("apiVersion", "kind")}, "metadata": {**obj["metadata"], "uid": uid}}


@pytest.mark.parametrize("action", [Patch, Delete])
def test_another_object_of_the_same_name_is_neither_changed_nor_deleted(world: Server, action: type[Action]) -> None:
    made = world.create(JOB)
    before = len(world.writes)
    more = {"patch": {"spec": {"activeDeadlineSeconds": 1}}} if action is Patch else {}
    assert act(world, action("x", object=reference(JOB, "another"), **more)) == {}  # type: ignore[call-arg]
    assert len(world.writes) == before
    act(world, action("x", object=reference(JOB, made["metadata"]["uid"]), **more))  # type: ignore[call-arg]
    assert len(world.writes) == before + 1


@pytest.mark.parametrize("action", [Patch("x", JOB, {"spec": {"suspend": True}}), Delete("x", JOB)])
def test_what_is_gone_already_needs_nothing(world: Server, action: Action) -> None:
    assert act(world, action) == {}


# --- the story


def test_a_refusal_is_decided_on_in_the_same_run(world: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(world, "Job", 403)

    def decide(seen: Observed, now: float) -> Plan:
        said = seen.outcomes.get("create Job")
        return Plan(actions=(Create("create Job", JOB),), status={"said": said.message if said else "nothing yet"})

    play(world, decide, monkeypatch)
    assert status_of(world) == {"said": "exceeded quota: gpus"}


def test_the_status_is_written_once_between_the_actions_and_what_comes_after(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create(JOB)

    def decide(seen: Observed, now: float) -> Plan:
        ending = Delete("delete Job", JOB)
        made = Create("create Job", {**JOB, "metadata": {**JOB["metadata"], "name": "second"}})
        return Plan((made,), {"n": 1}, (ending,), (Event("Tuning", "now"),), 7.0)

    client = Client(world)
    assert play(world, decide, monkeypatch, client) == 7.0
    wrote = [call for call in client.calls if call.split()[0] not in ("get", "list")]
    assert wrote == [
        "create Job second",
        "status AutotuneCache qwen3",
        f"delete Job {JOB['metadata']['name']}",
        "event Tuning",
    ]


def test_a_status_that_says_what_is_there_is_not_written(world: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(seen: Observed, now: float) -> Plan:
        return Plan(status={"list": ({"a": 1, "empty": None},), "empty": None, "map": {"b": {}}})

    for writes in (1, 0, 0):
        client = Client(world)
        play(world, decide, monkeypatch, client)
        assert len(client.writes) == writes


def test_a_field_that_is_no_longer_wanted_goes(world: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 2}}
    play(world, lambda seen, now: Plan(status=first), monkeypatch)
    assert status_of(world) == first
    play(world, lambda seen, now: Plan(status=second), monkeypatch)
    assert status_of(world) == second


def test_a_cache_that_changed_meanwhile_is_observed_again_at_once_before_anything_else_is_done(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = []

    def decide(seen: Observed, now: float) -> Plan:
        assert seen.cache is not None
        generations.append(seen.cache["metadata"]["generation"])
        if len(generations) == 1:  # a person's edit, after our read
            world.patch(cache_ref(), {"spec": {"revision": "2"}})
        return Plan(status={"observedGeneration": generations[-1]}, events=(Event("Tuning", str(generations[-1])),))

    play(world, decide, monkeypatch)
    assert generations == [1, 2]
    assert status_of(world) == {"observedGeneration": 2}
    assert [one.message for one in world.events] == ["2"]


def test_a_cache_that_others_write_to_all_the_time_is_left_to_the_queue(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def decide(seen: Observed, now: float) -> Plan:
        looks.append(now)
        world.patch(cache_ref(), {"spec": {"revision": str(len(looks))}})
        return Plan(status={"n": len(looks)})

    assert play(world, decide, monkeypatch) == 0.0
    assert len(looks) == 3 and status_of(world) == {}


def test_a_cache_that_is_deleted_meanwhile_is_looked_at_as_gone(world: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(seen: Observed, now: float) -> Plan:
        if seen.cache is None:
            return Plan(look_again=30.0)
        world.remove(("pretune.dev/v1alpha1", "AutotuneCache", KEY.namespace, KEY.name))
        return Plan(status={"n": 1})

    assert play(world, decide, monkeypatch) == 30.0


def test_an_error_while_acting_leaves_the_status_as_it_was(world: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(world, "Job", 503)
    with pytest.raises(ApiError):
        play(world, lambda seen, now: Plan((Create("create Job", JOB),), {"n": 1}), monkeypatch)
    assert status_of(world) == {}


def test_the_real_decision_makes_the_claim_and_says_so(world: Server) -> None:
    world.remove(("v1", "PersistentVolumeClaim", KEY.namespace, "pretune-qwen3"))
    asyncio.run(reconcile(KEY, Client(world), SETTINGS, world.clock))
    assert world.get("v1", "PersistentVolumeClaim", KEY.namespace, "pretune-qwen3") is not None
    ready = {one["type"]: one["status"] for one in status_of(world)["conditions"]}
    assert ready["Ready"] == "False" and ready["StorageReady"] == "False"


def cache_ref() -> Object:
    meta = {"namespace": KEY.namespace, "name": KEY.name}
    return {"apiVersion": "pretune.dev/v1alpha1", "kind": "AutotuneCache", "metadata": meta}


VALUES: Any = st.recursive(
    st.one_of(st.integers(0, 2), st.sampled_from(["", "a"]), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)
OBJECTS: Any = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(old=OBJECTS, new=OBJECTS)
def test_the_difference_makes_one_out_of_the_other_and_is_empty_only_between_equals(old: Object, new: Object) -> None:
    patch = difference(old, new)
    assert _merge(old, patch) == new
    assert bool(patch) == (old != new)
