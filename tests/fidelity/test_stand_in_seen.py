"""What `seen` takes for a difference, and what not: else an equal pair would prove nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images.engine.stand_in.files import write_json
from images.engine.stand_in.releases import RELEASES
from images.engine.stand_in.tuner import whole_file
from tests.fidelity import situations
from tests.fidelity.seen import Shown, Sight, differing, judged
from tests.fidelity.situations import ONE, SITUATIONS, TENSOR, Difference, known

KEY, OTHER_KEY = "a" * 64, "b" * 64
ENTRY = "('toy_gemm_0', 'ToyGemmRunner', ((16, 8), (8, 4)), ())"


def content(**changes: Any) -> dict[str, Any]:
    held = {ENTRY: ["ToyGemmRunner", 1, None], **changes}
    return whole_file({"gpu": "NVIDIA H200"}, held, RELEASES["0.33.0"].format)


def look(
    root: Path, log: str = "", end: str = "ready", write: Callable[[], None] = lambda: None
) -> Shown:
    sight = Sight(root)
    write()
    return sight.shown(end, log)


@pytest.mark.parametrize(
    ("log", "other", "aspects"),
    [
        (
            "INFO [a.py:1] [Autotuner]: Loaded 21 configs",
            "x - INFO [Autotuner]: Loaded 21 configs",
            set(),
        ),
        ("[Autotuner]: Loaded 21 configs", "[Autotuner]: Loaded 20 configs", {"said"}),
        ("[Autotuner]: Loaded 21 configs\n" * 2, "[Autotuner]: Loaded 21 configs", {"said"}),
        (
            f"Using FlashInfer autotune cache file: /{KEY}/x",
            f"Using FlashInfer autotune cache file: /{OTHER_KEY}/x",
            set(),
        ),
        ("rehearsal: profiled 84", "stand-in: profiled 84", set()),
        ("rehearsal: profiled 84", "stand-in: profiled 0", {"profiled"}),
        ("rehearsal: rank 1: profiled 84", "stand-in: profiled 84", {"profiled"}),
        (
            "OSError: [Errno 30] Read-only file system: '/x'",
            "PermissionError: [Errno 13] Permission denied: '/x'",
            {"errors"},
        ),
        (
            "\r[AutoTuner]: Tuning toy_gemm_0:   0%|   | 3/21 [00:00<?, ?profile/s]\r[AutoTuner]: Tuning toy_gemm_0: 100%|██| 21/21 "
            "[00:01<00:00, 9.95profile/s]",
            "\r[AutoTuner]: Tuning stand_in_gemm_0:   0%|   | 0/21 [00:00<?, ?profile/s]",
            {"bars"},
        ),
    ],
)
def test_logs_differ_in_what_they_say_and_how_often(
    tmp_path: Path, log: str, other: str, aspects: set[str]
) -> None:
    assert set(differing(look(tmp_path, log), look(tmp_path, other))) == aspects


@pytest.mark.parametrize(
    ("change", "aspects"),
    [
        (lambda file: None, set()),
        (lambda file: file.chmod(0o644), {"files"}),
        (
            lambda file: file.with_name("more.json").write_text("{}"),
            {"files", "formats", "changes"},
        ),
        (lambda file: write_json(file, content(**{ENTRY: ["StandInRunner", 3, None]})), set()),
        (lambda file: write_json(file, content(**{ENTRY: ["StandInRunner", 3]})), {"formats"}),
        (lambda file: write_json(file, {**content(), "_generation": "0"}), {"formats"}),
        (lambda file: file.write_text(json.dumps(content())), {"formats"}),
        (lambda file: file.unlink(), {"files", "formats", "changes"}),
    ],
)
def test_folders_differ_in_names_modes_and_what_files_hold_but_for_tactics(
    tmp_path: Path, change: Callable[[Path], Any], aspects: set[str]
) -> None:
    def write(root: Path) -> Path:
        (root / KEY).mkdir(parents=True)
        write_json(root / KEY / "autotune_configs.json", content())
        return root / KEY / "autotune_configs.json"

    left, right = tmp_path / "left", tmp_path / "right"
    left.mkdir()
    right.mkdir()
    real = look(left, write=lambda: write(left) and None)
    played = look(right, write=lambda: change(write(right)))
    assert set(differing(real, played)) == aspects


def test_a_key_that_changes_between_starts_is_another_one_and_a_file_written_again_is_seen(
    tmp_path: Path,
) -> None:
    sight = Sight(tmp_path)
    for key, changes in (
        (KEY, {"new KEY1/": 1, "new KEY1/x.json": 1}),
        (KEY, {"rewritten KEY1/x.json": 1}),
        (OTHER_KEY, {"new KEY2/": 1, "new KEY2/x.json": 1}),
    ):
        write_json(tmp_path / key / "x.json", content())
        assert sight.shown("ready", "")["changes"] == changes
    write_json(tmp_path / KEY / "x.json", {})
    assert sight.shown("ready", "")["changes"] == {"changed KEY1/x.json": 1}


@pytest.mark.parametrize(
    ("differences", "expected", "wrong"),
    [
        ({}, set(), ""),
        ({"said": "a line"}, {"said"}, ""),
        ({"said": "a line"}, set(), "a line"),
        ({"said": "a line", "files": "a file"}, {"files"}, "a line"),
        ({}, {"said"}, "said is not a difference any more: take it out of KNOWN_DIFFERENCES"),
    ],
)
def test_only_known_differences_may_be_there_and_all_of_them_must(
    differences: dict[str, str], expected: set[str], wrong: str
) -> None:
    assert judged(differences, expected) == wrong


def test_a_known_difference_is_that_of_its_situation_engine_and_releases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = Difference(
        "read-only, hit", ONE, frozenset({"said"}), "why", since=(0, 32), until=(0, 32, 99)
    )
    monkeypatch.setattr(situations, "KNOWN_DIFFERENCES", (listed,))
    hit = next(situation for situation in SITUATIONS if situation.name == "read-only, hit")
    miss = next(situation for situation in SITUATIONS if situation.name == "read-only, miss")
    assert known(hit, ONE, (0, 32, 0)) == {"said"}
    assert (
        known(hit, TENSOR, (0, 32, 0))
        == known(miss, ONE, (0, 32, 0))
        == known(hit, ONE, (0, 33, 0))
        == set()
    )
