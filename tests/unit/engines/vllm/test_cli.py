"""What pretune reads from vLLM's command line and variables."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pretune.engines.vllm import cli

SERVE = ["vllm", "serve", "m"]


def script(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


@pytest.mark.parametrize(
    ("words", "port"),
    [
        (SERVE, 8000),
        ([*SERVE, "--port", "9000"], 9000),
        ([*SERVE, "--port=9000"], 9000),
        ([*SERVE, "--port", "1", "--port", "2"], 2),
        (["--model", "m", "--port", "81"], 81),
        (script("exec vllm serve m --port 9000 --enforce-eager"), 9000),
        (["bash", "-lc", "vllm serve m \\\n  --port=9000\n"], 9000),
        (script("vllm serve m --port 9000; sleep 1"), 9000),
        (script("vllm serve 'm --port 9000"), 9000),
        ([*SERVE, "--port", "$(PORT)"], 8000),
        ([*SERVE, "--chat-template", "--port 9000"], 8000),
        ([], 8000),
    ],
)
def test_the_port_is_read_as_vllm_reads_it(words: list[str], port: int) -> None:
    assert cli.read_port(words) == port


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (SERVE, None),
        ([*SERVE, "--tensor-parallel-size", "8", "--pipeline-parallel-size", "2"], None),
        ([*SERVE, "--nnodes", "1"], None),
        ([*SERVE, "--nnodes", "2"], "--nnodes 2"),
        ([*SERVE, "--nnodes=2"], "--nnodes 2"),
        ([*SERVE, "--nnodes", "$(NODES)"], "--nnodes $(NODES)"),
        ([*SERVE, "-n", "2"], "-n 2"),
        (script("head -n 2 /etc/hosts; vllm serve m"), None),
        ([*SERVE, "--node_rank", "1"], "--node-rank 1"),
        ([*SERVE, "--headless"], "--headless"),
        (script("if true; then exec vllm serve m --headless; fi"), "--headless"),
        ([*SERVE, "--data-parallel-size", "4"], None),
        ([*SERVE, "--data-parallel-size", "4", "--data-parallel-size-local", "4"], None),
        (
            [*SERVE, "--data-parallel-size", "4", "--data-parallel-size-local", "2"],
            "--data-parallel-size-local 2",
        ),
        ([*SERVE, "-dp", "4", "-dpl", "$N"], "-dpl $N"),
        ([*SERVE, "--data-parallel-rank", "0"], "--data-parallel-rank 0"),
        ([*SERVE, "--data-parallel-start-rank", "2"], "--data-parallel-start-rank 2"),
        (script("ray start --head --port=6379; vllm serve m"), None),
        (
            script("ray start --address=$LWS_LEADER_ADDRESS:6379 --block"),
            "ray start --address $LWS_LEADER_ADDRESS:6379",
        ),
        (
            script("bash multi-node-serving.sh leader --ray_cluster_size=2; vllm serve m"),
            "--ray-cluster-size 2",
        ),
        ([*SERVE, "--distributed-executor-backend", "ray"], None),
    ],
)
def test_an_engine_of_several_pods_is_known_by_its_flag(words: list[str], flag: str | None) -> None:
    assert cli.find_multi_pod_flag(words) == flag


@pytest.mark.parametrize(
    ("words", "env", "named"),
    [
        (SERVE, {"VLLM_API_KEY": "x", "HF_HOME": "/models"}, None),
        (SERVE, {"DYN_NAMESPACE": "prod"}, "DYN_NAMESPACE"),
        (SERVE, {"DYN_SYSTEM_PORT": ""}, "DYN_SYSTEM_PORT"),
        (["python3", "-m", "dynamo.vllm", "--model", "m"], {}, "-m dynamo.vllm"),
        (script("python3 -m dynamo.vllm"), {}, "-m dynamo.vllm"),
        (SERVE, {"LMCACHE_CHUNK_SIZE": "256", "LMCACHE_LOCAL_CPU": "True"}, None),
        (SERVE, {"LMCACHE_CONTROLLER_PULL_URL": "c:8300"}, "LMCACHE_CONTROLLER_PULL_URL"),
        (SERVE, {"LMCACHE_ENABLE_CONTROLLER": "True"}, "LMCACHE_ENABLE_CONTROLLER"),
        (SERVE, {"LMCACHE_ENABLE_CONTROLLER": "False"}, None),
        (SERVE, {"LMCACHE_REMOTE_URL": "redis://r:6379"}, None),
        (SERVE, {"LMCACHE_REMOTE_URL": "mooncakestore://m:1"}, "LMCACHE_REMOTE_URL"),
        (SERVE, {"MOONCAKE_CONFIG_PATH": "/m.json"}, "MOONCAKE_CONFIG_PATH"),
        (
            [*SERVE, "--kv-transfer-config", '{"kv_connector": "MooncakeConnector"}'],
            {},
            "--kv-transfer-config",
        ),
        (
            [*SERVE, '--kv_transfer_config={"kv_connector_extra_config":{"proxy_ip":"p"}}'],
            {},
            "--kv-transfer-config",
        ),
        ([*SERVE, "--kv-transfer-config", '{"kv_connector": "LMCacheConnectorV1"}'], {}, None),
        (
            [*SERVE, "--kv-transfer-config.kv_connector", "MooncakeStoreConnector"],
            {},
            "--kv-transfer-config.kv-connector",
        ),
    ],
)
def test_an_engine_that_registers_itself_is_known_by_its_variable_or_flag(
    words: list[str], env: Mapping[str, str], named: str | None
) -> None:
    assert cli.find_registration(words, env) == named
