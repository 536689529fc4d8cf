"""JSON Patch (RFC 6902). Only `add` is used: nothing that is there is replaced or removed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretune.api.types import Object

Operation = dict[str, Any]  # {"op": "add", "path": …, "value": …}


def append_items(holder: Object, path: str, field: str, items: Sequence[Object]) -> list[Operation]:
    """Return what appends the items to a list of the holder, which is created if there is none.

    path: the holder's own, as a JSON Pointer.
    """
    if not items:
        return []
    if holder.get(field) is None:
        return [{"op": "add", "path": f"{path}/{field}", "value": list(items)}]
    return [{"op": "add", "path": f"{path}/{field}/-", "value": item} for item in items]


def add_entries(obj: Object, place: str, field: str, entries: Mapping[str, str]) -> list[Operation]:
    """Return what adds the entries to the map obj[place][field], created if there is none."""
    holder = obj.get(place)
    if holder is None:
        return [{"op": "add", "path": f"/{place}", "value": {field: entries}}]
    if holder.get(field) is None:
        return [{"op": "add", "path": f"/{place}/{field}", "value": entries}]
    return [
        {"op": "add", "path": f"/{place}/{field}/{_escape(name)}", "value": value}
        for name, value in entries.items()
    ]


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def copy_json(value: Any) -> Any:
    """Return a copy of what came as JSON, which shares nothing with it.

    More than twice as fast as copy.deepcopy, which must expect any object.
    """
    if isinstance(value, dict):
        return {name: copy_json(entry) for name, entry in value.items()}
    return [copy_json(item) for item in value] if isinstance(value, list) else value
