"""Which handlers kopf has, and what the kubelet is answered; that keys are woken is seen on the real cluster (tests/cluster)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration
from pretune.api.names import CACHE
from pretune.api.types import Key, Object
from pretune.controller.main import (
    HEALTH_STUCK_SECONDS,
    LABELLED_KINDS,
    NamespaceReadableError,
    build_registry,
    find_problem,
    kopf_connection,
    kopf_session,
    kopf_settings,
    wait_for_namespaces,
)
from pretune.controller.pod_watcher import PodWatcher
from pretune.controller.reference_watcher import Reference
from pretune.kube.types import ApiError
from pretune.policy.bundles.turns import AttemptLedger

from tests.builders.caches import cache
from tests.builders.jobs import job
from tests.unit import virtual


class Woken:
    """A queue, a watcher and a cluster that note their calls."""

    def __init__(self, stuck: float = 0.0) -> None:
        self.keys: list[Key] = []
        self.urgent: list[bool] = []
        self.followed: dict[Key, frozenset[Reference]] = {}
        self._stuck = stuck
        self.written = ""  # resourceVersion of our last write
        self.ledger = AttemptLedger(1)

    def is_own_write(self, obj: Any) -> bool:
        return bool(obj["metadata"]["resourceVersion"] == self.written)

    def forget_writes(self, obj: Any) -> None:
        self.written = ""

    def wake(self, key: Key, urgent: bool = False) -> None:
        self.keys.append(key)
        self.urgent.append(urgent)

    def set_references(self, key: Key, references: Any) -> None:
        self.followed[key] = frozenset(references)

    def stuck_seconds(self) -> float:
        return self._stuck


def handle(woken: Woken, handler: str, **arguments: Any) -> None:
    registry: Any = build_registry(woken, woken, woken, woken.ledger)  # type: ignore[arg-type]
    found = next(
        one.fn for one in registry._watching.get_all_handlers() if one.fn.__name__ == handler
    )
    asyncio.run(found(**arguments))


def test_a_cache_wakes_its_key_and_when_it_is_deleted_nothing_that_it_names_is_watched() -> None:
    obj, woken, key = cache(), Woken(), Key("inference", "qwen3")
    arguments = {"namespace": "inference", "name": "qwen3"}
    handle(woken, "on_cache_event", event={"type": None, "object": obj}, **arguments)
    assert woken.keys == [key] and not woken.followed
    handle(woken, "on_cache_event", event={"type": "DELETED", "object": obj}, **arguments)
    assert woken.keys == [key, key] and woken.followed[key] == frozenset()
    assert woken.urgent == [False, True]  # a start's list is long, and an end lets pods go


def test_our_own_status_write_wakes_nothing_but_that_of_others_does() -> None:
    obj, woken = cache(), Woken()
    arguments = {"namespace": "inference", "name": "qwen3"}
    woken.written = obj["metadata"]["resourceVersion"]
    handle(woken, "on_cache_event", event={"type": "MODIFIED", "object": obj}, **arguments)
    assert not woken.keys
    other = {**obj, "metadata": {**obj["metadata"], "resourceVersion": "2"}}
    handle(woken, "on_cache_event", event={"type": "MODIFIED", "object": other}, **arguments)
    assert len(woken.keys) == 1 and woken.urgent == [True]


def test_a_change_of_a_consumer_always_wakes_its_cache() -> None:
    """Our own status write is kept from waking its key by the cache's version alone."""
    woken = Woken()
    woken.written = "7"
    obj = {
        "metadata": {
            "namespace": "ns",
            "name": "p",
            "uid": "u",
            "resourceVersion": "7",
            "labels": {CACHE: "demo"},
        }
    }

    async def watch() -> AsyncIterator[tuple[str, Any]]:
        yield "ADDED", obj
        await asyncio.Event().wait()

    async def story() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(PodWatcher(watch, woken.wake).run(), 0.05)

    asyncio.run(story())
    assert woken.keys == [Key("ns", "demo")]


def test_kopf_watches_no_pods() -> None:
    registry: Any = build_registry(Woken(), Woken(), Woken(), AttemptLedger(1))  # type: ignore[arg-type]
    watched = {
        one.selector.any_name or one.selector.plural
        for one in registry._watching.get_all_handlers()
    }
    assert watched == {"autotunecaches", "jobs", "persistentvolumeclaims"}


