"""Bring the cluster up, whatever is there already."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from typing import Any

from localcluster.clients import ensure_clients
from localcluster.control_plane import PROGRAMS, start_control_plane
from localcluster.identities import make_identities
from localcluster.images import ensure_pause, load_images
from localcluster.kubectl import api_ready, apply, get, kubectl
from localcluster.network import FORWARD, check_ports, keep_inside, make_bridge
from localcluster.node import node_programs, start_node, start_proxy
from localcluster.packages import CLUSTER, ensure_packages
from localcluster.places import ADMIN, CHECKOUT, GPUS, LOGS, NODES, STATE, Node
from localcluster.processes import answers, recorded, running, start, wait_until
from localcluster.programs import ensure_programs
from localcluster.steps import step
from localcluster.teardown import FORWARD_BEFORE, tear_down, traces

TEST_CLUSTER = "pretune.dev/test-cluster"  # of kube-system; tests run only where it is "true"
PRODUCT = "nvidia.com/gpu.product"


def bring_up(count: int) -> None:
    """A cluster with at least that many nodes, all Ready, and a kubeconfig in this checkout."""
    ensure_packages(CLUSTER)
    ensure_clients()
    ensure_programs()
    ensure_pause()
    nodes = [node for node in NODES if node.index < count or node.folder.exists()]
    wanted = [
        *PROGRAMS,
        "kube-proxy",
        "keeper",
        *(program for node in nodes for program in node_programs(node)),
    ]
    if all(running(name) is not None for name in wanted) and api_ready():
        for node in nodes:
            load_images(node)
        with step(f"the cluster runs, with {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"):
            _wait_for_nodes(nodes)
    else:
        _start(nodes)
    _leave_kubeconfig()


def _start(nodes: list[Node]) -> None:
    if running("etcd") is None:  # its data is gone or in doubt: start from nothing
        if traces():
            with step("remove what an earlier cluster left behind"):
                tear_down()
        _prepare(nodes)
    else:
        ended = [name for name in recorded() if running(name) is None]
        print(
            f"           restarting what has ended: {' '.join(ended) or 'none'}",
            flush=True,
        )
    with step("start the control plane"):
        start_control_plane()
    with step("start the nodes"):
        start(
            "keeper",
            [sys.executable, "-m", "localcluster.keeper"],
            {"PYTHONPATH": str(STATE / "keeper")},
        )
        _declare()
        for node in nodes:
            start_node(node)
        start_proxy()
    with step("wait until the nodes are ready"):
        _wait_for_nodes(nodes)


def _prepare(nodes: list[Node]) -> None:
    """What has to be there before the first process."""
    with step("make keys, certificates and the bridge"):
        check_ports()
        STATE.mkdir(mode=0o755)
        FORWARD_BEFORE.write_text(FORWARD.read_text())
        make_bridge(nodes[0])
        keep_inside()
        make_identities()
        # A copy: the cluster outlives the checkout that started it.
        package = STATE / "keeper" / "localcluster"
        shutil.copytree(
            CHECKOUT / "tools" / "cluster" / "localcluster",
            package,
            ignore=shutil.ignore_patterns("*.pyc"),
        )


def _declare() -> None:
    """The mark of a test cluster, and the StorageClasses."""
    mark: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace"}
    mark["metadata"] = {"name": "kube-system", "labels": {TEST_CLUSTER: "true"}}
    apply(
        mark,
        _storage_class("local-rwx", "Immediate", default=True),
        _storage_class("local-rwx-wait"),
    )


def _storage_class(
    name: str, binding: str = "WaitForFirstConsumer", default: bool = False
) -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}
            if default
            else {},
        },
        "provisioner": "pretune.dev/local",
        "volumeBindingMode": binding,
        "reclaimPolicy": "Delete",
    }


def _wait_for_nodes(nodes: list[Node]) -> None:
    for node in nodes:
        programs = node_programs(node)
        wait_until(
            partial(_ready, node),
            90,
            f"{node.name} to be ready",
            LOGS / f"{programs[1]}.log",
            needs=programs,
        )
        if PRODUCT not in get("node", node.name)["metadata"]["labels"]:
            label(node.name, node.product)


def _ready(node: Node) -> bool:
    """Its kubelet answers; it is Ready, open to pods (no taints left) and has its GPUs."""
    if not answers(("127.0.0.1", node.health_port)):
        return False
    for found in get("nodes")["items"]:
        if found["metadata"]["name"] == node.name:
            status = found["status"]
            ready = any(
                c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])
            )
            gpus = status.get("allocatable", {}).get("nvidia.com/gpu") == str(GPUS)
            return ready and gpus and not found["spec"].get("taints")
    return False


def label(node: str, product: str) -> None:
    """Give a node another GPU product."""
    kubectl("label", "node", node, "--overwrite", f"{PRODUCT}={product}")


def _leave_kubeconfig() -> None:
    file = CHECKOUT / ".local" / "kubeconfig"
    file.parent.mkdir(exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(ADMIN.read_text())
    os.replace(fresh, file)
    print(f"           kubectl --kubeconfig {os.path.relpath(file)} get nodes", flush=True)
