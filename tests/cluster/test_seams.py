"""A part and an engine that the tests add, each by one object, on the real cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import BUILD, SYSTEM, install
from tests.cluster.images import tag_engine_image, untag_image
from tests.cluster.kube import Kube, Object, bundles, condition
from tests.cluster.operator_control import OperatorControl
from tests.cluster.recorder import Recorder, delivery_of, seed_report
from tests.cluster.workloads import autotune_cache, deployment, serving_template
from tests.seams.overlay import copy_package

CODE = "opt/pretune/code/pretune"  # in the operator's image (Dockerfile)
OPERATOR = "localhost/pretune/operator"

# What both engines do with the folder that their variable names.
PLANS = """
import json, os, sys
file = os.path.join(os.environ[sys.argv[1]], "rank0.plan")
if os.path.exists(file):
    print("toy: loaded", len(json.load(open(file))), "plans", flush=True)
else:
    json.dump({"gemm/8": "a", "gemm/16": "b", "moe/8": "c"}, open(file, "w"))
    print("toy: tuned 3 plans", flush=True)
"""
SERVER = """
import http.server
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
print("toy: ready", flush=True)
http.server.ThreadingHTTPServer(("", 8123), Ready).serve_forever()
"""


@pytest.fixture
def extended(kube: Kube, operator: str, tmp_path: Path) -> Iterator[None]:
    """An operator whose image has the tests' part and engine; its agent has them too."""
    package = copy_package(tmp_path)
    # The image's own package is covered, with its bytecode.
    files = {f"{CODE}/.wh..wh..opq": b""}
    for file in sorted(package.rglob("*.py")):
        files[f"{CODE}/{file.relative_to(package).as_posix()}"] = file.read_bytes()
    tag_engine_image(f"{OPERATOR}:seams", of=f"{OPERATOR}:dev", more=files)
    control = OperatorControl(kube, SYSTEM, BUILD / "bin")
    install(kube, "--set", "image.tag=seams")
    try:
        control.wait_until_working()
        yield
    finally:
        install(kube)
        control.wait_until_working()
        untag_image(f"{OPERATOR}:seams")


def create(kube: Kube, namespace: str, name: str, **engine: Any) -> None:
    """Create a cache whose bundles are to be proven, and one pod that waits for that."""
    spec: dict[str, Any] = {"verify": "BeforeRelease", "hold": {"when": "Always"}}
    kube.create(autotune_cache(namespace, name, **spec))
    kube.wait_until(
        "AutotuneCache",
        namespace,
        name,
        lambda cache: condition(cache, "StorageReady").get("status") == "True",
        60,
    )
    template = serving_template("v1", cache=name, probe=False, **engine)
    kube.create(deployment(namespace, template, name=name))


def check(recorder: Recorder, name: str) -> tuple[Object, Object]:
    """Return the bundle and the pod, which was held, and started warm from its proven bundle."""
    [bundle] = bundles(recorder.cache(name))
    [pod] = [
        pod for pod in recorder.pods() if pod["metadata"]["labels"]["pretune.dev/cache"] == name
    ]
    assert bundle["proven"] and bundle["newEntries"] == 0, bundle
    assert delivery_of(pod)[0] == "Overlay" and '"Seeded"' in seed_report(pod)
    return bundle, pod


@pytest.mark.disturbs
@pytest.mark.usefixtures("extended")
def test_an_added_part_and_an_added_engine_are_sealed_proven_and_seeded(
    kube: Kube, namespace: str, recorder: Recorder
) -> None:
    kernels = f"python3 -c {shlex.quote(PLANS)} VLLM_TEST_KERNEL_DIR"
    script = f"{kernels} && exec /opt/engines/0.33.0/bin/vllm serve demo"
    create(kube, namespace, "kernels", command=["/bin/sh", "-c", script])
    toy_server = ["python3", "-c", PLANS + SERVER, "TOY_PLAN_DIR", "toy-server"]
    create(kube, namespace, "toy", command=toy_server)
    recorder.wait_until(
        lambda r: r.has_sealed(name="kernels") and r.has_sealed(name="toy") and r.are_ready(2),
        240,
        "both bundles are proven, and both pods ready",
    )

    bundle, pod = check(recorder, "kernels")
    assert (bundle["entries"], bundle["layout"]) == (23, "Managed"), "20 tactics and 3 kernels"
    log = kube.log(namespace, pod["metadata"]["name"], "vllm")
    assert "toy: loaded 3 plans" in log and "Preloaded 20/20 managed cache entries" in log

    bundle, pod = check(recorder, "toy")
    assert (bundle["entries"], bundle["layout"]) == (3, "Managed")
    assert "toy: loaded 3 plans" in kube.log(namespace, pod["metadata"]["name"], "vllm")
    names = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert "pretune-plans" in names and "pretune-tactics" not in names
    recorder.wait_until(
        lambda r: r.cache("toy")["status"]["consumers"].get("warm") == 1,
        60,
        "its start is read from its log",
    )
