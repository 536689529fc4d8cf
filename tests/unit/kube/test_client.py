"""What the client sends and makes of the answers, against a web server that answers as API servers were seen to."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration
from pretune.intake import EXCESS
from pretune.kube.client import LOG_CHUNK_BYTES, MAX_SHORT_CALLS, Kubernetes, build_event
from pretune.kube.types import ApiError, Event, NoSuchKind, keep_all, metadata_only

from tests.builders.caches import cache
from tests.builders.constants import NOW

Answer = tuple[int, Any]


class Api:
    """Answers by `METHOD path`, each list of answers in its order, the last one for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, str], Any, Any]] = []  # request, query, body, headers

    def on(self, request: str, *answers: Answer) -> Api:
        self.answers[request] = list(answers)
        return self

    async def handle(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        raw = await request.read()
        self.asked.append(
            (what, dict(request.query), json.loads(raw) if raw else None, request.headers)
        )
        if what not in self.answers:
            return web.Response(status=404, text="404 page not found\n")
        answers = self.answers[what]
        code, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if request.query.get("watch") and code == 200:
            return web.Response(text="".join(json.dumps(one) + "\n" for one in answer))
        return (
            web.Response(status=code, text=answer)
            if isinstance(answer, str)
            else web.json_response(answer, status=code)
        )

    def play(
        self,
        story: Callable[[Kubernetes], Awaitable[Any]],
        token: str | Callable[[Any], None] = "bearer t",
    ) -> Any:
        async def all_of_it() -> Any:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self.handle)
            async with TestServer(app) as server:
                config = Configuration(host=str(server.make_url("")).rstrip("/"))
                config.connection_pool_maxsize = 0  # as load_configuration has it
                if callable(token):
                    config.refresh_api_key_hook = token  # type: ignore[assignment]
                    config.api_key["BearerToken"] = ""
                else:
                    config.api_key["BearerToken"] = token
                async with Kubernetes(config) as cluster:
                    return await story(cluster)

        return asyncio.run(all_of_it())


def status(code: int, reason: str, message: str, **details: Any) -> Answer:
    return code, {
        "kind": "Status",
        "reason": reason,
        "message": message,
        "code": code,
        "details": details,
    }


def job(**meta: Any) -> Any:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": "ns", "name": "j", **meta},
    }


JOBS = "/apis/batch/v1/namespaces/ns/jobs"


def test_an_object_that_is_not_there_is_none() -> None:
    api = Api().on(
        f"GET {JOBS}/j", status(404, "NotFound", 'jobs.batch "j" not found', name="j", kind="jobs")
    )
    assert api.play(lambda cluster: cluster.get("batch/v1", "Job", "ns", "j")) is None


def test_an_empty_name_is_never_taken_for_all_objects_of_a_kind() -> None:
    api = Api().on(f"GET {JOBS}", (200, {"items": [job()]})).on(f"DELETE {JOBS}", (200, {}))
    assert api.play(lambda cluster: cluster.get("batch/v1", "Job", "ns", "")) is None
    with pytest.raises(ValueError, match="Job in ns: the name is empty"):
        api.play(lambda cluster: cluster.delete(job(name="")))
    assert api.asked == []


@pytest.mark.parametrize(
    "answer",
    [(404, "404 page not found\n"), status(404, "NotFound", "could not find the resource")],
)
def test_a_resource_that_is_not_there_is_no_such_kind(answer: Answer) -> None:
    api = Api().on(f"GET {JOBS}/j", answer)
    with pytest.raises(NoSuchKind, match="no kind Job of batch/v1"):
        api.play(lambda cluster: cluster.get("batch/v1", "Job", "ns", "j"))


RESOURCES = {
    "resources": [
        {"name": "models/status", "kind": "Model", "namespaced": True},
        {"name": "models", "kind": "Model", "namespaced": True},
        {"name": "fleets", "kind": "Fleet", "namespaced": False},
    ]
}


