"""The API server: nothing listens before the engine is warm."""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Tuple


class _IPv6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def listen(host: str, port: int, version: str, model: str) -> ThreadingHTTPServer:
    """A server that answers /health, /version and /v1/models; `serve_forever` runs it. Raises OSError if the port is taken."""
    answers: Dict[str, Tuple[str, bytes]] = {
        "/health": ("text/plain", b""),
        "/version": ("application/json", json.dumps({"version": version}).encode()),
        "/v1/models": (
            "application/json",
            json.dumps({"object": "list", "data": [{"id": model, "object": "model"}]}).encode(),
        ),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = answers.get(self.path.partition("?")[0], ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """vLLM logs requests; a probe every two seconds would push the warm-up out of the log's tail."""

    server = _IPv6Server if ":" in host else ThreadingHTTPServer
    return server((host, port), Handler)
