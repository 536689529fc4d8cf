"""What kopf reads of the API server, where somebody has written an object without bounds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from kopf._cogs.clients.api import iter_jsonlines
from pretune.intake import EXCESS
from pretune.kube.bounded_response import BoundedResponse

DEEP = '{"f:a":' * 2000 + "{}" + "}" * 2000


def job(name: str, fields: str = "{}") -> str:
    managed = f'[{{"manager":"evil","fieldsV1":{fields}}}]'
    return f'{{"kind":"Job","metadata":{{"name":"{name}","managedFields":{managed}}}}}'


JOBS = [job("a"), job("b", DEEP), job("c")]


async def answer(request: web.Request) -> web.Response:
    if "watch" in request.query:
        return web.Response(text="".join(f'{{"type":"ADDED","object":{one}}}\n' for one in JOBS))
    if "fails" in request.query:
        return web.json_response({"kind": "Status", "message": "no"}, status=403)
    text = f'{{"kind":"JobList","metadata":{{"resourceVersion":"7"}},"items":[{",".join(JOBS)}]}}'
    return web.Response(text=text, content_type="application/json")


def ask(query: str) -> Any:
    async def story() -> Any:
        app = web.Application()
        app.router.add_get("/", answer)
        async with (
            TestServer(app) as server,
            aiohttp.ClientSession(response_class=BoundedResponse) as session,
            session.get(server.make_url(f"/?{query}")) as response,
        ):
            if "watch" not in query:
                return await response.json()
            return [json.loads(line) async for line in iter_jsonlines(response.content)]

    return asyncio.run(story())


def described(objects: list[Any]) -> list[tuple[str, str]]:
    return [(one["metadata"]["name"], one.get(EXCESS, "")) for one in objects]


EXPECTED = [("a", ""), ("b", ""), ("c", "")]  # nothing else of b is too deep


def test_a_list_with_an_object_that_is_too_deep_has_all_objects() -> None:
    page = ask("limit=50")
    assert described(page["items"]) == EXPECTED
    assert (page["kind"], page["metadata"]) == ("JobList", {"resourceVersion": "7"})
    assert "managedFields" not in page["items"][1]["metadata"]


def test_a_watch_goes_on_past_an_object_that_is_too_deep() -> None:
    events = ask("watch=true")
    assert [event["type"] for event in events] == ["ADDED"] * 3
    assert described([event["object"] for event in events]) == EXPECTED


def test_an_error_is_read_as_it_is() -> None:
    assert ask("fails=1") == {"kind": "Status", "message": "no"}
