"""Why an engine tuned again although its pod was given a bundle: the first cause that is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pretune.api.status import BundleStatus
from pretune.api.types import Object
from pretune.engines.logs import PARTIAL
from pretune.podspec import canonical
from pretune.podspec.template import engine_type
from pretune.policy.model import StartObservation
from pretune.policy.pods.consumers import Consumer, digest_of
from pretune.protocol import SEEDED

# How a message names what the engine's log compares; others are named as the log does.
COMPARED_NAMES = {"gpu": "GPU", "flashinfer_version": "FlashInfer version"}
MAX_FLAG = 80  # characters of a flag's name


def find_retune_cause(
    pod: Consumer,
    engine: Object | None,
    observation: StartObservation,
    bundle: BundleStatus | None,
    warm_folders: set[str],
) -> str:
    """Return why a consumer that had its bundle tuned.

    engine: the container as the pod's author wrote it; None: unknown. bundle: what the pod was
    given. warm_folders: the folders in which other pods found that bundle.
    """
    summary, seed = observation.log_summary, pod.seed_report
    if seed is not None and seed.reason != SEEDED:
        return f"its folder was empty: {seed.reason}: {seed.message}"
    if summary.differences:
        return "; ".join(
            f"{COMPARED_NAMES.get(each.name, each.name)} differs:"
            f" the bundle has {each.saved}, the pod {each.current}"
            for each in summary.differences
        )
    image = digest_of((bundle.engine_image if bundle is not None else None) or "")
    has_moved = image and digest_of(pod.image_id) not in ("", image)
    moved = "the image under its name is another one than was tuned; " if has_moved else ""
    if summary.result == PARTIAL:
        operations = ", ".join(summary.operations) or "operations that the log does not name"
        number = "1 entry is" if summary.new == 1 else f"{summary.new} entries at most are"
        return f"{moved}{number} not in the bundle, of {operations}"
    if warm_folders & set(summary.folders):
        folders = _shorten(summary.folders)
        return (
            f"{moved}it looked in {folders}, where other pods found it, and loaded nothing:"
            " its ranks did not agree, or it may not read the files"
        )
    others = _shorten(warm_folders) if warm_folders else ""
    miss = engine_type(engine or {}).explain_miss(summary, _shorten(summary.folders), others)
    if summary.managed:  # the folder is named after the environment, not after the configuration
        return f"{moved}{miss}"
    references = _list_references(engine)
    return f"{moved}{miss}{_describe_differences(observation.differences, references)}"


def _shorten(folders: Iterable[str]) -> str:
    names = sorted(f"{name[:12]}…" if len(name) > 12 else name for name in folders)
    return ", ".join(names) or "(not named)"


def _describe_differences(differences: Sequence[str], references: Sequence[str]) -> str:
    if differences:
        return f"; in its pod, other than in the template: {', '.join(differences)}"
    if references:
        return f"; its template leaves open: {', '.join(references)}"
    return (
        "; its engine's image, command, args and env are the template's: look for what they name"
        " (a model's config.json, a file of arguments, values in ConfigMaps)"
    )


# --- where a pod differs from its template


def find_differences(engine: Object, template: Object) -> tuple[str, ...]:
    """Return the names of variables and flags in which a container differs from the template's.

    Never a value. What we add ourselves does not count.
    """
    ours = engine_type(template).variables
    own = canonical.program(engine, without=ours)
    written = canonical.program(template, without=ours)
    names = [
        f"env {name}"
        for name in sorted({**own["env"], **written["env"]})
        if own["env"].get(name) != written["env"].get(name)
    ]
    for field in ("command", "args"):
        own_words, written_words = list(engine.get(field) or ()), list(template.get(field) or ())
        if own_words != written_words:
            names.append(" ".join([field, *_differing_flags(own_words, written_words)]))
    names += [
        field
        for field in ("image", "envFrom")
        if canonical.to_json(own[field]) != canonical.to_json(written[field])
    ]
    return tuple(names)


def _differing_flags(own: Sequence[str], written: Sequence[str]) -> list[str]:
    """Return the flags whose words differ, each once: `--max-num-seqs`."""
    differing = set(_with_flags(own)) ^ set(_with_flags(written))
    return sorted({flag for flag, _ in differing if flag})


def _with_flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word with the flag that it belongs to; "": it comes before any flag."""
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0][:MAX_FLAG]
        yield flag, word


def _list_references(engine: Object | None) -> list[str]:
    """Return the variables whose values the template does not hold: they may differ between pods.

    Only those that the engine reads, or that an argument names.
    """
    if engine is None:
        return []
    variables, prefix = engine.get("env") or (), engine_type(engine).variable_prefix
    texts = [*(engine.get("command") or ()), *(engine.get("args") or ())]
    texts += [str(variable.get("value") or "") for variable in variables]
    text = " ".join(texts)
    found = []
    for variable in variables:
        name, source = variable["name"], next(iter(variable.get("valueFrom") or ()), "")
        is_read = bool(prefix) and name.startswith(prefix)
        if source and (is_read or f"$({name})" in text):
            found.append(f"env {name} ({source})")
    return [*found, *("envFrom" for _ in (engine.get("envFrom") or ())[:1])]
