"""What the stand-in engine does towards pretune, release by release: the promises of `images/engine/README.md`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from images.engine.stand_in.arguments import ArgumentsError, parse
from images.engine.stand_in.gpus import gpu
from images.engine.stand_in.key import key
from images.engine.stand_in.profiles import Profile
from images.engine.stand_in.releases import NEWEST, RELEASES
from images.engine.stand_in.store import ManagedStore
from images.engine.stand_in.tuner import whole_file
from tests.fidelity.playing import MODEL, StandIn, files, modes, profiles_seen
from tests.fidelity.situations import KEY_RELEASES, KEYS, Gpu

SHARED = ["KEY/autotune_configs.json"]
MANAGED = ["v2/ENV/entries/ENTRY.json"] * 20 + ["v2/ENV/manifest.json"]
TP2 = ["--tensor-parallel-size", "2"]
EXPERTS = "--enable-expert-parallel"


def ranks(*names: str) -> list[str]:
    return [f"KEY/autotune_configs_{name}.json" for name in names]


def rank_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/autotune_configs*.json"))


@pytest.mark.parametrize(
    ("prefix", "vllm", "flashinfer"),
    [(name, release.vllm, release.flashinfer) for name, release in RELEASES.items()]
    + [("default", NEWEST, RELEASES[NEWEST].flashinfer), ("unknown", None, None)],
)
def test_each_prefix_carries_the_metadata_of_the_release_that_it_plays(
    engines: Path, prefix: str, vllm: str | None, flashinfer: str | None
) -> None:
    program = "from importlib.metadata import distributions; print({d.metadata['Name']: d.version for d in distributions()})"
    python = (engines / prefix / "bin/vllm").read_text().splitlines()[0][2:]
    said = subprocess.run(
        [python, "-I", "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert f"'vllm': '{vllm}'" in said if vllm else "vllm" not in said
    assert (
        f"'flashinfer-python': '{flashinfer}'" in said if flashinfer else "flashinfer" not in said
    )


@pytest.mark.parametrize(
    ("release", "args", "layout"),
    [
        ("0.24.0", [], []),
        ("0.25.1", [], SHARED),
        ("0.25.1", TP2, []),
        ("0.26.0", [], SHARED),
        ("0.27.1", [], SHARED),
        ("0.28.0", [], SHARED),
        ("0.29.0", TP2, SHARED),
        ("0.30.0", [], SHARED),
        ("0.31.0", [], SHARED),
        ("0.31.0", ["-tp=4", "--data-parallel-size=2", EXPERTS], SHARED),
        ("0.32.0", [], ranks("dp0_rank0")),
        ("0.32.0", TP2, ranks("dp0_rank0", "dp0_rank1")),
        ("0.32.0", [*TP2, "-pp", "2"], ranks("dp0_rank0", "dp0_rank1", "dp0_rank2", "dp0_rank3")),
        ("0.32.0", ["-dp", "2"], ranks("dp0_rank0")),
        ("0.32.0", ["-dp", "2", EXPERTS], ranks("dp0_rank0", "dp1_rank1")),
        ("0.33.0", [], MANAGED),
        ("unknown", [], MANAGED),
        ("0.33.0", ["-dp", "2"], MANAGED),
        ("0.33.0", TP2, ranks("dp0_rank0", "dp0_rank1")),
        ("0.33.0", ["-pp", "2"], ranks("dp0_rank0", "dp0_rank1")),
        ("0.33.0", ["--nnodes", "2"], ranks("dp0_rank0")),
        ("0.33.0", ["-dp", "2", EXPERTS], ranks("dp0_rank0", "dp1_rank1")),
        ("0.33.0", ["-O0"], []),
        ("0.33.0", ["--no-enable-flashinfer-autotune"], []),
    ],
)
def test_a_cold_start_writes_the_release_s_layout_with_mode_0600(
    stand_in: StandIn, release: str, args: list[str], layout: list[str]
) -> None:
    log = stand_in.ready(release, *args)
    assert files(stand_in.cache) == layout
    assert modes(stand_in.cache) <= {"0o600"}
    assert "stand-in for vLLM" in log.splitlines()[0]
    if rank_files(stand_in.cache) and "-pp" not in args:
        assert "Saved 20 configs" in log and "(20 new, 0 from previous config)" in log


@pytest.mark.parametrize(
    ("release", "args", "said", "replaced"),
    [
        ("0.25.1", [], "Loaded 20 configs", True),
        ("0.26.0", [], "Loaded 20 configs", True),
        ("0.27.1", [], "Saved 20 configs", True),
        ("0.31.0", [], "(0 new, 20 from previous config)", True),
        ("0.32.0", [], "Loaded 20 configs", False),
        ("0.32.0", TP2, "Loaded 20 configs", False),
        ("0.33.0", TP2, "Loaded 20 configs", False),
        ("0.33.0", [], "Preloaded 20/20 managed cache entries into memory", False),
    ],
)
def test_a_warm_start_tunes_nothing_and_writes_again_only_where_the_release_does(
    stand_in: StandIn, release: str, args: list[str], said: str, replaced: bool
) -> None:
    stand_in.ready(release, *args)
    first = {path: path.stat().st_mtime_ns for path in stand_in.cache.rglob("*.json")}
    contents = {path: path.read_bytes() for path in first}
    log = stand_in.ready(release, *args)
    assert said in log
    assert profiles_seen(log) == 0
    assert {path: path.read_bytes() for path in first} == contents
    assert ({path: path.stat().st_mtime_ns for path in first} != first) is replaced


@pytest.mark.parametrize(
    ("release", "left"),
    [
        ("0.24.0", []),
        ("0.25.1", ["KEY/"]),
        ("0.26.0", ["KEY/"]),
        ("0.31.0", SHARED),
        ("0.32.0", ["KEY/"]),
        ("0.33.0", []),
    ],
)
def test_nothing_tunable_leaves_what_the_release_leaves(
    stand_in: StandIn, release: str, left: list[str]
) -> None:
    log = stand_in.ready(release, ENGINE_ENTRIES="0")
    assert files(stand_in.cache) == left
    assert profiles_seen(log) == 0
    for file in rank_files(stand_in.cache):
        assert [name for name in json.loads(file.read_text()) if not name.startswith("_")] == []


def test_a_gpu_below_compute_capability_9_never_tunes(stand_in: StandIn) -> None:
    assert "Using FlashInfer" not in stand_in.ready("0.32.0", ENGINE_GPU="NVIDIA A100-SXM4-80GB")
    assert files(stand_in.cache) == []


@pytest.mark.parametrize(
    ("release", "args", "hit", "miss"),
    [
        ("0.24.0", [], "ok", "ok"),
        ("0.25.1", [], "crash", "crash"),
        ("0.26.0", [], "crash", "crash"),
        ("0.27.1", [], "crash", "crash"),
        ("0.31.0", [], "crash", "crash"),
        ("0.32.0", [], "ok", "crash"),
        ("0.33.0", TP2, "ok", "crash"),
        ("0.33.0", [], "ok", "ok"),
    ],
)
def test_a_read_only_mount_is_survived_or_not_as_by_the_release(
    stand_in: StandIn, release: str, args: list[str], hit: str, miss: str
) -> None:
    for situation, expected in (("miss", miss), ("hit", hit)):
        if situation == "hit":
            stand_in.ready(release, *args)
        engine = stand_in.play_read_only(stand_in.cache, release, *args)
        if expected == "ok":
            engine.until_ready()
            engine.process.kill()
            assert ("Failed to persist" in engine.log) is (
                release == "0.33.0" and situation == "miss"
            )
        else:
            assert engine.ended() == 1, situation
            assert f"OSError: [Errno {errno.EROFS}] Read-only file system" in engine.log
            assert "Engine core initialization failed" in engine.log


@pytest.mark.parametrize("release", ["0.29.0", "0.31.0"])
def test_a_warm_start_on_several_ranks_with_experts_hangs_until_gloo_gives_up(
    stand_in: StandIn, release: str
) -> None:
    stand_in.ready(release, *TP2, EXPERTS)
    engine = stand_in.play(release, *TP2, EXPERTS, ENGINE_HANG_SECONDS="0.7")
    time.sleep(0.5)
    assert engine.health() is None
    assert engine.ended() == 1
    assert "Timed out waiting 1800000ms for recv operation to complete" in engine.log


@pytest.mark.parametrize(("release", "args"), [("0.31.0", TP2), ("0.27.1", [*TP2, EXPERTS])])
def test_a_warm_start_on_several_ranks_finds_all_in_the_shared_file_where_keys_hold_no_rank(
    stand_in: StandIn, release: str, args: list[str]
) -> None:
    stand_in.ready(release, *args)
    log = stand_in.ready(release, *args)
    assert log.count("Loaded 20 configs") == 2
    assert "stand-in: profiled 0" in log and "stand-in: rank 1: profiled 0" in log


def test_ranks_whose_files_lack_different_numbers_of_entries_wait_for_each_other(
    stand_in: StandIn,
) -> None:
    """vLLM compares only how many entries there are: one that no operation asks for hides that another is missing."""
    stand_in.ready("0.32.0", *TP2)
    content = json.loads(rank_files(stand_in.cache)[1].read_text())
    name = next(name for name in content if not name.startswith("_"))
    content["('another', 'StandInRunner', ((1, 8), (8, 4)), ())"] = content.pop(name)
    rank_files(stand_in.cache)[1].write_text(json.dumps(content))
    assert stand_in.play("0.32.0", *TP2, ENGINE_HANG_SECONDS="0").ended() == 1


def test_a_file_of_another_gpu_is_skipped_and_never_replaced(stand_in: StandIn) -> None:
    stand_in.ready("0.32.0", ENGINE_GPU="NVIDIA H100 80GB HBM3")
    (file,) = rank_files(stand_in.cache)
    before = file.read_bytes()
    log = stand_in.ready("0.32.0")
    assert (
        "was created in a different environment (gpu: saved=NVIDIA H100 80GB HBM3 vs current=NVIDIA H200)"
        in log
    )
    assert profiles_seen(log) == 20
    assert file.read_bytes() == before


def test_a_file_of_an_unknown_gpu_is_skipped_and_replaced(stand_in: StandIn) -> None:
    stand_in.ready("0.32.0", ENGINE_GPU="unknown")
    assert "the next save will replace it" in stand_in.ready("0.32.0")
    (file,) = rank_files(stand_in.cache)
    assert json.loads(file.read_text())["_metadata"]["gpu"] == "NVIDIA H200"


def test_another_gpu_has_its_own_folder_in_the_managed_store(stand_in: StandIn) -> None:
    stand_in.ready("0.33.0")
    assert profiles_seen(stand_in.ready("0.33.0", ENGINE_GPU="NVIDIA B200")) == 20
    assert len(list((stand_in.cache / "v2").iterdir())) == 2


def drop_an_entry(file: Path) -> None:
    content = json.loads(file.read_text())
    del content[next(name for name in content if not name.startswith("_"))]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("release", "args", "spoilt", "tuned", "said"),
    [
        ("0.31.0", [], 1, 1, "(1 new, 19 from previous config)"),
        ("0.32.0", [], 1, 1, "(1 new, 19 from previous config)"),
        ("0.32.0", TP2, 2, 1, "(1 new, 19 from previous config)"),
        ("0.32.0", TP2, 1, 20, "Saved 20 configs"),
        ("0.33.0", TP2, 1, 20, "Saved 20 configs"),
        (
            "0.33.0",
            TP2,
            2,
            0,
            "Loaded 19 configs",
        ),  # a hit skips the sweep: the entry stays on its heuristic
    ],
)
def test_a_partial_bundle_is_completed_as_the_release_does(
    stand_in: StandIn, release: str, args: list[str], spoilt: int, tuned: int, said: str
) -> None:
    stand_in.ready(release, *args)
    for file in rank_files(stand_in.cache)[-spoilt:]:
        drop_an_entry(file)
    log = stand_in.ready(release, *args)
    assert profiles_seen(log) == tuned
    assert said in log


def test_a_missing_entry_of_the_managed_store_is_tuned_alone(stand_in: StandIn) -> None:
    stand_in.ready("0.33.0")
    next(stand_in.cache.glob("v2/*/entries/*.json")).unlink()
    log = stand_in.ready("0.33.0")
    assert "Preloaded 19/19" in log
    assert profiles_seen(log) == 1
    assert files(stand_in.cache) == MANAGED


def test_pipeline_stages_have_their_own_operations_and_numbers(stand_in: StandIn) -> None:
    stand_in.ready("0.33.0", "-pp", "2", "-tp", "2")
    contents = [json.loads(file.read_text()) for file in rank_files(stand_in.cache)]
    assert [len(content) - 2 for content in contents] == [20, 20, 19, 19]
    assert not set(contents[0]) & set(contents[2]) - {"_metadata", "_generation"}


@pytest.mark.parametrize(
    ("release", "root"),
    [
        (
            "0.31.0",
            ".cache/vllm/flashinfer_autotune_cache/0.7.0.post1/90a/KEY/autotune_configs.json",
        ),
        ("0.33.0", ".cache/flashinfer/autotune/v2/ENV/manifest.json"),
    ],
)
def test_without_an_override_the_default_root_under_home_is_used(
    stand_in: StandIn, release: str, root: str
) -> None:
    stand_in.ready(release, VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR="")
    assert root in files(stand_in.home)
    assert files(stand_in.cache) == []


def test_without_an_override_a_home_that_cannot_be_written_ends_it(stand_in: StandIn) -> None:
    engine = stand_in.play_read_only(stand_in.home, "0.32.0", VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR="")
    assert engine.ended() == 1
    assert "Read-only file system" in engine.log


def test_health_is_refused_until_the_warm_up_is_done_and_then_ok(stand_in: StandIn) -> None:
    engine = stand_in.play("0.33.0", ENGINE_SECONDS_PER_ENTRY="0.05", ENGINE_START_SECONDS="0.2")
    began = time.monotonic()
    while "Autotuning process ends" not in engine.log:
        assert engine.health() is None or "Autotuning process ends" in engine.log
        assert time.monotonic() < began + 30
    engine.until_ready()
    assert time.monotonic() - began >= 20 * 0.05
    assert list(stand_in.cache.rglob("*.json"))


def test_term_ends_it_within_a_second_even_while_it_tunes(stand_in: StandIn) -> None:
    engine = stand_in.play("0.33.0", ENGINE_SECONDS_PER_ENTRY="60")
    while "Running FlashInfer autotune" not in engine.log:
        time.sleep(0.02)
    engine.process.terminate()
    assert engine.ended(1) == 0


def test_an_engine_that_hangs_on_term_has_to_be_killed(stand_in: StandIn) -> None:
    engine = stand_in.play("0.33.0", ENGINE_FAULT="hang-on-term").until_ready()
    engine.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        engine.ended(0.5)


@pytest.mark.parametrize(
    ("fault", "saved", "said"),
    [
        ("crash-at-start", 0, "CUDA driver initialization failed"),
        ("crash", 10, "an illegal memory access"),
    ],
)
def test_a_crash_is_a_traceback_and_exit_1(
    stand_in: StandIn, fault: str, saved: int, said: str
) -> None:
    engine = stand_in.play("0.33.0", ENGINE_FAULT=fault)
    assert engine.ended() == 1
    assert said in engine.log and "Traceback" in engine.log
    assert len(list(stand_in.cache.rglob("entries/*.json"))) == saved


def test_an_engine_that_is_never_ready_tunes_and_does_not_listen(stand_in: StandIn) -> None:
    engine = stand_in.play("0.33.0", ENGINE_FAULT="never-ready")
    while "Autotuning process ends" not in engine.log:
        time.sleep(0.02)
    time.sleep(0.2)
    assert engine.health() is None
    assert engine.process.poll() is None


def test_an_engine_can_die_after_it_was_ready(stand_in: StandIn) -> None:
    engine = stand_in.play(
        "0.33.0", ENGINE_FAULT="exit-after-ready", ENGINE_FAULT_AFTER="0.3"
    ).until_ready()
    assert engine.ended() == 1


WARM = [("0.26.0", []), ("0.31.0", []), ("0.32.0", TP2), ("0.33.0", TP2), ("0.33.0", [])]


@pytest.mark.parametrize(("release", "args"), WARM)
def test_a_warm_crash_strikes_only_where_tactics_are_found(
    stand_in: StandIn, release: str, args: list[str]
) -> None:
    stand_in.ready(release, *args, ENGINE_FAULT="warm-crash")
    engine = stand_in.play(release, *args, ENGINE_FAULT="warm-crash")
    assert engine.ended() == 1
    assert "Traceback" in engine.log and "an illegal memory access" in engine.log


@pytest.mark.parametrize(("release", "args"), WARM)
def test_a_warm_hang_strikes_only_where_tactics_are_found(
    stand_in: StandIn, release: str, args: list[str]
) -> None:
    stand_in.ready(release, *args, ENGINE_FAULT="warm-hang")
    engine = stand_in.play(release, *args, ENGINE_FAULT="warm-hang")
    while "oaded 20" not in engine.log:  # Loaded, or Preloaded
        time.sleep(0.02)
    time.sleep(0.2)
    assert engine.health() is None
    engine.process.terminate()
    assert engine.ended(1) == 0


@pytest.mark.parametrize(("release", "args"), WARM)
def test_an_entry_that_is_never_kept_is_tuned_anew_and_changes_the_folder(
    stand_in: StandIn, release: str, args: list[str]
) -> None:
    def entries() -> int:
        ranked = [len(json.loads(file.read_text())) for file in rank_files(stand_in.cache)]
        return max([len(list(stand_in.cache.rglob("entries/*.json"))), *ranked])

    skips = (
        release == "0.33.0" and args == TP2
    )  # a hit skips the sweep: the entry stays on its heuristic
    stand_in.ready(release, *args, ENGINE_FAULT="never-keeps-one")
    first = entries()
    for start in (1, 2):
        log = stand_in.ready(release, *args, ENGINE_FAULT="never-keeps-one")
        assert profiles_seen(log) == (0 if skips else 1)
        assert entries() == first + (0 if skips else start)


def folder_of(cache: Path) -> Path:
    return next(path for path in (*cache.glob("v2/*"), *cache.glob("[0-9a-f]*")))


@pytest.mark.parametrize("args", [[], TP2])
def test_half_written_leaves_json_that_cannot_be_read(stand_in: StandIn, args: list[str]) -> None:
    stand_in.ready("0.33.0", *args, ENGINE_FAULT="half-written")
    broken = []
    for file in stand_in.cache.rglob("*.json"):
        try:
            json.loads(file.read_text())
        except ValueError:
            broken.append(file)
    assert len(broken) == 1


def test_missing_rank_leaves_a_gap(stand_in: StandIn) -> None:
    stand_in.ready("0.33.0", *TP2, ENGINE_FAULT="missing-rank")
    assert files(stand_in.cache) == ranks("dp0_rank1")


@pytest.mark.parametrize(
    ("fault", "entries", "cudnn"),
    [
        ("uneven-ranks", [20, 19], ["92000", "92000"]),
        ("disagreeing-ranks", [20, 20], ["92000", "92300"]),
    ],
)
def test_ranks_can_differ(
    stand_in: StandIn, fault: str, entries: list[int], cudnn: list[str]
) -> None:
    stand_in.ready("0.32.0", *TP2, ENGINE_FAULT=fault)
    contents = [json.loads(file.read_text()) for file in rank_files(stand_in.cache)]
    assert [
        len([name for name in content if not name.startswith("_")]) for content in contents
    ] == entries
    assert [content["_metadata"]["cudnn_version"] for content in contents] == cudnn


@pytest.mark.parametrize("args", [[], TP2])
def test_unsafe_files_lie_among_the_others(stand_in: StandIn, args: list[str]) -> None:
    for fault in ("symlink", "dotdot", "device", "many-files", "huge", "unreadable"):
        shutil.rmtree(stand_in.cache)
        stand_in.cache.mkdir()
        stand_in.ready("0.33.0", *args, ENGINE_FAULT=fault)
        folder = folder_of(stand_in.cache)
        if fault == "symlink":
            assert os.readlink(folder / "link.json") == "/etc/passwd"
        elif fault == "dotdot":
            assert os.readlink(folder / "up") == "../.."
        elif fault == "device":
            assert (folder / "device.json").exists() and not (folder / "device.json").is_file()
        elif fault == "many-files":
            assert len(list(folder.rglob("*"))) > 10_000
        elif fault == "huge":
            assert (folder / "huge.json").stat().st_size == 300 << 20
        else:
            assert modes(folder) == {"0o600", "0o0"}


@pytest.mark.parametrize(
    ("args", "environ", "said"),
    [
        ([], {"ENGINE_FAULT": "flood"}, "ENGINE_FAULT='flood': not one of"),
        ([], {"ENGINE_ENTRIES": "many"}, "ENGINE_ENTRIES='many': a number from 0 is needed"),
        (["-tp", "two"], {}, "argument --tensor-parallel-size: invalid int value: 'two'"),
        (["another"], {}, "unrecognized arguments: another"),
        ([], {"ENGINE_FAULT": "missing-rank"}, "two rank files are needed"),
    ],
)
def test_what_it_cannot_do_ends_it_with_2_and_a_sentence(
    stand_in: StandIn, args: list[str], environ: dict[str, str], said: str
) -> None:
    engine = stand_in.play("0.33.0", *args, **environ)
    assert engine.ended() == 2
    assert said in engine.log


def test_a_file_that_is_no_json_ends_the_releases_with_a_shared_file_only(
    stand_in: StandIn,
) -> None:
    for release in ("0.31.0", "0.32.0"):
        stand_in.ready(release)
    for file in rank_files(stand_in.cache):
        file.write_text("{")
    assert stand_in.play("0.31.0").ended() == 1
    assert profiles_seen(stand_in.ready("0.32.0")) == 20


def test_names_and_hashes_are_those_of_files_that_flashinfer_wrote(tmp_path: Path) -> None:
    """From a store and a file that FlashInfer 0.7.2.post1 wrote itself, for a toy operation."""
    unknown = (
        "cublas_version",
        "cuda_version",
        "cudnn_frontend_version",
        "cudnn_version",
        "cutlass_dsl_version",
    )
    environment = {
        **dict.fromkeys(unknown, "unknown"),
        "flashinfer_version": "0.7.2.post1",
        "gpu": "NVIDIA H200",
    }
    store = ManagedStore(tmp_path, environment)
    toy = "('toy_moe', 'ToyGemmRunner', ((8, 8), (8, 4)), (torch.bfloat16, torch.bfloat16, False))"
    assert store.path(toy).relative_to(tmp_path) == Path(
        "v2/89172486d811d057/entries/95b4fb3d134b0e6add0f4926.json"
    )
    assert Profile("toy_moe", 8).key == toy.replace("ToyGemmRunner", "StandInRunner")

    policy = ["cuda_graph_profile_replays", None, "l2_cache_policy", "hot"]
    fastest = {1: 0, 16: 2, 2: 2, 4: 3, 8: 0}
    entries = {
        f"('{operation}', 'ToyGemmRunner', (({tokens}, 8), (8, 4)), (torch.bfloat16, torch.bfloat16, False))": [
            "ToyGemmRunner", tactic, policy,
        ]
        for operation in ("toy_gemm", "toy_moe")
        for tokens, tactic in fastest.items()
    }  # fmt: skip
    assert whole_file(environment, entries, RELEASES["0.33.0"].format)["_generation"] == (
        "399565ab991530e0937b83849c6b39b3092e1a283e37d5de0479f61e37f3c294"
    )


@pytest.mark.parametrize(("args", "environ", "product", "answers"), KEYS)
def test_the_key_changes_with_what_changes_vllm_s_key(
    args: str, environ: dict[str, str], product: Gpu, answers: str
) -> None:
    plain = {"HOME": "/root"}
    seen = ""
    for name in KEY_RELEASES:
        release = RELEASES[name]
        before = key(release, parse([MODEL]), gpu("NVIDIA H200"), plain)
        after = key(release, parse([MODEL, *args.split()]), gpu(product.name), {**plain, **environ})
        seen += "S" if before == after else "C"
    assert seen == answers


def test_another_model_or_spelling_of_it_has_another_key() -> None:
    release, product = RELEASES["0.33.0"], gpu("NVIDIA H200")
    keys = {
        key(release, parse([model]), product, {})
        for model in ("/models/a", "/models/a/", "/models/b")
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("words", "model", "options"),
    [
        ([], "Qwen/Qwen3-0.6B", {}),
        (["m", "--port", "1", "--port=2"], "m", {"port": "2"}),
        (
            ["--model", "m", "-tp", "2", "-O3"],
            "m",
            {"tensor-parallel-size": "2", "optimization-level": "3"},
        ),
        (
            ["--enforce-eager", "m", "--no-enable-prefix-caching"],
            "m",
            {"enforce-eager": True, "enable-prefix-caching": False},
        ),
        (
            ["m", "--max_model_len", "8", "--unheard-of"],
            "m",
            {"max-model-len": "8", "unheard-of": True},
        ),
    ],
)
def test_arguments_are_read_as_vllm_serve_reads_them(
    words: list[str], model: str, options: dict[str, object]
) -> None:
    assert parse(words) == (model, options)


def test_a_short_option_that_is_none_of_vllm_s_is_refused() -> None:
    with pytest.raises(ArgumentsError, match="-x"):
        parse(["m", "-x"])


def test_the_module_that_older_manifests_start_serves_too(stand_in: StandIn, engines: Path) -> None:
    python = engines / "0.31.0/bin/python3"
    words = [
        str(python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        MODEL,
        "-tp",
        "two",
    ]
    ended = subprocess.run(
        words, capture_output=True, text=True, check=False, env={"HOME": str(stand_in.home)}
    )
    assert ended.returncode == 2
    assert "invalid int value: 'two'" in ended.stderr
