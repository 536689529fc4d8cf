"""What the API server is answered about pods, over HTTPS; and the webhook as a process beside an API server that is restarted."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import strategies as st
from pretune.api.delivery_reasons import DELIVERIES
from pretune.api.names import BUNDLE, CACHE, DELIVERY, REASON, ROLE
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.kube.watch import ENDED, LISTED
from pretune.manifests.gate import is_held
from pretune.manifests.injection import is_injected, strip
from pretune.policy.pods.delivery import delivery, want
from pretune.webhook import admission, server
from pretune.webhook.admission import FAILED, SKIPPED, Admission, Answer
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.informers import CacheInformer, LeaseMonitor
from pretune.webhook.server import build_application, serve
from pretune.webhook.template_cache import TemplateCache

from tests.patches import patched
from tests.unit.builders import law, templates
from tests.unit.test_health import free_port

SECRET = "hunter2"  # an env value, which is never to be seen in a log
CACHES = "/apis/pretune.dev/v1alpha1/autotunecaches"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
REPLICASET = "/apis/apps/v1/namespaces/inference/replicasets/qwen3-1"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "9",
    ]
    command += ["-subj", "/CN=webhook", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def template() -> Object:
    container = {
        "name": "vllm",
        "image": "vllm:2",
        "env": [{"name": "TOKEN", "value": SECRET}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    labels = {"app": "qwen3", CACHE: "qwen3", "pod-template-hash": "1"}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}


def pod(**spec: Any) -> Object:
    """As a ReplicaSet makes it, and the API server sends it before it has a name."""
    made = template()
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "qwen3-1",
        "uid": "rs",
        "controller": True,
    }
    made["metadata"] |= {"generateName": "qwen3-1-", "ownerReferences": [owner]}
    made["spec"] |= spec
    return {"apiVersion": "v1", "kind": "Pod", **made}


def labelled(one: Object, **labels: str) -> Object:
    one["metadata"]["labels"] = {name.replace("__", "/"): value for name, value in labels.items()}
    return one


def review(the_pod: Any, **request: Any) -> Object:
    asked = {
        "uid": "u-1",
        "operation": "CREATE",
        "namespace": "inference",
        "dryRun": False,
        "object": the_pod,
        **request,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}


def cache(version: int = 1, *bundles: Object, **spec: Any) -> Object:
    """One whose older revision serves."""
    serves = {"id": "0lder-default", "fingerprint": "0", "state": "Sealed", "serving": True}
    ready = {"type": "StorageReady", "status": "True", "reason": "Bound", "message": ""}
    return {
        "metadata": {"namespace": "inference", "name": "qwen3", "uid": "c", "generation": version, "resourceVersion": str(version)},
        "spec": {"storage": {"claim": {}}, **spec},
        "status": {"observedGeneration": version, "conditions": [ready], "bundles": [serves, *bundles]},
    }  # fmt: skip


class Cluster:
    """Holds the ReplicaSet; answers after `slow` seconds, or not at all."""

    def __init__(self) -> None:
        self.slow, self.read = 0.0, 0
        self.error: Exception | None = None

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        self.read += 1
        await asyncio.sleep(self.slow)
        if self.error:
            raise self.error
        meta = {"namespace": namespace, "name": name, "uid": "rs"}
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": meta,
            "spec": {"template": template()},
        }


class Hook:
    """A webhook that knows one cache and sees the controller live."""

    def __init__(self) -> None:
        self.now = 0.0  # its own clock: some hooks are made long before their test
        self.cluster, self.caches, self.controller = (
            Cluster(),
            CacheInformer(lambda: self.now),
            LeaseMonitor(lambda: self.now),
        )
        self.counted: list[str] = []
        self.admission = Admission(
            TemplateCache(self.cluster), self.caches, self.controller, "pretune-agent-0"
        )  # type: ignore[arg-type]

    def knowing(self, *caches: Object) -> Hook:
        for one in caches:
            self.caches.on_event("ADDED", one)
        self.caches.on_event(LISTED, {})
        return self

    def alive(self) -> Hook:
        self.controller.on_event(LISTED, {})
        self.controller.on_event("ADDED", {"spec": {"holderIdentity": "a", "renewTime": "now"}})
        return self

    def count(self, mode: str, reason: str, seconds: float) -> None:
        assert 0 <= seconds < 60 and mode in ("ReadOnly", "Overlay", "None")
        self.counted.append(reason)

    def asked(self, tls: Path, *reviews: Any, at_once: bool = False) -> list[Any]:
        """The answers: the response of an AdmissionReview, or (status, text)."""

        async def story() -> list[Any]:
            port, app = free_port(), build_application(self.admission.answer, self.count)
            trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
            async with (
                serve(port, CertificateWatcher(tls).context, app),
                aiohttp.ClientSession() as session,
            ):

                async def ask(one: Any) -> Any:
                    body = one if isinstance(one, bytes) else json.dumps(one).encode()
                    url = f"https://localhost:{port}/pods?timeout=5s"
                    async with session.post(url, data=body, ssl=trust) as answer:
                        return (
                            judged(await answer.json())
                            if answer.status == 200
                            else (answer.status, await answer.text())
                        )

                if at_once:
                    return await asyncio.gather(*(ask(one) for one in reviews))
                return [await ask(one) for one in reviews]

        return asyncio.run(story())


def hook(*bundles: Object, **spec: Any) -> Hook:
    return Hook().knowing(cache(1, *bundles, **spec)).alive()


def judged(answer: Object) -> Object:
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: Object = answer["response"]
    assert response["uid"] == "u-1" and response["allowed"] is True
    return response


def after(one: Object, response: Object) -> Object:
    """The pod as the API server would make it."""
    if "patch" not in response:
        return one
    assert response["patchType"] == "JSONPatch"
    return patched(one, json.loads(base64.b64decode(response["patch"])))


def needed() -> str:
    spec = Spec.from_cache(cache())
    return want(template(), spec, spec.targets[0]).bundle


def sealed(layout: str = "Managed") -> Object:
    return {"id": needed(), "fingerprint": "1", "state": "Sealed", "layout": layout}


# --- one pod


@pytest.mark.parametrize(
    ("the_hook", "mode", "reason", "held"),
    [
        (hook(sealed()), "ReadOnly", "Given", False),
        (hook(sealed("PerRank")), "Overlay", "Given", False),
        (hook(), "Overlay", "Held", True),
        (hook(hold={"when": "Never"}), "Overlay", "NotSealedYet", False),
        (hook(suspend=True), "None", "Suspended", False),
        (hook(delivery={"mode": "None"}), "None", "DeliveryOff", False),
        (Hook().knowing().alive(), "None", "NoCache", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pod_is_given_what_was_decided_and_says_so(
    the_hook: Hook, mode: str, reason: str, held: bool, tls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pretune.webhook.admission")
    (response,) = the_hook.asked(tls, review(pod()))
    made = after(pod(), response)
    notes = made["metadata"]["annotations"]
    assert (
        notes[DELIVERY] == mode
        and notes[REASON].startswith(f"{reason}: ")
        and is_held(made) == held
    )
    assert notes.get(BUNDLE) == (None if mode == "None" else needed())
    assert ("warnings" in response) == (mode == "None")
    assert the_hook.counted == [reason] and reason in DELIVERIES
    (line,) = caplog.messages
    assert line.startswith(
        f"inference/qwen3: pod inference/qwen3-1-… of ReplicaSet qwen3-1: {reason}: "
    )
    assert SECRET not in line


@pytest.mark.parametrize(
    ("case", "the_pod", "request_"),
    [
        ("not opted in", labelled(pod(), app="qwen3"), {}),
        ("one of ours", labelled(pod(), pretune__dev="x", **{CACHE: "qwen3", ROLE: "tuning"}), {}),
        ("without labels", {"metadata": {}, "spec": {}}, {}),
        ("without metadata", {"spec": {}}, {}),
        ("changed", pod(), {"operation": "UPDATE"}),
        ("deleted", None, {"operation": "DELETE", "oldObject": pod()}),
        ("no operation", pod(), {"operation": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_none_of_our_business_goes_as_it_came(
    case: str, the_pod: Any, request_: Object, tls: Path
) -> None:
    the_hook = hook()
    assert the_hook.asked(tls, review(the_pod, **request_)) == [{"uid": "u-1", "allowed": True}]
    assert the_hook.counted == [SKIPPED] and the_hook.cluster.read == 0


@pytest.mark.parametrize("the_hook", [hook(), hook(sealed()), hook(suspend=True)])
def test_a_pod_that_was_answered_for_is_not_touched_again(the_hook: Hook, tls: Path) -> None:
    (first,) = the_hook.asked(tls, review(pod()))
    made = after(pod(), first)
    made["spec"]["containers"].append(
        {"name": "sidecar"}
    )  # another webhook's, after which we are asked anew
    assert the_hook.asked(tls, review(made)) == [{"uid": "u-1", "allowed": True}]


def test_a_dry_run_is_answered_likewise(tls: Path) -> None:
    real, dry = hook().asked(tls, review(pod()), review(pod(), dryRun=True))
    assert real == dry and is_held(after(pod(), dry))


def test_the_namespace_is_the_requests_whatever_the_pod_says(tls: Path) -> None:
    other = pod()
    other["metadata"]["namespace"] = "other"
    here, there = hook().asked(tls, review(other), review(pod(), namespace="other"))
    assert is_held(after(pod(), here))
    assert after(pod(), there)["metadata"]["annotations"][REASON].startswith("NoCache")


def test_a_pod_of_3_mb_is_answered(tls: Path) -> None:
    large = pod()
    large["spec"]["containers"][0]["args"] = ["x" * 1000] * 3000
    (response,) = hook(hold={"when": "Always"}).asked(tls, review(large))
    assert is_injected(after(large, response))


def test_a_warning_is_as_long_as_the_api_server_hands_on(tls: Path) -> None:
    failed = {**sealed(), "state": "Failed", "reason": "EngineFailed", "message": "x" * 900}
    (response,) = hook(failed).asked(tls, review(pod()))
    (warning,) = response["warnings"]
    assert len(warning) == 256 and warning.startswith("pretune: TuningFailed: bundle ")
    assert len(after(pod(), response)["metadata"]["annotations"][REASON]) > 900


# --- what it knows


def test_nothing_is_done_before_caches_and_lease_were_read(tls: Path) -> None:
    for the_hook in (Hook().alive(), Hook().knowing(cache())):
        assert (
            the_hook.admission.find_problem()
            == "the caches and the controller's lease have not been read yet"
        )
        (response,) = the_hook.asked(tls, review(pod()))
        assert (
            "patch" not in response
            and "the pod starts without its bundle" in response["warnings"][0]
        )
        assert the_hook.counted == [FAILED]
    assert hook().admission.find_problem() == ""


@pytest.mark.parametrize("blind", ["caches", "controller"])
def test_nobody_is_held_by_a_webhook_that_sees_nothing_any_more(blind: str, tls: Path) -> None:
    the_hook = hook()
    if blind == "caches":
        the_hook.caches.on_event(ENDED, {})
        the_hook.controller._clock = lambda: 0.0  # it still sees the lease renewed
    the_hook.now = 16.0
    (response,) = the_hook.asked(tls, review(pod()))
    made = after(pod(), response)
    assert (
        not is_held(made)
        and "nobody could release the pod" in made["metadata"]["annotations"][REASON]
    )


def with_token(end: str) -> Object:
    """As the ServiceAccount plugin leaves it, before anybody else is asked."""
    name = f"kube-api-access-{end}"
    mine = {"name": "models", "emptyDir": {}}
    made = pod(
        volumes=[mine, {"name": name, "projected": {}}],
        initContainers=[{"name": "fetch", "volumeMounts": [{"name": name}]}],
    )
    mounts = [
        {"name": "models", "mountPath": "/models"},
        {"name": name, "mountPath": "/var/run/secrets", "readOnly": True},
    ]
    made["spec"]["containers"][0]["volumeMounts"] = mounts
    return made


class Counting:
    """decide.delivery.delivery, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decided = 0
        monkeypatch.setattr(admission, "delivery", self)

    def __call__(self, *asked: Any) -> Any:
        self.decided += 1
        return delivery(*asked)


