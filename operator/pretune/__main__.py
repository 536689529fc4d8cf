"""`python -m pretune`: the controller; `python -m pretune webhook`: the webhook.

Either ends with 0 at SIGTERM, with 2 on a bad setting, with 1 when it cannot go on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pretune.config import Installation, SettingError, Webhook

log = logging.getLogger("pretune")


class OneLine(logging.Formatter):
    """A record is a line, whatever a message holds; a traceback follows only where one was asked for (DEBUG)."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        record.message = " ".join(record.message.split("\n"))
        return super().formatMessage(record)


def main(arguments: Sequence[str]) -> int:
    try:
        level, work = program(arguments)
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logs(level)
    try:
        asyncio.run(work())
    except (asyncio.CancelledError, KeyboardInterrupt):
        log.info("stopped while waiting for the lease")
    except Exception as error:
        for one in causes(error):
            log.error("ended: %s: %s", type(one).__name__, one)
            log.debug("ended here", exc_info=one)
        return 1
    return 0


def program(arguments: Sequence[str]) -> tuple[int, Callable[[], Coroutine[Any, Any, None]]]:
    """The log level, and what is to run. Its module is imported after the settings were read: it takes half a second."""
    if not arguments:
        installation = Installation.of()
        from pretune.controller.main import run as control

        return installation.level, lambda: control(installation)
    if list(arguments) == ["webhook"]:
        settings = Webhook.of()
        from pretune.webhook.main import run as answer

        return settings.level, lambda: answer(settings)
    raise SettingError(
        f"unknown arguments {' '.join(arguments)!r}: none runs the controller, `webhook` the webhook"
    )


def configure_logs(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if level > logging.DEBUG:
        for noisy in ("kopf", "kubernetes", "asyncio", "aiohttp"):
            logging.getLogger(noisy).setLevel(logging.WARNING)


def causes(error: BaseException) -> list[BaseException]:
    """What a group of errors is made of."""
    return (
        [one for part in error.exceptions for one in causes(part)]
        if isinstance(error, BaseExceptionGroup)
        else [error]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