def test_where_a_kind_is_found_is_asked_of_the_cluster_once() -> None:
    api = Api().on("GET /apis/serving.example/v1", (200, RESOURCES))
    api.on("GET /apis/serving.example/v1/namespaces/ns/models/m", (200, {"kind": "Model"}))
    api.on("GET /apis/serving.example/v1/fleets/f", (200, {"kind": "Fleet"}))

    async def story(cluster: Kubernetes) -> None:
        for _ in range(2):
            assert await cluster.get("serving.example/v1", "Model", "ns", "m") == {"kind": "Model"}
        assert await cluster.get("serving.example/v1", "Fleet", "ns", "f") == {"kind": "Fleet"}
        for kind, version in (("Ghost", "serving.example/v1"), ("Model", "elsewhere/v1")):
            with pytest.raises(NoSuchKind):
                await cluster.get(version, kind, "ns", "m")

    api.play(story)
    assert [what for what, *_ in api.asked].count(
        "GET /apis/serving.example/v1"
    ) == 3  # Model, Fleet, Ghost


def test_what_the_api_server_says_is_kept_word_for_word() -> None:
    api = Api().on(f"POST {JOBS}", status(403, "Forbidden", "exceeded quota: gpus"))
    with pytest.raises(ApiError) as refused:
        api.play(lambda cluster: cluster.create(job()))
    assert (refused.value.code, refused.value.reason, refused.value.message) == (
        403,
        "Forbidden",
        "exceeded quota: gpus",
    )


def test_a_page_of_a_proxy_is_an_error_that_can_be_read() -> None:
    api = Api().on(f"POST {JOBS}", (502, "<html>bad gateway</html>"))
    with pytest.raises(ApiError, match=r"502.*bad gateway"):
        api.play(lambda cluster: cluster.create(job()))


def test_no_answer_is_a_connection_error() -> None:
    async def story() -> None:
        async with Kubernetes(Configuration(host="http://127.0.0.1:1")) as cluster:
            await cluster.get("v1", "Pod", "ns", "p")

    with pytest.raises(ConnectionError, match="GET /api/v1/namespaces/ns/pods/p"):
        asyncio.run(story())


def page(*names: str, more: str = "") -> Answer:
    return 200, {
        "metadata": {"continue": more},
        "items": [{"metadata": {"name": name}, "spec": {}} for name in names],
    }


def test_a_list_is_read_in_pages_and_each_item_has_its_kind() -> None:
    api = Api().on(f"GET {JOBS}", page("a", "b", more="next"), page("c"))
    found = api.play(
        lambda cluster: cluster.list("batch/v1", "Job", "ns", labels="x=y", project=lambda one: one)
    )
    assert [(one["kind"], one["apiVersion"], one["metadata"]["name"]) for one in found] == [
        ("Job", "batch/v1", name) for name in "abc"
    ]
    assert [query for _, query, *_ in api.asked] == [
        {"limit": "250", "labelSelector": "x=y"},
        {"limit": "250", "labelSelector": "x=y", "continue": "next"},
    ]


def test_a_list_whose_snapshot_is_gone_begins_again_and_returns_nothing_twice() -> None:
    gone = status(410, "Expired", "continue token expired")
    api = Api().on(f"GET {JOBS}", page("a", more="next"), gone, page("a", "b"))
    found = api.play(lambda cluster: cluster.list("batch/v1", "Job", "ns"))
    assert [one["metadata"]["name"] for one in found] == ["a", "b"]


