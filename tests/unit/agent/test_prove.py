"""A bundle is proven when the engine that started from it left its files unchanged."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretune.agent.claim.fs import Disk, Folder
from pretune.agent.engine.stable import scan_or_none
from pretune.api.reasons import REASONS
from pretune.engines.vllm import tactics
from pretune.protocol import Inputs, Report

from tests.builders.agent_pod import (
    CACHE,
    INPUTS,
    KEY,
    METADATA,
    STORE,
    AgentPod,
    managed_store,
    rank_file,
    rank_files,
    read_tree,
    serve_engine,
)
from tests.depth import examples
from tests.unit.agent.conftest import needs_root
from tests.unit.agent.image import build_image
from tests.unit.agent.killing import kill_after_each_operation
from tests.unit.agent.processes import run_as_uid, run_process

ID = INPUTS.bundle_id()
SAMPLES = Path(__file__).with_name("samples")  # written by FlashInfer 0.7.2.post1 itself
OTHER = Inputs("0f" * 32, "", "b200", {})
SHARED = {f"{KEY}/autotune_configs.json": rank_file(5)}
LAYOUTS: list[tuple[dict[str, bytes], int]] = [
    (managed_store(4), 1),
    (rank_files(4, 5), 4),
    (rank_files(1, 5), 1),
    (SHARED, 1),
]


def record_path(pod: AgentPod, inputs: Inputs = INPUTS) -> Path:
    return pod.folder / "proofs" / f"{inputs.bundle_id()}.json"


def seal_and_seed(pod: AgentPod, files: dict[str, bytes], gpus: int = 1) -> AgentPod:
    """Sealed, and copied into another pod's folder as its seed does."""
    pod.seal(files, gpus=gpus)
    pod.write_tactics({})
    assert pod.run("seed", gpus=gpus).reason == "Seeded"
    return pod


def entries_of(op: str, entries: int) -> dict[str, Any]:
    return {
        f"('{op}', 'Runner', (({n}, 8),), (torch.bfloat16,))": ["Runner", n] for n in range(entries)
    }


@pytest.mark.parametrize(("files", "gpus"), LAYOUTS)
def test_a_bundle_that_the_engine_left_unchanged_is_proven_and_recorded_on_the_claim(
    pod: AgentPod, files: dict[str, bytes], gpus: int
) -> None:
    seal_and_seed(pod, files, gpus)
    before = read_tree(pod.bundles)
    report = pod.run("prove", "pod-2", gpus=gpus)
    assert (report.reason, report.id, report.newEntries, report.proven) == (
        "Proven",
        ID,
        0,
        True,
    ), report
    assert report.digest == pod.find_bundle().digest and "none new" in report.message
    record = json.loads(record_path(pod).read_text())
    assert record.pop("at") and record == {
        "schema": "pretune.dev/proof/v1",
        "id": ID,
        "digest": report.digest,
    }
    assert read_tree(pod.bundles) == before and pod.staging() == []


def test_a_record_is_readable_by_all_and_its_folder_open_to_the_next_uid(pod: AgentPod) -> None:
    seal_and_seed(pod, rank_files(1)).run("prove")
    assert stat.S_IMODE(record_path(pod).stat().st_mode) == 0o444
    assert stat.S_IMODE(record_path(pod).parent.stat().st_mode) == 0o1777


def test_a_file_written_again_with_the_same_bytes_is_not_changed(pod: AgentPod) -> None:
    seal_and_seed(pod, SHARED)
    path = pod.tactics / KEY / "autotune_configs.json"
    again = path.with_name("new")
    again.write_bytes(path.read_bytes())
    again.rename(path)
    assert pod.run("prove").reason == "Proven"


def test_what_the_engine_leaves_beside_its_tactics_does_not_count(pod: AgentPod) -> None:
    """A log, or the temporary file of a writer that died: seal leaves them out too."""
    seal_and_seed(pod, rank_files(1))
    (pod.tactics / "logs").mkdir()
    (pod.tactics / "logs" / "engine.log").write_bytes(b"ready")
    (pod.tactics / KEY / ".autotuner_x.tmp").write_bytes(b"{")
    assert pod.run("prove").reason == "Proven"


