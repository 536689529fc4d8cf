"""The name of the folder that vLLM makes for one configuration.

It cannot be vLLM's own hash; it changes with what changes vLLM's (source: `hash_matrix`, measured over eleven releases).
"""

from __future__ import annotations

import hashlib
import json
from typing import Dict, Mapping

from .arguments import Arguments, Value
from .gpus import Gpu
from .releases import Release

_NEUTRAL_OPTIONS = {
    "served-model-name", "tokenizer", "port", "host", "api-server-count", "seed", "gpu-memory-utilization", "num-gpu-blocks-override",
    "load-format", "download-dir", "enable-prefix-caching", "enable-chunked-prefill", "disable-log-stats", "scheduling-policy",
    "distributed-executor-backend", "disable-custom-all-reduce", "enable-flashinfer-autotune", "disable-flashinfer-autotune",
    "chat-template", "enable-auto-tool-choice", "tool-call-parser", "uvicorn-log-level", "skip-tokenizer-init",
}  # fmt: skip
_DEFAULTS: Dict[str, str] = {  # written out, they change nothing
    "dtype": "auto", "max-num-batched-tokens": "8192", "max-num-seqs": "1024", "optimization-level": "2",
    "tensor-parallel-size": "1", "pipeline-parallel-size": "1", "data-parallel-size": "1", "nnodes": "1",
}  # fmt: skip
_SAME = {("dtype", "bfloat16"): "auto", ("optimization-level", "3"): "2"}
_NEUTRAL_VARIABLES = {
    "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", "VLLM_CACHE_ROOT", "VLLM_LOGGING_LEVEL", "VLLM_HOST_IP", "VLLM_SERVER_DEV_MODE",
    "VLLM_WORKER_MULTIPROC_METHOD",
}  # fmt: skip


def key(release: Release, arguments: Arguments, gpu: Gpu, environ: Mapping[str, str]) -> str:
    """64 hex digits."""
    factors: Dict[str, object] = {"model": arguments.model, "options": _options(release, arguments)}
    if release.number < (0, 30):
        factors["vllm"] = release.vllm
        factors["environment"] = _environment(release, environ)
    if (0, 27) <= release.number < (0, 30):
        factors["gpu"] = gpu.name
    if release.number >= (0, 28):
        factors["family"] = gpu.capability // 10  # the attention backend and its defaults follow it
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()


def _options(release: Release, arguments: Arguments) -> Dict[str, Value]:
    kept: Dict[str, Value] = {}
    for name, value in arguments.options.items():
        if name in _NEUTRAL_OPTIONS or (
            name == "kv-cache-memory-bytes" and release.number >= (0, 26)
        ):
            continue
        if isinstance(value, str):
            value = _SAME.get((name, value), value)
        if name == "compilation-config":
            value = _without_cache_dir(str(value))
        if value != _DEFAULTS.get(name) and value != "":
            kept[name] = value
    return kept


def _without_cache_dir(text: str) -> str:
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if not isinstance(config, dict):
        return text
    config.pop("cache_dir", None)
    return json.dumps(config, sort_keys=True) if config else ""


def _environment(release: Release, environ: Mapping[str, str]) -> Dict[str, str]:
    kept = {
        name: value
        for name, value in environ.items()
        if name.startswith("VLLM_") and name not in _NEUTRAL_VARIABLES
    }
    if release.number >= (0, 29):
        kept.pop("VLLM_API_KEY", None)
    if release.number < (0, 27) and "HOME" in environ:
        kept["HOME"] = environ["HOME"]
    return kept
