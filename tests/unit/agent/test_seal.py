"""What seal publishes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pretune.agent.__main__ import run
from pretune.agent.claim.fs import Disk, Folder
from pretune.agent.engine.probe import read_status
from pretune.api.reasons import REASONS
from pretune.protocol import MAX_BYTES, Inputs, Manifest, digest

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
)
from tests.ports import free_port


@pytest.mark.parametrize(
    ("files", "gpus", "layout", "entries", "message"),
    [
        (managed_store(10), 1, "Managed", 10, "10 entries in a managed store"),
        (rank_files(4, 191), 4, "PerRank", 191, "191 entries in 4 rank files"),
        (rank_files(1, 1), 1, "PerRank", 1, "1 entry in 1 rank file"),
        (rank_files(2), 4, "PerRank", 3, "3 entries in 2 rank files, fewer than the 4 GPUs"),
        (
            {f"{KEY}/autotune_configs.json": rank_file(20)},
            1,
            "Shared",
            20,
            "20 entries in a shared file",
        ),
        (
            {**rank_files(2), f"{KEY}/autotune_configs.json": rank_file(1)},
            2,
            "PerRank",
            3,
            "3 entries in 2 rank files",
        ),
    ],
)
def test_publishes_each_layout_as_the_engine_wrote_it(
    pod: AgentPod, files: dict[str, bytes], gpus: int, layout: str, entries: int, message: str
) -> None:
    report = pod.write_tactics(files).run("seal", gpus=gpus)
    assert (report.reason, report.layout, report.entries) == ("Sealed", layout, entries)
    assert report.message == message + ", vLLM's version unknown"
    assert read_tree(pod.bundle() / "tactics") == read_tree(pod.tactics)
    assert (
        pod.find_bundle().digest
        == report.digest
        == digest((pod.bundle() / "manifest.json").read_bytes())
    )
    assert report.versions and (
        report.versions.flashinfer,
        report.versions.cuda,
        report.versions.gpu,
    ) == (
        "0.7.2.post1",
        "13.0",
        "NVIDIA B200",
    )
    assert pod.staging() == []


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        ({}, ()),
        ({}, (KEY,)),
        ({f"{KEY}/autotune_configs.json": rank_file(0)}, ()),
        (
            {f"{STORE}/manifest.json": managed_store(0)[f"{STORE}/manifest.json"]},
            (f"{STORE}/entries",),
        ),
    ],
)
def test_nothing_tuned_is_sealed_as_empty_with_its_folders_and_names_the_causes(
    pod: AgentPod, files: dict[str, bytes], folders: tuple[str, ...]
) -> None:
    with serve_engine(200) as (url, _):
        report = pod.write_tactics(files, folders).run("seal", ready=url)
    assert (report.reason, report.layout, report.entries) == ("NothingToTune", "Empty", 0)
    assert "compute capability below 9.0" in report.message
    assert len(report.dump().encode()) <= 700
    assert read_tree(pod.bundle() / "tactics") == read_tree(pod.tactics)


def test_an_empty_folder_is_not_sealed_where_only_a_port_or_a_program_says_that_it_is_ready(
    pod: AgentPod,
) -> None:
    """KServe's server opens its port before the engine is loaded, and a tcpSocket probe passes."""
    report = pod.run("seal", health=[f"http://127.0.0.1:{free_port()}/health"])
    assert report.reason == "ReadinessUnknown" and "httpGet" in report.message
    assert pod.run("seal").reason == "ReadinessUnknown"
    assert not REASONS["ReadinessUnknown"].is_retried  # the next start of the engine is the same
    assert not pod.bundles.exists() or list(pod.bundles.iterdir()) == []


def test_an_engine_without_an_http_probe_is_waited_for_until_it_answers_itself(
    pod: AgentPod,
) -> None:
    with serve_engine(503, 503, 503, 200) as (url, requests):
        report = pod.run("seal", health=[url])
    assert (report.reason, len(requests)) == ("NothingToTune", 6)  # and before and after the files