# --- not reproducible


def _one_more_in_each_rank(pod: AgentPod) -> None:
    for path in sorted((pod.tactics / KEY).iterdir()):
        data = json.loads(path.read_bytes())
        path.write_text(json.dumps({**data, **entries_of("fused_moe", 1)}))


def _another_tactic(pod: AgentPod) -> None:
    path = pod.tactics / KEY / "autotune_configs_dp0_rank0.json"
    data = json.loads(path.read_bytes())
    key = next(name for name in data if name.startswith("("))
    path.write_text(json.dumps({**data, key: ["Other", 7]}))


def _another_key(pod: AgentPod) -> None:
    (pod.tactics / ("cd" * 32)).mkdir()
    path = pod.tactics / ("cd" * 32) / "autotune_configs_dp0_rank0.json"
    path.write_text(
        json.dumps(
            {
                "_metadata": METADATA,
                **entries_of("a", 1),
                **entries_of("b", 3),
                **entries_of("c", 2),
            }
        )
    )


def _many_operations(pod: AgentPod) -> None:
    path = pod.tactics / KEY / "autotune_configs_dp0_rank0.json"
    data = json.loads(path.read_bytes())
    path.write_text(
        json.dumps(
            {**data, **{key: tactic for op in "abcde" for key, tactic in entries_of(op, 1).items()}}
        )
    )


def _a_record(pod: AgentPod) -> None:
    path = pod.tactics / KEY / "autotune_configs_dp0_rank0.json"
    data = json.loads(path.read_bytes())
    path.write_text(json.dumps({**data, "_records": {"replay": {"one": 1, "two": 2}}}))


def _reordered(pod: AgentPod) -> None:
    path = pod.tactics / KEY / "autotune_configs_dp0_rank0.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_bytes()).items()))))


def _no_json(pod: AgentPod) -> None:
    (pod.tactics / KEY / "autotune_configs_dp0_rank1.json").write_bytes(b"{")


def _missing(pod: AgentPod) -> None:
    (pod.tactics / KEY / "autotune_configs_dp0_rank1.json").unlink()


def _empty_key(pod: AgentPod) -> None:
    (pod.tactics / ("cd" * 32)).mkdir()


def _link(pod: AgentPod) -> None:
    (pod.tactics / KEY / "link").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("does", "entries", "words"),
    [
        (_one_more_in_each_rank, 1, ["1 new entry (fused_moe 1)", "2 files changed", "rank0.json"]),
        (_another_tactic, 1, ["1 new entry (op 1)", "1 file changed"]),
        (
            _another_key,
            6,
            ["6 new entries (b 3, c 2, a 1)", "1 file added: cdcdcdcdcdcd…/", "1 folder added"],
        ),
        (_many_operations, 5, ["5 new entries (a 1, b 1, c 1, 2 other operations)"]),
        (_a_record, 2, ["2 new entries (replay 2)"]),
        (_reordered, 0, ["no new entries", "1 file changed"]),
        (_no_json, 0, ["1 file changed: abababababab…/autotune_configs_dp0_rank1.json"]),
        (_missing, 0, ["1 file missing: abababababab…/autotune_configs_dp0_rank1.json"]),
        (_empty_key, 0, ["1 folder added: cdcdcdcdcdcd…"]),
        (_link, 0, ["is a link"]),
    ],
)
def test_what_the_engine_tuned_again_is_counted_and_named_and_not_recorded_as_proven(
    pod: AgentPod, does: Callable[[AgentPod], None], entries: int, words: list[str]
) -> None:
    seal_and_seed(pod, rank_files(2), 2)
    does(pod)
    report = pod.run("prove", "pod-2", gpus=2)
    assert (report.reason, report.newEntries, report.proven) == (
        "NotReproducible",
        entries,
        False,
    ), report
    for word in words:
        assert word in report.message, report.message
    assert len(report.dump().encode()) <= 700
    assert not record_path(pod).exists() and pod.find_bundle() is not None


