"""Builds Kueue and Argo Rollouts, beside which `make neighbours` tests pretune.

Each lands in `$PRETUNE_BUILD/neighbours/<name>-<version>/`: its program, and the manifests of its
module in the folder `manifests`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from localcluster.programs import COMPILER_FLAGS, ENVIRONMENT
from localcluster.steps import StepError, build_folder, locked, report, run, step


@dataclass(frozen=True)
class Neighbour:
    """A program that runs beside pretune in many clusters."""

    name: str  # of its program
    module: str  # of Go
    version: str
    package: str  # of its program, in the module
    manifests: str  # a folder of the module

    @property
    def folder(self) -> Path:
        return build_folder() / "neighbours" / f"{self.name}-{self.version}"

    @property
    def program(self) -> Path:
        return self.folder / self.name


KUEUE = Neighbour("kueue", "sigs.k8s.io/kueue", "v0.17.0", "./cmd/kueue", "config")
# 1.10.2 asks for a patch release of Go that few machines have; the controller is the same.
ROLLOUTS = Neighbour(
    "rollouts-controller",
    "github.com/argoproj/argo-rollouts",
    "v1.10.1",
    "./cmd/rollouts-controller",
    "manifests/crds",
)


def ensure_neighbours() -> None:
    """Build the programs, unless they are there. Raises StepError when a build fails."""
    with locked(build_folder() / ".neighbours.lock"):
        for neighbour in (KUEUE, ROLLOUTS):
            if not neighbour.folder.is_dir():
                _build(neighbour)


def _build(neighbour: Neighbour) -> None:
    partial = neighbour.folder.with_name(f"{neighbour.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    title = f"build {neighbour.name} {neighbour.version} from source (minutes, once)"
    with step(title, log="build-neighbours") as log:
        source = _download(neighbour)
        shutil.copytree(source / neighbour.manifests, partial / "manifests")
        flags = ["-trimpath", "-buildvcs=false", "-gcflags", COMPILER_FLAGS, "-ldflags", "-s -w"]
        # In the module's own folder, since a module with `replace` cannot be installed by its name.
        command = ["go", "build", "-v", *flags, "-o", f"{partial}/{neighbour.name}"]
        run([*command, neighbour.package], log, cwd=source, env=ENVIRONMENT)
    partial.rename(neighbour.folder)


def _download(neighbour: Neighbour) -> Path:
    """Return the folder of the module's source."""
    command = ["go", "mod", "download", "-json", f"{neighbour.module}@{neighbour.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return Path(json.loads(done.stdout)["Dir"])


if __name__ == "__main__":
    try:
        ensure_neighbours()
    except StepError as failure:
        sys.exit(report(failure))
