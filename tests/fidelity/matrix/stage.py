"""One release on the cluster: a namespace, an image under a tag that can be moved, and a way to vLLM's code that can be moved with it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.conftest import ROOT, create_namespace
from tests.cluster.images import tag_engine_image, untag_image
from tests.cluster.kube import Kube, Object
from tests.fidelity.releases import site_packages

IMAGE = "localhost/pretune/rehearsal:dev"
NODE = Path("/var/lib/pretune-cluster/node0/kubelet")  # of tools/cluster: its node is this machine


@dataclass(frozen=True)
class Stage:
    """`link` is what the pods mount: a link to a release's site-packages, as a tag leads to an image."""

    kube: Kube
    namespace: str
    release: str
    other: str  # the release that is behind the tag after swap(); "" where none is installed
    image: str
    link: Path
    owner: Object  # of its pods: pretune gives more to pods that a controller creates again

    def swap(self) -> None:
        """Another release under the same tag: what the image holds, and its digest."""
        point(self.link, installed(self.other))
        image_of(self.other, self.image)

    def tactics(self, pod: Object) -> Path:
        """The emptyDir that is a pod's override folder."""
        uid: str = pod["metadata"]["uid"]
        return NODE / "pods" / uid / "volumes/kubernetes.io~empty-dir/pretune-tactics"

    def volume(self, kube: Kube, claim: str) -> Path:
        """The claim's folder on this machine."""
        found = kube.get("PersistentVolumeClaim", self.namespace, claim) or {}
        volume = kube.get("PersistentVolume", "", found["spec"]["volumeName"]) or {}
        return Path(volume["spec"]["hostPath"]["path"])


def _create_owner(kube: Kube, namespace: str) -> Object:
    """Creates an object, and returns a reference to it as the controller of a pod.

    It does nothing: no other pod takes the place of one that has ended.
    """
    meta = {"namespace": namespace, "name": "owner"}
    made = kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": made["metadata"]["uid"],
        "controller": True,
    }


@contextmanager
def stage(kube: Kube, release: str, other: str) -> Iterator[Stage]:
    """Everything of it is gone behind it."""
    assert NODE.is_dir(), (
        f"{NODE} is not there: the folders of pods are looked at on the local cluster's node (tools/cluster)"
    )
    short = release.replace(".", "-")
    namespace = create_namespace(kube, f"t-fidelity-{short}")
    folder = ROOT / ".local/fidelity" / namespace
    folder.mkdir(parents=True)
    image = f"localhost/pretune/{namespace}:latest"
    try:
        point(folder / "site-packages", installed(release))
        image_of(release, image)
        owner = _create_owner(kube, namespace)
        yield Stage(kube, namespace, release, other, image, folder / "site-packages", owner)
    finally:
        kube.delete("Namespace", "", namespace)
        untag_image(image)
        shutil.rmtree(folder)


def image_of(release: str, name: str) -> None:
    """The rehearsal's image with the release's package metadata in it, as a real one has: check and seed read versions there. All else
    of the release is too large for an image here, and is mounted into the engine."""
    inside = "opt/venv/lib/python3.11/site-packages"
    found = {
        f"{inside}/{one.parent.name}/METADATA": one.read_bytes()
        for one in metadata(release).values()
    }
    tag_engine_image(name, release, of=IMAGE, more=found)


def installed(release: str) -> Path:
    found = site_packages(release)
    assert found, f"vLLM {release} is not installed: run images/rehearsal/install {release}"
    return found


def metadata(release: str) -> dict[str, Path]:
    """Of what decides about tactics."""
    packages = installed(release)
    return {
        name: next(packages.glob(f"{name}-*.dist-info")) / "METADATA"
        for name in ("vllm", "flashinfer_python", "torch")
    }


def versions(release: str) -> dict[str, str]:
    """By the packages' own metadata."""
    found = {}
    for name, file in metadata(release).items():
        version = re.search(r"^Version: (.+)$", file.read_text(), re.MULTILINE)
        assert version, f"{file} has no version"
        found[name.partition("_")[0]] = version[1]
    return found


def point(link: Path, to: Path) -> None:
    """In one step: a container that is made meanwhile gets the old or the new."""
    made = link.with_name(f"{link.name}.new")
    made.symlink_to(to)
    os.replace(made, link)
