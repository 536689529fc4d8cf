"""One spelling for what an author wrote and for what the API server stored of it: both must give the same fingerprint.

The API server drops empty fields, adds defaults (`fieldRef.apiVersion: v1`) and writes numbers as strings
(docs/dev/facts-kubernetes.md).
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

# What the kubelet replaces in env values: `$$` is one dollar, `$(NAME)` a variable that stands before.
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_MARK = "\0"  # no value of a container's environment can hold it


def parse_quantity(value: str | int | float) -> Fraction:
    """A Kubernetes quantity as a number: 8 == "8" == "8000m". Raises ValueError when it is none."""
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None or isinstance(value, bool):
        raise ValueError(f"{value!r} is no quantity")
    number, binary, decimal, exponent = found.groups()
    scale = _BINARY.get(binary) or _DECIMAL.get(decimal) or Fraction(10) ** int(exponent or 0)
    return Fraction(number) * scale


def drop_empty(value: Any) -> Any:
    """The value without what says nothing: null, "", false and empty lists and objects in objects, at any depth."""
    if isinstance(value, dict):
        kept = {name: drop_empty(one) for name, one in value.items()}
        return {
            name: one
            for name, one in kept.items()
            if one is not None and one is not False and one not in ("", {}, [])
        }
    return [drop_empty(one) for one in value] if isinstance(value, list | tuple) else value


def to_json(value: Any) -> str:
    """JSON in one spelling, to hash, sort and compare by."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def program(container: Object, without: Sequence[str] = ()) -> Object:
    """What a container runs: its image, command, args, env and envFrom. `without` are env names that are left out."""
    return {
        "image": container.get("image") or "",
        "command": list(container.get("command") or ()),
        "args": list(container.get("args") or ()),
        "env": environment(container.get("env") or (), without),
        "envFrom": drop_empty(container.get("envFrom") or ()),  # in its order: a later one wins
    }


def environment(env: Iterable[Object], without: Sequence[str] = ()) -> dict[str, str]:
    """Name to value as the kubelet would set it: the last of a repeated name, `$(NAME)` replaced by what stands before it.

    So the order counts only where the kubelet heeds it. A reference stays a reference: its value is never read.
    """
    made: dict[str, str] = {}
    for one in env:
        if one["name"] in without:
            continue
        if one.get("valueFrom"):
            made[one["name"]] = _MARK + to_json(_source(one["valueFrom"]))
        else:
            made[one["name"]] = _REFERENCE.sub(
                lambda found: (
                    "$" if found[1] is None else made.get(found[1], f"{_MARK}({found[1]})")
                ),
                one.get("value") or "",
            )
    return made


def _source(value_from: Object) -> Any:
    source = drop_empty(value_from)
    field = source.get("fieldRef", {})
    if field.get("apiVersion") == "v1":
        field.pop("apiVersion")
    resource = source.get("resourceFieldRef", {})
    try:
        if parse_quantity(resource.get("divisor", "")) in (
            0,
            1,
        ):  # the default, stored as "0", divides by one
            resource.pop("divisor")
    except ValueError:
        pass  # none is given, or the API server will refuse it
    return source


def node_terms(terms: Iterable[Object]) -> list[Any]:
    """Node selector terms (one of them must hold, all of one's expressions): neither order nor repetition means anything."""
    return _ordered(
        drop_empty(
            {
                kind: _ordered(
                    {**one, "values": sorted(set(one.get("values") or ()))}
                    for one in term.get(kind) or ()
                )
                for kind in ("matchExpressions", "matchFields")
            }
        )
        for term in terms
    )


def _ordered(values: Iterable[Any]) -> list[Any]:
    return [one for _, one in sorted({to_json(one): one for one in values}.items())]
