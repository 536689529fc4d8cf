"""etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from localcluster.kubectl import api_ready
from localcluster.places import (
    API_ADDRESS,
    CONFIG,
    ETCD,
    ETCD_PEER,
    LOGS,
    PKI,
    SERVICE_RANGE,
    STATE,
)
from localcluster.processes import answers, start, stop, wait_until
from localcluster.steps import build_folder

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def start_control_plane() -> None:
    """Start what does not run, and return when the API is ready."""
    programs = build_folder() / "bin"
    start(
        "etcd",
        [
            "etcd",
            f"--data-dir={STATE / 'etcd'}",
            "--unsafe-no-fsync",  # nothing on a throw-away cluster is worth waiting for a disk
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={ETCD_PEER}",
            f"--initial-advertise-peer-urls={ETCD_PEER}",
            f"--initial-cluster=default={ETCD_PEER}",
        ],
    )
    start(
        "kube-apiserver",
        [
            programs / "kube-apiserver",
            f"--etcd-servers={ETCD}",
            f"--bind-address={API_ADDRESS}",
            f"--advertise-address={API_ADDRESS}",
            "--secure-port=6443",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={PKI / 'api.crt'}",
            f"--tls-private-key-file={PKI / 'api.key'}",
            f"--token-auth-file={PKI / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={PKI / 'sa.key'}",
            f"--service-account-signing-key-file={PKI / 'sa.key'}",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",  # webhooks by their endpoints: no kube-proxy rule to wait for
            "--kubelet-preferred-address-types=InternalIP",  # node names do not resolve
            f"--kubelet-client-certificate={PKI / 'to-kubelet.crt'}",
            f"--kubelet-client-key={PKI / 'to-kubelet.key'}",
            f"--audit-policy-file={CONFIG / 'audit.yaml'}",
            f"--audit-log-path={LOGS / 'audit.log'}",
        ],
    )
    wait_until(
        api_ready,
        60,
        "the API server",
        LOGS / "kube-apiserver.log",
        needs=("etcd", "kube-apiserver"),
    )
    start(
        "kube-controller-manager",
        [
            programs / "kube-controller-manager",
            f"--kubeconfig={PKI / 'controller-manager.kubeconfig'}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={PKI / 'sa.key'}",
            f"--root-ca-file={PKI / 'ca.crt'}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
    )
    start(
        "kube-scheduler",
        [
            programs / "kube-scheduler",
            f"--kubeconfig={PKI / 'scheduler.kubeconfig'}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ],
    )


def restart(program: str) -> None:
    """Kill one of PROGRAMS, as a crash would, and start it again; returns when the API is ready."""
    stop([program])
    if (
        program == "kube-apiserver"
    ):  # a large process needs a moment to end, and its successor would find the port taken
        wait_until(
            lambda: not answers((API_ADDRESS, 6443)),
            30,
            "the killed API server to release its port",
        )
    start_control_plane()