class Large(Api):
    """An API server with objects of these sizes, in bytes, which keeps to a page's limit."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.limits: list[int] = []
        self.sent = 0  # bytes

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return web.Response(text="")
        first, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        self.limits.append(limit)
        last = min(first + limit, len(self.sizes))
        more = str(last) if last < len(self.sizes) else ""
        response = web.StreamResponse()
        await response.prepare(request)
        meta = json.dumps({"continue": more, "resourceVersion": "5"})
        await response.write(b'{"metadata": %s, "items": [' % meta.encode())
        for number in range(first, last):
            await response.write(
                b'%s{"metadata": {"name": "o%d"}, "spec": "' % (b"," * (number > first), number)
            )
            left = self.sizes[number]
            while left > 0:
                chunk = b"x" * min(left, 1 << 16)
                await response.write(chunk)
                self.sent, left = self.sent + len(chunk), left - len(chunk)
            await response.write(b'"}')
        await response.write(b"]}")
        return response


def names_only(obj: Any) -> Any:
    return {"name": obj["metadata"]["name"]}


async def listed(cluster: Kubernetes) -> list[str]:
    found = await cluster.list("batch/v1", "Job", "", project=names_only)
    return [obj["name"] for obj in found]


async def watched_names(cluster: Kubernetes) -> list[str]:
    stream = cluster.watch("batch/v1", "Job", "", project=names_only)
    return [obj["name"] async for change, obj in stream if change == "ADDED"]


def peak_mib(api: Api, story: Callable[[Kubernetes], Awaitable[Any]]) -> tuple[Any, float]:
    tracemalloc.start()
    try:
        found = api.play(story)
        return found, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [listed, watched_names])
def test_large_objects_are_read_in_pages_of_a_few_mib_however_many_they_are(
    read: Callable[[Kubernetes], Awaitable[Any]],
) -> None:
    peaks = []
    for count in (15, 30, 60):
        found, peak = peak_mib(Large(*[1_100_000] * count), read)
        assert found == [f"o{number}" for number in range(count)]
        peaks.append(peak)
    assert max(peaks) < 32
    assert peaks[2] < peaks[0] * 1.2, "memory does not grow with the number of objects"


def test_a_page_becomes_smaller_where_objects_are_large_and_larger_again_after_them() -> None:
    api = Large(*[1000] * 3, *[1_500_000] * 10, *[1000] * 600)
    assert api.play(listed) == [f"o{number}" for number in range(613)]
    assert min(api.limits) < 4 and api.limits[-1] == 250
    assert len(api.limits) < 30
    assert api.sent < 4 * 15_600_000, "what is not read is not sent"


def test_an_object_that_is_too_large_for_a_page_of_its_own_is_an_error() -> None:
    with pytest.raises(ApiError, match=r"413 .*an object is larger than 8 MiB"):
        Large(100, 9 << 20).play(listed)


def test_a_list_of_metadata_asks_for_nothing_else() -> None:
    api = Api().on(f"GET {JOBS}", page("a"))
    found = api.play(lambda cluster: cluster.list("batch/v1", "Job", "ns", project=metadata_only))
    assert found == [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}]
    assert "as=PartialObjectMetadataList" in api.asked[0][3]["Accept"]


def test_apply_is_forced_and_in_our_name() -> None:
    api = Api().on(f"PATCH {JOBS}/j", (200, job()))
    api.play(lambda cluster: cluster.apply(job()))
    _, query, body, headers = api.asked[0]
    assert query == {"fieldManager": "pretune", "force": "true"}
    assert body == job() and headers["Content-Type"] == "application/apply-patch+yaml"


def test_a_patch_holds_to_the_uid_and_the_version_that_were_read() -> None:
    api = Api().on(f"PATCH {JOBS}/j/status", (200, job(uid="u", resourceVersion="8")))
    ref = job(uid="u", resourceVersion="7")
    api.play(lambda cluster: cluster.patch(ref, {"status": {"a": None}}, status=True))
    _, _, body, headers = api.asked[0]
    assert body == {"status": {"a": None}, "metadata": {"uid": "u", "resourceVersion": "7"}}
    assert headers["Content-Type"] == "application/merge-patch+json"


def test_a_strategic_patch_says_so_and_holds_to_the_uid() -> None:
    api = Api().on(f"PATCH {JOBS}/j", (200, job(uid="u")))
    patch = {"spec": {"schedulingGates": [{"$patch": "delete", "name": "pretune.dev/hold"}]}}
    api.play(lambda cluster: cluster.patch(job(uid="u"), patch, strategic=True))
    _, _, body, headers = api.asked[0]
    assert body == {**patch, "metadata": {"uid": "u"}}
    assert headers["Content-Type"] == "application/strategic-merge-patch+json"


def test_what_an_admission_policy_refuses_is_forbidden_and_not_invalid() -> None:
    message = "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no params found"
    api = Api().on(f"POST {JOBS}", status(422, "Invalid", message))
    with pytest.raises(ApiError) as refused:
        api.play(lambda cluster: cluster.create(job()))
    assert refused.value.code == 403 and message in str(refused.value)


def test_another_object_of_that_name_is_a_conflict_though_it_is_reported_as_an_immutable_field() -> (
    None
):
    causes = [{"field": "metadata.uid", "message": "field is immutable"}]
    api = Api().on(
        f"PATCH {JOBS}/j", status(422, "Invalid", "metadata.uid: field is immutable", causes=causes)
    )
    with pytest.raises(ApiError) as refused:
        api.play(lambda cluster: cluster.patch(job(uid="u"), {"spec": {}}))
    assert refused.value.code == 409


def test_a_deletion_holds_to_the_uid_leaves_dependents_to_the_background_and_needs_nothing_there() -> (
    None
):
    api = Api().on(f"DELETE {JOBS}/j", status(404, "NotFound", "", name="j"))
    api.play(lambda cluster: cluster.delete(job(uid="u")))
    assert api.asked[0][2]["preconditions"] == {"uid": "u"}
    seen = {**job(uid="u"), "metadata": {**job(uid="u")["metadata"], "resourceVersion": "7"}}
    api.play(lambda cluster: cluster.delete(seen))
    assert api.asked[1][2]["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    assert api.asked[0][2]["propagationPolicy"] == "Background"


EVENTS = "/api/v1/namespaces/inference/events"


def test_a_repeated_event_is_counted_where_it_is() -> None:
    event = Event("Tuning", "since now")
    name = build_event(cache(), event, NOW)["metadata"]["name"]
    api = Api().on(f"POST {EVENTS}", status(409, "AlreadyExists", ""))
    api.on(f"GET {EVENTS}/{name}", (200, {"count": 4})).on(f"PATCH {EVENTS}/{name}", (200, {}))
    api.play(lambda cluster: cluster.record_event(cache(), event))
    assert api.asked[-1][2]["count"] == 5


def test_an_event_of_another_reason_or_message_is_another_event() -> None:
    says = [Event("Tuning", "a"), Event("Tuning", "b"), Event("Sealed", "a")]
    assert len({build_event(cache(), one, NOW)["metadata"]["name"] for one in says}) == 3


def test_an_event_that_cannot_be_written_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    api = Api().on(f"POST {EVENTS}", status(403, "Forbidden", "no right"))
    api.play(lambda cluster: cluster.record_event(cache(), Event("Tuning", "since now")))
    assert (
        "inference/qwen3: event Tuning was not written: 403 Forbidden: no right" in caplog.messages
    )


def test_each_request_carries_the_token_as_it_is_by_then() -> None:
    api = Api().on(f"GET {JOBS}/j", (200, job()))
    tokens = iter(("first", "second"))

    def renew(config: Configuration) -> None:
        config.api_key["BearerToken"] = f"bearer {next(tokens)}"

    async def story(cluster: Kubernetes) -> None:
        for _ in range(2):
            await cluster.get("batch/v1", "Job", "ns", "j")

    api.play(story, token=renew)
    assert [headers["Authorization"] for *_, headers in api.asked] == [
        "bearer first",
        "bearer second",
    ]


def change(kind: str, version: str) -> Any:
    return {
        "type": kind,
        "object": {
            "kind": "PartialObjectMetadata",
            "metadata": {"name": "j", "resourceVersion": version},
        },
    }


def watched(api: Api) -> list[tuple[str, str]]:
    async def story(cluster: Kubernetes) -> list[tuple[str, str]]:
        found = []
        async for kind, obj in cluster.watch("batch/v1", "Job", "ns", "j"):
            found.append((kind, obj.get("metadata", {}).get("resourceVersion", "")))
        return found

    result: list[tuple[str, str]] = api.play(story)
    return result


def test_a_watch_begins_with_what_is_there_and_then_has_changes_without_bookmarks() -> None:
    there = {
        "metadata": {"resourceVersion": "5"},
        "items": [{"metadata": {"name": "j", "resourceVersion": "3"}}],
    }
    api = Api().on(
        f"GET {JOBS}",
        (200, there),
        (200, [change("BOOKMARK", "6"), change("MODIFIED", "7"), change("DELETED", "8")]),
    )
    assert watched(api) == [("ADDED", "3"), ("LISTED", ""), ("MODIFIED", "7"), ("DELETED", "8")]
    first, second = (query for _, query, *_ in api.asked)
    assert first == {"fieldSelector": "metadata.name=j", "limit": "250"}
    assert second["resourceVersion"] == "5" and second["allowWatchBookmarks"] == "true"
    assert "as=PartialObjectMetadata;" in api.asked[1][3]["Accept"]


def test_a_watch_of_what_is_not_there_lists_nothing_first() -> None:
    api = Api().on(
        f"GET {JOBS}",
        (200, {"metadata": {"resourceVersion": "5"}, "items": []}),
        (200, [change("ADDED", "7")]),
    )
    assert watched(api) == [("LISTED", ""), ("ADDED", "7")]


def changes(api: Api, **more: Any) -> list[tuple[str, Any]]:
    async def story(cluster: Kubernetes) -> list[tuple[str, Any]]:
        return [one async for one in cluster.watch("batch/v1", "Job", "", **more)]

    result: list[tuple[str, Any]] = api.play(story)
    return result


def test_whole_objects_are_watched_where_they_are_asked_for_in_pages_and_cut_down() -> None:
    def answer(version: str, **more: Any) -> Any:
        return {
            "metadata": {"resourceVersion": "5", **more},
            "items": [{"metadata": {"name": version}, "spec": 1}],
        }

    stream = [
        {
            "type": "MODIFIED",
            "object": {"kind": "Job", "metadata": {"name": "b"}, "spec": 2, "status": 3},
        }
    ]
    api = Api().on(
        "GET /apis/batch/v1/jobs",
        (200, answer("a", **{"continue": "more"})),
        (200, answer("b")),
        (200, stream),
    )
    assert changes(
        api, project=lambda one: (one["kind"], one["metadata"]["name"], one["spec"])
    ) == [
        ("ADDED", ("Job", "a", 1)),
        ("ADDED", ("Job", "b", 1)),
        ("LISTED", {}),
        ("MODIFIED", ("Job", "b", 2)),
    ]
    assert [query.get("continue") for _, query, *_ in api.asked] == [None, "more", None]
    assert {headers["Accept"] for *_, headers in api.asked} == {"application/json"}


def test_a_watch_lists_and_follows_what_matches_its_labels() -> None:
    api = Api().on(
        "GET /apis/batch/v1/jobs", (200, {"metadata": {"resourceVersion": "5"}}), (200, [])
    )
    changes(api, labels="a=b")
    assert [query.get("labelSelector") for _, query, *_ in api.asked] == ["a=b", "a=b"]
    assert not any("fieldSelector" in query for _, query, *_ in api.asked)


def test_a_watch_reads_an_object_of_any_size() -> None:
    large = {
        "type": "ADDED",
        "object": {"metadata": {"name": "j", "annotations": {"a": "x" * 3_000_000}}},
    }
    api = Api().on(
        "GET /apis/batch/v1/jobs", (200, {"metadata": {"resourceVersion": "5"}}), (200, [large])
    )
    assert [
        len(obj["metadata"]["annotations"]["a"]) for kind, obj in changes(api) if kind == "ADDED"
    ] == [3_000_000]


def test_a_watch_that_says_nothing_for_too_long_is_dead() -> None:
    class Silent(Api):
        async def handle(self, request: web.Request) -> web.StreamResponse:
            if not request.query.get("watch"):
                return web.json_response({"metadata": {"resourceVersion": "5"}, "items": []})
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(5)
            return response

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        changes(Silent(), idle_seconds=0.2)
    assert time.monotonic() - began < 4


def test_a_watch_that_was_forgotten_is_an_error() -> None:
    gone = {
        "type": "ERROR",
        "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"},
    }
    api = Api().on(
        f"GET {JOBS}", (200, {"metadata": {"resourceVersion": "5"}, "items": []}), (200, [gone])
    )
    with pytest.raises(ApiError, match="410"):
        watched(api)


def test_a_watch_of_a_kind_that_is_not_there_is_no_such_kind() -> None:
    with pytest.raises(NoSuchKind):
        watched(Api())


def test_a_stream_that_breaks_is_a_connection_error() -> None:
    class Breaking(Api):
        async def handle(self, request: web.Request) -> web.StreamResponse:
            if not request.query.get("watch"):
                return web.json_response({"metadata": {"resourceVersion": "5"}, "items": []})
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            assert request.transport is not None
            request.transport.abort()
            return response

    with pytest.raises(ConnectionError):
        watched(Breaking())


# --- logs

LOG = "GET /api/v1/namespaces/ns/pods/serving-1/log"


async def log_of(cluster: Kubernetes) -> bytes:
    return b"".join([chunk async for chunk in cluster.read_log("ns", "serving-1", "vllm", 4096)])


def test_a_log_is_asked_for_with_the_times_of_its_lines_and_no_more_of_it_than_is_wanted() -> None:
    api = Api().on(LOG, (200, "2026-11-23T00:00:00Z one\r\ntwo"))
    assert api.play(log_of) == b"2026-11-23T00:00:00Z one\r\ntwo"
    [(_, query, _, headers)] = api.asked
    assert query == {"container": "vllm", "timestamps": "true", "limitBytes": "4096"}
    assert headers["Accept"] == "*/*"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(403, "Forbidden"), (404, "NotFound"), (400, "BadRequest"), (500, "InternalError")],
)
def test_a_log_that_is_refused_is_an_error_with_the_api_servers_words(
    code: int, reason: str
) -> None:
    api = Api().on(LOG, status(code, reason, "why not"))
    with pytest.raises(ApiError, match="why not") as refused:
        api.play(log_of)
    assert refused.value.code == code


def test_a_reader_that_has_read_enough_of_a_log_ends_the_stream() -> None:
    ended = asyncio.Event()

    class Endless(Api):
        async def handle(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"x" * 65536)
                    await asyncio.sleep(0)
            finally:
                ended.set()

    async def first(cluster: Kubernetes) -> int:
        async with aclosing(cluster.read_log("ns", "serving-1", "vllm", 4096)) as chunks:
            size = len(await anext(chunks))
        await asyncio.wait_for(ended.wait(), 5)
        return size

    assert 0 < Endless().play(first) <= LOG_CHUNK_BYTES


# --- what others wrote


DEEP = json.loads("[" * 900 + "]" * 900)


def deep_job(name: str) -> Any:
    return {**job(name=name), "spec": {"template": DEEP}, "status": {"active": 1}}


def stub(name: str, excess: str) -> Any:
    meta = {"namespace": "ns", "name": name}
    kind = {"apiVersion": "batch/v1", "kind": "Job"}
    return {**kind, "metadata": meta, "spec": {}, "status": {"active": 1}, EXCESS: excess}


DEEPER = "is nested more than 64 levels deep"


def test_an_object_that_is_too_deep_is_read_as_far_as_it_says_which_one_it_is() -> None:
    api = Api().on(f"GET {JOBS}/j", (200, deep_job("j")))
    found = api.play(lambda cluster: cluster.get("batch/v1", "Job", "ns", "j"))
    assert found == stub("j", DEEPER)


class Pages(Api):
    """Lists jobs j0 to j9, of which j3 is too deep; the page's token is the number of the next."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        begin, size = int(request.query.get("continue") or 0), int(request.query["limit"])
        self.asked.append((f"{begin}+{size}", {}, None, None))
        names = [f"j{number}" for number in range(begin, min(10, begin + size))]
        items = [deep_job(name) if name == "j3" else job(name=name) for name in names]
        rest = str(begin + size) if begin + size < 10 else ""
        meta = {"resourceVersion": "1", "continue": rest}
        return web.json_response({"kind": "JobList", "metadata": meta, "items": items})


