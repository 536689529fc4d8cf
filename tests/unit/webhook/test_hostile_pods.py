"""No pod that anybody may create costs the webhook's event loop much more than to read its JSON."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc

import pytest
from pretune.api.types import Object
from pretune.intake import MAX_TEXT_CHARACTERS
from pretune.webhook.admission import Admission, Answer
from pretune.webhook.informers import CacheInformer, LeaseMonitor, trim_cache
from pretune.webhook.server import MemoryBudget, parse_review
from pretune.webhook.template_cache import TemplateCache

from tests.builders.caches import cache
from tests.builders.constants import AGENT, KEY
from tests.builders.hostile_templates import growing_env
from tests.growth import shortest_seconds

# Times what it takes to parse and write an ordinary object of 1.5 MB.
MAX_RATIO = 4.0
LONG = MAX_TEXT_CHARACTERS - 10  # characters of one text
READY = {"type": "StorageReady", "status": "True", "reason": "Bound", "message": ""}


def values(value: str, count: int) -> list[Object]:
    return [{"name": f"V{number}", "value": value} for number in range(count)]


def affinity(terms: int, in_each: int) -> Object:
    expressions = [{"key": "k", "operator": "In", "values": [str(n) for n in range(in_each)]}]
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions}] * terms}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


ENGINES: dict[str, Object] = {
    "open references": {"env": values("$(" * (LONG // 2), 8)},
    "references": {"env": [*values("x", 1), *values("$(V0)" * (LONG // 5), 8)]},
    "variables that grow": {"env": growing_env(900)},
    "PATH of references": {"env": [*values("x", 990), {"name": "PATH", "value": "$(V1)" * 19_000}]},
    "many variables": {"env": values("v" * 900, 999)},
    "a script of words": {"command": ["sh", "-c", "a " * 8_000]},
    "a script of flags": {"command": ["sh", "-c", "--port 1 " * 1_800]},
    "a script of operators": {"command": ["sh", "-c", ";a" * 8_000]},
    "a long script": {"command": ["sh", "-c", "'a' " * (LONG // 4)]},
    "flags": {"args": ["--port"] * 999},
    "long words": {"args": ["x" * 100_000] * 10},
    "mounts": {
        "volumeMounts": [{"name": "v", "mountPath": "/a" * 100 + str(n)} for n in range(990)]
    },
}
ADDRESS = {"fieldRef": {"fieldPath": "status.hostIP"}}
NODES: dict[str, Object] = {  # on the node's network, with its address in a variable
    "a name that is a pattern": {
        "env": [{"name": "(a+)+!", "valueFrom": ADDRESS}],
        "args": ["$" + "a" * 40],
    },
    "names that are no patterns": {
        "env": [{"name": "(a" * n, "valueFrom": ADDRESS} for n in range(1, 300)],
        "args": ["$a ${a $(a" * (LONG // 10)],
    },
}
PODS: dict[str, Object] = {
    "containers": {
        "initContainers": [
            {"name": f"c{n}", "image": "x", "env": values("v", 180)} for n in range(49)
        ]
    },
    "node terms": {"affinity": affinity(450, 15)},
    "tolerations": {"tolerations": [{"key": f"k{n}"} for n in range(999)]},
}


def pod(engine: Object, spec: Object) -> Object:
    gpu = {"limits": {"nvidia.com/gpu": 1}}
    own = {"name": "vllm", "image": "vllm:1", "args": ["serve"], "resources": gpu, **engine}
    meta = {"namespace": KEY.namespace, "name": "p", "labels": {"pretune.dev/cache": KEY.name}}
    return {"metadata": meta, "spec": {"containers": [own], **spec}}


def answer(body: bytes) -> Answer:
    """Return the webhook's answer, where cache and controller are there."""
    caches, lease = CacheInformer(time.monotonic), LeaseMonitor(time.monotonic)
    status = {"storage": {"claimUID": "claim-uid"}, "conditions": [READY]}
    caches.on_event("ADDED", trim_cache(cache(status, source=None)))
    for watch in (caches, lease):
        watch.on_event("LISTED", {})
    admission = Admission(TemplateCache(None), caches, lease, AGENT)  # type: ignore[arg-type]
    with MemoryBudget().reserve() as grow:
        request, excess = parse_review(body, grow)
        assert not excess
        given = asyncio.run(admission.answer(request))
    assert given.response and given.reason != "Failed"
    return given


@pytest.fixture(scope="module")
def ordinary() -> float:
    """What it takes to read and write 1.5 MB of ordinary JSON, in seconds."""
    text = json.dumps([{"name": f"VARIABLE_{n}", "value": f"value {n}"} for n in range(30_000)])
    return shortest_seconds(
        lambda raw: json.dumps(json.loads(raw)), text[: text.rindex("}") + 1] + "]"
    )


@pytest.mark.parametrize("name", [*ENGINES, *NODES, *PODS])
def test_no_pod_costs_much_more_than_to_read_an_ordinary_one(name: str, ordinary: float) -> None:
    of_node = {"hostNetwork": True} if name in NODES else {}
    hostile = pod({**ENGINES, **NODES}.get(name, {}), PODS.get(name, of_node))
    request = {"uid": "u", "operation": "CREATE", "namespace": KEY.namespace, "object": hostile}
    body = json.dumps({"request": request}).encode()
    assert shortest_seconds(answer, body) < MAX_RATIO * ordinary
    tracemalloc.start()
    try:
        answer(body)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
