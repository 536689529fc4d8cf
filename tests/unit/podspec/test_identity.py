"""The engine's fingerprint, its place, the bundle's id, and the target of a consumer."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from pretune.api.names import TARGET
from pretune.api.spec import Target
from pretune.api.types import Object
from pretune.engines.vllm.cli import OVERRIDE
from pretune.podspec import canonical, identity

from tests.builders.caches import spec
from tests.builders.constants import DEFAULT
from tests.builders.random_pods import RandomCase
from tests.builders.strategies import law, templates
from tests.builders.templates import Template, engine, requiring, stored, template, term

DATA = Path(__file__).parent / "data"


def fingerprint(of: Object) -> str:
    return identity.fingerprint(of, "vllm" if len(of["spec"]["containers"]) > 1 else "")


# --- the fingerprint


@law(templates())
def test_what_the_author_wrote_and_what_the_api_server_stored_have_one_fingerprint(
    pod: Object,
) -> None:
    assert fingerprint(pod) == fingerprint(stored(pod))


def test_a_deployment_that_a_real_api_server_stored_has_the_fingerprint_of_what_was_written() -> (
    None
):
    written, kept = (
        json.loads((DATA / name).read_text())["spec"]["template"]
        for name in ("written.json", "stored.json")
    )
    assert written != kept
    assert fingerprint(written) == fingerprint(kept)


@law(templates())
def test_a_fingerprint_leaves_the_template_as_it_is(pod: Object) -> None:
    before = copy.deepcopy(pod)
    identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT)
    assert pod == before


def rich() -> Template:
    return (
        template()
        .init("fetch", "fetch:1", command=["get", "model"])
        .env(FROM="s3")
        .init("convert", "convert:1")
        .container(
            "vllm",
            command=["vllm"],
            envFrom=[{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        )
        .args("serve", "qwen3", "--tp=8")
        .gpus(8)
        .env(A="1", TOKEN={"secretKeyRef": {"name": "hf", "key": "token"}}, B="$(A)/b")
        .labels(app="qwen3")
    )


def engine_at(pod: Object) -> Object:
    return pod["spec"]["containers"][0]  # type: ignore[no-any-return]


def changed(change: Any) -> Object:
    pod = copy.deepcopy(rich())
    change(pod)
    return pod


SAME = {
    "a label": lambda p: p["metadata"]["labels"].update(version="2"),
    "an annotation": lambda p: p["metadata"].update(annotations={"restartedAt": "now"}),
    "another container": lambda p: p["spec"]["containers"].append(
        {"name": "proxy", "image": "proxy:2"}
    ),
    "a native sidecar": lambda p: p["spec"]["initContainers"].insert(
        0, {"name": "router", "image": "r:1", "restartPolicy": "Always"}
    ),
    "the engine's name": lambda p: engine_at(p).update(name="server"),
    "probes": lambda p: engine_at(p).update(livenessProbe={"exec": {"command": ["true"]}}),
    "mounts": lambda p: engine_at(p).update(
        volumeMounts=[{"name": "models", "mountPath": "/models"}]
    ),
    "cpu": lambda p: engine_at(p)["resources"]["limits"].update(cpu=4),
    "the GPUs' spelling": lambda p: engine_at(p).update(
        resources={"requests": {"nvidia.com/gpu": "8e0"}}
    ),
    "the override variable": lambda p: engine_at(p)["env"].append(
        {"name": OVERRIDE, "value": "/elsewhere"}
    ),
    "the override variable, first": lambda p: engine_at(p)["env"].insert(
        0, {"name": OVERRIDE, "value": "/elsewhere"}
    ),
    "a value that a later one of its name hides": lambda p: engine_at(p)["env"].insert(
        0, {"name": "B", "value": "old"}
    ),
    "the order of env where nothing refers to it": lambda p: engine_at(p)["env"].insert(
        0, engine_at(p)["env"].pop(1)
    ),
    "a reference written out": lambda p: engine_at(p)["env"][2].update(value="1/b"),
    "a secret's key that is required, in words": lambda p: engine_at(p)["env"][1]["valueFrom"][
        "secretKeyRef"
    ].update(optional=False),
    "a ConfigMap that is required, in words": lambda p: engine_at(p)["envFrom"][0][
        "configMapRef"
    ].update(optional=False),
}
OTHER = {
    "the image": lambda p: engine_at(p).update(image="vllm:2"),
    "the command": lambda p: engine_at(p).update(command=["python3", "-m", "vllm"]),
    "the order of args": lambda p: engine_at(p)["args"].reverse(),
    "an arg moved to the command": lambda p: engine_at(p).update(
        command=["vllm", "serve"], args=["qwen3", "--tp=8"]
    ),
    "an empty arg": lambda p: engine_at(p)["args"].append(""),
    "an env value": lambda p: engine_at(p)["env"][0].update(value="2"),
    "an empty env value": lambda p: engine_at(p)["env"].append({"name": "C", "value": ""}),
    "which secret": lambda p: engine_at(p)["env"][1]["valueFrom"]["secretKeyRef"].update(
        name="other"
    ),
    "a secret's key that is optional": lambda p: engine_at(p)["env"][1]["valueFrom"][
        "secretKeyRef"
    ].update(optional=True),
    "a ConfigMap that is optional": lambda p: engine_at(p)["envFrom"][0]["configMapRef"].update(
        optional=True
    ),
    "what a reference finds": lambda p: engine_at(p)["env"].insert(0, engine_at(p)["env"].pop(2)),
    "a dollar that is meant": lambda p: engine_at(p)["env"][2].update(value="$$(A)/b"),
    "the order of envFrom": lambda p: engine_at(p)["envFrom"].reverse(),
    "the GPU count": lambda p: engine_at(p)["resources"]["limits"].update({"nvidia.com/gpu": 4}),
    "the kind of GPU": lambda p: engine_at(p).update(
        resources={"limits": {"nvidia.com/mig-1g.10gb": 8}}
    ),
    "the image of an init container": lambda p: p["spec"]["initContainers"][0].update(
        image="fetch:2"
    ),
    "the env of an init container": lambda p: p["spec"]["initContainers"][0]["env"][0].update(
        value="gcs"
    ),
    "the order of init containers": lambda p: p["spec"]["initContainers"].reverse(),
    "an init container's override variable": lambda p: p["spec"]["initContainers"][0]["env"].append(
        {"name": OVERRIDE, "value": "/elsewhere"}
    ),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_fingerprint_stays_when_this_changes(change: Any) -> None:
    pod = changed(change)
    assert identity.fingerprint(pod, engine_at(pod)["name"]) == fingerprint(rich())


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_the_fingerprint_changes_with(change: Any) -> None:
    assert fingerprint(changed(change)) != fingerprint(rich())


def test_each_of_these_changes_gives_a_fingerprint_of_its_own() -> None:
    assert len({fingerprint(changed(change)) for change in OTHER.values()}) == len(OTHER)


def test_the_devices_of_a_claim_template_are_part_of_the_fingerprint() -> None:
    def pod(devices: str, called: str = "gpu") -> Template:
        pod = template().container(resources={"claims": [{"name": called}]})
        return pod.pod(resourceClaims=[{"name": called, "resourceClaimTemplateName": devices}])

    assert fingerprint(pod("one-b200")) != fingerprint(pod("two-b200"))
    assert fingerprint(pod("one-b200")) == fingerprint(pod("one-b200", called="device"))


@pytest.mark.parametrize("empty", [None, "", False, [], {}, {"b": {"c": None}}])
def test_a_field_that_says_nothing_counts_as_absent_at_any_depth(empty: Any) -> None:
    assert canonical.drop_empty({"a": empty, "d": {"e": [{"f": empty}]}}) == {"d": {"e": [{}]}}


@pytest.mark.parametrize("value", [0, True, "0", "false", [None], [False], [""]])
def test_a_field_that_says_something_is_kept(value: Any) -> None:
    assert canonical.drop_empty({"a": value}) == {"a": value}


@law(st.lists(st.tuples(st.sampled_from("ABC"), st.text("AB$()", max_size=6)), max_size=5))
def test_env_that_the_kubelet_would_make_equal_is_equal(pairs: list[tuple[str, str]]) -> None:
    """The kubelet's own rule, written another way: character by character."""
    env = [{"name": name, "value": value} for name, value in pairs]
    expected: dict[str, str] = {}
    for name, value in pairs:
        expected[name] = expanded(value, expected)
    got = canonical.environment(env)
    assert {name: value.replace("\0(", "$(") for name, value in got.items()} == expected


