"""The agent in a pod on this machine: a claim, an override folder, and an engine that answers."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pretune.agent.__main__ import run
from pretune.agent.claim.digests import find_checked_bundle
from pretune.agent.claim.fs import Disk
from pretune.agent.claim.store import open_store
from pretune.agent.context import Context
from pretune.engines.vllm.engine import VLLM
from pretune.protocol import Inputs, Report, Task

METADATA = {"flashinfer_version": "0.7.2.post1", "cuda_version": "13.0", "gpu": "NVIDIA B200"}
KEY = "ab" * 32
CACHE = "inference.qwen3"
INPUTS = Inputs("f0" * 32, "", "b200", {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}})
STORE = "v2/89172486d811d057"


def rank_file(entries: int, metadata: Any = None, **more: Any) -> bytes:
    """A v1 file as FlashInfer 0.7.2 writes it."""
    tuned = {
        f"('op', 'Runner', (({n}, 8),), (torch.bfloat16,))": [
            "Runner",
            n,
            ["l2_cache_policy", "hot"],
        ]
        for n in range(entries)
    }
    return json.dumps(
        {
            "_metadata": METADATA if metadata is None else metadata,
            **tuned,
            "_generation": "00",
            **more,
        },
        indent=2,
    ).encode()


def rank_files(count: int, entries: int = 3, key: str = KEY) -> dict[str, bytes]:
    return {
        f"{key}/autotune_configs_dp0_rank{rank}.json": rank_file(entries) for rank in range(count)
    }


def managed_store(entries: int) -> dict[str, bytes]:
    files = {f"{STORE}/manifest.json": json.dumps({"cache_schema": "v2", **METADATA}).encode()}
    for n in range(entries):
        key = f"('op', 'Runner', (({n}, 8),))"
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        files[f"{STORE}/entries/{name}.json"] = json.dumps(
            {"key": key, "runner": "Runner", "tactic": n}
        ).encode()
    return files


class AgentPod:
    """A pod's claim and its folder for each part of vLLM, below a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.claim, self.tactics = root / "claim", root / "tactics"
        self.proc = root / "proc"  # of a node that does not name its GPUs, unless a test writes it
        self.claim.mkdir()
        for part in VLLM.parts:
            (root / part.name).mkdir()
        self.log_lines: list[str] = []

    @property
    def folder(self) -> Path:
        """The cache's folder on the claim."""
        return self.claim / CACHE

    @property
    def bundles(self) -> Path:
        return self.folder / "bundles"

    def bundle(self, inputs: Inputs = INPUTS) -> Path:
        return self.bundles / inputs.bundle_id()

    def write_tactics(self, files: dict[str, bytes], folders: tuple[str, ...] = ()) -> AgentPod:
        """Write what the engine leaves, in place of what was there, with mkstemp's mode."""
        for name in sorted(os.listdir(self.tactics)):
            _remove(self.tactics / name)
        for folder in folders:
            (self.tactics / folder).mkdir(parents=True)
        for path, content in files.items():
            file = self.tactics / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o600)
        return self

    def context(self, uid: str = "pod-1", disk: Disk | None = None, **task: Any) -> Context:
        default = Task(CACHE, inputs=INPUTS, gpus=1, ready=None, command=["/absent/vllm"])
        return Context(
            task=replace(default, **task),
            pod_uid=uid,
            claim=str(self.claim),
            parts=str(self.claim.parent),
            proc=str(self.proc),
            path="/absent",
            disk=disk or Disk(),
            settle_seconds=0.0,
            answer_seconds=0.0,
            log=self.log_lines.append,
        )

    def run(self, verb: str, uid: str = "pod-1", disk: Disk | None = None, **task: Any) -> Report:
        return run(verb, self.context(uid, disk, **task))

    def seal(self, files: dict[str, bytes], **task: Any) -> Report:
        report = self.write_tactics(files).run("seal", **task)
        assert report.reason in ("Sealed", "NothingToTune"), report
        return report

    def find_bundle(self, inputs: Inputs = INPUTS) -> Any:
        """Return the whole bundle, or None. Raises DamagedBundle."""
        store = open_store(str(self.claim), "", CACHE)
        if store is None:
            return None
        with store:
            return find_checked_bundle(store.bundles, inputs.bundle_id(), inputs)

    def staging(self) -> list[str]:
        """The names below the cache's .staging."""
        return sorted(os.listdir(self.folder / ".staging"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink()


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that is visible of a tree: type and mode, time, content."""
    entries = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        entries[str(path.relative_to(folder))] = (
            oct(status.st_mode),
            status.st_mtime_ns if content else None,
            content,
        )
    return entries


def read_tree(folder: Path) -> dict[str, bytes | None]:
    """Return the files below with their bytes, the folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def serve_engine(
    *answers: int,
    silent_from: int = 1000,
    at: str = "127.0.0.1",
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Run an HTTP engine with these status codes as answers, the last one for ever.

    Yields its URL, and a list of each request's headers. From request `silent_from` on it does not
    answer.
    """
    left, requests, over = list(answers), [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(dict(self.headers))
            if len(requests) >= silent_from:
                over.wait(60)
                return
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((at, 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/health", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
