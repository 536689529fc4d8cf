"""Answers to admission requests over HTTPS, and the webhook's process beside an API server that
is restarted."""

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
from pretune.policy.pods.admission import find_need
from pretune.policy.pods.delivery import decide_delivery
from pretune.webhook import admission, server
from pretune.webhook.admission import FAILED, SKIPPED, Admission, Answer
from pretune.webhook.certificates import CertificateWatcher
from pretune.webhook.informers import CacheInformer, LeaseMonitor
from pretune.webhook.server import build_application, serve
from pretune.webhook.template_cache import TemplateCache

from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.unit.test_health import free_port

SECRET = "hunter2"  # an env value, which must never be in a log
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
    """As a ReplicaSet creates it, and the API server sends it before it has a name."""
    pod = template()
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "qwen3-1",
        "uid": "rs",
        "controller": True,
    }
    pod["metadata"] |= {"generateName": "qwen3-1-", "ownerReferences": [owner]}
    pod["spec"] |= spec
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def labelled(pod: Object, **labels: str) -> Object:
    pod["metadata"]["labels"] = {name.replace("__", "/"): value for name, value in labels.items()}
    return pod


def review(the_pod: Any, **changes: Any) -> Object:
    request = {
        "uid": "u-1",
        "operation": "CREATE",
        "namespace": "inference",
        "dryRun": False,
        "object": the_pod,
        **changes,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def cache(version: int = 1, *bundles: Object, **spec: Any) -> Object:
    """A cache whose older revision serves."""
    serves = {
        "id": "0lder-default",
        "fingerprint": "0",
        "state": "Sealed",
        "servingWorkloads": ["ReplicaSet/qwen3-1"],
    }
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


JSON_CONTENT = {"Content-Type": "application/json"}


class Webhook:
    """The webhook, with the changes of its watches given by the test."""

    def __init__(self) -> None:
        self.now = 0.0  # monotonic seconds: some webhooks are built long before their test
        self.cluster = Cluster()
        self.caches = CacheInformer(lambda: self.now)
        self.controller = LeaseMonitor(lambda: self.now)
        self.reasons: list[str] = []
        templates = TemplateCache(self.cluster)  # type: ignore[arg-type]
        self.admission = Admission(templates, self.caches, self.controller, "pretune-agent-0")

    def with_caches(self, *caches: Object) -> Webhook:
        for cache in caches:
            self.caches.on_event("ADDED", cache)
        self.caches.on_event(LISTED, {})
        return self

    def with_live_controller(self) -> Webhook:
        self.controller.on_event(LISTED, {})
        self.controller.on_event("ADDED", {"spec": {"holderIdentity": "a", "renewTime": "now"}})
        return self

    def record_answer(self, mode: str, reason: str, seconds: float) -> None:
        assert 0 <= seconds < 60 and mode in ("ReadOnly", "Overlay", "None")
        self.reasons.append(reason)

    def ask(self, tls: Path, *reviews: Any, at_once: bool = False) -> list[Any]:
        """Return each answer: the response of an AdmissionReview, or (status, text)."""

        async def story() -> list[Any]:
            port, app = free_port(), build_application(self.admission.answer, self.record_answer)
            trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
            async with (
                serve(port, CertificateWatcher(tls).context, app),
                aiohttp.ClientSession() as session,
            ):

                async def post(review: Any) -> Any:
                    body = review if isinstance(review, bytes) else json.dumps(review).encode()
                    url = f"https://localhost:{port}/pods?timeout=5s"
                    async with session.post(
                        url, data=body, headers=JSON_CONTENT, ssl=trust
                    ) as answer:
                        return (
                            response_of(await answer.json())
                            if answer.status == 200
                            else (answer.status, await answer.text())
                        )

                if at_once:
                    return await asyncio.gather(*(post(review) for review in reviews))
                return [await post(review) for review in reviews]

        return asyncio.run(story())


def webhook(*bundles: Object, **spec: Any) -> Webhook:
    return Webhook().with_caches(cache(1, *bundles, **spec)).with_live_controller()


def response_of(answer: Object) -> Object:
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: Object = answer["response"]
    assert response["uid"] == "u-1" and response["allowed"] is True
    return response


def admitted(pod: Object, response: Object) -> Object:
    """Return the pod as the API server stores it."""
    if "patch" not in response:
        return pod
    assert response["patchType"] == "JSONPatch"
    return patched(pod, json.loads(base64.b64decode(response["patch"])))


def bundle_id() -> str:
    spec = Spec.from_cache(cache())
    return find_need(template(), spec, spec.targets[0]).bundle_id


def sealed(layout: str = "Managed") -> Object:
    return {"id": bundle_id(), "fingerprint": "1", "state": "Sealed", "layout": layout}


# --- one pod


@pytest.mark.parametrize(
    ("the_webhook", "mode", "reason", "held"),
    [
        (webhook(sealed()), "ReadOnly", "Given", False),
        (webhook(sealed("PerRank")), "Overlay", "Given", False),
        (webhook(), "Overlay", "Held", True),
        (webhook(hold={"when": "Never"}), "Overlay", "NotSealedYet", False),
        (webhook(suspend=True), "None", "Suspended", False),
        (webhook(delivery={"mode": "None"}), "None", "DeliveryOff", False),
        (Webhook().with_caches().with_live_controller(), "None", "NoCache", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pod_gets_its_delivery_and_has_the_reason_as_annotation(
    the_webhook: Webhook,
    mode: str,
    reason: str,
    held: bool,
    tls: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pretune.webhook.admission")
    (response,) = the_webhook.ask(tls, review(pod()))
    stored = admitted(pod(), response)
    annotations = stored["metadata"]["annotations"]
    assert (
        annotations[DELIVERY] == mode
        and annotations[REASON].startswith(f"{reason}: ")
        and is_held(stored) == held
    )
    assert annotations.get(BUNDLE) == (None if mode == "None" else bundle_id())
    assert ("warnings" in response) == (mode == "None")
    assert the_webhook.reasons == [reason] and reason in DELIVERIES
    (line,) = caplog.messages
    assert line.startswith(
        f"inference/qwen3: pod inference/qwen3-1-… of ReplicaSet qwen3-1: {reason}: "
    )
    assert SECRET not in line


@pytest.mark.parametrize(
    ("case", "the_pod", "request_"),
    [
        ("not opted in", labelled(pod(), app="qwen3"), {}),
        (
            "one of our pods",
            labelled(pod(), pretune__dev="x", **{CACHE: "qwen3", ROLE: "tuning"}),
            {},
        ),
        ("without labels", {"metadata": {}, "spec": {}}, {}),
        ("without metadata", {"spec": {}}, {}),
        ("changed", pod(), {"operation": "UPDATE"}),
        ("deleted", None, {"operation": "DELETE", "oldObject": pod()}),
        ("no operation", pod(), {"operation": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_new_consumer_is_admitted_unchanged(
    case: str, the_pod: Any, request_: Object, tls: Path
) -> None:
    the_webhook = webhook()
    assert the_webhook.ask(tls, review(the_pod, **request_)) == [{"uid": "u-1", "allowed": True}]
    assert the_webhook.reasons == [SKIPPED] and the_webhook.cluster.read == 0


@pytest.mark.parametrize("the_webhook", [webhook(), webhook(sealed()), webhook(suspend=True)])
def test_a_pod_that_has_its_answer_is_not_changed_again(the_webhook: Webhook, tls: Path) -> None:
    (first,) = the_webhook.ask(tls, review(pod()))
    stored = admitted(pod(), first)
    # Another webhook adds a container, after which the API server asks again.
    stored["spec"]["containers"].append({"name": "sidecar"})
    assert the_webhook.ask(tls, review(stored)) == [{"uid": "u-1", "allowed": True}]


def test_a_dry_run_gets_the_same_answer(tls: Path) -> None:
    real, dry = webhook().ask(tls, review(pod()), review(pod(), dryRun=True))
    assert real == dry and is_held(admitted(pod(), dry))


def test_the_namespace_is_that_of_the_request_and_not_of_the_pod(tls: Path) -> None:
    other = pod()
    other["metadata"]["namespace"] = "other"
    here, there = webhook().ask(tls, review(other), review(pod(), namespace="other"))
    assert is_held(admitted(pod(), here))
    assert admitted(pod(), there)["metadata"]["annotations"][REASON].startswith("NoCache")


def test_a_pod_of_3_mb_is_answered(tls: Path) -> None:
    large = pod()
    large["spec"]["containers"][0]["args"] = ["x" * 1000] * 3000
    (response,) = webhook(hold={"when": "Always"}).ask(tls, review(large))
    assert is_injected(admitted(large, response))


def test_a_warning_is_cut_to_what_the_api_server_passes_on(tls: Path) -> None:
    refused = {**sealed(), "state": "Refused", "reason": "SharedLayout", "message": "x" * 900}
    (response,) = webhook(refused).ask(tls, review(pod()))
    (warning,) = response["warnings"]
    assert len(warning) == 256 and warning.startswith("pretune: NotTunable: bundle ")
    assert len(admitted(pod(), response)["metadata"]["annotations"][REASON]) > 900


def test_no_answer_quotes_an_engines_log(tls: Path) -> None:
    quoted = f"exit code 1: TOKEN={SECRET}"
    failed = {**sealed(), "state": "Failed", "reason": "EngineFailed", "message": quoted}
    (response,) = webhook(failed).ask(tls, review(pod()))
    annotations = admitted(pod(), response)["metadata"]["annotations"]
    assert SECRET not in json.dumps([response, annotations])
    assert "EngineFailed: see status.bundles of AutotuneCache" in annotations[REASON]


# --- what the watches have brought


def test_pods_are_admitted_unchanged_until_caches_and_lease_were_listed(tls: Path) -> None:
    for the_webhook in (Webhook().with_live_controller(), Webhook().with_caches(cache())):
        assert (
            the_webhook.admission.find_problem()
            == "the caches and the controller's lease have not been read yet"
        )
        (response,) = the_webhook.ask(tls, review(pod()))
        assert (
            "patch" not in response
            and "the pod starts without its bundle" in response["warnings"][0]
        )
        assert the_webhook.reasons == [FAILED]
    assert webhook().admission.find_problem() == ""


@pytest.mark.parametrize("blind", ["caches", "controller"])
def test_no_pod_is_held_while_a_watch_is_down_for_too_long(blind: str, tls: Path) -> None:
    the_webhook = webhook()
    if blind == "caches":
        the_webhook.caches.on_event(ENDED, {})
        the_webhook.controller._clock = lambda: 0.0  # it still sees the lease being renewed
    the_webhook.now = 16.0
    (response,) = the_webhook.ask(tls, review(pod()))
    stored = admitted(pod(), response)
    assert (
        not is_held(stored)
        and "nothing could release the pod" in stored["metadata"]["annotations"][REASON]
    )


def with_token(end: str) -> Object:
    """As the ServiceAccount admission leaves it, which comes before all webhooks."""
    name = f"kube-api-access-{end}"
    models = {"name": "models", "emptyDir": {}}
    with_volumes = pod(
        volumes=[models, {"name": name, "projected": {}}],
        initContainers=[{"name": "fetch", "volumeMounts": [{"name": name}]}],
    )
    mounts = [
        {"name": "models", "mountPath": "/models"},
        {"name": name, "mountPath": "/var/run/secrets", "readOnly": True},
    ]
    with_volumes["spec"]["containers"][0]["volumeMounts"] = mounts
    return with_volumes


class CountedDelivery:
    """policy.pods.delivery.decide_delivery, which counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(admission, "decide_delivery", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return decide_delivery(*arguments)


def test_equal_pods_of_a_revision_are_decided_about_once(
    tls: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pretune.webhook.admission")
    counting, the_webhook = CountedDelivery(monkeypatch), webhook()
    first, second, third = the_webhook.ask(
        tls, *(review(with_token(end)) for end in ("abcde", "fghij", "fghij"))
    )
    assert first == second == third and counting.calls == 1 and the_webhook.cluster.read == 1
    assert len(caplog.messages) == 1 and the_webhook.reasons == ["Held"] * 3
    stored = admitted(with_token("fghij"), second)
    assert is_held(stored) and "kube-api-access-fghij" in json.dumps(stored)
    assert strip(stored) == with_token("fghij")


def test_a_pod_that_differs_from_others_of_its_revision_gets_its_own_answer(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, the_webhook = CountedDelivery(monkeypatch), webhook()
    mirrored, taken = with_token("abcde"), with_token("abcde")
    mirrored["spec"]["containers"][0]["image"] = "mirror/vllm:2"
    taken["spec"]["volumes"][0]["name"] = "pretune-claim"
    plain, other, alone = the_webhook.ask(
        tls, review(with_token("abcde")), review(mirrored), review(taken)
    )
    assert counting.calls == 3
    assert admitted(mirrored, other)["spec"]["initContainers"][-1]["image"] == "mirror/vllm:2"
    assert admitted(with_token("abcde"), plain)["spec"]["initContainers"][-1]["image"] == "vllm:2"
    assert admitted(taken, alone)["metadata"]["annotations"][REASON].startswith("NamesCollide")


def test_a_remembered_answer_ends_with_each_change_of_cache_and_controller(tls: Path) -> None:
    the_webhook = webhook()

    def reason() -> str:
        (response,) = the_webhook.ask(tls, review(pod()))
        return str(admitted(pod(), response)["metadata"]["annotations"][REASON]).partition(":")[0]

    assert reason() == "Held"
    the_webhook.controller.on_event(
        "MODIFIED", {"spec": {"holderIdentity": "", "renewTime": "later"}}
    )
    assert reason() == "NotSealedYet"
    the_webhook.controller.on_event(
        "MODIFIED", {"spec": {"holderIdentity": "b", "renewTime": "later still"}}
    )
    assert reason() == "Held"
    sealed_now = cache(1, sealed())
    sealed_now["metadata"]["resourceVersion"] = "2"  # its status: the generation is the same
    the_webhook.caches.on_event("MODIFIED", sealed_now)
    assert reason() == "Given"
    the_webhook.caches.on_event("DELETED", sealed_now)
    assert reason() == "NoCache"
    recreated = cache(1, suspend=True)
    recreated["metadata"]["uid"] = "another"
    the_webhook.caches.on_event("ADDED", recreated)
    assert reason() == "Suspended"


def test_an_owner_that_could_not_be_read_is_read_again_for_the_next_pod(tls: Path) -> None:
    the_webhook = webhook(sealed())
    the_webhook.cluster.error = ConnectionError("refused")
    (alone,) = the_webhook.ask(tls, review(pod()))
    the_webhook.cluster.error = None
    (given,) = the_webhook.ask(tls, review(pod()))
    assert admitted(pod(), alone)["metadata"]["annotations"][DELIVERY] == "None"
    assert admitted(pod(), given)["metadata"]["annotations"][DELIVERY] == "ReadOnly"


# --- what goes wrong


@pytest.mark.parametrize(
    ("fault", "message", "least", "most"),
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
def test_pods_whose_owner_cannot_be_read_in_time_share_one_read_and_are_left_alone(
    fault: Object, message: str, least: float, most: float, tls: Path
) -> None:
    the_webhook = webhook(sealed())
    for name, value in fault.items():
        setattr(the_webhook.cluster, name, value)
    began = time.monotonic()
    responses = the_webhook.ask(tls, *[review(pod())] * 20, at_once=True)
    assert least <= time.monotonic() - began < most + 1.0  # 20 TLS connections on a busy machine
    for response in responses:
        annotations = admitted(pod(), response)["metadata"]["annotations"]
        assert annotations == {DELIVERY: "None", REASON: f"OwnerUnreadable: {message}"}
        assert response["warnings"] == [f"pretune: OwnerUnreadable: {message}"]
    assert the_webhook.cluster.read == 1


def test_an_answer_comes_within_its_budget_even_if_the_decision_hangs(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(admission, "ADMISSION_BUDGET_SECONDS", 0.2)
    the_webhook = webhook()
    monkeypatch.setattr(the_webhook.admission, "_answer", hangs)
    assert the_webhook.ask(tls, review(pod())) == [{"uid": "u-1", "allowed": True}]
    assert the_webhook.reasons == [FAILED]


def broken(**changes: Any) -> Object:
    """Return a pod with other values: `spec__volumes` is spec.volumes."""
    broken_pod = pod()
    for path, value in changes.items():
        part, _, name = path.partition("__")
        if name:
            broken_pod[part][name] = value
        else:
            broken_pod[part] = value
    return broken_pod


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
def test_a_malformed_pod_is_admitted_unchanged_with_one_line_in_the_log(
    the_pod: Any, tls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    the_webhook = webhook(hold={"when": "Always"})
    assert the_webhook.ask(tls, review(the_pod)) == [{"uid": "u-1", "allowed": True}]
    assert the_webhook.reasons == [FAILED]
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
def test_a_body_that_is_not_an_admission_review_gets_400(body: bytes, tls: Path) -> None:
    the_webhook = webhook()
    assert the_webhook.ask(tls, body) == [
        (400, "the body is not an AdmissionReview with a request\n")
    ]
    assert not the_webhook.reasons


def test_an_error_is_logged_with_its_place_and_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Careless(CacheInformer):
        def get(self, namespace: str, name: str) -> Object | None:
            raise ValueError(f"TOKEN={SECRET}")

    the_webhook = webhook()
    the_webhook.admission._caches = careless = Careless(time.monotonic)
    careless.has_synced = True
    assert asyncio.run(the_webhook.admission.answer(review(pod())["request"])) == Answer(
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
def test_no_request_makes_the_answer_raise(meta: Any, spec: Any) -> None:
    async def story() -> None:
        the_webhook = webhook(hold={"when": "Always"})
        for the_pod in (
            meta,
            {"metadata": meta, "spec": spec},
            broken(spec=spec),
            broken(metadata=meta),
        ):
            for body in (
                review(the_pod),
                {"request": {"uid": "u-1", **(spec if isinstance(spec, dict) else {})}},
            ):
                answer = await the_webhook.admission.answer(body["request"])
                json.loads(server.REVIEW % ('"u-1"', answer.response))

    asyncio.run(story())


@law(templates())
def test_any_consumer_without_an_owner_gets_an_answer(the_pod: Object) -> None:
    arriving = copy.deepcopy(the_pod)
    arriving["metadata"]["labels"][CACHE] = "qwen3"
    the_webhook = webhook(engineContainer="vllm", hold={"when": "Always"})
    answer = asyncio.run(the_webhook.admission.answer(review(arriving)["request"]))
    assert answer.reason in ("SeedUntried", "OverrideSet", "NotTunable"), answer
    assert is_injected(patched(arriving, answer.patch))


# --- the process


class Api:
    """An API server with caches, a lease and a ReplicaSet; its watches stay open until it stops."""

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
        response, changes = web.StreamResponse(), asyncio.Queue[Object | None]()
        await response.prepare(request)
        self.streams.append((request.path, changes))
        while (change := await changes.get()) is not None:
            await response.write(json.dumps(change).encode() + b"\n")
        return response

    async def send(self, path: str, change: str, obj: Object) -> None:
        """Send a change to every watch of the path, once there is one."""

        async def watched() -> bool:
            return any(path_of_stream == path for path_of_stream, _ in self.streams)

        await until(watched, True)
        for path_of_stream, changes in self.streams:
            if path_of_stream == path:
                changes.put_nowait({"type": change, "object": obj})

    def end(self) -> None:
        for _, changes in self.streams:
            changes.put_nowait(None)
        self.streams.clear()

    async def start(self, port: int) -> TestServer:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        server = TestServer(app, port=port)
        await server.start_server()
        return server


def lease(number: int, holder: str = "a") -> Object:
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
        command = (sys.executable, "-m", "pretune", "webhook")
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=asyncio.subprocess.PIPE
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
        """Return the reason that a pod of the ReplicaSet has as annotation."""
        trust = ssl.create_default_context(cafile=str(self.tls / "tls.crt"))
        url = f"https://localhost:{self.port}/pods?timeout=5s"
        async with self.session.post(url, json=review(pod()), ssl=trust) as answer:
            stored = admitted(pod(), response_of(await answer.json()))
        return str(stored["metadata"]["annotations"][REASON]).partition(":")[0]


async def until(what: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    for _ in range(200):
        if (found := await what()) == wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found!r} is not {wanted!r}")


def test_the_process_survives_a_restart_of_the_api_server_and_ends_without_an_error(
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
            api.listed = {CACHES: [cache()], LEASES: [lease(1)]}
            server = await api.start(port)
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            # No renewal of the lease was seen yet.
            assert await process.reason() == "NotSealedYet"
            await api.send(LEASES, "MODIFIED", lease(2))
            await until(process.reason, "Held")
            await api.send(CACHES, "MODIFIED", cache(2, sealed()))
            await until(process.reason, "Given")

            api.end()
            await server.close()
            assert await process.reason() == "Given"  # the caches stay as they were last seen
            assert (await process.page("/readyz"))[0] == 200
            api.listed[CACHES] = [cache(3, suspend=True)]
            server = await api.start(port)
            await until(process.reason, "Suspended")
            await api.send(CACHES, "MODIFIED", cache(4))
            await until(process.reason, "Held")
            await api.send(LEASES, "MODIFIED", lease(3, ""))
            await until(process.reason, "NotSealedYet")

            await api.send(CACHES, "MODIFIED", cache(5, sealed()))
            await until(process.reason, "Given")
            _, metrics = await process.page("/metrics")
            assert 'pretune_admissions_total{delivery="ReadOnly",reason="Given"}' in metrics
            expires_at = float(
                re.findall(r"^pretune_certificate_expiry_timestamp_seconds (.*)$", metrics, re.M)[0]
            )
            assert (
                abs(expires_at - time.time() - 9 * 86400) < 600
                and "\npretune_controller_alive 0.0\n" in metrics
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


def test_requests_that_are_under_way_are_answered_before_the_process_ends(
    tls: Path, tmp_path: Path
) -> None:
    async def story() -> tuple[str, int | None]:
        api, port = Api(), free_port()
        api.listed, api.delay = {CACHES: [cache(1, sealed())], LEASES: []}, 1.0
        server, process = await api.start(port), Process(tls, port)
        async with process.run(tmp_path) as running:
            await until(lambda: process.page("/readyz"), (200, "ok\n"))
            under_way = asyncio.create_task(process.reason())
            await api.reading.wait()
            running.send_signal(signal.SIGTERM)
            await until(lambda: process.page("/readyz"), (503, "stopping\n"))
            # The Service still leads here: a late request is answered too.
            late = await process.reason()
            answer = await under_way
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
    command: Sequence[str] = (sys.executable, "-m", "pretune", "webhook")
    return subprocess.run(
        command, env={**env, **environment}, capture_output=True, text=True, timeout=60
    )


def test_without_a_certificate_the_process_ends_with_the_reason(tmp_path: Path) -> None:
    ended = run_webhook(tmp_path)
    assert ended.returncode == 1
    assert (
        f"{tmp_path}: tls.crt and tls.key cannot be used: No such file or directory" in ended.stderr
    )
    assert "Traceback" not in ended.stderr


def test_at_the_end_each_connection_is_closed_with_an_answer_and_none_while_idle(tls: Path) -> None:
    """A connection that is closed while it is idle is one that the API server may be writing to."""

    async def story() -> tuple[list[str | None], float]:
        port, end, the_webhook = free_port(), asyncio.Event(), webhook()
        trust = ssl.create_default_context(cafile=str(tls / "tls.crt"))
        body = json.dumps(review(pod())).encode()

        async def server() -> None:
            async with serve(
                port,
                CertificateWatcher(tls).context,
                build_application(the_webhook.admission.answer),
            ):
                await end.wait()

        running = asyncio.create_task(server())
        connection_headers: list[str | None] = []
        async with aiohttp.ClientSession() as session:

            async def ask() -> None:
                async with session.post(
                    f"https://localhost:{port}/pods", data=body, headers=JSON_CONTENT, ssl=trust
                ) as answer:
                    assert answer.status == 200
                    connection_headers.append(answer.headers.get("Connection"))

            await asyncio.sleep(0.5)
            await ask()
            end.set()
            await asyncio.sleep(0.5)
            await ask()
            began = time.monotonic()
            await running
            return connection_headers, time.monotonic() - began

    connection_headers, seconds = asyncio.run(story())
    assert connection_headers == [None, "close"]
    assert seconds < 2, "it ends once no connection is open"