def test_a_managed_store_that_grew_names_the_operations_of_its_new_entries(pod: AgentPod) -> None:
    seal_and_seed(pod, managed_store(3))
    for name, op in (("1" * 24, "mm_fp4"), ("2" * 24, "mm_fp4"), ("3" * 24, "fused_moe")):
        entry = {"key": f"('{op}', 'Runner', (({name[0]}, 8),))", "runner": "Runner", "tactic": 1}
        (pod.tactics / STORE / "entries" / f"{name}.json").write_text(json.dumps(entry))
    report = pod.run("prove")
    assert (report.reason, report.newEntries) == ("NotReproducible", 3)
    assert (
        "3 new entries (mm_fp4 2, fused_moe 1); 3 files added: v2/89172486d811d057/entries/1"
        in report.message
    )


def test_a_read_only_engine_has_no_copy_so_the_bundle_on_the_claim_is_what_counts(
    pod: AgentPod,
) -> None:
    pod.seal(rank_files(1))
    pod.write_tactics({})
    report = pod.run("prove", onClaim=True)
    assert (
        report.reason == "Proven"
        and "warm" not in report.message
        and "is unknown" in report.message
    )
    assert pod.run("prove", inputs=OTHER, onClaim=True).reason == "ProofFailed"


def test_a_read_only_engines_bundle_is_read_whole_before_it_is_proven(pod: AgentPod) -> None:
    pod.seal(rank_files(2), gpus=2)
    pod.write_tactics({})
    file = pod.bundle() / "tactics" / KEY / "autotune_configs_dp0_rank1.json"
    same_size = file.read_bytes()[::-1]
    file.chmod(0o644)
    file.write_bytes(same_size)
    report = pod.run("prove", gpus=2, onClaim=True)
    assert report.reason == "ProofFailed" and "rank1.json is not what was sealed" in report.message
    assert not record_path(pod).exists()


# --- another environment: FlashInfer ignores the files and leaves them, so the folder looks warm


def write_gpu_models(pod: AgentPod, *models: str) -> None:
    """Write the kernel driver's files of the node's GPUs; "" is a GPU whose file has no model."""
    for n, model in enumerate(models):
        file = pod.proc / "driver" / "nvidia" / "gpus" / f"0000:{n:02x}:00.0" / "information"
        file.parent.mkdir(parents=True)
        first = f"Model: \t\t {model}\n" if model else ""
        file.write_text(f"{first}IRQ:   \t\t 307\nGPU UUID: \t GPU-0{n}\nBus Type: \t PCIe\n")


B200, H200, H100 = "NVIDIA B200", "NVIDIA H200", "NVIDIA H100 80GB HBM3"  # METADATA names the first


@pytest.mark.parametrize("on_claim", [False, True])
@pytest.mark.parametrize(("files", "gpus"), LAYOUTS)
def test_a_bundle_of_another_gpu_is_not_proven_by_files_that_are_unchanged(
    pod: AgentPod, files: dict[str, bytes], gpus: int, on_claim: bool
) -> None:
    seal_and_seed(pod, files, gpus)
    write_gpu_models(pod, H200, H200)
    with serve_engine(200) as (url, _):
        report = pod.run("prove", ready=url, gpus=gpus, onClaim=on_claim)
    assert (report.reason, report.id, report.newEntries) == ("NotReproducible", ID, 0), report
    assert report.message.startswith(
        f"GPU differs: the bundle is of {B200}, the node has {H200}; the engine ignores"
    )
    assert not record_path(pod).exists() and pod.find_bundle() is not None


