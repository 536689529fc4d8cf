"""Another mutating webhook, in this process, which the local cluster's API server can reach."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.kube import Kube, Object

Change = Callable[[Object], list[Object]]  # a pod to a JSON Patch
LABEL = "example.com/asked"  # of a pod: the test whose webhooks are asked about it


class OtherWebhook:
    """A webhook that is asked about pods with one value of the label.

    The API server asks webhooks in the order of their names. Other tests create pods in the same
    namespace at the same time, and have webhooks too: each test has its own value.
    """

    def __init__(self, kube: Kube, asked: str, name: str, folder: Path, change: Change) -> None:
        self._kube, self._name = kube, f"{name}-{asked}"
        host = urlsplit(kube.host).hostname or ""
        self._server = ThreadingHTTPServer((host, 0), _handler(change))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = _certificate(folder, host)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        kube.create(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": self._name},
                "webhooks": [
                    {
                        "name": "pods.example.com",
                        "clientConfig": {
                            "url": f"https://{host}:{self._server.server_port}/",
                            "caBundle": base64.b64encode(certificate.read_bytes()).decode(),
                        },
                        "admissionReviewVersions": ["v1"],
                        "sideEffects": "None",
                        "reinvocationPolicy": "IfNeeded",
                        "rules": [
                            {
                                "apiGroups": [""],
                                "apiVersions": ["v1"],
                                "operations": ["CREATE"],
                                "resources": ["pods"],
                            }
                        ],
                        "objectSelector": {"matchLabels": {LABEL: asked}},
                    }
                ],
            }
        )

    def close(self) -> None:
        self._kube.delete("MutatingWebhookConfiguration", "", self._name)
        self._server.shutdown()


def _certificate(folder: Path, host: str) -> tuple[Path, Path]:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    if not certificate.exists():
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        names = ["-subj", "/CN=other", "-addext", f"subjectAltName=IP:{host}", "-days", "2"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key


def _handler(change: Change) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = review["request"]
            patch = base64.b64encode(json.dumps(change(request["object"])).encode()).decode()
            answer = {
                "uid": request["uid"],
                "allowed": True,
                "patchType": "JSONPatch",
                "patch": patch,
            }
            body = json.dumps({**review, "request": None, "response": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    return Handler
