"""Where vLLM keeps tactics when no variable says so: what an import looks for.

A claim may hold a whole home folder with its models, so it is not searched: only the places are
opened where vLLM 0.25 to 0.33 keep tactics, from wherever on the way there the person began; or
that folder is an override folder, one key folder, or a managed store.
"""

from __future__ import annotations

import re
from typing import Iterator, Pattern, Tuple

from pretune.engines.evidence import Found, Tree
from pretune.protocol import Versions

# Below the folder of caches, $XDG_CACHE_HOME, which is ~/.cache: files of a rank or of all under
# <FlashInfer's version>/<architectures>/<key>/, the managed store's under v2/ (0.25 to 0.33).
DEFAULT_ROOT = (".cache", "vllm", "flashinfer_autotune_cache")
DEFAULT_STORE = (".cache", "flashinfer", "autotune")
VERSION_FOLDER = re.compile(r"\d+\.\d+[0-9A-Za-z.+_-]*")
ARCHITECTURES_FOLDER = re.compile(r"\d+[a-z]?(_\d+[a-z]?)*")  # "90a", "100a_103a"
KEY_FOLDER = re.compile(r"[0-9a-f]{64}")
ENVIRONMENT_FOLDER = re.compile(r"[0-9a-f]{16}")
CONFIGS_FILE = re.compile(r"autotune_configs(_dp\d{1,6}_rank\d{1,6})?\.json")

Names = Tuple[str, ...]


def find(tree: Tree, at: Names) -> Iterator[Found]:
    """Yield the tactics at or below a folder, some of them twice."""
    yield from _around(tree, at)
    for root in _roots(tree, at):
        yield from _in(tree, root)


def _roots(tree: Tree, at: Names) -> Iterator[Names]:
    yield at
    yield from _below(tree, at, ARCHITECTURES_FOLDER)
    yield from _below(tree, at, VERSION_FOLDER)
    for start in range(len(DEFAULT_STORE)):
        yield at + DEFAULT_STORE[start:]
    for start in range(len(DEFAULT_ROOT) + 1):
        base = at + DEFAULT_ROOT[start:]
        for version in _below(tree, base, VERSION_FOLDER):
            yield from _below(tree, version, ARCHITECTURES_FOLDER)
        # Where FlashInfer knows no architecture the last two folders of its own path are these
        # (seen: 0.33.0 on a CPU).
        yield from _below(tree, (*base, "flashinfer"), VERSION_FOLDER)


def _around(tree: Tree, at: Names) -> Iterator[Found]:
    """Yield the folder itself, where it is not above tactics, but one of them."""
    is_environment = len(at) > 1 and at[-2] == "v2" and ENVIRONMENT_FOLDER.fullmatch(at[-1])
    if is_environment and _is_store(tree, at):
        yield _found(at[:-2], at[-2:])
    elif at and at[-1] == "v2":
        yield from (found for found in _in(tree, at[:-1]) if found.inner[0] == "v2")
    elif at and tree.has(at, CONFIGS_FILE.fullmatch):
        yield _found(at[:-1], at[-1:])


def _in(tree: Tree, root: Names) -> Iterator[Found]:
    for store in _below(tree, (*root, "v2"), ENVIRONMENT_FOLDER):
        if _is_store(tree, store):
            yield _found(root, store[-2:])
    for name in tree.folders(root, KEY_FOLDER.fullmatch):
        is_key = KEY_FOLDER.fullmatch(name) is not None
        # That another folder (lost+found) cannot be opened is of no interest.
        if tree.has((*root, name), CONFIGS_FILE.fullmatch, is_noted=is_key):
            yield _found(root, (name,))


def _found(root: Names, inner: Names) -> Found:
    versions = [name for name in root[-2:] if VERSION_FOLDER.fullmatch(name)]
    return Found(root, inner, Versions(flashinfer=versions[-1] if versions else ""))


def _is_store(tree: Tree, at: Names) -> bool:
    return tree.has(at, lambda name: name in ("manifest.json", "entries"))


def _below(tree: Tree, at: Names, form: Pattern[str]) -> Iterator[Names]:
    names = tree.folders(at, KEY_FOLDER.fullmatch)
    yield from ((*at, name) for name in names if form.fullmatch(name))
