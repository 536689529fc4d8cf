"""JSON Patch (RFC 6902), of which we use `add` alone: nothing that is there is ever replaced or removed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretune.api.types import Object

Operation = dict[str, Any]  # {"op": "add", "path": …, "value": …}


def append_items(holder: Object, at: str, field: str, added: list[Object]) -> list[Operation]:
    """Adds to the end of a list, which is made where there is none."""
    if not added:
        return []
    if holder.get(field) is None:
        return [{"op": "add", "path": f"{at}/{field}", "value": added}]
    return [{"op": "add", "path": f"{at}/{field}/-", "value": one} for one in added]


def add_entries(whole: Object, place: str, field: str, added: Mapping[str, str]) -> list[Operation]:
    """Adds to a map, which is made where there is none."""
    holder = whole.get(place)
    if holder is None:
        return [{"op": "add", "path": f"/{place}", "value": {field: added}}]
    if holder.get(field) is None:
        return [{"op": "add", "path": f"/{place}/{field}", "value": added}]
    return [
        {
            "op": "add",
            "path": f"/{place}/{field}/{name.replace('~', '~0').replace('/', '~1')}",
            "value": one,
        }
        for name, one in added.items()
    ]


def copy_json(value: Any) -> Any:
    """A copy of what came as JSON, which shares nothing with it: at more than twice the speed of copy.deepcopy, which must expect more."""
    if isinstance(value, dict):
        return {name: copy_json(one) for name, one in value.items()}
    return [copy_json(one) for one in value] if isinstance(value, list) else value
