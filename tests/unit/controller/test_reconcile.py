"""One reconcile of one cache, on the simulator's API server: what is sent, and what becomes of each answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pretune.controller.reconcile
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.names import CACHE, HOLD, ROLE
from pretune.api.timestamps import format_timestamp
from pretune.api.types import Key, Object
from pretune.controller.reconcile import (
    MAX_CONCURRENT_CALLS,
    RECONCILE_TIMEOUT_SECONDS,
    RELEASE_TIMEOUT_SECONDS,
    apply_actions,
    apply_concurrently,
    merge_patch,
    reconcile,
    release_orphaned_pods,
)
from pretune.controller.workqueue import RUN_TIMEOUT_SECONDS
from pretune.kube.types import ALL_NAMESPACES, ApiError, Cluster, Event
from pretune.manifests.gate import release_patch
from pretune.policy.bundles.turns import AttemptLedger
from pretune.policy.model import Action, Apply, Create, Delete, Observed, Outcome, Patch, Plan
from pretune.policy.pods.rescue import delete_stuck_pod

from tests.builders.caches import cache, claim
from tests.builders.constants import KEY, NOW, SETTINGS
from tests.builders.jobs import job
from tests.sim.cluster import Client, Clock, Server, _merge
from tests.unit import virtual

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
    return asyncio.run(apply_actions(KEY, actions, Client(world)))


def play(
    world: Server, decide: Decide, monkeypatch: pytest.MonkeyPatch, client: Client | None = None
) -> Any:
    monkeypatch.setattr(pretune.controller.reconcile, "decide", decide)
    return asyncio.run(reconcile(KEY, client or Client(world), SETTINGS, world.clock))


def status_of(world: Server) -> Object:
    return (
        world.objects["pretune.dev/v1alpha1", "AutotuneCache", KEY.namespace, KEY.name].get(
            "status"
        )
        or {}
    )


# --- actions


def test_what_was_made_is_the_outcome(world: Server) -> None:
    made = act(world, Create("create", JOB))["create"]
    assert made.code == 201 and made.object is not None and made.object["metadata"]["uid"]


def test_what_is_there_already_is_the_outcome_whatever_owns_it(world: Server) -> None:
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
    return {
        **{name: obj[name] for name in ("apiVersion", "kind")},
        "metadata": {**obj["metadata"], "uid": uid},
    }


@pytest.mark.parametrize("action", [Patch, Delete])
def test_another_object_of_the_same_name_is_neither_changed_nor_deleted(
    world: Server, action: type[Action]
) -> None:
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


# --- what comes after the status, in any order


def gated(world: Server, name: str) -> Object:
    gates = [{"name": "kueue.x-k8s.io/admission"}, {"name": HOLD}]
    meta = {"namespace": KEY.namespace, "name": name}
    return world.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"schedulingGates": gates}}
    )


def released(pod: Object) -> Patch:
    return Patch(
        f"release Pod {pod['metadata']['name']}",
        reference(pod, pod["metadata"]["uid"]),
        release_patch(),
        strategic=True,
    )


def gates(world: Server) -> dict[str, list[str]]:
    found = world.list("v1", "Pod", KEY.namespace)
    return {
        one["metadata"]["name"]: [gate["name"] for gate in one["spec"]["schedulingGates"]]
        for one in found
    }


KUEUES = ["kueue.x-k8s.io/admission"]


def together(client: Client, *actions: Action) -> list[Exception]:
    return list(asyncio.run(apply_concurrently(KEY, actions, client)).values())


def test_a_release_takes_our_gate_from_every_pod_and_leaves_the_others(world: Server) -> None:
    pods = [gated(world, f"p{n}") for n in range(40)]
    assert together(Client(world), *map(released, pods)) == []
    assert gates(world) == {f"p{n}": KUEUES for n in range(40)}


def test_pods_that_are_gone_or_others_by_now_are_no_error(world: Server) -> None:
    gone, another, there = (gated(world, name) for name in ("gone", "another", "there"))
    for one in (gone, another):
        world.delete(one)
    gated(world, "another")
    assert together(Client(world), *map(released, (gone, another, there))) == []
    assert gates(world) == {"another": [*KUEUES, HOLD], "there": KUEUES}


@pytest.mark.parametrize("code", [403, 422, 429, 500, 503])
def test_a_pod_that_is_refused_holds_up_no_other(
    world: Server, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    pods = [gated(world, f"p{n}") for n in range(40)]

    def admit(verb: str, obj: Object) -> None:
        if obj["metadata"]["name"] in ("p3", "p30"):
            raise ApiError(code, "", "not this one")

    world.admission.append(admit)
    failed = together(Client(world), *map(released, pods))
    assert [one.code for one in failed if isinstance(one, ApiError)] == [code, code]
    assert {name for name, some in gates(world).items() if HOLD in some} == {"p3", "p30"}
    assert f"inference/qwen3: release Pod p3: {code} : not this one" in caplog.messages


class Slow(Client):
    """Each answer takes a second; counts how many are awaited at a time."""

    now = most = 0
    silent = False

    async def patch(self, *args: Any, **more: Any) -> Object:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1.0)
        self.now -= 1
        self.calls.append("patch")
        if self.silent:
            raise TimeoutError
        return self.server.patch(*args, **more)


def test_some_are_carried_out_at_a_time_and_no_more(world: Server) -> None:
    pods = [gated(world, f"p{n}") for n in range(100)]
    client = Slow(world)

    async def story() -> float:
        began = asyncio.get_running_loop().time()
        assert await apply_concurrently(KEY, map(released, pods), client) == {}
        return asyncio.get_running_loop().time() - began

    assert virtual.run(story()) == 7.0
    assert client.most == MAX_CONCURRENT_CALLS == 16
    assert set(map(tuple, gates(world).values())) == {tuple(KUEUES)}


def test_when_the_api_server_does_not_answer_no_further_call_is_made(world: Server) -> None:
    client = Slow(world)
    client.silent = True
    pods = [gated(world, f"p{n}") for n in range(100)]
    failed = virtual.run(apply_concurrently(KEY, map(released, pods), client))
    assert len(client.calls) == len(failed) == MAX_CONCURRENT_CALLS


def test_events_of_the_status_are_recorded_though_a_pod_is_not_released_which_is_tried_again(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [gated(world, f"p{n}") for n in range(3)]

    def admit(verb: str, obj: Object) -> None:
        if obj["metadata"]["name"] == "p0":
            raise ApiError(500, "InternalError", "webhook failed")

    world.admission.append(admit)
    events = Event("Released", "3 pods"), Event("Sealed", "b")
    plan = Plan(status={"n": 1}, after=tuple(map(released, pods)), events=events)
    with pytest.raises(ApiError, match="webhook failed"):
        play(world, lambda observed, now: plan, monkeypatch)
    assert status_of(world) == {"n": 1}
    assert [one.reason for one in world.events] == [
        "Sealed"
    ]  # each retry would record another event of the release: "waited 61 s"
    assert gates(world) == {"p0": [*KUEUES, HOLD], "p1": KUEUES, "p2": KUEUES}
    world.admission.clear()
    play(world, lambda observed, now: plan, monkeypatch)
    assert [one.reason for one in world.events].count("Released") == 1


@pytest.mark.parametrize(
    ("refuses", "left"),
    [("no", ["p", "q"]), ("denies", ["q"]), ("does not answer", ["q"])],
)
def test_a_pod_that_cannot_be_released_is_deleted_unless_it_is_released_now(
    world: Server, monkeypatch: pytest.MonkeyPatch, refuses: str, left: list[str]
) -> None:
    """Where the patch alone is not answered, other actions still wait for an API server that is."""
    pod, other = gated(world, "p"), gated(world, "q")

    def admit(verb: str, obj: Object) -> None:
        if obj["kind"] == "Pod" and verb == "update":
            if refuses == "denies":
                raise ApiError(403, "Forbidden", "no UPDATE of pods")
            if refuses == "does not answer":
                raise TimeoutError

    world.admission.append(admit)
    after = (released(pod), delete_stuck_pod(pod))
    if refuses == "does not answer":
        after += (delete_stuck_pod(other),)
    plan = Plan(status={"n": 1}, after=after)
    with nullcontext() if refuses == "no" else pytest.raises((ApiError, TimeoutError)):
        play(world, lambda observed, now: plan, monkeypatch)
    assert sorted(gates(world)) == left


def test_a_release_is_recorded_though_what_else_comes_after_the_status_fails(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, made = gated(world, "p"), world.create(JOB)

    def admit(verb: str, obj: Object) -> None:
        if obj["kind"] == "Job":
            raise ApiError(503, "", "try again")

    world.admission.append(admit)
    after = (
        Patch("end Job", reference(JOB, made["metadata"]["uid"]), {"spec": {"suspend": True}}),
        released(pod),
    )
    plan = Plan(status={"n": 1}, after=after, events=(Event("Released", "1 pod"),))
    with pytest.raises(ApiError, match="try again"):
        play(world, lambda observed, now: plan, monkeypatch)
    assert [one.reason for one in world.events] == ["Released"] and gates(world) == {"p": KUEUES}


@pytest.mark.parametrize(
    ("code", "reconciles"),
    [(403, 1), (409, 3), (422, 1), (503, 1)],
    ids=["refused", "conflict", "invalid", "busy"],
)
def test_a_status_that_cannot_be_written_holds_no_pod_and_ends_nothing(
    world: Server, monkeypatch: pytest.MonkeyPatch, code: int, reconciles: int
) -> None:
    """A deletion waits for a status that remembers it; a gate that is gone is its own memory."""
    pod, made, seen_times, patch = gated(world, "p"), world.create(JOB), [], world.patch

    def refuse_status(*args: Any, **how: Any) -> Object:
        if how.get("status"):
            seen_times.append(code)
            raise ApiError(code, "", "not now")
        return patch(*args, **how)

    monkeypatch.setattr(world, "patch", refuse_status)
    ending = Delete("delete Job", reference(JOB, made["metadata"]["uid"]))
    events = Event("Released", "1 pod"), Event("Sealed", "b")
    plan = Plan(status={"n": 1}, after=(ending, released(pod)), events=events, requeue_after=60.0)
    if code == 409:
        assert play(world, lambda observed, now: plan, monkeypatch) == 0.0
    else:
        with pytest.raises(ApiError, match=str(code)):
            play(world, lambda observed, now: plan, monkeypatch)
    assert len(seen_times) == reconciles
    assert gates(world) == {"p": KUEUES} and [one.reason for one in world.events] == ["Released"]
    assert world.get("batch/v1", "Job", KEY.namespace, JOB["metadata"]["name"]) is not None


def test_a_release_that_fails_beside_a_status_that_is_never_written_is_an_error(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = gated(world, "p")

    def refuse_all(*_: Any, **how: Any) -> Object:
        raise ApiError(*((409, "", "changed") if how.get("status") else (503, "", "the pod's")))

    monkeypatch.setattr(world, "patch", refuse_all)
    plan = Plan(status={"n": 1}, after=(released(pod),), events=(Event("Released", "1 pod"),))
    with pytest.raises(ApiError, match="the pod's"):
        play(world, lambda observed, now: plan, monkeypatch)
    assert world.events == []


# --- a cache that cannot be reconciled


def aged(world: Server, name: str, age: float, cache: str = KEY.name) -> None:
    meta = {"namespace": KEY.namespace, "name": name, "labels": {CACHE: cache}}
    world.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"schedulingGates": [{"name": HOLD}]},
        }
    )
    world.objects["v1", "Pod", KEY.namespace, name]["metadata"]["creationTimestamp"] = (
        format_timestamp(NOW - age)
    )


def released_pods(world: Server) -> set[str]:
    return {
        one["metadata"]["name"]
        for one in world.list("v1", "Pod", KEY.namespace)
        if not one["spec"].get("schedulingGates")
    }


def stumble(observed: Observed, now: float) -> Plan:
    raise KeyError("a fault of ours")


@pytest.mark.parametrize(
    ("case", "hold", "free"),
    [
        ("as long as the spec says", {"timeoutSeconds": 600}, {"older"}),
        ("an hour, where it says nothing", {}, set()),
        ("for ever, where it says so", {"timeoutSeconds": 600, "onFailure": "Keep"}, set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pods_are_held_though_their_cache_cannot_be_reconciled(
    case: str, hold: Object, free: set[str], world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.patch(cache_ref(), {"spec": {"hold": hold}})
    aged(world, "older", 601)
    aged(world, "younger", 599)
    aged(world, "another-caches", 10_000, "other")
    with pytest.raises(KeyError, match="a fault of ours"):
        play(world, stumble, monkeypatch)
    assert released_pods(world) == free
    events = [(one.reason, one.message, one.warning) for one in world.events]
    words = "1 pods: spec.hold.timeoutSeconds has passed, and the cache cannot be reconciled: 'a fault of ours'"
    assert events == ([("Released", words, True)] if free else [])


async def failing() -> None:
    raise ApiError(500, "InternalError", "conversion webhook failed")


async def timing_out() -> None:
    raise TimeoutError


async def hanging() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (failing, ApiError, "conversion webhook failed"),
        (timing_out, TimeoutError, ": TimeoutError"),
        (hanging, TimeoutError, ": TimeoutError"),
    ],
)
def test_pods_are_released_though_the_source_cannot_be_read_for_hours(
    world: Server, answer: Callable[[], Awaitable[None]], error: type[Exception], message: str
) -> None:
    source = {
        "template": None,
        "workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
    }
    world.patch(cache_ref(), {"spec": {"source": source}})
    aged(world, "held", 3601)
    client = Client(world)

    async def get(api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind == "Deployment":
            await answer()
        return world.get(api_version, kind, namespace, name)

    client.get = get  # type: ignore[method-assign]
    with pytest.raises(error):
        virtual.run(reconcile(KEY, client, SETTINGS, world.clock))
    assert released_pods(world) == {"held"}
    assert [message in one.message for one in world.events if one.reason == "Released"] == [True]


def test_pods_that_cannot_be_released_either_are_no_event_and_cost_little_time(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(world, "held", 3601)
    client = Slow(world)
    client.silent = True
    monkeypatch.setattr(pretune.controller.reconcile, "decide", stumble)
    with pytest.raises(KeyError):
        virtual.run(reconcile(KEY, client, SETTINGS, world.clock))
    assert world.events == [] and released_pods(world) == set()


def test_when_nothing_answers_the_reconcile_and_what_follows_end_before_the_queue_ends_them(
    world: Server,
) -> None:
    client = Client(world)

    async def silent(*_: Any, **more: Any) -> Any:
        await asyncio.Event().wait()

    client.get = client.list = silent  # type: ignore[method-assign]

    async def story() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await reconcile(KEY, client, SETTINGS, world.clock)
        return asyncio.get_running_loop().time() - began

    assert (
        virtual.run(story())
        == RECONCILE_TIMEOUT_SECONDS + RELEASE_TIMEOUT_SECONDS
        < RUN_TIMEOUT_SECONDS
    )


def test_the_first_error_is_raised_whatever_else_fails(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(key: Key, cluster: Cluster) -> tuple[Object, ...]:
        raise ApiError(503, "", "try again")

    monkeypatch.setattr(pretune.controller.reconcile, "list_held_pods", refused)
    with pytest.raises(KeyError):
        play(world, stumble, monkeypatch)


# --- pods that no reconcile finds any more


def stray(
    world: Server, name: str, namespace: str = KEY.namespace, node: str = "", **labels: str
) -> None:
    meta = {"namespace": namespace, "name": name, "labels": labels}
    spec = {
        "schedulingGates": [*({"name": one} for one in KUEUES), {"name": HOLD}],
        **({"nodeName": node} if node else {}),
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": spec,
        "status": {"phase": "Pending"},
    }
    world.create(pod)
    world.patch(pod, {"status": pod["status"]}, status=True)


def test_a_pod_whose_label_was_taken_off_or_that_was_made_a_part_is_released_and_no_other(
    world: Server,
) -> None:
    parts = {CACHE: "qwen3", ROLE: "tuning"}
    for name, labels in {
        "bare": {},
        "empty": {CACHE: ""},
        "part": parts,
        "held": {CACHE: "qwen3"},
    }.items():
        stray(world, name, **labels)
    stray(world, "bare", "another")
    asyncio.run(release_orphaned_pods(Client(world), [KEY.namespace]))
    assert gates(world) == {
        **dict.fromkeys(("bare", "empty", "part"), KUEUES),
        "held": [*KUEUES, HOLD],
    }
    assert [len(one["spec"]["schedulingGates"]) for one in world.list("v1", "Pod", "another")] == [
        2
    ]
    asyncio.run(release_orphaned_pods(Client(world), ALL_NAMESPACES))
    assert [len(one["spec"]["schedulingGates"]) for one in world.list("v1", "Pod", "another")] == [
        1
    ]
    assert gates(world)["held"] == [*KUEUES, HOLD]


def test_a_pod_that_cannot_be_released_is_an_error_so_that_it_is_tried_again(world: Server) -> None:
    stray(world, "bare")
    refuse(world, "Pod", 503)
    with pytest.raises(ApiError, match="503"):
        asyncio.run(release_orphaned_pods(Client(world), [KEY.namespace]))


class RefusingIn(Client):
    """A client to which the API server refuses every patch in one namespace."""

    refusing = KEY.namespace

    async def patch(self, ref: Object, patch: Mapping[str, Any], **how: Any) -> Object:
        if ref["metadata"]["namespace"] == self.refusing:
            raise ApiError(403, "Forbidden", "a webhook of that namespace refuses it")
        return await super().patch(ref, patch, **how)

    async def list(self, api_version: str, kind: str, namespace: str, **how: Any) -> list[Object]:
        if namespace == self.refusing:
            raise ApiError(403, "Forbidden", "pods is forbidden")
        return await super().list(api_version, kind, namespace, **how)


@pytest.mark.parametrize("namespaces", [("",), (KEY.namespace, "second", "third")])
def test_a_namespace_that_refuses_a_release_keeps_no_other_one_back(
    world: Server, namespaces: tuple[str, ...]
) -> None:
    places = (KEY.namespace, "second", "third")
    for place in places:
        stray(world, "bare", place)
    with pytest.raises(ApiError, match="403"):
        asyncio.run(release_orphaned_pods(RefusingIn(world), namespaces))
    left = [len(world.list("v1", "Pod", place)[0]["spec"]["schedulingGates"]) for place in places]
    assert left == [2, 1, 1]


# --- the story


def test_a_refusal_is_decided_on_in_the_same_run(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(world, "Job", 403)

    def decide(observed: Observed, now: float) -> Plan:
        refused = observed.outcomes.get("create Job")
        return Plan(
            actions=(Create("create Job", JOB),),
            status={"message": refused.message if refused else "nothing yet"},
        )

    play(world, decide, monkeypatch)
    assert status_of(world) == {"message": "exceeded quota: gpus"}


def test_the_status_is_written_once_between_the_actions_and_what_comes_after(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create(JOB)

    def decide(observed: Observed, now: float) -> Plan:
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


def test_a_status_that_says_what_is_there_is_not_written(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(observed: Observed, now: float) -> Plan:
        return Plan(status={"list": ({"a": 1, "empty": None},), "empty": None, "map": {"b": {}}})

    for writes in (1, 0, 0):
        client = Client(world)
        play(world, decide, monkeypatch, client)
        assert len(client.writes) == writes


def test_a_field_that_is_no_longer_wanted_goes(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 2}}
    play(world, lambda observed, now: Plan(status=first), monkeypatch)
    assert status_of(world) == first
    play(world, lambda observed, now: Plan(status=second), monkeypatch)
    assert status_of(world) == second


def test_a_cache_that_changed_meanwhile_is_observed_again_at_once_before_anything_else_is_done(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = []

    def decide(observed: Observed, now: float) -> Plan:
        assert observed.cache is not None
        generations.append(observed.cache["metadata"]["generation"])
        if len(generations) == 1:  # a person's edit, after our read
            world.patch(cache_ref(), {"spec": {"revision": "2"}})
        return Plan(
            status={"observedGeneration": generations[-1]},
            events=(Event("Tuning", str(generations[-1])),),
        )

    play(world, decide, monkeypatch)
    assert generations == [1, 2]
    assert status_of(world) == {"observedGeneration": 2}
    assert [one.message for one in world.events] == ["2"]


def test_a_cache_that_others_write_to_all_the_time_is_left_to_the_queue(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciles = []

    def decide(observed: Observed, now: float) -> Plan:
        reconciles.append(now)
        world.patch(cache_ref(), {"spec": {"revision": str(len(reconciles))}})
        return Plan(status={"n": len(reconciles)})

    assert play(world, decide, monkeypatch) == 0.0
    assert len(reconciles) == 3 and status_of(world) == {}


def test_a_cache_that_is_deleted_meanwhile_is_reconciled_as_gone(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(observed: Observed, now: float) -> Plan:
        if observed.cache is None:
            return Plan(requeue_after=30.0)
        world.remove(("pretune.dev/v1alpha1", "AutotuneCache", KEY.namespace, KEY.name))
        return Plan(status={"n": 1})

    assert play(world, decide, monkeypatch) == 30.0


def test_an_error_while_acting_leaves_the_status_as_it_was(
    world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(world, "Job", 503)
    with pytest.raises(ApiError):
        play(world, lambda observed, now: Plan((Create("create Job", JOB),), {"n": 1}), monkeypatch)
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
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS: Any = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(old=OBJECTS, new=OBJECTS)
def test_the_difference_makes_one_out_of_the_other_and_is_empty_only_between_equals(
    old: Object, new: Object
) -> None:
    patch = merge_patch(old, new)
    assert _merge(old, patch) == new
    assert bool(patch) == (old != new)


# --- turns


def test_a_cache_whose_turn_has_not_come_says_so_and_is_woken_when_it_has() -> None:
    world, woken = Server(Clock(NOW)), list[Key]()
    ledger = AttemptLedger(1, woken.append)
    first, second, third = keys = [Key(name, KEY.name) for name in ("first", "second", "third")]

    def look(key: Key) -> None:
        for _ in range(3):  # the claim, the agent, the Job
            asyncio.run(reconcile(key, Client(world), SETTINGS, world.clock, ledger=ledger))

    def attempts(key: Key) -> list[Object]:
        return list(world.matching("batch/v1", "Job", key.namespace, f"{ROLE}=tuning", ""))

    def message(key: Key) -> str:
        place = ("pretune.dev/v1alpha1", "AutotuneCache", key.namespace, key.name)
        [bundle] = world.objects[place]["status"]["bundles"]
        return f"{bundle['reason']}: {bundle['message']}"

    for key in keys:
        wanted = cache()
        world.create({**wanted, "metadata": {**wanted["metadata"], "namespace": key.namespace}})
        look(key)
        place = ("v1", "PersistentVolumeClaim", key.namespace, f"pretune-{key.name}")
        made = world.objects[place]
        world.patch(made, {"status": {"phase": "Bound"}}, status=True)
        look(key)
    assert [len(attempts(key)) for key in keys] == [1, 0, 0]
    assert message(second).startswith("WaitingForTurn: ") and "place 1 of 1" in message(second)
    assert "place 2 of 2" in message(third)
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    world.patch(attempts(first)[0], {"status": ended}, status=True)
    woken.clear()
    look(first)
    assert woken[0] == second
    look(third)
    assert not attempts(third), "it is not its turn, whoever asks first"
    look(second)
    assert attempts(second)
