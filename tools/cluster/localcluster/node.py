"""Starts a node: its bridge, containerd and kubelet.

kube-proxy runs once, since all nodes share the machine's network.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from string import Template

from localcluster.cgroups import make_cgroup
from localcluster.images import load_images
from localcluster.network import make_bridge
from localcluster.places import API_ADDRESS, CONFIG, LOGS, PKI, STATE, Node
from localcluster.processes import answers, running, start, wait_until
from localcluster.steps import build_folder


def node_programs(node: Node) -> tuple[str, ...]:
    """The names of a node's processes."""
    return (f"containerd-{node.name}", f"kubelet-{node.name}")


def start_node(node: Node) -> None:
    """Start what of the node does not run; returns before the node is ready."""
    make_bridge(node)
    make_cgroup(node.cgroup)
    for folder in (node.folder / "cni", node.runtime):
        folder.mkdir(parents=True, exist_ok=True)
    configured = {name: _configure(name, node) for name in ("containerd.toml", "kubelet.yaml")}
    shutil.copy(_configure("cni.conflist", node), node.folder / "cni" / "10-bridge.conflist")
    containerd, kubelet = node_programs(node)
    start(containerd, ["containerd", "--config", configured["containerd.toml"]])
    wait_until(
        partial(answers, str(node.socket)),
        20,
        containerd,
        LOGS / f"{containerd}.log",
        needs=(containerd,),
    )
    load_images(node)
    start(
        kubelet,
        [
            build_folder() / "bin" / "kubelet",
            f"--kubeconfig={PKI / node.name}.kubeconfig",
            f"--config={configured['kubelet.yaml']}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            f"--root-dir={node.folder / 'kubelet'}",
        ],
    )


def start_proxy() -> None:
    """Start kube-proxy, unless it runs.

    Its file is not written while it runs: kube-proxy ends when its file changes.
    """
    if running("kube-proxy") is not None:
        return
    file = STATE / "kube-proxy.yaml"
    file.write_text(Template((CONFIG / file.name).read_text()).substitute(pki=PKI))
    start("kube-proxy", [build_folder() / "bin" / "kube-proxy", f"--config={file}"])


def _configure(name: str, node: Node) -> Path:
    values = {
        "folder": node.folder,
        "runtime": node.runtime,
        "socket": node.socket,
        "bridge": node.bridge,
        "address": node.address,
        "pod_range": node.pod_range,
        "cgroup": node.cgroup,
        "port": node.port,
        "health_port": node.health_port,
        "pki": PKI,
        "api": API_ADDRESS,
    }
    file = node.folder / name
    file.write_text(Template((CONFIG / name).read_text()).substitute(values))
    return file
