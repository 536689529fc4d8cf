"""The CRD and operator/pretune/api agree."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import jsonschema
import pytest
from pretune.api.names import GROUP, KIND, PLURAL, STATES, VERSION
from pretune.api.reasons import REASONS
from pretune.api.schema import ListOf, Nested, Part, fields_of
from pretune.api.spec import Spec
from pretune.api.status import CacheStatus, Environment
from pretune.manifests.delivery_modes import AUTO, MODES, NONE
from pretune.protocol import Versions

from tools import crd

FIELDS = {field.path: field for field in crd.fields() if field.path.startswith("spec.")}
# What only the API server or a manifest reads: it is handed on whole.
HANDED_ON = ("spec.source.workloadRef.", "spec.source.template.", ".tolerations[].")
LEAVES = [
    path
    for path, field in FIELDS.items()
    if field.leaf and not any(part in path for part in HANDED_ON)
]
# One field of each that is handed on, as a sample.
WHOLE = [
    "spec.source.workloadRef.name",
    "spec.source.template.spec.containers[].name",
    "spec.targets[].tolerations[].key",
    "spec.tuning.podTemplate.spec.tolerations[].key",
]

BASE: dict[str, Any] = {
    "source": {
        "workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"},
        "template": {"spec": {"containers": [{"name": "a"}]}},
    },
    "engineContainer": "a",
    "targets": [{"name": "a", "nodeSelector": {"a": "a"}, "tolerations": [{"key": "a"}]}],
    "storage": {
        "claim": {
            "storageClassName": "a",
            "accessModes": ["ReadWriteMany"],
            "size": "1Gi",
            "whenDeleted": "Delete",
        },
        "existingClaim": {"name": "a", "subPath": "a"},
    },
    "tuning": {
        "deadlineSeconds": 10,
        "maxAttempts": 1,
        "nodeWaitSeconds": 10,
        "podTemplate": {
            "metadata": {"labels": {"a": "a"}, "annotations": {"a": "a"}},
            "spec": {"priorityClassName": "a", "tolerations": [{"key": "a"}]},
        },
        "keepContainers": ["a"],
        "allow": ["SharedGPU"],
    },
    "delivery": {"mode": "Auto"},
    "hold": {"when": "Never", "timeoutSeconds": 10, "onFailure": "Start"},
    "bundleHistoryLimit": 1,
    "verify": "Never",
    "revision": "a",
    "suspend": False,
}


def changed(value: Any, field: dict[str, Any]) -> Any:
    """Return another value of the same type."""
    enum = field.get("enum") or field.get("items", {}).get("enum")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return next(other for other in enum if other != value) if enum else value + "b"
    if isinstance(value, dict):
        return {**value, "b": "b"}
    return [next(item for item in enum if item not in value)] if enum else [*value, "b"]


def put(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a copy of the spec in which the field at this path has another value."""
    out = copy.deepcopy(spec)
    at: Any = {"spec": out}
    *parents, last = path.split(".")
    for step in parents:
        at = at[step.removesuffix("[]")]
        at = at[0] if step.endswith("[]") else at
    last = last.removesuffix("[]")
    at[last] = changed(at[last], FIELDS[path].schema)
    return out


@pytest.mark.parametrize("path", [*LEAVES, *WHOLE])
def test_every_field_that_can_be_set_reaches_the_operator(path: str) -> None:
    assert Spec.from_cache({"spec": put(BASE, path)}) != Spec.from_cache({"spec": BASE})


class RecordedMapping(dict[str, Any]):
    """A mapping that records which of its keys were read."""

    def __init__(self, value: dict[str, Any], path: str, seen: set[str]) -> None:
        super().__init__(
            {
                key: RecordedMapping(item, f"{path}.{key}", seen)
                if isinstance(item, dict)
                else [
                    RecordedMapping(element, f"{path}.{key}[]", seen)
                    if isinstance(element, dict)
                    else element
                    for element in item
                ]
                if isinstance(item, list)
                else item
                for key, item in value.items()
            }
        )
        self.path, self.seen = path, seen

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(f"{self.path}.{key}")
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(f"{self.path}.{key}")
        return super().__getitem__(key)


def test_every_field_that_the_operator_reads_can_be_set() -> None:
    seen: set[str] = set()
    Spec.from_cache({"spec": RecordedMapping(BASE, "spec", seen)})
    assert seen
    assert seen <= {path.removesuffix("[]") for path in FIELDS}


def test_the_operators_defaults_are_those_of_the_crd() -> None:
    least = {"spec": {"storage": {"claim": {}}}}
    stored = crd.with_defaults(least)
    assert stored != least
    assert Spec.from_cache(least) == Spec.from_cache(stored)


