"""Folders of tactics that vLLM wrote by itself, found below a folder that a person named: nothing else is looked into.

A claim may hold a whole home folder with its models, so it is not searched: only the places are opened where vLLM 0.25 to 0.33 keep
tactics (engines/vllm/files.py, DEFAULT_ROOT and DEFAULT_STORE), from wherever on the way there the person began; or that folder is an
override folder, one key folder, or a managed store.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Pattern, Tuple

from pretune.agent.claim.fs import Folder
from pretune.agent.engine.scan import Scan, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.vllm import files

MOST = 200  # key folders that are looked into


@dataclass(frozen=True)
class Written:
    """One engine configuration's tactics: `root` stands for the override folder, `inner` is what lies below it, by name."""

    root: Tuple[str, ...]  # from the claim's root
    inner: Tuple[str, ...]  # ("<key>",) or ("v2", "<environment>")

    @property
    def path(self) -> str:
        return "/".join(self.root + self.inner)

    @property
    def flashinfer(self) -> str:
        """The version that the default root's folder is named after, or ""."""
        named = [name for name in self.root[-2:] if files.VERSION_FOLDER.fullmatch(name)]
        return named[-1] if named else ""


class Search:
    """From one folder of an open claim. `odd` says what was in the way: links, and what may not be read."""

    def __init__(self, top: Folder) -> None:
        self.top = top
        self.odd: List[str] = []

    def written(self, at: Tuple[str, ...]) -> List[Written]:
        """All that lie where vLLM puts them, each once, in the order of their paths.

        Raises AgentError ImportRefused where they are too many, OSError.
        """
        found = {*self._around(at)}
        for root in self._roots(at):
            found.update(self._in(root))
            if len(found) > MOST:
                raise AgentError(
                    reasons.IMPORT_REFUSED,
                    "more than %d folders of tactics below %s: name one of them"
                    % (MOST, shown(at)),
                )
        return sorted(found, key=lambda one: one.path)

    def _roots(self, at: Tuple[str, ...]) -> Iterator[Tuple[str, ...]]:
        yield at
        yield from self._named(at, files.ARCHITECTURES_FOLDER)
        yield from self._named(at, files.VERSION_FOLDER)
        for start in range(len(files.DEFAULT_STORE)):
            yield at + files.DEFAULT_STORE[start:]
        for start in range(len(files.DEFAULT_ROOT) + 1):
            base = at + files.DEFAULT_ROOT[start:]
            for version in self._named(base, files.VERSION_FOLDER):
                yield from self._named(version, files.ARCHITECTURES_FOLDER)
            # Where FlashInfer knows no architecture the last two folders of its own path are these (seen: 0.33.0 on a CPU).
            yield from self._named((*base, "flashinfer"), files.VERSION_FOLDER)

    def _around(self, at: Tuple[str, ...]) -> Iterator[Written]:
        """Where the folder is not above tactics, but one of them."""
        if (
            len(at) > 1
            and at[-2] == "v2"
            and files.ENVIRONMENT_FOLDER.fullmatch(at[-1])
            and self._is_store(at)
        ):
            yield Written(at[:-2], at[-2:])
        elif at and at[-1] == "v2":
            yield from (one for one in self._in(at[:-1]) if one.inner[0] == "v2")
        elif at and self._has(at, files.CONFIGS_FILE.fullmatch):
            yield Written(at[:-1], at[-1:])

    def _in(self, root: Tuple[str, ...]) -> Iterator[Written]:
        for store in self._named((*root, "v2"), files.ENVIRONMENT_FOLDER):
            if self._is_store(store):
                yield Written(root, store[-2:])
        for name in self._folders(root):
            key = files.KEY_FOLDER.fullmatch(name) is not None
            if self._has(
                (*root, name), files.CONFIGS_FILE.fullmatch, told=key
            ):  # of others (lost+found) nobody need hear
                yield Written(root, (name,))

    def _is_store(self, at: Tuple[str, ...]) -> bool:
        return self._has(at, lambda name: name in ("manifest.json", "entries"))

    def _named(self, at: Tuple[str, ...], form: Pattern[str]) -> Iterator[Tuple[str, ...]]:
        yield from ((*at, name) for name in self._folders(at) if form.fullmatch(name))

    def _folders(self, at: Tuple[str, ...]) -> List[str]:
        """The names of the folders in a folder; a link in a key's place is odd."""
        folder = self._open(at)
        if folder is None:
            return []
        found = []
        with folder:
            for name in folder.list_names():
                seen = folder.lstat(name)
                if seen is not None and stat.S_ISDIR(seen.st_mode):
                    found.append(name)
                elif (
                    seen is not None
                    and stat.S_ISLNK(seen.st_mode)
                    and files.KEY_FOLDER.fullmatch(name)
                ):
                    self._note("%s is a link; it was not followed" % "/".join((*at, name)))
        return found

    def _has(self, at: Tuple[str, ...], test: Callable[[str], object], told: bool = True) -> bool:
        folder = self._open(at, told)
        if folder is None:
            return False
        with folder:
            return any(test(name) for name in folder.list_names())

    def _open(self, at: Tuple[str, ...], told: bool = True) -> Optional[Folder]:
        """None where there is none; what is there and cannot be opened is odd."""
        try:
            return self.top.open_path(list(at))
        except FileNotFoundError:
            return None
        except PermissionError:
            words = may_not_read(self.top, at)
        except AgentError as problem:
            words = problem.message
        if told and words not in self.odd:
            self._note(words)
        return None

    def missing(self, at: Tuple[str, ...]) -> bool:
        """Whether there is nothing of this name."""
        folder = self._open(at)
        if folder is not None:
            os.close(folder.fd)
        return folder is None and not self.odd

    def _note(self, words: str) -> None:
        if words not in self.odd:
            self.odd.append(words)


def below(top: Folder, one: Written) -> Scan:
    """What is in it, by paths from its root, as if this were an override folder. Raises as `scan` does."""
    with top.open_path([*one.root, *one.inner]) as folder:
        found = scan(folder)
    inner = "/".join(one.inner)
    return Scan(
        {"%s/%s" % (inner, path): seen for path, seen in found.files.items()},
        ["/".join(one.inner[: n + 1]) for n in range(len(one.inner))]
        + ["%s/%s" % (inner, path) for path in found.folders],
    )


def may_not_read(top: Folder, at: Tuple[str, ...]) -> str:
    """Which part of the path keeps this uid out, and whose it is; "" where none does."""
    for depth in range(len(at)):
        with top.open_path(list(at[:depth])) as parent:
            seen = parent.lstat(at[depth])
            if seen is None:
                return ""
            try:
                if stat.S_ISDIR(seen.st_mode):
                    os.close(parent.open_folder(at[depth]).fd)
                elif stat.S_ISREG(seen.st_mode):
                    os.close(parent.open_file(at[depth])[0])
            except PermissionError:
                return _whose("/".join(at[: depth + 1]), seen)
    return ""


def _whose(path: str, seen: os.stat_result) -> str:
    return (
        "%s belongs to uid %d, gid %d (mode %04o), and uid %d, gid %d, as which the engine runs, may not read it"
        % (
            *(path, seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)),
            *(os.geteuid(), os.getegid()),
        )
    )


def shown(at: Tuple[str, ...]) -> str:
    """A folder of the claim, for a person."""
    return "/".join(at) or "the claim's root"
