"""Builds the cluster's programs from source with Go, once for each content of their go.mod and go.sum.

A build lands in `$PRETUNE_BUILD/go/<name>-<key>/`; `$PRETUNE_BUILD/bin` has a link to each program of the current builds,
so that a checkout with another go.mod does not disturb one that was built before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from localcluster.steps import StepError, build_folder, locked, run, step

MODULES = Path(__file__).resolve().parent.parent / "go"
KUBERNETES = "v1.34.4"
HELM = "v4.3.1"


@dataclass(frozen=True)
class Build:
    """One go.mod and what is built from it: the package of each program, by the program's name."""

    name: str
    packages: dict[str, str]
    variables: dict[str, str]  # string variables set at link time; without them clients cannot parse the version

    @property
    def module(self) -> Path:
        """The folder of the go.mod."""
        return MODULES / self.name

    @property
    def linker_flags(self) -> str:
        """The value of `go build -ldflags`: no symbol tables (half the size), and the version."""
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in sorted(self.variables.items()))])

    @property
    def key(self) -> str:
        """12 hex digits that change when another program would come out."""
        digest = hashlib.sha256(self.linker_flags.encode())
        for file in ("go.mod", "go.sum"):
            digest.update((self.module / file).read_bytes())
        return digest.hexdigest()[:12]


_MAJOR, _MINOR = KUBERNETES.removeprefix("v").split(".")[:2]

BUILDS = (
    Build(
        "kubernetes",
        {
            program: f"k8s.io/kubernetes/cmd/{program}"
            for program in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            )
        },
        {
            f"{package}.{name}": value
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for name, value in {"gitVersion": KUBERNETES, "gitMajor": _MAJOR, "gitMinor": _MINOR}.items()
        },
    ),
    Build("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}, {"helm.sh/helm/v4/internal/version.version": HELM}),
)


def ensure_programs() -> Path:
    """Build what is not built yet; return the folder with all programs.

    Raises StepError when Go is missing or a build fails.
    """
    folder = build_folder()
    links = folder / "bin"
    links.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        for build in BUILDS:
            built = folder / "go" / f"{build.name}-{build.key}"
            if not built.is_dir():
                _build(build, built)
            for program in build.packages:
                _link(links / program, built / program)
    return links


def _build(build: Build, built: Path) -> None:
    if shutil.which("go") is None:
        raise StepError("Go is not installed", "install Go 1.26 or newer (go.dev/doc/install) and run this again")
    partial = built.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with step(f"build {build.name} from source (minutes, once)", log=f"build-{build.name}") as log:
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", build.linker_flags, "-o", f"{partial}/"]
        run([*command, *build.packages.values()], log, cwd=build.module, env={"CGO_ENABLED": "0"})
    partial.rename(built)


def _link(link: Path, target: Path) -> None:
    wanted = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == wanted:
        return
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(wanted)
    fresh.replace(link)


if __name__ == "__main__":
    print(ensure_programs())
