"""Which annotations of a template its copy gets: all but those that act. Pure.

An annotation acts if some program of the cluster does something for a pod because of it: it gives
the pod an address, adds it to a group, a queue or a register, or sends requests to it. A copy with
it would do so beside the pods that serve. Labels need no such list: none of the template's is
copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pretune.intake import ANNOTATION, parse_json

# Names of annotations that are not copied, each with what it does. One that ends with "/" stands for
# all names in that domain and in those below it. docs/copies.md shows this list.
ACTING_ANNOTATIONS: tuple[tuple[str, str], ...] = (
    # an address of its own, or what was recorded about one
    ("cni.projectcalico.org/ipAddrs", "a fixed address (Calico)"),
    ("cni.projectcalico.org/ipAddrsNoIpam", "a fixed address (Calico)"),
    ("cni.projectcalico.org/floatingIPs", "a floating address (Calico)"),
    ("cni.projectcalico.org/hwAddr", "a fixed hardware address (Calico)"),
    ("cni.projectcalico.org/podIP", "the address of the pod that serves (Calico)"),
    ("cni.projectcalico.org/podIPs", "the addresses of the pod that serves (Calico)"),
    ("cni.projectcalico.org/containerID", "the sandbox of the pod that serves (Calico)"),
    ("cni.cilium.io/mac-address", "a fixed hardware address (Cilium)"),
    ("ipam.antrea.io/", "a fixed address or a pool of them (Antrea)"),
    ("ipam.spidernet.io/", "a fixed address or a pool of them (Spiderpool)"),
    ("ovn.kubernetes.io/", "a fixed address (Kube-OVN)"),
    ("k8s.ovn.org/", "the networks of the pod that serves (OVN-Kubernetes)"),
    ("vpc.amazonaws.com/", "the addresses of the pod that serves (AWS VPC CNI)"),
    ("k8s.v1.cni.cncf.io/network-status", "the addresses of the pod that serves (Multus)"),
    ("k8s.v1.cni.cncf.io/networks-status", "the addresses of the pod that serves (Multus)"),
    # a group of pods that start or are scheduled together
    ("dual-pods.llm-d.ai/", "pairs the pod with a launcher (FMA)"),
    ("scheduling.k8s.io/group-name", "a group of pods (Volcano)"),
    ("volcano.sh/", "a group of pods (Volcano)"),
    ("pod-group.scheduling.sigs.k8s.io/", "a group of pods (coscheduling)"),
    ("scheduling.x-k8s.io/", "a group of pods (coscheduling)"),
    ("pod-group-name", "a group of pods (KAI)"),
    ("kai.scheduler/", "a group or a queue (KAI)"),
    ("gang.scheduling.koordinator.sh/", "a group of pods (Koordinator)"),
    ("yunikorn.apache.org/", "a group or a queue (YuniKorn)"),
    ("leaderworkerset.sigs.k8s.io/", "a group of pods (LeaderWorkerSet)"),
    ("jobset.sigs.k8s.io/", "a group of pods (JobSet)"),
    ("ray.io/", "a cluster of pods (KubeRay)"),
    ("grove.io/", "a group of pods (Grove)"),
    # a queue
    ("kueue.x-k8s.io/", "a queue (Kueue); the Job's queue is in spec.tuning.podTemplate"),
    # a register, or somebody who calls
    ("prometheus.io/", "requests for metrics (Prometheus)"),
    ("ad.datadoghq.com/", "requests for metrics (Datadog)"),
    ("external-dns.alpha.kubernetes.io/", "a DNS name (ExternalDNS)"),
    ("llm-d.ai/", "a pool of endpoints (llm-d)"),
    ("inference.networking.k8s.io/", "a pool of endpoints (Gateway API)"),
    ("inference.networking.x-k8s.io/", "a pool of endpoints (Gateway API)"),
    ("model.aibrix.ai/", "a pool of endpoints (AIBrix)"),
    ("consul.hashicorp.com/", "a service (Consul)"),
    ("dapr.io/", "a service and a sidecar that does not end (Dapr)"),
    ("sidecar.opentelemetry.io/", "a sidecar that does not end (OpenTelemetry)"),
    # what is said of the pod that serves only
    ("cluster-autoscaler.kubernetes.io/", "how its node is drained; the copy has its own"),
    ("karpenter.sh/", "how its node is drained; the copy has its own"),
    ("descheduler.alpha.kubernetes.io/", "whether it may be moved"),
    ("controller.kubernetes.io/", "which pod of a ReplicaSet is deleted first"),
)

# A mesh's proxy would keep the pod running after seal, and route traffic to it. Each mesh reads a
# name of its own; Istio and Kuma read both kinds.
MESH_LABELS = {"sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"}
MESH_ANNOTATIONS = {
    **MESH_LABELS,
    "linkerd.io/inject": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
}
# An attempt that is moved begins again, after minutes on GPUs.
KEEP_ON_NODE_ANNOTATIONS = {
    "karpenter.sh/do-not-disrupt": "true",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}

# Before a container's name. The API refuses a pod without a container of that name.
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"

# Networks that Multus adds: which ones is kept, for the engine may need them; what is fixed is not.
_NETWORKS = ("k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network")
# cni-args may have an address for the network's plugin, in a form of its own.
_FIXED_IN_NETWORKS = frozenset(
    {"ips", "mac", "portMappings", "infiniband-guid", "ipam-claim-reference", "cni-args"}
)


def copied_annotations(annotations: Mapping[str, str], containers: Iterable[str]) -> dict[str, str]:
    """Return the annotations of a copy: the template's, without those that act.

    With those that keep a mesh out and the pod on its node. containers: the names of the copy's
    containers; AppArmor's annotations are kept of these only.
    """
    names = set(containers)
    kept = {
        name: _without_fixed_addresses(value) if name in _NETWORKS else value
        for name, value in annotations.items()
        if not is_acting(name)
        and (not name.startswith(_APPARMOR) or name.removeprefix(_APPARMOR) in names)
    }
    return {**kept, **MESH_ANNOTATIONS, **KEEP_ON_NODE_ANNOTATIONS}


def is_acting(name: str) -> bool:
    """Whether some program does something for a pod because of an annotation of this name."""
    return any(
        f".{acting}" in f".{name}" if acting.endswith("/") else name == acting
        for acting, _ in ACTING_ANNOTATIONS
    )


def _without_fixed_addresses(networks: str) -> str:
    """Return Multus' list of networks without fixed addresses and ports of the node.

    As it is where it is no JSON: the short form has none.
    """
    try:
        listed = parse_json(networks.encode(), ANNOTATION)
    except ValueError:
        return networks
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        return networks
    kept = [
        {field: value for field, value in each.items() if field not in _FIXED_IN_NETWORKS}
        for each in listed
    ]
    return networks if kept == listed else json.dumps(kept)
