"""Builds the cluster's programs from source with Go, once for each go.mod and go.sum.

A build lands in `$PRETUNE_BUILD/go/kubernetes-<key>/`; `$PRETUNE_BUILD/bin` has a link to each
program of the current build, so that a checkout with another go.mod does not disturb one that was
built before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from localcluster.steps import StepError, build_folder, link, locked, run, step

MODULE = Path(__file__).resolve().parent.parent / "go" / "kubernetes"
KUBERNETES = "v1.34.4"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
PACKAGES = [f"k8s.io/kubernetes/cmd/{program}" for program in PROGRAMS]
# Memory for time: with a larger heap the compiler collects its garbage less often (8 % less CPU time).
ENVIRONMENT = {"CGO_ENABLED": "0", "GOGC": "400"}
# Debug information, which the linker would only leave out again, costs a fifth of the CPU time.
COMPILER_FLAGS = "all=-dwarf=false"


def ensure_programs() -> None:
    """Build the programs, unless they are there.

    Raises StepError when Go is missing or the build fails.
    """
    folder = build_folder()
    links = folder / "bin"
    links.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        built = folder / "go" / f"kubernetes-{_key()}"
        if not built.is_dir():
            _build(built)
        for program in PROGRAMS:
            link(links / program, built / program)


def _linker_flags() -> str:
    """Return the value of `go build -ldflags`.

    It leaves out symbol tables, half of the size, and sets the version, which clients parse.
    """
    major, minor = KUBERNETES.removeprefix("v").split(".")[:2]
    variables = {
        f"{package}.{name}": value
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}.items()
    }
    return " ".join(
        ["-s", "-w", *(f"-X {name}={value}" for name, value in sorted(variables.items()))]
    )


def _key() -> str:
    """Return 12 hex digits that change when the programs would."""
    digest = hashlib.sha256(_linker_flags().encode())
    for file in ("go.mod", "go.sum"):
        digest.update((MODULE / file).read_bytes())
    return digest.hexdigest()[:12]


def _build(built: Path) -> None:
    if shutil.which("go") is None:
        raise StepError(
            "Go is not installed",
            "install Go 1.26 or newer (go.dev/doc/install) and run this again",
        )
    partial = built.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with step("download the source of Kubernetes", log="build-kubernetes") as log:
        packages = _list_packages(log)
    compiled = _count_packages(log, packages)
    with step(
        "build Kubernetes from source (minutes, once)", log="build-kubernetes", progress=compiled
    ) as log:
        # -v: a line for each package that is compiled, which is what the progress is read from.
        flags = [
            "-trimpath",
            "-buildvcs=false",
            "-gcflags",
            COMPILER_FLAGS,
            "-ldflags",
            _linker_flags(),
        ]
        command = ["go", "build", "-v", *flags, "-o", f"{partial}/", *PACKAGES]
        run(command, log, cwd=MODULE, env=ENVIRONMENT)
    partial.rename(built)


def _list_packages(log: Path) -> set[str]:
    """Return the names of all packages that the programs consist of; Go downloads them for that."""
    with log.open("a") as out:
        listed = subprocess.run(
            ["go", "list", "-deps", *PACKAGES],
            stdout=subprocess.PIPE,
            stderr=out,
            cwd=MODULE,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )
    if listed.returncode:
        raise StepError(f"go list ended with exit code {listed.returncode}", log=log)
    return set(listed.stdout.split()) - {"unsafe"}  # which is not compiled


def _count_packages(log: Path, packages: set[str]) -> Callable[[], str]:
    """Return a function that returns how many of the packages the log has named since now."""
    begin = log.stat().st_size

    def count() -> str:
        named = packages & set(log.read_bytes()[begin:].decode(errors="replace").splitlines())
        return (
            f"{len(named)} of {len(packages)} packages" if len(named) < len(packages) else "linking"
        )

    return count
