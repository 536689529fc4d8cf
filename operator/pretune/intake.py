"""The intake of what others wrote: measured before it is parsed, and cut down where it is too large.

Every answer and watch line of the API server (`kube/client.py`) and every AdmissionReview
(`webhook/server.py`) passes `parse_json`, so that nothing behind it meets an object of unbounded
size or depth. Of an object that exceeds a bound only what does not is kept (its name, its status),
and EXCESS says so. `podspec/source.py` asks find_excess_of_template before anything reads a template.

All of it is linear and iterative: a recursion limit protects nothing, since it depends on who
calls. The bounds and their reasons: docs/limits.md#input. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

OUR_PREFIX = "pretune.dev/"  # of labels and annotations that we read
EXCESS = "pretune.dev/excess"  # a field that no object of the API server has


@dataclass(frozen=True)
class Bounds:
    """What a JSON text may have."""

    size: int  # bytes
    values: int  # commas and brackets
    depth: int  # of lists and objects in one another


# etcd takes objects of 1.5 MiB, the API server requests of 3 MiB. What 100,000 commas and brackets
# take once they are parsed: test_an_object_of_any_content_takes_less_than_64_mib. Ordinary objects
# have a few thousand, in fewer than 40 levels.
OBJECT = Bounds(size=4 << 20, values=100_000, depth=64)
ENVELOPE = replace(OBJECT, depth=OBJECT.depth + 2)  # an object in a watch event or AdmissionReview
# One answer with many objects. A list that exceeds it is read in smaller pages.
PAGE = Bounds(size=4 << 20, values=400_000, depth=ENVELOPE.depth)

# JSON in an annotation: all annotations of an object have at most 256 KiB.
ANNOTATION = Bounds(size=256 << 10, values=10_000, depth=16)
MAX_REVIEW_HEAD = 64 << 10  # bytes of an AdmissionReview before the object

# Of a pod template, in which nothing else checks what an AutotuneCache holds.
MAX_TEMPLATE_DEPTH = 32
MAX_TEMPLATE_VALUES = 10_000
MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_TEXT_CHARACTERS = 128 * 1024  # Linux starts no process with a longer argument or variable
MAX_ITEMS = 1_000  # of a list, and fields of an object
MAX_CONTAINERS = 50


class TooLarge(ValueError):
    """A JSON text exceeds a bound; the message says which, after the text's name."""


def parse_json(raw: bytes, bounds: Bounds = OBJECT) -> Any:
    """Return what a JSON text holds. Raises TooLarge, and ValueError for what is no JSON."""
    if excess := find_excess(raw, bounds):
        raise TooLarge(excess)
    return json.loads(raw)


def find_excess(raw: bytes, bounds: Bounds) -> str:
    """Return which bound a JSON text exceeds, as in "has more than 4 MiB"; "": none.

    Nothing is parsed: this takes a fraction of the time, and a copy of the text at most.
    """
    if len(raw) > bounds.size:
        return f"has more than {bounds.size >> 20} MiB"
    outline = _outline(raw)
    if len(outline) > bounds.values:
        return f"has more than {bounds.values:,} values"
    brackets = outline.replace(b",", b"")
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > bounds.depth:
        return f"is nested more than {bounds.depth} levels deep"
    return ""


_NO_OUTLINE = bytes(set(range(256)) - set(b'"[]{},'))
_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]


