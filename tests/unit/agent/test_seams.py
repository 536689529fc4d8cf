"""A part and an engine that the tests add, each by one object, through the agent's verbs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretune
import pytest
from pretune.manifests.agent_archive import build_agent_archive
from pretune.protocol import POD_UID_VARIABLE, TASK_VARIABLE, Report

from tests.builders.agent_pod import AgentPod, managed_store, read_tree, serve_engine
from tests.seams.fixtures import added
from tests.seams.overlay import copy_package

__all__ = ["added"]

pytestmark = pytest.mark.usefixtures("added")

PLANS = {"gemm/8": "a", "gemm/16": "b", "moe/8": "c"}
TOY: dict[str, Any] = {"engine": "toy", "command": ["/absent/toy-server"]}


def folder(pod: AgentPod, part: str) -> Path:
    found = pod.claim.parent / part
    found.mkdir(exist_ok=True)
    return found


def write_plans(pod: AgentPod, part: str, **files: dict[str, str]) -> None:
    for name, plans in files.items():
        (folder(pod, part) / f"{name}.plan").write_text(json.dumps(plans))


def empty(pod: AgentPod, *parts: str) -> None:
    for part in parts:
        shutil.rmtree(folder(pod, part))
        folder(pod, part)


@pytest.fixture
def two_parts(pod: AgentPod) -> AgentPod:
    """A pod whose vLLM has left tactics and kernels."""
    pod.write_tactics(managed_store(10))
    write_plans(pod, "kernels", rank0=PLANS)
    return pod


# --- a second part


def test_both_parts_are_sealed_as_folders_of_one_bundle(two_parts: AgentPod) -> None:
    report = two_parts.run("seal")
    assert (report.reason, report.layout, report.entries) == ("Sealed", "Managed", 13)
    assert "tactics: 10 entries in a managed store; kernels: 3 kernels" in report.message
    assert read_tree(two_parts.bundle() / "tactics") == read_tree(two_parts.tactics)
    assert read_tree(two_parts.bundle() / "kernels") == read_tree(folder(two_parts, "kernels"))
    manifest = json.loads((two_parts.bundle() / "manifest.json").read_text())
    assert [(part["name"], part["variable"]) for part in manifest["parts"]] == [
        ("tactics", "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"),
        ("kernels", "VLLM_TEST_KERNEL_DIR"),
    ]


def test_seed_gives_each_part_its_folder_and_prove_finds_the_engine_warm(
    two_parts: AgentPod,
) -> None:
    two_parts.run("seal")
    empty(two_parts, "tactics", "kernels")
    assert two_parts.run("seed").reason == "Seeded"
    for part in ("tactics", "kernels"):
        assert read_tree(folder(two_parts, part)) == read_tree(two_parts.bundle() / part)
    report = two_parts.run("prove")
    assert (report.reason, report.entries) == ("Proven", 13)
    assert "warm: 13 entries in 12 files" in report.message


def test_new_entries_of_any_part_are_counted(two_parts: AgentPod) -> None:
    two_parts.run("seal")
    write_plans(two_parts, "kernels", rank0={**PLANS, "moe/8": "d"}, rank1={"gemm/9": "e"})
    report = two_parts.run("prove")
    assert (report.reason, report.newEntries) == ("NotReproducible", 2)
    assert "2 new entries (gemm 1, moe 1)" in report.message
    assert "1 file changed: rank0.plan; 1 file added: rank1.plan" in report.message


def test_seed_empties_every_folder_where_one_part_is_damaged(two_parts: AgentPod) -> None:
    two_parts.run("seal")
    file = two_parts.bundle() / "kernels" / "rank0.plan"
    file.chmod(0o644)
    file.write_text("{}")
    assert two_parts.run("seed").reason == "CorruptBundle"
    assert read_tree(two_parts.tactics) == read_tree(folder(two_parts, "kernels")) == {}


def test_a_bundle_is_empty_only_where_all_parts_are(pod: AgentPod) -> None:
    write_plans(pod, "kernels", rank0=PLANS)
    assert pod.run("seal").reason == "Sealed"
    empty(pod, "kernels")
    shutil.rmtree(pod.folder)
    with serve_engine(200) as (url, _):
        assert pod.run("seal", ready=url).reason == "NothingToTune"


def test_a_bundle_from_before_the_part_is_seeded_as_far_as_it_goes(
    two_parts: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretune.engines.vllm.engine import VLLM

    both = VLLM.parts
    monkeypatch.setattr(VLLM, "parts", both[:1])
    two_parts.run("seal")
    monkeypatch.setattr(VLLM, "parts", both)
    assert two_parts.run("seed").reason == "Seeded"
    assert read_tree(folder(two_parts, "kernels")) == {}
    report = two_parts.run("prove")
    assert report.reason == "ProofFailed" and "has no kernels" in report.message


def test_a_foreign_file_of_a_part_is_left_out_and_a_corrupt_one_refused(
    two_parts: AgentPod,
) -> None:
    (folder(two_parts, "kernels") / "notes.txt").write_text("x")
    assert two_parts.run("seal").reason == "Sealed"
    assert "notes.txt" not in read_tree(two_parts.bundle() / "kernels")
    (folder(two_parts, "kernels") / "rank1.plan").write_text("[]")
    shutil.rmtree(two_parts.folder)
    report = two_parts.run("seal")
    assert (report.reason, report.message) == ("CorruptFiles", "rank1.plan: not an object of plans")


def test_an_import_fills_the_first_part_and_leaves_the_others_empty(two_parts: AgentPod) -> None:
    context = two_parts.context()
    context.source = str(two_parts.claim.parent)
    from pretune.agent.__main__ import run

    context.task = context.task.__class__(**{**vars(context.task), "source": "tactics"})
    assert run("import", context).reason == "Sealed"
    assert read_tree(two_parts.bundle() / "tactics") == read_tree(two_parts.tactics)
    assert read_tree(two_parts.bundle() / "kernels") == {}


# --- a second engine


def test_another_engine_goes_through_every_verb(pod: AgentPod) -> None:
    assert pod.run("check", **TOY).reason == "Checked"
    write_plans(pod, "plans", rank0=PLANS)
    report = pod.run("seal", **TOY)
    assert (report.reason, report.entries, report.message) == ("Sealed", 3, "3 plans")
    empty(pod, "plans")
    assert pod.run("seed", **TOY).reason == "Seeded"
    assert json.loads((folder(pod, "plans") / "rank0.plan").read_text()) == PLANS
    assert pod.run("prove", **TOY).reason == "Proven"
    assert pod.run("check", **TOY).proven


def test_its_version_is_found_by_its_own_distribution_and_decides(
    pod: AgentPod, tmp_path: Path
) -> None:
    def install(version: str) -> str:
        site = tmp_path / version
        (site / f"toy_server-{version}.dist-info").mkdir(parents=True)
        (site / f"toy_server-{version}.dist-info/METADATA").write_text(f"Version: {version}\n")
        return str(site)

    def run(verb: str, version: str) -> Report:
        from pretune.agent.__main__ import run

        context = pod.context(engine="toy", command=[sys.executable, "toy-server"])
        context.pythonpath = (
            install(version) if not (tmp_path / version).exists() else str(tmp_path / version)
        )
        return run(verb, context)

    report = run("check", "0.9")
    assert (report.reason, report.message) == (
        "ReleaseTooOld",
        "Toy 0.9 keeps no plans; 1.0 and newer do",
    )
    write_plans(pod, "plans", rank0=PLANS)
    assert run("seal", "1.0").reason == "Sealed"
    report = run("seed", "1.1")
    assert report.reason == "VersionsDiffer" and "Toy 1.1 in the image, 1.0 in" in report.message


def test_a_task_of_an_unknown_engine_fails_by_its_name(pod: AgentPod) -> None:
    report = pod.run("check", engine="tgi")
    assert report.reason == "SealFailed" and "no engine 'tgi'" in report.message
    assert pod.run("seed", engine="tgi").reason == "SeedFailed"


# --- the agent's file has what is registered


@pytest.fixture
def verb(
    pod: AgentPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Report]]:
    """Run a verb of the agent that an operator with these objects would build, in a plain python3."""
    monkeypatch.setattr(pretune, "__file__", str(copy_package(tmp_path) / "__init__.py"))
    file = tmp_path / "agent.py"
    file.write_bytes(build_agent_archive.__wrapped__())
    log = tmp_path / "log"

    def run(name: str, **task: Any) -> tuple[int, Report]:
        options = ["--claim", str(pod.claim), "--parts", str(pod.claim.parent)]
        done = subprocess.run(
            [sys.executable, "-I", "-S", file, name, *options, "--termination-log", str(log)],
            env={TASK_VARIABLE: pod.context(**task).task.dump(), POD_UID_VARIABLE: "pod-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        report = Report.load(log.read_text())
        assert report is not None, done.stdout + done.stderr
        return done.returncode, report

    return run


def test_the_agent_seals_seeds_and_proves_both_parts(
    two_parts: AgentPod, verb: Callable[..., tuple[int, Report]]
) -> None:
    code, report = verb("seal", engine="vllm-kernels")
    assert (code, report.reason, report.entries) == (0, "Sealed", 13)
    empty(two_parts, "tactics", "kernels")
    assert verb("seed", engine="vllm-kernels")[1].reason == "Seeded"
    assert verb("prove", engine="vllm-kernels")[1].reason == "Proven"


def test_the_agent_seals_seeds_and_proves_the_other_engine(
    pod: AgentPod, verb: Callable[..., tuple[int, Report]]
) -> None:
    write_plans(pod, "plans", rank0=PLANS)
    code, report = verb("seal", **TOY)
    assert (code, report.reason, report.entries) == (0, "Sealed", 3)
    empty(pod, "plans")
    assert verb("seed", **TOY)[1].reason == "Seeded"
    assert verb("prove", **TOY)[1].reason == "Proven"
