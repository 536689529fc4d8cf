"""Which line of vLLM's log names the cause of a start that failed. The logs are real ones of 0.32.0."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretune.engines.vllm.failure_log import MAX_CAUSE, Parser

from tests.growth import MAX_GROWTH, growth

LOGS = Path(__file__).parent / "data" / "failures"
CAUSES = {
    "flag": "unrecognized arguments: --no-such-flag",
    "nomodel": "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or"
    " 'namespace/repo_name': '/models/qwen3'. Use `repo_type` argument if needed.",
    "nolib": "ImportError('/lib/x86_64-linux-gnu/libnuma.so.1: file too short'); then AttributeError:"
    " '_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'",
    "oom": "ValueError: Available memory on node 0 (19.2/23.54 GiB) on kv cache allocation is less"
    " than requested memory for kv (400.0 GiB). Decrease --kv-cache-memory-bytes,"
    " VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes.",
    "killed": "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
}
STAMP = "2026-11-30T13:12:52.123456789Z "


def cause_of(log: str) -> str:
    return Parser().find_cause(log)


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named_and_not_who_was_told_of_it(name: str) -> None:
    log = (LOGS / f"{name}.log").read_text()
    assert cause_of(log) == CAUSES[name]
    timed = "".join(f"{STAMP}{line}" for line in log.splitlines(keepends=True))
    assert cause_of(timed) == CAUSES[name], "the kubelet's times change nothing"
    parser = Parser()
    for byte in log.encode():
        parser.feed(bytes([byte]))
    assert parser.cause == CAUSES[name], "nor do chunks"


def test_every_sample_has_its_cause_here() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == set(CAUSES)


@pytest.mark.parametrize("name", CAUSES)
def test_the_last_two_kilobytes_alone_name_no_wrong_cause(name: str) -> None:
    """A termination message has no more, and begins in the middle of a traceback."""
    end = (LOGS / f"{name}.log").read_text()[-2048:]
    consequence = "AsyncLLM output_handler failed."  # an error, and the only one that is left
    found = cause_of(end)
    assert found in ("", consequence) or CAUSES[name] in found


ERROR = "(EngineCore pid=7) ERROR 11-30 13:00:00 [core.py:1510] "
TRACEBACK = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    raise x"]


def block(prefix: str, *exceptions: str, between: str = "") -> str:
    lines: list[str] = []
    for exception in exceptions:
        lines += [*([between] if lines else []), *TRACEBACK, exception]
    return "".join(f"{prefix}{line}\n" for line in lines)


ELSEWHERE = block("(APIServer pid=1) ", "RuntimeError: Engine core failed. See root cause above.")


@pytest.mark.parametrize(
    ("case", "log", "expected"),
    [
        (
            "the GPU's memory",
            block(ERROR, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        (
            "the direct cause of another exception",
            block(
                ERROR,
                "ValueError: head size 7",
                "RuntimeError: no backend",
                between="The above exception was the direct cause of the following exception:",
            ),
            "ValueError: head size 7",
        ),
        (
            "an exception in the handling of an expected one",
            block(
                ERROR,
                "KeyError: 'x'",
                "RuntimeError: no backend",
                between="During handling of the above exception, another exception occurred:",
            ),
            "RuntimeError: no backend",
        ),
        (
            "pydantic's second line",
            block("", "pydantic_core.ValidationError: 1 validation error for ModelConfig")
            + "  Value error, Invalid repository ID\n",
            "pydantic_core.ValidationError: 1 validation error for ModelConfig: Value error,"
            " Invalid repository ID",
        ),
        (
            "two workers at once",
            block("(Worker_TP0 pid=8) ERROR 11-30 13:00:00 [a.py:1] ", "ValueError: first")
            + block("(Worker_TP1 pid=9) ERROR 11-30 13:00:00 [a.py:1] ", "ValueError: second"),
            "ValueError: first",
        ),
        (
            "an error without an exception",
            f"{ERROR}Engine core proc EngineCore died unexpectedly, shutting down client.\n",
            "Engine core proc EngineCore died unexpectedly, shutting down client.",
        ),
        ("colours", block("\x1b[1;36m(EngineCore pid=7)\x1b[0;0m ", "OSError: no"), "OSError: no"),
        ("nothing of that", "INFO 11-30 13:00:00 [a.py:1] ready\nbye\n", ""),
        ("bytes that are no text", "\udcff\x00\n" * 5, ""),
    ],
)
@pytest.mark.parametrize("after", ["", ELSEWHERE], ids=["alone", "with the parent's"])
def test_a_cause_is(case: str, log: str, expected: str, after: str) -> None:
    found = Parser()
    found.feed((log + after).encode("utf-8", "surrogateescape"))
    if expected or not after:
        assert found.cause == expected, case


def hostile_log(size: int) -> str:
    """Return a log of so many processes, with long lines."""
    lines = [f"(P{index} pid=1) ERROR 11-30 13:00:00 [a.py:1] " for index in range(size)]
    log = "".join(f"{line}Traceback (most recent call last):\n" for line in lines)
    log += "x" * size * 100 + "\n" + "A." * size * 50 + "\n" + " (" * size * 50 + "\n"
    return log + ("\x1b[" * 2000 + "\n") * (size // 20)


def test_long_lines_and_many_processes_are_bounded_and_cost_linear_time() -> None:
    def find(log: str) -> None:
        assert len(cause_of(log)) <= MAX_CAUSE

    assert growth(find, hostile_log, 1000) < MAX_GROWTH
