"""The agent's file as in a pod: `python3 -I -S`, another uid, real mounts, full and read-only claims."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pretune.manifests.agent_archive import read_files
from pretune.protocol import Report

from tests.builders.agent_pod import (
    INPUTS,
    KEY,
    AgentPod,
    managed_store,
    rank_file,
    rank_files,
    read_tree,
    serve_engine,
    snapshot,
)
from tests.unit.agent.conftest import needs_root
from tests.unit.agent.processes import as_uid, run_process, start_process


def _pythons() -> list[str]:
    """The running Python, and the oldest on this machine, from 3.8 on."""
    found = [sys.executable]
    for minor in (8, 9, 10):
        places = [
            shutil.which(f"python3.{minor}"),
            *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}")),
        ]
        for place in filter(None, places):
            if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:
                return [*found, place]
    return found


def test_the_agents_files_are_python_38() -> None:
    files = dict(read_files())
    assert len(files) > 20
    for name, content in files.items():
        ast.parse(content, name, feature_version=(3, 8))


@pytest.mark.parametrize("python", _pythons())
def test_the_agent_does_every_verb_in_any_python(pod: AgentPod, python: str) -> None:
    pod.write_tactics(rank_files(2, 191))
    for verb, code, reason in (
        ("check", 0, "Checked"),
        ("seal", 0, "Sealed"),
        ("check", 1, "Sealed"),
        ("inspect", 0, "Inspected"),
        ("seed", 0, "Seeded"),
        ("prove", 0, "Proven"),
        ("prune", 0, "Pruned"),
        ("import", 0, "Sealed"),
        ("prune", 0, "Pruned"),
        ("seed", 0, "NoBundle"),
    ):
        task = {
            "ids": [INPUTS.bundle_id()],
            "gpus": 2,
            "headers": {"X-Probe": "1"},
            "source": "tactics",
        }
        got, report, output = run_process(pod, verb, python=python, **task)
        assert (got, report.reason) == (code, reason), output
        assert f"pretune {verb}: {reason}" in output
    assert not list(pod.tactics.iterdir())


def test_an_unknown_verb_prints_the_known_ones(pod: AgentPod) -> None:
    process = start_process(pod, "unseal")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "check|seal|seed|prove|import|inspect|prune" in output


def test_two_seals_at_once_give_one_bundle_that_both_report(pod: AgentPod) -> None:
    pod.write_tactics(managed_store(60))
    for _ in range(3):
        with serve_engine(200) as (url, _asked):
            both = [start_process(pod, "seal", uid=f"pod-{n}", ready=url) for n in (1, 2)]
            output = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], output
        digests = {
            line.split()[-1]
            for text in output
            for line in text.splitlines()
            if "is on the claim" in line
        }
        assert digests == {pod.find_bundle().digest}
        assert pod.staging() == []
        assert pod.run("prune", ids=[INPUTS.bundle_id()]).reason == "Pruned"


def test_term_cleans_up_and_leaves_no_report(pod: AgentPod) -> None:
    """An eviction is not a failed attempt: only a report would make it one."""
    pod.write_tactics(rank_files(1))
    with serve_engine(200, silent_from=2) as (url, asked):
        process = start_process(pod, "seal", uid="pod-1", ready=url)
        while len(asked) < 2:  # all is staged, and the engine is asked once more
            time.sleep(0.005)
        assert pod.staging() == ["pod-1"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143 and (pod.claim.parent / "log").read_text() == ""
    assert pod.staging() == [] and pod.find_bundle() is None


# --- another uid


@needs_root
def test_the_engines_uid_seals_its_0600_files_for_all_to_read(open_pod: AgentPod) -> None:
    pod = open_pod.write_tactics(rank_files(2))
    for path in pod.tactics.rglob("*"):
        os.chown(path, 1000, 1000)
    assert run_process(pod, "check", *as_uid(1000, 2000, 3000), gpus=2)[1].reason == "Checked"
    code, report, output = run_process(pod, "seal", *as_uid(1000, 2000, 3000), gpus=2)
    assert (code, report.reason) == (0, "Sealed"), output
    assert report.writer is not None
    assert (report.writer.uid, report.writer.gid, report.writer.groups) == (
        1000,
        1000,
        [2000, 3000],
    )
    # The rename of what became 0555 worked for a uid that is not root, and any other uid reads it.
    assert run_process(pod, "inspect", *as_uid(65532))[1].bundles[0].digest == report.digest
    assert (
        run_process(pod, "seed", *as_uid(1001), gpus=2)[1].reason == "SeedFailed"
    )  # the engine's leftovers are another's
    shutil.rmtree(pod.tactics / KEY)
    assert run_process(pod, "seed", *as_uid(1001), gpus=2)[1].reason == "Seeded"
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")


@needs_root
def test_files_of_another_uid_are_named_as_unreadable(open_pod: AgentPod) -> None:
    pod = open_pod.write_tactics(rank_files(1))
    (pod.tactics / KEY).chmod(0o755)
    code, report, _ = run_process(pod, "seal", *as_uid(1000))
    assert (code, report.reason) == (1, "UnreadableFiles")
    assert f"{KEY}/autotune_configs_dp0_rank0.json" in report.message
    (pod.tactics / KEY).chmod(0o700)
    code, report, _ = run_process(pod, "seal", *as_uid(1000))
    assert (code, report.reason) == (1, "UnreadableFiles") and KEY in report.message
    assert not pod.folder.exists()


@needs_root
def test_two_uids_share_a_cache_and_neither_removes_the_others_bundle(open_pod: AgentPod) -> None:
    pod = open_pod.write_tactics(rank_files(1))
    for path in pod.tactics.rglob("*"):
        path.chmod(0o777)
    assert run_process(pod, "seal", *as_uid(1000))[1].reason == "Sealed"
    other = replace(INPUTS, target="h200")
    assert run_process(pod, "seal", *as_uid(1001), inputs=other)[1].reason == "Sealed"
    before = snapshot(pod.bundle())
    code, report, output = run_process(pod, "prune", *as_uid(1001), ids=[INPUTS.bundle_id()])
    assert (code, report.reason) == (1, "ReadOnlyClaim"), output
    assert snapshot(pod.bundle()) == before
    assert run_process(pod, "prune", *as_uid(1000), ids=[INPUTS.bundle_id()])[:2] == (
        0,
        Report("prune", "Pruned", "1 deleted"),
    )


@needs_root
def test_a_damaged_bundle_of_another_uid_is_reported_and_stays(open_pod: AgentPod) -> None:
    pod = open_pod.write_tactics(rank_files(1))
    for path in pod.tactics.rglob("*"):
        path.chmod(0o777)
    run_process(pod, "seal", *as_uid(1000))
    (pod.bundle() / "manifest.json").unlink()
    code, report, _ = run_process(pod, "seal", *as_uid(1001))
    assert (code, report.reason) == (1, "ReadOnlyClaim") and "belongs to uid 1000" in report.message
    assert stat.S_IMODE(pod.bundle().stat().st_mode) == 0o555
    assert run_process(pod, "seal", *as_uid(1000))[1].reason == "Sealed"
    assert pod.find_bundle() is not None and pod.staging() == []


# --- storage


@needs_root
def test_a_claim_that_is_not_writable_is_reported_with_the_uid(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    pod = open_pod.write_tactics(rank_files(1))
    pod.claim.chmod(0o755)
    for path in pod.tactics.rglob("*"):
        path.chmod(0o777)
    for verb in ("check", "seal"):
        code, report, _ = run_process(pod, verb, *as_uid(1000))
        assert (code, report.reason) == (1, "ReadOnlyClaim")
        assert "uid 1000" in report.message and "fsGroup" in report.message
    mount("--bind", str(pod.claim), str(pod.claim))
    mount("-o", "remount,ro,bind", str(pod.claim))
    for verb in ("check", "seal"):
        code, report, _ = run_process(pod, verb)
        assert (code, report.reason) == (1, "ReadOnlyClaim") and "Read-only" in report.message


@needs_root
def test_a_read_only_claim_with_our_folders_is_found_by_check_and_is_enough_for_inspect_and_seed(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    pod = open_pod.write_tactics(rank_files(1))
    assert run_process(pod, "seal")[1].reason == "Sealed"
    mount("--bind", str(pod.claim), str(pod.claim))
    mount("-o", "remount,ro,bind", str(pod.claim))
    assert (
        run_process(pod, "check", inputs=replace(INPUTS, revision="2"))[1].reason == "ReadOnlyClaim"
    )
    assert run_process(pod, "prune", ids=[INPUTS.bundle_id()])[1].reason == "ReadOnlyClaim"
    assert len(run_process(pod, "inspect", *as_uid(65532))[1].bundles) == 1
    shutil.rmtree(pod.tactics / KEY)
    assert run_process(pod, "seed", *as_uid(1001))[1].reason == "Seeded"


@needs_root
def test_a_full_claim_is_reported_before_the_engine_starts(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    mount("-t", "tmpfs", "-o", "size=16m,mode=0777", "none", str(open_pod.claim))
    assert run_process(open_pod, "check")[:2][0] == 0, "16 MiB are enough"
    (open_pod.claim / "other").write_bytes(b"x" * (13 << 20))
    code, report, _ = run_process(open_pod, "check", uid="pod-2")
    assert (code, report.reason) == (1, "NoSpace") and "at least 4 MiB" in report.message


@needs_root
def test_a_claim_that_fills_up_while_sealing_gets_no_bundle_and_its_space_back(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    pod = open_pod.write_tactics(
        {f"{KEY}/autotune_configs_dp0_rank{rank}.json": rank_file(2000) for rank in range(8)}
    )
    mount("-t", "tmpfs", "-o", "size=1m,mode=0777", "none", str(pod.claim))
    code, report, _ = run_process(pod, "seal", gpus=8)
    assert (code, report.reason) == (1, "NoSpace") and "enlarge the claim" in report.message
    assert pod.staging() == [] and not list(pod.bundles.iterdir())


@needs_root
def test_a_claim_without_inodes_is_full_too(open_pod: AgentPod, mount: Callable[..., None]) -> None:
    mount("-t", "tmpfs", "-o", "size=16m,nr_inodes=20,mode=0777", "none", str(open_pod.claim))
    code, report, _ = run_process(open_pod, "check")
    assert (code, report.reason) == (1, "NoSpace") and "inodes" in report.message


@needs_root
def test_no_space_in_the_pod_leaves_the_engine_an_empty_folder(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    pod = open_pod.write_tactics(
        {f"{KEY}/autotune_configs_dp0_rank{rank}.json": rank_file(500) for rank in range(4)}
    )
    assert run_process(pod, "seal", gpus=4)[1].reason == "Sealed"
    mount("-t", "tmpfs", "-o", "size=64k,mode=0777", "none", str(pod.tactics))
    code, report, _ = run_process(pod, "seed", gpus=4)
    assert (code, report.reason) == (0, "NoSpace") and not list(pod.tactics.iterdir())
