"""The intake (intake.py) for a client that parses what it reads: kopf, in the controller.

kopf parses with a recursion limit, and ends with the process where that is exceeded. Anybody who
may write a Job can give it managedFields that are nested 2,000 levels deep (seen on 1.34).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from pretune.intake import ENVELOPE, PAGE, TooLarge, cut_event, cut_list, find_excess, parse_json
from pretune.kube.client import MAX_OBJECT_BYTES

log = logging.getLogger(__name__)


class BoundedResponse(aiohttp.ClientResponse):
    """An answer of the API server, of which `json()` and the lines of a watch are bounded."""

    async def start(self, connection: Any) -> BoundedResponse:
        await super().start(connection)
        if "watch" in self.url.query and self.ok:
            self.content = _BoundedLines(self.content)  # type: ignore[assignment]
        return self

    async def json(self, **_: Any) -> Any:
        """Return the answer; of a list those objects that are too large are cut down."""
        raw = await self.read()
        try:
            return parse_json(raw, PAGE)
        except TooLarge as error:
            log.warning("%s %s: it is not read as a whole", self.url.path, error)
            return await asyncio.to_thread(cut_list, raw)


class _BoundedLines:
    """A stream of watch events; where an object is too large, only what identifies it."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield line after line, whatever the size."""
        while line := await self._content.readline(max_line_length=MAX_OBJECT_BYTES):
            if excess := find_excess(line, ENVELOPE):
                log.warning("a watch event %s: it is not read as a whole", excess)
                event = await asyncio.to_thread(cut_event, line)
                line = json.dumps(event).encode() + b"\n"
            yield line