def test_an_object_with_our_label_wakes_the_cache_that_it_names() -> None:
    woken = Woken()
    event: Object = {"type": "ADDED", "object": {}}
    arguments: Object = {"event": event, "namespace": "ns", "name": "demo-1"}
    handle(
        woken, "on_labelled_event", labels={CACHE: "", "app": "x"}, **arguments
    )  # valid, and no cache's name
    handle(woken, "on_labelled_event", labels={CACHE: "demo", "app": "x"}, **arguments)
    assert woken.keys == [Key("ns", "demo")]


def test_a_job_that_is_deleted_gives_its_turn_back_though_its_cache_is_not_reconciled() -> None:
    event: Object = {"type": "DELETED", "object": job("b")}
    woken, key = Woken(), Key("ns", "demo")
    woken.ledger.load([(key, "demo-b-1")])
    handle(
        woken,
        "on_labelled_event",
        event=event,
        namespace="ns",
        name="demo-b-1",
        labels={CACHE: "demo"},
    )
    assert woken.ledger.running == 0 and woken.keys == [key]


def test_kopf_has_no_handler_that_could_write_to_an_object() -> None:
    registry: Any = build_registry(Woken(), Woken(), Woken(), AttemptLedger(1))  # type: ignore[arg-type]
    for part in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert not part.get_all_handlers()


def test_jobs_pods_and_claims_are_filtered_by_the_api_server() -> None:
    selectors = kopf_settings().watching.label_selectors
    assert [selectors[kind] for kind in LABELLED_KINDS] == [CACHE] * 2


@pytest.mark.parametrize(
    ("key", "scheme", "token"),
    [("bearer abc", "Bearer", "abc"), ("Bearer abc\n", "Bearer", "abc"), ("", None, None)],
)
def test_kopf_reaches_the_same_cluster_as_the_same_identity(
    key: str, scheme: str | None, token: str | None
) -> None:
    config = Configuration(host="https://10.0.0.1:443")
    config.ssl_ca_cert, config.cert_file, config.key_file = "ca.crt", "me.crt", "me.key"
    if key:
        config.api_key["BearerToken"] = key
    info = kopf_connection(config)
    assert (info.server, info.ca_path, info.insecure) == ("https://10.0.0.1:443", "ca.crt", False)
    assert (info.certificate_path, info.private_key_path) == ("me.crt", "me.key")
    assert (info.scheme, info.token) == (scheme, token)


def test_kopf_reads_metadata_only_in_small_pages() -> None:
    accepted: dict[str, str] = {}

    async def note(request: web.Request) -> web.Response:
        accepted[request.path_qs] = request.headers["Accept"]
        return web.json_response({"items": None})

    async def story() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", note)
        async with TestServer(app) as server:
            info = kopf_connection(Configuration(host=str(server.make_url("")).rstrip("/")))
            session = kopf_session(info)
            async with session.aiohttp_session as http:
                for path in ("/jobs?limit=50", "/jobs?watch=true"):
                    answer = await http.get(f"{session.server}{path}")
                    assert await answer.json() == {"items": []}, "kopf knows no null"

    asyncio.run(story())
    assert "as=PartialObjectMetadataList;" in accepted["/jobs?limit=50"]
    assert "as=PartialObjectMetadata;" in accepted["/jobs?watch=true"]
    assert kopf_settings().watching.chunk_size == 50


def test_when_a_namespace_that_was_left_out_can_be_read_the_controller_ends() -> None:
    """The webhook holds pods there again, and the next start releases them."""

    class Forbidding:
        asked: ClassVar[list[tuple[str, float]]] = []
        answers: ClassVar[list[Exception]] = [*[ApiError(403, "Forbidden", "no")] * 3, OSError()]

        async def list(self, version: str, kind: str, namespace: str, **how: Any) -> list[Object]:
            self.asked.append((namespace, asyncio.get_running_loop().time() - 1000))
            if self.answers:
                raise self.answers.pop(0)
            return []

    with pytest.raises(NamespaceReadableError, match="namespace a can be read"):
        virtual.run(wait_for_namespaces(Forbidding(), ["a", "b"]))  # type: ignore[arg-type]
    assert Forbidding.asked == [("a", 30), ("b", 30), ("a", 60), ("b", 60), ("a", 90)]
    virtual.run(wait_for_namespaces(Forbidding(), []))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stuck", "words"),
    [
        (0.0, ""),
        (HEALTH_STUCK_SECONDS - 1, ""),
        (HEALTH_STUCK_SECONDS, "the queue has not moved for 60 s"),
    ],
)
def test_healthz_fails_when_the_queue_does_not_move(stuck: float, words: str) -> None:
    assert find_problem(Woken(stuck)) == words  # type: ignore[arg-type]