@pytest.mark.parametrize(
    "path", [path for path, field in FIELDS.items() if "default" in field.schema]
)
def test_the_operator_has_each_default_too(path: str) -> None:
    """So an object that was stored with an older CRD, without the default, means the same."""
    stored = crd.with_defaults({"spec": {"storage": {"claim": {}}}})
    at: Any = stored
    *parents, last = path.split(".")
    for step in parents:
        at = at[step]
    del at[last.removesuffix("[]")]
    assert Spec.from_cache(stored) == Spec.from_cache({"spec": {"storage": {"claim": {}}}})


def test_the_names_of_the_api_are_those_of_the_crd() -> None:
    spec = crd.load()["spec"]
    assert (spec["group"], spec["names"]["kind"], spec["names"]["plural"]) == (GROUP, KIND, PLURAL)
    assert [version["name"] for version in spec["versions"]] == [VERSION]


def test_every_delivery_mode_is_in_the_crd() -> None:
    enum = FIELDS["spec.delivery.mode"].schema["enum"]
    assert sorted(enum) == sorted([AUTO, *(mode.name for mode in MODES), NONE])


def test_every_state_and_reason_fits_the_status() -> None:
    status = {
        field.path: field.schema for field in crd.fields() if field.path.startswith("status.")
    }
    assert tuple(status["status.bundles[].state"]["enum"]) == STATES
    for path in (
        "status.conditions[].reason",
        "status.bundles[].reason",
        "status.bundles[].lastFailure.reason",
    ):
        assert all(len(reason) <= status[path]["maxLength"] for reason in REASONS)
    # The API conventions' form of a condition's reason.
    assert all(reason.isalnum() and reason[0].isupper() for reason in REASONS)


def declared(part: type[Part], path: str) -> dict[str, dict[str, Any]]:
    """The fields that a part of the status declares in Python, by their paths in the CRD: the kind's schema of each."""
    found: dict[str, dict[str, Any]] = {}
    for field in fields_of(part).values():
        kind, here = field.kind, f"{path}.{field.json_name}"
        if isinstance(kind, ListOf):
            here, item = f"{here}[]", kind.item
            found[here] = {**kind.schema, "items": item.schema}
        else:
            item = kind
            found[here] = kind.schema
        if isinstance(item, Nested):
            found |= declared(item.part, here)
    return found


def test_the_status_in_python_and_in_the_crd_have_the_same_fields_of_the_same_types() -> None:
    """In both directions: Python has each field of the CRD, and no other."""
    schemas = {
        field.path: field.schema for field in crd.fields() if field.path.startswith("status.")
    }
    compared = ("type", "format", "maxLength", "enum", "maxItems")
    python = declared(CacheStatus, "status")
    assert set(python) == set(schemas)
    for path, schema in schemas.items():
        theirs = {name: schema[name] for name in compared if name in schema}
        mine = {name: python[path][name] for name in compared if name in python[path]}
        if "enum" in mine:
            mine["enum"], theirs["enum"] = set(mine["enum"]), set(theirs["enum"])
        assert mine == theirs, path
        if path.endswith("[]"):
            item = schema["items"]
            assert python[path]["items"] == {
                name: item[name] for name in compared if name in item
            }, path


def test_the_status_has_each_version_that_a_manifest_has() -> None:
    assert [field.name for field in fields(Versions)] == [
        field.name for field in fields(Environment)
    ]


@pytest.mark.parametrize("field", list(crd.fields()), ids=lambda field: field.path)
def test_every_field_is_explained_and_bounded(field: crd.Field) -> None:
    schema = field.schema
    if field.path in ("apiVersion", "kind", "metadata"):
        return  # the API server's own
    assert schema.get("description"), "kubectl explain would show nothing"
    if schema.get("type") == "array":
        assert "maxItems" in schema
    elif schema.get("type") == "string" and schema.get("format") != "date-time":
        assert "maxLength" in schema or "enum" in schema
    elif "additionalProperties" in schema:
        assert "maxProperties" in schema and "maxLength" in schema["additionalProperties"]


def test_the_documented_object_is_accepted() -> None:
    """The schema that other tests use accepts a whole object, and refuses an unknown field."""
    cache = {
        "apiVersion": "pretune.dev/v1alpha1",
        "kind": "AutotuneCache",
        "metadata": {"name": "a"},
        "spec": BASE,
    }
    jsonschema.validate(cache, crd.strict())
    with pytest.raises(jsonschema.ValidationError, match="holdd"):
        jsonschema.validate({**cache, "spec": {**BASE, "holdd": {}}}, crd.strict())