def expanded(value: str, known: dict[str, str]) -> str:
    out, rest = "", value
    while rest:
        if rest.startswith("$$"):
            out, rest = out + "$", rest[2:]
        elif rest.startswith("$(") and ")" in rest:
            name, _, rest = rest[2:].partition(")")
            out += known.get(name, f"$({name})")
        else:
            out, rest = out + rest[0], rest[1:]
    return out


@pytest.mark.parametrize(
    ("spellings", "value"),
    [
        ((8, "8", "8000m", "8.0", "0.008k", "8e0", "+8"), Fraction(8)),
        (("1Gi", 2**30, "1024Mi"), Fraction(2**30)),
        (("500m", 0.5, ".5", "0.5"), Fraction(1, 2)),
        (("1E", "1e18"), Fraction(10**18)),
        (("0", 0, "0m"), Fraction(0)),
    ],
)
def test_a_quantity_is_a_number_however_it_is_spelled(
    spellings: tuple[Any, ...], value: Fraction
) -> None:
    assert [canonical.parse_quantity(spelling) for spelling in spellings] == [value] * len(
        spellings
    )


@pytest.mark.parametrize("wrong", ["", "eight", "8 Gi", "1ki", "--8", "1e9999", True, None, {}])
def test_what_is_no_quantity_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        canonical.parse_quantity(wrong)


