"""Asking the engine whether it is ready, as the kubelet does."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from typing import List, Mapping
from urllib.parse import SplitResult, urlsplit


def ask(
    url: str, headers: Mapping[str, str], tries: int = 3, pause: float = 1.0, timeout: float = 10.0
) -> str:
    """ "" when the URL answers 200 to 399, else what it said; certificates are not verified, redirects not followed.

    Like the kubelet it needs no proxy and takes any redirect for an answer. Several tries: one reset connection is no dead engine.
    """
    parts = urlsplit(url)
    said = ""
    for left in range(tries - 1, -1, -1):
        for host in _hosts(parts.hostname or ""):
            try:
                status = _get(parts, host, headers, timeout)
                if 200 <= status < 400:
                    return ""
                said = "%s answered %d" % (url, status)
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = "%s: %s" % (url, error or type(error).__name__)
        if left:
            time.sleep(pause)
    return said


def _hosts(host: str) -> List[str]:
    """The pod's own address too, after the loopback: an engine may listen there only, which is where the kubelet asks it."""
    if host not in ("127.0.0.1", "localhost"):
        return [host]
    try:
        return [
            host,
            *sorted(
                {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
                - {host}
            ),
        ]
    except OSError:
        return [host]


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
