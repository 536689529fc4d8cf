"""Makes the identities of the cluster's programs and clients.

A CA, the API server's certificates, and a random token for each client.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from pathlib import Path

from localcluster.places import API_ADDRESS, API_SERVER, NODES, PKI, SERVICE_ADDRESS
from localcluster.steps import StepError

DAYS = "3650"
NAMES = f"subjectAltName=IP:{API_ADDRESS},IP:127.0.0.1,IP:{SERVICE_ADDRESS},DNS:localhost,DNS:kubernetes.default.svc"

CLIENTS = {  # user and groups by the name of the kubeconfig
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    **{node.name: (f"system:node:{node.name}", "system:nodes") for node in NODES},
}


def make_identities() -> None:
    """Make all keys, certificates and kubeconfigs under pki/, unless they are there."""
    if (PKI / "complete").exists():
        return
    PKI.mkdir(mode=0o700, parents=True, exist_ok=True)
    _openssl(
        "req",
        "-x509",
        *_new_key("ca"),
        "-days",
        DAYS,
        "-subj",
        "/CN=pretune-cluster",
        "-out",
        PKI / "ca.crt",
    )
    _certificate("api", "/CN=kube-apiserver", NAMES)
    _certificate(
        "to-kubelet", "/O=system:masters/CN=apiserver-to-kubelet", "extendedKeyUsage=clientAuth"
    )
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", PKI / "sa.key")
    rows = []
    for name, (user, group) in CLIENTS.items():
        token = secrets.token_hex(24)
        rows.append(",".join(filter(None, [token, user, user, group])))
        _write(PKI / f"{name}.token", token)
        _write(PKI / f"{name}.kubeconfig", json.dumps(_kubeconfig(name, token), indent=2))
    _write(PKI / "tokens.csv", "\n".join(rows))
    (PKI / "complete").touch()


def _new_key(name: str) -> list[str | Path]:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*curve, "-keyout", PKI / f"{name}.key"]


def _certificate(name: str, subject: str, extension: str) -> None:
    request, extensions = PKI / f"{name}.csr", PKI / f"{name}.ext"
    extensions.write_text(extension)
    _openssl("req", *_new_key(name), "-subj", subject, "-out", request)
    signed_by: list[str | Path] = [
        "-CA",
        PKI / "ca.crt",
        "-CAkey",
        PKI / "ca.key",
        "-CAcreateserial",
    ]
    out = PKI / f"{name}.crt"
    _openssl(
        "x509",
        "-req",
        "-in",
        request,
        *signed_by,
        "-days",
        DAYS,
        "-extfile",
        extensions,
        "-out",
        out,
    )


def _kubeconfig(name: str, token: str) -> dict[str, object]:
    ca = base64.b64encode((PKI / "ca.crt").read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "pretune", "cluster": {"server": API_SERVER, "certificate-authority-data": ca}}
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "pretune", "context": {"cluster": "pretune", "user": name}}],
        "current-context": "pretune",
    }


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text + "\n")


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
