"""Tags that move: another image with the same name, on the local cluster's node."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from typing import Any

CTR = ["ctr", "--address", "/run/pretune-cluster/node0/containerd.sock", "--namespace", "k8s.io"]
ENGINE = "localhost/pretune/engine:dev"


def tag_engine_image(
    name: str, build: str = "", of: str = ENGINE, more: Mapping[str, bytes] | None = None
) -> None:
    """Give the stand-in engine's image (or `of`) this name, too, on the node.

    Another `build` is another image: the same layers and one more label. `more`: additional files
    by their paths, in their own layer.
    """
    manifest = _blob(_digest(of))
    config = _blob(manifest["config"]["digest"])
    config["config"].setdefault("Labels", {})["build"] = build
    files: dict[str, bytes] = {}
    if more:
        layer = _tar(more)
        digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        files[f"blobs/sha256/{digest.removeprefix('sha256:')}"] = layer
        kind = {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest,
            "size": len(layer),
        }
        manifest["layers"].append(kind)
        config["rootfs"]["diff_ids"].append(digest)

    def blob(content: Any, like: Any) -> Any:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": like["mediaType"], "digest": f"sha256:{digest}", "size": len(data)}

    changed = blob({**manifest, "config": blob(config, manifest["config"])}, manifest)
    index = {**changed, "annotations": {"io.containerd.image.name": name}}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [index]}).encode()
    subprocess.run(
        [*CTR, "images", "import", "-"], input=_tar(files), check=True, capture_output=True
    )


def _tar(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def untag_image(name: str) -> None:
    """Remove the name from the node; running containers keep their layers."""
    subprocess.run([*CTR, "images", "rm", name], check=True, capture_output=True)


def _digest(name: str) -> str:
    listed = subprocess.run(
        [*CTR, "images", "ls", f"name=={name}"], check=True, capture_output=True, text=True
    ).stdout
    return next(line.split()[2] for line in listed.splitlines() if line.startswith(f"{name} "))


def _blob(digest: str) -> Any:
    read = subprocess.run([*CTR, "content", "get", digest], check=True, capture_output=True)
    return json.loads(read.stdout)
