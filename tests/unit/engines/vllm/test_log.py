"""What an engine's log says of its start: told from lines of every shape, in chunks of any size, and from logs that say nothing."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import strategies as st
from pretune.engines.logs import (
    MAX_LINE_BYTES,
    PARTIAL,
    TUNED,
    UNKNOWN,
    WARM,
    Difference,
    LogSummary,
)
from pretune.engines.vllm.log import MAX_WORDS, Parser

from tests.builders.strategies import law
from tests.depth import examples

KEY = "d" * 64
FILE = f"/pretune/tactics/{KEY}/autotune_configs_dp0_rank0.json"
FLASHINFER = "2026-11-23 00:00:01,000 - INFO - autotuner.py:3814 - flashinfer.jit: "
VLLM = "(EngineCore_DP0 pid=77) INFO 11-23 00:00:01 [kernel_warmup.py:497] "
READY = "(APIServer pid=1) INFO:     Application startup complete.\n"

USING = f"{VLLM}Using FlashInfer autotune cache file: {FILE}. Pass --disable-flashinfer-autotune to skip autotuning.\n"
STORE = f"{VLLM}Using FlashInfer managed autotune cache (root=/pretune/tactics). Pass --disable-flashinfer-autotune to skip autotuning.\n"
ATTACHED = (
    f"{FLASHINFER}[Autotuner]: Managed autotune cache attached for this process:"
    " ManagedAutotuneCache(env_dir='/pretune/tactics/v2/0123456789abcdef', hits=0, misses=0)\n"
)
PRELOADED = f"{FLASHINFER}[Autotuner]: Preloaded 21/21 managed cache entries into memory\n"
STARTS = f"{FLASHINFER}[Autotuner]: Autotuning process starts ...\n"
ENDS = f"{FLASHINFER}[Autotuner]: Autotuning process ends\n"


def loaded(number: int = 21, path: str = FILE) -> str:
    return f"{FLASHINFER}[Autotuner]: Loaded {number} configs from {path}\n"


def saved(new: int, before: int = 0, path: str = FILE) -> str:
    return f"{FLASHINFER}[Autotuner]: Saved {new + before} configs to {path} ({new} new, {before} from previous config)\n"


def bar(operation: str = "toy_gemm", first: int = 0, total: int = 21) -> str:
    """As tqdm draws it over itself, on stderr."""
    drawn = [f"\r[AutoTuner]: Tuning {operation}: {100 * at // total:3d}%|{'█' * (at // 3):<10}| {at}/{total} [00:00<00:00, 9.9profile/s]"
             for at in range(first, total + 1)]  # fmt: skip
    return "".join(drawn) + "\n"


def refused(what: str, path: str = FILE) -> str:
    return (
        f"{FLASHINFER}[Autotuner]: Cache file {path} was created in a different environment ({what}). Ignoring cached configs. Results will"
        " not be saved to this file to avoid overwriting configs from a different environment. Use a different cache path.\n"
    )


def read(log: str | bytes, *, until: float | None = None) -> LogSummary:
    reader = Parser(until)
    reader.feed(log.encode() if isinstance(log, str) else log)
    return reader.summary()


RANK1 = FILE.replace("rank0", "rank1")


@pytest.mark.parametrize(
    ("log", "result", "loaded_", "new"),
    [
        (USING + STARTS + bar() + ENDS + saved(21), TUNED, 0, 21),
        (USING + loaded() + STARTS + ENDS, WARM, 21, 0),
        (USING + loaded() + STARTS + ENDS + saved(0, 21), WARM, 21, 0),  # 0.27 to 0.31 save in any case
        (USING + loaded(20) + STARTS + bar(first=20) + ENDS + saved(1, 20), PARTIAL, 20, 1),
        (USING + STARTS + bar() + ENDS + saved(21) + loaded(), TUNED, 0, 21),  # 0.25 and 0.26 read what they have just written
        (USING + loaded() + STARTS + ENDS + loaded(), WARM, 21, 0),
        (USING + loaded() + STARTS + bar() + ENDS + saved(21) + saved(21, path=RANK1), TUNED, 0, 21),  # rank 1 had no file
        (USING + loaded() + loaded(path=RANK1) + STARTS + ENDS, WARM, 21, 0),
        (USING + refused("gpu: saved=A vs current=B") + STARTS + bar() + ENDS, TUNED, 0, 21),
        (STORE + ATTACHED + STARTS + bar() + ENDS, TUNED, 0, 21),
        (STORE + ATTACHED + PRELOADED + STARTS + ENDS, WARM, 21, 0),
        (STORE + ATTACHED + PRELOADED + STARTS + bar("other", first=19) + ENDS, PARTIAL, 21, 2),
        (STORE + ATTACHED + STARTS + ENDS, UNKNOWN, 0, 0),  # nothing to tune
        (USING + bar(), TUNED, 0, 21),  # FlashInfer is told to be quiet; its bars are not
        (USING, UNKNOWN, 0, 0),
        (USING + bar("a")[:60] + "\n", TUNED, 0, 1),  # it began to tune, and gave up
        (f"{VLLM}Skipping FlashInfer autotune because it is disabled.\n", UNKNOWN, 0, 0),
        ("", UNKNOWN, 0, 0),
    ],
)  # fmt: skip
def test_the_result_is_told_from_what_was_loaded_and_what_was_tuned(
    log: str, result: str, loaded_: int, new: int
) -> None:
    told = read(log + READY)
    assert (told.result, told.loaded, told.new, told.ready) == (result, loaded_, new, True)


def test_folders_operations_and_layouts_are_named() -> None:
    told = read(USING + STARTS + bar("trtllm::fused_moe::gemm1") + bar("fp4_gemm") + ENDS)
    assert told.folders == (KEY,) and not told.managed and told.swept and not told.off
    assert told.operations == ("trtllm::fused_moe::gemm1", "fp4_gemm") and told.new == 42
    told = read(STORE + ATTACHED)
    assert told.folders == ("0123456789abcdef",) and told.managed
    assert read(f"{VLLM}Skipping FlashInfer autotune because it is disabled.\n").off


def test_why_what_was_there_was_refused_is_told() -> None:
    log = refused(
        "flashinfer_version: saved=0.7.1 vs current=0.7.2.post1, gpu: saved=NVIDIA H200 vs current=NVIDIA GB200 (rev, 2)"
    )
    assert read(log).differences == (
        Difference("flashinfer_version", "0.7.1", "0.7.2.post1"),
        Difference("gpu", "NVIDIA H200", "NVIDIA GB200 (rev, 2)"),
    )
    not_saved = f"[Autotuner]: Not saving configs to {FILE}: the file was created in a different environment (gpu: saved=A vs current=B).\n"
    assert read(not_saved).differences == (Difference("gpu", "A", "B"),)


@pytest.mark.parametrize(
    "line",
    [
        "[Autotuner]: Failed to persist managed cache entry for ('toy') under /p/entries: [Errno 30] Read-only file system: '/p'\n",
        "OSError: [Errno 30] Read-only file system: '/pretune/tactics/x'\n",
    ],
)
def test_a_folder_that_cannot_be_written_is_told(line: str) -> None:
    assert read(line).read_only and not read(USING).read_only


@pytest.mark.parametrize(
    "dressed",
    [
        lambda line: f"\x1b[0;36m(Worker_TP1 pid=9)\x1b[0;0m \x1b[32mINFO\x1b[0m {line}",
        lambda line: '{"timestamp": "x", "level": "INFO", "message": "' + line.rstrip("\n").replace('"', '\\"') + '"}\n',
        lambda line: f"2026-11-23T00:00:01.123456789Z {line}",
        lambda line: f"[1,3]<stderr>: {line}",
    ],
    ids=["coloured", "json", "timestamped", "mpirun"],
)  # fmt: skip
def test_prefixes_of_any_kind_change_nothing(dressed: object) -> None:
    lines = (USING + loaded() + STARTS + ENDS).splitlines(keepends=True)
    told = read("".join(dressed(line) for line in lines))  # type: ignore[operator]
    assert (told.result, told.folders, told.loaded) == (WARM, (KEY,), 21)


@pytest.mark.parametrize(
    "sign",
    [
        READY,
        "INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)\n",
        f"{VLLM}Starting vLLM API server 0 on http://0.0.0.0:8000\n",
        f"{VLLM}Starting vLLM server on http://0.0.0.0:8000\n",
    ],
)
def test_what_is_said_behind_the_first_sign_of_readiness_is_not_looked_at(sign: str) -> None:
    reader = Parser()
    assert reader.feed((USING + loaded() + sign + bar() + saved(21)).encode())
    assert reader.ready and reader.summary().result == WARM
    assert not Parser().feed(f"{VLLM}vLLM API server version 0.33.0\n".encode())


def stamped(at: int, line: str) -> str:
    return f"2026-11-23T00:{at // 60:02d}:{at % 60:02d}.5Z {line}"


def test_with_the_kubelets_times_what_came_later_is_not_looked_at_either() -> None:
    midnight = 1795392000.0
    log = (
        stamped(3, loaded())
        + stamped(59, STARTS)
        + stamped(61, bar("served"))
        + stamped(62, saved(3, 21))
    )
    told = read(log, until=midnight + 60)
    assert told.result == WARM and told.ready and told.began == midnight + 3
    assert read(log, until=midnight + 62).result == PARTIAL
    assert read(loaded()).began is None
    assert read("2026-02-31T00:00:00Z " + loaded(), until=midnight).result == WARM  # no such day


# --- whatever comes

WHOLE = (
    USING
    + refused("gpu: saved=A vs current=B")
    + loaded(20)
    + STARTS
    + bar("a", 20)
    + bar("b")
    + ENDS
    + saved(22, 20)
    + "\n"
)


def fed(log: bytes, chunks: Iterator[bytes]) -> LogSummary:
    reader = Parser()
    for one in chunks:
        reader.feed(one)
    return reader.summary()


def pieces(log: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, *(cut % (len(log) + 1) for cut in cuts), len(log)})
    return (log[begin:end] for begin, end in pairwise(places))


FOREIGN = refused("gpu: saved=A vs current=B")
LINES = (
    USING,
    loaded(),
    saved(3, 18),
    bar(),
    STARTS,
    ATTACHED,
    PRELOADED,
    READY,
    FOREIGN,
    "\r",
    "\n",
    "\r\n",
)
NOISE = st.binary(max_size=60) | st.sampled_from([one.encode() for one in LINES])


@law(st.lists(NOISE, max_size=12), st.lists(st.integers(0, 10**6), max_size=30))
def test_in_whatever_chunks_it_comes_the_answer_is_the_same(
    parts: list[bytes], cuts: list[int]
) -> None:
    log = b"".join(parts)
    assert fed(log, pieces(log, cuts)) == read(log)


@law(st.lists(NOISE, max_size=8), st.integers(0, 10**6))
def test_a_log_that_is_cut_off_anywhere_is_read_as_far_as_it_goes(
    parts: list[bytes], cut: int
) -> None:
    log = b"".join(parts)
    assert read(log[: cut % (len(log) + 1)]).result in (WARM, PARTIAL, TUNED, UNKNOWN)


def test_lines_cut_between_bytes_of_one_letter_are_whole_again() -> None:
    log = WHOLE.encode()
    assert fed(log, (log[at : at + 1] for at in range(len(log)))) == read(log)
    assert (read(log).result, read(log).loaded, read(log).new) == (PARTIAL, 20, 22)


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("chunk", "times"),
    [
        (b"x" * MEBIBYTE, 100),  # no end of line at all
        (b"\r" * MEBIBYTE, 100),
        (random.Random(1).randbytes(MEBIBYTE), 2),
        ((bar() * 400).encode(), 2),
        (
            b"".join(
                f"[AutoTuner]: Tuning op{number}: 10%|  | {number}/900\n".encode()
                for number in range(9000)
            ),
            2,
        ),
        (
            b"".join(
                loaded(3, f"/pretune/{number}/{'y' * 300}.json").encode() for number in range(9000)
            ),
            1,
        ),
        (
            b"".join(
                saved(3, 1, f"/pretune/{number}/{'y' * 7000}.json").encode()
                for number in range(600)
            ),
            1,
        ),
        (
            (
                refused(", ".join(f"n{number}: saved=a vs current=b" for number in range(900))) * 50
            ).encode(),
            2,
        ),
    ],
    ids=[
        "one line",
        "returns",
        "binary",
        "bars",
        "operations",
        "paths",
        "long paths",
        "differences",
    ],
)
def test_hundreds_of_megabytes_of_anything_stay_small(chunk: bytes, times: int) -> None:
    reader = Parser()
    tracemalloc.start()
    for _ in range(examples(times)):
        reader.feed(chunk)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * MEBIBYTE
    told = reader.summary()
    assert (
        len(told.operations) <= MAX_WORDS
        and len(told.folders) <= MAX_WORDS
        and len(told.differences) <= MAX_WORDS
    )
    assert all(len(one) <= 120 for one in (*told.operations, *told.folders))
    assert len(reader._line) <= MAX_LINE_BYTES


@pytest.mark.parametrize(
    "word",
    [
        "[AutoTuner]: Tuning ",
        "[AutoTuner]: Tuning a:",
        "a: saved=",
        "Autotuner]: Loaded 1 configs from /",
        "was created in a different environment (",
        "Managed autotune cache attached for this process: ",
        "Using FlashInfer autotune cache file: /a",
        ": saved=x vs current=",
    ],
)
def test_no_line_takes_long(word: str) -> None:
    log = ("FlashInfer Cache file was created in a different environment (" + word * 2000)[
        :MAX_LINE_BYTES
    ] + "\n"
    began = time.process_time()
    for _ in range(20):
        read(log)
    assert time.process_time() - began < 2


# --- what the releases' own code says (tests/unit/engines/vllm/data/logs/make.py)

LOGS = Path(__file__).with_name("data") / "logs"
RELEASES = ("0.25.1", "0.26.0", "0.27.1", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0")


def real(release: str, situation: str) -> LogSummary:
    return read((LOGS / f"{release}.{situation}.txt").read_bytes())


@pytest.mark.parametrize("release", RELEASES)
def test_each_releases_own_logs_are_understood(release: str) -> None:
    cold, warm, part = (real(release, situation) for situation in ("cold", "warm", "part"))
    assert (cold.result, cold.loaded, cold.operations, cold.swept) == (
        TUNED,
        0,
        ("toy_gemm_0",),
        True,
    )
    assert (warm.result, warm.loaded, warm.new, warm.operations) == (WARM, cold.new, 0, ())
    assert (part.result, part.loaded, part.new, part.operations) == (
        PARTIAL,
        cold.new,
        cold.new,
        ("toy_gemm_1",),
    )
    assert len(cold.folders) == 1 and cold.folders == warm.folders == part.folders
    assert real(release, "off").off and real(release, "off").result == UNKNOWN
    assert cold.managed is (release == "0.33.0")


@pytest.mark.parametrize("release", RELEASES)
def test_why_each_releases_own_engine_tuned_again_is_told(release: str) -> None:
    gpu, cold = real(release, "other-gpu"), real(release, "cold")
    assert gpu.result == TUNED
    if release == "0.33.0":  # the managed store's folder is the environment
        assert gpu.folders != cold.folders and not gpu.differences
        locked = real(release, "read-only")
        assert (locked.result, locked.read_only, cold.read_only) == (TUNED, True, False)
        return
    assert gpu.folders == cold.folders
    assert gpu.differences == (Difference("gpu", "NVIDIA H200", "NVIDIA H100 80GB HBM3"),)
    key = real(release, "other-key")
    assert key.result == TUNED and key.folders != cold.folders and not key.differences


@pytest.mark.parametrize("release", RELEASES)
def test_each_releases_own_ranks_are_one_answer(release: str) -> None:
    cold = real(release, "two-ranks-cold")
    assert cold.result == TUNED and not cold.managed
    if release in ("0.25.1", "0.26.0"):  # on several ranks they keep nothing
        return
    assert cold.new == real(release, "cold").new and len(cold.folders) == 1
    if release in ("0.32.0", "0.33.0"):
        warm = real(release, "two-ranks-warm")
        assert (warm.result, warm.loaded, warm.folders) == (WARM, cold.new, cold.folders)


@law(st.sampled_from(sorted(LOGS.glob("*.txt"))), st.lists(st.integers(0, 10**6), max_size=30))
def test_in_whatever_chunks_a_real_log_comes_the_answer_is_the_same(
    file: Path, cuts: list[int]
) -> None:
    log = file.read_bytes()
    assert fed(log, pieces(log, cuts)) == read(log)
