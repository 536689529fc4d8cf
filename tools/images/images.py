"""Builds the project's images without a registry, and loads them into a running local cluster.

`tools/images/build` builds what has changed; `tools/images/build engine` only that one. An image's
key is a hash of its base, its Dockerfile and all that the Dockerfile copies; an image whose key has
not changed is not touched.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localcluster.images import archives, ensure_pause, load_everywhere
from localcluster.packages import CLUSTER, IMAGES, ensure_packages, pip
from localcluster.places import LOCK
from localcluster.steps import StepError, build_folder, locked, report, run, step

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SUITE = "bookworm"
PYTHON = "3.11"  # what that suite has: wheels are fetched for it
BASE, BUILD_BASE = "localhost/pretune/base:dev", "localhost/pretune/base-build:dev"
WHEELS_INSIDE = "/wheels"
PIP_WHEEL = Path("/usr/share/python-wheels")  # of the package python3-pip-whl


@dataclass(frozen=True)
class Image:
    """One image: a Dockerfile, and the folder that it copies from."""

    name: str
    dockerfile: Path
    context: Path

    @property
    def reference(self) -> str:
        """The name that pods ask for."""
        return f"localhost/pretune/{self.name}:dev"

    def sources(self) -> Iterator[Path]:
        """Yield each file that its Dockerfile copies out of the context."""
        for line in self.dockerfile.read_text().replace("\\\n", " ").splitlines():
            if not re.match(r"\s*(COPY|ADD)\s", line, re.IGNORECASE) or "--from=" in line:
                continue
            words = [word for word in shlex.split(line)[1:] if not word.startswith("--")]
            for pattern in words[:-1]:
                found = (
                    [self.context]
                    if pattern in (".", "./")
                    else sorted(self.context.glob(pattern.strip("/")))
                )
                if not found:
                    raise StepError(
                        f"{self.dockerfile} copies {pattern}, which is not below {self.context}"
                    )
                for path in found:
                    yield from sorted(path.rglob("*")) if path.is_dir() else [path]

    def key(self, base: str) -> str:
        """Return 16 hex digits that change when the image would.

        They are a hash of its base's key, Dockerfile and sources, names and modes included.
        """
        digest = hashlib.sha256(base.encode() + self.dockerfile.read_bytes())
        for path in self.sources():
            if path.is_file() and "__pycache__" not in path.parts:
                mode = path.stat().st_mode & 0o777
                digest.update(
                    f"\0{path.relative_to(self.context)}\0{mode:o}\0".encode() + path.read_bytes()
                )
        return digest.hexdigest()[:16]


def all_images() -> dict[str, Image]:
    """The operator's image and one for each folder in images/ with a Dockerfile; by name."""
    images = {"operator": Image("operator", CHECKOUT / "Dockerfile", CHECKOUT)}
    for dockerfile in sorted((CHECKOUT / "images").glob("*/Dockerfile")):
        name = dockerfile.parent.name
        images[name] = Image(name, dockerfile, dockerfile.parent)
    return images


def main(names: list[str]) -> int:
    """Build and load the images of these names, or all; returns the exit code."""
    try:
        if os.geteuid() != 0:
            raise StepError("building the base image needs root", "run it with sudo")
        images = all_images()
        unknown = set(names) - set(images)
        if unknown:
            raise StepError(
                f"no such image: {', '.join(sorted(unknown))}", f"there are: {', '.join(images)}"
            )
        ensure_packages((*CLUSTER, *IMAGES))
        with locked(archives() / ".lock"):
            base = ensure_base()
            for image in images.values():
                if not names or image.name in names:
                    build(image, base)
        with locked(LOCK):
            ensure_pause()
            load_everywhere()
    except StepError as failure:
        return report(failure)
    return 0


