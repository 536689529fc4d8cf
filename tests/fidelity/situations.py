"""The situations in which an engine can start, in one table. The stand-in and each release's own code play all of them, and whatever
differs is a mistake of the stand-in, or stands in KNOWN_DIFFERENCES with its reason.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fidelity.playing import VARIABLE

PATIENCE = 60  # seconds after which an engine that is not ready hangs; all that these do takes less than one on an idle machine
SHORT = 8  # the same where it is known to hang
SOMEBODY = 12345  # an uid that is not ours

Number = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """A product, as its driver names it, and its compute capability."""

    name: str
    capability: str


H200 = Gpu("NVIDIA H200", "9.0")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
B200 = Gpu("NVIDIA B200", "10.0")
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0")
NAMELESS = Gpu("unknown", "9.0")


@dataclass(frozen=True)
class Start:
    """One start of the engine. `powerless`: root that cannot read or write what belongs to others. ROOT in `environ` is the folder."""

    args: tuple[str, ...] = ()
    gpu: Gpu = H200
    operations: int = 1
    read_only: bool = False
    powerless: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    def variables(self, root: Path) -> dict[str, str]:
        """The environment that it adds, for this folder."""
        return {name: text.replace("ROOT", str(root)) for name, text in self.environ.items()}


@dataclass(frozen=True)
class Change:
    """What is done to the folder between two starts. It raises AssertionError where there is nothing that it could be done to."""

    how: Callable[[Path], None]


Step = Start | Change


@dataclass(frozen=True)
class Engine:
    """Arguments that decide how many ranks there are, and since which release such an engine keeps anything."""

    name: str
    args: tuple[str, ...] = ()
    keeps_since: Number = (0, 25)
    experts: bool = False


ONE = Engine("one")
TENSOR = Engine("tensor", ("--tensor-parallel-size", "2"), (0, 27))
STAGES = Engine("stages", ("--pipeline-parallel-size", "2"), (0, 27))
GRID = Engine("grid", ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"), (0, 27))
EXPERTS = Engine("experts", (*TENSOR.args, "--enable-expert-parallel"), (0, 27), experts=True)


@dataclass(frozen=True)
class Situation:
    """Steps that each of `engines` goes through. `since` and `until`: the releases for which there is such a situation, both included."""

    name: str
    steps: tuple[Step, ...]
    engines: tuple[Engine, ...] = (ONE, TENSOR)
    since: Number = (0,)
    until: Number = (9,)
    patience: int = PATIENCE
    always: bool = False  # with several ranks, too, in CI; there one rank is enough for the others

    def applies(self, release: Number, engine: Engine) -> bool:
        """Whether this release's engine can be in it: what changes files needs an engine that keeps some."""
        changes = any(isinstance(step, Change) for step in self.steps)
        return self.since <= release <= self.until and (
            release >= engine.keeps_since or not changes
        )


# What can be done to a folder


def _configs(cache: Path) -> list[Path]:
    """The files of releases that keep one for each rank, or one for all."""
    return sorted(cache.glob("*/autotune_configs*.json"))


def _entries(cache: Path) -> list[Path]:
    """The managed store's entries, in the order of their operations and numbers of tokens."""

    def place(file: Path) -> tuple[str, int]:
        fields = json.loads(file.read_text())["key_fields"]["__tuple__"]
        return fields[0], fields[2]["__tuple__"][0]["__tuple__"][0]

    return sorted(cache.glob("v2/*/entries/*.json"), key=place)


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    before = json.dumps(content)
    change(content)
    assert json.dumps(content) != before, f"nothing to change in {file}"
    file.write_text(json.dumps(content, indent=2))


def lose(wanted: Callable[[str], bool], files: slice = slice(None)) -> Change:
    """Entries whose key is `wanted` are gone, from these files."""

    def drop(content: dict[str, Any]) -> None:
        for name in [name for name in content if name.startswith("(") and wanted(name)]:
            del content[name]

    def how(cache: Path) -> None:
        gone = [file for file in _entries(cache) if wanted(json.loads(file.read_text())["key"])]
        for file in gone:
            file.unlink()
        for file in _configs(cache)[files]:
            _rewrite(file, drop)
        assert gone or _configs(cache), "no entries"

    return Change(how)