@pytest.mark.parametrize("status", [404, 500, 501, 502])
def test_a_server_that_answers_anything_but_503_is_not_waited_for(
    pod: AgentPod, status: int
) -> None:
    """It may have no such path, or be a proxy whose engine listens elsewhere: for ever."""
    with serve_engine(status) as (url, _):
        report = pod.write_tactics(managed_store(3)).run("seal", health=[url])
    assert report.reason == "Sealed"


def test_an_engine_that_answers_503_for_ever_is_waited_for_with_an_end(pod: AgentPod) -> None:
    context = replace(pod.write_tactics(managed_store(3)).context(), loading_seconds=0.05)
    with serve_engine(503) as (url, requests):
        context.task = replace(context.task, health=[url])
        assert run("seal", context).reason == "Sealed"
    assert len(requests) > 1


def test_a_port_that_accepts_and_never_answers_gives_no_answer() -> None:
    with serve_engine(200, silent_from=1) as (url, _):
        assert read_status(url, timeout=0.05) == 0


def test_an_engine_that_answered_itself_has_to_answer_to_the_end(pod: AgentPod) -> None:
    with serve_engine(200, 500) as (url, _):
        report = pod.write_tactics(managed_store(3)).run("seal", health=[url])
    assert report.reason == "EngineFailed"


def test_a_server_that_knows_no_health_path_shows_nothing_about_an_empty_folder(
    pod: AgentPod,
) -> None:
    with serve_engine(404) as (url, _):
        assert pod.run("seal", health=[url]).reason == "ReadinessUnknown"
        report = pod.write_tactics(managed_store(3)).run("seal", health=[url])
        assert report.reason == "Sealed"  # as ever, once its folder does not change any more


def test_a_bundle_and_all_in_it_is_readable_by_all_and_writable_by_none(pod: AgentPod) -> None:
    pod.seal(rank_files(2), gpus=2)
    for path in [pod.bundle(), *pod.bundle().rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444), path
    for shared in (pod.folder, pod.bundles, pod.folder / ".staging"):
        assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_the_manifest_holds_what_adoption_and_prune_need(pod: AgentPod) -> None:
    pod.run("check", "pod-1")
    report = pod.write_tactics(rank_files(1)).run("seal", "pod-1")
    manifest = Manifest.load((pod.bundle() / "manifest.json").read_bytes())
    assert (manifest.id, manifest.inputs, manifest.cache) == (
        INPUTS.bundle_id(),
        INPUTS,
        "inference.qwen3",
    )
    assert (manifest.writer.uid, manifest.writer.gid, manifest.writer.groups) == (
        os.geteuid(),
        os.getegid(),
        sorted(os.getgroups()),
    )
    assert report.writer == manifest.writer and report.at == manifest.sealedAt


def test_seconds_count_from_the_end_of_check(pod: AgentPod) -> None:
    begin, end = pod.context(), pod.context()
    begin.now, end.now = lambda: 1000.0, lambda: 1912.4
    from pretune.agent.__main__ import run

    assert run("check", begin).reason == "Checked"
    pod.write_tactics(rank_files(1))
    assert run("seal", end).seconds == 912


def test_temporary_and_foreign_files_are_left_out_and_reported(pod: AgentPod) -> None:
    kept = rank_files(1)
    pod.write_tactics(
        {
            **kept,
            f"{KEY}/.autotuner_k3j2.tmp": b"{",
            f"{KEY}/.autotune_configs_dp0_rank0.json.x1.tmp": b"",
            f"{STORE}/entries/.autotune_q.tmp": b"",
            "notes.txt": b"hello",
        }
    )
    report = pod.run("seal")
    assert "3 temporary files left out, 1 file of no known form left out" in report.message
    assert {
        path for path, data in read_tree(pod.bundle() / "tactics").items() if data is not None
    } == set(kept)


# --- refused