@pytest.mark.parametrize("on_claim", [False, True])
@pytest.mark.parametrize(
    ("models", "reason", "words"),
    [
        ([B200], "Proven", ""),
        ([B200] * 8, "Proven", ""),
        (
            [H200, B200],
            "Proven",
            f"; GPU not compared: the node has {B200}, {H200}, the bundle is of {B200}",
        ),
        (
            [H200, H100],
            "NotReproducible",
            f"the bundle is of {B200}, the node has {H100}, {H200}; the engine ignores",
        ),
        (["NVIDIA B200X"], "NotReproducible", "the node has NVIDIA B200X;"),
        (["NVIDIA B"], "NotReproducible", "the node has NVIDIA B;"),
        ([], "Proven", "; GPU not compared: the node's are unknown here"),
        (["Unknown"], "Proven", "; GPU not compared: the node's are unknown here"),
        ([H200, "Unknown"], "Proven", "; GPU not compared: the node's are unknown here"),
        ([H200, ""], "Proven", "; GPU not compared: the node's are unknown here"),
        ([" "], "Proven", "; GPU not compared: the node's are unknown here"),
    ],
)
def test_the_gpu_is_compared_as_far_as_the_kernel_driver_names_the_nodes(
    pod: AgentPod, models: list[str], reason: str, words: str, on_claim: bool
) -> None:
    seal_and_seed(pod, rank_files(1))
    write_gpu_models(pod, *models)
    report = pod.run("prove", onClaim=on_claim)
    assert (report.reason, record_path(pod).exists()) == (
        reason,
        reason == "Proven",
    ) and words in report.message, report
    assert ("not compared" in report.message) == ("not compared" in words)


