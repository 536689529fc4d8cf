"""The chart's CustomResourceDefinition as data, read from its template without Helm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "charts/pretune/templates/crds/autotunecaches.yaml"


def load() -> dict[str, Any]:
    """Return the CustomResourceDefinition.

    Its template has Helm's actions on lines of their own, which are left out.
    """
    lines = TEMPLATE.read_text().splitlines()
    found: dict[str, Any] = yaml.safe_load(
        "\n".join(line for line in lines if not re.match(r"\s*{{.*}}\s*$", line))
    )
    return found


def schema() -> dict[str, Any]:
    """The OpenAPI schema of an AutotuneCache."""
    (version,) = load()["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


@dataclass(frozen=True)
class Field:
    """One field: its path, its schema, and whether its parent requires it.

    The path begins at the object's root; "[]" stands behind the name of a list.
    """

    path: str
    schema: dict[str, Any]
    required: bool

    @property
    def leaf(self) -> bool:
        """Whether it has no fields of its own below."""
        return not (
            self.schema.get("properties") or (self.schema.get("items") or {}).get("properties")
        )


def fields(of: dict[str, Any] | None = None, path: str = "") -> Iterator[Field]:
    """Yield every field below a schema, parents first. Maps and preserved parts have none."""
    of = schema() if of is None else of
    for name, one in of.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        is_list = one.get("type") == "array"
        yield Field(here + ("[]" if is_list else ""), one, name in of.get("required", ()))
        yield from fields(one["items"] if is_list else one, here + ("[]" if is_list else ""))


def strict() -> dict[str, Any]:
    """Return the schema as JSON Schema that refuses unknown fields, as the API server does.

    Rules (CEL) are not part of it.
    """
    found = _strict(schema())
    assert isinstance(found, dict)
    return found


def _strict(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict(one) for one in value]
    if not isinstance(value, dict):
        return value
    out = {key: _strict(one) for key, one in value.items() if not key.startswith("x-kubernetes-")}
    closed = "properties" in value and value.get("x-kubernetes-preserve-unknown-fields") is not True
    if closed and value.get("type") == "object" and "additionalProperties" not in value:
        out["additionalProperties"] = False
    return out


def with_defaults(value: Any, of: dict[str, Any] | None = None) -> Any:
    """An object as the API server stores it: every default of the schema in place."""
    of = schema() if of is None else of
    if isinstance(value, list):
        return [with_defaults(one, of.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    out = dict(value)
    for name, one in of.get("properties", {}).items():
        if name not in out and "default" in one:
            out[name] = one["default"]
        if name in out:
            out[name] = with_defaults(out[name], one)
    return out
