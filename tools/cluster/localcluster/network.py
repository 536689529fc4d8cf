"""What the cluster changes in the machine's network, and how that is taken back."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from localcluster.places import API_ADDRESS, NODES, Node
from localcluster.steps import Failure

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
TABLES = ("nat", "filter", "mangle")
OURS = ("KUBE-", "CNI-")  # chains of kube-proxy, the kubelet and the portmap plugin


def make_bridge(node: Node) -> None:
    """Give the node its bridge with its address, before any pod exists: the API server listens on the first one."""
    if not Path(f"/sys/class/net/{node.bridge}").exists():
        _ip("link", "add", node.bridge, "type", "bridge")
    _ip("address", "replace", f"{node.address}/24", "dev", node.bridge)
    _ip("link", "set", node.bridge, "up")
    FORWARD.write_text("1")


def remove_bridges() -> None:
    """Remove the bridges of all nodes; their pods' ends go with the pods."""
    for node in NODES:
        if Path(f"/sys/class/net/{node.bridge}").exists():
            _ip("link", "delete", node.bridge)


def check_ports() -> None:
    """Raise Failure when somebody else listens where the cluster is about to."""
    wanted = [("127.0.0.1", port) for port in (12379, 12380, 10248, 10249, 10256, 10257, 10259)]
    for address, port in [*wanted, (API_ADDRESS, 6443), (API_ADDRESS, 10250)]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                advice = f"see who it is with `ss -ltnp 'sport = :{port}'`; another Kubernetes on this machine has to go"
                raise Failure(f"cannot listen on {address}:{port}: {error.strerror}", advice) from error


def remove_chains() -> None:
    """Remove the cluster's chains, and the rules that jump to them, from all tables; others' rules are not touched."""
    for family in ("iptables", "ip6tables"):
        for table in TABLES:
            saved = subprocess.run([f"{family}-save", "-t", table], capture_output=True, text=True).stdout
            commands = list(_removal(saved.splitlines()))
            if commands:
                script = "\n".join([f"*{table}", *commands, "COMMIT", ""])
                done = subprocess.run([f"{family}-restore", "--noflush"], input=script, capture_output=True, text=True)
                if done.returncode:
                    raise Failure(f"{family}-restore could not remove the chains: {done.stderr.strip()}")


def _removal(saved: Iterable[str]) -> Iterable[str]:
    """From the output of iptables-save, the commands that take our chains out again, jumps first."""
    chains = []
    for line in saved:
        words = line.split()
        if line.startswith(":") and words[0][1:].startswith(OURS):
            chains.append(words[0][1:])
        elif line.startswith("-A") and not words[1].startswith(OURS) and any(word.startswith(OURS) for word in words):
            yield f"-D{line[2:]}"
    yield from (f"-F {chain}" for chain in chains)
    yield from (f"-X {chain}" for chain in chains)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"ip {' '.join(arguments)}: {done.stderr.strip()}", "are you root?")