@pytest.mark.parametrize(
    ("gpu", "model", "reason", "words"),
    [
        (
            f"{H100} MIG 1g.10gb",
            H100,
            "Proven",
            "GPU not compared: the bundle is of NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        ),
        (
            f"{H100} MIG 1g.10gb",
            H200,
            "NotReproducible",
            f"the bundle is of {H100} MIG 1g.10gb, the node has {H200}",
        ),
        ("unknown", H200, "Proven", "GPU not compared: the bundle's files name none"),
        ("N" * 70, "N" * 70, "Proven", "none changed"),
    ],
)
def test_a_slice_is_of_its_gpu_and_a_bundle_without_a_gpu_of_any(
    pod: AgentPod, gpu: str, model: str, reason: str, words: str
) -> None:
    seal_and_seed(
        pod, {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(3, {**METADATA, "gpu": gpu})}
    )
    write_gpu_models(pod, model)
    report = pod.run("prove")
    assert report.reason == reason and words in report.message, report


def test_the_gpu_is_compared_before_the_files(pod: AgentPod) -> None:
    """What the engine tuned on another GPU is not a fault of the bundle."""
    seal_and_seed(pod, rank_files(2), 2)
    _one_more_in_each_rank(pod)
    write_gpu_models(pod, H200)
    report = pod.run("prove", gpus=2)
    assert (report.reason, report.newEntries) == (
        "NotReproducible",
        0,
    ) and "GPU differs" in report.message


def test_in_a_pod_the_agent_reads_the_gpus_below_its_proc_option(pod: AgentPod) -> None:
    seal_and_seed(pod, rank_files(1))
    write_gpu_models(pod, H200)
    code, report, output = run_process(pod, "prove")
    assert (code, report.reason) == (1, "NotReproducible") and H200 in report.message, output


@pytest.mark.parametrize("on_claim", [False, True])
@pytest.mark.parametrize(
    ("sealed", "here", "words"),
    [
        (("0.32.0", "0.7.0"), ("0.32.0", "0.7.0"), ""),
        (
            ("0.32.0", "0.7.0"),
            ("0.32.0", "0.7.1"),
            f"FlashInfer 0.7.1 in the image, 0.7.0 in bundle {ID}: its engine",
        ),
        (
            ("0.32.0", "0.7.0"),
            ("0.33.0", "0.7.0"),
            f"vLLM 0.33.0 in the image, 0.32.0 in bundle {ID}: its engine",
        ),
        (("0.32.0", "0.7.0"), ("", ""), ""),
        (("", ""), ("0.32.0", "0.7.2.post1"), ""),
        (
            ("", ""),
            ("0.32.0", "0.7.1"),
            f"FlashInfer 0.7.1 in the image, 0.7.2.post1 in bundle {ID}",
        ),
    ],
)
def test_a_bundle_of_other_versions_is_not_proven_by_files_that_are_unchanged(
    pod: AgentPod,
    tmp_path: Path,
    sealed: tuple[str, str],
    here: tuple[str, str],
    words: str,
    on_claim: bool,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pod.seal(rank_files(1), command=build_image(tmp_path / "a", *sealed))
    pod.write_tactics({})
    assert pod.run("seed").reason == "Seeded"
    report = pod.run("prove", command=build_image(tmp_path / "b", *here), onClaim=on_claim)
    assert (
        report.reason == ("NotReproducible" if words else "Proven") and words in report.message
    ), report
    assert (report.newEntries, record_path(pod).exists()) == (0, not words)


# --- no proof, and not the bundle's fault


def test_no_bundle_and_a_damaged_one_cannot_be_proven(pod: AgentPod) -> None:
    assert pod.run("prove").reason == "ProofFailed"
    seal_and_seed(pod, rank_files(1))
    file = pod.bundle() / "tactics" / KEY / "autotune_configs_dp0_rank0.json"
    file.chmod(0o644)
    file.write_bytes(rank_file(9))
    report = pod.run("prove")
    assert (
        report.reason == "ProofFailed"
        and "damaged" in report.message
        and not record_path(pod).exists()
    )


@pytest.mark.parametrize("answers", [(500,), (200, 500)])
def test_an_engine_that_does_not_answer_before_or_after_is_not_warm_and_not_judged(
    pod: AgentPod, answers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.agent.engine.probe.time.sleep", lambda _: None)
    seal_and_seed(pod, rank_files(1))
    with serve_engine(*answers) as (url, _):
        report = pod.run("prove", ready=url)
    assert (
        report.reason == "ProofFailed"
        and "answered 500" in report.message
        and not record_path(pod).exists()
    )
    with serve_engine(200) as (url, asked):
        assert pod.run("prove", ready=url).reason == "Proven"
    assert len(asked) == 2


def test_an_engine_without_an_http_probe_is_waited_for_before_its_folder_is_compared(
    pod: AgentPod,
) -> None:
    """A tcpSocket probe passes before the engine has read anything: nothing would have changed."""
    seal_and_seed(pod, rank_files(1))
    with serve_engine(503, 503, 200) as (url, asked):
        assert pod.run("prove", health=[url]).reason == "Proven"
    assert len(asked) == 5, "and before and after its files are read"


def test_an_engine_that_is_ready_and_still_tunes_is_found_by_the_second_scan(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_and_seed(pod, rank_files(1))

    def later(folder: Folder) -> Any:
        _another_tactic(pod)
        return scan_or_none(folder)

    monkeypatch.setattr("pretune.agent.prove.scan_or_none", later)
    with serve_engine(200) as (url, _):
        report = pod.run("prove", ready=url)
    assert (report.reason, report.newEntries) == ("NotReproducible", 1)


@needs_root
def test_a_full_claim_and_a_read_only_one_are_reported_as_by_seal(
    pod: AgentPod, mount: Any
) -> None:
    mount("-t", "tmpfs", "-o", "size=1m,mode=0777", "none", str(pod.claim))
    seal_and_seed(pod, rank_files(1))
    with pytest.raises(OSError), open(pod.claim / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    assert pod.run("prove").reason == "NoSpace"
    assert not record_path(pod).exists()
    (pod.claim / "filler").unlink()
    mount("-o", "remount,ro", str(pod.claim))
    assert pod.run("prove").reason == "ReadOnlyClaim"
    mount("-o", "remount,rw", str(pod.claim))
    assert pod.run("prove").reason == "Proven"


# --- what a proof record is for


def test_seed_gives_no_bundle_without_proof_where_the_task_asks_for_one(pod: AgentPod) -> None:
    seal_and_seed(pod, rank_files(1))
    unproven = pod.run("seed", "pod-3", proven=True)
    assert (
        unproven.reason == "NotProven" and ID in unproven.message and read_tree(pod.tactics) == {}
    )
    assert pod.run("seed", "pod-3").reason == "Seeded"
    assert pod.run("prove").reason == "Proven"
    assert pod.run("seed", "pod-3", proven=True).reason == "Seeded"
    assert read_tree(pod.tactics) == read_tree(pod.bundle() / "tactics")


def test_check_seal_and_inspect_report_whether_the_bundle_is_proven(pod: AgentPod) -> None:
    def reported() -> list[bool]:
        reports = [pod.run("check"), pod.run("seal"), *pod.run("inspect", ids=[ID]).bundles]
        assert [report.id for report in reports] == [ID] * 3
        return [report.proven for report in reports]

    seal_and_seed(pod, rank_files(1))
    assert reported() == [False] * 3
    assert pod.run("prove").reason == "Proven"
    assert reported() == [True] * 3
    assert Report.load(pod.run("check").dump()).proven  # type: ignore[union-attr]


def _of_another_digest(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "sha256:" + "0" * 64}))


def _of_another_bundle(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "id": OTHER.bundle_id()}))


def _of_another_schema(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "pretune.dev/proof/v2"}))