# --- placement and the bundle's id


def test_the_targets_node_selector_is_laid_over_the_pods_own() -> None:
    pod = engine().pod(
        nodeSelector={"product": "H200", "zone": "a"},
        affinity=requiring({"matchExpressions": [term("x", "1")]}),
    )
    assert identity.placement(pod, Target("b200", {"product": "B200"})) == {
        "nodeSelector": {"product": "B200", "zone": "a"},
        "nodeAffinity": [{"matchExpressions": [{"key": "x", "operator": "In", "values": ["1"]}]}],
    }


def test_a_pod_that_may_run_anywhere_has_an_empty_placement() -> None:
    assert identity.placement(engine(), DEFAULT) == {}


def test_a_label_with_an_empty_value_is_a_term_too() -> None:
    assert identity.placement(engine().pod(nodeSelector={"role/gpu": ""}), DEFAULT) == {
        "nodeSelector": {"role/gpu": ""}
    }


def test_neither_order_nor_repetition_of_node_terms_counts() -> None:
    first = {"matchExpressions": [term("product", "B200", "H200"), term("zone", operator="Exists")]}
    turned = {
        "matchExpressions": [
            term("zone", operator="Exists"),
            term("product", "H200", "B200", "H200"),
        ]
    }
    two = {"matchFields": [term("metadata.name", "node0")]}
    ways = [requiring(first, two), requiring(two, turned), requiring(two, first, turned)]
    assert (
        len(
            {
                canonical.to_json(identity.placement(engine().pod(affinity=way), DEFAULT))
                for way in ways
            }
        )
        == 1
    )


def test_a_node_name_is_a_required_term() -> None:
    pinned, elsewhere = (
        identity.placement(engine().pod(nodeName=name), DEFAULT) for name in ("node0", "node1")
    )
    assert pinned == {"nodeAffinity": [{"matchFields": [term("metadata.name", "node0")]}]}
    assert pinned != elsewhere


def test_a_node_name_is_asked_of_each_alternative() -> None:
    pod = engine().pod(
        nodeName="node0",
        affinity=requiring(
            {"matchExpressions": [term("a", "1")]}, {"matchExpressions": [term("b", "2")]}
        ),
    )
    terms = identity.placement(pod, DEFAULT)["nodeAffinity"]
    assert [each["matchFields"] for each in terms] == [[term("metadata.name", "node0")]] * 2


def test_no_two_images_products_revisions_or_targets_share_a_bundle() -> None:
    ids = [
        identity.inputs(
            engine(image=image), spec(revision=revision), Target(name, {"product": product})
        ).bundle_id()
        for image, revision, name, product in itertools.product(
            ["v:1", "v:2"], ["", "again"], ["a", "b"], ["H200", "B200"]
        )
    ]
    assert len(set(ids)) == 16


