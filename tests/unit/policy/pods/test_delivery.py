"""What a consumer is given when it is made: every reason, every rule of the hold, every mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pretune.api.delivery_reasons import DELIVERIES
from pretune.api.names import DELIVERY, TARGET
from pretune.api.reasons import Refused
from pretune.api.spec import Spec
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.manifests.delivery_modes import Delivery
from pretune.manifests.gate import is_held
from pretune.manifests.injection import inject, is_injected
from pretune.podspec import identity
from pretune.policy.pods.delivery import LEFT_ALONE_RULES

from tests.builders.deliveries import AGENT, OTHER, NewPod
from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.templates import engine

TARGETS = [
    {"name": "b", "nodeSelector": {"gpu": "b200"}},
    {"name": "h", "nodeSelector": {"gpu": "h200"}},
]
ELSEWHERE = engine().pod(nodeSelector={"gpu": "other"})
BROKEN = {
    "reason": "ClaimNotFound",
    "message": "claim gone",
    "at": "2026-01-01T00:00:00Z",
    "claimUID": "c",
}


NO_SHELL = {
    "id": "n0-default",
    "fingerprint": "1",
    "state": "Sealed",
    "undeliverable": {"reason": "SeedCannotRun", "message": "no /bin/sh", "image": "vllm:1"},
}
FORBIDDEN = Refused("SourceForbidden", "ReplicaSet a/b: no right")


def annotated(pod: Object) -> None:
    pod["metadata"]["annotations"] = {TARGET: "x"}


def with_volume(pod: Object) -> None:
    pod["spec"]["volumes"] = [{"name": "pretune-claim", "emptyDir": {}}]


def renamed(pod: Object) -> None:
    pod["spec"]["containers"][0]["name"] = "other"


def with_override(pod: Object) -> None:
    pod["spec"]["containers"][0]["env"].append(
        {"name": OVERRIDE, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    )


ALONE: list[tuple[str, NewPod, str]] = [
    ("NoCache", NewPod().set(cache=None), "the namespace has no AutotuneCache"),
    ("NoCache", NewPod().cached(deletionTimestamp="2026-01-01T00:00:00Z"), "AutotuneCache inference/qwen3 is being deleted"),
    ("TooLarge", NewPod().set(template=Refused("TooLarge", "ReplicaSet a/b has more"), pod=engine()), "ReplicaSet a/b has more"),
    ("DeliveryOff", NewPod().spec(delivery={"mode": "None"}), "spec.delivery.mode is None"),
    ("OwnerUnreadable", NewPod().set(template=FORBIDDEN, pod=engine()), "ReplicaSet a/b: no right"),
    ("TargetUnknown", NewPod().spec(targets=TARGETS), "cache inference/qwen3 has b, h"),
    ("TargetUnknown", NewPod().spec(targets=TARGETS).as_arrives(annotated), "target is unknown"),
    ("TargetUnknown", NewPod().spec(targets=TARGETS[:1]).set(template=ELSEWHERE, pod=ELSEWHERE), "excludes that target's nodes"),
    ("EngineUnknown", NewPod().set(template=engine().container("second").gpus(1)), "containers vllm, second ask for a GPU"),
    ("EngineUnknown", NewPod().spec(engineContainer="gone"), "no container gone; the pod has vllm"),
    ("EngineUnknown", NewPod().as_arrives(renamed), "admission took container vllm out of the pod, which has other"),
    ("EngineUnknown", NewPod().set(template=engine().gpus("many")), "'many' is no quantity"),
    ("OverrideSet", NewPod().as_arrives(with_override), f"container vllm sets {OVERRIDE} itself"),
    ("OverrideSet", NewPod().set(template=engine().env(**{OVERRIDE: "/x"})), f"container vllm sets {OVERRIDE} itself"),
    ("NamesCollide", NewPod().as_arrives(with_volume), "the pod has a volume pretune-claim"),
    ("Undeliverable", NewPod().sealed(undeliverable=BROKEN), "ClaimNotFound: claim gone"),
    ("Undeliverable", NewPod().record("Pending", undeliverable=BROKEN), "ClaimNotFound: claim gone"),
    ("NothingToTune", NewPod().sealed("Empty"), "is empty"),
    ("NotTunable", NewPod().record("Refused", "SharedLayout", "one file on 4 GPUs"), "SharedLayout: one file on 4 GPUs"),
    ("NotTunable", NewPod().set(template=engine().args("--headless")), "MultiPodEngine: "),
    ("NotTunable", NewPod().set(template=engine().args("--headless")).record("Pending"), "MultiPodEngine: "),
    ("TuningFailed", NewPod().record("Failed", "EngineFailed", "the log"), "EngineFailed: see status.bundles of AutotuneCache"),
    ("Suspended", NewPod().spec(suspend=True), "spec.suspend of cache inference/qwen3 is true"),
    ("Suspended", NewPod().spec(suspend=True).record("Tuning"), "is not sealed"),
    ("StorageNotReady", NewPod().set(conditions=[]), "was not checked yet"),
    ("StorageNotReady", NewPod().storage("False", "ClaimPending", "no provisioner"), "ClaimPending: no provisioner"),
    ("StorageNotReady", NewPod().storage("Unknown", "ClaimPending", "no provisioner").sealed(), "ClaimPending: no provisioner"),
    ("Undeliverable", NewPod().sealed("PerRank").set(more=[OTHER, NO_SHELL]), "image vllm:1: SeedCannotRun: no /bin/sh"),
    ("Undeliverable", NewPod().set(more=[OTHER, NO_SHELL]), "image vllm:1: SeedCannotRun: no /bin/sh"),
    *(
        ("SeedUntried", pod.set(owner=owner), words)
        for owner, words in (("Pod", "no controller recreates it"), ("Job", "a Job counts it as a failure"))
        for pod in (
            NewPod(),
            NewPod().record("Tuning"),
            NewPod().spec(hold={"when": "Always"}),
            NewPod().set(template=engine(image="vllm:latest")).sealed("PerRank"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "world", "words"), ALONE, ids=[f"{i}-{one[0]}" for i, one in enumerate(ALONE)]
)
def test_a_pod_is_left_alone_with_the_reason_and_a_warning(
    reason: str, world: NewPod, words: str
) -> None:
    given = world.answer()
    assert (given.mode, given.reason, given.held) == ("None", reason, False)
    assert words in given.message
    assert given.warnings == (f"pretune: {reason}: {given.message}",)
    assert given == Delivery("None", reason, given.message, warnings=given.warnings)


def test_a_retired_bundle_is_waited_for_since_being_wanted_brings_it_back() -> None:
    """A rollback: the folder is there for ten minutes more, and is spared as soon as a pod of it is seen."""
    retired = NewPod().record("Retired", "Unwanted").answer()
    assert (retired.mode, retired.reason, retired.held) == ("Overlay", "Held", True)


@pytest.mark.parametrize("owner", ["Pod", "Job"])
@pytest.mark.parametrize("layout", ["Managed", "PerRank"])
def test_a_pod_that_could_not_be_replaced_is_given_a_bundle_that_was_tuned_in_its_image(
    owner: str, layout: str
) -> None:
    """Seed runs in that image: an attempt has run the agent there."""
    assert NewPod().sealed(layout).set(owner=owner).answer().reason == "Given"


def test_an_image_without_a_shell_is_given_what_needs_no_container() -> None:
    given = NewPod().sealed("Managed").set(more=[OTHER, NO_SHELL]).answer()
    assert (given.mode, given.reason) == ("ReadOnly", "Given")


def test_every_reason_is_met_in_these_tables() -> None:
    met = {reason for reason, *_ in ALONE} | {"Given", "Held", "NotSealedYet"}
    assert (
        met
        == set(DELIVERIES)
        == {reason for reason, _ in LEFT_ALONE_RULES} | {"Given", "Held", "NotSealedYet"}
    )


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
    world = NewPod().sealed(layout).set(alive=False)
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
    world = NewPod().sealed(layout, proven=proven, **seconds).spec(delivery={"mode": asked})
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
    world = NewPod().sealed().spec(suspend=True).set(template=engine().args("--headless"))
    assert world.answer().reason == "Given"


VERIFY = {"verify": "BeforeRelease"}
UNPROVEN: list[tuple[str, NewPod]] = [
    ("it is proven now", NewPod().record("Proving", "Proving", layout="Managed")),
    ("nobody has looked since it was asked for", NewPod().sealed()),
]


@pytest.mark.parametrize(
    ("case", "world"), UNPROVEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bundle_that_is_not_proven_yet_is_as_good_as_not_sealed(case: str, world: NewPod) -> None:
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
    given = NewPod().sealed(proven=True).spec(**VERIFY).answer()
    assert (given.mode, given.reason, given.proven) == ("ReadOnly", "Given", True)
    assert NewPod().sealed("Empty").spec(**VERIFY).answer().reason == "NothingToTune"
    bad = (
        NewPod()
        .record("Failed", "WarmHang", "not ready 361 s after its start")
        .spec(**VERIFY)
        .answer()
    )
    assert (bad.mode, bad.reason) == (
        "None",
        "TuningFailed",
    ) and "WarmHang: see status.bundles" in bad.message


def test_where_no_proof_is_asked_for_none_is_looked_at() -> None:
    given = NewPod().sealed().answer()
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
    world = NewPod().set(template=engine(**fields)).sealed("Managed").spec(delivery={"mode": asked})
    assert world.answer().mode == mode


@pytest.mark.parametrize("asked", ["Auto", "ReadOnly"])
def test_a_claim_that_is_being_looked_at_is_not_mounted_read_only(asked: str) -> None:
    world = NewPod().sealed("Managed").spec(delivery={"mode": asked})
    world.conditions.append(
        {"type": "Ready", "status": "False", "reason": "Inspecting", "message": ""}
    )
    assert world.answer().mode == "Overlay"


@pytest.mark.parametrize("asked", ["Auto", "ReadOnly"])
def test_a_bundle_is_not_mounted_while_the_status_speaks_of_an_older_spec(asked: str) -> None:
    world = NewPod().sealed().spec(delivery={"mode": asked})
    assert world.answer().mode == "ReadOnly"
    given = world.cached(
        generation=4
    ).answer()  # spec.storage may be another: seed finds nothing and the pod starts cold
    assert (given.mode, given.reason) == ("Overlay", "Given")


def test_a_bundle_of_an_older_status_that_knew_no_generation_is_not_mounted() -> None:
    world = NewPod().sealed()
    assert world.cache
    del world.cache["status"]["observedGeneration"]
    assert world.answer().mode == "Overlay"


def test_what_is_given_names_all_that_the_pod_needs() -> None:
    world = NewPod().sealed().spec(storage={"existingClaim": {"name": "shared", "subPath": "a/b"}})
    given = world.answer()
    assert (given.engine, given.bundle, given.agent) == ("vllm", world.id(), AGENT)
    assert (given.claim, given.sub_path, given.folder) == ("shared", "a/b", "inference.qwen3")
    assert given.inputs is not None and given.inputs.bundle_id() == given.bundle
    assert NewPod().answer().claim == "pretune-qwen3"


def test_identity_is_the_templates_and_the_target_is_the_pods() -> None:
    def admitted(pod: Object) -> None:
        pod["spec"]["nodeSelector"] = {"gpu": "h200", "zone": "a"}
        pod["spec"]["containers"][0]["env"].append({"name": "POD_INDEX", "value": "7"})
        pod["spec"].setdefault("initContainers", []).append(
            {"name": "storage-initializer", "image": "kserve:1"}
        )

    given = NewPod().spec(targets=TARGETS).as_arrives(admitted).answer()
    template = NewPod().template
    spec = Spec.from_cache({"spec": {"storage": {"claim": {}}, "targets": TARGETS}})
    assert given.inputs == identity.inputs(template, spec, spec.targets[1])


@law(templates())
def test_any_pod_of_any_template_is_given_what_the_answer_says(pod: Object) -> None:
    for world in (NewPod(), NewPod().sealed(), NewPod().sealed("PerRank")):
        given = world.spec(engineContainer="vllm").set(template=pod).answer()
        made = patched(pod, inject(pod, given))
        assert is_injected(made) and is_held(made) == given.held
        assert made["metadata"]["annotations"][DELIVERY] == given.mode
        assert identity.fingerprint(made, "vllm") == identity.fingerprint(pod, "vllm")