def _link(pod: AgentPod) -> None:
    (pod.tactics / KEY / "autotune_configs_dp0_rank1.json").symlink_to("/etc/passwd")


def _linked_folder(pod: AgentPod) -> None:
    (pod.tactics / ("cd" * 32)).symlink_to("/etc")


def _dangling(pod: AgentPod) -> None:
    (pod.tactics / "gone").symlink_to("/absent")


def _fifo(pod: AgentPod) -> None:
    os.mkfifo(pod.tactics / KEY / "autotune_configs_dp0_rank1.json")


def _socket(pod: AgentPod) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(pod.tactics)  # a socket's path is short
        try:
            listener.bind("s")
        finally:
            os.chdir(here)


def _device(pod: AgentPod) -> None:
    if os.geteuid():
        pytest.skip("mknod needs root")
    os.mknod(pod.tactics / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def _odd_name(pod: AgentPod) -> None:
    (pod.tactics / "..json").write_bytes(b"{}")


def _line_break(pod: AgentPod) -> None:
    (pod.tactics / "a\nb").write_bytes(b"{}")


def _no_text(pod: AgentPod) -> None:
    (Path(os.fsdecode(os.fsencode(pod.tactics) + b"/\xff"))).write_bytes(b"{}")


def _too_many(pod: AgentPod) -> None:
    for n in range(10_001):
        (pod.tactics / f"{n}.json").touch()


def _too_large(pod: AgentPod) -> None:
    with (pod.tactics / KEY / "big.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def _too_deep(pod: AgentPod) -> None:
    (pod.tactics / "/".join("abcdefghi")).mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_link, "rank1.json is a link"),
        (_linked_folder, "is a link"),
        (_dangling, "gone is a link"),
        (_fifo, "rank1.json is a FIFO"),
        (_socket, "s is a socket"),
        (_device, "null is a device"),
        (_odd_name, "..json"),
        (_line_break, r"a\nb"),
        (_no_text, r"\udcff"),
        (_too_many, "more than 10000 files; one too many is 9999.json"),
        (_too_large, "more than 256 MiB; the largest file is " + KEY + "/big.json"),
        (_too_deep, "a/b/c/d/e/f/g/h"),
    ],
)
def test_unsafe_files_are_named_never_followed_and_never_published(
    pod: AgentPod, spoil: Callable[[AgentPod], None], named: str
) -> None:
    pod.write_tactics(rank_files(1))
    spoil(pod)
    report = pod.run("seal")
    assert report.reason == "UnsafeFiles" and named in report.message
    assert pod.find_bundle() is None and not pod.folder.exists()


