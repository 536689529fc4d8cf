"""Keep one watch of the API server open: the only retry loop for watches in both processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from pretune.api.types import Object
from pretune.kube.types import UNREADABLE_CODES, ApiError

log = logging.getLogger(__name__)

# One of the words below, and the object; {} with LISTED and ENDED.
Change = tuple[str, Object]

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
LEFT_OUT = "LEFT_OUT"  # a namespace may not be read: {"metadata": {"namespace": its name}}
LISTED = "LISTED"  # everything that is there was sent as ADDED; what follows are changes
ENDED = "ENDED"  # the stream has ended; the next one begins with everything that is there

MIN_PAUSE_SECONDS = 1.0  # before a watch that failed is opened again; doubled at each failure
MAX_PAUSE_SECONDS = 30.0
LEFT_OUT_SECONDS = 60.0  # for which a namespace that may not be read is left out of a watch
QUEUED_CHANGES = 100  # of several namespaces, that wait to be taken over
SHORT_LIVED_SECONDS = 5.0  # a stream that ends earlier counts as failed, with or without an error


async def watch_with_backoff(
    what: str,
    open_watch: Callable[[], AsyncIterator[Change]],
    max_pause_seconds: float = MAX_PAUSE_SECONDS,
) -> AsyncIterator[Change]:
    """Yield the changes of one stream after the other, and (ENDED, {}) after each, until cancelled.

    `open_watch` opens a stream (`kube.client.Kubernetes.watch`). `what` names it in the log, which
    has each cause of a failure once, and when the watch is open again.

    A stream that fails is opened again after 1 s, 2 s, 4 s … `max_pause_seconds`; one that the API
    server ends, as it does with each after some time, is opened again at once. An exception other
    than those of the API and the network is a defect of ours, and is raised.
    """
    now = asyncio.get_running_loop().time
    pause, logged_cause = 0.0, ""
    while True:
        opened_at, listed, cause = now(), False, ""
        try:
            async for change, obj in open_watch():
                yield change, obj
                listed = listed or change == LISTED
                if listed and logged_cause:
                    log.info("%s: the watch is open again", what)
                    logged_cause = ""
        except (ApiError, OSError, ValueError) as error:  # ValueError: a line was cut off
            # A listed watch that receives nothing for too long is opened again to make sure.
            idle = listed and isinstance(error, TimeoutError)
            cause = "" if idle else str(error) or type(error).__name__
        yield ENDED, {}
        if cause and cause != logged_cause:
            log.warning("%s: the watch failed and is retried until it is open: %s", what, cause)
            logged_cause = cause
        short_lived = now() - opened_at < SHORT_LIVED_SECONDS
        if not short_lived:
            pause = 0.0
        if cause or short_lived:
            pause = min(max(MIN_PAUSE_SECONDS, 2 * pause), max_pause_seconds)
            await asyncio.sleep(pause)


async def watch_namespaces(
    open_watch: Callable[[str], AsyncIterator[Change]], namespaces: Sequence[str]
) -> AsyncIterator[Change]:
    """Yield the changes of a stream for each namespace, as if they were one stream.

    open_watch: opens the stream of a namespace. LISTED comes once, after all of them are listed.
    When one ends or fails, so does this one. A namespace that may not be read is left out for 60 s,
    which LEFT_OUT reports, and then the stream ends: it may have been deleted, and must not stop
    the others.
    """
    if len(namespaces) == 1:
        async for change in open_watch(namespaces[0]):
            yield change
        return
    queue: asyncio.Queue[Change | Exception] = asyncio.Queue(QUEUED_CHANGES)

    async def follow(namespace: str) -> None:
        listed = False
        end: Change | Exception = (ENDED, {})
        try:
            async for change in open_watch(namespace):
                listed = listed or change[0] == LISTED
                await queue.put(change)
        except Exception as error:
            if isinstance(error, ApiError) and error.code in UNREADABLE_CODES:
                log.warning("namespace %s is left out: %s", namespace, error)
                await queue.put((LEFT_OUT, {"metadata": {"namespace": namespace}}))
                if not listed:
                    await queue.put((LISTED, {}))
                await asyncio.sleep(LEFT_OUT_SECONDS)
            else:
                end = error
        await queue.put(end)

    tasks = [asyncio.create_task(follow(namespace)) for namespace in namespaces]
    try:
        unlisted = len(tasks)
        while True:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item[0] == ENDED:
                return
            unlisted -= item[0] == LISTED
            if item[0] != LISTED or not unlisted:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
