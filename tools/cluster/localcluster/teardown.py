"""Removes everything that the cluster put on the machine, also after an aborted run or a reboot."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from localcluster.cgroups import remove_cgroup
from localcluster.network import FORWARD, exists, remove_bridges, remove_chains
from localcluster.places import NODES, RUNTIME, STATE
from localcluster.processes import recorded, started_at, stop, wait_until
from localcluster.steps import StepError

SHIM = "containerd-shim-runc-v2"
FORWARD_BEFORE = STATE / "ip_forward"  # what net.ipv4.ip_forward was before the cluster
CNI_STATE = Path("/var/lib/cni/results")
LOG_LINKS = Path("/var/log/containers")


def traces() -> bool:
    """Whether there is a cluster of ours on this machine, or what is left of one."""
    return STATE.exists() or RUNTIME.exists() or any(exists(node) for node in NODES)


def tear_down() -> None:
    """Remove processes, containers, mounts, network, cgroups and files, as far as they exist.

    Call it only where `traces` finds a cluster: every Kubernetes has chains of these names.
    """
    stop(recorded())
    _end_containers()
    _unmount()
    remove_bridges()
    remove_chains()
    for node in NODES:
        remove_cgroup(node.cgroup)
    if FORWARD_BEFORE.exists():
        FORWARD.write_text(FORWARD_BEFORE.read_text())
    for link in LOG_LINKS.glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{STATE}/"):
            link.unlink()
    for node in NODES:
        for result in CNI_STATE.glob(f"{node.bridge}-*-eth0"):
            sandbox = result.name.removeprefix(f"{node.bridge}-").removesuffix("-eth0")
            (CNI_STATE / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
            result.unlink()
    shutil.rmtree(RUNTIME, ignore_errors=True)
    shutil.rmtree(STATE, ignore_errors=True)
    if STATE.exists():
        raise StepError(
            f"{STATE} could not be removed whole", f"see what is in use with `fuser -vm {STATE}`"
        )


def _end_containers() -> None:
    """Kill the shims of our containerds and what they started.

    The address on a shim's command line names its containerd.
    """
    addresses = {str(node.socket) for node in NODES}
    shims = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if Path(words[0]).name == SHIM and _value(words, "-address") in addresses:
            shims[int(process.name)] = started_at(int(process.name))
    for address in RUNTIME.glob("*/containerd/io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(
            missing_ok=True
        )  # the shim's socket, in /run/containerd
    children = {child: started_at(child) for shim in shims for child in _children(shim)}
    for pid in (*shims, *children):
        with suppress(ProcessLookupError):
            os.kill(
                pid, signal.SIGKILL
            )  # a container's first process takes the others of its pid namespace along
    ending = {**shims, **children}
    wait_until(
        lambda: (
            not any(start is not None and started_at(pid) == start for pid, start in ending.items())
        ),
        20,
        "containers to end",
    )


def _value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else ""


def _children(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in tasks.read_text().split()]
        except OSError:
            continue
    return found


def _unmount() -> None:
    """Unmount all that is mounted below our folders, the deepest first."""
    for _ in range(3):  # mounts lie upon mounts
        points = [
            _unescaped(line.split()[4])
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ]
        ours = [point for point in points if point.startswith((f"{STATE}/", f"{RUNTIME}/"))]
        if not ours:
            return
        for point in sorted(ours, key=len, reverse=True):
            subprocess.run(["umount", "--lazy", point], capture_output=True)
    raise StepError("mounts of the cluster cannot be unmounted", f"see `findmnt | grep {STATE}`")


def _unescaped(path: str) -> str:
    """A path as mountinfo writes it has octal escapes for spaces."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
