"""Typed values that are read from JSON and written as JSON, each field with its type and bound.

A field declares what it holds beside its type: `attempts: Annotated[int, Integer()] = 0`. Its JSON
name is its own name in camelCase. A field that is None or False is absent in JSON.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import (
    Annotated,
    Any,
    Generic,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pretune.api.timestamps import format_timestamp, parse_timestamp
from pretune.api.types import Object

MAX_TIME = 253402300800.0  # Unix seconds: the end of the year 9999

T = TypeVar("T")


class Malformed(ValueError):
    """What was read is not of its declared form; the message names the field."""

    def __init__(self, expected: str, *path: str) -> None:
        super().__init__(f"{'.'.join(path) or 'it'} is not {expected}")
        self.expected, self.path = expected, path


# --- what a field may hold: how it is read from JSON and written, and its schema in the CRD


class Kind(ABC, Generic[T]):
    """What a field holds; schema: the same in the CRD. `read` raises Malformed."""

    def __init__(self, **schema: Any) -> None:
        self.schema = schema

    @abstractmethod
    def read(self, value: Any) -> T:
        """Return the value of JSON, checked. Raises Malformed."""

    def write(self, value: T) -> Any:
        return value


class Text(Kind[str]):
    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        super().__init__(type="string", maxLength=max_length)

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or len(value) > self.max_length:
            raise Malformed(f"a text of at most {self.max_length} characters")
        return value


class OneOf(Kind[str]):
    """One of these words; with `newer`, also one of which only a newer release knows."""

    def __init__(self, *words: str, newer: bool = False) -> None:
        self.words, self.newer = words, newer
        super().__init__(type="string", enum=list(words))

    def read(self, value: Any) -> str:
        if value not in self.words and not (self.newer and isinstance(value, str)):
            raise Malformed(f"one of {', '.join(self.words)}")
        return str(value)


class Integer(Kind[int]):
    def __init__(self, bits: int = 32) -> None:
        self.limit = 2 ** (bits - 1)
        super().__init__(type="integer", format=f"int{bits}")

    def read(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self.limit:
            raise Malformed(f"a number from 0 to {self.limit - 1}")
        return value


class Flag(Kind[bool]):
    def __init__(self) -> None:
        super().__init__(type="boolean")

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Malformed("true or false")
        return value


class DateTime(Kind[float]):
    """Unix seconds here, RFC 3339 with whole seconds in JSON."""

    def __init__(self) -> None:
        super().__init__(type="string", format="date-time")

    def read(self, value: Any) -> float:
        try:
            seconds = parse_timestamp(value) // 1
        except (ValueError, TypeError, AttributeError, OverflowError):
            seconds = -1.0
        if not 0 <= seconds < MAX_TIME:
            raise Malformed("a time in RFC 3339")
        return seconds

    def write(self, value: float) -> str:
        return format_timestamp(value)


class Nested(Kind[Any]):
    """An object with fields of its own."""

    def __init__(self, part: type[Part]) -> None:
        super().__init__(type="object")
        self.part = part

    def read(self, value: Any) -> Any:
        return self.part.from_dict(value)

    def write(self, value: Any) -> Any:
        return value.to_dict()


class ListOf(Kind[tuple[Any, ...]]):
    def __init__(self, max_items: int, item: Kind[Any]) -> None:
        self.max_items, self.item = max_items, item
        super().__init__(type="array", maxItems=max_items)

    def read(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > self.max_items:
            raise Malformed(f"a list of at most {self.max_items}")
        return tuple(self.item.read(item) for item in value)

    def write(self, value: tuple[Any, ...]) -> Any:
        return [self.item.write(item) for item in value]


@dataclass(frozen=True)
class Field:
    """One field of a part: its name in Python and in JSON."""

    name: str
    json_name: str
    kind: Kind[Any]
    is_required: bool


def _json_name(name: str) -> str:
    """Return `claim_uid` as claimUID, `from_` as from."""
    first, *rest = name.rstrip("_").split("_")
    return first + "".join("UID" if word == "uid" else word.capitalize() for word in rest)


def _kind(hint: Any) -> Kind[Any] | None:
    """Return the kind that an annotation declares, alone or beside None."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((kind for part in get_args(hint) if (kind := _kind(part))), None)
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Kind)), None)
    if isinstance(hint, type) and issubclass(hint, Part):
        return Nested(hint)
    return None


_FIELDS: dict[type[Part], Mapping[str, Field]] = {}


def fields_of(part: type[Part]) -> Mapping[str, Field]:
    """Return the fields that a part has in JSON, by their names there."""
    if part not in _FIELDS:
        hints = get_type_hints(part, include_extras=True)
        declared = (
            Field(each.name, _json_name(each.name), kind, each.default is MISSING)
            for each in fields(part)
            if (kind := _kind(hints[each.name])) is not None
        )
        _FIELDS[part] = {each.json_name: each for each in declared}
    return _FIELDS[part]


@dataclass(frozen=True)
class Part:
    """A JSON object."""

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return the part. Raises Malformed, which names the field. Unknown fields are left out."""
        if not isinstance(data, dict):
            raise Malformed("an object")
        declared, values = fields_of(cls), {}
        for json_name, value in data.items():
            each = declared.get(json_name)
            if each is None or value is None:
                continue
            try:
                values[each.name] = each.kind.read(value)
            except Malformed as error:
                raise Malformed(error.expected, json_name, *error.path) from None
        for each in declared.values():
            if each.is_required and each.name not in values:
                raise Malformed("there", each.json_name)
        return cls(**values)

    def to_dict(self) -> Object:
        """Return its JSON."""
        return {
            each.json_name: each.kind.write(value)
            for each in fields_of(type(self)).values()
            if (value := getattr(self, each.name)) is not None and value is not False
        }
