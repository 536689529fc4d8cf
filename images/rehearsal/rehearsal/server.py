"""GET /health, once the warm-up is done."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.partition("?")[0] == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """A probe every two seconds would push the warm-up out of the log's tail."""


def listen(host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens; raises OSError if the port is taken."""
    return ThreadingHTTPServer((host, port), _Handler)
