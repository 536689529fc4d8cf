"""What pretune knows of vLLM: flags, releases, and the rank rule as a law."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.api.reasons import REASONS
from pretune.engines.vllm import cli, releases
from pretune.engines.vllm.files import Tactics, Unsound, read_tactics

from tests.unit.agent.pod import KEY, managed_store, rank_file, rank_files

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
    assert cli.port(words) == port


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
    assert cli.several_pods(words) == flag


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
    assert cli.registers_itself(words, env) == named


@pytest.mark.parametrize(
    ("version", "gpus", "reason"),
    [
        ("0.21.0", 1, "ReleaseTooOld"),
        ("0.22.0", 1, "ReleaseTooOld"),
        ("0.24.0", 8, "ReleaseTooOld"),
        ("0.25.1", 1, ""),
        ("0.26.0", 1, ""),
        ("0.26.0", 2, "ReleaseTooOld"),
        ("0.27.0", 1, ""),
        ("0.27.0", 2, "SharedLayout"),
        ("0.31.0rc1.dev3+g1a2b", 8, "SharedLayout"),
        ("0.31.0", 0, ""),
        ("0.32.0", 8, ""),
        ("0.33.0+cu130", 8, ""),
        ("1.0.0", 8, ""),
        ("", 8, ""),
        ("0.1.dev1+g5f3a", 8, ""),
        ("dev", 8, ""),
    ],
)
def test_a_release_is_refused_by_version_and_number_of_gpus(
    version: str, gpus: int, reason: str
) -> None:
    told, message = releases.support(version, gpus)
    assert told == reason
    if reason:
        assert version in message and reason in REASONS
    elif not version.startswith(("0.2", "0.3", "1.")):
        assert "version" in message


# --- the rank rule

sizes = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans()
)  # tp, pp, dp, ranks count on over dp


def world(tp: int, pp: int, dp: int, counts_on: bool, entries: int = 3) -> dict[str, bytes]:
    """A whole engine's files; its pipeline's stages tuned different numbers of ops."""
    files = {}
    for replica in range(dp):
        for rank in range(tp * pp):
            shown = rank + replica * tp * pp if counts_on else rank
            stage = rank // tp
            files[f"{KEY}/autotune_configs_dp{replica}_rank{shown}.json"] = rank_file(
                entries + stage
            )
    return files


def words(tp: int, pp: int) -> list[str]:
    return [*SERVE, "-tp", str(tp), f"--pipeline-parallel-size={pp}"]


def told(files: Mapping[str, bytes], command: list[str]) -> Tactics:
    return read_tactics(list(files), files.__getitem__, 0, command)


@given(sizes)
def test_a_whole_engines_files_pass_and_count_what_one_engine_loads(
    size: tuple[int, int, int, bool],
) -> None:
    tp, pp, dp, _ = size
    found = told(world(*size), words(tp, pp))
    assert (found.layout, found.rank_files) == ("PerRank", tp * pp * dp)
    assert found.entries == sum(3 + stage for stage in range(pp))


@given(sizes.filter(lambda size: size[0] > 1), st.data())
def test_one_missing_file_of_a_tensor_parallel_group_is_found(
    size: tuple[int, int, int, bool], data: st.DataObject
) -> None:
    files = world(*size)
    del files[data.draw(st.sampled_from(sorted(files)))]
    with pytest.raises(Unsound) as refused:
        told(files, words(size[0], size[1]))
    assert refused.value.reason == "IncompleteRanks"


@given(st.integers(2, 8), st.data())
def test_a_gap_is_found_without_knowing_the_engines_flags(count: int, data: st.DataObject) -> None:
    files = rank_files(count)
    missing = data.draw(st.integers(0, count - 2))
    del files[f"{KEY}/autotune_configs_dp0_rank{missing}.json"]
    with pytest.raises(Unsound, match=f"dp0_rank{missing}.json is missing"):
        told(files, SERVE)


@given(st.integers(2, 6), st.integers(0, 5), st.integers(4, 9))
def test_one_rank_that_disagrees_is_found(count: int, which: int, entries: int) -> None:
    files = rank_files(count)
    files[f"{KEY}/autotune_configs_dp0_rank{which % count}.json"] = rank_file(entries)
    with pytest.raises(Unsound, match="the ranks disagree"):
        told(files, SERVE)


def test_ranks_with_as_many_entries_of_other_operations_are_told() -> None:
    """Each start of vLLM 0.32 would hang with them (docs/ranks.md); its own comparison, of counts, says nothing."""
    other = rank_file(3).replace(b"('op', 'Runner', ((2,", b"('another_op', 'Runner', ((2,")
    files = {**rank_files(2), f"{KEY}/autotune_configs_dp0_rank1.json": other}
    found = told(files, SERVE)
    assert (
        found.unlike.endswith("rank1.json hold unlike entries of another_op")
        and found.unlike in found.message()
    )
    assert not told(rank_files(2), SERVE).unlike
    stages = {**rank_files(1), f"{KEY}/autotune_configs_dp0_rank1.json": other}
    assert not told(stages, words(1, 2)).unlike, "stages tune operations of their own"


def test_a_pipeline_stage_that_tuned_nothing_may_be_silent() -> None:
    files = {
        path: data
        for path, data in world(2, 2, 1, False).items()
        if "rank2" not in path and "rank3" not in path
    }
    assert told(files, words(2, 2)).entries == 3


@given(st.permutations(sorted({**rank_files(3), **managed_store(2), "x.txt": b""})))
def test_the_order_of_a_listing_changes_nothing(paths: list[str]) -> None:
    files = {**rank_files(3), **managed_store(2), "x.txt": b""}
    assert read_tactics(paths, files.__getitem__) == read_tactics(sorted(files), files.__getitem__)


def test_records_of_products_count_as_tuned() -> None:
    files = {
        f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(0, _records={"moe": {"a": 1, "b": 2}})
    }
    assert (told(files, SERVE).layout, told(files, SERVE).entries) == ("PerRank", 2)


def test_what_flashinfer_could_not_tell_stays_unknown() -> None:
    files = {
        f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(
            1, {"gpu": "NVIDIA H200", "cuda_version": "unknown"}
        )
    }
    found = told(files, SERVE)
    assert (found.gpu, found.cuda, found.flashinfer) == ("NVIDIA H200", "", "")


@given(st.binary(max_size=200))
def test_no_content_of_a_file_raises_anything_but_unsound(raw: bytes) -> None:
    for path in (*managed_store(1), *rank_files(1), f"{KEY}/autotune_configs.json"):
        with suppress(Unsound):
            read_tactics([path], lambda _: raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_metadata", "_records", "key", "runner", "op"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_json_raises_anything_but_unsound(value: object) -> None:
    raw = json.dumps(value).encode()
    for path in (*managed_store(1), *rank_files(1), f"{KEY}/autotune_configs.json"):
        with suppress(Unsound):
            read_tactics([path], lambda _: raw)