def test_pods_of_a_revision_that_are_alike_are_decided_about_once(
    tls: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pretune.webhook.admission")
    counting, the_hook = Counting(monkeypatch), hook()
    first, second, third = the_hook.asked(
        tls, *(review(with_token(end)) for end in ("abcde", "fghij", "fghij"))
    )
    assert first == second == third and counting.decided == 1 and the_hook.cluster.read == 1
    assert len(caplog.messages) == 1 and the_hook.counted == ["Held"] * 3
    made = after(with_token("fghij"), second)
    assert is_held(made) and "kube-api-access-fghij" in json.dumps(made)
    assert strip(made) == with_token("fghij")


def test_a_pod_that_differs_from_the_first_of_its_revision_has_an_answer_of_its_own(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, the_hook = Counting(monkeypatch), hook()
    mirrored, taken = with_token("abcde"), with_token("abcde")
    mirrored["spec"]["containers"][0]["image"] = "mirror/vllm:2"
    taken["spec"]["volumes"][0]["name"] = "pretune-claim"
    plain, other, alone = the_hook.asked(
        tls, review(with_token("abcde")), review(mirrored), review(taken)
    )
    assert counting.decided == 3
    assert after(mirrored, other)["spec"]["initContainers"][-1]["image"] == "mirror/vllm:2"
    assert after(with_token("abcde"), plain)["spec"]["initContainers"][-1]["image"] == "vllm:2"
    assert after(taken, alone)["metadata"]["annotations"][REASON].startswith("NamesCollide")


def test_what_was_said_holds_only_while_all_is_as_it_was(tls: Path) -> None:
    the_hook = hook()

    def reason() -> str:
        (response,) = the_hook.asked(tls, review(pod()))
        return str(after(pod(), response)["metadata"]["annotations"][REASON]).partition(":")[0]

    assert reason() == "Held"
    the_hook.controller.on_event("MODIFIED", {"spec": {"holderIdentity": "", "renewTime": "later"}})
    assert reason() == "NotSealedYet"
    the_hook.controller.on_event(
        "MODIFIED", {"spec": {"holderIdentity": "b", "renewTime": "later still"}}
    )
    assert reason() == "Held"
    sealed_now = cache(1, sealed())
    sealed_now["metadata"]["resourceVersion"] = "2"  # its status: the generation is the same
    the_hook.caches.on_event("MODIFIED", sealed_now)
    assert reason() == "Given"
    the_hook.caches.on_event("DELETED", sealed_now)
    assert reason() == "NoCache"
    anew = cache(1, suspend=True)
    anew["metadata"]["uid"] = "another"
    the_hook.caches.on_event("ADDED", anew)
    assert reason() == "Suspended"


def test_an_owner_that_could_not_be_read_is_forgotten_at_once(tls: Path) -> None:
    the_hook = hook(sealed())
    the_hook.cluster.error = ConnectionError("refused")
    (alone,) = the_hook.asked(tls, review(pod()))
    the_hook.cluster.error = None
    (given,) = the_hook.asked(tls, review(pod()))
    assert after(pod(), alone)["metadata"]["annotations"][DELIVERY] == "None"
    assert after(pod(), given)["metadata"]["annotations"][DELIVERY] == "ReadOnly"


# --- what goes wrong


@pytest.mark.parametrize(
    ("fault", "words", "least", "most"),
    [
        (
            {"error": ApiError(403, "Forbidden", "no right")},
            "ReplicaSet inference/qwen3-1: no right",
            0.0,
            1.0,
        ),
        ({"error": ConnectionError("refused")}, "ReplicaSet inference/qwen3-1: refused", 0.0, 1.0),
        ({"slow": 30.0}, "ReplicaSet inference/qwen3-1: no answer within 1.5 s", 1.4, 2.0),
    ],
)
def test_pods_whose_owner_cannot_be_read_are_left_alone_in_time_with_one_read(
    fault: Object, words: str, least: float, most: float, tls: Path
) -> None:
    the_hook = hook(sealed())
    for name, value in fault.items():
        setattr(the_hook.cluster, name, value)
    began = time.monotonic()
    responses = the_hook.asked(tls, *[review(pod())] * 20, at_once=True)
    assert least <= time.monotonic() - began < most + 1.0  # 20 TLS connections on a busy machine
    for response in responses:
        notes = after(pod(), response)["metadata"]["annotations"]
        assert notes == {DELIVERY: "None", REASON: f"OwnerUnreadable: {words}"}
        assert response["warnings"] == [f"pretune: OwnerUnreadable: {words}"]
    assert the_hook.cluster.read == 1


def test_an_answer_is_given_in_time_whatever_hangs(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(admission, "ADMISSION_BUDGET_SECONDS", 0.2)
    the_hook = hook()
    monkeypatch.setattr(the_hook.admission, "_answer", hangs)
    assert the_hook.asked(tls, review(pod())) == [{"uid": "u-1", "allowed": True}]
    assert the_hook.counted == [FAILED]


def broken(**changes: Any) -> Object:
    made = pod()
    for path, value in changes.items():
        part, _, name = path.partition("__")
        if name:
            made[part][name] = value
        else:
            made[part] = value
    return made


@pytest.mark.parametrize(
    "the_pod",
    [
        broken(spec=None),
        broken(spec="x"),
        broken(spec__containers=None),
        broken(spec__containers=[None]),
        broken(spec__containers=[{"image": "no name", "env": [{"value": SECRET}]}]),
        broken(spec__volumes=[{}]),
        broken(spec__schedulingGates=[{}]),
        broken(metadata__ownerReferences=[{"controller": True}]),
        broken(metadata__ownerReferences=["x"]),
        broken(metadata__annotations=["x"]),
        broken(metadata__labels=["pretune.dev/cache"]),
        broken(metadata__labels={CACHE: ["x"]}),
        broken(metadata=["x"]),
        "x",
        ["x"],
    ],
)
def test_a_pod_that_cannot_be_read_goes_as_it_came_with_one_line_in_the_log(
    the_pod: Any, tls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    the_hook = hook(hold={"when": "Always"})
    assert the_hook.asked(tls, review(the_pod)) == [{"uid": "u-1", "allowed": True}]
    assert the_hook.counted == [FAILED]
    (line,) = caplog.messages
    assert (
        line.startswith("pod inference/")
        and "admitted unchanged: " in line
        and SECRET not in line
        and "\n" not in line
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"{}", b'{"request": null}', b'{"request": []}', b'{"request": {}}', b"\xff\xfe"]
)  # fmt: skip
def test_what_is_no_admission_review_is_refused_as_such(body: bytes, tls: Path) -> None:
    the_hook = hook()
    assert the_hook.asked(tls, body) == [
        (400, "the body is not an AdmissionReview with a request\n")
    ]
    assert not the_hook.counted


def test_a_failure_is_told_by_its_place_not_by_its_words(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(CacheInformer):
        def get(self, namespace: str, name: str) -> Object | None:
            raise ValueError(f"TOKEN={SECRET}")

    the_hook = hook()
    the_hook.admission._caches = careless = Careless(time.monotonic)
    careless.has_synced = True
    assert asyncio.run(the_hook.admission.answer(review(pod())["request"])) == Answer(
        "None", FAILED
    )
    (line,) = caplog.messages
    assert "ValueError at test_admission.py:" in line and " in get" in line and SECRET not in line


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", "x", "CREATE", "vllm", CACHE]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "spec", "labels", "name", "env", "containers", CACHE]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@law(JSON, JSON)
def test_nothing_that_is_asked_makes_it_fail(meta: Any, spec: Any) -> None:
    async def story() -> None:
        the_hook = hook(hold={"when": "Always"})
        for the_pod in (
            meta,
            {"metadata": meta, "spec": spec},
            broken(spec=spec),
            broken(metadata=meta),
        ):
            for one in (
                review(the_pod),
                {"request": {"uid": "u-1", **(spec if isinstance(spec, dict) else {})}},
            ):
                answer = await the_hook.admission.answer(one["request"])
                json.loads(server.REVIEW % ('"u-1"', answer.response))

    asyncio.run(story())


@law(templates())
def test_any_pod_of_its_own_is_answered_for(the_pod: Object) -> None:
    arrives = copy.deepcopy(the_pod)
    arrives["metadata"]["labels"][CACHE] = "qwen3"
    the_hook = hook(engineContainer="vllm", hold={"when": "Always"})
    answer = asyncio.run(the_hook.admission.answer(review(arrives)["request"]))
    assert answer.reason in ("Held", "NotSealedYet", "OverrideSet", "NotTunable"), answer
    assert is_injected(patched(arrives, answer.patch))


# --- the process


class Api:
    """An API server with caches, a lease and a ReplicaSet, for watches that stay open until it is stopped."""

    def __init__(self) -> None:
        self.listed: dict[str, list[Object]] = {CACHES: [], LEASES: []}
        self.streams: list[tuple[str, asyncio.Queue[Object | None]]] = []
        self.delay = 0.0
        self.reading = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == REPLICASET:
            self.reading.set()
            await asyncio.sleep(self.delay)
            meta = {"namespace": "inference", "name": "qwen3-1", "uid": "rs"}
            return web.json_response(
                {"kind": "ReplicaSet", "metadata": meta, "spec": {"template": template()}}
            )
        if not request.query.get("watch"):
            return web.json_response(
                {"metadata": {"resourceVersion": "5"}, "items": self.listed[request.path]}
            )
        response, told = web.StreamResponse(), asyncio.Queue[Object | None]()
        await response.prepare(request)
        self.streams.append((request.path, told))
        while (change := await told.get()) is not None:
            await response.write(json.dumps(change).encode() + b"\n")
        return response

    async def say(self, path: str, change: str, obj: Object) -> None:
        """To whoever watches; once somebody does."""

        async def watched() -> bool:
            return any(at == path for at, _ in self.streams)

        await until(watched, True)
        for at, told in self.streams:
            if at == path:
                told.put_nowait({"type": change, "object": obj})

    def end(self) -> None:
        for _, told in self.streams:
            told.put_nowait(None)
        self.streams.clear()

    async def start(self, port: int) -> TestServer:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        server = TestServer(app, port=port)
        await server.start_server()
        return server


def a_lease(number: int, holder: str = "a") -> Object:
    meta = {"namespace": "default", "name": "pretune-controller", "resourceVersion": str(number)}
    return {"metadata": meta, "spec": {"holderIdentity": holder, "renewTime": str(number)}}


class Process:
    """`python -m pretune webhook`."""

    def __init__(self, tls: Path, api: int) -> None:
        self.tls, self.api, self.port, self.health = tls, api, free_port(), free_port()
        self.session: Any = None

    @asynccontextmanager
    async def run(self, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        contexts = [{"name": "x", "context": {"cluster": "x", "user": "x"}}]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{self.api}"}}],
            "users": [{"name": "x", "user": {"token": "t"}}],
            "contexts": contexts,
            "current-context": "x",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3] / "operator"),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "PRETUNE_CERTIFICATES": str(self.tls),
            "PRETUNE_WEBHOOK_PORT": str(self.port),
            "PRETUNE_HEALTH_PORT": str(self.health),
        }
        words = (sys.executable, "-m", "pretune", "webhook")
        process = await asyncio.create_subprocess_exec(
            *words, env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with aiohttp.ClientSession() as self.session:
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def page(self, path: str) -> tuple[int, str]:
        try:
            async with self.session.get(f"http://127.0.0.1:{self.health}{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def reason(self) -> str:
        """Of the annotation that a pod of the ReplicaSet gets."""
        trust = ssl.create_default_context(cafile=str(self.tls / "tls.crt"))
        url = f"https://localhost:{self.port}/pods?timeout=5s"
        async with self.session.post(url, json=review(pod()), ssl=trust) as answer:
            made = after(pod(), judged(await answer.json()))
        return str(made["metadata"]["annotations"][REASON]).partition(":")[0]


async def until(what: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    for _ in range(200):
        if (found := await what()) == wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found!r} is not {wanted!r}")


def test_a_webhook_lives_through_its_api_server_and_ends_in_peace(
    tls: Path, tmp_path: Path
) -> None:
    async def story() -> tuple[int | None, str]:
        api, port = Api(), free_port()
        process = Process(tls, port)
        async with process.run(tmp_path) as running:
            await until(lambda: process.page("/healthz"), (200, "ok\n"))
            assert await process.page("/readyz") == (
                503,
                "the caches and the controller's lease have not been read yet\n",
            )
            api.listed = {CACHES: [cache()], LEASES: [a_lease(1)]}
            server = await api.start(port)
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            assert (
                await process.reason() == "NotSealedYet"
            )  # the controller was not seen to live yet
            await api.say(LEASES, "MODIFIED", a_lease(2))
            await until(process.reason, "Held")
            await api.say(CACHES, "MODIFIED", cache(2, sealed()))
            await until(process.reason, "Given")

            api.end()
            await server.close()
            assert await process.reason() == "Given"  # what it knows is still known
            assert (await process.page("/readyz"))[0] == 200
            api.listed[CACHES] = [cache(3, suspend=True)]
            server = await api.start(port)
            await until(process.reason, "Suspended")
            await api.say(CACHES, "MODIFIED", cache(4))
            await until(process.reason, "Held")
            await api.say(LEASES, "MODIFIED", a_lease(3, ""))
            await until(process.reason, "NotSealedYet")

            await api.say(CACHES, "MODIFIED", cache(5, sealed()))
            await until(process.reason, "Given")
            _, numbers = await process.page("/metrics")
            assert 'pretune_admissions_total{delivery="ReadOnly",reason="Given"}' in numbers
            ends = float(
                re.findall(r"^pretune_certificate_expiry_timestamp_seconds (.*)$", numbers, re.M)[0]
            )
            assert (
                abs(ends - time.time() - 9 * 86400) < 600
                and "\npretune_controller_alive 0.0\n" in numbers
            )
            running.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(running.wait(), 10)
            assert running.stderr is not None
            log = (await running.stderr.read()).decode()
            api.end()
            await server.close()
            return code, log

    code, log = asyncio.run(story())
    assert code == 0, log
    assert SECRET not in log and "Traceback" not in log


def test_what_is_asked_already_is_answered_before_the_end(tls: Path, tmp_path: Path) -> None:
    async def story() -> tuple[str, int | None]:
        api, port = Api(), free_port()
        api.listed, api.delay = {CACHES: [cache(1, sealed())], LEASES: []}, 1.0
        server, process = await api.start(port), Process(tls, port)
        async with process.run(tmp_path) as running:
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            asked = asyncio.create_task(process.reason())
            await api.reading.wait()
            running.send_signal(signal.SIGTERM)
            await until(lambda: process.page("/readyz"), (503, "stopping\n"))
            late = (
                await process.reason()
            )  # who asks meanwhile, since the Service still led here, is answered too
            answer = await asked
            assert late == answer
            code = await asyncio.wait_for(running.wait(), 10)
            api.end()
            await server.close()
            return answer, code

    assert asyncio.run(story()) == ("Given", 0)


def run_webhook(tls: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3] / "operator"),
        "PRETUNE_CERTIFICATES": str(tls),
    }
    words: Sequence[str] = (sys.executable, "-m", "pretune", "webhook")
    return subprocess.run(
        words, env={**env, **environment}, capture_output=True, text=True, timeout=60
    )


def test_a_webhook_without_certificate_ends_with_the_reason(tmp_path: Path) -> None:
    ended = run_webhook(tmp_path)
    assert ended.returncode == 1
    assert (
        f"{tmp_path}: tls.crt and tls.key cannot be used: No such file or directory" in ended.stderr
    )
    assert "Traceback" not in ended.stderr


def test_at_the_end_each_connection_is_parted_with_by_an_answer_and_none_is_cut(tls: Path) -> None:
    """A connection that is closed while it is idle is one that the API server may be writing to."""

    async def story() -> tuple[list[str | None], float]:
        port, end, hook = free_port(), asyncio.Event(), Hook().knowing(cache(1)).alive()
        trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
        body = json.dumps(review(pod())).encode()

        async def server() -> None:
            async with serve(
                port, CertificateWatcher(tls).context, build_application(hook.admission.answer)
            ):
                await end.wait()

        running = asyncio.create_task(server())
        said: list[str | None] = []
        async with aiohttp.ClientSession() as session:

            async def ask() -> None:
                async with session.post(
                    f"https://localhost:{port}/pods", data=body, ssl=trust
                ) as answer:
                    assert answer.status == 200
                    said.append(answer.headers.get("Connection"))

            await asyncio.sleep(0.5)
            await ask()
            end.set()
            await asyncio.sleep(0.5)
            await ask()
            began = time.monotonic()
            await running
            return said, time.monotonic() - began

    said, seconds = asyncio.run(story())
    assert said == [None, "close"]
    assert seconds < 2, "with nobody left to part with, it ends"
