"""`python -m pretune`: the controller; `python -m pretune webhook`: the webhook.

Either ends with 0 at SIGTERM, with 2 on a bad setting, with 1 when it cannot go on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pretune.config import ControllerSettings, SettingError, WebhookSettings

log = logging.getLogger("pretune")


class OneLineFormatter(logging.Formatter):
    """Writes each record as one line, whatever its message has in it.

    A traceback follows only where one was asked for (DEBUG).
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        record.message = " ".join(record.message.split("\n"))
        return super().formatMessage(record)


def main(arguments: Sequence[str]) -> int:
    """Run the process that the arguments name, and return its exit code."""
    try:
        log_level, run = select_process(arguments)
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logs(log_level)
    try:
        asyncio.run(run())
    except (asyncio.CancelledError, KeyboardInterrupt):
        log.info("stopped while waiting for the lease")
    except Exception as error:
        for cause in flatten_errors(error):
            log.error("ended: %s: %s", type(cause).__name__, cause)
            log.debug("ended here", exc_info=cause)
        return 1
    return 0


def select_process(
    arguments: Sequence[str],
) -> tuple[int, Callable[[], Coroutine[Any, Any, None]]]:
    """Return the log level, and what is to run. Raises SettingError.

    Its module is imported after the settings were read: the import takes half a second.
    """
    if not arguments:
        controller_settings = ControllerSettings.from_environment()
        from pretune.controller.main import run as run_controller

        return controller_settings.logging_level, lambda: run_controller(controller_settings)
    if list(arguments) == ["webhook"]:
        webhook_settings = WebhookSettings.from_environment()
        from pretune.webhook.main import run as run_webhook

        return webhook_settings.logging_level, lambda: run_webhook(webhook_settings)
    raise SettingError(
        f"unknown arguments {' '.join(arguments)!r}:"
        " none runs the controller, `webhook` the webhook"
    )


def configure_logs(level: int) -> None:
    """Log to stderr. Libraries log everything at DEBUG, else only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if level > logging.DEBUG:
        for library in ("kopf", "kubernetes", "asyncio", "aiohttp"):
            logging.getLogger(library).setLevel(logging.WARNING)


def flatten_errors(error: BaseException) -> list[BaseException]:
    """Return the errors that a group of errors consists of."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [cause for part in error.exceptions for cause in flatten_errors(part)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
