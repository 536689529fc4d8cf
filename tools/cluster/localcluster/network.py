"""What the cluster changes in the machine's network, and how that is taken back."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from localcluster.places import NODES, POD_RANGE, SERVICE_RANGE, Node
from localcluster.steps import StepError

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
EGRESS = "PRETUNE-EGRESS"
TABLES = ("nat", "filter", "mangle")
OURS = (
    "KUBE-",
    "CNI-",
    "PRETUNE-",
)  # chains of kube-proxy and the kubelet, of the portmap plugin, and our own


def make_bridge(node: Node) -> None:
    """Give the node its bridge with its address, before any pod exists.

    The API server listens on the first one.
    """
    if not exists(node):
        _ip("link", "add", node.bridge, "type", "bridge")
    _ip("address", "replace", f"{node.address}/24", "dev", node.bridge)
    _ip("link", "set", node.bridge, "up")


def keep_inside() -> None:
    """Let pods reach each other and the cluster's services, and nothing outside this machine.

    They have no way out in any case, since nothing translates their addresses. But an engine that
    calls home should fail at once, and a packet to a service that kube-proxy does not know yet
    should not go to the machine's gateway.
    """
    FORWARD.write_text("1")
    _ip("route", "replace", SERVICE_RANGE, "dev", NODES[0].bridge)
    rules = [
        "*filter",
        f":{EGRESS} - [0:0]",  # new, or emptied where it is there
        f"-A {EGRESS} -s {POD_RANGE} ! -d {POD_RANGE} -j REJECT",
        "COMMIT",
    ]
    _run(["iptables-restore", "--noflush"], "\n".join([*rules, ""]))
    if subprocess.run(["iptables", "-C", "FORWARD", "-j", EGRESS], capture_output=True).returncode:
        _run(["iptables", "-A", "FORWARD", "-j", EGRESS])


def exists(node: Node) -> bool:
    """Whether the node has its bridge."""
    return any(name == node.bridge for _, name in socket.if_nameindex())


def remove_bridges() -> None:
    """Remove the bridges of all nodes; their pods' ends go with the pods."""
    for node in NODES:
        if exists(node):
            _ip("link", "delete", node.bridge)


def check_ports() -> None:
    """Raise StepError when somebody else listens on a port that the cluster is about to use."""
    for port in (6443, 12379, 12380, 10248, 10249, 10250, 10256, 10257, 10259):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                advice = f"`ss -ltnp 'sport = :{port}'` shows which; stop another Kubernetes"
                raise StepError(f"port {port} is not free: {error.strerror}", advice) from error


def remove_chains() -> None:
    """Remove the cluster's chains, and the rules that jump to them, from all tables.

    Others' rules are not touched.
    """
    for family in ("iptables", "ip6tables"):
        for table in TABLES:
            saved = subprocess.run(
                [f"{family}-save", "-t", table], capture_output=True, text=True
            ).stdout
            commands = list(_removal(saved.splitlines()))
            if commands:
                script = "\n".join([f"*{table}", *commands, "COMMIT", ""])
                _run([f"{family}-restore", "--noflush"], script)


def _removal(saved: Iterable[str]) -> Iterable[str]:
    """Return the commands that remove our chains from what iptables-save printed, jumps first."""
    chains = []
    for line in saved:
        words = line.split()
        if line.startswith(":") and words[0][1:].startswith(OURS):
            chains.append(words[0][1:])
        elif (
            line.startswith("-A")
            and not words[1].startswith(OURS)
            and any(word.startswith(OURS) for word in words)
        ):
            yield f"-D{line[2:]}"
    yield from (f"-F {chain}" for chain in chains)
    yield from (f"-X {chain}" for chain in chains)


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str], script: str = "") -> None:
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"{' '.join(command)}: {done.stderr.strip()}")
