"""Paths, addresses and ports of the cluster. It is machine-wide: each checkout finds the same one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/pretune-cluster")  # removed whole by `down`
RUNTIME = Path("/run/pretune-cluster")  # sockets, running containers
LOCK = Path("/run/lock/pretune-cluster.lock")
CONFIG = Path(__file__).resolve().parent.parent / "config"
CHECKOUT = Path(__file__).resolve().parents[3]

PKI = STATE / "pki"
LOGS = STATE / "logs"
VOLUMES = STATE / "volumes"  # one folder for each claim
ADMIN = PKI / "admin.kubeconfig"

API_ADDRESS = (
    "10.244.0.1"  # the first bridge's: reachable from the machine and from pods, not from outside
)
API_SERVER = f"https://{API_ADDRESS}:6443"
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
ETCD = "http://127.0.0.1:12379"  # not 2379: Debian's etcd-server may start its own there
ETCD_PEER = "http://127.0.0.1:12380"

GPUS = 64  # more than a machine has: tests of several workers roll their pods side by side
PRODUCTS = ("NVIDIA-H200", "NVIDIA-B200")  # of node0 and node1, until relabelled


@dataclass(frozen=True)
class Node:
    """One node: a containerd and a kubelet with a folder, a bridge and ports of their own."""

    index: int

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def product(self) -> str:
        """The GPU product that it is first labelled with."""
        return PRODUCTS[self.index]

    @property
    def folder(self) -> Path:
        return STATE / self.name

    @property
    def runtime(self) -> Path:
        return RUNTIME / self.name

    @property
    def socket(self) -> Path:
        """Where its containerd listens."""
        return self.runtime / "containerd.sock"

    @property
    def bridge(self) -> str:
        return f"pretune{self.index}"

    @property
    def address(self) -> str:
        return f"10.244.{self.index}.1"

    @property
    def pod_range(self) -> str:
        return f"10.244.{self.index}.0/24"

    @property
    def cgroup(self) -> str:
        """The cgroup of its pods.

        A kubelet kills unknown processes there, so two kubelets must not share one.
        """
        return f"pretune-{self.name}"

    @property
    def health_port(self) -> int:
        return 10248 - 100 * self.index

    @property
    def port(self) -> int:
        return 10250 - 100 * self.index


NODES = tuple(Node(index) for index in range(len(PRODUCTS)))
