"""Invariant 2 (docs/dev/invariants.md): whenever it is killed, bundles are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pretune.agent.claim.fs import Disk, Folder
from pretune.protocol import Inputs

from tests.builders.agent_pod import (
    INPUTS,
    KEY,
    AgentPod,
    managed_store,
    rank_files,
    read_tree,
    serve_engine,
    snapshot,
)
from tests.unit.agent.killing import kill_after_each_operation

OTHER = Inputs("0f" * 32, "", "b200", {})

FILES = {
    **rank_files(2, 3),
    "cd" * 32 + "/autotune_configs_dp0_rank0.json": rank_files(1)[
        f"{KEY}/autotune_configs_dp0_rank0.json"
    ],
}


def _sealed_whole(pod: AgentPod) -> None:
    found = pod.find_bundle()
    assert found is not None
    assert read_tree(pod.bundle() / "tactics") == read_tree(pod.tactics)


@pytest.mark.parametrize("files", [FILES, managed_store(2), {}])
def test_a_seal_killed_after_any_operation_leaves_its_bundle_whole_or_absent(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    absent = whole = 0
    reason = "Sealed" if files else "NothingToTune"

    def check(pod: AgentPod) -> None:
        nonlocal absent, whole
        there = pod.find_bundle() is not None
        whole, absent = whole + there, absent + (not there)
        if there:
            _sealed_whole(pod)
        # The next attempt's check and seal succeed, and the check removes the killed one's staging.
        assert pod.run("check", "pod-2", gpus=2).reason == (reason if there else "Checked")
        assert pod.run("seal", "pod-2", gpus=2, ready=url).reason == reason
        _sealed_whole(pod)
        assert pod.staging() == []
        assert os.stat(pod.bundle()).st_mode & 0o777 == 0o555

    def prepare(pod: AgentPod) -> None:
        pod.write_tactics(files)
        pod.run("check", "pod-1", gpus=2)

    def seal(pod: AgentPod, disk: Disk) -> None:
        pod.run("seal", "pod-1", disk, gpus=2, ready=url)

    with serve_engine(200) as (url, _):
        operations = kill_after_each_operation(tmp_path, seal, prepare, check)
    assert operations > 15 and absent > 5 and whole > 3


def test_a_check_killed_after_any_operation_is_no_hindrance_to_the_next(tmp_path: Path) -> None:
    def check(pod: AgentPod) -> None:
        assert pod.run("check", "pod-2").reason == "Checked"
        # A killed attempt at the same bundle is removed; one without its start mark after a day.
        left = {name: os.listdir(pod.folder / ".staging" / name) for name in pod.staging()}
        assert (
            left.pop("pod-2") == ["started"]
            and all(there in ([], ["started"]) for there in left.values())
            and len(left) < 2
        )
        assert pod.run("seal", "pod-2").reason == "Sealed"

    operations = kill_after_each_operation(
        tmp_path,
        lambda pod, disk: pod.run("check", "pod-1", disk),
        lambda pod: pod.write_tactics(rank_files(1)),
        check,
    )
    assert operations > 10


def test_no_seal_changes_a_bundle_that_is_sealed_wherever_it_dies(tmp_path: Path) -> None:
    before: dict[str, Any] = {}

    def prepare(pod: AgentPod) -> None:
        pod.seal(rank_files(1, 3), inputs=OTHER)
        pod.seal(rank_files(2, 5), gpus=2)
        before.clear()
        before.update(snapshot(pod.bundles))
        pod.write_tactics(rank_files(2, 7))

    def check(pod: AgentPod) -> None:
        assert snapshot(pod.bundles) == before

    kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("seal", "pod-2", disk, gpus=2), prepare, check
    )


def test_a_sealed_bundle_is_untouched_while_another_one_is_sealed_and_dies(tmp_path: Path) -> None:
    before: dict[str, Any] = {}

    def prepare(pod: AgentPod) -> None:
        pod.seal(rank_files(1, 3), inputs=OTHER)
        before.clear()
        before.update(snapshot(pod.bundle(OTHER)))
        pod.write_tactics(rank_files(2, 7))

    def check(pod: AgentPod) -> None:
        assert snapshot(pod.bundle(OTHER)) == before

    kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("seal", "pod-2", disk, gpus=2), prepare, check
    )


def test_a_seal_killed_while_it_replaces_a_damaged_bundle_is_no_hindrance_to_the_next(
    tmp_path: Path,
) -> None:
    def prepare(pod: AgentPod) -> None:
        pod.seal(rank_files(2), gpus=2)
        folder = pod.bundle() / "tactics" / KEY
        folder.chmod(0o755)
        (folder / "autotune_configs_dp0_rank1.json").unlink()
        folder.chmod(0o555)

    def check(pod: AgentPod) -> None:
        assert pod.run("seal", "pod-2", gpus=2).reason == "Sealed"
        _sealed_whole(pod)

    kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("seal", "pod-1", disk, gpus=2), prepare, check
    )


def test_a_prune_killed_after_any_operation_leaves_bundles_whole_or_absent_and_the_next_one_ends_it(
    tmp_path: Path,
) -> None:
    ids = [INPUTS.bundle_id(), OTHER.bundle_id()]

    def prepare(pod: AgentPod) -> None:
        pod.seal(rank_files(1, 3), inputs=OTHER)
        pod.seal(rank_files(2, 5), gpus=2)

    def check(pod: AgentPod) -> None:
        pod.find_bundle()  # raises DamagedBundle
        pod.find_bundle(OTHER)
        assert pod.run("prune", "pod-3", ids=ids).reason == "Pruned"
        assert list(pod.bundles.iterdir()) == [] and pod.staging() == []

    operations = kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("prune", "pod-2", disk, ids=ids), prepare, check
    )
    assert operations > 10


def test_a_seed_killed_after_any_operation_starts_again_from_an_empty_folder(
    tmp_path: Path,
) -> None:
    def prepare(pod: AgentPod) -> None:
        pod.seal(FILES, gpus=2)
        pod.write_tactics({})

    def check(pod: AgentPod) -> None:
        assert pod.run("seed").reason == "Seeded"
        assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")

    kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("seed", "pod-2", disk), prepare, check
    )


class Journal(Disk):
    """Which paths were created or written, and not synced since."""

    def __init__(self) -> None:
        self.unsynced: set[str] = set()
        self.at_rename: list[set[str]] = []

    def mkdir(self, parent: Folder, name: str, mode: int = 0o755) -> None:
        super().mkdir(parent, name, mode)
        self.unsynced |= {_path(parent.fd), f"{_path(parent.fd)}/{name}"}

    def create(self, parent: Folder, name: str, mode: int = 0o600) -> int:
        self.unsynced |= {_path(parent.fd), f"{_path(parent.fd)}/{name}"}
        return super().create(parent, name, mode)

    def write(self, fd: int, data: bytes) -> None:
        super().write(fd, data)
        self.unsynced.add(_path(fd))

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.unsynced.discard(_path(fd))

    def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
        if name == "bundle":
            staged = f"{_path(source.fd)}/{name}"
            self.at_rename.append({path for path in self.unsynced if path.startswith(staged)})
            self.unsynced.add(_path(to.fd))
        super().rename(source, name, to, new)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def test_everything_is_synced_before_the_rename_and_the_rename_itself_after(pod: AgentPod) -> None:
    journal = Journal()
    pod.write_tactics(FILES, folders=("ef" * 32,))
    assert pod.run("seal", disk=journal, gpus=2).reason == "Sealed"
    assert journal.at_rename == [set()]
    assert str(pod.bundles) not in journal.unsynced
