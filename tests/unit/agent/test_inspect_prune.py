"""What inspect reports for adoption, and what prune deletes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretune.agent.__main__ import exit_code
from pretune.agent.inspect import fit_report
from pretune.protocol import ANSWER_BYTES, ANSWERS, Inputs, Report, Versions, Writer

from tests.builders.agent_pod import INPUTS, AgentPod, managed_store, rank_files, snapshot


def inputs(number: int) -> Inputs:
    return Inputs(f"{number:064x}", "", "b200", {})


def seal_many(pod: AgentPod, count: int) -> list[str]:
    """Bundles sealed one hour after another; their ids, the oldest first."""
    from pretune.agent.__main__ import run

    pod.write_tactics(rank_files(1))
    for number in range(count):
        context = pod.context(inputs=inputs(number))
        context.now = lambda number=number: 1.7e9 + 3600 * number  # type: ignore[misc]
        assert run("seal", context).reason == "Sealed"
    return [inputs(number).bundle_id() for number in range(count)]


def test_an_answer_has_all_that_the_status_of_a_bundle_needs(pod: AgentPod) -> None:
    sealed = pod.seal(managed_store(5))
    report = pod.run("inspect", ids=[INPUTS.bundle_id()])
    assert (report.reason, exit_code(report), report.more) == ("Inspected", 0, 0)
    (answer,) = report.bundles
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
        "reason",
    ):
        assert getattr(answer, field) == getattr(sealed, field)
    assert answer.fingerprint == INPUTS.fingerprint
    assert Report.load(report.dump()) == report


def test_wanted_bundles_come_first_then_the_newest_and_the_rest_is_counted(pod: AgentPod) -> None:
    ids = seal_many(pod, 11)
    report = pod.run("inspect", ids=[ids[2], "000000000000-absent"])
    answers = [answer.id for answer in report.bundles]
    assert answers == [ids[2], *reversed(ids[4:])] and len(answers) == ANSWERS
    assert report.more == 3
    assert len(report.dump().encode()) <= ANSWER_BYTES


def test_broken_bundles_are_counted_and_named_and_get_no_answer(
    pod: AgentPod, tmp_path: Path
) -> None:
    ids = seal_many(pod, 3)
    (pod.bundles / ids[0] / "manifest.json").unlink()
    (pod.bundles / "0123456789ab-linked").symlink_to(tmp_path)
    (pod.bundles / "lost+found").mkdir()
    report = pod.run("inspect", ids=ids)
    assert [answer.id for answer in report.bundles] == [ids[2], ids[1]]
    assert "2 whole, 2 broken" in report.message and ids[0] in report.message


def test_a_claim_without_our_folder_has_no_bundles(pod: AgentPod) -> None:
    report = pod.run("inspect", ids=[INPUTS.bundle_id()])
    assert (report.reason, report.bundles, exit_code(report)) == ("Inspected", [], 0)
    assert list(pod.claim.iterdir()) == []


def test_an_inspection_that_failed_leaves_no_report(
    pod: AgentPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretune.agent.__main__ import main

    monkeypatch.setenv("PRETUNE_TASK", pod.context(ids=[INPUTS.bundle_id()]).task.dump())
    log = tmp_path / "log"
    assert (
        main(["inspect", "--claim", str(tmp_path / "absent"), "--termination-log", str(log)]) == 1
    )
    assert "InspectFailed" in log.read_text() and Report.load(log.read_text()) is None


texts = st.text(max_size=400)
reports = st.builds(
    Report,
    by=st.just("inspect"),
    reason=st.just("Sealed"),
    message=texts,
    id=st.from_regex(r"[0-9a-f]{12}-[a-z]{1,20}", fullmatch=True),
    layout=st.just("PerRank"),
    entries=st.integers(0, 10**6),
    digest=st.just("sha256:" + "a" * 64),
    versions=st.builds(Versions, *[st.text(alphabet="0123456789.+", max_size=64)] * 4),
    writer=st.builds(
        Writer,
        st.integers(0, 2**31),
        st.integers(0, 2**31),
        st.lists(st.integers(0, 2**31), max_size=8),
    ),
    seconds=st.integers(0, 10**5),
    at=st.just("2026-01-01T00:00:00Z"),
    fingerprint=st.just("f" * 64),
)


@given(st.lists(reports, max_size=12), texts)
def test_any_answers_fit_and_none_of_the_first_eight_is_left_out(
    answers: list[Report], message: str
) -> None:
    report = fit_report(answers, message)
    assert len(report.dump().encode()) <= ANSWER_BYTES
    kept = answers[:ANSWERS]
    assert [answer.id for answer in report.bundles] == [answer.id for answer in kept]
    assert len(report.bundles) + report.more == len(answers)
    for answer, whole in zip(report.bundles, kept, strict=True):
        assert (answer.digest, answer.writer, answer.fingerprint, answer.at) == (
            whole.digest,
            whole.writer,
            whole.fingerprint,
            whole.at,
        )


@given(reports)
def test_a_report_of_a_bundle_stays_within_its_bytes(report: Report) -> None:
    from dataclasses import replace

    sealed = replace(
        report,
        by="seal",
        fingerprint="",
        versions=Versions("0.33.0", "0.7.2.post1", "13.0", "NVIDIA B200"),
    )
    assert len(sealed.dump().encode()) <= 700
    assert Report.load(sealed.dump()) is not None


# --- prune


def test_prune_deletes_the_named_bundles_only_and_leaves_nothing_behind(pod: AgentPod) -> None:
    ids = seal_many(pod, 3)
    kept = snapshot(pod.bundles / ids[1])
    report = pod.run("prune", ids=[ids[0], ids[2], "000000000000-absent"])
    assert (report.reason, exit_code(report), report.message) == ("Pruned", 0, "2 deleted")
    assert os.listdir(pod.bundles) == [ids[1]] and snapshot(pod.bundles / ids[1]) == kept
    assert pod.staging() == []


@pytest.mark.parametrize("name", ["..", "../other/bundles/x", "", "/", "0123456789ab-../x"])
def test_prune_refuses_a_name_that_is_not_an_id(pod: AgentPod, name: str) -> None:
    (sealed,) = seal_many(pod, 1)
    report = pod.run("prune", ids=[sealed, name])
    assert report.reason == "UnsafePath" and exit_code(report) == 1
    assert os.listdir(pod.bundles) == [sealed]


def test_prune_deletes_a_link_and_not_what_it_leads_to(pod: AgentPod, tmp_path: Path) -> None:
    seal_many(pod, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (pod.bundles / "0123456789ab-linked").symlink_to(elsewhere)
    (pod.bundles / "0123456789ab-damaged").mkdir()
    (pod.bundles / "0123456789ab-damaged" / "inner").symlink_to(elsewhere)
    report = pod.run("prune", ids=["0123456789ab-linked", "0123456789ab-damaged"])
    assert report.reason == "Pruned" and report.message == "2 deleted"
    assert (elsewhere / "file").read_text() == "x"
    assert pod.staging() == []


def test_prune_creates_no_folder_where_there_is_none(pod: AgentPod) -> None:
    assert pod.run("prune", ids=[INPUTS.bundle_id()]).reason == "Pruned"
    assert list(pod.claim.iterdir()) == []


def test_a_manifest_with_wrong_types_is_a_broken_bundle(pod: AgentPod) -> None:
    (name,) = seal_many(pod, 1)
    manifest = pod.bundles / name / "manifest.json"
    whole = json.loads(manifest.read_bytes())
    manifest.chmod(0o644)
    wrong: list[object] = [
        {**whole, "parts": None},
        {
            **whole,
            "parts": [{**whole["parts"][0], "files": [{"path": 1, "size": "x", "sha256": None}]}],
        },
        {**whole, "parts": [{**whole["parts"][0], "folders": [7]}]},
        {**whole, "parts": [{**whole["parts"][0], "name": "../x"}]},
        {**whole, "inputs": []},
        {**whole, "parts": []},
        {**whole, "id": "0123456789ab-b200"},
        [],
        None,
    ]
    for content in wrong:
        manifest.write_bytes(json.dumps(content).encode())
        report = pod.run("inspect")
        assert report.reason == "Inspected" and "1 broken" in report.message, content
    manifest.write_bytes(b"[" * 100_000)
    assert "1 broken" in pod.run("inspect").message
