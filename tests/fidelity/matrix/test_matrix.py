"""The matrix without a cluster: what is expected is complete, what differs is noticed, what was seen is what the document says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fidelity.matrix import document
from tests.fidelity.matrix.cells import CELLS, CI_CELLS
from tests.fidelity.matrix.copies import copied, of_another_flashinfer
from tests.fidelity.matrix.expected import Expected, expected
from tests.fidelity.matrix.judge import differences, differing
from tests.fidelity.matrix.outcome import Outcome, error, files, profiled, said, shown
from tests.fidelity.releases import RELEASES

WARM = Outcome(
    True,
    0,
    ["[Autotuner]: Loaded 21 configs from /x"],
    "",
    [],
    [],
    ["Overlay: Given: bundle ID is sealed"],
)


@pytest.mark.parametrize("release", RELEASES)
def test_every_cell_of_every_release_is_expected_to_be_something(release: str) -> None:
    assert set(expected(release)) == set(CELLS)
    assert set(CI_CELLS) <= set(CELLS)


def test_the_document_says_what_the_results_say() -> None:
    assert document.FILE.read_text() == document.text()


def test_nothing_that_was_seen_is_unexplained_and_what_was_not_is_said() -> None:
    results = document.results()
    assert {one.release: differences(one) for one in results if differences(one)} == {}
    said = document.text()
    for release in RELEASES:
        cells = next((one.cells for one in results if one.release == release), None)
        assert cells is not None or f"`make fidelity RELEASES={release}`" in said
        assert all(
            f"- {release}, {name}: " in said
            for name in CELLS
            if cells is not None and name not in cells
        )


@pytest.mark.parametrize(
    ("seen", "difference"),
    [
        (WARM, ""),
        (
            replace(WARM, started=False, error="OSError: [Errno 30]"),
            "it ended: OSError: [Errno 30]",
        ),
        (replace(WARM, profiled=105), "expected 0 profiles, seen 105"),
        (
            replace(WARM, changed=["~ KEY/autotune_configs.json 0600"]),
            "expected no change, seen ~ KEY",
        ),
        (replace(WARM, said=[]), "expected a line with 'Loaded'"),
        (
            replace(WARM, operator=["None: NoCache"]),
            "expected the operator to say 'Overlay: Given'",
        ),
    ],
)
def test_what_is_not_as_expected_is_said(seen: Outcome, difference: str) -> None:
    found = differing(seen, Expected(0, "", ("Loaded",), ("Overlay: Given",)), 105)
    assert (difference in "; ".join(found)) if difference else found == []


def test_an_engine_that_starts_though_it_should_end_is_said() -> None:
    assert differing(WARM, Expected(None, "", ("Read-only",)), 105) == [
        "expected to end, but it started",
        "expected a line with 'Read-only'",
    ]


# --- folders


def _write(root: Path, path: str, content: str = "{}", mode: int = 0o600) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    return file


def _rewrite(root: Path) -> None:
    file = root / "a" / "f.json"
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: None, []),
        (_rewrite, ["= a/f.json 0600"]),
        (lambda root: _write(root, "a/f.json", "[]"), ["~ a/f.json 0600"]),
        (lambda root: (root / "a/f.json").chmod(0o666), ["= a/f.json 0666"]),
        (lambda root: shutil.rmtree(root / "a"), ["- a/f.json 0600"]),
        (
            lambda root: [
                _write(root, f"v2/{'0' * 16}/entries/{digit * 24}.json") for digit in "ab"
            ],
            ["+ 2 × v2/ENV/entries/ENTRY.json 0600"],
        ),
        (
            lambda root: [_write(root, f"{digit * 64}/x.json") for digit in "ab"],
            ["+ KEY/x.json 0600", "+ KEY2/x.json 0600"],
        ),
        (lambda root: (root / ("c" * 64)).mkdir(0o755), ["+ KEY/ 0755"]),
    ],
)
def test_what_changed_in_a_folder_is_told_with_modes(
    tmp_path: Path, change: Callable[[Path], object], told: list[str]
) -> None:
    _write(tmp_path, "a/f.json")
    before = files(tmp_path)
    change(tmp_path)
    was, changed = shown(before, files(tmp_path))
    assert (was, changed) == (["a/f.json 0600"], told)


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert files(tmp_path / "none") == {}


# --- logs


def test_a_log_tells_what_was_profiled_and_what_it_ended_with() -> None:
    log = "x\nrehearsal: profiled 84\nTraceback (most recent call last):\nOSError: [Errno 30] Read-only file system: '/a'\n"
    assert profiled(log) == 84
    assert profiled("no word") is None
    assert error(log) == "OSError: [Errno 30] Read-only file system: '/a'"
    assert error("killed") == "ended without a traceback"


def test_lines_about_tactics_are_told_without_what_differs_from_run_to_run() -> None:
    key = "('toy_gemm', 'ToyGemmRunner', ((1, 8), (8, 4)), (torch.bfloat16, torch.bfloat16, False))"
    store = f"/pretune/claim/n.c/bundles/i/tactics/v2/{'b' * 16}"
    log = "\n".join(
        [
            "INFO 11-23 [x.py:1] Using FlashInfer autotune cache file: /pretune/tactics/"
            + "a" * 64
            + "/autotune_configs.json",
            f"WARNING: [Autotuner]: Failed to persist managed cache entry for {key} under {store}",
            "[AutoTuner]: Tuning toy_gemm:  42%|… | 9/21",
            "rehearsal: profiled 84",
        ]
    )
    assert said(log) == [
        "Using FlashInfer autotune cache file: ROOT/KEY/autotune_configs.json",
        "[Autotuner]: Failed to persist managed cache entry for (…) under ROOT/v2/ENV",
    ]


# --- copies of bundles


@pytest.mark.parametrize("layout", ["Managed", "PerRank"])
def test_a_copy_of_another_flashinfer_is_whole_and_differs_only_by_the_version(
    tmp_path: Path, layout: str
) -> None:
    env = {"cache_schema": "v2", "flashinfer_version": "0.7.2.post1", "gpu": "NVIDIA H200"}
    name = hashlib.sha256(
        json.dumps(env, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:16]
    layouts: dict[str, dict[str, Any]] = {
        "Managed": {
            f"v2/{name}/manifest.json": env,
            f"v2/{name}/entries/{'a' * 24}.json": {"key": "k"},
        },
        "PerRank": {
            f"{'a' * 64}/autotune_configs_dp0_rank0.json": {"_metadata": env, "k": ["r", 1]}
        },
    }
    made = layouts[layout]
    source, target = tmp_path / "ns.demo/bundles/id", tmp_path / "ns.other/bundles/id"
    for path, content in made.items():
        _write(source / "tactics", path, json.dumps(content), 0o444)
    manifest = {
        "cache": "ns.demo",
        "versions": {"vllm": "0.33.0", "flashinfer": "0.7.2.post1"},
        "parts": [{"name": "tactics"}],
    }
    _write(source, "manifest.json", json.dumps(manifest))
    copied(source, target, "ns.other", of_another_flashinfer, flashinfer="0.7.1")

    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["cache"] == "ns.other"
    assert manifest["versions"] == {"vllm": "0.33.0", "flashinfer": "0.7.1"}
    found = {path: (target / "tactics" / path).read_bytes() for path in files(target / "tactics")}
    listed = {one["path"]: one for one in manifest["parts"][0]["files"]}
    assert listed.keys() == found.keys() and len(found) == len(made)
    assert all(
        hashlib.sha256(raw).hexdigest() == listed[path]["sha256"] for path, raw in found.items()
    )
    assert any(b"0.7.1" in raw for raw in found.values()) and not any(
        b"0.7.2.post1" in raw for raw in found.values()
    )
    if layout == "Managed":
        assert not any(path.startswith(f"v2/{name}/") for path in found)
