"""What an engine wrote: asked whether it is done, looked at, judged, and read once more for the copy."""

from __future__ import annotations

import hashlib
import time
from typing import Dict, Optional, Tuple

from pretune.agent.claim.fs import Folder
from pretune.agent.context import Context
from pretune.agent.engine.probe import ask
from pretune.agent.engine.scan import Changed, Scan, read, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.vllm import files

LOOKS = 150  # at an engine that cannot be asked: until two in a row are equal


def ask_engine(context: Context, when: str) -> None:
    """AgentError EngineFailed where it does not answer as ready; one that cannot be asked over HTTP has `quiet` instead."""
    if context.task.ready is None:
        return
    said = ask(context.task.ready, context.task.headers)
    if said:
        raise AgentError(
            reasons.ENGINE_FAILED, "the engine did not answer as ready %s: %s" % (when, said)
        )


def look(folder: Folder) -> Optional[Scan]:
    """None while it changes under our eyes. Raises as `scan` does."""
    try:
        return scan(folder)
    except Changed:
        return None


def same_tactics(one: Optional[Scan], other: Optional[Scan]) -> bool:
    """Whether nothing that belongs into a bundle changed between two looks; what is foreign may (a log, say)."""
    if one is None or other is None:
        return False
    left, right = (
        {path: seen for path, seen in look.files.items() if files.known(path)}
        for look in (one, other)
    )
    return left == right


def quiet(folder: Folder, context: Context) -> Scan:
    """The folder's content; of an engine that cannot be asked over HTTP, once two looks are equal."""
    last = look(folder)
    if context.task.ready is not None and last is not None:
        return last
    for _ in range(LOOKS):
        time.sleep(context.settle_seconds)
        now = look(folder)
        if now is not None and same_tactics(now, last):
            return now
        last = now
    raise AgentError(
        reasons.ENGINE_NOT_READY,
        "the engine still writes its tactics after %.0f s" % (LOOKS * context.settle_seconds),
    )


def judge(folder: Folder, seen: Scan, context: Context) -> Tuple[files.Tactics, Dict[str, str]]:
    """Layout and entries, and the sha256 of every file as it was judged."""
    digests: Dict[str, str] = {}

    def reader(path: str) -> bytes:
        data = read(folder, path, files.LARGEST_FILE)
        digests[path] = hashlib.sha256(data).hexdigest()
        return data

    try:
        return files.read_tactics(
            list(seen.files), reader, context.task.gpus, context.task.command
        ), digests
    except files.Unsound as error:
        raise AgentError(error.reason, error.message) from None
    except Changed as error:
        raise AgentError(
            reasons.ENGINE_NOT_READY, "the engine is ready and still writes %s" % error
        ) from None
    except OSError as error:
        raise AgentError(reasons.UNREADABLE_FILES, "%s" % error) from None


def same(folder: Folder, path: str, digests: Dict[str, str]) -> bytes:
    """The file once more, for the copy: it has to be what was judged."""
    try:
        data = read(folder, path, files.LARGEST_FILE)
    except (Changed, OSError) as error:
        raise AgentError(
            reasons.ENGINE_NOT_READY, "%s changed while it was copied: %s" % (path, error)
        ) from None
    if hashlib.sha256(data).hexdigest() != digests[path]:
        raise AgentError(reasons.ENGINE_NOT_READY, "%s changed while it was copied" % path)
    return data


def short(path: str) -> str:
    """A path for a message: of long names, which are vLLM's keys of 64 hex, the beginning."""
    return "/".join(name if len(name) <= 48 else name[:12] + "…" for name in path.split("/"))