def _linked(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def _linked_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("aside"))
    path.parent.symlink_to("aside")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _list(path: Path) -> None:
    path.write_text("[]")


def _deep(path: Path) -> None:
    path.write_text("[" * 4000)


@pytest.mark.parametrize(
    "spoil",
    [
        _of_another_digest,
        _of_another_bundle,
        _of_another_schema,
        _linked,
        _linked_folder,
        _folder,
        _cut,
        _list,
        _deep,
        Path.unlink,
    ],
)
def test_a_record_that_is_not_exactly_this_bundles_does_not_count(
    pod: AgentPod, spoil: Callable[[Path], None]
) -> None:
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"
    record_path(pod).chmod(0o644)
    spoil(record_path(pod))
    assert pod.run("seed", proven=True).reason == "NotProven"
    assert not pod.run("check").proven and not pod.run("inspect", ids=[ID]).bundles[0].proven
    assert pod.run("seed").reason == "Seeded"
    again = pod.run("prove", "pod-4")
    if spoil in (_linked_folder, _folder):
        assert again.reason == "UnsafePath" and "proofs" in again.message
    else:
        assert again.reason == "Proven" and not record_path(pod).is_symlink()
        assert pod.run("seed", proven=True).reason == "Seeded"


def test_a_bundle_that_was_sealed_again_is_not_proven_by_its_predecessors_record(
    pod: AgentPod,
) -> None:
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"
    file = pod.bundle() / "tactics" / KEY / "autotune_configs_dp0_rank0.json"
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    assert pod.write_tactics(rank_files(1, 4)).run("seal", "pod-9").reason == "Sealed"
    assert pod.run("seed", proven=True).reason == "NotProven"
    assert pod.run("seed").reason == "Seeded"
    assert pod.run("prove", "pod-10").reason == "Proven"
    assert pod.run("seed", proven=True).reason == "Seeded"


def test_a_record_that_is_there_stays_as_it_is(pod: AgentPod) -> None:
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"
    before = record_path(pod).stat()
    assert pod.run("prove", "pod-5").reason == "Proven"
    assert (
        record_path(pod).stat() == before
        or record_path(pod).stat().st_mtime_ns == before.st_mtime_ns
    )


def test_prune_deletes_the_record_with_its_bundle_and_keeps_the_others(pod: AgentPod) -> None:
    pod.seal(rank_files(1, 4), inputs=OTHER)
    assert pod.run("seed", inputs=OTHER).reason == "Seeded"
    assert pod.run("prove", inputs=OTHER).reason == "Proven"
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"
    assert pod.run("prune", ids=[ID]).reason == "Pruned"
    assert not record_path(pod).exists() and record_path(pod, OTHER).exists()


