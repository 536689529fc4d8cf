"""Makes the documents that only repeat what the code says: `python -m tools.docs` writes them, `--check` says which are not current."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools import crd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "operator"))

from pretune.api.advice import ADVICE  # noqa: E402
from pretune.api.delivery_reasons import DELIVERIES  # noqa: E402
from pretune.api.names import STATES  # noqa: E402
from pretune.api.reasons import REASONS, Entry  # noqa: E402

VALUES = ROOT / "charts/pretune/values.yaml"
CHART_README = ROOT / "charts/pretune/README.md"
BEGIN, END = "<!-- values: made by `make docs` -->", "<!-- end of values -->"


# --- docs/api.md


def api() -> str:
    """The reference of the API, from the descriptions, bounds and rules of the CRD."""
    found = list(crd.fields())
    out = [
        "# AutotuneCache: every field",
        "",
        "Made from the chart's CRD by `make docs`. The same words come from `kubectl explain autotunecache --recursive`.",
        "",
        str(crd.schema()["description"]),
        "",
    ]
    for part in ("spec", "status"):
        out += [f"## {part}", "", "| field | type | default | what it does |", "|---|---|---|---|"]
        out += [_row(one) for one in found if one.path.startswith(part + ".")]
        out += [""]
    out += [
        "## Rules",
        "",
        "Beside types and bounds, the API server refuses what breaks one of these.",
        "",
    ]
    out += [f"- {where}: {rule['message']}" for where, rule in rules()]
    return "\n".join(out) + "\n"


def rules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule (CEL) with the field that it stands on; lists with unique keys count as rules."""
    yield from (("`metadata`", rule) for rule in crd.schema().get("x-kubernetes-validations", ()))
    for field in crd.fields():
        name = f"`{field.path}`"
        yield from ((name, rule) for rule in field.schema.get("x-kubernetes-validations", ()))
        if field.path.startswith("spec.") and field.schema.get("x-kubernetes-list-type") == "map":
            keys = " and ".join(field.schema["x-kubernetes-list-map-keys"])
            yield name, {"message": f"no two items may have the same {keys}"}
        if field.path.startswith("spec.") and field.schema.get("x-kubernetes-list-type") == "set":
            yield name, {"message": "no item may stand there twice"}


def _row(field: crd.Field) -> str:
    one = field.schema
    default = (
        f"`{_flow(one['default'])}`" if "default" in one else ("required" if field.required else "")
    )
    text = " ".join(filter(None, [str(one.get("description", "")), _bounds(one)]))
    return f"| `{field.path.partition('.')[2]}` | {_type(one)} | {default} | {_cell(text)} |"


def _type(one: dict[str, Any]) -> str:
    if one.get("x-kubernetes-int-or-string"):
        return "quantity"
    if one.get("type") == "array":
        inner = one["items"].get("type", "object")
        return f"list of {inner}s"
    if one.get("type") == "object" and "additionalProperties" in one:
        return "map of strings"
    return {"date-time": "time"}.get(one.get("format", ""), str(one["type"]))


def _bounds(one: dict[str, Any]) -> str:
    words = []
    enum = one.get("enum") or (one.get("items") or {}).get("enum")
    if enum:
        words.append("One of " + ", ".join(f"`{value}`" for value in enum if value != "") + ".")
    if "minimum" in one or "maximum" in one:
        words.append(f"{one.get('minimum', '')} to {one.get('maximum', '')}.")
    for name, unit in (
        ("maxLength", "characters"),
        ("maxItems", "items"),
        ("maxProperties", "keys"),
    ):
        if name in one and not enum:
            words.append(f"At most {one[name]} {unit}.")
    return " ".join(words)


# --- docs/reasons.md


