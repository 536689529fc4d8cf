"""What a consumer is given when it is made: every reason, every rule of the hold, every mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pretune.api.delivery_reasons import DELIVERIES
from pretune.api.names import DELIVERY, TARGET
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.types import Key, Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.delivery_modes import Delivery
from pretune.manifests.gate import is_held
from pretune.manifests.injection import inject, is_injected
from pretune.podspec import identity
from pretune.policy.pods.admission import find_need
from pretune.policy.pods.delivery import LEFT_ALONE_RULES, decide_delivery

from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.templates import engine

KEY, AGENT = Key("inference", "qwen3"), "pretune-agent-0"
READY = {
    "type": "StorageReady",
    "status": "True",
    "reason": "Bound",
    "message": "claim pretune-qwen3 is Bound",
}
OTHER = {
    "id": "0ther-default",
    "fingerprint": "0",
    "target": "default",
    "state": "Sealed",
    "serving": True,
}


class World:
    """A cache whose older revision serves, its controller alive, and a ReplicaSet's pod whose bundle has no record yet: held.
    Each method changes one thing."""

    def __init__(self) -> None:
        self.template: Any = engine(env=[{"name": "HF_HOME", "value": "/models"}])
        self.pod: Object | None = None
        self.owner, self.alive = "ReplicaSet", True
        self.more: list[Object] = [dict(OTHER)]
        self.own: Object | None = None  # the record of the pod's bundle
        self.conditions: list[Object] = [dict(READY)]
        self.cache: Object | None = {
            "metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": "u", "generation": 3},
            "spec": {"storage": {"claim": {}}},
            "status": {"observedGeneration": 3},
        }

    def spec(self, **fields: Any) -> World:
        assert self.cache
        self.cache["spec"].update(fields)
        return self

    def set(self, **fields: Any) -> World:
        for name, value in fields.items():
            setattr(self, name, value)
        return self

    def record(
        self, state: str, reason: str = "Tuning", message: str = "since noon", **more: Any
    ) -> World:
        self.own = {"state": state, "reason": reason, "message": message, "attempts": 1, **more}
        return self

    def sealed(self, layout: str = "Managed", **more: Any) -> World:
        return self.record(
            "Sealed", "Sealed", "20 entries", layout=layout, **{"tunedSeconds": 300, **more}
        )

    def stalled(self, reason: str) -> World:
        self.conditions.append(
            {
                "type": "Stalled",
                "status": "True",
                "reason": reason,
                "message": "env A keeps changing",
            }
        )
        return self

    def storage(self, status: str, reason: str, message: str) -> World:
        self.conditions = [
            {"type": "StorageReady", "status": status, "reason": reason, "message": message}
        ]
        return self

    def cached(self, **meta: Any) -> World:
        assert self.cache
        self.cache["metadata"].update(meta)
        return self

    def as_arrives(self, change: Callable[[Object], Any]) -> World:
        """What admission, or the author of a bare pod, made of the template's pod."""
        self.pod = copy.deepcopy(dict(self.template))
        change(self.pod)
        return self

    def id(self) -> str:
        assert self.cache
        spec = Spec.from_cache(self.cache)
        target = identity.target_of(self.pod or self.template, spec)
        assert target
        return find_need(self.template, spec, target).bundle_id

    def seen(self) -> Object | None:
        """The cache with its status."""
        cache = copy.deepcopy(self.cache)
        if cache is not None:
            records = [*self.more]
            if self.own is not None:
                fingerprint = identity.fingerprint(
                    self.template, cache["spec"].get("engineContainer", "")
                )
                records.append(
                    {"id": self.id(), "fingerprint": fingerprint, "target": "default", **self.own}
                )
            cache["status"].update(bundles=records, conditions=self.conditions)
        return cache

    def answer(self) -> Delivery:
        pod = copy.deepcopy(dict(self.pod or self.template))
        return decide_delivery(
            KEY.namespace, self.seen(), pod, self.template, self.owner, self.alive, AGENT
        )


TARGETS = [
    {"name": "b", "nodeSelector": {"gpu": "b200"}},
    {"name": "h", "nodeSelector": {"gpu": "h200"}},
]
BROKEN = {
    "reason": "ClaimNotFound",
    "message": "claim gone",
    "at": "2026-01-01T00:00:00Z",
    "claimUID": "c",
}