def _of_16_tokens(key: str) -> bool:
    return "((16, 8)" in key


def _of_the_first_operation(key: str) -> bool:
    return "_gemm_0" in key


def metadata(change: Callable[[dict[str, Any]], None], files: slice = slice(None)) -> Change:
    """The environment that the files name is another."""

    def how(cache: Path) -> None:
        assert _configs(cache)[files], "no files"
        for file in _configs(cache)[files]:
            _rewrite(file, lambda content: change(content["_metadata"]))

    return Change(how)


def another_flashinfer(cache: Path) -> None:
    """As if another version had written it: its files say so, and its managed store has a folder of its own."""
    for file in _configs(cache):
        _rewrite(file, lambda content: content["_metadata"].update(flashinfer_version="0.5.0"))
    for folder in list(cache.glob("v2/*")):
        _rewrite(
            folder / "manifest.json", lambda content: content.update(flashinfer_version="0.5.0")
        )
        folder.rename(folder.with_name("0123456789abcdef"))
    assert list(cache.iterdir())


def written(content: bytes) -> Change:
    """The files of all ranks, or one entry, hold something else. All: if one rank fails alone, how far others get is by chance."""

    def how(cache: Path) -> None:
        for file in _some(cache):
            file.write_bytes(content)

    return Change(how)


def _some(cache: Path) -> list[Path]:
    files = _entries(cache)[4:5] or _configs(cache)
    assert files, "no files"
    return files


