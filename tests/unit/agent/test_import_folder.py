"""What vLLM wrote elsewhere becomes a bundle, if it fits the image and the target."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.agent.import_folder import _is_product, _products
from pretune.engines.vllm import releases
from pretune.engines.vllm.tactics import MAX_FILE_BYTES
from pretune.protocol import Inputs, Report

from tests.builders.agent_pod import (
    INPUTS,
    KEY,
    METADATA,
    STORE,
    AgentPod,
    managed_store,
    rank_file,
    rank_files,
    read_tree,
)
from tests.unit.agent.conftest import needs_root
from tests.unit.agent.image import build_image
from tests.unit.agent.killing import kill_after_each_operation
from tests.unit.agent.processes import run_as_uid

V1 = ".cache/vllm/flashinfer_autotune_cache/0.7.2.post1/100a"
V1_CPU = ".cache/vllm/flashinfer_autotune_cache/flashinfer/0.7.2.post1"  # no architecture is known
V2 = ".cache/flashinfer/autotune"
OTHER_KEY = "cd" * 32
ANYWHERE = Inputs("f0" * 32, "", "b200", {})
H200 = {**METADATA, "gpu": "NVIDIA H200"}
OLDER = {**METADATA, "flashinfer_version": "0.7.0.post1"}


def write_source(pod: AgentPod, folder: str, files: dict[str, bytes]) -> AgentPod:
    """Write these files to the source claim, as vLLM leaves them."""
    for path, data in files.items():
        file = source_claim(pod) / folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o600)
    return pod


def source_claim(pod: AgentPod) -> Path:
    folder = pod.claim.with_name("source")
    folder.mkdir(exist_ok=True)
    return folder


def run_import(
    pod: AgentPod, at: str = "", uid: str = "pod-1", disk: Any = None, **task: Any
) -> Report:
    from pretune.agent.__main__ import run

    context = pod.context(uid, disk, source=at, **task)
    context.source = str(source_claim(pod))
    return run("import", context)


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{path}": data for path, data in files.items()}


def build_image_beside(
    pod: AgentPod, vllm_version: str, flashinfer: str = "0.7.2.post1"
) -> list[str]:
    folder = pod.claim.with_name("image")
    folder.mkdir()
    return build_image(folder, vllm_version, flashinfer)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        *(
            (V1, at)
            for at in (
                "",
                ".cache",
                ".cache/vllm",
                ".cache/vllm/flashinfer_autotune_cache",
                V1[:-5],
                V1,
            )
        ),
        (V1, f"{V1}/{KEY}"),
        *((V1_CPU, at) for at in ("", V1_CPU[:-22], V1_CPU[:-12], V1_CPU)),
        ("tactics", "tactics"),
        ("tactics", f"/tactics/./{KEY}/"),
        ("", ""),
        ("home/vllm/" + V1, "home/vllm"),
    ],
)
def test_rank_files_are_found_from_wherever_on_the_way_to_them(
    pod: AgentPod, written: str, at: str
) -> None:
    write_source(pod, written, rank_files(4, 7))
    report = run_import(pod, at, gpus=4)
    assert (report.reason, report.layout, report.entries, report.seconds) == (
        "Sealed",
        "PerRank",
        7,
        0,
    ), report
    assert report.by == "import" and "7 entries in 4 rank files, imported from " in report.message
    assert {
        path: data for path, data in read_tree(pod.bundle() / "tactics").items() if data
    } == rank_files(4, 7)
    assert pod.find_bundle().digest == report.digest and pod.staging() == []


@pytest.mark.parametrize(
    ("written", "at"),
    [
        *((V2, at) for at in ("", ".cache", ".cache/flashinfer", V2, f"{V2}/v2", f"{V2}/{STORE}")),
        ("tactics", "tactics"),
        ("", ""),
    ],
)
def test_a_managed_store_is_found_from_wherever_on_the_way_to_it(
    pod: AgentPod, written: str, at: str
) -> None:
    write_source(pod, written, managed_store(5))
    report = run_import(pod, at)
    assert (report.reason, report.layout, report.entries) == ("Sealed", "Managed", 5), report
    assert {
        path: data for path, data in read_tree(pod.bundle() / "tactics").items() if data
    } == managed_store(5)


def test_an_imported_bundle_is_one_like_any_other(pod: AgentPod) -> None:
    command = build_image_beside(pod, "0.33.0")
    write_source(pod, V2, managed_store(5))
    report = run_import(pod, command=command)
    assert report.versions is not None and vars(report.versions) == {
        "vllm": "0.33.0",
        "flashinfer": "0.7.2.post1",
        "cuda": "13.0",
        "gpu": "NVIDIA B200",
    }
    assert pod.run("check", "pod-2", command=command).reason == "Sealed"
    assert pod.run("seed", "pod-3", command=command).reason == "Seeded"
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")
    assert pod.run("prove", "pod-4", command=command).reason == "Proven"
    assert pod.run("inspect", ids=[INPUTS.bundle_id()]).bundles[0].proven


def test_the_samples_that_flashinfer_wrote_are_imported(pod: AgentPod) -> None:
    shutil.copytree(Path(__file__).with_name("samples") / "v2root", source_claim(pod) / "store")
    report = run_import(pod, "store", inputs=ANYWHERE)
    assert (report.reason, report.entries) == ("Sealed", 10)
    assert (
        "GPU NVIDIA H200, not compared: the target names no nvidia.com/gpu.product"
        in report.message
    )
    refused = run_import(pod, "store")
    assert (
        "of GPU NVIDIA H200, and the target's nvidia.com/gpu.product is NVIDIA-B200"
        in refused.message
    )


def test_a_bundle_that_is_there_already_wins(pod: AgentPod) -> None:
    sealed = pod.seal(rank_files(1, 3))
    write_source(pod, V1, rank_files(1, 9))
    report = run_import(pod)
    assert (report.reason, report.digest, report.entries) == ("Sealed", sealed.digest, 3)


def test_nothing_of_the_source_is_changed(pod: AgentPod) -> None:
    write_source(pod, V1, rank_files(1))
    before = read_tree(source_claim(pod))
    assert run_import(pod).reason == "Sealed"
    assert read_tree(source_claim(pod)) == before


# --- which of several


def test_of_two_flashinfers_that_of_the_image_is_taken(pod: AgentPod) -> None:
    command = build_image_beside(pod, "0.32.0")
    write_source(pod, V1, rank_files(1, 4))
    write_source(
        pod,
        V1.replace("0.7.2.post1", "0.7.0.post1"),
        {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(9, OLDER)},
    )
    report = run_import(pod, command=command)
    assert (report.reason, report.entries) == ("Sealed", 4)
    assert f"imported from {V1}/abababababab…" in report.message


def test_of_two_gpus_that_of_the_target_is_taken(pod: AgentPod) -> None:
    write_source(
        pod,
        V1.replace("100a", "90a"),
        {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(9, H200)},
    )
    write_source(pod, V1, rank_files(1, 4))
    assert run_import(pod).entries == 4


@pytest.mark.parametrize(
    ("gpus", "words", "layout"),
    [(1, (), "Managed"), (2, (), "PerRank"), (2, ("-tp", "2"), "PerRank")],
)
def test_where_033_wrote_both_that_of_so_many_gpus_is_taken(
    pod: AgentPod, gpus: int, words: tuple[str, ...], layout: str
) -> None:
    command = [*build_image_beside(pod, "0.33.0"), *words]
    write_source(pod, V1, rank_files(2))
    write_source(pod, V2, managed_store(5))
    assert run_import(pod, gpus=gpus, command=command).layout == layout


def test_two_keys_that_fit_are_named_and_one_has_to_be_chosen(pod: AgentPod) -> None:
    write_source(pod, V1, {**rank_files(1, 4), **rank_files(1, 5, OTHER_KEY)})
    report = run_import(pod)
    assert report.reason == "ImportRefused" and not list(pod.folder.glob("bundles/*"))
    assert (
        "2 folders fit" in report.message
        and f"{V1}/abababababab…, {V1}/cdcdcdcdcdcd…; name it" in report.message
    )
    assert run_import(pod, f"{V1}/{OTHER_KEY}").entries == 5
    assert set(read_tree(pod.bundle() / "tactics")) == {
        OTHER_KEY,
        f"{OTHER_KEY}/autotune_configs_dp0_rank0.json",
    }


def test_a_key_that_is_unsound_for_this_engine_leaves_the_other(pod: AgentPod) -> None:
    write_source(pod, V1, {**rank_files(4, 4), **rank_files(1, 5, OTHER_KEY)})
    report = run_import(pod, gpus=4, command=["/absent/vllm", "-tp", "4"])
    assert (report.reason, report.entries) == ("Sealed", 4)


# --- refused


def _nothing(pod: AgentPod) -> None:
    (source_claim(pod) / "models").mkdir()


def _other_gpu(pod: AgentPod) -> None:
    write_source(pod, V1, {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(3, H200)})


def _no_gpu(pod: AgentPod) -> None:
    write_source(
        pod,
        V1,
        {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(3, {**METADATA, "gpu": "unknown"})},
    )


def _corrupt(pod: AgentPod) -> None:
    write_source(pod, V1, {f"{KEY}/autotune_configs_dp0_rank0.json": b"{"})


def _no_entries(pod: AgentPod) -> None:
    write_source(pod, V1, {f"{KEY}/autotune_configs.json": rank_file(0)})


def _gap(pod: AgentPod) -> None:
    write_source(
        pod, V1, {path: data for path, data in rank_files(3).items() if "rank1" not in path}
    )


def _mixed(pod: AgentPod) -> None:
    other = rank_file(3).replace(b"('op', 'Runner', ((2,", b"('another_op', 'Runner', ((2,")
    write_source(pod, V1, {**rank_files(2), f"{KEY}/autotune_configs_dp0_rank1.json": other})


def _shared_on_two(pod: AgentPod) -> None:
    write_source(pod, V1, {f"{KEY}/autotune_configs.json": rank_file(3)})


def _linked_file(pod: AgentPod) -> None:
    write_source(pod, V1, rank_files(1))
    (source_claim(pod) / V1 / KEY / "more.json").symlink_to("/etc/passwd")


def _linked_key(pod: AgentPod) -> None:
    write_source(pod, "elsewhere", rank_files(1))
    (source_claim(pod) / V1).mkdir(parents=True)
    (source_claim(pod) / V1 / KEY).symlink_to(source_claim(pod) / "elsewhere" / KEY)


def _linked_cache(pod: AgentPod) -> None:
    write_source(pod, "elsewhere/" + V1, rank_files(1))
    (source_claim(pod) / ".cache").symlink_to("elsewhere/.cache")


def _too_large(pod: AgentPod) -> None:
    write_source(pod, V1, rank_files(1))
    with open(source_claim(pod) / V1 / KEY / "huge.bin", "wb") as huge:
        huge.truncate(300 << 20)


def _large_file(pod: AgentPod) -> None:
    write_source(pod, V1, {f"{KEY}/autotune_configs_dp0_rank0.json": b" " * (MAX_FILE_BYTES + 1)})


def _many(pod: AgentPod) -> None:
    write_source(
        pod, V1, {f"{number:064x}/autotune_configs.json": rank_file(1) for number in range(201)}
    )


@pytest.mark.parametrize(
    ("prepare", "at", "gpus", "words"),
    [
        (
            _nothing,
            "",
            1,
            "no tactics of vLLM at the claim's root: it is not an override folder or a key folder",
        ),
        (_nothing, "models/vllm", 1, "no tactics of vLLM at models/vllm: there is no such folder"),
        (_nothing, "../etc", 1, "'../etc' leads out of the claim"),
        (
            _other_gpu,
            "",
            1,
            "of GPU NVIDIA H200, and the target's nvidia.com/gpu.product is NVIDIA-B200",
        ),
        (_no_gpu, "", 1, "of GPU unknown, and the target's"),
        (_corrupt, "", 1, "CorruptFiles: "),
        (_no_entries, "", 1, "no tactics in it"),
        (_gap, "", 3, "IncompleteRanks: "),
        (_mixed, "", 2, "hold unlike entries of another_op: files of several starts"),
        (_shared_on_two, "", 2, "SharedLayout: "),
        (_linked_file, "", 1, "UnsafeFiles: more.json is a link; it was not followed"),
        (_linked_key, "", 1, f"{KEY} is a link; it was not followed"),
        (_linked_cache, "", 1, ".cache is a link or not a folder; it was not followed"),
        (
            _too_large,
            "",
            1,
            "UnsafeFiles: the engine left more than 256 MiB; the largest file is huge.bin",
        ),
        (_large_file, "", 1, "larger than 8 MiB"),
        (_many, "", 1, "more than 200 folders of tactics below the claim's root: name one of them"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_taken(
    pod: AgentPod, prepare: Callable[[AgentPod], None], at: str, gpus: int, words: str
) -> None:
    prepare(pod)
    report = run_import(pod, at, gpus=gpus)
    assert report.reason == "ImportRefused" and words in report.message, report
    assert len(report.dump().encode()) <= 700
    assert not list(pod.claim.rglob("*.json"))


@pytest.mark.parametrize(
    ("version", "flashinfer", "gpus", "text", "refused"),
    [
        (
            *("0.32.0", "0.7.0.post1", 1),
            "of FlashInfer 0.7.2.post1, and the image has 0.7.0.post1",
            "ImportRefused",
        ),
        (
            *("0.31.0", "0.7.2.post1", 1),
            "layout PerRank, which vLLM 0.31.0 on 1 GPUs does not read; it reads Shared",
            "ImportRefused",
        ),
        (
            *("0.24.0", "0.7.2.post1", 1),
            "vLLM 0.24.0 in the image does not persist tactics",
            "ReleaseTooOld",
        ),
        ("0.31.0", "0.7.2.post1", 2, "keeps one file for all ranks", "SharedLayout"),
    ],
)
def test_what_the_image_does_not_read_is_refused(
    pod: AgentPod, version: str, flashinfer: str, gpus: int, text: str, refused: str
) -> None:
    command = build_image_beside(pod, version, flashinfer)
    write_source(pod, V1, rank_files(gpus))
    report = run_import(pod, command=command, gpus=gpus)
    assert report.reason == refused and text in report.message, report


def test_the_default_root_names_the_flashinfer_of_files_that_do_not(
    pod: AgentPod,
) -> None:
    command = build_image_beside(pod, "0.32.0")
    silent = {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(3, {"gpu": "NVIDIA B200"})}
    write_source(pod, "override", silent)
    report = run_import(pod, "override", command=command)
    assert "of FlashInfer of no known version, and the image has 0.7.2.post1" in report.message
    write_source(pod, V1, silent)
    assert run_import(pod, command=command).reason == "Sealed"


def test_a_source_that_changes_while_it_is_read_is_refused(pod: AgentPod) -> None:
    from pretune.agent.claim.fs import Disk, Folder

    write_source(pod, V1, rank_files(1))

    class Writes(Disk):
        def fsync(self, fd: int) -> None:
            path = source_claim(pod) / V1 / KEY / "autotune_configs_dp0_rank0.json"
            path.write_bytes(rank_file(4))
            super().fsync(fd)

        def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
            assert not (name == "bundle" and not new.startswith(".gone")), "published"
            super().rename(source, name, to, new)

    report = run_import(pod, disk=Writes())
    assert (
        report.reason == "ImportRefused"
        and "changes while it is read: an engine writes to it" in report.message
    )
    assert pod.staging() == [] and pod.find_bundle() is None


@needs_root
@pytest.mark.parametrize("locked", ["autotune_configs_dp0_rank1.json", "", ".."])
def test_what_this_uid_may_not_read_is_named_with_its_owner(
    open_pod: AgentPod, locked: str
) -> None:
    pod = open_pod
    write_source(pod, V1, rank_files(2))
    for path in source_claim(pod).rglob("*.json"):
        path.chmod(0o644)
    barred = (source_claim(pod) / V1 / KEY / locked).resolve()
    barred.chmod(0o600)
    os.chown(barred, 2000, 2000)
    report = run_as_uid(4711, lambda: run_import(pod, gpus=2))
    assert report.reason == "ImportRefused"
    assert "belongs to uid 2000, gid 2000 (mode 0600), and uid 4711, gid 4711" in report.message
    assert str(barred.relative_to(source_claim(pod))) in report.message


def test_a_folder_of_the_file_system_that_no_uid_may_read_is_ignored(pod: AgentPod) -> None:
    (source_claim(pod) / "lost+found").mkdir(0o000)
    write_source(pod, V1, rank_files(1))
    assert run_import(pod).reason == "Sealed"


@needs_root
def test_our_own_claim_without_space_is_reported_as_by_seal(
    open_pod: AgentPod, mount: Callable[..., None]
) -> None:
    write_source(
        open_pod,
        V1,
        {f"{KEY}/autotune_configs_dp0_rank{rank}.json": rank_file(2000) for rank in range(8)},
    )
    mount("-t", "tmpfs", "-o", "size=1m,mode=0777", "none", str(open_pod.claim))
    report = run_import(open_pod, gpus=8)
    assert report.reason == "NoSpace" and "enlarge the claim" in report.message
    mount("-o", "remount,ro", str(open_pod.claim))
    assert run_import(open_pod, gpus=8).reason == "ReadOnlyClaim"


def test_an_import_killed_after_any_operation_leaves_the_bundle_whole_or_absent(
    tmp_path: Path,
) -> None:
    absent = whole = 0

    def check(pod: AgentPod) -> None:
        nonlocal absent, whole
        there = pod.find_bundle() is not None
        whole, absent = whole + there, absent + (not there)
        assert run_import(pod, uid="pod-2", gpus=2).reason == "Sealed"
        assert {
            path: data for path, data in read_tree(pod.bundle() / "tactics").items() if data
        } == rank_files(2)

    def prepare(pod: AgentPod) -> None:
        write_source(pod, V1, rank_files(2))

    kill_after_each_operation(
        tmp_path, lambda pod, disk: run_import(pod, disk=disk, gpus=2), prepare, check
    )
    assert absent > 5 and whole > 3


# --- laws


WORDS = st.lists(st.text("abcXYZ019", min_size=1, max_size=5), min_size=1, max_size=5)


@given(WORDS, st.sampled_from(["", "-SHARED", "-MIG-1g.18gb"]))
def test_a_gpus_label_is_its_name_with_hyphens(words: list[str], shared: str) -> None:
    assert _is_product(" ".join(words), "-".join(words) + shared)
    assert not _is_product(" ".join(words), "-".join([*words, "Q"]))


def product_term(*products: str, operator: str = "In") -> Any:
    return {"key": "nvidia.com/gpu.product", "operator": operator, "values": list(products)}


def node_affinity(*terms: Any) -> dict[str, Any]:
    return {"nodeAffinity": [{"matchExpressions": [term]} for term in terms]}


B200 = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"}}
ZONE_A = {"key": "zone", "operator": "In", "values": ["a"]}


@pytest.mark.parametrize(
    ("placement", "products"),
    [
        ({}, []),
        ({"nodeSelector": {"zone": "a"}}, []),
        (B200, ["NVIDIA-B200"]),
        ({**B200, **node_affinity(product_term("NVIDIA-H200"))}, ["NVIDIA-B200"]),
        (
            node_affinity(product_term("NVIDIA-H200"), product_term("NVIDIA-B200")),
            ["NVIDIA-B200", "NVIDIA-H200"],
        ),
        (node_affinity(product_term("NVIDIA-H200"), ZONE_A), []),
        (node_affinity(product_term("x", operator="NotIn")), []),
    ],
)
def test_the_targets_gpus_are_read_from_its_node_terms(
    placement: dict[str, Any], products: list[str]
) -> None:
    assert _products(json.loads(json.dumps(placement))) == products


@pytest.mark.parametrize(
    ("version", "gpus", "words", "layouts"),
    [
        ("0.25.1", 1, [], ("Shared",)),
        ("0.31.0", 1, [], ("Shared",)),
        ("0.32.0", 1, [], ("PerRank",)),
        ("0.32.0", 8, ["-tp", "8"], ("PerRank",)),
        ("0.33.0", 1, [], ("Managed", "PerRank")),
        ("0.33.0", 2, [], ("PerRank", "Managed")),
        ("0.33.0", 8, ["--tensor-parallel-size", "8"], ("PerRank",)),
        ("0.33.0", 2, ["-pp", "2"], ("PerRank",)),
        ("", 1, [], ("Managed", "PerRank", "Shared")),
        ("0.1.dev1+g1234", 8, ["-tp", "8"], ("PerRank", "Shared")),
    ],
)
def test_the_layouts_that_a_release_reads(
    version: str, gpus: int, words: list[str], layouts: tuple[str, ...]
) -> None:
    assert releases.readable_layouts(version, gpus, ["vllm", "serve", "m", *words]) == layouts