def _outline(raw: bytes) -> bytes:
    """Return the brackets and commas of a JSON text that are not in its strings."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    quoted = raw.translate(None, _NO_OUTLINE).replace(b'""', b"")
    return b"".join(quoted.split(b'"')[::2])


# --- what is too large, cut down. Of large texts that takes up to a second: in a thread.


def cut_object(raw: bytes) -> dict[str, Any]:
    """Return the object in a JSON text; of one that is too large only the fields that are not.

    EXCESS says what it exceeds; but where that is due to its managedFields alone, they are missing
    and nothing else. Raises ValueError where the text holds no object with a name.
    """
    text = _Text(raw)
    return _read_or_cut(text, 0, len(raw))


def cut_list(raw: bytes) -> dict[str, Any]:
    """Return a list with its items as cut_object does."""
    text = _Text(raw)
    members = dict(text.list_members(0))
    found: dict[str, Any] = {
        name: text.read(*members[name])
        for name in ("apiVersion", "kind", "metadata")
        if name in members
    }
    begin, _ = _find(members, "items")
    return {**found, "items": [_read_or_cut(text, *place) for place in text.list_items(begin)]}


def cut_event(raw: bytes) -> dict[str, Any]:
    """Return a watch event with its object as cut_object does."""
    text = _Text(raw)
    members = dict(text.list_members(0))
    return {
        "type": text.read(*_find(members, "type")),
        "object": _read_or_cut(text, *_find(members, "object")),
    }


def cut_review(raw: bytes) -> dict[str, Any]:
    """Return the texts of an AdmissionReview's request before its object: uid, namespace and name.

    Only the beginning is read: anybody on the network may send this. Raises ValueError where that
    is no AdmissionReview of an API server.
    """
    text = _Text(raw[:MAX_REVIEW_HEAD])
    found: dict[str, Any] = {}
    for name, (begin, _) in text.list_members(0, open_ended="request"):
        if name == "request":
            for field, (start, end) in text.list_members(begin, open_ended="object"):
                if field == "object":
                    return found
                if text.raw[start : start + 1] == b'"':
                    found[field] = text.read(start, end)
    raise ValueError("no object")


def _read_or_cut(text: _Text, begin: int, end: int) -> dict[str, Any]:
    excess = find_excess(text.raw[begin:end], OBJECT)
    return _cut(text, begin, excess) if excess else json.loads(text.raw[begin:end])


def _cut(text: _Text, at: int, excess: str) -> dict[str, Any]:
    found: dict[str, Any] = {"spec": {}}
    meta: dict[str, Any] = {}
    members = dict(text.list_members(at))
    begin, _ = _find(members, "metadata")
    places = [(found, name, place) for name, place in members.items() if name != "metadata"]
    places += [(meta, name, place) for name, place in text.list_members(begin)]
    is_whole = True
    for holder, name, place in places:
        if name == "managedFields":  # nothing needs them, and anything may be in them
            continue
        try:
            holder[name] = text.read(*place)
        except TooLarge:
            is_whole = False
            if holder is meta and name in ("labels", "annotations"):
                holder[name] = {
                    ours: text.read(*value)
                    for ours, value in text.list_members(place[0])
                    if ours.startswith(OUR_PREFIX)
                }
    if not isinstance(meta.get("name"), str):
        raise ValueError("no object with a name")
    return {**found, "metadata": meta, **({} if is_whole else {EXCESS: excess})}


def _find(members: dict[str, tuple[int, int]], name: str) -> tuple[int, int]:
    if name not in members:
        raise ValueError(f"no {name}")
    return members[name]


_PART = Bounds(size=2 << 20, values=50_000, depth=32)
_STRING_OR_BRACKET = re.compile(rb'"[^"]*"|[\[\]{}]')
_SCALAR = re.compile(rb"[^,\]}\s]*")
_SPACE = re.compile(rb"\s*")


class _Text:
    """A JSON text, of which single values are read."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        # The same, with nothing in it that only looks like the end of a string.
        plain = raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._plain = plain.replace(b"[]", b"00").replace(b"{}", b"00")  # what is empty is no news

    def read(self, begin: int, end: int) -> Any:
        """Return the value between two places. Raises ValueError, also where it is too large."""
        return parse_json(self.raw[begin:end], _PART)

    def list_members(self, at: int, open_ended: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, begin and end of each field of the object at a place.

        open_ended: the name of a field that may be cut off: nothing after its beginning is read.
        """
        at = self.skip_space(at)
        if self._plain[at : at + 1] != b"{":
            raise ValueError("no object")
        at = self.skip_space(at + 1)
        while self._plain[at : at + 1] != b"}":
            end = self._find_end(at)
            name = self.raw[at + 1 : end - 1].decode(errors="replace")
            begin = self.skip_space(self.skip_space(end) + 1)  # after the colon
            if name == open_ended:
                yield name, (begin, begin)
                return
            end = self._find_end(begin)
            yield name, (begin, end)
            at = self.skip_space(end)
            if self._plain[at : at + 1] == b",":
                at = self.skip_space(at + 1)

    def list_items(self, at: int) -> Iterator[tuple[int, int]]:
        """Yield begin and end of each item of the list at a place."""
        if self._plain[at : at + 1] != b"[":
            raise ValueError("no list")
        at = self.skip_space(at + 1)
        while self._plain[at : at + 1] != b"]":
            end = self._find_end(at)
            yield at, end
            at = self.skip_space(end)
            if self._plain[at : at + 1] == b",":
                at = self.skip_space(at + 1)

    def skip_space(self, at: int) -> int:
        """Return the first place from here on that is no space."""
        found = _SPACE.match(self._plain, at)
        return found.end() if found is not None else at

    def _find_end(self, at: int) -> int:
        if self._plain[at : at + 1] not in (b'"', b"[", b"{"):
            scalar = _SCALAR.match(self._plain, at)
            if scalar is None or scalar.end() == at:
                raise ValueError("no value")
            return scalar.end()
        depth = 0
        for token in _STRING_OR_BRACKET.finditer(self._plain, at):
            depth += _STEPS[self._plain[token.start()]]
            if depth == 0:
                return token.end()
        raise ValueError("cut off")


# --- a pod template


def find_excess_of_template(template: Any) -> str:
    """Return the field of a template that exceeds a bound, and the bound, as a phrase; "": none."""
    waiting: list[tuple[Any, int, _Path]] = [(template, 1, None)]
    values = characters = 0
    while waiting:
        value, depth, path = waiting.pop()
        if depth > MAX_TEMPLATE_DEPTH:
            return f"{_describe(path)} is nested more than {MAX_TEMPLATE_DEPTH} levels deep"
        if len(value) > MAX_ITEMS:
            return f"{_describe(path)} has more than {MAX_ITEMS:,} items"
        values += len(value)
        if values > MAX_TEMPLATE_VALUES:
            return f"has more than {MAX_TEMPLATE_VALUES:,} values"
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(name, str):
                characters += len(name)
            if isinstance(item, str):
                characters += len(item)
                if len(item) > MAX_TEXT_CHARACTERS:
                    what = _describe((path, name))
                    return f"{what} has more than {MAX_TEXT_CHARACTERS:,} characters"
            elif isinstance(item, dict | list):
                waiting.append((item, depth + 1, (path, name)))
        if characters > MAX_TEMPLATE_CHARACTERS:
            return f"has more than {MAX_TEMPLATE_CHARACTERS:,} characters"
    pod = template.get("spec")
    for field in ("containers", "initContainers"):
        containers = pod.get(field) if isinstance(pod, dict) else None
        if isinstance(containers, list) and len(containers) > MAX_CONTAINERS:
            return f"spec.{field} has more than {MAX_CONTAINERS} items"
    return ""


_Path = tuple[Any, Any] | None  # the path above, and the last step; None: the template


def _describe(path: _Path) -> str:
    """Return `spec.containers[0].env`, or its last steps where there are many."""
    steps: list[str] = []
    while path is not None and len(steps) < 8:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step[:63]}")
    return ("…" if path is not None else "") + "".join(reversed(steps)).removeprefix(".")
