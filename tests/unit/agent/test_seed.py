"""Seed gives a starting pod the whole bundle or an empty folder, and never stops it."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pretune.agent import seed
from pretune.agent.__main__ import exit_code
from pretune.agent.claim.fs import Disk, Folder
from pretune.protocol import Inputs

from tests.builders.agent_pod import (
    INPUTS,
    KEY,
    STORE,
    AgentPod,
    managed_store,
    rank_file,
    rank_files,
    read_tree,
    serve_engine,
    snapshot,
)
from tests.unit.agent.image import build_image


@pytest.mark.parametrize("files", [rank_files(4, 9), managed_store(12), managed_store(300), {}])
def test_the_folder_holds_exactly_the_bundle_and_the_engine_may_write_in_it(
    pod: AgentPod, files: dict[str, bytes]
) -> None:
    with serve_engine(200) as (url, _):
        pod.write_tactics(files, folders=("ef" * 32,)).run("seal", gpus=4, ready=url)
    pod.write_tactics({"left/over": b"x"})
    before = snapshot(pod.bundles)
    report = pod.run("seed")
    assert (report.reason, report.id, exit_code(report)) == ("Seeded", INPUTS.bundle_id(), 0)
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")
    for path in pod.tactics.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666)
    assert snapshot(pod.bundles) == before


def _spoil(pod: AgentPod, change: Callable[[Path], None]) -> None:
    for path in [pod.bundle(), *pod.bundle().rglob("*")]:
        path.chmod(0o755)
    change(pod.bundle())


def _absolute(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(
        text.replace(f"{KEY}/autotune_configs_dp0_rank1.json", "../../../etc/passwd")
    )


def _linked(bundle: Path) -> None:
    file = bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json"
    file.rename(bundle / "moved")
    file.symlink_to(bundle / "moved")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda bundle: (bundle / "manifest.json").unlink(), "CorruptBundle"),
        (lambda bundle: (bundle / "manifest.json").write_bytes(b"{}"), "CorruptBundle"),
        (
            lambda bundle: (bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json").unlink(),
            "CorruptBundle",
        ),
        (
            lambda bundle: (
                bundle / "tactics" / KEY / "autotune_configs_dp0_rank1.json"
            ).write_bytes(b"{}"),
            "CorruptBundle",
        ),
        (_absolute, "CorruptBundle"),
        (_linked, "CorruptBundle"),
        (lambda bundle: bundle.rename(bundle.parent / "elsewhere"), "NoBundle"),
    ],
)
def test_whatever_is_wrong_with_the_bundle_the_folder_is_left_empty(
    pod: AgentPod, spoil: Callable[[Path], None], reason: str
) -> None:
    pod.seal(rank_files(2), gpus=2)
    _spoil(pod, spoil)
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == (reason, 0)
    assert read_tree(pod.tactics) == {}


def test_a_claim_without_our_folder_has_no_bundle(pod: AgentPod) -> None:
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == ("NoBundle", 0)


def test_a_missing_claim_is_reported(pod: AgentPod) -> None:
    pod.claim.rmdir()
    report = pod.run("seed")
    assert (report.reason, exit_code(report)) == (
        "SeedFailed",
        0,
    ) and "No such file" in report.message


def test_other_inputs_under_the_id_are_not_seeded(pod: AgentPod) -> None:
    class Twin(Inputs):
        def bundle_id(self) -> str:
            return INPUTS.bundle_id()

    pod.seal(rank_files(1))
    assert pod.run("seed", inputs=Twin("0f" * 32, "", "b200", {})).reason == "InputsDiffer"
    assert read_tree(pod.tactics) == {}


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
    pod: AgentPod, tmp_path: Path, sealed: tuple[str, str], here: tuple[str, str], reason: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pod.seal(rank_files(1), command=build_image(tmp_path / "a", *sealed))
    report = pod.run("seed", command=build_image(tmp_path / "b", *here))
    assert report.reason == reason
    if reason == "VersionsDiffer":
        assert read_tree(pod.tactics) == {} and here[0] in report.message + here[0]


# --- as a copy: by several threads, block by block


@pytest.mark.parametrize(
    "size", [seed.BLOCK_BYTES - 1, seed.BLOCK_BYTES, seed.BLOCK_BYTES + 1, 3 * seed.BLOCK_BYTES]
)
def test_a_file_of_any_number_of_blocks_is_copied_whole(pod: AgentPod, size: int) -> None:
    pod.seal({path: raw.ljust(size) for path, raw in managed_store(20).items()})
    pod.write_tactics({})
    assert pod.run("seed").reason == "Seeded"
    assert {path.stat().st_size for path in pod.tactics.rglob("*.json")} == {size}
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")


def test_a_byte_after_a_whole_number_of_blocks_is_not_overlooked(pod: AgentPod) -> None:
    pod.seal({path: raw.ljust(seed.BLOCK_BYTES) for path, raw in managed_store(2).items()})

    def spoil(bundle: Path) -> None:
        file = next((bundle / "tactics" / STORE / "entries").iterdir())
        file.write_bytes(file.read_bytes() + b" ")

    _spoil(pod, spoil)
    assert pod.run("seed").reason == "CorruptBundle"
    assert read_tree(pod.tactics) == {}


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: raw + b" ", lambda raw: b" " + raw[1:]]
)
def test_one_byte_anywhere_in_one_of_many_files_empties_the_folder(
    pod: AgentPod, change: Callable[[bytes], bytes]
) -> None:
    pod.seal(managed_store(300))

    def spoil(bundle: Path) -> None:
        file = sorted((bundle / "tactics" / STORE / "entries").iterdir())[250]
        file.write_bytes(change(file.read_bytes()))

    _spoil(pod, spoil)
    report = pod.run("seed")
    assert report.reason == "CorruptBundle" and STORE in report.message
    assert read_tree(pod.tactics) == {}


def test_a_folder_that_is_gone_from_the_bundle_is_named(pod: AgentPod) -> None:
    pod.seal(rank_files(2))
    _spoil(pod, lambda bundle: (bundle / "tactics" / KEY).rename(bundle / "elsewhere"))
    report = pod.run("seed")
    assert (report.reason, report.message) == ("CorruptBundle", f"{KEY} is missing")


class SlowDisk(Disk):
    """Each file and each block takes this long; the first file of each thread waits for `go`."""

    def __init__(
        self, file: float = 0.0, block: float = 0.0, go: threading.Event | None = None
    ) -> None:
        self.of_file, self.of_block, self.go = file, block, go
        self.threads: set[int] = set()

    def create(self, parent: Folder, name: str, mode: int = 0o600) -> int:
        self.threads.add(threading.get_ident())
        time.sleep(self.of_file)
        if self.go:
            self.go.wait(60)
        return super().create(parent, name, mode)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        time.sleep(self.of_block)
        super().write(fd, data)


@pytest.mark.parametrize(
    ("files", "disk"),
    [
        (managed_store(300), SlowDisk(file=0.02)),
        (
            {path: raw.ljust(40 * seed.BLOCK_BYTES) for path, raw in managed_store(3).items()},
            SlowDisk(block=0.1),
        ),
    ],
    ids=["many files", "large files"],
)
def test_what_takes_too_long_is_given_up_with_an_empty_folder(
    pod: AgentPod, files: dict[str, bytes], disk: Disk
) -> None:
    pod.seal(files)
    context = pod.context(disk=disk)
    context.limit_seconds = 0.2
    began = time.monotonic()
    report = seed.seed(context)
    assert (report.reason, exit_code(report)) == ("TooSlow", 75)
    assert f"{len(files)} files were not read in time" in report.message
    assert time.monotonic() - began < 2, "no longer than what was begun"
    assert read_tree(pod.tactics) == {}


def test_several_files_are_copied_at_a_time(pod: AgentPod) -> None:
    pod.seal(managed_store(60))
    disk = SlowDisk(file=0.01)
    assert pod.run("seed", disk=disk).reason == "Seeded"
    assert len(disk.threads) == seed.COPY_THREADS


def test_where_no_more_threads_may_be_started_fewer_do_it(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.seal(managed_store(60))
    pod.write_tactics({})
    started = []

    class Rare(threading.Thread):
        def start(self) -> None:
            started.append(self)
            if len(started) > 1:
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(seed.threading, "Thread", Rare)
    assert pod.run("seed").reason == "Seeded"
    assert len(started) == 2
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")


def test_a_call_that_does_not_return_is_not_waited_for(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed, "STOP_SECONDS", 0.1)
    pod.seal(managed_store(30))
    go = threading.Event()
    context = pod.context(disk=SlowDisk(go=go))
    context.limit_seconds = 0.1
    report = seed.seed(context)
    assert (report.reason, report.message) == ("TooSlow", "the claim did not answer within 0 s")
    go.set()


def test_an_unexpected_error_is_reported_too(pod: AgentPod) -> None:
    class Odd(Disk):
        def create(self, parent: Folder, name: str, mode: int = 0o600) -> int:
            raise MemoryError("odd")

    pod.seal({f"{KEY}/autotune_configs_dp0_rank{n}.json": rank_file(3) for n in range(30)})
    report = pod.run("seed", disk=Odd())
    assert (report.reason, report.message, exit_code(report)) == (
        "SeedFailed",
        "MemoryError: odd",
        0,
    )
    assert read_tree(pod.tactics) == {}
