"""The agent's zip: the same files make the same bytes, and a plain python3 runs it."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import kubernetes_validate
import pretune
from pretune.manifests import agent_archive
from pretune.protocol import Inputs

ROOT = Path(pretune.__file__).parent


def entries() -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(agent_archive.build_agent_archive())).infolist()


def test_the_name_is_that_of_the_content() -> None:
    digest = hashlib.sha256(agent_archive.build_agent_archive()).hexdigest()
    assert agent_archive.agent_name() == f"pretune-agent-{digest[:12]}"


def test_the_same_files_make_the_same_bytes_whatever_their_dates_and_modes(
    tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    copied = tmp_path / "pretune"
    for file in ROOT.rglob("*.py"):
        target = copied / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        target.chmod(0o600)
    monkeypatch.setattr(pretune, "__file__", str(copied / "__init__.py"))
    build = agent_archive.build_agent_archive.__wrapped__
    assert build() == agent_archive.build_agent_archive()
    (copied / "protocol.py").write_bytes((ROOT / "protocol.py").read_bytes() + b"\n# changed\n")
    assert build() != agent_archive.build_agent_archive()


def test_no_clock_is_in_the_bytes() -> None:
    assert {entry.date_time for entry in entries()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_holds_the_agent_and_what_it_imports_and_nothing_of_the_controller() -> None:
    ours = {
        f"pretune/{file.relative_to(ROOT).as_posix()}"
        for part in ("agent", "engines")
        for file in (ROOT / part).rglob("*.py")
        if file.name
        not in ("log.py", "logs.py")  # the controller reads logs: a change there is no other agent
    }
    assert {entry.filename for entry in entries()} == {
        "__main__.py",
        "pretune/__init__.py",
        "pretune/api/__init__.py",
        "pretune/api/reasons.py",
        "pretune/protocol.py",
    } | ours


def test_it_fits_a_config_map_with_room() -> None:
    assert (
        len(agent_archive.build_agent_config_map("inference")["binaryData"]["agent.pyz"])
        < 512 * 1024
    )  # of 1 MiB


def test_a_plain_python_runs_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "agent.pyz"
    file.write_bytes(agent_archive.build_agent_archive())
    code = f"import sys; sys.path.insert(0, {str(file)!r}); import pretune.protocol as w; print(w.Inputs('f', '', 't', {{}}).bundle_id())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == Inputs("f", "", "t", {}).bundle_id()


def test_its_main_runs_the_agents_main(tmp_path: Path) -> None:
    """A stand-in for pretune.agent prints its arguments: this is about the zip's first file."""
    zip_file = tmp_path / "agent.pyz"
    with zipfile.ZipFile(zip_file, "w") as archive:
        archive.writestr(
            "__main__.py",
            zipfile.ZipFile(io.BytesIO(agent_archive.build_agent_archive())).read("__main__.py"),
        )
        archive.writestr("pretune/__init__.py", "")
        archive.writestr("pretune/agent/__init__.py", "")
        archive.writestr(
            "pretune/agent/__main__.py",
            "import sys; assert __name__ == '__main__'; print(sys.argv[1:])",
        )
    done = subprocess.run(
        [sys.executable, "-I", "-S", zip_file, "check"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['check']"


def test_the_config_map_is_immutable_without_owner_and_holds_the_zip() -> None:
    made = agent_archive.build_agent_config_map("inference")
    kubernetes_validate.validate(made, "1.34", strict=True)
    assert made["immutable"] is True
    assert made["metadata"] == {
        "name": agent_archive.agent_name(),
        "namespace": "inference",
        "labels": {"pretune.dev/role": "agent"},
    }
    assert base64.b64decode(made["binaryData"]["agent.pyz"]) == agent_archive.build_agent_archive()
