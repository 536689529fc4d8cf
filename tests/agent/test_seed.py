"""Seed gives a starting pod the whole bundle or an empty folder, and never stops it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from pretune.agent.__main__ import exit_code
from pretune.wire import Inputs

from tests.agent.pod import INPUTS, KEY, Pod, content, managed, ranks, snapshot
from tests.agent.test_check import image


@pytest.mark.parametrize("files", [ranks(4, 9), managed(12), {}])
def test_the_folder_holds_exactly_the_bundle_and_the_engine_may_write_in_it(pod: Pod, files: dict[str, bytes]) -> None:
    pod.wrote(files, folders=("ef" * 32,)).run("seal", gpus=4)
    pod.wrote({"left/over": b"x"})
    before = snapshot(pod.bundles)
    report = pod.run("seed")
    assert (report.reason, report.id, exit_code(report)) == ("Seeded", INPUTS.bundle_id(), 0)
    assert content(pod.tactics) == content(pod.bundle() / "tactics")
    for path in pod.tactics.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666)
    assert snapshot(pod.bundles) == before


def _spoil(pod: Pod, change: Callable[[Path], None]) -> None:
    for path in [pod.bundle(), *pod.bundle().rglob("*")]:
        path.chmod(0o755)
    change(pod.bundle())


def _absolute(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace(f"{KEY}/autotune_configs_dp0_rank1.json", "../../../etc/passwd"))


def _linked(bundle: Path) -> None:
    file = bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json"
    file.rename(bundle / "moved")
    file.symlink_to(bundle / "moved")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda bundle: (bundle / "manifest.json").unlink(), "CorruptBundle"),
        (lambda bundle: (bundle / "manifest.json").write_bytes(b"{}"), "CorruptBundle"),
        (lambda bundle: (bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json").unlink(), "CorruptBundle"),
        (
            lambda bundle: (bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json").write_bytes(b"{}"),
            "CorruptBundle",
        ),
        (_absolute, "CorruptBundle"),
        (_linked, "CorruptBundle"),
        (lambda bundle: bundle.rename(bundle.parent / "elsewhere"), "NoBundle"),
    ],
)
def test_whatever_is_wrong_with_the_bundle_the_folder_is_left_empty(
    pod: Pod, spoil: Callable[[Path], None], reason: str
) -> None:
    pod.sealed(ranks(2), gpus=2)
    _spoil(pod, spoil)
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == (reason, 0)
    assert content(pod.tactics) == {}


def test_a_claim_without_our_folder_is_no_bundle(pod: Pod) -> None:
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == ("NoBundle", 0)


def test_no_claim_at_all_is_told(pod: Pod) -> None:
    pod.claim.rmdir()
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == ("SeedFailed", 0) and "No such file" in report.message


def test_other_inputs_under_the_id_are_not_seeded(pod: Pod) -> None:
    class Twin(Inputs):
        def bundle_id(self) -> str:
            return INPUTS.bundle_id()

    pod.sealed(ranks(1))
    assert pod.run("seed", inputs=Twin("0f" * 32, "", "b200", {})).reason == "InputsDiffer"
    assert content(pod.tactics) == {}


@pytest.mark.parametrize(
    ("sealed", "here", "reason"),
    [
        (("0.33.0", "0.7.2.post1"), ("0.33.0", "0.7.2.post1"), "Seeded"),
        (("0.33.0", "0.7.2.post1"), ("0.33.1", "0.7.2.post1"), "VersionsDiffer"),
        (("0.33.0", "0.7.2.post1"), ("0.33.0", "0.7.3"), "VersionsDiffer"),
        (("", ""), ("0.33.0", "0.7.2.post1"), "Seeded"),
        (("0.33.0", "0.7.2.post1"), ("", ""), "Seeded"),
        (("", ""), ("", ""), "Seeded"),
    ],
)
def test_the_images_versions_have_to_be_the_sealed_ones_as_far_as_both_are_known(
    pod: Pod, tmp_path: Path, sealed: tuple[str, str], here: tuple[str, str], reason: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pod.sealed(ranks(1), command=image(tmp_path / "a", *sealed))
    report = pod.run("seed", command=image(tmp_path / "b", *here))
    assert report.reason == reason
    if reason == "VersionsDiffer":
        assert content(pod.tactics) == {} and here[0] in report.message + here[0]
