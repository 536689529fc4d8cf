"""Answers to admission requests over HTTPS."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.api.delivery_reasons import DELIVERIES
from pretune.api.names import BUNDLE, CACHE, DELIVERY, REASON, ROLE
from pretune.api.types import Object
from pretune.kube.types import ApiError
from pretune.kube.watch import ENDED
from pretune.manifests.gate import is_held
from pretune.manifests.injection import is_injected, strip
from pretune.policy.pods.delivery import decide_delivery
from pretune.webhook import admission, server
from pretune.webhook.admission import FAILED, SKIPPED, Answer
from pretune.webhook.informers import CacheInformer

from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.webhook import (
    SECRET,
    Webhook,
    admitted,
    bundle_id,
    cache,
    pod,
    review,
    sealed,
    webhook,
)


def labelled(pod: Object, **labels: str) -> Object:
    pod["metadata"]["labels"] = {name.replace("__", "/"): value for name, value in labels.items()}
    return pod


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
