"""A webhook that changes nothing, built like ours: aiohttp, TLS, an AdmissionReview in and out.

    python -m tests.bench.noop_webhook PORT FOLDER

FOLDER holds tls.crt and tls.key.
"""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path

from aiohttp import web


async def answer_review(request: web.Request) -> web.Response:
    admission_request = json.loads(await request.read())["request"]
    response = {"uid": admission_request["uid"], "allowed": True}
    answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return web.Response(body=json.dumps(answer).encode(), content_type="application/json")


def main() -> None:
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/pods", answer_review)
    web.run_app(app, port=port, ssl_context=context, access_log=None, print=lambda *_: None)


if __name__ == "__main__":
    main()
