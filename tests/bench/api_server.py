"""An API server and its etcd, without the rest of a cluster.

10,000 pods would be too many for a machine that also runs them. Here nothing schedules, starts or
deletes anything: an object is what was written, status included. So only the controller's own work
is measured, with a real API.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.cluster.conftest import BUILD
from tests.ports import free_port


@contextmanager
def run_api_server() -> Iterator[str]:
    """Run both while the body runs. Yield the path of an administrator's kubeconfig."""
    folder = Path(tempfile.mkdtemp(prefix="pretune-bench-"))
    programs: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            program = shutil.which(name) or str(BUILD / "bin" / name)
            programs.append(subprocess.Popen([program, *words], stdout=log, stderr=log, cwd=folder))

    etcd, peer, port = (free_port() for _ in range(3))
    token = secrets.token_hex(16)
    try:
        key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"]
        subprocess.run(key, check=True, capture_output=True, cwd=folder)
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        start(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )
        start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={folder / 'certs'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=AlwaysAllow",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.97.0.0/16",
            "--service-account-issuer=https://bench.invalid",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
        )
        server = f"https://127.0.0.1:{port}"
        _until_ready(server, token, programs, folder)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "bench",
                    "cluster": {
                        "server": server,
                        "certificate-authority": str(folder / "certs/apiserver.crt"),
                    },
                }
            ],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "admin"}}],
            "current-context": "bench",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        yield str(folder / "kubeconfig")
    finally:
        for program in reversed(programs):
            program.kill()
            program.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _until_ready(
    server: str, token: str, programs: list[subprocess.Popen[bytes]], folder: Path
) -> None:
    end = time.monotonic() + 90
    while True:
        crt = folder / "certs/apiserver.crt"
        try:
            if crt.exists():
                answer = requests.get(
                    f"{server}/readyz",
                    headers={"Authorization": f"Bearer {token}"},
                    verify=str(crt),
                    timeout=5,
                )
                if answer.text == "ok":
                    return
        except (requests.RequestException, OSError):
            pass
        ended = next((program for program in programs if program.poll() is not None), None)
        if ended is not None or time.monotonic() > end:
            logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
            raise RuntimeError(f"the bench's API server did not start:\n{logs}")
        time.sleep(0.1)
