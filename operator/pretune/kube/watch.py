"""Keep one watch of the API server open: the only retry loop for watches in both processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from pretune.api.types import Object
from pretune.kube.types import ApiError

log = logging.getLogger(__name__)

Change = tuple[str, Object]  # one of the words below, and the object; {} with LISTED and ENDED

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
LISTED = "LISTED"  # everything that is there was sent as ADDED; what follows are changes
ENDED = "ENDED"  # the stream has ended; the next one begins with everything that is there

MIN_PAUSE_SECONDS = 1.0  # before a watch that failed is opened again; doubled at each failure
MAX_PAUSE_SECONDS = 30.0
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
