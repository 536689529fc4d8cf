"""A webhook that changes nothing, built as ours is: aiohttp, TLS, an AdmissionReview parsed and one answered.

python -m tests.bench.noop PORT FOLDER        FOLDER holds tls.crt and tls.key
"""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path

from aiohttp import web


async def pods(request: web.Request) -> web.Response:
    asked = json.loads(await request.read())["request"]
    response = {"uid": asked["uid"], "allowed": True}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return web.Response(body=json.dumps(review).encode(), content_type="application/json")


def main() -> None:
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/pods", pods)
    web.run_app(app, port=port, ssl_context=context, access_log=None, print=lambda *_: None)


if __name__ == "__main__":
    main()
