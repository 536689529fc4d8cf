"""What check finds out before a GPU is used."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from pretune.api.reasons import REASONS
from pretune.protocol import Inputs

from tests.builders.agent_pod import CACHE, INPUTS, AgentPod, rank_files, snapshot
from tests.unit.agent.image import build_image


@pytest.mark.parametrize(
    ("version", "gpus", "reason", "named"),
    [
        ("0.33.0", 8, "Checked", ""),
        ("0.24.0", 1, "ReleaseTooOld", "0.24.0"),
        ("0.26.0", 4, "ReleaseTooOld", "0.26.0"),
        ("0.30.1", 4, "SharedLayout", "0.30.1"),
        ("0.30.1", 1, "Checked", ""),
        ("", 8, "Checked", "vLLM's version unknown"),
    ],
)
def test_a_release_that_cannot_be_tuned_is_refused_by_name_before_the_claim_is_touched(
    pod: AgentPod, tmp_path: Path, version: str, gpus: int, reason: str, named: str
) -> None:
    report = pod.run("check", command=build_image(tmp_path, version), gpus=gpus)
    assert report.reason == reason and named in report.message
    if reason == "Checked":
        assert report.versions is not None
        assert (report.versions.vllm, report.versions.flashinfer) == (version, "0.7.2.post1")
    else:
        assert reason in REASONS and not pod.folder.exists()


def test_the_folders_that_several_uids_share_are_made_1777_whatever_the_umask(
    pod: AgentPod,
) -> None:
    before = os.umask(0o077)
    try:
        assert pod.run("check", subPath="team/pretune").reason == "Checked"
    finally:
        os.umask(before)
    base = pod.claim / "team/pretune" / CACHE
    for path in (base, base / "bundles", base / ".staging", base.parent, base.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o1777, path


def test_folders_of_the_users_own_keep_their_mode(pod: AgentPod) -> None:
    (pod.claim / "team").mkdir(mode=0o750)
    assert pod.run("check", subPath="/team/").reason == "Checked"
    assert stat.S_IMODE((pod.claim / "team").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    "where", ["team", "team/pretune", f"team/pretune/{CACHE}", f"team/pretune/{CACHE}/bundles"]
)
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_on_the_way_is_named_and_not_followed(
    pod: AgentPod, tmp_path: Path, where: str, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = pod.claim / where
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        place.symlink_to(elsewhere)
    else:
        place.write_text("")
    pod.write_tactics(rank_files(1))
    for verb in ("check", "seal", "prune", "inspect", "seed"):
        report = pod.run(verb, subPath="team/pretune", ids=[INPUTS.bundle_id()])
        assert report.reason == "UnsafePath" and place.name in report.message, verb
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("path", ["..", "a/../b", "../a"])
def test_a_sub_path_never_leads_out_of_the_claim(pod: AgentPod, path: str) -> None:
    assert pod.run("check", subPath=path).reason == "UnsafePath"
    assert list(pod.claim.iterdir()) == []


def test_a_bundle_that_is_there_ends_the_attempt_with_its_own_data(pod: AgentPod) -> None:
    sealed = pod.seal(rank_files(2, 7), gpus=2)
    before = snapshot(pod.bundles)
    found = pod.run("check", "pod-2", gpus=2)
    assert (found.by, found.reason) == ("check", "Sealed")
    for field in (
        "id",
        "layout",
        "entries",
        "digest",
        "versions",
        "writer",
        "seconds",
        "at",
        "message",
    ):
        assert getattr(found, field) == getattr(sealed, field)
    assert snapshot(pod.bundles) == before and pod.staging() == []


def test_a_bundle_whose_seal_died_before_its_last_mode_gets_it(pod: AgentPod) -> None:
    pod.seal(rank_files(1))
    pod.bundle().chmod(0o755)
    assert pod.run("check").reason == "Sealed"
    assert stat.S_IMODE(pod.bundle().stat().st_mode) == 0o555


def test_a_damaged_bundle_does_not_end_the_attempt_and_is_reported(pod: AgentPod) -> None:
    pod.seal(rank_files(1))
    (pod.bundle() / "manifest.json").unlink()
    report = pod.run("check")
    assert (
        report.reason == "Checked"
        and "damaged bundle" in report.message
        and "manifest.json" in report.message
    )


def test_a_bundle_of_another_id_does_not_count(pod: AgentPod) -> None:
    pod.seal(rank_files(1), inputs=Inputs("0f" * 32, "", "b200", {}))
    assert pod.run("check").reason == "Checked"


def test_what_killed_attempts_left_is_removed_but_a_running_ones_is_not(pod: AgentPod) -> None:
    pod.run("check", "dead-long-ago")
    pod.run("check", "alive", inputs=Inputs("0f" * 32, "", "b200", {}))
    staging = pod.folder / ".staging"
    (staging / ".gone-x").mkdir()
    (staging / ".gone-x/file").write_text("")
    (staging / "dead-long-ago/started").write_text("1.0 000000000000-other\n")
    (staging / "dead-long-ago/bundle").mkdir()
    day_ago = time.time() - 86500
    os.utime(staging / "dead-long-ago", (day_ago, day_ago))
    pod.run("check", "dead-lately")
    pod.run("check", "now")
    assert pod.staging() == ["alive", "now"]


def test_a_task_that_is_not_json_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretune.agent.__main__ import main
    from pretune.protocol import Report

    log = tmp_path / "log"
    for text in ("", "{", "[]", '{"cache":1,"x":2}'):
        monkeypatch.setenv("PRETUNE_TASK", text)
        code = main(["check", "--claim", str(tmp_path), "--termination-log", str(log)])
        report = Report.load(log.read_text())
        assert code == 1 and report is not None and report.reason == "SealFailed"
