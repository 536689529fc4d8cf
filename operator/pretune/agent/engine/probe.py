"""Ask the engine whether it is ready, as the kubelet does."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from typing import List, Mapping
from urllib.parse import SplitResult, urlsplit


def probe_engine(
    url: str, headers: Mapping[str, str], tries: int = 3, pause: float = 1.0, timeout: float = 10.0
) -> str:
    """Return "" where the URL answers 200 to 399, else what went wrong.

    Like the kubelet it uses no proxy, follows no redirect and verifies no certificate. It tries
    several times, `pause` seconds apart: one failed connection does not mean that the engine is
    dead.
    """
    parts = urlsplit(url)
    failure = ""
    for left in range(tries - 1, -1, -1):
        for host in _hosts(parts.hostname or ""):
            try:
                status = _get(parts, host, headers, timeout)
                if 200 <= status < 400:
                    return ""
                failure = "%s answered %d" % (url, status)
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = "%s: %s" % (url, error or type(error).__name__)
        if left:
            time.sleep(pause)
    return failure


def read_status(url: str, timeout: float = 10.0) -> int:
    """Return the HTTP status that a URL is answered with, asked once; 0: no answer in time."""
    parts = urlsplit(url)
    for host in _hosts(parts.hostname or ""):
        try:
            return _get(parts, host, {}, timeout)
        except (OSError, http.client.HTTPException, ValueError):
            pass
    return 0


def _hosts(host: str) -> List[str]:
    """Return the host, and after the loopback the pod's own addresses.

    An engine may listen there only; the kubelet asks it there.
    """
    if host not in ("127.0.0.1", "localhost"):
        return [host]
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return [host]
    return [host, *sorted({str(address[4][0]) for address in found} - {host})]


def _get(parts: SplitResult, host: str, headers: Mapping[str, str], timeout: float) -> int:
    if parts.scheme.lower() == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
    try:
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        connection.request(
            "GET", target, headers={"User-Agent": "kube-probe/pretune", "Accept": "*/*", **headers}
        )
        return connection.getresponse().status
    finally:
        connection.close()
