"""A small client of the API server, with the administrator's token.

Objects are plain dicts.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any

from localcluster.places import API_ADDRESS, PKI

Object = dict[str, Any]


class ApiError(Exception):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Opens a connection for each call.

    They are few, and a server that was restarted needs no special care.
    """

    def __init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=str(PKI / "ca.crt"))
        self._token = (PKI / "admin.token").read_text().strip()

    def call(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json"
    ) -> Object:
        """Send a request; return the object that was answered.

        Raises ApiError for an error status, OSError without a server.
        """
        response = self._send(method, path, body, content, timeout=10)
        answer: Object = json.loads(response.read())
        return answer

    def watch(self, path: str, seconds: int) -> Iterator[Object]:
        """Yield all objects of a collection, then each that is added or changed, for so many seconds."""
        listed = self.call("GET", path)
        yield from listed["items"]
        version = listed["metadata"]["resourceVersion"]
        query = f"{path}?watch=1&resourceVersion={version}&timeoutSeconds={seconds}"
        for line in self._send("GET", query, None, "application/json", timeout=seconds + 10):
            event = json.loads(line)
            if event["type"] == "ERROR":  # say, the version is too old: the caller lists again
                return
            if event["type"] != "DELETED":
                yield event["object"]

    def _send(
        self, method: str, path: str, body: Object | None, content: str, timeout: float
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(
            API_ADDRESS, 6443, timeout=timeout, context=self._tls
        )
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        if response.status >= 400:
            raise ApiError(response.status, response.read().decode(errors="replace"))
        return response