def ensure_base() -> str:
    """Make the base image, and one with pip for build stages; return their key."""
    packages = [
        line
        for line in (HERE / "base-packages").read_text().splitlines()
        if not line.startswith("#")
    ]
    recipe = [
        "--variant=essential",
        f"--include={','.join(packages)}",
        *(
            f"--dpkgopt=path-exclude=/usr/share/{unused}/*"
            for unused in ("doc", "man", "locale", "info")
        ),
        "--customize-hook=rm -rf $1/var/lib/apt/lists $1/var/cache/apt $1/var/log/*",
        SUITE,
    ]
    key = hashlib.sha256(" ".join(recipe).encode()).hexdigest()[:16]
    mark = archives() / "base.key"
    if mark.exists() and mark.read_text() == key and _has(BASE) and _has(BUILD_BASE):
        return key
    with (
        step(f"build the base image from Debian {SUITE} (once)", log="images") as log,
        tempfile.TemporaryDirectory() as tmp,
    ):
        tar, pip = Path(tmp) / "base.tar", Path(tmp) / "pip"
        run(["mmdebstrap", *recipe, tar], log)
        with zipfile.ZipFile(next(PIP_WHEEL.glob("pip-*.whl"))) as wheel:
            wheel.extractall(pip)
        _commit(BASE, "scratch", tar, "/", log)
        _commit(BUILD_BASE, BASE, pip, f"/usr/local/lib/python{PYTHON}/dist-packages", log)
    mark.write_text(key)
    return key


def _commit(name: str, base: str, content: Path, where: str, log: Path) -> None:
    container = subprocess.run([*buildah(), "from", base], capture_output=True, text=True)
    if container.returncode:
        raise StepError(f"buildah from {base}: {container.stderr.strip()}", log=log)
    working = container.stdout.strip()
    try:
        run([*buildah(), "add", "--quiet", working, content, where], log)
        run(
            [
                *buildah(),
                "config",
                "--env",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                working,
            ],
            log,
        )
        run([*buildah(), "commit", "--quiet", "--rm", working, name], log)
    except StepError:
        subprocess.run([*buildah(), "rm", working], capture_output=True)
        raise


def build(image: Image, base: str) -> None:
    """Build one image into its archive, unless its key is that of the archive."""
    key, archive = image.key(base), archives() / f"{image.name}.tar"
    mark = archive.with_suffix(".key")
    if archive.exists() and mark.exists() and mark.read_text() == key:
        return
    with step(f"build the image {image.name}", log="images") as log:
        declared = re.findall(r"^ARG (\w+)", image.dockerfile.read_text(), re.MULTILINE)
        offered = {
            "BASE_IMAGE": BASE,
            "BUILD_IMAGE": BUILD_BASE,
            "PIP_FIND_LINKS": WHEELS_INSIDE,
            "PIP_NO_INDEX": "1",
        }
        wheels = (
            [f"--volume={ensure_wheels(log)}:{WHEELS_INSIDE}:ro"]
            if "PIP_FIND_LINKS" in declared
            else []
        )
        run(
            [
                *buildah(),
                "build",
                "--isolation=chroot",
                "--layers",
                "--pull-never",
                *(
                    f"--build-arg={name}={value}"
                    for name, value in offered.items()
                    if name in declared
                ),
                *wheels,
                f"--tag={image.reference}",
                f"--file={image.dockerfile}",
                image.context,
            ],
            log,
        )
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        # The OCI format: containerd reads only the layers that are new, which saves 3 s.
        run(
            [
                *buildah(),
                "push",
                "--quiet",
                image.reference,
                f"oci-archive:{partial}:{image.reference}",
            ],
            log,
        )
        partial.replace(archive)
        mark.write_text(key)


def ensure_wheels(log: Path) -> Path:
    """Return the folder of the operator's dependencies as wheels, which this machine's pip fetches.

    A build then needs no network, and no setting of this machine gets into an image.
    """
    requirements = CHECKOUT / "requirements" / "operator.txt"
    folder = build_folder() / "wheels" / hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    machine = platform.machine()
    platforms = [
        f"{tag}_{machine}"
        for tag in (
            "manylinux_2_28",
            "manylinux2014",
            "manylinux_2_17",
            "manylinux_2_5",
            "manylinux1",
        )
    ]
    abis = [f"cp{PYTHON.replace('.', '')}", "abi3", "none"]
    run(
        [
            *pip(),
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            f"--python-version={PYTHON}",
            "--implementation=cp",
            *(f"--abi={abi}" for abi in abis),
            *(f"--platform={platform_tag}" for platform_tag in platforms),
            f"--dest={partial}",
            f"--requirement={requirements}",
        ],
        log,
    )
    partial.rename(folder)
    return folder


def buildah() -> list[str]:
    """buildah with a store of its own, so that nothing of this machine's images is touched."""
    store = build_folder() / "containers"
    return [
        "buildah",
        f"--root={store}",
        "--runroot=/run/pretune-buildah",
        "--storage-driver=overlay",
    ]


def _has(image: str) -> bool:
    return (
        subprocess.run(
            [*buildah(), "inspect", "--type=image", image], capture_output=True
        ).returncode
        == 0
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