@pytest.mark.parametrize("verb", ["check", "prune"])
def test_a_record_without_its_bundle_is_removed(pod: AgentPod, verb: str) -> None:
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"
    subprocess.run(["rm", "-rf", str(pod.bundle())], check=True)
    (record_path(pod).parent / "notes.txt").write_text("a person's")
    pod.run(verb, "pod-7")
    assert os.listdir(record_path(pod).parent) == ["notes.txt"]


@needs_root
def test_another_uid_reads_a_record_and_names_the_owner_of_one_that_it_cannot_replace(
    open_pod: AgentPod,
) -> None:
    pod = open_pod
    seal_and_seed(pod, rank_files(1))
    assert pod.run("prove").reason == "Proven"

    def as_another(verb: str, **task: Any) -> Report:
        return run_as_uid(4711, lambda: pod.run(verb, "pod-other", **task))

    shutil.rmtree(pod.tactics / KEY)  # what root copied is root's to clear
    assert as_another("seed", proven=True).reason == "Seeded"
    record_path(pod).chmod(0o644)
    _of_another_digest(record_path(pod))
    report = as_another("prove")
    assert (
        report.reason == "ReadOnlyClaim"
        and "belongs to uid 0, so uid 4711 may not replace it" in report.message
    )


# --- killed


@pytest.mark.parametrize("earlier", [False, True])
def test_after_a_prove_killed_at_any_operation_the_next_one_proves_the_bundle(
    tmp_path: Path, earlier: bool
) -> None:
    proven = not_proven = 0

    def prepare(pod: AgentPod) -> None:
        seal_and_seed(pod, rank_files(2), 2)
        if earlier:  # of a bundle that was here before
            pod.run("prove", gpus=2)
            record_path(pod).chmod(0o644)
            _of_another_digest(record_path(pod))

    def check(pod: AgentPod) -> None:
        nonlocal proven, not_proven
        reason = pod.run("seed", "pod-8", proven=True).reason
        proven, not_proven = proven + (reason == "Seeded"), not_proven + (reason == "NotProven")
        assert reason in ("Seeded", "NotProven")
        assert pod.find_bundle() is not None
        assert pod.run("seed", "pod-8").reason == "Seeded"
        assert pod.run("prove", "pod-9", gpus=2).reason == "Proven"
        assert pod.run("seed", "pod-8", proven=True).reason == "Seeded"

    operations = kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("prove", "pod-1", disk, gpus=2), prepare, check
    )
    assert operations > 8 and proven > 2 and not_proven > 4


def test_a_prune_killed_anywhere_leaves_no_bundle_proven_that_was_not(tmp_path: Path) -> None:
    def prepare(pod: AgentPod) -> None:
        seal_and_seed(pod, rank_files(1))
        pod.run("prove")

    def check(pod: AgentPod) -> None:
        assert pod.run("seed", proven=True).reason in ("Seeded", "NoBundle")
        assert pod.run("prune", "pod-2", ids=[ID]).reason == "Pruned"
        assert list(pod.bundles.iterdir()) == [] and list((pod.folder / "proofs").iterdir()) == []

    kill_after_each_operation(
        tmp_path, lambda pod, disk: pod.run("prune", "pod-1", disk, ids=[ID]), prepare, check
    )


def test_the_record_is_synced_before_its_rename_and_its_folder_after(pod: AgentPod) -> None:
    seal_and_seed(pod, rank_files(1))
    log: list[str] = []

    class Log(Disk):
        def write(self, fd: int, data: Any) -> None:
            log.append("write")
            super().write(fd, data)

        def fsync(self, fd: int) -> None:
            log.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            super().fsync(fd)

        def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
            log.append("rename " + new)
            super().rename(source, name, to, new)

    assert pod.run("prove", disk=Log()).reason == "Proven"
    assert log[: log.index("fsync " + CACHE) + 1] == [
        "write",
        "fsync proof",
        f"rename {ID}.json",
        "fsync proofs",
        "fsync " + CACHE,
    ]


# --- laws


