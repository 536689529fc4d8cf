"""Ports for programs that a test starts."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_ATTEMPTS = 1_000


def free_port(host: str = "127.0.0.1") -> int:
    """Return a free port outside the kernel's ephemeral range.

    A port of that range may go to any connection before the program listens. Raises OSError if
    no port of the host can be bound.
    """
    for _ in range(_ATTEMPTS):
        port = random.SystemRandom().randint(10_000, 30_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind((host, port))
            return port
    raise OSError(f"no port of {host} can be bound")
