"""`python -m pretune`: the controller. Ends with 0 at SIGTERM, with 2 on a bad setting, with 1 when it cannot go on."""

from __future__ import annotations

import asyncio
import logging
import sys

from pretune.settings import Installation, SettingError

log = logging.getLogger("pretune")


class OneLine(logging.Formatter):
    """A record is a line, whatever a message holds; a traceback follows only where one was asked for (DEBUG)."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        record.message = " ".join(record.message.split("\n"))
        return super().formatMessage(record)


def main() -> int:
    try:
        settings = Installation.of()
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logs(settings.level)
    from pretune.controller import run  # after the settings: it takes half a second

    try:
        asyncio.run(run(settings))
    except (asyncio.CancelledError, KeyboardInterrupt):
        log.info("stopped while waiting for the lease")
    except Exception as error:
        for one in causes(error):
            log.error("ended: %s: %s", type(one).__name__, one)
            log.debug("ended here", exc_info=one)
        return 1
    return 0


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
        [one for part in error.exceptions for one in causes(part)] if isinstance(error, BaseExceptionGroup) else [error]
    )


if __name__ == "__main__":
    sys.exit(main())
