"""A delivery mode is a row of MODES: one that is added here works everywhere."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace

import kubernetes_validate
import pytest
from pretune.api import delivery_reasons
from pretune.api.names import DELIVERY
from pretune.api.types import Object
from pretune.engines.vllm.engine import VLLM
from pretune.manifests import delivery_modes
from pretune.manifests.delivery_modes import (
    MODES,
    Additions,
    Choice,
    Delivery,
    DeliveryMode,
    Form,
    Obstacle,
    choose_mode,
)
from pretune.manifests.injection import find_collision, inject, is_injected, strip
from pretune.protocol import LAYOUTS, PER_RANK

from tests.builders.deliveries import NewPod
from tests.builders.patches import patched
from tests.builders.strategies import law, templates
from tests.builders.templates import engine, stored
from tests.unit.manifests.test_injection import GIVEN, engine_in, pod_of

CHOICE = Choice(
    asked="Auto",
    bundle="0123456789ab-default",
    layout="Managed",
    parts=VLLM.parts,
    is_given=True,
    is_trusted=True,
    is_current=True,
    is_inspecting=False,
    image_may_have_moved=False,
)


def mount_image(pod: Object, engine: Object, delivery: Delivery) -> Additions:
    """The bundle as an image (KEP-4639), named after it."""
    source = {"reference": f"registry/bundles:{delivery.bundle}", "pullPolicy": "IfNotPresent"}
    return Additions(
        mounts=({"name": "pretune-added", "mountPath": "/pretune/added", "readOnly": True},),
        variables={part.variable: f"/pretune/added/{part.name}" for part in VLLM.parts},
        volumes=({"name": "pretune-added", "image": source},),
    )


ADDED = DeliveryMode(
    name="Added",
    build_additions=mount_image,
    form=lambda parts: Form(
        volume_names=("pretune-added",),
        mount_paths=("/pretune/added",),
        folders=re.compile("/pretune/added/.*"),
    ),
    obstacles=(
        Obstacle(lambda choice: not choice.is_given),
        Obstacle(lambda choice: choice.layout != PER_RANK, "{bundle} is not laid out by rank"),
    ),
)


@pytest.fixture
def with_added_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_modes, "MODES", (ADDED, *MODES))


def given(pod: Object) -> Object:
    return patched(pod, inject(pod, Delivery("Added", **GIVEN)))


@pytest.mark.usefixtures("with_added_mode")
def test_a_mode_that_is_added_is_injected_recognised_and_taken_out_again() -> None:
    plain = pod_of(engine().init("fetch").pod(volumes=[{"name": "shm", "emptyDir": {}}]))
    pod = given(plain)
    assert engine_in(pod)["env"] == [
        {"name": part.variable, "value": f"/pretune/added/{part.name}"} for part in VLLM.parts
    ]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["shm", "pretune-added"]
    assert pod["metadata"]["annotations"][DELIVERY] == "Added"
    assert is_injected(pod) and inject(pod, Delivery("Overlay", **GIVEN)) == []
    assert strip(pod) == plain
    named = {**pod, "metadata": {**pod["metadata"], "name": "pod"}}
    kubernetes_validate.validate(named, "1.31", strict=True)

    copied = copy.deepcopy(pod)  # a manifest that was copied has no annotations of ours
    del copied["metadata"]["annotations"]
    assert is_injected(copied) and strip(copied) == plain


@pytest.mark.usefixtures("with_added_mode")
def test_what_a_pod_has_of_an_added_modes_parts_is_a_collision() -> None:
    pod = engine().pod(volumes=[{"name": "pretune-added", "emptyDir": {}}])
    assert find_collision(pod, engine_in(pod)) == "the pod has a volume pretune-added"
    pod = engine(volumeMounts=[{"name": "own", "mountPath": "/pretune/added/x"}])
    assert "where /pretune/added would be mounted" in (find_collision(pod, engine_in(pod)) or "")


@pytest.mark.parametrize(
    ("asked", "layout", "mode"),
    [
        ("Auto", "PerRank", "Added"),
        ("Added", "PerRank", "Added"),
        ("Auto", "Managed", "ReadOnly"),
        ("Added", "Managed", "Overlay"),
        ("Overlay", "PerRank", "Overlay"),
        ("ReadOnly", "PerRank", "ReadOnly"),
    ],
)
@pytest.mark.usefixtures("with_added_mode")
def test_an_added_mode_is_chosen_by_its_row(asked: str, layout: str, mode: str) -> None:
    world = NewPod().sealed(layout).spec(delivery={"mode": asked})
    answer = world.answer()
    assert (answer.mode, answer.reason) == (mode, delivery_reasons.GIVEN)
    refused = f"mode Added is not used: {answer.bundle} is not laid out by rank"
    expected = (
        [f"pretune: spec.delivery.{refused}"] if (asked, mode) == ("Added", "Overlay") else []
    )
    assert list(answer.warnings) == expected


def test_without_its_row_a_mode_is_unknown() -> None:
    pod = given(pod_of(engine()))
    assert pod["spec"] == engine()["spec"]
    assert choose_mode(replace(CHOICE, asked="Added")) == ("Overlay", "")


# --- laws of every row


@law(templates())
def test_every_row_is_recognised_by_what_it_adds(pod: Object) -> None:
    pod = pod_of(stored(pod))
    for mode in (*MODES, ADDED):
        additions = mode.build_additions(pod, engine_in(pod), Delivery(mode.name, **GIVEN))
        form = mode.form(VLLM.parts)
        assert {volume["name"] for volume in additions.volumes} <= set(form.volume_names)
        assert tuple(mount["mountPath"] for mount in additions.mounts) == form.mount_paths
        assert list(additions.variables) == [part.variable for part in VLLM.parts]
        assert all(form.folders.fullmatch(value) for value in additions.variables.values())
        assert [container["name"] for container in additions.init_containers] == [
            name for name in (mode.init_container,) if name
        ]


def test_no_row_takes_anothers_path_for_its_own() -> None:
    for mode, other in itertools.permutations((*MODES, ADDED), 2):
        form = mode.form(VLLM.parts)
        assert not {*form.mount_paths} & {*other.form(VLLM.parts).mount_paths}
        delivery = Delivery(other.name, **GIVEN)
        additions = other.build_additions(pod_of(engine()), engine(), delivery)
        assert not any(form.folders.fullmatch(value) for value in additions.variables.values())


def test_the_last_row_fits_every_bundle() -> None:
    assert MODES[-1].obstacles == ()
    flags = ("is_given", "is_trusted", "is_current", "is_inspecting", "image_may_have_moved")
    for asked in ("Auto", *(mode.name for mode in MODES)):
        for layout in (*LAYOUTS, "LayoutOfTomorrow", None):
            for values in itertools.product((False, True), repeat=len(flags)):
                given = dict(zip(flags, values, strict=True))
                choice = Choice(asked=asked, bundle="b", layout=layout, parts=VLLM.parts, **given)
                name, warning = choose_mode(choice)
                assert name in ("ReadOnly", "Overlay")
                assert not warning or (asked == "ReadOnly" and name == "Overlay")
