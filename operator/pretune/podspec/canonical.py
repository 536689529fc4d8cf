"""One form for what an author wrote and for what the API server stored of it. Pure.

Both must have the same fingerprint. The API server drops empty fields, adds defaults
(`fieldRef.apiVersion: v1`) and writes numbers as strings (docs/dev/facts-kubernetes.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from pretune.api.types import Object

_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d{1,3}))?"
)
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    letter: Fraction(1000) ** power
    for power, letter in zip((-3, -2, -1, 1, 2, 3, 4, 5, 6), "numkMGTPE", strict=True)
}

# What the kubelet replaces in env values: `$$` by one dollar, `$(NAME)` by an earlier variable.
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_MARK = "\0"  # no value of a container's environment can contain it


def parse_quantity(value: str | int | float) -> Fraction:
    """Return a Kubernetes quantity as a number: 8 == "8" == "8000m". Raises ValueError."""
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise ValueError(f"{value!r} is no quantity")
    number, binary, decimal, exponent = match.groups()
    scale = _BINARY.get(binary) or _DECIMAL.get(decimal) or Fraction(10) ** int(exponent or 0)
    return Fraction(number) * scale


def drop_empty(value: Any) -> Any:
    """Return the value without the fields, at any depth, that mean the same as absent ones.

    Those are null, "", false, and empty lists and objects. Items of lists stay.
    """
    if isinstance(value, list | tuple):
        return [drop_empty(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: drop_empty(field) for name, field in value.items()}
    return {name: field for name, field in fields.items() if not _is_empty(field)}


def _is_empty(field: Any) -> bool:
    return field is None or field is False or field in ("", {}, [])


def to_json(value: Any) -> str:
    """Return JSON in one form, to hash, sort and compare by."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def program(container: Object, without: Sequence[str] = ()) -> Object:
    """Return what a container runs: its image, command, args, env and envFrom.

    without: names of variables that are left out.
    """
    return {
        "image": container.get("image") or "",
        "command": list(container.get("command") or ()),
        "args": list(container.get("args") or ()),
        "env": environment(container.get("env") or (), without),
        "envFrom": drop_empty(container.get("envFrom") or ()),  # ordered: a later one wins
    }


def environment(env: Iterable[Object], without: Sequence[str] = ()) -> dict[str, str]:
    """Return name to value as the kubelet would set it.

    Of a repeated name the last counts, and `$(NAME)` is replaced by an earlier variable, so that
    the order matters only where it does to the kubelet. A valueFrom stays a reference: its value
    is never read.
    """
    values: dict[str, str] = {}

    def resolve(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else values.get(name, f"{_MARK}({name})")

    for variable in env:
        name = variable["name"]
        if name in without:
            continue
        if variable.get("valueFrom"):
            values[name] = _MARK + to_json(_canonical_source(variable["valueFrom"]))
        else:
            values[name] = _REFERENCE.sub(resolve, variable.get("value") or "")
    return values


def _canonical_source(value_from: Object) -> Any:
    source = drop_empty(value_from)
    field = source.get("fieldRef", {})
    if field.get("apiVersion") == "v1":
        field.pop("apiVersion")
    resource = source.get("resourceFieldRef", {})
    try:  # the default, stored as "0", divides by one
        if parse_quantity(resource.get("divisor", "")) in (0, 1):
            resource.pop("divisor")
    except ValueError:
        pass  # there is none, or the API server will refuse it
    return source


def node_terms(terms: Iterable[Object]) -> list[Any]:
    """Return node selector terms (one must hold; of a term, all expressions) in one order.

    Neither order nor repetition means anything.
    """
    return _sort_distinct(
        drop_empty(
            {
                field: _sort_distinct(
                    {**expression, "values": sorted(set(expression.get("values") or ()))}
                    for expression in term.get(field) or ()
                )
                for field in ("matchExpressions", "matchFields")
            }
        )
        for term in terms
    )


def _sort_distinct(values: Iterable[Any]) -> list[Any]:
    return [value for _, value in sorted({to_json(value): value for value in values}.items())]