@pytest.mark.parametrize(
    ("files", "gpus", "command", "reason", "named"),
    [
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": rank_file(3)[:-40]},
            1,
            [],
            "CorruptFiles",
            "dp0_rank0.json: no JSON",
        ),
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": b""},
            1,
            [],
            "CorruptFiles",
            "dp0_rank0.json: no JSON",
        ),
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": b"[]"},
            1,
            [],
            "CorruptFiles",
            "not a JSON object",
        ),
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": b"[" * 100_000},
            1,
            [],
            "CorruptFiles",
            "no JSON",
        ),
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": b'{"a":"b"}'},
            1,
            [],
            "CorruptFiles",
            "a has no [runner, tactic]",
        ),
        (
            {f"{KEY}/autotune_configs_dp0_rank0.json": b'{"a":"' + b"b" * (9 << 20)},
            1,
            [],
            "CorruptFiles",
            "larger than 8 MiB",
        ),
        (
            {f"{STORE}/entries/{'ab' * 12}.json": b"{}"},
            1,
            [],
            "CorruptFiles",
            "without key, runner or tactic",
        ),
        (
            {path: data for path, data in managed_store(2).items() if "entries" in path},
            1,
            [],
            "CorruptFiles",
            "without its manifest.json",
        ),
        ({"v3/store.db": b"x"}, 1, [], "CorruptFiles", "v3/store.db"),
        (
            {path: data for path, data in rank_files(4).items() if "rank2" not in path},
            4,
            [],
            "IncompleteRanks",
            "dp0_rank2.json is missing",
        ),
        (
            rank_files(3),
            4,
            ["vllm", "serve", "m", "-tp", "4"],
            "IncompleteRanks",
            "dp0_rank3.json is missing",
        ),
        (
            {**rank_files(1), f"{KEY}/autotune_configs_dp0_rank1.json": rank_file(5)},
            2,
            [],
            "IncompleteRanks",
            "rank0.json has 3 entries",
        ),
        (
            {
                **rank_files(1),
                f"{KEY}/autotune_configs_dp0_rank1.json": rank_file(3, {"gpu": "NVIDIA H200"}),
            },
            2,
            [],
            "IncompleteRanks",
            "differ in _metadata: cuda_version, flashinfer_version, gpu",
        ),
        ({f"{KEY}/autotune_configs.json": rank_file(3)}, 2, [], "SharedLayout", "30 minutes"),
    ],
)
def test_what_is_not_whole_fails_with_its_path_and_is_not_published(
    pod: AgentPod, files: dict[str, bytes], gpus: int, command: list[str], reason: str, named: str
) -> None:
    report = pod.write_tactics(files).run("seal", gpus=gpus, command=command)
    assert report.reason == reason and named in report.message
    assert reason in REASONS
    assert pod.find_bundle() is None


# --- the engine


def test_an_http_engine_is_asked_before_and_after_with_the_probes_headers(pod: AgentPod) -> None:
    with serve_engine(200) as (url, requests):
        assert (
            pod.write_tactics(rank_files(1))
            .run("seal", ready=url, headers={"Authorization": "Bearer x"})
            .reason
            == "Sealed"
        )
    assert [headers["Authorization"] for headers in requests] == ["Bearer x", "Bearer x"]


