"""What ends an agent container's work."""

from __future__ import annotations


class AgentError(Exception):
    """The work cannot be done; the container's report has this reason and message.

    reason: one of those that protocol.Report names.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__("%s: %s" % (reason, message))
        self.reason, self.message = reason, message
