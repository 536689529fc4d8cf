"""How often a template is read, and what follows when it cannot be read; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pretune.api.reasons import Refused
from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.policy.model import Origin
from pretune.webhook.template_cache import (
    CHANGEABLE_SECONDS,
    MAX_JSON_CHARACTERS,
    READ_TIMEOUT_SECONDS,
    SizedLRU,
    TemplateCache,
)

from tests.builders.templates import serving_template
from tests.unit.virtual import run


class Api:
    """Has every ReplicaSet, Job and ControllerRevision, and answers after `slow` seconds."""

    def __init__(self, slow: float = 0.01) -> None:
        self.slow, self.read = slow, 0
        self.error: Exception | None = None
        self.absent = False
        self.image = "vllm:1"
        self.args = ["serve"]

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        self.read += 1
        await asyncio.sleep(self.slow)
        if self.error:
            raise self.error
        if self.absent:
            return None
        spec = {"template": serving_template(image=self.image, args=self.args)}
        meta: Object = {"namespace": namespace, "name": name, "uid": "uid"}
        if kind == "ControllerRevision":
            meta |= {
                "uid": "other",
                "ownerReferences": [
                    {"kind": "StatefulSet", "name": "s", "uid": "uid", "controller": True}
                ],
            }
            return {
                "apiVersion": api_version,
                "kind": kind,
                "metadata": meta,
                "data": {"spec": spec},
            }
        return {"apiVersion": api_version, "kind": kind, "metadata": meta, "spec": spec}


def pod(kind: str = "ReplicaSet", name: str = "rs", **labels: str) -> Object:
    version = "batch/v1" if kind == "Job" else "apps/v1"
    owner = {"apiVersion": version, "kind": kind, "name": name, "uid": "uid", "controller": True}
    return {
        **serving_template(),
        "metadata": {"generateName": f"{name}-", "labels": labels, "ownerReferences": [owner]},
    }


def deployed(revision: str = "1") -> Object:
    return pod(**{"pod-template-hash": revision})


STATEFUL = pod("StatefulSet", "s", **{"controller-revision-hash": "s-1"})


def play(api: Api, story: Callable[[TemplateCache], Awaitable[Any]]) -> Any:
    async def play_story() -> Any:
        return await story(TemplateCache(api, asyncio.get_running_loop().time))  # type: ignore[arg-type]

    return run(play_story())


@pytest.mark.parametrize(
    ("case", "first", "second", "seconds", "reads", "remembered"),
    [
        ("a Deployment's revision", deployed(), deployed(), 9999, 1, True),
        ("two revisions", deployed(), deployed("2"), 0, 2, True),
        ("a StatefulSet's revision", STATEFUL, STATEFUL, 9999, 1, True),
        (
            "a ReplicaSet without Deployment, whose template may change",
            pod(),
            pod(),
            CHANGEABLE_SECONDS,
            2,
            False,
        ),
        ("the same, at once", pod(), pod(), CHANGEABLE_SECONDS / 2, 1, False),
        (
            "a Job, whose template may change while it is suspended",
            pod("Job"),
            pod("Job"),
            CHANGEABLE_SECONDS,
            2,
            False,
        ),
        ("the same, at once", pod("Job"), pod("Job"), CHANGEABLE_SECONDS / 2, 1, False),
        ("a bare pod", serving_template(), serving_template(), 0, 0, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_template_is_read_again_only_if_it_may_have_changed(
    case: str, first: Object, second: Object, seconds: float, reads: int, remembered: bool
) -> None:
    api = Api()

    async def story(templates: TemplateCache) -> tuple[Origin, Any]:
        await templates.find_origin("ns", first)
        await asyncio.sleep(seconds)
        return await templates.find_origin("ns", second)

    origin, key = play(api, story)
    assert origin.template["spec"]["containers"][0]["image"] == "vllm:1"
    assert api.read == reads and (key is not None) == remembered


def test_a_revision_of_the_same_name_in_another_namespace_is_read_too() -> None:
    api = Api()

    async def story(templates: TemplateCache) -> set[Any]:
        return {(await templates.find_origin(namespace, deployed()))[1] for namespace in ("a", "b")}

    assert len(play(api, story)) == 2 and api.read == 2


def test_a_template_that_may_change_is_read_as_it_is_later() -> None:
    api = Api()

    async def story(templates: TemplateCache) -> Origin:
        await templates.find_origin("ns", pod("Job"))
        api.image = "vllm:2"
        await asyncio.sleep(CHANGEABLE_SECONDS)
        return (await templates.find_origin("ns", pod("Job")))[0]

    assert play(api, story).template["spec"]["containers"][0]["image"] == "vllm:2"


def test_pods_that_come_at_once_share_one_read() -> None:
    api = Api(slow=1.0)

    async def story(templates: TemplateCache) -> list[Any]:
        return await asyncio.gather(*(templates.find_origin("ns", deployed()) for _ in range(20)))

    assert len(play(api, story)) == 20 and api.read == 1


def test_a_request_that_gives_up_does_not_end_the_read_for_the_others() -> None:
    api = Api(slow=1.0)

    async def story(templates: TemplateCache) -> tuple[str, Any]:
        hasty = asyncio.create_task(asyncio.wait_for(templates.find_origin("ns", deployed()), 0.5))
        patient = asyncio.create_task(templates.find_origin("ns", deployed()))
        gave_up = (await asyncio.gather(hasty, return_exceptions=True))[0]
        return type(gave_up).__name__, (await patient)[0].template

    name, found = play(api, story)
    assert name == "TimeoutError" and not isinstance(found, Refused) and api.read == 1


@pytest.mark.parametrize(
    ("case", "fault", "message"),
    [
        (
            "forbidden",
            {"error": ApiError(403, "Forbidden", "no right")},
            "ReplicaSet ns/rs: no right",
        ),
        (
            "broken",
            {"error": ApiError(500, "InternalError", "etcd")},
            "ReplicaSet ns/rs: 500 InternalError: etcd",
        ),
        ("unreachable", {"error": ConnectionError("refused")}, "ReplicaSet ns/rs: refused"),
        ("silent", {"slow": 60.0}, f"ReplicaSet ns/rs: no answer within {READ_TIMEOUT_SECONDS} s"),
        ("absent", {"absent": True}, "ReplicaSet ns/rs does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failed_read_is_refused_in_time_and_the_next_pod_tries_again(
    case: str, fault: Object, message: str
) -> None:
    api = Api()
    for name, value in fault.items():
        setattr(api, name, value)

    async def story(templates: TemplateCache) -> tuple[Origin, float, Origin]:
        began = asyncio.get_running_loop().time()
        bad = (await templates.find_origin("ns", deployed()))[0]
        took = asyncio.get_running_loop().time() - began
        api.slow, api.error, api.absent = 0.01, None, False
        return bad, took, (await templates.find_origin("ns", deployed()))[0]

    bad, took, good = play(api, story)
    assert (
        isinstance(bad.template, Refused)
        and bad.template.message == message
        and bad.kind == "ReplicaSet"
    )
    assert took <= READ_TIMEOUT_SECONDS and not isinstance(good.template, Refused)


def test_a_defect_of_ours_is_raised_and_blocks_no_later_pod() -> None:
    api = Api()

    async def story(templates: TemplateCache) -> Origin:
        api.error = KeyError("ours")
        with pytest.raises(KeyError):
            await templates.find_origin("ns", deployed())
        api.error = None
        return (await templates.find_origin("ns", deployed()))[0]

    assert not isinstance(play(api, story).template, Refused)


def remembered(values: SizedLRU[int, str]) -> str:
    return "".join(values.get(number) or "" for number in range(1, 5))


def test_the_least_recently_used_value_is_dropped_first() -> None:
    values: SizedLRU[int, str] = SizedLRU(10)
    for number, value, of in ((1, "a", {"a": 1}), (2, "b", {})):  # 8 and 2 characters
        values.put(number, value, of)
    assert remembered(values) == "ab"
    assert values.get(1) == "a"
    values.put(3, "c", {})
    assert remembered(values) == "ac"


def test_a_value_that_is_put_again_counts_once() -> None:
    values: SizedLRU[int, str] = SizedLRU(10)
    for value in "ab":
        values.put(1, value, {"a": 1})
    values.put(2, "c", {})
    assert remembered(values) == "bc"


def test_a_value_that_is_too_large_alone_is_not_remembered_and_drops_no_other() -> None:
    values: SizedLRU[int, str] = SizedLRU(10)
    values.put(1, "a", {})
    values.put(2, "b", {})
    values.put(2, "c", {"a": "x" * 10})
    assert remembered(values) == "a"
    values.put(3, "d", {"a": 1})
    assert remembered(values) == "ad"


def test_what_is_remembered_is_bounded_however_large_the_templates_are() -> None:
    api = Api(slow=0.0)
    api.args = ["x" * (MAX_JSON_CHARACTERS // 40)] * 4

    async def story(templates: TemplateCache) -> None:
        for number in range(10):
            await templates.find_origin("ns", deployed(str(number)))
        await templates.find_origin("ns", deployed("9"))
        assert api.read == 10
        await templates.find_origin("ns", deployed("0"))

    play(api, story)
    assert api.read == 11