@law(templates(), templates())
def test_two_templates_share_a_bundle_only_with_equal_inputs(one: Object, other: Object) -> None:
    this, that = (
        identity.inputs(pod, spec(engineContainer="vllm"), DEFAULT) for pod in (one, other)
    )
    assert (this.bundle_id() == that.bundle_id()) == (this == that)
    if one["spec"]["containers"][0]["image"] != other["spec"]["containers"][0]["image"]:
        assert this.bundle_id() != that.bundle_id()


# --- the target of a consumer

B200, H200 = {"gpu": "b200"}, {"gpu": "h200"}
TWO = [{"name": "b", "nodeSelector": B200}, {"name": "h", "nodeSelector": H200}]
ANYWHERE: list[Object] = [{"name": "any"}, TWO[0]]


@pytest.mark.parametrize(
    ("case", "targets", "selector", "named", "target"),
    [
        ("the only one, if the pod may run on its nodes", TWO[:1], None, "h", "b"),
        ("the only one, whose nodes the pod's selector excludes", TWO[:1], H200, None, None),
        ("the cache names none", None, None, None, "default"),
        ("the annotation names it", TWO, None, "h", "h"),
        ("the annotation names one whose nodes the selector excludes", TWO, B200, "h", None),
        ("the annotation goes before a selector that names none", TWO, {"zone": "a"}, "h", "h"),
        ("the annotation names no target", TWO, B200, "x", None),
        ("an empty annotation names none", TWO, B200, "", "b"),
        ("the pod's selector contains the target's", TWO, {**H200, "zone": "a"}, None, "h"),
        (
            "the pod's selector is only a part of the target's",
            [*TWO, {"name": "z", "nodeSelector": {**B200, "z": "1"}}],
            B200,
            None,
            "b",
        ),
        ("the pod's selector has the label with another value", TWO, {"gpu": "l4"}, None, None),
        ("the pod selects nothing", TWO, None, None, None),
        ("the pod's selector contains two", ANYWHERE, B200, None, None),
        ("a target without selector is contained in any", ANYWHERE, None, None, "any"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_target_of_a_consumer(
    case: str, targets: list[Object] | None, selector: Any, named: str | None, target: str | None
) -> None:
    pod: Object = {
        "metadata": {"annotations": None if named is None else {TARGET: named}},
        "spec": {},
    }
    if selector is not None:
        pod["spec"]["nodeSelector"] = selector
    found = identity.target_of(pod, spec(**({"targets": targets} if targets else {})))
    assert (found.name if found else None) == target


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        ([[term("gpu", "b200", "h200")]], True),
        ([[term("gpu", "h200")]], False),
        ([[term("gpu", "b200", operator="NotIn")]], False),
        ([[term("gpu", "h200", operator="NotIn")]], True),
        ([[term("gpu", operator="Exists")]], True),
        ([[term("gpu", operator="DoesNotExist")]], False),
        ([[term("zone", "a")]], True),
        ([[term("gpu", "h200")], [term("zone", "a")]], True),
        ([[term("gpu", "h200"), term("zone", "a")]], False),
        ([[]], False),  # an empty term holds for no node
        ([[], [term("gpu", "b200")]], True),
        ([[], [term("gpu", "h200")]], False),
    ],
)
def test_a_pod_whose_terms_exclude_the_targets_nodes_does_not_get_its_bundle(
    terms: list[list[Object]], fits: bool
) -> None:
    affinity = requiring(*({"matchExpressions": expressions} for expressions in terms))
    pod: Object = {"metadata": {}, "spec": {"affinity": affinity}}
    assert (identity.target_of(pod, spec(targets=TWO[:1])) is not None) == fits


def test_the_fingerprints_of_ordinary_templates_never_change() -> None:
    """Another fingerprint is a cold start of every engine: the release notes have to say so."""
    digest = hashlib.sha256()
    for number in range(500):
        pod = RandomCase(number).pod()
        digest.update(identity.fingerprint(pod, "vllm").encode())
    assert digest.hexdigest() == "92b772135024302458c7778bccf33aceec4c49bcb90ddb79209af8f04512bde5"