FORBIDDEN = Refused("SourceForbidden", "ReplicaSet a/b: no right")


def annotated(pod: Object) -> None:
    pod["metadata"]["annotations"] = {TARGET: "x"}


def placed(pod: Object) -> None:
    pod["spec"]["nodeName"] = "node0"


def with_volume(pod: Object) -> None:
    pod["spec"]["volumes"] = [{"name": "pretune-claim", "emptyDir": {}}]


def renamed(pod: Object) -> None:
    pod["spec"]["containers"][0]["name"] = "other"


def with_override(pod: Object) -> None:
    pod["spec"]["containers"][0]["env"].append(
        {"name": OVERRIDE, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    )


ALONE: list[tuple[str, World, str]] = [
    ("NoCache", World().set(cache=None), "the namespace has no AutotuneCache"),
    ("NoCache", World().cached(deletionTimestamp="2026-01-01T00:00:00Z"), "AutotuneCache inference/qwen3 is being deleted"),
    ("TooLarge", World().set(template=Refused("TooLarge", "ReplicaSet a/b has more"), pod=engine()), "ReplicaSet a/b has more"),
    ("DeliveryOff", World().spec(delivery={"mode": "None"}), "spec.delivery.mode is None"),
    ("OwnerUnreadable", World().set(template=FORBIDDEN, pod=engine()), "ReplicaSet a/b: no right"),
    ("TargetUnknown", World().spec(targets=TARGETS), "cache inference/qwen3 has b, h"),
    ("TargetUnknown", World().spec(targets=TARGETS).as_arrives(annotated), "target is unknown"),
    ("EngineUnknown", World().set(template=engine().container("second").gpus(1)), "containers vllm, second ask for a GPU"),
    ("EngineUnknown", World().spec(engineContainer="gone"), "no container gone; the pod has vllm"),
    ("EngineUnknown", World().as_arrives(renamed), "admission took container vllm out of the pod, which has other"),
    ("EngineUnknown", World().set(template=engine().gpus("many")), "'many' is no quantity"),
    ("OverrideSet", World().as_arrives(with_override), f"container vllm sets {OVERRIDE} itself"),
    ("OverrideSet", World().set(template=engine().env(**{OVERRIDE: "/x"})), f"container vllm sets {OVERRIDE} itself"),
    ("NamesCollide", World().as_arrives(with_volume), "the pod has a volume pretune-claim"),
    ("Undeliverable", World().sealed(undeliverable=BROKEN), "ClaimNotFound: claim gone"),
    ("Undeliverable", World().record("Pending", undeliverable=BROKEN), "ClaimNotFound: claim gone"),
    ("NothingToTune", World().sealed("Empty"), "is empty"),
    ("NotTunable", World().record("Refused", "SharedLayout", "one file on 4 GPUs"), "SharedLayout: one file on 4 GPUs"),
    ("NotTunable", World().set(template=engine().args("--headless")), "MultiPodEngine: "),
    ("NotTunable", World().set(template=engine().args("--headless")).record("Pending"), "MultiPodEngine: "),
    ("TuningFailed", World().record("Failed", "EngineFailed", "attempt 3 of 3: exit 1"), "EngineFailed: attempt 3 of 3: exit 1"),
    ("Suspended", World().spec(suspend=True), "spec.suspend of cache inference/qwen3 is true"),
    ("Suspended", World().spec(suspend=True).record("Tuning"), "is not sealed"),
    ("StorageNotReady", World().set(conditions=[]), "was not checked yet"),
    ("StorageNotReady", World().storage("False", "ClaimPending", "no provisioner"), "ClaimPending: no provisioner"),
    ("StorageNotReady", World().storage("Unknown", "ClaimPending", "no provisioner").sealed(), "ClaimPending: no provisioner"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "world", "words"), ALONE, ids=[f"{i}-{one[0]}" for i, one in enumerate(ALONE)]
)
def test_a_pod_is_left_alone_with_the_reason_and_a_warning(
    reason: str, world: World, words: str
) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("None", reason, False)
    assert words in given.message
    assert given.warnings == (f"pretune: {reason}: {given.message}",)
    assert given == Delivery("None", reason, given.message, warnings=given.warnings)


def test_a_retired_bundle_is_waited_for_since_being_wanted_brings_it_back() -> None:
    """A rollback: the folder is there for ten minutes more, and is spared as soon as a pod of it is seen."""
    retired = World().record("Retired", "Unwanted").answer()
    assert (retired.mode, retired.reason, retired.held) == ("Overlay", "Held", True)


def test_every_reason_is_met_in_these_tables() -> None:
    met = {reason for reason, *_ in ALONE} | {"Given", "Held", "NotSealedYet"}
    assert (
        met
        == set(DELIVERIES)
        == {reason for reason, _ in LEFT_ALONE_RULES} | {"Given", "Held", "NotSealedYet"}
    )


HELD: list[tuple[str, World]] = [
    ("its bundle has no record yet", World()),
    ("its bundle is pending", World().record("Pending", "Queued")),
    ("its bundle is being tuned", World().record("Tuning")),
    ("an older status than the spec", World().cached(generation=4)),
    ("an older bundle of the same engine failed", World().set(more=[OTHER, {"id": "x-default", "fingerprint": "1", "state": "Failed"}])),
    ("Always, and nothing serves", World().spec(hold={"when": "Always"}).set(more=[])),
    ("Always, and it runs already", World().spec(hold={"when": "Always"}).record("Tuning", running=True)),
    *(
        (f"Always, of {owner}", World().spec(hold={"when": "Always"}).set(owner=owner))
        for owner in ("StatefulSet", "DaemonSet", "Job", "Pod")
    ),
    ("too many fingerprints, but this one has its record", World().stalled("TooManyFingerprints").record("Pending")),
    ("stalled by another bundle", World().stalled("EngineFailed")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "world"), HELD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pod_is_held(case: str, world: World) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("Overlay", "Held", True)
    assert given.message == (
        f"waits for bundle {world.id()} of cache inference/qwen3, at most 3600 s from its creation (spec.hold.timeoutSeconds)"
    )
    assert not given.warnings


def test_a_held_pod_says_how_long_it_waits_at_most() -> None:
    assert "at most 60 s" in World().spec(hold={"timeoutSeconds": 60}).answer().message
    assert (
        "as long as it takes (spec.hold.onFailure is Keep)"
        in World().spec(hold={"onFailure": "Keep"}).answer().message
    )


def serving(**record: Any) -> list[Object]:
    return [{"id": "a-default", "fingerprint": "0", "state": "Sealed", **record}]


NOT_HELD: list[tuple[str, World, str]] = [
    ("Never", World().spec(hold={"when": "Never"}), "spec.hold.when is Never"),
    ("nothing runs", World().set(more=[]), "no pod of another revision serves"),
    ("others run but do not serve", World().set(more=serving(running=True)), "no pod of another revision serves"),
    ("only its own revision serves", World().set(more=[]).record("Tuning", serving=True), "no pod of another revision serves"),
    ("its own revision runs", World().record("Tuning", running=True), "pods of the same revision run"),
    *((f"of {owner}", World().set(owner=owner), "only a ReplicaSet's pods") for owner in ("StatefulSet", "DaemonSet", "Job", "Pod", "")),
    ("it has a node", World().as_arrives(placed), "spec.nodeName is set"),
    ("Always, and it has a node", World().spec(hold={"when": "Always"}).as_arrives(placed), "spec.nodeName is set"),
    ("the controller is gone", World().set(alive=False), "nothing could release the pod"),
    ("Always, and the controller is gone", World().spec(hold={"when": "Always"}).set(alive=False), "nothing could release the pod"),
    ("too many fingerprints", World().stalled("TooManyFingerprints"), "TooManyFingerprints: env A keeps changing"),
    ("the quota is used up", World().record("Pending", "PodRefused", "exceeded quota"), "the attempt cannot start: exceeded quota"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "world", "why"), NOT_HELD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pod_whose_bundle_is_not_there_yet_starts_at_once_when(
    case: str, world: World, why: str
) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("Overlay", "NotSealedYet", False)
    assert (
        given.message.startswith(f"bundle {world.id()} is not sealed yet; the pod is not held: ")
        and why in given.message
    )
    assert not given.warnings


def test_another_target_of_the_same_revision_that_runs_lets_its_pods_start() -> None:
    fingerprint = identity.fingerprint(World().template, "")
    running = {"id": "b-other", "fingerprint": fingerprint, "state": "Sealed", "running": True}
    assert World().set(more=[OTHER, running]).answer().reason == "NotSealedYet"


@pytest.mark.parametrize(
    ("asked", "layout", "mode"),
    [
        (None, "Managed", "ReadOnly"),
        ("Auto", "Managed", "ReadOnly"),
        ("Auto", "PerRank", "Overlay"),
        ("Auto", "Shared", "Overlay"),
        ("Auto", "LayoutOfTomorrow", "Overlay"),
        ("ReadOnly", "Managed", "ReadOnly"),
        ("ReadOnly", "PerRank", "ReadOnly"),
        ("ReadOnly", "Shared", "Overlay"),
        ("ReadOnly", "LayoutOfTomorrow", "Overlay"),
        ("Overlay", "Managed", "Overlay"),
        ("Overlay", "PerRank", "Overlay"),
        ("Overlay", "Shared", "Overlay"),
    ],
)
def test_how_a_sealed_bundle_is_given(asked: str | None, layout: str, mode: str) -> None:
    world = World().sealed(layout).set(alive=False)
    if asked:
        world.spec(delivery={"mode": asked})
    given = world.answer()
    assert (given.mode, given.reason, given.held) == (mode, "Given", False)
    assert bool(given.warnings) == (asked == "ReadOnly" and layout == "Shared")


@pytest.mark.parametrize("seconds", [{"tunedSeconds": 0}, {"tunedSeconds": None}])
@pytest.mark.parametrize(
    ("asked", "layout", "proven", "mode"),
    [
        ("ReadOnly", "PerRank", False, "Overlay"),
        ("ReadOnly", "PerRank", True, "ReadOnly"),
        ("ReadOnly", "Managed", False, "ReadOnly"),
        ("Overlay", "PerRank", False, "Overlay"),
        ("Auto", "PerRank", False, "Overlay"),
        ("Auto", "Managed", False, "ReadOnly"),
    ],
)
def test_what_was_imported_is_mounted_only_where_another_engines_key_folder_would_crash_nobody(
    asked: str, layout: str, proven: bool, mode: str, seconds: dict[str, Any]
) -> None:
    world = World().sealed(layout, proven=proven, **seconds).spec(delivery={"mode": asked})
    given = world.answer()
    assert (given.mode, given.reason) == (mode, "Given")
    if asked == "ReadOnly" and mode == "Overlay":
        [warning] = given.warnings
        assert (
            f"bundle {world.id()} was imported and is not proven" in warning
            and "spec.verify" in warning
        )
    else:
        assert not given.warnings


def test_a_sealed_bundle_is_given_whatever_would_leave_an_unsealed_one() -> None:
    world = World().sealed().spec(suspend=True).set(template=engine().args("--headless"))
    assert world.answer().reason == "Given"


VERIFY = {"verify": "BeforeRelease"}
UNPROVEN: list[tuple[str, World]] = [
    ("it is proven now", World().record("Proving", "Proving", layout="Managed")),
    ("nobody has looked since it was asked for", World().sealed()),
]


@pytest.mark.parametrize(
    ("case", "world"), UNPROVEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bundle_that_is_not_proven_yet_is_as_good_as_not_sealed(case: str, world: World) -> None:
    held = copy.deepcopy(world).spec(**VERIFY).answer()
    assert (held.mode, held.reason, held.held, held.proven) == ("Overlay", "Held", True, True)
    free = copy.deepcopy(world).spec(**VERIFY, hold={"when": "Never"}).answer()
    assert (free.mode, free.reason, free.proven) == ("Overlay", "NotSealedYet", True)
    assert "is not proven yet; the pod is not held" in free.message
    stopped = copy.deepcopy(world).spec(**VERIFY, suspend=True).answer()
    assert (stopped.mode, stopped.reason) == (
        "None",
        "Suspended",
    ) and "is not proven" in stopped.message


def test_a_proven_bundle_is_given_and_an_empty_one_needs_no_proof() -> None:
    given = World().sealed(proven=True).spec(**VERIFY).answer()
    assert (given.mode, given.reason, given.proven) == ("ReadOnly", "Given", True)
    assert World().sealed("Empty").spec(**VERIFY).answer().reason == "NothingToTune"
    bad = (
        World()
        .record("Failed", "WarmHang", "not ready 361 s after its start")
        .spec(**VERIFY)
        .answer()
    )
    assert (bad.mode, bad.reason) == (
        "None",
        "TuningFailed",
    ) and "WarmHang: not ready" in bad.message


def test_where_no_proof_is_asked_for_none_is_looked_at() -> None:
    given = World().sealed().answer()
    assert (given.reason, given.proven) == ("Given", False)


@pytest.mark.parametrize(
    ("image", "pull", "asked", "mode"),
    [
        ("vllm:0.33.0", "Always", "Auto", "ReadOnly"),
        ("vllm:latest@sha256:" + "0" * 64, "Always", "Auto", "ReadOnly"),
        ("vllm:latest", "Always", "Auto", "Overlay"),
        ("vllm", "IfNotPresent", "Auto", "Overlay"),
        ("vllm:nightly", "Never", "Auto", "ReadOnly"),
        ("vllm:latest", "Always", "ReadOnly", "ReadOnly"),
    ],
)
def test_behind_a_tag_that_moves_may_be_a_release_that_writes(
    image: str, pull: str, asked: str, mode: str
) -> None:
    """Nobody compares versions where the bundle is mounted: such a release would not start at all."""
    fields = {"image": image, "imagePullPolicy": pull}
    world = World().set(template=engine(**fields)).sealed("Managed").spec(delivery={"mode": asked})
    assert world.answer().mode == mode


@pytest.mark.parametrize("asked", ["Auto", "ReadOnly"])
def test_a_claim_that_is_being_looked_at_is_not_mounted_read_only(asked: str) -> None:
    world = World().sealed("Managed").spec(delivery={"mode": asked})
    world.conditions.append(
        {"type": "Ready", "status": "False", "reason": "Inspecting", "message": ""}
    )
    assert world.answer().mode == "Overlay"


@pytest.mark.parametrize("asked", ["Auto", "ReadOnly"])
def test_a_bundle_is_not_mounted_while_the_status_speaks_of_an_older_spec(asked: str) -> None:
    world = World().sealed().spec(delivery={"mode": asked})
    assert world.answer().mode == "ReadOnly"
    given = world.cached(
        generation=4
    ).answer()  # spec.storage may be another: seed finds nothing and the pod starts cold
    assert (given.mode, given.reason) == ("Overlay", "Given")


def test_a_bundle_of_an_older_status_that_knew_no_generation_is_not_mounted() -> None:
    world = World().sealed()
    assert world.cache
    del world.cache["status"]["observedGeneration"]
    assert world.answer().mode == "Overlay"


def test_what_is_given_names_all_that_the_pod_needs() -> None:
    world = World().sealed().spec(storage={"existingClaim": {"name": "shared", "subPath": "a/b"}})
    given = world.answer()
    assert (given.engine, given.bundle, given.agent) == ("vllm", world.id(), AGENT)
    assert (given.claim, given.sub_path, given.folder) == ("shared", "a/b", "inference.qwen3")
    assert given.inputs is not None and given.inputs.bundle_id() == given.bundle
    assert World().answer().claim == "pretune-qwen3"


def test_identity_is_the_templates_and_the_target_is_the_pods() -> None:
    def admitted(pod: Object) -> None:
        pod["spec"]["nodeSelector"] = {"gpu": "h200", "zone": "a"}
        pod["spec"]["containers"][0]["env"].append({"name": "POD_INDEX", "value": "7"})
        pod["spec"].setdefault("initContainers", []).append(
            {"name": "storage-initializer", "image": "kserve:1"}
        )

    given = World().spec(targets=TARGETS).as_arrives(admitted).answer()
    template = World().template
    spec = Spec.from_cache({"spec": {"storage": {"claim": {}}, "targets": TARGETS}})
    assert given.inputs == identity.inputs(template, spec, spec.targets[1])


@law(templates())
def test_any_pod_of_any_template_is_given_what_the_answer_says(pod: Object) -> None:
    for world in (World(), World().sealed(), World().sealed("PerRank")):
        given = world.spec(engineContainer="vllm").set(template=pod).answer()
        made = patched(pod, inject(pod, given))
        assert is_injected(made) and is_held(made) == given.held
        assert made["metadata"]["annotations"][DELIVERY] == given.mode
        assert identity.fingerprint(made, "vllm") == identity.fingerprint(pod, "vllm")
