"""What an engine wrote into a part's folder: complete, judged, and read once more for the copy."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Dict, NamedTuple, Optional

from pretune.agent.claim.fs import Folder
from pretune.agent.context import Context
from pretune.agent.engine.probe import probe_engine, read_status
from pretune.agent.engine.scan import Changed, Scan, read, scan
from pretune.agent.errors import AgentError
from pretune.api import reasons
from pretune.engines.base import Part
from pretune.engines.evidence import Evidence, Unsound
from pretune.protocol import EMPTY

MAX_SCANS = 150  # of an engine that cannot be asked, until two in a row are equal


class PartContent(NamedTuple):
    """What a part's folder holds, as it was judged."""

    part: Part
    folder: Folder  # open
    scan: Scan
    evidence: Evidence
    digests: Dict[str, str]  # sha256 of each file, by path


def await_answer(context: Context) -> Context:
    """Return the context, in which the task names a URL where the engine answers as ready.

    That is for an engine whose probe is not over HTTP: the probe may have passed long before. One
    that answers 503 still loads, and is waited for up to context.loading_seconds. Any other answer,
    or none, ends the wait after context.answer_seconds: a server without these URLs never gives
    another. Then the context is as it was.
    """
    task = context.task
    if task.ready is not None or not task.health:
        return context
    began = loading_at = time.monotonic()
    while True:
        statuses = [(read_status(url), url) for url in task.health]
        ready = next((url for status, url in statuses if 200 <= status < 400), None)
        if ready is not None:
            context.log("engine: %s answers" % ready)
            return replace(context, task=replace(task, ready=ready))
        now = time.monotonic()
        is_loading = any(status == 503 for status, _ in statuses)
        if is_loading:
            loading_at = now
        if now - began >= context.loading_seconds or (
            not is_loading and now - loading_at >= context.answer_seconds
        ):
            context.log("engine: it does not answer as ready at %s" % ", ".join(task.health))
            return context
        time.sleep(context.settle_seconds)


def ask_engine(context: Context, when: str) -> None:
    """Raises AgentError EngineFailed where the engine does not answer as ready.

    One that cannot be asked over HTTP is not asked; wait_until_stable waits for it instead.
    """
    if context.task.ready is None:
        return
    answer = probe_engine(context.task.ready, context.task.headers)
    if answer:
        raise AgentError(
            reasons.ENGINE_FAILED, "the engine did not answer as ready %s: %s" % (when, answer)
        )


def scan_or_none(folder: Folder) -> Optional[Scan]:
    """Return what is in the folder; None while it changes. Raises as `scan` does."""
    try:
        return scan(folder)
    except Changed:
        return None


def is_same(part: Part, scan: Optional[Scan], other: Optional[Scan]) -> bool:
    """Whether nothing that belongs into a bundle changed between two scans.

    What is foreign may change (a log, say).
    """
    if scan is None or other is None:
        return False
    before, after = (
        {path: status for path, status in each.files.items() if part.is_known(path)}
        for each in (scan, other)
    )
    return before == after


def wait_until_stable(part: Part, folder: Folder, context: Context) -> Scan:
    """Return what is in the folder, once the engine does not write there any more.

    An engine that is asked over HTTP was ready before: one scan is enough. Otherwise two scans,
    context.settle_seconds apart, have to be equal. Raises AgentError EngineNotReady, and as `scan`
    does.
    """
    last = scan_or_none(folder)
    if context.task.ready is not None and last is not None:
        return last
    for _ in range(MAX_SCANS):
        time.sleep(context.settle_seconds)
        now = scan_or_none(folder)
        if now is not None and is_same(part, now, last):
            return now
        last = now
    waited = MAX_SCANS * context.settle_seconds
    raise AgentError(
        reasons.ENGINE_NOT_READY,
        "the engine still writes its %s after %.0f s" % (part.name, waited),
    )


def judge(part: Part, folder: Folder, scan: Scan, context: Context) -> PartContent:
    """Return the scanned folder's content, each file checked. Raises AgentError."""
    digests: Dict[str, str] = {}

    def read_file(path: str) -> bytes:
        data = read(folder, path, part.max_file_bytes)
        digests[path] = hashlib.sha256(data).hexdigest()
        return data

    task = context.task
    try:
        evidence = part.judge(list(scan.files), read_file, task.gpus, task.command)
    except Unsound as error:
        raise AgentError(error.reason, error.message) from None
    except Changed as path:
        raise AgentError(
            reasons.ENGINE_NOT_READY, "the engine is ready and still writes %s" % path
        ) from None
    except OSError as error:
        raise AgentError(reasons.UNREADABLE_FILES, "%s" % error) from None
    return PartContent(part, folder, scan, evidence, digests)


def empty_content(part: Part, folder: Folder) -> PartContent:
    """Return the content of a part of which there is nothing. No file of the folder is read."""
    return PartContent(part, folder, Scan(), Evidence(EMPTY, 0, [], "none"), {})


def read_verified(content: PartContent, path: str) -> bytes:
    """Return a file's bytes, read again for the copy: they have to be those that were judged.

    Raises AgentError EngineNotReady.
    """
    try:
        data = read(content.folder, path, content.part.max_file_bytes)
    except (Changed, OSError) as error:
        raise AgentError(
            reasons.ENGINE_NOT_READY, "%s changed while it was copied: %s" % (path, error)
        ) from None
    if hashlib.sha256(data).hexdigest() != content.digests[path]:
        raise AgentError(reasons.ENGINE_NOT_READY, "%s changed while it was copied" % path)
    return data


def short(path: str) -> str:
    """Return a path for a message: long names, which are keys of 64 hex, are cut."""
    return "/".join(name if len(name) <= 48 else name[:12] + "…" for name in path.split("/"))