def reasons() -> str:
    """The closed lists of reasons, from operator/pretune/api: of a cache, of a pod's delivery, and of advice."""
    states = ", ".join(f"`{one}`" for one in STATES)
    out = [
        "# Reasons, and what to do",
        "",
        "Generated from `operator/pretune/api` by `make docs`. There are three lists, and no reasons beside them:",
        "[of a cache](#of-a-cache), [of a pod](#of-a-pod), and [advice](#advice). The message beside a reason has the names.",
        "Where to read them:",
        "",
        "```sh",
        "kubectl get autotunecaches -o wide          # the reason and message of Ready",
        "kubectl describe autotunecache NAME         # every condition, bundle and advice, and the events",
        "kubectl wait autotunecache NAME --for=condition=Ready --timeout=2h",
        "kubectl get pods -l pretune.dev/cache -o custom-columns=\\",
        "'POD:.metadata.name,DELIVERY:.metadata.annotations.pretune\\.dev/delivery,WHY:.metadata.annotations.pretune\\.dev/reason'",
        "```",
        "",
        "## Of a cache",
        "",
        "In its conditions, in its bundles (`status.bundles[].reason`), and in its events.",
        "`Ready` is True once every target's bundle of the newest source is sealed. `Reconciling` is True while it goes on by itself,",
        f"`Stalled` while somebody has to act. `StorageReady` is about the claim only. A bundle's state is one of {states}.",
        "",
        "“Tried again” means: as often as `spec.tuning.maxAttempts` says, after 30 s, 2 min, 8 min and so on. Once that is used up,",
        "and for every failure that is not tried again, a changed engine or `spec.revision` starts anew.",
        "",
        "| reason | what it means | what to do | tried again |",
        "|---|---|---|---|",
    ]
    out += [
        f"| `{name}` | {_cell(one.means)} | {_cell(one.remedy)} | {'yes' if one.is_retried else ''} |"
        for name, one in REASONS.items()
    ]
    out += [
        "",
        "## Of a pod",
        "",
        "Why a pod with the label `pretune.dev/cache` was given its bundle, waits for it, or was left as it is. The webhook says it when",
        "the pod is made, in the annotation `pretune.dev/reason`; where nothing was given it warns the person at the terminal as well.",
        "A labelled pod without the annotation was made while no webhook answered, or in a namespace that the chart's value",
        "`webhook.namespaceSelector` leaves out: it started as it would without pretune.",
        "",
        *_table(DELIVERIES),
        "",
        "## Advice",
        "",
        "What a person should change though everything works: in `status.warnings` of the cache, and as an event of type Warning when it",
        "appears.",
        "",
        *_table(ADVICE),
    ]
    return "\n".join(out) + "\n"


def _table(reasons: Mapping[str, Entry]) -> list[str]:
    rows = [
        f"| `{name}` | {_cell(one.means)} | {_cell(one.remedy)} |" for name, one in reasons.items()
    ]
    return ["| reason | what it means | what to do |", "|---|---|---|", *rows]


# --- the table in the chart's README


def values() -> str:
    """The chart's README with the table of its values, each described by the comment above it."""
    text = CHART_README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = ["| value | default | what it does |", "|---|---|---|"]
    table += [f"| `{path}` | `{default}` | {_cell(what)} |" for path, default, what in described()]
    return before + BEGIN + "\n" + "\n".join(table) + "\n" + END + after


def described() -> Iterator[tuple[str, str, str]]:
    """(path, default, description) of every value that has a comment above it."""
    text = VALUES.read_text()
    yield from _described(yaml.compose(text, Loader=yaml.SafeLoader), text.splitlines(), "")


def _described(node: Any, lines: list[str], path: str) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        here = f"{path}.{key.value}" if path else str(key.value)
        comment = _comment_above(lines, key.start_mark.line, key.start_mark.column)
        if comment:
            default = yaml.safe_load(yaml.serialize(value, Dumper=yaml.SafeDumper))
            yield here, _flow(default), comment
        elif isinstance(value, yaml.MappingNode):
            yield from _described(value, lines, here)
        else:
            raise ValueError(f"values.yaml: {here} has no comment above it")


def _comment_above(lines: list[str], line: int, column: int) -> str:
    words: list[str] = []
    while line > 0 and lines[line - 1].startswith(" " * column + "# "):
        line -= 1
        words.insert(0, lines[line].strip()[2:])
    return " ".join(words)


# --- together


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        .strip()
        .removesuffix("\n...")
    )


DOCUMENTS: dict[Path, Callable[[], str]] = {
    ROOT / "docs/api.md": api,
    ROOT / "docs/reasons.md": reasons,
    CHART_README: values,
}


def stale() -> list[Path]:
    """The documents that `make docs` would change."""
    return [
        path for path, make in DOCUMENTS.items() if not path.exists() or path.read_text() != make()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        for path in stale():
            print(f"{path.relative_to(ROOT)} is not current: run `make docs`", file=sys.stderr)
        return 1 if stale() else 0
    for path in stale():
        path.write_text(DOCUMENTS[path]())
        print(f"{path.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