def test_one_object_of_a_list_that_is_too_deep_hides_no_other() -> None:
    api = Pages()
    found = api.play(lambda cluster: cluster.list("batch/v1", "Job", "ns"))
    assert [one["metadata"]["name"] for one in found] == [f"j{number}" for number in range(10)]
    [large] = [one for one in found if EXCESS in one]
    assert large[EXCESS] == "is nested more than 64 levels deep"
    assert len(api.asked) < 16


def test_a_watch_goes_on_past_an_object_that_is_too_deep() -> None:
    changes = [{"type": "ADDED", "object": one} for one in (deep_job("a"), job(name="b"))]

    async def story(cluster: Kubernetes) -> list[Any]:
        watch = cluster.watch("batch/v1", "Job", "ns", project=keep_all)
        return [
            (change, obj["metadata"]["name"], EXCESS in obj) async for change, obj in watch if obj
        ]

    async def handle(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return web.Response(text="".join(json.dumps(one) + "\n" for one in changes))
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    api = Api()
    api.handle = handle  # type: ignore[method-assign]
    assert api.play(story) == [("ADDED", "a", True), ("ADDED", "b", False)]


@pytest.mark.parametrize(
    "api_version",
    ["", "../../api/v1", "apps/v1?limit=1", "apps/v1/namespaces/x", "apps/..", "v1#", "a" * 5000],
)
def test_an_api_version_that_is_none_is_asked_of_no_server(api_version: str) -> None:
    api = Api()
    with pytest.raises(NoSuchKind) as raised:
        api.play(lambda cluster: cluster.get(api_version, "ReplicaSet", "ns", "rs"))
    assert api.asked == [] and len(str(raised.value)) < 300


@pytest.mark.parametrize("name", [".", "..", "a/b", "../../secrets/x", "a%2fb"])
def test_a_name_that_no_object_can_have_is_asked_of_no_server(name: str) -> None:
    api = Api()
    assert api.play(lambda cluster: cluster.get("batch/v1", "Job", "ns", name)) is None
    with pytest.raises(ValueError, match="no object's name"):
        api.play(lambda cluster: cluster.delete(job(name=name)))
    assert api.asked == []


def test_a_name_stays_one_value_of_a_field_selector() -> None:
    api = Api().on(f"GET {JOBS}", (200, {"metadata": {"resourceVersion": "1"}, "items": []}))

    async def story(cluster: Kubernetes) -> None:
        async for _ in cluster.watch("batch/v1", "Job", "ns", "a,b=c"):
            return

    api.play(story)
    assert api.asked[0][1]["fieldSelector"] == r"metadata.name=a\,b\=c"


# --- how many calls at a time


class Busy(Api):
    """Answers calls and watches once the test says so, the lease at once."""

    def __init__(self) -> None:
        super().__init__()
        self.watches = self.waiting = self.most = 0
        self.all_watch, self.all_wait, self.answers = (asyncio.Event() for _ in range(3))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            self.watches += 1
            if self.watches > MAX_SHORT_CALLS:
                self.all_watch.set()
            await self.answers.wait()
        elif "limit" in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        elif "coordination" in request.path:
            return web.json_response({"kind": "Lease"})
        else:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            if self.waiting == MAX_SHORT_CALLS:
                self.all_wait.set()
            await self.answers.wait()
            self.waiting -= 1
        return web.json_response({})


def test_only_so_many_calls_are_made_at_a_time_and_the_lease_and_watches_wait_for_none() -> None:
    api = Busy()

    async def story(cluster: Kubernetes) -> Any:
        async def follow(name: str) -> None:
            async for _ in cluster.watch("batch/v1", "Job", "ns", name):
                pass

        async with asyncio.timeout(20):
            numbers = range(3 * MAX_SHORT_CALLS)
            watches = [asyncio.create_task(follow(f"j{n}")) for n in numbers[: MAX_SHORT_CALLS + 1]]
            await api.all_watch.wait()
            gets = [asyncio.create_task(cluster.get("v1", "Pod", "ns", f"p{n}")) for n in numbers]
            await api.all_wait.wait()
            lease = await cluster.get("coordination.k8s.io/v1", "Lease", "ns", "l")
            await asyncio.sleep(0.2)  # for calls that must not come
            api.answers.set()
            await asyncio.gather(*gets)
            await asyncio.gather(*watches, return_exceptions=True)
        return lease

    assert api.play(story) == {"kind": "Lease"}
    assert api.most == MAX_SHORT_CALLS