def test_an_engine_that_listens_on_the_pods_address_only_is_found_there(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "127.0.0.2")
    with serve_engine(200, at="127.0.0.2") as (url, requests):
        report = pod.write_tactics(rank_files(1)).run("seal", ready=url)
    assert report.reason == "Sealed" and len(requests) == 2


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_an_https_engine_needs_no_certificate_that_is_trusted(
    pod: AgentPod, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "cert"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=x",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with serve_engine(200, certificate=(certificate, key)) as (url, _):
        assert url.startswith("https://")
        assert pod.write_tactics(rank_files(1)).run("seal", ready=url).reason == "Sealed"


def test_a_redirect_is_an_answer_as_for_the_kubelet(pod: AgentPod) -> None:
    with serve_engine(307) as (url, _):
        assert pod.write_tactics(rank_files(1)).run("seal", ready=url).reason == "Sealed"


@pytest.mark.parametrize("answers", [(503,), (200, 503)])
def test_an_engine_that_is_not_ready_before_or_after_publishes_nothing(
    pod: AgentPod, answers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve_engine(*answers) as (url, _):
        report = pod.write_tactics(rank_files(1)).run("seal", ready=url)
    assert report.reason == "EngineFailed" and "answered 503" in report.message
    assert pod.find_bundle() is None


def test_one_failed_request_does_not_fail_the_engine(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve_engine(500, 200) as (url, _):
        assert pod.write_tactics(rank_files(1)).run("seal", ready=url).reason == "Sealed"


def test_an_engine_that_died_is_reported_with_the_connections_error(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve_engine(200) as (url, _):
        pass
    report = pod.write_tactics(rank_files(1)).run("seal", ready=url)
    assert report.reason == "EngineFailed" and "refused" in report.message


class _Writing(Disk):
    """An engine that writes a rank file while seal stages."""

    def __init__(self, pod: AgentPod, path: str, times: int = 10**6) -> None:
        self.file, self.left = pod.tactics / path, times

    def mkdir(self, parent: Folder, name: str, mode: int = 0o755) -> None:
        super().mkdir(parent, name, mode)
        if self.left:
            self.left -= 1
            self.file.write_bytes(rank_file(self.left % 7 + 1))


@pytest.mark.parametrize("ready", [True, False])
def test_an_engine_that_still_writes_publishes_nothing(pod: AgentPod, ready: bool) -> None:
    for path in (
        f"{KEY}/autotune_configs_dp0_rank0.json",
        f"{KEY}/autotune_configs_dp0_rank1.json",
    ):
        with serve_engine(200) as (url, _):
            pod.write_tactics(rank_files(1))
            report = pod.run("seal", disk=_Writing(pod, path), ready=url if ready else None)
        assert report.reason == "EngineNotReady"
        assert "still writes" in report.message or "changed while" in report.message
        assert pod.find_bundle() is None and pod.staging() == []


def test_a_file_that_changed_behind_its_size_and_time_is_not_published_unjudged(
    pod: AgentPod,
) -> None:
    class Sly(Disk):
        def mkdir(self, parent: Folder, name: str, mode: int = 0o755) -> None:
            super().mkdir(parent, name, mode)
            file = pod.tactics / KEY / "autotune_configs_dp0_rank0.json"
            times = file.stat()
            with file.open("r+b") as open_file:
                open_file.write(b"[")
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    report = pod.write_tactics(rank_files(1)).run("seal", disk=Sly())
    assert report.reason == "EngineNotReady" and "changed while it was copied" in report.message
    assert pod.find_bundle() is None


def test_a_claim_that_gives_back_other_bytes_gets_no_bundle(pod: AgentPod) -> None:
    class Faulty(Disk):
        def write(self, fd: int, data: bytes) -> None:
            super().write(fd, data.replace(b"Runner", b"Bunner"))

    report = pod.write_tactics(rank_files(1)).run("seal", disk=Faulty())
    assert report.reason == "SealFailed" and "other bytes than were written" in report.message
    assert pod.find_bundle() is None and pod.staging() == []


def test_a_foreign_file_may_still_change(pod: AgentPod) -> None:
    pod.write_tactics({**rank_files(1), "engine.log": b"1"})
    assert pod.run("seal", disk=_Writing(pod, "engine.log")).reason == "Sealed"


def test_an_engine_without_http_is_ready_when_its_folder_stops_changing(
    pod: AgentPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.write_tactics(rank_files(1))
    later = [rank_file(4), rank_file(5)]

    def sleep(_: float) -> None:
        if later:
            (pod.tactics / KEY / "autotune_configs_dp0_rank0.json").write_bytes(later.pop(0))

    monkeypatch.setattr("time.sleep", sleep)
    assert pod.run("seal", ready=None).entries == 5


# --- who wins


def test_the_first_bundle_wins_and_the_second_seal_reports_it(pod: AgentPod) -> None:
    first = pod.seal(rank_files(1, 3))
    second = pod.write_tactics(rank_files(1, 9)).run("seal", "pod-2")
    assert (second.reason, second.entries, second.digest, second.at) == (
        "Sealed",
        3,
        first.digest,
        first.at,
    )


def test_a_bundle_sealed_while_the_second_one_stages_wins(pod: AgentPod) -> None:
    class Slow(Disk):
        """Another pod's seal ends just before our rename."""

        def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
            if name == "bundle":
                assert pod.run("seal", "pod-2").reason == "Sealed"
                (pod.tactics / KEY / "autotune_configs_dp0_rank0.json").touch()
            super().rename(source, name, to, new)

    pod.write_tactics(rank_files(1))
    late = pod.run("seal", "pod-1", disk=Slow())
    assert late.reason == "Sealed"
    assert late.digest == pod.find_bundle().digest
    assert pod.staging() == []


@pytest.mark.parametrize(
    "wreck", ["empty", "no manifest", "cut manifest", "changed file", "missing file", "added file"]
)
def test_a_damaged_bundle_is_replaced(pod: AgentPod, wreck: str) -> None:
    pod.seal(rank_files(2), gpus=2)
    file = pod.bundle() / "tactics" / KEY / "autotune_configs_dp0_rank1.json"
    for folder in [pod.bundle(), *[path for path in pod.bundle().rglob("*") if path.is_dir()]]:
        folder.chmod(0o755)
    if wreck == "changed file":
        file.chmod(0o644)
        file.write_bytes(file.read_bytes().replace(b"Runner", b"Bunner"))
    elif wreck == "missing file":
        file.unlink()
    elif wreck == "added file":
        (file.parent / "more.json").write_bytes(b"{}")
    else:
        manifest = pod.bundle() / "manifest.json"
        raw = manifest.read_bytes()
        manifest.unlink()
        if wreck == "cut manifest":
            manifest.write_bytes(raw[:-20])
        if wreck == "empty":
            file.parent.joinpath("autotune_configs_dp0_rank0.json").unlink()
            file.unlink()
            file.parent.rmdir()
            file.parent.parent.rmdir()
    pod.bundle().chmod(0o555)
    report = pod.run("seal", "pod-2", gpus=2)
    assert report.reason == "Sealed" and pod.find_bundle().digest == report.digest
    assert read_tree(pod.bundle() / "tactics") == read_tree(pod.tactics)
    assert pod.staging() == []


def test_a_bundle_sealed_in_place_of_the_damaged_one_that_is_being_removed_is_put_back(
    pod: AgentPod, tmp_path: Path
) -> None:
    pod.seal(rank_files(1))
    whole = tmp_path / "whole"
    shutil.copytree(pod.bundle(), whole)
    before = read_tree(whole)
    pod.bundle().chmod(0o755)
    (pod.bundle() / "manifest.json").unlink()

    class Late(Disk):
        """Between our look at the damaged bundle and our rename another seal replaces it."""

        def rename(self, source: Folder, name: str, to: Folder, new: str) -> None:
            if name == INPUTS.bundle_id() and whole.exists():
                pod.bundle().rename(tmp_path / "damaged")
                whole.rename(pod.bundle())
            super().rename(source, name, to, new)

    report = pod.write_tactics(rank_files(1, 9)).run("seal", "pod-2", disk=Late())
    assert (report.reason, report.entries) == ("Sealed", 3)
    assert read_tree(pod.bundle()) == before and pod.staging() == []


def test_a_bundle_of_other_inputs_under_our_id_is_left_alone(pod: AgentPod) -> None:
    class Twin(Inputs):
        def bundle_id(self) -> str:
            return INPUTS.bundle_id()

    pod.seal(rank_files(1))
    before = read_tree(pod.bundle())
    twin = Twin("0f" * 32, INPUTS.revision, INPUTS.target, INPUTS.nodeSelector)
    for verb in ("check", "seal"):
        report = pod.run(verb, "pod-2", inputs=twin)
        assert report.reason == "IdCollision" and report.reason in REASONS
    assert read_tree(pod.bundle()) == before


def test_a_bundle_of_a_newer_release_is_not_taken_for_a_damaged_one(pod: AgentPod) -> None:
    pod.seal(rank_files(1))
    manifest = pod.bundle() / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(
        json.dumps(
            {**json.loads(manifest.read_bytes()), "schema": "pretune.dev/bundle/v2"}
        ).encode()
    )
    report = pod.run("seal", "pod-2")
    assert report.reason == "IdCollision" and "pretune.dev/bundle/v2" in report.message


def test_a_link_in_place_of_a_bundle_is_not_followed(pod: AgentPod, tmp_path: Path) -> None:
    pod.run("check")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pod.bundle().symlink_to(elsewhere)
    report = pod.write_tactics(rank_files(1)).run("seal")
    assert report.reason == "UnsafePath" and INPUTS.bundle_id() in report.message
    assert list(elsewhere.iterdir()) == [] and pod.bundle().is_symlink()
