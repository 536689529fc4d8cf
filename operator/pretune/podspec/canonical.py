"""One form for what an author wrote and for what the API server stored of it. Pure.

Both must have the same fingerprint. The API server drops empty fields, adds defaults
(`fieldRef.apiVersion: v1`) and writes numbers as strings (docs/dev/facts-kubernetes.md).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from pretune.api.types import Object

_QUANTITY = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d{1,3}))?"
)
MAX_QUANTITY_CHARACTERS = 64  # the API server writes at most 24
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    letter: Fraction(1000) ** power
    for power, letter in zip((-3, -2, -1, 1, 2, 3, 4, 5, 6), "numkMGTPE", strict=True)
}

# What the kubelet replaces in env values: `$$` by one dollar, `$(NAME)` by an earlier variable.
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_MARK = "\0"  # no value of a container's environment can contain it
_TOO_LONG = _MARK * 2  # begins a value that is left as it is written

# Of a value as the kubelet expands it, and by which all values of a container may grow with that:
# Linux starts no process with a variable of more than 128 KiB (MAX_ARG_STRLEN).
MAX_VALUE_CHARACTERS = 128 * 1024
MAX_DOLLARS = 20_000  # of all values of a container: each may begin a reference


def parse_quantity(value: str | int | float) -> Fraction:
    """Return a Kubernetes quantity as a number: 8 == "8" == "8000m". Raises ValueError."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > MAX_QUANTITY_CHARACTERS:
        raise ValueError(f"{text[:MAX_QUANTITY_CHARACTERS]!r}… is no quantity")
    return _parse_quantity(text)


@functools.lru_cache(1024)
def _parse_quantity(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
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
    is never read. A value that would exceed MAX_VALUE_CHARACTERS stays as it is written
    (find_too_long), and so do those beyond MAX_DOLLARS.
    """
    values: dict[str, str] = {}
    growth_left, dollars_left = MAX_VALUE_CHARACTERS, MAX_DOLLARS
    for variable in env:
        name = variable["name"]
        if name in without:
            continue
        if variable.get("valueFrom"):
            values[name] = _MARK + to_json(_canonical_source(variable["valueFrom"]))
            continue
        written = variable.get("value") or ""
        if "$" not in written:
            values[name] = written
            continue
        dollars_left -= written.count("$")
        most = min(MAX_VALUE_CHARACTERS, len(written) + growth_left)
        expanded = _expand(written, values, most) if dollars_left >= 0 else None
        if expanded is None:
            values[name] = _TOO_LONG + written
        else:
            values[name] = expanded
            growth_left -= max(0, len(expanded) - len(written))
    return values


def find_too_long(values: Mapping[str, str]) -> str | None:
    """Return the variable of an environment() that is too long once it is expanded, or None."""
    return next((name for name, value in values.items() if value.startswith(_TOO_LONG)), None)


def contains_field(value: str, path: str) -> bool:
    """Whether a value of an environment() contains a field of the pod (valueFrom.fieldRef)."""
    return _MARK + to_json({"fieldRef": {"fieldPath": path}}) in value


def list_references(value: str) -> list[str]:
    """Return the names of the variables that a value refers to, as `$(NAME)`."""
    # Only before the last bracket, where each reference ends: the search is linear.
    return [match[1] for match in _REFERENCE.finditer(value, 0, value.rfind(")") + 1) if match[1]]


def _expand(written: str, values: Mapping[str, str], most: int) -> str | None:
    """Return a value as the kubelet expands it; None where it has more than `most` characters."""
    end = written.rfind(")") + 1  # behind it no reference ends: so the search is linear
    parts, size, at = [], 0, 0
    for match in _REFERENCE.finditer(written, 0, end):
        name = match[1]
        replacement = "$" if name is None else values.get(name, f"{_MARK}({name})")
        parts += [written[at : match.start()], replacement]
        size += len(parts[-2]) + len(replacement)
        if size > most:
            return None
        at = match.end()
    parts += [written[at:end], written[end:].replace("$$", "$")]
    return "".join(parts) if size + len(written) - at <= most else None


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