KEYS = st.text(alphabet="abc", min_size=1, max_size=3).map(
    lambda name: f"('{name}', 'Runner', ((1, 8),))"
)
CONFIGS = st.dictionaries(
    KEYS, st.tuples(st.just("Runner"), st.integers(0, 3)).map(list), max_size=6
)


@given(before=CONFIGS, after=CONFIGS)
def test_an_entry_is_new_exactly_where_its_key_is_new_or_its_tactic_another(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    had, has = (
        tactics.read_entries(
            f"{KEY}/autotune_configs_dp0_rank0.json",
            json.dumps({"_metadata": METADATA, **configs}).encode(),
        )
        for configs in (before, after)
    )
    assert {key for key, tactic in has.items() if had.get(key) != tactic} == {
        key for key in after if before.get(key) != after[key]
    }


@settings(max_examples=examples(40))
@given(
    had=CONFIGS.filter(bool),
    has=st.none() | CONFIGS,
    beside=st.sampled_from(["", "notes.txt", "cd" * 32 + "/autotune_configs.json"]),
)
def test_a_bundle_is_proven_exactly_where_every_tactics_file_is_as_it_was_sealed(
    had: dict[str, Any], has: dict[str, Any] | None, beside: str
) -> None:
    path = f"{KEY}/autotune_configs.json"

    def written(configs: dict[str, Any]) -> bytes:
        return json.dumps({"_metadata": METADATA, **configs}).encode()

    with tempfile.TemporaryDirectory() as root:
        pod = seal_and_seed(AgentPod(Path(root)), {path: written(had)})
        files = {} if has is None else {path: written(has)}
        added = (
            {beside: written({"('x', 'R')": ["R", 1]}) if beside.endswith(".json") else b"words"}
            if beside
            else {}
        )
        pod.write_tactics({**files, **added}, folders=() if files else (KEY,))
        report = pod.run("prove")
        new = {key for key, tactic in (has or {}).items() if had.get(key) != tactic}
        same = list((has or {}).items()) == list(had.items()) and not beside.endswith(".json")
        assert report.reason == ("Proven" if same else "NotReproducible"), report
        assert report.newEntries == len(new) + beside.endswith(".json")
        assert record_path(pod).exists() == same


@given(CONFIGS)
def test_each_entry_has_an_operation_and_neither_order_nor_metadata_is_one(
    configs: dict[str, Any],
) -> None:
    path = f"{KEY}/autotune_configs.json"
    entries = tactics.read_entries(
        path, json.dumps({"_metadata": METADATA, "_generation": "x", **configs}).encode()
    )
    assert entries == tactics.read_entries(
        path, json.dumps(dict(reversed(configs.items()))).encode()
    )
    assert {tactics.operation_of(key) for key in entries} == {key.split("'")[1] for key in configs}


def test_the_samples_that_flashinfer_wrote_have_as_many_entries_as_are_counted() -> None:
    v1 = SAMPLES / "v1" / "autotune_configs_dp0_rank0.json"
    path = f"{KEY}/{v1.name}"
    assert (
        len(tactics.read_entries(path, v1.read_bytes()))
        == tactics.judge([path], lambda _: v1.read_bytes()).entries
    )
    store = SAMPLES / "v2root"
    paths = [str(path.relative_to(store)) for path in store.rglob("*.json")]
    entries = {
        key for path in paths for key in tactics.read_entries(path, (store / path).read_bytes())
    }
    assert (
        len(entries) == tactics.judge(paths, lambda path: (store / path).read_bytes()).entries == 10
    )
    assert {tactics.operation_of(key) for key in entries} <= {"toy_gemm", "toy_moe"}


def test_the_reasons_of_a_proof_are_in_the_closed_list() -> None:
    assert {"NotReproducible", "ProofFailed", "NoSpace", "ReadOnlyClaim", "UnsafePath"} <= set(
        REASONS
    )
    assert REASONS["ProofFailed"].is_retried and not REASONS["NotReproducible"].is_retried
    assert (
        replace(Report("prove", "NotReproducible"), newEntries=3).dump().endswith('"newEntries":3}')
    )