def cut(cache: Path) -> None:
    """The files of all ranks, or one entry, are cut off in their middle."""
    for file in _some(cache):
        os.truncate(file, file.stat().st_size // 2)


def entry(change: Callable[[dict[str, Any]], None]) -> Change:
    """One entry of the managed store is another."""
    return Change(lambda cache: _rewrite(_entries(cache)[4], change))


def given_away(open_folders: bool) -> Change:
    """All belongs to somebody else; `open_folders`: anybody may make files there."""

    def how(cache: Path) -> None:
        for path in (cache, *cache.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
            if path.is_dir() and open_folders:
                path.chmod(0o777)

    return Change(how)


def gone(cache: Path) -> None:
    """The override folder is not there."""
    shutil.rmtree(cache)


def rank_file(number: int, how: Callable[[Path], object]) -> Change:
    """One rank's file is treated so."""
    return Change(lambda cache: [how(_configs(cache)[number]), None][1])  # type: ignore[func-returns-value]


def copied_to_another_rank(file: Path) -> None:
    """A rank that there is not has a file too."""
    shutil.copy2(file, file.with_name("autotune_configs_dp0_rank7.json"))


def another_entry_instead(file: Path) -> None:
    """As many entries as before, but one of them is of an operation that is not there."""

    def change(content: dict[str, Any]) -> None:
        name = next(name for name in content if _of_16_tokens(name))
        content["('gone', 'GoneRunner', ((16, 8), (8, 4)), ())"] = content.pop(name)

    _rewrite(file, change)


COLD = Start()
WARM = Start()
READ_ONLY = Start(read_only=True)
TWO = Start(operations=2)
NOTHING = Start(operations=0)
PER_RANK: Number = (0, 32)
MANAGED: Number = (0, 33)
NO_LONGER_SHARED: Number = (0, 31, 99)

SITUATIONS: tuple[Situation, ...] = (
    Situation("cold, then warm", (COLD, WARM), always=True),
    Situation(
        "cold, then warm", (COLD, WARM), (STAGES, GRID), until=NO_LONGER_SHARED, patience=SHORT
    ),
    Situation("cold, then warm", (COLD, WARM), (STAGES, GRID), since=PER_RANK, always=True),
    Situation("two operations", (TWO, TWO)),
    Situation("the folder is not there", (Change(gone), COLD)),
    Situation("cold, then warm", (COLD, WARM), (EXPERTS,), since=(0, 27), until=(0, 28, 99)),
    Situation(
        "cold, then warm",
        (COLD, WARM),
        (EXPERTS,),
        since=(0, 29),
        until=NO_LONGER_SHARED,
        patience=SHORT,
    ),
    Situation("cold, then warm", (COLD, WARM), (EXPERTS,), since=PER_RANK, always=True),
    Situation("read-only, miss", (READ_ONLY,), (ONE, TENSOR), always=True),
    Situation("read-only, hit", (COLD, READ_ONLY), (ONE, TENSOR), always=True),
    Situation(
        "read-only, an operation is missing",
        (TWO, lose(_of_the_first_operation), Start(operations=2, read_only=True)),
    ),
    Situation("read-only, nothing to tune", (Start(operations=0, read_only=True),)),
    Situation("nothing to tune", (NOTHING, NOTHING)),
    Situation("nothing to tune any more", (COLD, NOTHING)),
    Situation("something to tune after nothing", (NOTHING, COLD)),
    Situation("an entry is missing", (COLD, lose(_of_16_tokens), WARM, WARM), always=True),
    Situation("an operation is missing", (TWO, lose(_of_the_first_operation), TWO)),
    Situation("an operation is new", (COLD, TWO)),
    Situation("another GPU's", (Start(gpu=H100), COLD, WARM), always=True),
    Situation("another family's", (Start(gpu=B200), COLD)),
    Situation("of a GPU whose name was not known", (Start(gpu=NAMELESS), COLD, WARM)),
    Situation("another FlashInfer's", (COLD, Change(another_flashinfer), WARM)),
    Situation(
        "the files name no cuDNN",
        (COLD, metadata(lambda held: held.pop("cudnn_version")), WARM),
        until=NO_LONGER_SHARED,
    ),
    Situation(
        "the files name no cuDNN",
        (COLD, metadata(lambda held: held.pop("cudnn_version")), WARM),
        (TENSOR,),
        since=PER_RANK,
    ),
    Situation(
        "the files' GPU is any",
        (COLD, metadata(lambda held: held.update(gpu="*")), WARM),
        until=NO_LONGER_SHARED,
    ),
    Situation(
        "the files' GPU is any",
        (COLD, metadata(lambda held: held.update(gpu="*")), WARM),
        (TENSOR,),
        since=PER_RANK,
    ),
    Situation("a GPU that never tunes", (Start(gpu=A100),)),
    Situation("switched off", (Start(args=("--no-enable-flashinfer-autotune",)),)),
    Situation("not optimised", (Start(args=("-O0",)),)),
    Situation("another configuration", (COLD, Start(args=("--max-model-len", "2048")), WARM)),
    Situation(
        "the same configuration", (COLD, Start(args=("--seed", "7", "--served-model-name", "foo")))
    ),
    Situation("more ranks", (COLD, Start(args=TENSOR.args), WARM), (ONE,)),
    Situation("cut off", (COLD, Change(cut), WARM)),
    Situation("empty", (COLD, written(b""), WARM)),
    Situation("no object", (COLD, written(b"[]"), WARM)),
    Situation("no text", (COLD, written(b"\xff\xfe"), WARM)),
    Situation(
        "files of another user", (COLD, given_away(open_folders=True), Start(powerless=True))
    ),
    Situation(
        "folders of another user", (COLD, given_away(open_folders=False), Start(powerless=True))
    ),
    Situation(
        "folders of another user, nothing in them",
        (given_away(open_folders=False), Start(powerless=True)),
    ),
    Situation(
        "no override",
        (
            Start(
                environ={
                    VARIABLE: "",
                    "VLLM_CACHE_ROOT": "ROOT",
                    "FLASHINFER_AUTOTUNE_CACHE_DIR": "ROOT/managed",
                }
            ),
        ),
    ),
    # Files of several ranks
    Situation(
        "a rank has no file",
        (COLD, rank_file(1, Path.unlink), WARM),
        (TENSOR,),
        since=PER_RANK,
        always=True,
    ),
    Situation(
        "the first rank has no file",
        (COLD, rank_file(0, Path.unlink), WARM),
        (TENSOR,),
        since=PER_RANK,
        always=True,
    ),
    Situation(
        "a rank has an entry less",
        (COLD, lose(_of_16_tokens, slice(1, 2)), WARM),
        (TENSOR,),
        since=PER_RANK,
        always=True,
    ),
    Situation(
        "a rank's cuDNN is another",
        (COLD, metadata(lambda held: held.update(cudnn_version="1"), slice(1, 2)), WARM),
        (TENSOR,),
        since=PER_RANK,
        always=True,
    ),
    Situation(
        "a rank too many",
        (COLD, rank_file(1, copied_to_another_rank), WARM),
        (TENSOR,),
        since=PER_RANK,
        always=True,
    ),
    Situation(
        "a rank has another entry instead",
        (COLD, rank_file(1, another_entry_instead), WARM),
        (TENSOR,),
        since=PER_RANK,
        patience=SHORT,
    ),
    Situation(
        "a stage has no file",
        (COLD, rank_file(1, Path.unlink), WARM),
        (STAGES,),
        since=PER_RANK,
        always=True,
    ),
    # The managed store
    Situation(
        "an entry without key_fields",
        (COLD, entry(lambda held: held.pop("key_fields")), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation(
        "an entry under another key",
        (COLD, entry(lambda held: held.update(key="('x',)")), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation(
        "an entry of another runner",
        (COLD, entry(lambda held: held.update(runner="X")), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation(
        "an entry without its policy",
        (COLD, entry(lambda held: held.pop("profiling_policy")), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation(
        "an entry measured otherwise",
        (COLD, entry(lambda held: held.update(profiling_policy=["x"])), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation(
        "no manifest",
        (COLD, Change(lambda cache: next(cache.glob("v2/*/manifest.json")).unlink()), WARM),
        (ONE,),
        since=MANAGED,
    ),
    Situation("an entry cut off, read-only", (COLD, Change(cut), READ_ONLY), (ONE,), since=MANAGED),
)


@dataclass(frozen=True)
class Difference:
    """What the stand-in does otherwise, in this situation and this release's engine: the aspects of `seen.Sight.shown`, and why."""

    situation: str
    engine: Engine
    aspects: frozenset[str]
    why: str
    since: Number = (0,)
    until: Number = (9,)


KNOWN_DIFFERENCES: tuple[Difference, ...] = ()


def known(situation: Situation, engine: Engine, release: Number) -> set[str]:
    """The aspects that may differ, and must."""
    return {
        aspect
        for difference in KNOWN_DIFFERENCES
        if difference.situation == situation.name and difference.engine == engine
        if difference.since <= release <= difference.until
        for aspect in difference.aspects
    }


# What changes the name of the folder: Same or Changed, for 0.24.0 0.25.1 0.26.0 0.27.1 0.28.0 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0.
KEY_RELEASES = (
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.32.0",
    "0.33.0",
)
KEYS: tuple[tuple[str, dict[str, str], Gpu, str], ...] = (
    ("--load-format dummy", {}, H200, "SSSSSSSSSS"),
    ("--served-model-name foo", {}, H200, "SSSSSSSSSS"),
    ("--tokenizer MODEL/", {}, H200, "SSSSSSSSSS"),
    ("--port 9999 --host 0.0.0.0", {}, H200, "SSSSSSSSSS"),
    ("--api-server-count 2", {}, H200, "SSSSSSSSSS"),
    ("--seed 7", {}, H200, "SSSSSSSSSS"),
    ("--gpu-memory-utilization 0.5", {}, H200, "SSSSSSSSSS"),
    ("--kv-cache-memory-bytes 1G", {}, H200, "CCSSSSSSSS"),
    ("--num-gpu-blocks-override 100", {}, H200, "SSSSSSSSSS"),
    ("--max-num-batched-tokens 8192 --max-num-seqs 1024", {}, H200, "SSSSSSSSSS"),
    ("--max-model-len 2048", {}, H200, "CCCCCCCCCC"),
    ("--max-num-seqs 64", {}, H200, "CCCCCCCCCC"),
    ("--max-num-batched-tokens 4096", {}, H200, "CCCCCCCCCC"),
    ("--enforce-eager", {}, H200, "CCCCCCCCCC"),
    ("-O0", {}, H200, "CCCCCCCCCC"),
    ("-O1", {}, H200, "CCCCCCCCCC"),
    ("-O3", {}, H200, "SSSSSSSSSS"),
    ("--dtype bfloat16", {}, H200, "SSSSSSSSSS"),
    ("--dtype float16", {}, H200, "CCCCCCCCCC"),
    ("--trust-remote-code", {}, H200, "CCCCCCCCCC"),
    ("--revision main", {}, H200, "CCCCCCCCCC"),
    ("--download-dir /x", {}, H200, "SSSSSSSSSS"),
    ("--no-enable-prefix-caching", {}, H200, "SSSSSSSSSS"),
    ("--no-enable-chunked-prefill", {}, H200, "SSSSSSSSSS"),
    ("--block-size 32", {}, H200, "CCCCCCCCCC"),
    ("--kv-cache-dtype fp8", {}, H200, "CCCCCCCCCC"),
    ("--disable-log-stats", {}, H200, "SSSSSSSSSS"),
    ("--scheduling-policy priority", {}, H200, "SSSSSSSSSS"),
    ("--no-async-scheduling", {}, H200, "CCCCCCCCCC"),
    ("--tensor-parallel-size 2", {}, H200, "CCCCCCCCCC"),
    ("--tensor-parallel-size 1", {}, H200, "SSSSSSSSSS"),
    ("--distributed-executor-backend mp", {}, H200, "SSSSSSSSSS"),
    ("--disable-custom-all-reduce", {}, H200, "SSSSSSSSSS"),
    ("--enable-flashinfer-autotune", {}, H200, "SSSSSSSSSS"),
    ("--no-enable-flashinfer-autotune", {}, H200, "SSSSSSSSSS"),
    ("--generation-config vllm", {}, H200, "CCCCCCCCCC"),
    ('--override-generation-config {"temperature":0.1}', {}, H200, "CCCCCCCCCC"),
    ('--hf-overrides {"rope_theta":5}', {}, H200, "CCCCCCCCCC"),
    (
        "--chat-template x --enable-auto-tool-choice --tool-call-parser hermes",
        {},
        H200,
        "SSSSSSSSSS",
    ),
    ("--uvicorn-log-level warning", {}, H200, "SSSSSSSSSS"),
    ("--max-logprobs 5", {}, H200, "CCCCCCCCCC"),
    ('--compilation-config {"cudagraph_capture_sizes":[1]}', {}, H200, "CCCCCCCCCC"),
    ('--compilation-config {"cache_dir":"/x"}', {}, H200, "SSSSSSSSSS"),
    ('--additional-config {"a":1}', {}, H200, "CCCCCCCCCC"),
    ("--enable-lora", {}, H200, "CCCCCCCCCC"),
    ("", {VARIABLE: "/x"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_CACHE_ROOT": "/x"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_LOGGING_LEVEL": "DEBUG"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_HOST_IP": "10.0.0.1"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_SERVER_DEV_MODE": "1"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, H200, "SSSSSSSSSS"),
    ("", {"VLLM_USE_DEEP_GEMM": "0"}, H200, "CCCCCCSSSS"),
    ("", {"VLLM_API_KEY": "x"}, H200, "CCCCCSSSSS"),
    ("", {"VLLM_ENGINE_READY_TIMEOUT_S": "5"}, H200, "CCCCCCSSSS"),
    ("", {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, H200, "CCCCCCSSSS"),
    ("", {"VLLM_PLUGINS": "a"}, H200, "CCCCCCSSSS"),
    ("", {"HOME": "/elsewhere"}, H200, "CCCSSSSSSS"),
    ("", {"LD_LIBRARY_PATH": "/x"}, H200, "SSSSSSSSSS"),
    ("", {}, H100, "SSSCCCSSSS"),
    ("", {}, B200, "SSSCCCCCCC"),
)
