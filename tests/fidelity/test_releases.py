"""The releases that can be rehearsed: pins that agree with what is said elsewhere, and how they come onto a disk and off it again."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fidelity.releases import CI_RELEASES, REHEARSAL, RELEASES

LAYOUTS = {
    "leader": ("Shared", "Nothing"),
    "shared": ("Shared", "Shared"),
    "per rank": ("PerRank",) * 2,
    "managed": ("Managed", "PerRank"),
}


def test_the_stand_in_plays_the_same_versions_and_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REHEARSAL.parent / "engine"))
    played: dict[str, Any] = importlib.import_module("stand_in.releases").RELEASES
    for vllm, release in RELEASES.items():
        said = played[vllm]
        assert (said.torch, said.flashinfer) == (release.torch, release.flashinfer)
        assert LAYOUTS[said.keeps.value] == (release.one, release.several)


@pytest.mark.parametrize("vllm", RELEASES)
def test_everything_that_a_release_is_made_of_is_pinned_by_hash(vllm: str) -> None:
    release = RELEASES[vllm]
    pins: dict[str, int] = {}
    for name in ("common", f"torch-{release.torch}", f"vllm-{vllm}"):
        text = (REHEARSAL / f"requirements/{name}.txt").read_text()
        assert "://" not in text
        for pin, hashes in re.findall(r"(?m)^([\w.-]+==[^ ]+) \\\n((?:    --hash=.*\n?)+)", text):
            assert pin not in pins, f"{pin} is in two parts"
            pins[pin] = hashes.count("sha256:")
    assert {
        f"vllm=={vllm}",
        f"flashinfer-python=={release.flashinfer}",
        f"torch=={release.torch}",
    } <= set(pins)
    assert all(pins.values())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """images/rehearsal/install as a module, with a uv that installs one file for each requirements file."""
    loader = importlib.machinery.SourceFileLoader("install", str(REHEARSAL / "install"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("install", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    monkeypatch.setenv("PRETUNE_BUILD", str(tmp_path))
    script = 'while [ $# -gt 1 ]; do case $1 in --target) to=$2;; -r) of=$2;; esac; shift; done; [ -z "$to" ] && exit'
    script += '; mkdir -p "$to/pkg" && cp "$of" "$to/pkg/"'
    monkeypatch.setattr(module, "uv", lambda *words: ["sh", "-c", script, "uv", *words])
    return module


def run(install: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["install", *words])
    install.main()


def names(folder: Path) -> set[str]:
    """What is there, less the hash of its requirements."""
    return {
        one.name.rpartition("-")[0] for one in folder.iterdir() if not one.name.startswith(".")
    } - {""}


def test_releases_share_their_parts_and_go_one_by_one(
    install: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rehearsal = tmp_path / "rehearsal"
    run(install, monkeypatch, "0.31.0", "0.32.0")
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [sorted(one.name for one in (where / "pkg").iterdir()) for where in printed] == [
        ["common.txt", "torch-2.13.0.txt", "vllm-0.31.0.txt"],
        ["common.txt", "torch-2.13.0.txt", "vllm-0.32.0.txt"],
    ]
    assert len({(where / "pkg/torch-2.13.0.txt").stat().st_ino for where in printed}) == 1
    run(install, monkeypatch, "--remove", "0.31.0")
    assert names(rehearsal) == {"0.32.0"}
    assert names(rehearsal / "parts") == {"common", "torch-2.13.0", "vllm-0.32.0"}
    assert (printed[1] / "pkg/torch-2.13.0.txt").exists()
    run(install, monkeypatch, "--remove", "0.32.0")
    assert not names(rehearsal) and not names(rehearsal / "parts")


def test_a_release_is_not_begun_where_the_disk_is_too_small(
    install: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "SPARE_GIB", 1 << 40)
    with pytest.raises(SystemExit, match="--remove RELEASE"):
        run(install, monkeypatch, "0.33.0")
    assert "GiB needed" in capsys.readouterr().out
    assert not (tmp_path / "rehearsal/parts").exists()


def test_a_release_that_could_not_be_installed_whole_is_not_there(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = install.uv
    monkeypatch.setattr(install, "uv", lambda *words: ["false"])
    with pytest.raises(SystemExit, match=r"could not install requirements/common\.txt"):
        run(install, monkeypatch, "0.33.0")
    assert not list((tmp_path / "rehearsal/parts").iterdir())
    monkeypatch.setattr(install, "uv", working)
    run(install, monkeypatch, "0.33.0")
    assert names(tmp_path / "rehearsal") == {"0.33.0"}


@pytest.mark.parametrize(("words", "status", "said"), [
    (["--where", "0.31.0"], 1, r"^\S+/rehearsal/0\.31\.0-[0-9a-f]{12}/site-packages\n$"),
    (["--where"], 1, rf"^\S+/rehearsal/{re.escape(CI_RELEASES[0])}-[0-9a-f]{{12}}/site-packages\n$"),
    (["--where", "0.24.0"], 1, r"no release '0\.24\.0'; there are 0\.25\.1, "),
    (["--remov", "0.31.0"], 1, r"install --remove RELEASE"),
])  # fmt: skip
def test_what_is_not_there_or_not_known_is_said(
    tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    environ = {"PRETUNE_BUILD": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [sys.executable, str(REHEARSAL / "install"), *words],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status
    assert re.search(said, ran.stdout + ran.stderr)
    assert not list(tmp_path.glob("rehearsal/[0-9]*"))
