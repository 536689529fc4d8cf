"""Debian packages that the cluster and the images need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable

from localcluster.steps import StepError, run, step

CLUSTER = (
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "conntrack",
    "iproute2",
    "openssl",
    "ca-certificates",
    "gcc",
    "libc6-dev",
)
IMAGES = ("buildah", "mmdebstrap", "python3-pip-whl")


def ensure_packages(names: Iterable[str]) -> None:
    """Install the packages that are missing.

    Raises StepError where apt-get cannot.
    """
    missing = [name for name in names if not _installed(name)]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise StepError(
            f"these are not installed: {' '.join(missing)}",
            "use Debian 12, or install their equals by hand",
        )
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"install {' '.join(missing)}", log="packages") as log:
        run(["apt-get", "update"], log)
        run(["apt-get", "install", "-y", "--no-install-recommends", *missing], log, env=quiet)


def pip() -> list[str]:
    """Return the command of a pip of this machine, which is installed where there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return [python, "-m", "pip"]
    ensure_packages(["python3-pip"])
    return ["/usr/bin/python3", "-m", "pip"]


def _installed(name: str) -> bool:
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f=${db:Status-Status}", name], capture_output=True, text=True
    )
    return asked.stdout == "installed"
