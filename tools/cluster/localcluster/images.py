"""Loads container images without a registry.

They are archives in `$PRETUNE_BUILD/images`, loaded into each node's containerd.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from localcluster.places import CONFIG, NODES, Node
from localcluster.processes import running
from localcluster.steps import StepError, build_folder, step

PAUSE = "localhost/pretune/pause:1"


def archives() -> Path:
    """The folder of the image archives; it exists afterwards."""
    folder = build_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_images(node: Node) -> None:
    """Load the images that the node does not have in their current version.

    Raises StepError when containerd refuses an archive.
    """
    loaded = node.folder / "images"
    loaded.mkdir(exist_ok=True)
    for archive in sorted(archives().glob("*.tar")):
        version = f"{archive.stat().st_mtime_ns} {archive.stat().st_size}"
        mark = loaded / archive.stem
        if mark.exists() and mark.read_text() == version:
            continue
        with step(f"load the image {archive.stem} into {node.name}"):
            done = subprocess.run(
                [
                    "ctr",
                    "--address",
                    str(node.socket),
                    "--namespace",
                    "k8s.io",
                    "images",
                    "import",
                    str(archive),
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise StepError(
                    f"containerd refused {archive}: {done.stderr.strip()}",
                    "remove that file; build it again",
                )
        mark.write_text(version)


def load_everywhere() -> None:
    """Load into all nodes whose containerd runs; none may be."""
    for node in NODES:
        if running(f"containerd-{node.name}") is not None:
            load_images(node)


def ensure_pause() -> None:
    """Make the archive of the pause image, unless it is there.

    The image is one static program of a few lines.
    """
    archive = archives() / "pause.tar"
    if archive.exists():
        return
    with step("build the image pause"), tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "pause"
        done = subprocess.run(
            ["gcc", "-Os", "-static", "-s", "-o", program, CONFIG / "pause.c"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StepError(
                f"gcc could not build pause.c: {done.stderr.strip()}", "is libc6-dev installed?"
            )
        partial = archive.with_suffix(".partial")
        partial.write_bytes(_image(PAUSE, {"pause": program.read_bytes()}, ["/pause"]))
        partial.replace(archive)


def _image(name: str, programs: dict[str, bytes], entrypoint: list[str]) -> bytes:
    """An OCI archive of an image with one layer, as the OCI image layout describes it."""
    files: dict[str, bytes] = {}

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(content: dict[str, Any], media_type: str) -> dict[str, Any]:
        return blob(json.dumps(content).encode(), media_type)

    layer = blob(_tar(programs, mode=0o755), "application/vnd.oci.image.layer.v1.tar")
    config = document(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        },
        "application/vnd.oci.image.config.v1+json",
    )
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = document(
        {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]},
        media_type,
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    return _tar(files, mode=0o644)


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _architecture() -> str:
    machine = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True
    ).stdout.strip()
    return machine or "amd64"
